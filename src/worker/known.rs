//! The conversations that are registered already, as far as this process remembers: so that most messages need no
//! look-up.
//!
//! Keeps 64-bit hashes in two generations; when the younger is full it becomes the older and the older is forgotten.
//! What was forgotten is looked up again. Bounded: 2 × 65,536 hashes, some 2.5 MB.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

use crate::directory::Key;
use crate::id::UserId;
use crate::pipeline::Todo;

/// Hashes of one generation.
const GENERATION: usize = 65_536;

/// What is registered.
#[derive(Debug, Default)]
pub(super) struct Known {
    hasher: RandomState,
    generations: Mutex<[HashSet<u64>; 2]>,
}

impl Known {
    /// True when nothing is left to do.
    pub(super) fn covers(&self, todo: &Todo) -> bool {
        let Todo::Conversation(of, users) = todo else { return false };
        let hash = self.hash(of, users);
        let mut generations = self.generations.lock();
        if generations[0].contains(&hash) {
            return true;
        }
        // What is used stays.
        let old = generations[1].remove(&hash);
        if old {
            add(&mut generations, hash);
        }
        old
    }

    /// Remembers that both users are members of the conversation.
    pub(super) fn registered(&self, of: &Key, users: &[UserId; 2]) {
        add(&mut self.generations.lock(), self.hash(of, users));
    }

    fn hash(&self, of: &Key, [a, b]: &[UserId; 2]) -> u64 {
        self.hasher.hash_one((of, a.min(b), a.max(b)))
    }
}

fn add(generations: &mut [HashSet<u64>; 2], hash: u64) {
    if generations[0].len() >= GENERATION {
        generations.swap(0, 1);
        generations[0].clear();
    }
    generations[0].insert(hash);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Kind;

    #[test]
    fn both_directions_of_a_conversation_are_known_and_the_memory_is_bounded() {
        let known = Known::default();
        let user = |name: &str| UserId::new(name).unwrap();
        let of = |n: usize| Key::new(Kind::Conversation, &format!("c{n}")).unwrap();
        let todo = |n, a: &str, b: &str| Todo::Conversation(of(n), [user(a), user(b)]);

        assert!(!known.covers(&todo(0, "a", "b")));
        known.registered(&of(0), &[user("a"), user("b")]);
        assert!(known.covers(&todo(0, "b", "a")) && !known.covers(&todo(0, "a", "c")));
        for n in 1..=GENERATION {
            known.registered(&of(n), &[user("a"), user("b")]);
        }
        assert!(known.covers(&todo(0, "a", "b")), "of the older generation, and in use");
        for n in 1..=2 * GENERATION {
            known.registered(&of(n), &[user("a"), user("b")]);
        }
        assert!(!known.covers(&todo(0, "a", "b")));
        assert!(known.generations.lock().iter().all(|generation| generation.len() <= GENERATION));
    }
}
