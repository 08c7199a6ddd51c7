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

    /// True when the node is to be asked now.
    pub(super) fn may_be_asked(&self, now: Instant) -> bool {
        let mut silence = self.silence.lock();
        let Some(silence) = silence.as_mut().filter(|silence| silence.is_long(now)) else { return true };
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
    pub(super) fn unheard(&self, now: Instant) -> bool {
        let mut silence = self.silence.lock();
        !silence.get_or_insert(Silence { since: now, probed: now }).is_long(now)
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
        assert!(peer.may_be_asked(at(0)) && peer.unheard(at(0)));
        assert!(peer.may_be_asked(at(2_999)) && peer.unheard(at(2_999)));
        assert!(peer.may_be_asked(at(3_000)), "the first one that finds out");
        assert!(!peer.may_be_asked(at(3_001)) && !peer.unheard(at(3_002)));
        assert!(peer.may_be_asked(at(4_000)) && !peer.may_be_asked(at(4_000)));
        peer.heard();
        assert!(peer.may_be_asked(at(4_001)) && peer.unheard(at(9_000)), "it is another silence");
    }
}
