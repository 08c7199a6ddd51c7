//! The envelope that services publish: lenient about what is missing, strict about what is there.
//!
//! Older publishers send only `type` and `payload`; the pipeline fills in the rest from the subject, the stream and
//! the catalog. The payload's bytes are kept as they came, so a JSON session gets them without a second encoding.

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::payload::{Payload, count, is_bracket};
use crate::catalog::{Field, Lane, Offline, Root};
use crate::id::{DeviceId, UserId};

/// Largest envelope in bytes. Larger data belongs into a store, with its address in the notification.
pub const ENVELOPE_BYTES_MAX: usize = 256 * 1024;

/// Deepest nesting of a payload in levels, itself the first. JSON decoders stop at 128, of which a frame to a client
/// takes two and an inbox record one; half of it is far beyond any business data and leaves clients room for their own.
pub const PAYLOAD_LEVELS_MAX: usize = 64;

/// Longest `notification_id` in bytes: it becomes a header's value, and is kept while the notification is.
pub const NOTIFICATION_ID_BYTES_MAX: usize = 256;

/// True for what can name a notification: no longer than a header's value may be, and without control characters.
pub fn is_notification_id(text: &str) -> bool {
    text.len() <= NOTIFICATION_ID_BYTES_MAX && !text.chars().any(char::is_control)
}

/// Why an envelope was refused. Each ends in the dead letters with this text.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// The message is larger than [`ENVELOPE_BYTES_MAX`].
    #[error("envelope of {0} bytes is larger than {ENVELOPE_BYTES_MAX}")]
    TooLarge(usize),
    /// The payload has more levels than [`PAYLOAD_LEVELS_MAX`].
    #[error("payload is nested deeper than {PAYLOAD_LEVELS_MAX} levels")]
    TooDeep,
    /// Not JSON, or a field of the wrong type.
    #[error("invalid envelope: {0}")]
    Json(#[from] serde_json::Error),
    /// An id of the publisher that is too long or cannot be a header's value.
    #[error("notification_id has more than {NOTIFICATION_ID_BYTES_MAX} bytes, or control characters")]
    NotificationId,
    /// An id outside the allowed alphabet.
    #[error("invalid {field}: {source}")]
    Id {
        /// The envelope's field.
        field: &'static str,
        /// Why it is not an id.
        source: crate::id::InvalidId,
    },
}

/// Delivery hints of the publisher.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Metadata {
    /// Seconds the notification is worth delivering.
    pub ttl: Option<u64>,
    /// `true` asks for a client's ack; `false` never removes one.
    #[serde(default)]
    pub require_ack: bool,
    /// Offline policy of this one notification.
    pub offline: Option<Offline>,
    /// Unix seconds at which it is to be delivered.
    pub deliver_at: Option<u64>,
    /// The device that caused it. An empty text counts as none, as for the users.
    #[serde(default, deserialize_with = "device")]
    pub origin_device_id: Option<DeviceId>,
    /// Only these devices.
    pub target_device_ids: Option<Vec<DeviceId>>,
    /// What else the publisher wrote.
    #[serde(flatten)]
    pub rest: HashMap<String, Value>,
}

/// One notification as published.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// The publisher's id, when there is one.
    pub notification_id: Option<String>,
    /// `{service}.{event}`, when there is one.
    pub event_type: Option<String>,
    /// Unix seconds by the publisher's clock.
    pub timestamp: Option<i64>,
    /// Who caused it.
    pub from_user_id: Option<UserId>,
    /// Whom the publisher means.
    pub to_user_id: Option<UserId>,
    /// The publisher's wish for a lane; an unknown word counts as none.
    pub priority: Option<Lane>,
    /// The business data.
    pub payload: Payload,
    /// Delivery hints.
    pub metadata: Metadata,
}

/// Texts are borrowed: most of them are only looked at.
#[derive(Deserialize)]
struct Wire<'a> {
    notification_id: Option<String>,
    #[serde(rename = "type", borrow)]
    event_type: Option<Text<'a>>,
    timestamp: Option<i64>,
    #[serde(borrow)]
    from_user_id: Option<Text<'a>>,
    #[serde(borrow)]
    to_user_id: Option<Text<'a>>,
    #[serde(borrow)]
    priority: Option<Text<'a>>,
    #[serde(borrow)]
    payload: &'a RawValue,
    metadata: Option<Metadata>,
}

