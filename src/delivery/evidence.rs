//! Evidence: records of what became of a notification, for whoever asks with `fanfare trace`.
//!
//! Here is decided what is worth a record, and what is in it: no payload, nothing secret. A record names up to 1,000
//! users who ended in the same way. [`writer`] writes them, after the ledger has counted and never in the way of
//! delivery.

pub mod writer;

use std::sync::Arc;

use async_nats::Client;
use serde::{Deserialize, Serialize};

use super::{Missed, Outcome};
use crate::id::{self, UserId};
use crate::nats::direct_get::{self, DirectGetError, End};
use crate::nats::{Message, OUTCOMES};
use crate::pipeline::{BATCH_USERS_MAX, Refusal};
use crate::protocol::Notification;

pub use writer::{Recorder, Writer, start};

/// Users whom the records of one notification name; further ones are only counted.
const NAMED_MAX: usize = 100_000;

/// Records that one answer holds, and that are read of one notification.
const READ_AT_ONCE: usize = 1_000;
const READ_MAX: usize = 10_000;

/// How much evidence is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Share of the notifications of which successes, too, are recorded: 0 to 1.
    pub sample: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { sample: 0.01 }
    }
}

/// True when the notification is one of the share `sample` whose successes are recorded. All nodes agree on it, and so
/// does whoever reads.
pub fn is_sampled(notification_id: &str, sample: f64) -> bool {
    // The hash's high bits differ little between ids that differ in their last characters.
    let hash = id::stable_hash([notification_id]);
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 11) as f64) < sample * (1u64 << 53) as f64
}

/// Where the records of a notification are. An id that is no subject token is there by its hash; the record has it whole.
pub fn subject(notification_id: &str) -> String {
    if id::is_valid(notification_id) {
        return format!("outcome.{notification_id}");
    }
    // No id has the tilde, so none is taken for a hash.
    format!("outcome.~{:016x}", id::stable_hash([notification_id]))
}

/// How much of a notification is worth a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// What did not go as it should.
    #[default]
    Failures,
    /// All of it: it is in the sample.
    Everything,
    /// All of it: ended sessions held it, and it was counted as delivered before.
    Rerouted,
}

/// How somebody's delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// What it came to.
    pub outcome: Outcome,
    /// Why it was not delivered live.
    pub missed: Option<Missed>,
    /// How often it was offered to the user's sessions.
    pub tries: u32,
}

impl Scope {
    /// True when it is worth a record that somebody's delivery ended so.
    pub fn records(self, ended: Ended) -> bool {
        self != Self::Failures || went_wrong(ended.outcome, ended.missed.map(Missed::as_str))
    }
}

/// True for what did not go as it should. Who was away and has it in the inbox or as a push is the normal case; a detour
/// because a session was slow or lost is not.
fn went_wrong(outcome: Outcome, reason: Option<&str>) -> bool {
    match outcome {
        Outcome::Expired | Outcome::DroppedLow | Outcome::Undeliverable | Outcome::DeadLettered => true,
        Outcome::OfflinePushed | Outcome::Inboxed => {
            reason.is_some_and(|reason| reason != Missed::NoSession.as_str())
        }
        Outcome::Acked | Outcome::Delivered | Outcome::Coalesced | Outcome::Excluded | Outcome::Absent => {
            false
        }
    }
}

/// One record: some recipients of one notification who ended in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The notification.
    pub notification_id: Arc<str>,
    /// Its type, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub notification_type: Option<String>,
    /// Its sequence in its stream; 0 when no stream held it.
    pub stream_seq: u64,
    /// The node that delivered it.
    pub node: Arc<str>,
    /// Unix milliseconds at which it was stored.
    pub published_at_ms: u64,
    /// Unix milliseconds of the end, by the node's clock.
    pub at_ms: u64,
    /// What it came to.
    pub outcome: Outcome,
    /// Why it was not delivered live, or why it is in the dead letters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// How often it was offered to the sessions; for a dead letter how often JetStream delivered it.
    pub tries: u32,
    /// Ended sessions held it, and this is what it came to then.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub rerouted: bool,
    /// How many recipients.
    pub count: u64,
    /// Who, where that is known.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub users: Vec<UserId>,
}

impl Record {
    /// A message that went to the dead letters.
    pub fn dead_lettered(message: &Message, refusal: &Refusal) -> Self {
        let origin = &message.origin;
        let event = message.subject.strip_prefix("notification.").and_then(|rest| rest.rsplit_once('.'));
        Self {
            notification_id: refused_id(message),
            notification_type: event.map(|(event, _)| event.to_owned()),
            stream_seq: origin.seq,
            node: "".into(),
            published_at_ms: origin.stored_at_ms(),
            at_ms: 0,
            outcome: Outcome::DeadLettered,
            reason: Some(refusal.reason.as_str().to_owned()),
            tries: u32::try_from(origin.deliveries).unwrap_or(u32::MAX),
            rerouted: false,
            count: 1,
            users: Vec::new(),
        }
    }

