//! What is known of one other node: whether it answers, and how much it is asked at once.
//!
//! A node that is silent is asked again for a while, since its clients need a moment to come back elsewhere; after that
//! its users are not waited for, until it answers a ping, which it gets once a second. So a node that hangs holds up
//! nobody but its own clients.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::catalog::Lane;

/// Requests of a lane that may wait for one node at once; further ones wait for their turn. At 2 ms each they are some
/// 100,000 a second.
const AT_ONCE: usize = 256;

/// Silence after which a node is not waited for: two rounds of both tries.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(2);

/// Two failures that lie further apart are not one silence: nobody knows what was in between.
const APART: Duration = Duration::from_secs(3);

/// Another node, as this one sees it.
#[derive(Debug)]
pub(super) struct Peer {
    turns: [Semaphore; Lane::ALL.len()],
    silence: Mutex<Option<Silence>>,
}

#[derive(Debug, Clone, Copy)]
struct Silence {
    since: Instant,
    last: Instant,
    /// The number of this node's connection to NATS. Of a connection that broke nobody knows who was silent.
    connection: u64,
}

impl Default for Peer {
    fn default() -> Self {
        Self { turns: [const { Semaphore::const_new(AT_ONCE) }; Lane::ALL.len()], silence: Mutex::new(None) }
    }
}

impl Peer {
    /// Whose turn it is.
    pub(super) fn turns(&self, lane: Lane) -> &Semaphore {
        &self.turns[lane as usize]
    }

    /// True while it is not waited for, over this node's `connection` to NATS.
    pub(super) fn is_given_up(&self, connection: u64) -> bool {
        self.silence.lock().is_some_and(|silence| silence.connection == connection && silence.is_long())
    }

    /// It said something.
    pub(super) fn heard(&self) {
        *self.silence.lock() = None;
    }

    /// It did not answer what it was asked at `asked`; true when its users may be asked about again.
    pub(super) fn unheard(&self, asked: Instant, now: Instant, connection: u64) -> bool {
        let mut silence = self.silence.lock();
        let same = |known: &Silence| {
            known.connection == connection && (known.is_long() || asked.duration_since(known.last) < APART)
        };
        let since = silence.filter(same).map_or(asked, |known| known.since.min(asked));
        !silence.insert(Silence { since, last: now, connection }).is_long()
    }
}

impl Silence {
    fn is_long(&self) -> bool {
        self.last.duration_since(self.since) >= GIVEN_UP_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_is_asked_for_a_while_and_then_not_until_it_answers() {
        let (peer, start) = (Peer::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let unheard = |asked, now| peer.unheard(at(asked), at(now), 1);
        assert!(unheard(0, 1_000) && !peer.is_given_up(1));
        assert!(!unheard(1_100, 2_100) && peer.is_given_up(1));
        assert!(!unheard(60_000, 61_000), "it is pinged all the time, and does not answer");
        assert!(!peer.is_given_up(2), "this node was away itself");
        peer.heard();
        assert!(!peer.is_given_up(1));
    }

    #[test]
    fn two_hiccups_are_not_a_silence() {
        let (peer, start) = (Peer::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for ms in [0, 10_000, 20_000] {
            assert!(peer.unheard(at(ms), at(ms + 1), 1));
        }
        assert!(peer.unheard(at(21_000), at(21_001), 1));
        assert!(peer.unheard(at(21_500), at(21_501), 2), "over another connection");
        assert!(!peer.unheard(at(23_000), at(23_501), 2));
    }
}
