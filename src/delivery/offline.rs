//! The hand-off to the push service: batches of users in stream OFFLINE_PUSH.
//!
//! The push service makes title and body of the payload, in the user's language. `collapse_id` lets it replace an
//! earlier push of the same notification; a repeated hand-off of the same people is a duplicate to JetStream.

use async_nats::jetstream::Context;
use async_nats::jetstream::message::PublishMessage;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{HandOff, Missed};
use crate::catalog::Offline;
use crate::id::{self, DeviceId, UserId};
use crate::nats::{OFFLINE_PUSH, WriteError, publish};
use crate::pipeline::BATCH_USERS_MAX;
use crate::protocol::Notification;
use crate::session::Devices;

/// How long a missed call is worth telling, from its invite on: as long as OFFLINE_PUSH keeps records.
const MISSED_CALL_MS: u64 = 24 * 3_600 * 1_000;

/// Which of the users' devices a record is for; without it all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DeviceFilter<'a> {
    /// Not these.
    Except(&'a [DeviceId]),
    /// Only these.
    Only(&'a [DeviceId]),
}

impl<'a> DeviceFilter<'a> {
    pub(crate) fn new(devices: &'a Devices) -> Option<Self> {
        match devices {
            Devices::All => None,
            Devices::Except(devices) => Some(Self::Except(devices)),
            Devices::Only(devices) => Some(Self::Only(devices)),
        }
    }
}

#[derive(Serialize)]
struct Record<'a> {
    notification_id: &'a str,
    notification_type: &'a str,
    kind: &'static str,
    reason: &'static str,
    collapse_id: &'a str,
    users: Vec<&'a UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    devices: Option<DeviceFilter<'a>>,
    timestamp: i64,
    published_at_ms: u64,
    expires_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_user_id: Option<&'a UserId>,
    priority: &'static str,
    payload: Box<RawValue>,
}

/// One message for the push service.
#[derive(Debug)]
pub struct Push {
    subject: String,
    msg_id: String,
    body: Vec<u8>,
}

/// Makes the messages for those of `batch` who get a push: one for each kind, reason and choice of devices, at most
/// 1,000 users each.
pub fn pushes<'a>(note: &Notification, batch: impl IntoIterator<Item = (&'a HandOff, Offline)>) -> Vec<Push> {
    type Group<'a> = ((Offline, Missed, &'a Devices), Vec<&'a UserId>);
    let mut groups: Vec<Group<'a>> = Vec::new();
    for (hand_off, kind) in batch {
        let recipient = &hand_off.recipient;
        let key = (kind, hand_off.missed, &recipient.devices);
        // Seldom more than one: a batch differs only in what its extra users have of their own.
        match groups.iter_mut().find(|(known, users)| *known == key && users.len() < BATCH_USERS_MAX) {
            Some((_, users)) => users.push(&recipient.user),
            None => groups.push((key, vec![&recipient.user])),
        }
    }
    groups.into_iter().map(|(key, users)| push(note, key, users)).collect()
}

fn push(
    note: &Notification,
    (kind, missed, devices): (Offline, Missed, &Devices),
    mut users: Vec<&UserId>,
) -> Push {
    users.sort_unstable();
    // An alert for what would have rung: the call is over, and the news of it is not.
    let missed_call = kind == Offline::Alert && note.event.offline == Offline::Ring;
    let expires_at_ms =
        if missed_call { note.published_at_ms.saturating_add(MISSED_CALL_MS) } else { note.expires_at_ms };
    let kind = match kind {
        Offline::Ring => "ring",
        Offline::Silent => "silent",
        Offline::Alert | Offline::None | Offline::Never => "alert",
    };
    let hash = id::stable_hash(users.iter().map(|user| user.as_str()));
    let record = Record {
        notification_id: &note.id,
        notification_type: &note.event.name,
        kind,
        reason: missed.as_str(),
        collapse_id: &note.id,
        users,
        devices: DeviceFilter::new(devices),
        timestamp: note.timestamp,
        published_at_ms: note.published_at_ms,
        expires_at_ms,
        from_user_id: note.from_user_id.as_ref(),
        priority: note.lane.as_str(),
        payload: payload(note),
    };
    Push {
        subject: format!("push.offline.{kind}"),
        msg_id: format!("{}:{kind}:{hash:016x}", note.id),
        body: serde_json::to_vec(&record).expect("ids, numbers and a JSON payload are JSON"),
    }
}

#[derive(Serialize)]
struct EndOfRing<'a> {
    notification_id: &'a str,
    kind: &'static str,
    reason: &'a str,
    collapse_id: &'a str,
    cancel: &'a str,
    users: [&'a UserId; 1],
    published_at_ms: u64,
    priority: &'static str,
    payload: serde_json::Value,
}

/// The silent push that ends a ring: `cancel` names the call, `collapse_id` is that of the ring.
pub fn end_of_ring(call: &str, ring: &str, user: &UserId, reason: &str, now_ms: u64) -> Push {
    let record = EndOfRing {
        notification_id: ring,
        kind: "silent",
        reason,
        collapse_id: ring,
        cancel: call,
        users: [user],
        published_at_ms: now_ms,
        priority: "high",
        payload: serde_json::json!({ "call_id": call }),
    };
    let hash = id::stable_hash([user.as_str()]);
    Push {
        subject: "push.offline.silent".to_owned(),
        // The reason is part of it: what ends a ring that was sent late must not be a duplicate of what came too soon.
        msg_id: format!("{ring}:cancel:{reason}:{hash:016x}"),
        body: serde_json::to_vec(&record).expect("ids, numbers and a JSON payload are JSON"),
    }
}

impl Push {
    /// Writes it, and waits until JetStream has it.
    pub async fn write(self, context: &Context) -> Result<(), WriteError> {
        let message = PublishMessage::build().payload(self.body.into()).message_id(self.msg_id);
        publish::write(context, OFFLINE_PUSH, self.subject, message).await
    }
}

/// The payload as published, without the row's secrets.
pub(crate) fn payload(note: &Notification) -> Box<RawValue> {
    if note.event.secrets.is_empty() {
        return note.payload.raw().to_owned();
    }
    let mut payload = note.payload.parsed().clone();
    note.event.remove_secrets(&mut payload);
    serde_json::value::to_raw_value(&payload).expect("a JSON object is JSON")
}
