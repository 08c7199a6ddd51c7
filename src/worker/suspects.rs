//! Messages that may take the process down with them: who is one, and the turn of the one that is handled.

use std::collections::HashMap;

use tokio::sync::{Mutex, MutexGuard};

use crate::nats::Origin;

/// From this delivery on a message is suspected of taking workers down with it, and is handled alone. Four crashes or
/// restarts in a row are more than an upgrade of a cluster makes.
const FROM: u64 = 5;

/// Messages remembered that this process gave back itself. Beyond it all are forgotten, and are suspects again.
const REMEMBERED: usize = 65_536;

/// One a process, shared by all workers.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    turn: Mutex<()>,
    /// The delivery that ended in order, with a word to JetStream, by stream and sequence.
    orderly: parking_lot::Mutex<HashMap<(String, u64), u64>>,
}

impl Suspects {
    /// True for a message that was delivered often, unless the last time ended in order: whatever NATS refused to write
    /// then, handling it takes nobody down.
    pub(super) fn includes(&self, origin: &Origin) -> bool {
        if origin.deliveries < FROM {
            return false;
        }
        let ended = self.orderly.lock().remove(&(origin.stream.clone(), origin.seq));
        ended.is_none_or(|deliveries| deliveries + 1 != origin.deliveries)
    }

    /// This process gives the message back itself.
    pub(super) fn gave_back(&self, origin: &Origin) {
        if origin.deliveries + 1 < FROM {
            return;
        }
        let mut orderly = self.orderly.lock();
        if orderly.len() >= REMEMBERED {
            orderly.clear();
        }
        orderly.insert((origin.stream.clone(), origin.seq), origin.deliveries);
    }

    /// Waits for the turn of one suspect.
    pub(super) async fn alone(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(deliveries: u64) -> Origin {
        Origin { stream: "S".to_owned(), seq: 7, stored_at_us: 0, deliveries }
    }

    #[test]
    fn what_ended_in_order_the_last_time_is_no_suspect() {
        let suspects = Suspects::default();
        assert!(!suspects.includes(&delivered(4)));
        assert!(suspects.includes(&delivered(5)));
        suspects.gave_back(&delivered(5));
        assert!(!suspects.includes(&delivered(6)));
        assert!(suspects.includes(&delivered(6)), "said once");
        suspects.gave_back(&delivered(6));
        assert!(suspects.includes(&delivered(8)), "nobody knows how the seventh ended");
    }
}
