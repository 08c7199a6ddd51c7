//! One notification on its way to sessions: its frame is encoded once per encoding and shared by every recipient.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use super::codec::{self, Encoding};
use super::{DATAGRAM_BYTES_MAX, LENGTH_BYTES, Payload};
use crate::catalog::{Effect, Event, Inbox, Lane, Offline};
use crate::id::UserId;

/// A classified notification. Immutable; the frames are made when the first session needs them.
#[derive(Debug, Clone)]
pub struct Notification {
    /// Unique id: the publisher's, else the `Nats-Msg-Id`, else made of stream and sequence.
    pub id: Arc<str>,
    /// The catalog row.
    pub event: Arc<Event>,
    /// Lane on the sessions.
    pub lane: Lane,
    /// Unix seconds as published.
    pub timestamp: i64,
    /// Unix milliseconds at which JetStream stored it (at which the edge received it, for ephemeral events).
    pub published_at_ms: u64,
    /// Unix milliseconds after which it is not worth delivering.
    pub expires_at_ms: u64,
    /// Sequence in its stream; later ones replace earlier ones. 0 for ephemeral events.
    pub stream_seq: u64,
    /// Who caused it.
    pub from_user_id: Option<UserId>,
    /// A client must ack it.
    pub require_ack: bool,
    /// It went to a set of more than [`crate::catalog::LARGE_SET`] members.
    pub large_set: bool,
    /// For those whom no session serves.
    pub policy: Policy,
    /// The business data.
    pub payload: Payload,
    /// Frames by encoding, made at first use.
    pub frames: Frames,
}

/// What happens to those whom no session serves, after the publisher's wishes. By default nothing is kept.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Offline push, for everybody without a policy of their own.
    pub offline: Offline,
    /// Inbox.
    pub inbox: Inbox,
    /// Unix milliseconds until which an inbox keeps it.
    pub inbox_until_ms: u64,
    /// Each device concerned must ack, where otherwise any device of the user is enough.
    pub ack_every_device: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { offline: Offline::None, inbox: Inbox::None, inbox_until_ms: 0, ack_every_device: false }
    }
}

/// The frames of one notification.
#[derive(Debug, Clone, Default)]
pub struct Frames {
    json: OnceLock<Bytes>,
    msgpack: OnceLock<Bytes>,
}

#[derive(Serialize)]
struct Frame<'a, P: Serialize> {
    #[serde(rename = "type")]
    kind: &'static str,
    data: Data<'a, P>,
}

#[derive(Serialize)]
struct Data<'a, P: Serialize> {
    notification_id: &'a str,
    notification_type: &'a str,
    timestamp: i64,
    published_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_user_id: Option<&'a UserId>,
    priority: &'static str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    require_ack: bool,
    payload: P,
}

impl Notification {
    /// The frame with its length before it. Shared: cloning it copies no bytes.
    pub fn frame(&self, encoding: Encoding) -> Bytes {
        match encoding {
            Encoding::Json => self.frames.json.get_or_init(|| self.encode(encoding, self.payload.raw())),
            Encoding::Msgpack => {
                self.frames.msgpack.get_or_init(|| self.encode(encoding, self.payload.parsed()))
            }
        }
        .clone()
    }

    /// The body as a datagram, or `None` when it does not fit one.
    pub fn datagram(&self, encoding: Encoding) -> Option<Bytes> {
        let body = self.frame(encoding).slice(LENGTH_BYTES..);
        (body.len() <= DATAGRAM_BYTES_MAX).then_some(body)
    }

    /// The state that it tells, for rows whose repeats are shown once: what it is the state of (the event and the
    /// conversation), and which one (the whole payload). Two notifications with different ids may tell one state.
    /// Whose state it is need not be said: it is for one user's sessions.
    pub fn state(&self) -> Option<(u64, u64)> {
        if !self.event.effects.contains(&Effect::Idempotent) {
            return None;
        }
        let conversation = self.payload.get("conversation_id").and_then(Value::as_str).unwrap_or_default();
        let payload = serde_json::to_string(self.payload.parsed()).expect("a JSON object is JSON");
        let of = crate::id::stable_hash([&*self.event.name, conversation]);
        Some((of, crate::id::stable_hash([&*payload])))
    }

    fn encode(&self, encoding: Encoding, payload: impl Serialize) -> Bytes {
        let data = Data {
            notification_id: &self.id,
            notification_type: &self.event.name,
            timestamp: self.timestamp,
            published_at_ms: self.published_at_ms,
            from_user_id: self.from_user_id.as_ref(),
            priority: self.lane.as_str(),
            require_ack: self.require_ack,
            payload,
        };
        codec::frame(encoding, &Frame { kind: "notification", data })
            .expect("JSON values have both encodings")
    }
}

/// `frame` of a replayed notification: the same with its inbox cursor beside `type` and `data`.
pub fn with_cursor(encoding: Encoding, frame: &Bytes, cursor: &str) -> Bytes {
    let body = &frame[LENGTH_BYTES..];
    let mut out = Vec::with_capacity(frame.len() + cursor.len() + 16);
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    match encoding {
        Encoding::Json => {
            out.extend_from_slice(&body[..body.len() - 1]);
            out.extend_from_slice(br#","inbox":"#);
            serde_json::to_writer(&mut out, cursor).expect("a text is JSON");
            out.push(b'}');
        }
        Encoding::Msgpack => {
            // The frame is a map of two pairs (0x82); the third goes to its end.
            out.push(0x83);
            out.extend_from_slice(&body[1..]);
            out.extend_from_slice(&[0xa5]);
            out.extend_from_slice(b"inbox");
            rmp_serde::encode::write(&mut out, cursor).expect("a text is MessagePack");
        }
    }
    codec::finish(out)
}
