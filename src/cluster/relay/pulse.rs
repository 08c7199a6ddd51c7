//! Whether this node's own connection to NATS carries anything: what it sends to itself comes back, or does not.
//!
//! A cut need not be told: packets are dropped, and the connection counts as well for minutes. Whoever is silent then is
//! not the other node. Pure, but for the counters it is kept in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How often something is sent.
pub(super) const BEAT: Duration = Duration::from_millis(500);

/// Time without anything that came back after which the connection counts as cut. Less than the silence after which
/// another node is not waited for, so that it is this node's own silence first.
const SILENT_AFTER: Duration = Duration::from_millis(1_500);

/// What came back so far. Times are milliseconds from the start on.
#[derive(Debug)]
pub(super) struct Pulse {
    start: Instant,
    /// When that was sent which came back last.
    sent_ms: AtomicU64,
    /// How often nothing came back for long.
    silences: AtomicU64,
}

impl Pulse {
    pub(super) fn new(start: Instant) -> Self {
        Self { start, sent_ms: AtomicU64::new(0), silences: AtomicU64::new(0) }
    }

    /// What is to be sent at `now`.
    pub(super) fn beat(&self, now: Instant) -> u64 {
        now.duration_since(self.start).as_millis() as u64
    }

    /// What was sent came back.
    pub(super) fn back(&self, sent_ms: u64) {
        let before = self.sent_ms.load(Ordering::Acquire);
        if sent_ms > before + SILENT_AFTER.as_millis() as u64 {
            // Before the silence ends: who sees its end sees that it was.
            self.silences.fetch_add(1, Ordering::AcqRel);
        }
        self.sent_ms.fetch_max(sent_ms, Ordering::AcqRel);
    }

    /// How often nothing came back for long, up to now; `None` while nothing does.
    pub(super) fn silences(&self, now: Instant) -> Option<u64> {
        let silent_ms = self.beat(now).saturating_sub(self.sent_ms.load(Ordering::Acquire));
        (silent_ms <= SILENT_AFTER.as_millis() as u64).then(|| self.silences.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_shows_while_it_lasts_and_afterwards() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let pulse = Pulse::new(start);
        assert_eq!(pulse.silences(at(1_500)), Some(0), "it has just begun");
        for ms in [500, 1_000, 2_000, 1_500] {
            assert_eq!(pulse.beat(at(ms)), ms);
            pulse.back(ms);
        }
        assert_eq!(pulse.silences(at(3_500)), Some(0));
        assert_eq!(pulse.silences(at(3_501)), None);
        pulse.back(3_501);
        assert_eq!(pulse.silences(at(3_501)), Some(1), "what was asked before it is not to be relied on");
        pulse.back(4_000);
        assert_eq!(pulse.silences(at(4_000)), Some(1));
    }
}
