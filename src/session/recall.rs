//! Recalled messages: which notification takes back which. Pure.

use serde_json::Value;

use crate::catalog::Effect;
use crate::protocol::Notification;

/// The event that a recall takes back.
const RECALLED_EVENT: &str = "message.new";

/// The message that `note` takes back, when it is a recall.
pub(super) fn recalled(note: &Notification) -> Option<&str> {
    if note.event.effects.contains(&Effect::Recall) { message_id(note) } else { None }
}

/// The message that `note` announces, when it can be taken back.
pub(super) fn announced(note: &Notification) -> Option<&str> {
    if note.event.name == RECALLED_EVENT { message_id(note) } else { None }
}

fn message_id(note: &Notification) -> Option<&str> {
    note.payload.get("message_id").and_then(Value::as_str)
}