    /// True when it exists only because its notification is in the sample.
    pub fn is_of_the_sample(&self) -> bool {
        !self.rerouted && !went_wrong(self.outcome, self.reason.as_deref())
    }

    /// True when it is, or may be, about `user`.
    pub fn may_be_about(&self, user: &UserId) -> bool {
        self.users.contains(user) || self.count > self.users.len() as u64
    }
}

/// The id of a notification that may be broken: what its body tells, else what it was given, else its place.
pub(super) fn refused_id(message: &Message) -> Arc<str> {
    let origin = &message.origin;
    told_id(&message.body)
        .or_else(|| message.given_id().map(Arc::from))
        .unwrap_or_else(|| format!("{}-{}", origin.stream, origin.seq).into())
}

/// The id that a refused body tells, if it can be read at all.
fn told_id(body: &[u8]) -> Option<Arc<str>> {
    #[derive(Deserialize)]
    struct Told {
        notification_id: Option<String>,
    }
    let told: Told = serde_json::from_slice(body).ok()?;
    let id = told.notification_id?;
    let usable = crate::protocol::envelope::is_notification_id(&id) && !id.is_empty();
    usable.then(|| id.into())
}

/// What is worth a record about one notification. Takes no memory before there is something.
#[derive(Debug, Default)]
pub struct Findings {
    scope: Scope,
    records: Vec<Record>,
    named: usize,
}

impl Findings {
    /// Takes what is worth it for `scope`.
    pub fn new(scope: Scope) -> Self {
        Self { scope, ..Self::default() }
    }

    /// True when everything is worth it.
    pub fn wants_everything(&self) -> bool {
        self.scope != Scope::Failures
    }

    /// `count` recipients ended so: `user`, or people whose names are not known.
    pub fn add(&mut self, note: &Notification, user: Option<&UserId>, count: u64, ended: Ended) {
        if count == 0 || !self.scope.records(ended) {
            return;
        }
        let user = user.filter(|_| self.named < NAMED_MAX);
        self.named += usize::from(user.is_some());
        let Ended { outcome, missed, tries } = ended;
        let reason = missed.map(Missed::as_str);
        let same = |record: &&mut Record| {
            record.outcome == outcome
                && record.reason.as_deref() == reason
                && record.tries == tries
                && record.users.len() + usize::from(user.is_some()) <= BATCH_USERS_MAX
        };
        // The latest first: those before it are full.
        match self.records.iter_mut().rev().find(same) {
            Some(record) => {
                record.count += count;
                record.users.extend(user.cloned());
            }
            None => self.records.push(Record {
                notification_id: note.id.clone(),
                notification_type: Some(note.event.name.clone()),
                stream_seq: note.stream_seq,
                node: "".into(),
                published_at_ms: note.published_at_ms,
                at_ms: 0,
                outcome,
                reason: reason.map(ToOwned::to_owned),
                tries,
                rerouted: self.scope == Scope::Rerouted,
                count,
                users: user.cloned().into_iter().collect(),
            }),
        }
    }

    /// Takes a record as it is.
    pub fn push(&mut self, record: Record) {
        self.records.push(record);
    }

    /// The records.
    pub fn into_records(self) -> Vec<Record> {
        self.records
    }
}

