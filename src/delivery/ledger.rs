//! The ledger of one message: every recipient ends in exactly one outcome.
//!
//! Outcomes count when JetStream is told that the message is done, so a message that comes again is counted once. The
//! delivery ratio is `(acked + delivered + coalesced + offline_pushed + inboxed) / (all - excluded - absent - expired)`,
//! each a `fanfare_delivery_outcomes_total{outcome}`; `fanfare_delivery_ratio` is that of this process so far.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Counter, Histogram, Unit, counter, gauge, histogram};
use serde::{Deserialize, Serialize};

use super::evidence::{Ended, Findings, Record, Scope};
use crate::catalog::Lane;
use crate::id::UserId;
use crate::protocol::Notification;

/// What became of one recipient of one notification. The first that applies, in this order, counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

/// The outcomes of one message, and what of them is worth a record.
#[derive(Debug, Default)]
pub struct Ledger {
    counts: [u64; Outcome::ALL.len()],
    expected: u64,
    findings: Findings,
}

impl Ledger {
    /// A ledger for `recipients` people, who are worth records as far as `scope` says.
    pub fn new(recipients: u64, scope: Scope) -> Self {
        Self { expected: recipients, findings: Findings::new(scope), ..Self::default() }
    }

    /// A ledger of nobody.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The ledger of a message that went to the dead letters. Whoever it was for is not known, or not known to be right:
    /// it counts as one.
    pub fn dead_lettered(record: Record) -> Self {
        let mut ledger = Self::new(1, Scope::Failures);
        ledger.count_in(Outcome::DeadLettered, 1);
        ledger.findings.push(record);
        ledger
    }

    /// `user` ended so; without a name one of those whose names are not known, or not needed.
    pub fn settle(&mut self, note: &Notification, user: Option<&UserId>, ended: Ended) {
        self.settle_many(note, user, 1, ended);
    }

    /// `recipients` people without a name ended so.
    pub fn settle_unnamed(&mut self, note: &Notification, recipients: u64, ended: Ended) {
        self.settle_many(note, None, recipients, ended);
    }

    fn settle_many(&mut self, note: &Notification, user: Option<&UserId>, recipients: u64, ended: Ended) {
        self.count_in(ended.outcome, recipients);
        self.findings.add(note, user, recipients, ended);
    }

    /// True when the names of those who got it are needed, too.
    pub fn wants_everything(&self) -> bool {
        self.findings.wants_everything()
    }

    /// What is worth a record, of a ledger that is not committed because its message was counted before.
    pub fn into_findings(self) -> Findings {
        self.findings
    }

    fn count_in(&mut self, outcome: Outcome, recipients: u64) {
        self.counts[outcome as usize] += recipients;
        debug_assert!(self.settled() <= self.expected, "somebody ended in two outcomes: {self:?}");
    }

    /// How many ended in `outcome`.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.counts[outcome as usize]
    }

    /// How many recipients it is for.
    pub fn recipients(&self) -> u64 {
        self.expected
    }

    /// How many have no outcome yet.
    pub fn open(&self) -> u64 {
        self.expected.saturating_sub(self.settled())
    }

    /// Counts every outcome, and gives what is worth a record. Called once, when JetStream is told. Somebody who was
    /// forgotten on the way counts as undeliverable: that is what they got.
    #[must_use = "the records are still to be written"]
    pub fn commit(mut self, totals: &Totals) -> Findings {
        let forgotten = self.open();
        debug_assert_eq!(forgotten, 0, "recipients without an outcome: {self:?}");
        if forgotten > 0 {
            tracing::error!(forgotten, "recipients ended without an outcome; they count as undeliverable");
            self.count_in(Outcome::Undeliverable, forgotten);
        }
        for outcome in Outcome::ALL {
            let count = self.count(outcome);
            if count > 0 {
                totals.add(outcome, count);
            }
        }
        self.findings
    }

    fn settled(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Sums of this process, with its metrics found once: looking them up by name for each message takes longer than counting.
#[derive(Debug)]
pub struct Totals {
    successes: AtomicU64,
    relevant: AtomicU64,
    outcomes: [Counter; Outcome::ALL.len()],
    accepted_after: [Histogram; Lane::ALL.len()],
}

impl Default for Totals {
    fn default() -> Self {
        let outcome =
            |outcome: Outcome| counter!("fanfare_delivery_outcomes_total", "outcome" => outcome.as_str());
        let after = |lane: Lane| histogram!("fanfare_delivery_accept_seconds", "lane" => lane.as_str());
        Self {
            successes: AtomicU64::new(0),
            relevant: AtomicU64::new(0),
            outcomes: Outcome::ALL.map(outcome),
            accepted_after: Lane::ALL.map(after),
        }
    }
}

impl Totals {
    fn add(&self, outcome: Outcome, count: u64) {
        self.outcomes[outcome as usize].increment(count);
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

    /// Records the time from the publish to a session taking it, of so many users.
    pub fn accepted(&self, lane: Lane, after: Duration, users: usize) {
        if users > 0 {
            self.accepted_after[lane as usize].record_many(after, users);
        }
    }

    /// Sets the gauge.
    pub fn report(&self) {
        gauge!("fanfare_delivery_ratio").set(self.ratio());
    }
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
        let mut ledger = Ledger { expected: 10, ..Ledger::default() };
        for (outcome, count) in [(Outcome::Delivered, 2), (Outcome::Inboxed, 1), (Outcome::Undeliverable, 1)]
        {
            ledger.count_in(outcome, count);
        }
        for (outcome, count) in [(Outcome::Absent, 3), (Outcome::Excluded, 2), (Outcome::Expired, 1)] {
            ledger.count_in(outcome, count);
        }
        assert_eq!(ledger.open(), 0);
        assert!(ledger.commit(&totals).into_records().is_empty());
        assert!((totals.ratio() - 0.75).abs() < f64::EPSILON);
    }

    #[test]
    #[should_panic(expected = "two outcomes")]
    fn nobody_ends_twice() {
        let mut ledger = Ledger { expected: 1, ..Ledger::default() };
        ledger.count_in(Outcome::Delivered, 1);
        ledger.count_in(Outcome::Acked, 1);
    }
}
