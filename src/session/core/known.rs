//! What a session knows already, and what that makes superfluous.
//!
//! Part of the core. Everything here is bounded by [`super::Seen`]; what it has forgotten is shown.

use metrics::counter;

use super::super::recall;
use super::super::seen::hash;
use super::super::shape_key::ShapeKey;
use super::Core;
use crate::catalog::ShapeMode;
use crate::protocol::Notification;
use crate::protocol::frame::SessionLane;

impl Core {
    /// True when there is nothing to show: the same state came under another id, or the message was taken back before
    /// it came.
    pub(super) fn is_superfluous(&mut self, note: &Notification) -> bool {
        if recall::announced(note).is_some_and(|message| self.seen.is_recalled(message)) {
            dropped("recalled", 1);
            return true;
        }
        note.state().is_some_and(|(of, state)| !self.seen.insert_state(of, state))
    }

    /// True when the session was given a newer state of the same thing: what is read from the inbox, or was held by
    /// another session until that one ended, may be older. Everything else was put in order by its window.
    pub(super) fn comes_late(&self, note: &Notification) -> bool {
        let newer = |key| self.seen.state(hash(key)).is_some_and(|shown| note.stream_seq < shown);
        let late = shaped_state(note).is_some_and(newer);
        if late {
            dropped("replaced", 1);
        }
        late
    }

    /// Takes out what `note` makes outdated and was not written yet: the message it takes back, and what waits of the
    /// replay and is an older state. Remembers it for what comes later.
    pub(super) fn replace(&mut self, note: &Notification) {
        if let Some(message) = recall::recalled(note) {
            self.seen.insert_recalled(message);
            let lanes = self.lanes.iter_mut().flatten();
            let announces = |queued: &Notification| recall::announced(queued) == Some(message);
            dropped("recalled", lanes.map(|lane| lane.withdraw(announces)).sum());
        }
        if let Some(key) = shaped_state(note) {
            self.seen.insert_state(hash(&key), note.stream_seq);
            if let Some(inbox) = &mut self.lanes[SessionLane::Inbox.index()] {
                let older = |queued: &Notification| {
                    queued.stream_seq < note.stream_seq && ShapeKey::of(queued).as_ref() == Some(&key)
                };
                dropped("replaced", inbox.withdraw(older));
            }
        }
    }

    /// Lets `note` be offered again.
    pub(super) fn forget(&mut self, note: &Notification) {
        self.seen.remove(&note.id);
        let states = [note.state().map(|(of, _)| of), shaped_state(note).map(hash)];
        states.into_iter().flatten().for_each(|of| self.seen.remove_state(of));
    }
}

/// The thing whose state `note` tells, where a later state replaces an earlier one.
fn shaped_state(note: &Notification) -> Option<ShapeKey<'_>> {
    let shape = note.event.shape.as_ref()?;
    if shape.mode == ShapeMode::Coalesce { ShapeKey::of(note) } else { None }
}

fn dropped(reason: &'static str, count: usize) {
    if count > 0 {
        counter!("fanfare_session_dropped_total", "reason" => reason).increment(count as u64);
    }
}
