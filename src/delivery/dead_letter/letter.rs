//! A dead letter as its headers tell it, which ones are wanted, and how many there are of each kind. Pure.

use std::collections::{BTreeMap, VecDeque};

use super::{DELIVERIES, DETAIL, REASON, SUBJECT};
use crate::nats::Message;
use crate::pipeline::Reason;

/// Kinds that are counted apart. Reasons and events are few; this holds if somebody else writes to the stream.
const KINDS_MAX: usize = 1_000;

/// What the headers of a dead letter say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Its sequence in the stream of dead letters.
    pub seq: u64,
    /// Unix microseconds at which it was written.
    pub stored_at_us: u64,
    /// Why, as in [`Reason::as_str`]; empty when another program wrote it.
    pub reason: String,
    /// A sentence.
    pub detail: String,
    /// The subject of the original; empty when another program wrote it.
    pub subject: String,
    /// The event's type, such as `friend.request`.
    pub event: String,
    /// How often it was delivered.
    pub deliveries: u64,
}

impl Letter {
    /// What `message` of the stream of dead letters says.
    pub fn read(message: &Message) -> Self {
        let header = |name| message.header(name).unwrap_or_default().to_owned();
        let subject = header(SUBJECT);
        let original = subject.strip_prefix("notification.").and_then(|rest| rest.rsplit_once('.'));
        let event = original.map(|(event, _)| event).or_else(|| message.subject.strip_prefix("dlq."));
        Self {
            seq: message.origin.seq,
            stored_at_us: message.origin.stored_at_us,
            reason: header(REASON),
            detail: header(DETAIL),
            event: event.unwrap_or_default().to_owned(),
            deliveries: header(DELIVERIES).parse().unwrap_or_default(),
            subject,
        }
    }
}

/// Which dead letters are wanted; by default all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Those with this reason.
    pub reason: Option<Reason>,
    /// Those of this event.
    pub event: Option<String>,
    /// Those that were written at this time (Unix microseconds) or later.
    pub since_us: Option<u64>,
}

impl Filter {
    /// Does it leave out nothing?
    pub fn is_all(&self) -> bool {
        self.reason.is_none() && self.event.is_none() && self.since_us.is_none()
    }

    /// Is `letter` wanted?
    pub fn takes(&self, letter: &Letter) -> bool {
        self.reason.is_none_or(|reason| letter.reason == reason.as_str())
            && self.event.as_ref().is_none_or(|event| letter.event == *event)
            && self.since_us.is_none_or(|since| letter.stored_at_us >= since)
    }
}

/// The newest of many dead letters, and how many there are by reason and event. Bounded, however many go through it.
#[derive(Debug)]
pub struct Summary {
    limit: usize,
    newest: VecDeque<Letter>,
    kinds: BTreeMap<(String, String), u64>,
    total: u64,
}

impl Summary {
    /// Of nothing yet; it keeps the `limit` newest.
    pub fn new(limit: usize) -> Self {
        Self { limit, newest: VecDeque::new(), kinds: BTreeMap::new(), total: 0 }
    }

    /// Adds a letter; they come oldest first.
    pub fn add(&mut self, letter: Letter) {
        self.total += 1;
        let mut kind = (letter.reason.clone(), letter.event.clone());
        if self.kinds.len() >= KINDS_MAX && !self.kinds.contains_key(&kind) {
            kind = ("other".to_owned(), "other".to_owned());
        }
        *self.kinds.entry(kind).or_default() += 1;
        self.newest.push_back(letter);
        if self.newest.len() > self.limit {
            self.newest.pop_front();
        }
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The newest, newest first.
    pub fn newest(&self) -> impl Iterator<Item = &Letter> {
        self.newest.iter().rev()
    }

    /// Reason, event and number of each kind, most first.
    pub fn kinds(&self) -> Vec<(&str, &str, u64)> {
        let rows =
            self.kinds.iter().map(|((reason, event), count)| (reason.as_str(), event.as_str(), *count));
        let mut rows: Vec<_> = rows.collect();
        rows.sort_by_key(|(_, _, count)| std::cmp::Reverse(*count));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::Origin;

    fn letter(seq: u64, reason: &str, event: &str) -> Letter {
        Letter {
            seq,
            stored_at_us: seq,
            reason: reason.to_owned(),
            detail: String::new(),
            subject: format!("notification.{event}.u1"),
            event: event.to_owned(),
            deliveries: 1,
        }
    }

    #[test]
    fn the_event_is_that_of_the_original_also_when_the_catalog_forgot_it() {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(SUBJECT, "notification.friend.hug.u1");
        let origin = Origin { stream: "D".to_owned(), seq: 1, stored_at_us: 2, deliveries: 0 };
        let mut message = Message { subject: "dlq.unknown".to_owned(), body: "".into(), headers, origin };
        assert_eq!(Letter::read(&message).event, "friend.hug");

        message.headers = async_nats::HeaderMap::new();
        message.subject = "dlq.a.b".to_owned();
        let foreign = Letter::read(&message);
        assert_eq!((foreign.event.as_str(), foreign.reason.as_str(), foreign.deliveries), ("a.b", "", 0));
    }

    #[test]
    fn filters_hold_together() {
        let one = letter(5, "panic", "a.b");
        let filter = |reason, event: Option<&str>, since_us| Filter {
            reason,
            event: event.map(str::to_owned),
            since_us,
        };
        assert!(Filter::default().takes(&one) && Filter::default().is_all());
        assert!(filter(Some(Reason::Panic), Some("a.b"), Some(5)).takes(&one));
        assert!(!filter(Some(Reason::Malformed), Some("a.b"), Some(5)).takes(&one));
        assert!(!filter(Some(Reason::Panic), Some("a"), Some(5)).takes(&one));
        assert!(!filter(Some(Reason::Panic), Some("a.b"), Some(6)).takes(&one));
    }

    #[test]
    fn a_summary_keeps_the_newest_and_counts_all() {
        let mut summary = Summary::new(2);
        for (seq, reason) in [(1, "panic"), (2, "malformed"), (3, "malformed")] {
            summary.add(letter(seq, reason, "a.b"));
        }
        assert_eq!(summary.newest().map(|letter| letter.seq).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(summary.kinds(), [("malformed", "a.b", 2), ("panic", "a.b", 1)]);

        for seq in 0..2 * KINDS_MAX as u64 {
            summary.add(letter(seq, "panic", &format!("a.{seq}")));
        }
        assert_eq!((summary.kinds().len(), summary.total()), (KINDS_MAX + 1, 2 * KINDS_MAX as u64 + 3));
    }
}
