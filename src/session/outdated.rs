//! What a replay leaves out: messages that were taken back, and states that a later one replaced. Pure.

use std::collections::{HashMap, HashSet};

use super::recall;
use super::shape_key::ShapeKey;
use crate::protocol::Notification;

/// What the records of an inbox make outdated. Keys are compared as they are and not by a hash, since a wrong match
/// would lose a state for good.
#[derive(Debug, Default)]
pub struct Outdated {
    recalled: HashSet<String>,
    latest: HashMap<ShapeKey<'static>, u64>,
}

impl Outdated {
    /// Takes note of one record, in any order.
    pub fn note(&mut self, note: &Notification) {
        if let Some(message) = recall::recalled(note) {
            self.recalled.insert(message.to_owned());
        }
        if let Some(key) = ShapeKey::of(note) {
            let latest = self.latest.entry(key.into_owned()).or_default();
            *latest = note.stream_seq.max(*latest);
        }
    }

    /// Why `note` is not to be shown, when it is outdated. Recalls never are: the device may have the message from
    /// before.
    pub fn reason(&self, note: &Notification) -> Option<&'static str> {
        if recall::announced(note).is_some_and(|message| self.recalled.contains(message)) {
            return Some("recalled");
        }
        let latest = ShapeKey::of(note).and_then(|key| self.latest.get(&key.into_owned()).copied());
        latest.is_some_and(|latest| note.stream_seq < latest).then_some("replaced")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::session::tests::note;

    #[test]
    fn the_latest_of_each_field_set_stays_whatever_the_order() {
        let changed =
            |seq, fields: &[&str]| note("user.profile_updated", seq, &json!({ "updated_fields": fields }));
        let notes = [
            changed(3, &["nickname"]),
            changed(1, &["nickname"]),
            changed(2, &["avatar", "nickname"]),
            changed(5, &["nickname", "avatar"]),
            changed(4, &["avatar,nickname"]),
            changed(6, &[]),
        ];
        let mut outdated = Outdated::default();
        for note in &notes {
            outdated.note(note);
        }
        let left = notes.iter().filter(|note| outdated.reason(note).is_none());
        assert_eq!(left.map(|note| note.stream_seq).collect::<Vec<_>>(), [3, 5, 4, 6]);
    }

    #[test]
    fn a_record_that_was_written_twice_does_not_replace_itself() {
        let twice = note("user.profile_updated", 7, &json!({ "updated_fields": ["nickname"] }));
        let mut outdated = Outdated::default();
        outdated.note(&twice);
        outdated.note(&twice);
        assert_eq!(outdated.reason(&twice), None);
    }

    #[test]
    fn without_its_key_nothing_is_replaced() {
        let status = |seq| note("user.status_changed", seq, &json!({}));
        let mut outdated = Outdated::default();
        outdated.note(&status(1));
        outdated.note(&status(2));
        assert_eq!(outdated.reason(&status(1)), None);
    }

    #[test]
    fn a_recall_takes_its_message_out_whichever_came_first() {
        let of = |event, seq, id: &str| note(event, seq, &json!({ "message_id": id }));
        let mut outdated = Outdated::default();
        outdated.note(&of("message.recalled", 1, "a"));
        for (event, id, reason) in [
            ("message.new", "a", Some("recalled")),
            ("message.new", "b", None),
            ("message.recalled", "a", None),
        ] {
            assert_eq!(outdated.reason(&of(event, 2, id)), reason, "{event} {id}");
        }
    }
}
