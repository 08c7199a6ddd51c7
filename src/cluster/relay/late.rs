//! Which requests come too late: whoever asked has given up, and has seen to the recipients otherwise.
//!
//! Pure. Clocks of nodes differ, so a request is late in comparison with the quickest of the same sender. Requests that
//! stay late for longer than a node can have been held up are not: then a clock was set.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Now;
use crate::id::NodeId;

/// What piles up while a node stands still is read within this time.
const BELIEVED: Duration = Duration::from_secs(2);

/// Senders that are remembered; beyond it all are forgotten.
const SENDERS_MAX: usize = 1_024;

#[derive(Debug, Clone, Copy)]
struct Sender {
    /// The smallest difference of both clocks that was seen.
    least_ms: i64,
    /// When the first of an unbroken row of late ones came.
    late_since: Option<tokio::time::Instant>,
}

/// The clocks of those who ask.
#[derive(Debug, Default)]
pub(super) struct Late {
    senders: HashMap<NodeId, Sender>,
}

impl Late {
    /// True when nobody waits any more for the answer to a request that `from` sent at `sent_ms` of its clock, and waits
    /// for during `patience`.
    pub(super) fn is_late(&mut self, from: &NodeId, sent_ms: u64, patience: Duration, now: Now) -> bool {
        let patience_ms = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
        let difference_ms = now.unix_ms.cast_signed().wrapping_sub(sent_ms.cast_signed());
        if self.senders.len() >= SENDERS_MAX && !self.senders.contains_key(from) {
            self.senders.clear();
        }
        let first = Sender { least_ms: difference_ms, late_since: None };
        let sender = self.senders.entry(from.clone()).or_insert(first);
        sender.least_ms = sender.least_ms.min(difference_ms);
        if difference_ms.saturating_sub(sender.least_ms) <= patience_ms {
            sender.late_since = None;
            return false;
        }
        let since = *sender.late_since.get_or_insert(now.instant);
        let believed = now.instant.duration_since(since) < BELIEVED;
        if !believed {
            *sender = first;
        }
        believed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests of one sender: its clock and ours, in milliseconds.
    fn late(times: &[(u64, u64)]) -> Vec<bool> {
        let (start, from) = (Now::read(), NodeId::of("a", 1));
        let mut late = Late::default();
        let mut is_late = |sent_ms, at_ms| {
            let instant = start.instant + Duration::from_millis(at_ms);
            late.is_late(&from, sent_ms, Duration::from_secs(2), Now { instant, unix_ms: at_ms })
        };
        times.iter().map(|(sent_ms, at_ms)| is_late(*sent_ms, *at_ms)).collect()
    }

    #[test]
    fn what_waited_longer_than_its_sender_is_late_whatever_the_clocks_say() {
        assert_eq!(late(&[(1_000, 10), (1_100, 110), (1_200, 5_200)]), [false, false, true]);
        assert_eq!(late(&[(9, 90_000), (2_010, 92_000), (2_020, 94_021)]), [false, false, true]);
        assert_eq!(late(&[(0, 0), (10, 2_009), (20, 2_021)]), [false, false, true]);
    }

    #[test]
    fn a_clock_that_was_set_is_believed_in_the_end() {
        let set_back = [(60_000, 0), (1_000, 1_000), (1_500, 2_999), (3_000, 3_000), (3_100, 3_100)];
        assert_eq!(late(&set_back), [false, true, true, false, false]);
        assert_eq!(late(&[(0, 0), (60_000, 10), (60_010, 20)]), [false, false, false]);
    }

    #[test]
    fn senders_are_bounded() {
        let mut late = Late::default();
        for n in 0..=SENDERS_MAX as u64 {
            late.is_late(&NodeId::of("a", n), 0, Duration::ZERO, Now::read());
        }
        assert!(late.senders.len() <= SENDERS_MAX);
    }
}
