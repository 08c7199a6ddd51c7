//! What is known of one other node: whether it answers, and how much it is asked at once.
//!
//! A node that is silent is asked again for a while, since its clients need a moment to come back elsewhere; after that
//! its users are not waited for, and one request a second finds out whether it is back. So a node that hangs holds up
//! nobody but its own clients.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::catalog::Lane;

/// Requests of a lane that may wait for one node at once; further ones wait for their turn. At 2 ms each they are some
/// 100,000 a second.
const AT_ONCE: usize = 256;

/// Silence after which a node is not waited for: one round of both tries, and the retries of a recipient.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(3);

/// How often it is asked after that.
const PROBE: Duration = Duration::from_secs(1);

/// Another node, as this one sees it.
#[derive(Debug)]
pub(super) struct Peer {
    turns: [Semaphore; Lane::ALL.len()],
    silence: Mutex<Option<Silence>>,
}

#[derive(Debug, Clone, Copy)]
struct Silence {
    since: Instant,
    probed: Instant,
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

    /// True when the node is to be asked now, over this node's `connection` to NATS.
    pub(super) fn may_be_asked(&self, now: Instant, connection: u64) -> bool {
        let mut silence = self.silence.lock();
        let long = |silence: &&mut Silence| silence.connection == connection && silence.is_long(now);
        let Some(silence) = silence.as_mut().filter(long) else { return true };
        let due = now.duration_since(silence.probed) >= PROBE;
        if due {
            silence.probed = now;
        }
        due
    }

    /// It said something.
    pub(super) fn heard(&self) {
        *self.silence.lock() = None;
    }

    /// It said nothing; true when its users may be asked about again.
    pub(super) fn unheard(&self, now: Instant, connection: u64) -> bool {
        let mut silence = self.silence.lock();
        let new = Silence { since: now, probed: now, connection };
        let known = silence.filter(|known| known.connection == connection);
        !silence.insert(known.unwrap_or(new)).is_long(now)
    }
}

impl Silence {
    fn is_long(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= GIVEN_UP_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_is_asked_for_a_while_and_then_once_a_second() {
        let (peer, start) = (Peer::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let (asked, unheard) = (|ms| peer.may_be_asked(at(ms), 1), |ms| peer.unheard(at(ms), 1));
        assert!(asked(0) && unheard(0));
        assert!(asked(2_999) && unheard(2_999));
        assert!(asked(3_000), "the first one that finds out");
        assert!(!asked(3_001) && !unheard(3_002));
        assert!(asked(4_000) && !asked(4_000));
        peer.heard();
        assert!(asked(4_001) && unheard(9_000), "it is another silence");
        assert!(peer.may_be_asked(at(20_000), 2) && peer.unheard(at(20_000), 2), "this node was away itself");
    }
}
