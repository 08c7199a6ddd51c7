//! The inbox: a record for each user whose devices missed a notification, kept by JetStream until its time is over.
//!
//! A record has everything that a replay needs to make the frame anew, in any encoding. It has no Msg-Id: a repeated
//! record costs less than remembering an id for each of them, and clients drop repeats by the notification's id.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::offline::DeviceFilter;
use crate::id::UserId;
use crate::nats::{INBOX, WriteError, publish};
use crate::protocol::Notification;
use crate::session::{Devices, Recipient};

/// Writes waiting for their acknowledgement at once: enough to hide a round trip to three replicas.
pub const IN_FLIGHT: usize = 64;

/// Time between two writes of a large audience: 5,000 a second for this node, a sixth of what one stream takes.
const PACE: Duration = Duration::from_micros(200);

#[derive(Serialize)]
struct Record<'a> {
    notification_id: &'a str,
    notification_type: &'a str,
    timestamp: i64,
    published_at_ms: u64,
    expires_at_ms: u64,
    stream_seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_user_id: Option<&'a UserId>,
    priority: &'static str,
    require_ack: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    devices: Option<DeviceFilter<'a>>,
    payload: &'a RawValue,
}

/// The body of a record. Recipients with the same choice of devices share it.
pub fn record(note: &Notification, devices: &Devices, until_ms: u64) -> Bytes {
    let record = Record {
        notification_id: &note.id,
        notification_type: &note.event.name,
        timestamp: note.timestamp,
        published_at_ms: note.published_at_ms,
        expires_at_ms: until_ms,
        stream_seq: note.stream_seq,
        from_user_id: note.from_user_id.as_ref(),
        priority: note.lane.as_str(),
        require_ack: note.require_ack,
        devices: DeviceFilter::new(devices),
        payload: note.payload.raw(),
    };
    serde_json::to_vec(&record).expect("ids, numbers and a JSON payload are JSON").into()
}

/// Makes the bodies of one notification's records, each once for those who share it.
#[derive(Debug, Default)]
pub struct Records {
    made: Vec<(Devices, Bytes)>,
}

impl Records {
    /// The body for `recipient`.
    pub fn body(&mut self, note: &Notification, recipient: &Recipient, until_ms: u64) -> Bytes {
        if let Some((_, body)) = self.made.iter().find(|(devices, _)| *devices == recipient.devices) {
            return body.clone();
        }
        let body = record(note, &recipient.devices, until_ms);
        self.made.push((recipient.devices.clone(), body.clone()));
        body
    }
}

/// Header of a record that is kept whoever took the notification live: Unix milliseconds at which it was offered to
/// the sessions. Those that were open by then had their chance and need not read it.
pub const OFFERED_AT: &str = "Fanfare-Offered-At";

/// Writes one record and waits until JetStream has it. It vanishes after `kept`. `offered_at_ms` is set for a record
/// that is kept whoever took it.
pub async fn write(
    context: &Context,
    user: &UserId,
    body: Bytes,
    kept: Duration,
    offered_at_ms: Option<u64>,
) -> Result<(), WriteError> {
    // NATS counts a message's time in whole seconds and refuses less than one.
    let kept = Duration::from_secs(kept.as_secs().max(1));
    let mut message = PublishMessage::build().payload(body).ttl(kept);
    if let Some(at_ms) = offered_at_ms {
        message = message.header(OFFERED_AT, at_ms.to_string().as_str());
    }
    publish::write(context, INBOX, format!("inbox.{user}"), message).await
}

/// Spaces the writes of large audiences out, over all fan-outs of this node.
#[derive(Debug)]
pub struct Pacer(Mutex<Instant>);

impl Default for Pacer {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Pacer {
    /// Waits for the turn of `writes` writes.
    pub async fn turn(&self, writes: usize) {
        let at = self.reserve(writes, Instant::now());
        tokio::time::sleep_until(at).await;
    }

    fn reserve(&self, writes: usize, now: Instant) -> Instant {
        let mut next = self.0.lock();
        let at = (*next).max(now);
        *next = at + PACE * u32::try_from(writes).unwrap_or(u32::MAX);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_follow_each_other_at_the_pace() {
        let pacer = Pacer::default();
        let now = Instant::now() + Duration::from_secs(1);
        assert_eq!(pacer.reserve(100, now), now);
        assert_eq!(pacer.reserve(1, now), now + Duration::from_millis(20));
    }
}
