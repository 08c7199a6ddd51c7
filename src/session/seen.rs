//! The ids a session was given lately, so that a redelivery is shown once.
//!
//! Rows whose repeats are shown once take two places: one for the id, one for the name of the state they tell, so that
//! the same state with another id is known, too.
//!
//! Keeps 64-bit keyed hashes instead of texts: 1 KiB a busy session, nothing for an idle one.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// Ids a session remembers. Redeliveries come within an ack wait (at most 30 s) of the first delivery; a session that
/// gets more than this in between acks late and has its window full first.
const REMEMBERED: usize = 128;

/// One key for the whole process, drawn at start, so that nobody can choose colliding ids.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The last ids of one session.
#[derive(Debug, Default)]
pub(super) struct Seen(VecDeque<u64>);

impl Seen {
    /// Remembers `id`; false when it was there already.
    pub(super) fn insert(&mut self, id: &str) -> bool {
        let hash = HASHER.hash_one(id);
        if self.0.contains(&hash) {
            return false;
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(hash);
        true
    }

    /// True when `id` is remembered.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.0.contains(&HASHER.hash_one(id))
    }

    /// Forgets `id`, so that it may be offered again.
    pub(super) fn remove(&mut self, id: &str) {
        let hash = HASHER.hash_one(id);
        self.0.retain(|known| *known != hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_new_once_until_it_is_forgotten_or_old() {
        let mut seen = Seen::default();
        assert!(seen.insert("a"));
        assert!(!seen.insert("a"));
        seen.remove("a");
        assert!(seen.insert("a"));
        for number in 0..REMEMBERED {
            assert!(seen.insert(&number.to_string()));
        }
        assert!(seen.insert("a"), "the oldest has left");
    }
}
