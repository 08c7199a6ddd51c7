//! Recalled messages: which notification takes back which. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use super::inbox::Cursor;
use crate::catalog::Effect;
use crate::protocol::Notification;

/// The event that a recall takes back.
const RECALLED_EVENT: &str = "message.new";

/// The message that `note` takes back, when it is a recall.
pub(super) fn recalled(note: &Notification) -> Option<&str> {
    if note.event.effects.contains(&Effect::Recall) { message_id(note) } else { None }
}

/// True when `note` announces the message.
pub(super) fn announces(note: &Notification, message: &str) -> bool {
    note.event.name == RECALLED_EVENT && message_id(note) == Some(message)
}

/// Leaves out the messages whose recall is among `notes`, too. The recalls stay: the device may have the message from
/// before.
pub fn omit(notes: &mut Vec<(Arc<Notification>, Cursor)>) {
    let recalled: HashSet<String> =
        notes.iter().filter_map(|(note, _)| recalled(note).map(str::to_owned)).collect();
    if !recalled.is_empty() {
        notes.retain(|(note, _)| {
            note.event.name != RECALLED_EVENT || message_id(note).is_none_or(|id| !recalled.contains(id))
        });
    }
}

fn message_id(note: &Notification) -> Option<&str> {
    note.payload.get("message_id").and_then(serde_json::Value::as_str)
}