/// A text of the envelope as it stands there, unless it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Envelope {
    /// Decodes the body of a NATS message. The payload must be there and an object.
    pub fn decode(message: &Bytes) -> Result<Self, EnvelopeError> {
        if message.len() > ENVELOPE_BYTES_MAX {
            return Err(EnvelopeError::TooLarge(message.len()));
        }
        let wire: Wire<'_> = serde_json::from_slice(message)?;
        if wire.notification_id.as_ref().is_some_and(|id| !is_notification_id(id)) {
            return Err(EnvelopeError::NotificationId);
        }
        if is_deep(wire.payload.get().as_bytes()) {
            return Err(EnvelopeError::TooDeep);
        }
        Ok(Self {
            payload: Payload::part(message, wire.payload)?,
            notification_id: wire.notification_id.filter(|id| !id.is_empty()),
            event_type: wire.event_type.map(|text| text.0.into_owned()),
            timestamp: wire.timestamp,
            from_user_id: user(wire.from_user_id.as_deref(), "from_user_id")?,
            to_user_id: user(wire.to_user_id.as_deref(), "to_user_id")?,
            priority: match wire.priority.as_deref() {
                Some("high") => Some(Lane::High),
                Some("normal") => Some(Lane::Normal),
                Some("low") => Some(Lane::Low),
                _ => None,
            },
            metadata: wire.metadata.unwrap_or_default(),
        })
    }

    /// The text at `field` (`true` and `false` as these words), or `None` when it is absent or anything else. `target` is
    /// the last token of the subject.
    pub fn text<'a>(&'a self, field: &Field, target: &'a str) -> Option<&'a str> {
        match field.root() {
            Root::Target => Some(target),
            Root::FromUserId => self.from_user_id.as_ref().map(UserId::as_str),
            Root::Metadata if field.as_str() == "metadata.origin_device_id" => {
                self.metadata.origin_device_id.as_ref().map(DeviceId::as_str)
            }
            Root::Payload | Root::Metadata => match self.value(field)? {
                Value::String(text) => Some(text),
                Value::Bool(true) => Some("true"),
                Value::Bool(false) => Some("false"),
                _ => None,
            },
        }
    }

    /// The device ids at `field`, or `None` when there is no list.
    pub fn devices(&self, field: &Field) -> Result<Option<Vec<DeviceId>>, crate::id::InvalidId> {
        if field.as_str() == "metadata.target_device_ids" {
            // Many languages write an empty list for none.
            return Ok(self.metadata.target_device_ids.clone().filter(|devices| !devices.is_empty()));
        }
        let list = self.value(field).and_then(Value::as_array).filter(|list| !list.is_empty());
        let Some(list) = list else { return Ok(None) };
        list.iter()
            .map(|item| DeviceId::new(item.as_str().unwrap_or_default()))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// The value at a field of the payload or of the metadata's free part.
    pub fn value(&self, field: &Field) -> Option<&Value> {
        let mut keys = field.keys();
        let first = keys.next()?;
        let start = match field.root() {
            Root::Payload => self.payload.get(first),
            Root::Metadata => self.metadata.rest.get(first),
            Root::FromUserId | Root::Target => None,
        };
        keys.fold(start, |value, key| value.and_then(|value| value.get(key)))
    }
}

/// True when `json`, which must be valid, has more than [`PAYLOAD_LEVELS_MAX`] levels.
fn is_deep(json: &[u8]) -> bool {
    // Most have fewer brackets than that altogether, and counting them is quick.
    if count(json, is_bracket) <= PAYLOAD_LEVELS_MAX {
        return false;
    }
    let (mut levels, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => levels += 1,
            b'}' | b']' => levels -= 1,
            _ => {}
        }
        if levels > PAYLOAD_LEVELS_MAX {
            return true;
        }
    }
    false
}

fn device<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<DeviceId>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| DeviceId::new(&text).map_err(serde::de::Error::custom)).transpose()
}

fn user(text: Option<&str>, field: &'static str) -> Result<Option<UserId>, EnvelopeError> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => UserId::new(text).map(Some).map_err(|source| EnvelopeError::Id { field, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(payload: &str) -> Result<Envelope, EnvelopeError> {
        Envelope::decode(&Bytes::from(format!("{{\"payload\":{payload}}}")))
    }

    fn nested(levels: usize, open: &str, close: &str) -> String {
        format!("{{\"a\":{}1{}}}", open.repeat(levels - 1), close.repeat(levels - 1))
    }

    #[test]
    fn payloads_have_64_levels_at_most() {
        for (open, close) in [("[", "]"), ("{\"b\":", "}")] {
            assert!(decode(&nested(64, open, close)).is_ok());
            for levels in [65, 127, 128, 10_000] {
                let error = decode(&nested(levels, open, close)).unwrap_err();
                assert!(matches!(error, EnvelopeError::TooDeep), "{levels}: {error}");
            }
        }
    }

    #[test]
    fn brackets_in_texts_are_no_levels() {
        let many = "[{".repeat(100);
        for text in [many.clone(), format!("\\\"{many}"), format!("\\\\\\\"{many}"), "]}".repeat(100)] {
            let envelope = decode(&format!("{{\"{text}\":\"{text}\",\"b\":[]}}")).expect(&text);
            assert_eq!(envelope.payload.parsed().len(), 2, "{text}");
        }
        let error = decode(&format!("{{\"a\\\\\":{}{}}}", "[".repeat(64), "]".repeat(64))).unwrap_err();
        assert!(matches!(error, EnvelopeError::TooDeep), "an escaped backslash ends no escape: {error}");
    }
}
