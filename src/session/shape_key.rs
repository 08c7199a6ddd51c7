//! What shaping reads of a notification: which others it may replace, and whether it waits. Pure.
//!
//! The sessions' windows and the replay of an inbox use the same key, so that a device which was away sees what one
//! that was there saw last.

use std::borrow::Cow;

use serde_json::Value;

use crate::catalog::{Field, Root, Shape};
use crate::protocol::Notification;

/// The thing whose state a notification tells: its event, the values of the row's key and, where the row says so, the
/// set of changed fields. Of two with equal keys for one user the later one replaces the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ShapeKey<'a> {
    event: Cow<'a, str>,
    values: Vec<Cow<'a, str>>,
    fields: Vec<Cow<'a, str>>,
}

impl<'a> ShapeKey<'a> {
    /// The key of `note`. `None` when its row is not shaped or a field of the payload is missing: then nobody can say
    /// which others it may replace.
    pub(super) fn of(note: &'a Notification) -> Option<Self> {
        let shape = note.event.shape.as_ref()?;
        let values = shape.key.iter().map(|field| part(note, field)).collect::<Option<_>>()?;
        let mut fields: Vec<_> = Vec::new();
        if shape.field_set {
            let updated = note.payload.get("updated_fields").and_then(Value::as_array);
            fields.extend(updated.into_iter().flatten().map(|field| text(Cow::Borrowed(field))));
            fields.sort_unstable();
            fields.dedup();
        }
        Some(Self { event: note.event.name.as_str().into(), values, fields })
    }

    /// The same, without its notification.
    pub(super) fn into_owned(self) -> ShapeKey<'static> {
        let own = |texts: Vec<Cow<'a, str>>| texts.into_iter().map(|text| text.into_owned().into()).collect();
        ShapeKey { event: self.event.into_owned().into(), values: own(self.values), fields: own(self.fields) }
    }
}

/// True when `note` waits for no window: its row says so, or somebody waits for its ack, whose time is running.
pub(super) fn passes(shape: &Shape, note: &Notification) -> bool {
    let meets = |field, wanted: &String| match value(note, field).as_deref() {
        Some(Value::String(text)) => text == wanted,
        Some(Value::Bool(flag)) => flag.to_string() == *wanted,
        _ => false,
    };
    note.require_ack || shape.pass.iter().any(|when| when.iter().all(|(field, wanted)| meets(field, wanted)))
}

fn part<'a>(note: &'a Notification, field: &Field) -> Option<Cow<'a, str>> {
    match field.root() {
        Root::Payload => value(note, field).map(text),
        Root::FromUserId => Some(note.from_user_id.as_ref().map_or("", |user| user.as_str()).into()),
        // The target is the user, whose windows these are; the catalog allows it for no other rows, and no metadata.
        Root::Target | Root::Metadata => Some("".into()),
    }
}

fn text(value: Cow<'_, Value>) -> Cow<'_, str> {
    match value {
        Cow::Borrowed(Value::String(text)) => text.into(),
        Cow::Owned(Value::String(text)) => text.into(),
        other => other.to_string().into(),
    }
}

fn value<'a>(note: &'a Notification, field: &Field) -> Option<Cow<'a, Value>> {
    if field.root() != Root::Payload {
        return None;
    }
    let mut keys = field.keys();
    let first = note.payload.only(keys.next()?);
    keys.fold(first, |value, key| match value? {
        Cow::Borrowed(value) => value.get(key).map(Cow::Borrowed),
        Cow::Owned(mut value) => value.get_mut(key).map(|value| Cow::Owned(value.take())),
    })
}
