//! The ledger of one message: every recipient ends in exactly one outcome.
//!
//! Outcomes count when JetStream is told that the message is done, so a message that comes again is counted once. The
//! delivery ratio is `(acked + delivered + coalesced + offline_pushed + inboxed) / (all - excluded - absent - expired)`,
//! each a `fanfare_delivery_outcomes_total{outcome}`; `fanfare_delivery_ratio` is that of this process so far.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Unit, counter, gauge, histogram};

use crate::catalog::Lane;

/// What became of one recipient of one notification. The first that applies, in this order, counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A client acked it.
    Acked,
    /// A session took it.
    Delivered,
    /// The push service has it.
    OfflinePushed,
    /// The inbox has it.
    Inboxed,
    /// A later one replaced it before it was sent.
    Coalesced,
    /// It was not worth delivering any more.
    Expired,
    /// The rules leave the user out.
    Excluded,
    /// No session, and the row keeps nothing for later.
    Absent,
    /// Every session was full, and traffic of the low lane may be dropped.
    DroppedLow,
    /// Every try failed, and the row keeps nothing for later.
    Undeliverable,
    /// The message is in the dead letters.
    DeadLettered,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 11] = [
        Self::Acked,
        Self::Delivered,
        Self::OfflinePushed,
        Self::Inboxed,
        Self::Coalesced,
        Self::Expired,
        Self::Excluded,
        Self::Absent,
        Self::DroppedLow,
        Self::Undeliverable,
        Self::DeadLettered,
    ];

    /// The outcome's name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Acked => "acked",
            Self::Delivered => "delivered",
            Self::OfflinePushed => "offline_pushed",
            Self::Inboxed => "inboxed",
            Self::Coalesced => "coalesced",
            Self::Expired => "expired",
            Self::Excluded => "excluded",
            Self::Absent => "absent",
            Self::DroppedLow => "dropped_low",
            Self::Undeliverable => "undeliverable",
            Self::DeadLettered => "dead_lettered",
        }
    }

    const fn is_success(self) -> bool {
        matches!(self, Self::Acked | Self::Delivered | Self::OfflinePushed | Self::Inboxed | Self::Coalesced)
    }

    /// True for outcomes that say nothing about how well delivery works.
    const fn is_neutral(self) -> bool {
        matches!(self, Self::Expired | Self::Excluded | Self::Absent)
    }
}

/// The outcomes of one message.
#[derive(Debug, Default)]
pub struct Ledger {
    counts: [u64; Outcome::ALL.len()],
    expected: u64,
}

impl Ledger {
    /// A ledger for `recipients` people.
    pub fn new(recipients: u64) -> Self {
        Self { expected: recipients, ..Self::default() }
    }

    /// A ledger that is complete: all `recipients` ended in `outcome`.
    pub fn all(outcome: Outcome, recipients: u64) -> Self {
        let mut ledger = Self::new(recipients);
        ledger.settle(outcome, recipients);
        ledger
    }

    /// `recipients` people ended in `outcome`.
    pub fn settle(&mut self, outcome: Outcome, recipients: u64) {
        self.counts[outcome as usize] += recipients;
        debug_assert!(self.settled() <= self.expected, "somebody ended in two outcomes: {self:?}");
    }

    /// How many ended in `outcome`.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.counts[outcome as usize]
    }

    /// How many have no outcome yet.
    pub fn open(&self) -> u64 {
        self.expected.saturating_sub(self.settled())
    }

    /// Counts every outcome. Called once, when JetStream is told. Somebody who was forgotten on the way counts as
    /// undeliverable: that is what they got.
    pub fn commit(mut self, totals: &Totals) {
        let forgotten = self.open();
        debug_assert_eq!(forgotten, 0, "recipients without an outcome: {self:?}");
        if forgotten > 0 {
            tracing::error!(forgotten, "recipients ended without an outcome; they count as undeliverable");
            self.settle(Outcome::Undeliverable, forgotten);
        }
        for outcome in Outcome::ALL {
            let count = self.count(outcome);
            if count > 0 {
                counter!("fanfare_delivery_outcomes_total", "outcome" => outcome.as_str()).increment(count);
                totals.add(outcome, count);
            }
        }
    }

    fn settled(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Sums for the delivery ratio of this process.
#[derive(Debug, Default)]
pub struct Totals {
    successes: AtomicU64,
    relevant: AtomicU64,
}

impl Totals {
    fn add(&self, outcome: Outcome, count: u64) {
        if outcome.is_success() {
            self.successes.fetch_add(count, Ordering::Relaxed);
        }
        if !outcome.is_neutral() {
            self.relevant.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// The delivery ratio so far, 1 when nothing was to be delivered.
    pub fn ratio(&self) -> f64 {
        let relevant = self.relevant.load(Ordering::Relaxed);
        let successes = self.successes.load(Ordering::Relaxed);
        if relevant == 0 { 1.0 } else { (successes as f64 / relevant as f64).min(1.0) }
    }

    /// Sets the gauge.
    pub fn report(&self) {
        gauge!("fanfare_delivery_ratio").set(self.ratio());
    }
}

/// Records the time from the publish to a session taking it.
pub fn accepted(lane: Lane, after: Duration) {
    histogram!("fanfare_delivery_accept_seconds", "lane" => lane.as_str()).record(after);
}

/// Records the time from the publish to the client's ack.
pub fn acked(lane: Lane, after: Duration) {
    histogram!("fanfare_delivery_ack_seconds", "lane" => lane.as_str()).record(after);
}

/// Describes the metrics of this part.
pub(crate) fn describe() {
    metrics::describe_counter!("fanfare_delivery_outcomes_total", "recipients by what became of them");
    metrics::describe_gauge!(
        "fanfare_delivery_ratio",
        "share of recipients who got it, of those who could, so far"
    );
    metrics::describe_histogram!(
        "fanfare_delivery_accept_seconds",
        Unit::Seconds,
        "publish to a session taking it"
    );
    metrics::describe_histogram!(
        "fanfare_delivery_ack_seconds",
        Unit::Seconds,
        "publish to the client's ack"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_leaves_out_those_who_could_not_get_it() {
        let totals = Totals::default();
        assert!((totals.ratio() - 1.0).abs() < f64::EPSILON);
        let mut ledger = Ledger::new(10);
        for (outcome, count) in [(Outcome::Delivered, 2), (Outcome::Inboxed, 1), (Outcome::Undeliverable, 1)]
        {
            ledger.settle(outcome, count);
        }
        for (outcome, count) in [(Outcome::Absent, 3), (Outcome::Excluded, 2), (Outcome::Expired, 1)] {
            ledger.settle(outcome, count);
        }
        assert_eq!(ledger.open(), 0);
        ledger.commit(&totals);
        assert!((totals.ratio() - 0.75).abs() < f64::EPSILON);
    }

    #[test]
    #[should_panic(expected = "two outcomes")]
    fn nobody_ends_twice() {
        let mut ledger = Ledger::new(1);
        ledger.settle(Outcome::Delivered, 1);
        ledger.settle(Outcome::Acked, 1);
    }
}
