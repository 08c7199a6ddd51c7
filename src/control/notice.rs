//! The value of `notice.{id}`: a notification that every session is shown for a while. Pure.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::catalog::{Catalog, Lane};
use crate::id::UserId;
use crate::protocol::notification::{Frames, Policy};
use crate::protocol::{Notification, Payload};

/// A notice as it is stored: everything that its frames are made of.
#[derive(Debug, Serialize, Deserialize)]
pub struct Notice {
    /// Version, Unix microseconds: JetStream's time of the event that caused it. The highest wins.
    pub v: u64,
    /// Unix milliseconds until which it is shown.
    pub until_ms: u64,
    notification_id: Arc<str>,
    notification_type: String,
    timestamp: i64,
    published_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from_user_id: Option<UserId>,
    priority: Lane,
    payload: Box<RawValue>,
}

impl Notice {
    /// A notice of `note` until `until_ms`.
    pub fn new(note: &Notification, v: u64, until_ms: u64) -> Self {
        Self {
            v,
            until_ms,
            notification_id: note.id.clone(),
            notification_type: note.event.name.clone(),
            timestamp: note.timestamp,
            published_at_ms: note.published_at_ms,
            from_user_id: note.from_user_id.clone(),
            priority: note.lane,
            payload: note.payload.raw().to_owned(),
        }
    }

    /// The notification to show, with the id it had when it was announced; `None` when the catalog has no such event
    /// any more.
    pub fn notification(&self, catalog: &Catalog) -> Option<Notification> {
        Some(Notification {
            id: self.notification_id.clone(),
            event: catalog.get(&self.notification_type)?.clone(),
            lane: self.priority,
            timestamp: self.timestamp,
            published_at_ms: self.published_at_ms,
            expires_at_ms: self.until_ms,
            stream_seq: 0,
            from_user_id: self.from_user_id.clone(),
            require_ack: false,
            large_set: false,
            policy: Policy::default(),
            payload: Payload::parse(self.payload.get().to_owned().into()).ok()?,
            frames: Frames::default(),
        })
    }
}
