//! The ids a session was given lately, so that a redelivery is shown once.
//!
//! For rows whose repeats are shown once it also knows the latest state of each thing, so that the same state with
//! another id is a repeat, and the return of an earlier state is none. And it knows the messages that were taken back,
//! among the ids: a recall may overtake its message.
//!
//! Keeps 64-bit keyed hashes instead of texts: 1.25 KiB a busy session, nothing for an idle one.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::LazyLock;

/// Ids a session remembers. Redeliveries come within an ack wait (at most 30 s) of the first delivery; a session that
/// gets more than this in between acks late and has its window full first.
const REMEMBERED: usize = 128;

/// One key for the whole process, drawn at start, so that nobody can choose colliding ids.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// States a session remembers: more conversations than a person changes between two redeliveries.
const STATES: usize = 32;

/// The last ids and states of one session.
#[derive(Debug, Default)]
pub(super) struct Seen {
    ids: VecDeque<u64>,
    /// A part of each of these, in the same order: most ids are new, and a quarter of the memory says so.
    tags: VecDeque<u16>,
    /// What it is the state of, and which one was shown last.
    states: VecDeque<(u64, u64)>,
}

impl Seen {
    /// Remembers `id`; false when it was there already.
    pub(super) fn insert(&mut self, id: &str) -> bool {
        self.insert_hash(hash(id))
    }

    fn insert_hash(&mut self, hash: u64) -> bool {
        if self.has(hash) {
            return false;
        }
        if self.ids.len() == REMEMBERED {
            self.ids.pop_front();
            self.tags.pop_front();
        }
        self.ids.push_back(hash);
        self.tags.push_back(tag(hash));
        true
    }

    /// True when `id` is remembered.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.has(hash(id))
    }

    /// Looks at all tags, since most are new: without a way out in between the compiler compares several at once.
    fn has(&self, hash: u64) -> bool {
        let tag = tag(hash);
        let count = |some: &[u16]| some.iter().fold(0, |found, known| found + u16::from(*known == tag));
        let (older, newer) = self.tags.as_slices();
        count(older) + count(newer) > 0 && self.ids.contains(&hash)
    }

    /// Forgets `id`, so that it may be offered again.
    pub(super) fn remove(&mut self, id: &str) {
        let hash = hash(id);
        if let Some(at) = self.ids.iter().position(|known| *known == hash) {
            self.ids.remove(at);
            self.tags.remove(at);
        }
    }

    /// Remembers that a message was taken back.
    pub(super) fn insert_recalled(&mut self, message: &str) {
        self.insert_hash(recalled(message));
    }

    /// True when it is remembered that the message was taken back.
    pub(super) fn is_recalled(&self, message: &str) -> bool {
        self.has(recalled(message))
    }

    /// The state `of` something that was shown last.
    pub(super) fn state(&self, of: u64) -> Option<u64> {
        self.states.iter().find(|(known, _)| *known == of).map(|(_, state)| *state)
    }

    /// Remembers the state `of` something; false when it is the one that was shown last.
    pub(super) fn insert_state(&mut self, of: u64, state: u64) -> bool {
        if self.states.contains(&(of, state)) {
            return false;
        }
        self.remove_state(of);
        if self.states.len() == STATES {
            self.states.pop_front();
        }
        self.states.push_back((of, state));
        true
    }

    /// Forgets what the last state `of` something was.
    pub(super) fn remove_state(&mut self, of: u64) {
        self.states.retain(|(known, _)| *known != of);
    }
}

/// The hash under which something is remembered.
pub(super) fn hash(of: impl Hash) -> u64 {
    HASHER.hash_one(of)
}

/// The part of a hash that is looked at first.
fn tag(hash: u64) -> u16 {
    hash as u16
}

/// Of another form than an id's, so that no id is taken for it.
fn recalled(message: &str) -> u64 {
    hash(("recalled", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_new_when_another_was_in_between() {
        let mut seen = Seen::default();
        assert!(seen.insert_state(1, 10));
        assert!(!seen.insert_state(1, 10));
        assert!(seen.insert_state(2, 10), "of something else");
        assert!(seen.insert_state(1, 11));
        assert!(seen.insert_state(1, 10), "it has come back");
        seen.remove_state(1);
        assert!(seen.insert_state(1, 10));
    }

    #[test]
    fn a_recalled_message_is_no_id() {
        let mut seen = Seen::default();
        seen.insert_recalled("m");
        assert!(seen.is_recalled("m") && !seen.is_recalled("n"));
        assert!(seen.insert("m"), "an id may have the same text");
        seen.remove("m");
        assert!(seen.is_recalled("m"));
    }

    #[test]
    fn ids_of_one_tag_are_told_apart_and_those_forgotten_leave_the_others() {
        let mut seen = Seen::default();
        let same_tag = [1, 1 | 1 << 16, 1 | 1 << 63];
        for hash in same_tag {
            assert!(seen.insert_hash(hash) && !seen.insert_hash(hash), "{hash:x}");
        }
        assert!(!seen.has(1 | 1 << 17));
        // Older ones leave on the way.
        for number in 0..3 * REMEMBERED {
            let id = number.to_string();
            seen.insert(&id);
            if number % 3 == 0 {
                seen.remove(&id);
            }
        }
        assert_eq!(seen.ids.len(), REMEMBERED);
        assert!(seen.ids.iter().map(|hash| tag(*hash)).eq(seen.tags.iter().copied()));
        assert!(!seen.contains("1") && seen.contains("382") && !seen.contains("381") && seen.contains("383"));
    }

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