/// Reads the records of a notification, at most 10,000, in the order in which they were written.
pub async fn read(client: &Client, notification_id: &str) -> Result<Vec<Record>, DirectGetError> {
    let (mut records, mut last, mut read) = (Vec::new(), 0, 0);
    loop {
        let request = serde_json::json!({
            "seq": last + 1, "next_by_subj": subject(notification_id), "batch": READ_AT_ONCE,
        });
        let end = direct_get::many(client, OUTCOMES, &request, |stored| {
            last = stored.sequence();
            read += 1;
            match serde_json::from_slice::<Record>(stored.body()) {
                // A hash may be that of several ids.
                Ok(record) if *record.notification_id == *notification_id => records.push(record),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, stream_seq = last, "a record of OUTCOMES cannot be read");
                }
            }
        })
        .await?;
        if !matches!(end, End::More(_)) || read >= READ_MAX {
            return Ok(records);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::Origin;
    use crate::pipeline::Reason;

    fn ended(outcome: Outcome, missed: Option<Missed>, tries: u32) -> Ended {
        Ended { outcome, missed, tries }
    }

    fn note() -> Notification {
        let event = crate::catalog::Catalog::built_in().unwrap().get("message.new").unwrap().clone();
        Notification {
            id: "n1".into(),
            lane: event.lane,
            event,
            timestamp: 1,
            published_at_ms: 1,
            expires_at_ms: u64::MAX,
            stream_seq: 7,
            from_user_id: None,
            require_ack: false,
            large_set: false,
            policy: crate::protocol::notification::Policy::default(),
            payload: crate::protocol::Payload::parse(r#"{"secret":"s"}"#.into()).unwrap(),
            frames: crate::protocol::notification::Frames::default(),
        }
    }

    #[test]
    fn what_went_well_is_recorded_of_the_sample_only_and_what_did_not_always() {
        use Outcome::{Absent, Acked, Coalesced, Delivered, Excluded, Inboxed, OfflinePushed};
        for outcome in [Acked, Delivered, Coalesced, Excluded, Absent] {
            let ended = ended(outcome, None, 1);
            assert!(!Scope::Failures.records(ended), "{outcome:?}");
            assert!(Scope::Everything.records(ended) && Scope::Rerouted.records(ended), "{outcome:?}");
        }
        for outcome in [Outcome::Expired, Outcome::DroppedLow, Outcome::Undeliverable, Outcome::DeadLettered]
        {
            assert!(Scope::Failures.records(ended(outcome, None, 1)), "{outcome:?}");
        }
        for outcome in [OfflinePushed, Inboxed] {
            assert!(!Scope::Failures.records(ended(outcome, Some(Missed::NoSession), 1)), "away");
            assert!(Scope::Failures.records(ended(outcome, Some(Missed::AckTimeout), 1)), "a detour");
        }
    }

    #[test]
    fn the_sample_has_about_its_share_of_ids_that_are_alike() {
        for sample in [0.0, 0.01, 0.5, 1.0] {
            let count = (0..100_000).filter(|n| is_sampled(&format!("NOTIFICATIONS-{n}"), sample)).count();
            let share = count as f64 / 100_000.0;
            assert!((share - sample).abs() < 0.003, "{share} for {sample}");
        }
        assert!(is_sampled("", 1.0) && !is_sampled("", 0.0));
    }

    #[test]
    fn every_id_has_a_subject_of_three_tokens_at_most() {
        assert_eq!(subject("5e0c-1"), "outcome.5e0c-1");
        for odd in ["a.b", "*", ">", "a b", "用户", &"x".repeat(200), ""] {
            let subject = subject(odd);
            assert!(subject.starts_with("outcome.~") && subject.len() == 25, "{subject}");
        }
        assert_ne!(subject("a.b"), subject("a.c"));
    }

    #[test]
    fn a_record_names_a_batch_of_those_who_ended_alike() {
        let (note, mut findings) = (note(), Findings::default());
        let slow = ended(Outcome::Undeliverable, Some(Missed::SlowClient), 4);
        for n in 0..2_500 {
            let user = UserId::new(&format!("u{n}")).unwrap();
            findings.add(&note, Some(&user), 1, slow);
            findings.add(&note, Some(&user), 1, ended(Outcome::Delivered, None, 1));
        }
        findings.add(&note, None, 3, ended(Outcome::Expired, None, 0));
        let records = findings.into_records();
        let sizes: Vec<_> = records.iter().map(|record| (record.outcome, record.users.len())).collect();
        let failed = Outcome::Undeliverable;
        assert_eq!(sizes, [(failed, 1_000), (failed, 1_000), (failed, 500), (Outcome::Expired, 0)]);
        assert_eq!(records[3].count, 3);
        assert_eq!((records[0].reason.as_deref(), records[0].tries), (Some("slow_client"), 4));
        let json = serde_json::to_string(&records).unwrap();
        assert!(!json.contains("secret"), "no payload");
        assert_eq!(serde_json::from_str::<Vec<Record>>(&json).unwrap(), records);
    }

    #[test]
    fn beyond_the_bound_people_are_counted_and_not_named() {
        let (note, mut findings) = (note(), Findings::new(Scope::Everything));
        let user = UserId::new("u").unwrap();
        for _ in 0..NAMED_MAX + 5 {
            findings.add(&note, Some(&user), 1, ended(Outcome::Delivered, None, 1));
        }
        let records = findings.into_records();
        assert_eq!(records.iter().map(|record| record.users.len()).sum::<usize>(), NAMED_MAX);
        assert_eq!(records.iter().map(|record| record.count).sum::<u64>(), NAMED_MAX as u64 + 5);
        assert!(records.last().unwrap().may_be_about(&UserId::new("somebody").unwrap()));
    }

    #[test]
    fn a_dead_letter_is_found_by_the_id_that_its_publisher_knows() {
        let found = |body: &str, given: Option<&str>| {
            let origin = Origin { stream: "S".to_owned(), seq: 7, stored_at_us: 5_000, deliveries: 2 };
            let subject = "notification.friend.request.ann".to_owned();
            let mut headers = async_nats::HeaderMap::new();
            if let Some(given) = given {
                headers.insert("Nats-Msg-Id", given);
            }
            let message = Message { subject, body: body.to_owned().into(), headers, origin };
            Record::dead_lettered(&message, &Refusal::new(Reason::Malformed, "no"))
        };
        assert_eq!(&*found(r#"{"notification_id":"n1"}"#, Some("m1")).notification_id, "n1");
        assert_eq!(&*found(r#"{"notification_id":7}"#, Some("m1")).notification_id, "m1");
        let record = found("{", None);
        assert_eq!((&*record.notification_id, record.tries), ("S-7", 2));
        assert_eq!(record.notification_type.as_deref(), Some("friend.request"));
        assert_eq!(record.reason.as_deref(), Some("malformed"));
    }
}
