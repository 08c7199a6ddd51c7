//! What the inbox has for a session: when it is read, and how it is shown.
//!
//! Part of the core; the state is [`inbox::State`].

use super::super::inbox::{self, Cursor, Missed};
use super::Core;
use crate::catalog::Inbox;
use crate::clock::Now;
use crate::protocol::Notification;
use crate::protocol::frame::SessionLane;

impl Core {
    /// A record for this user is in the inbox at `sequence`. `offered_at_ms` is set when this session was offered the
    /// notification live at that time: then it is read only if something was refused since.
    pub fn inbox_record(&mut self, sequence: u64, offered_at_ms: Option<u64>) {
        if offered_at_ms.is_none_or(|at_ms| self.inbox.refused_ms >= at_ms) {
            self.inbox.record = self.inbox.record.max(sequence);
            // It is there now. What failed is not tried sooner.
            self.inbox.retry_at.take_if(|_| self.inbox.empty > 0);
        }
    }

    /// Where to read the inbox from, when there is something new in it and nothing of it waits. The driver reads once
    /// at a time and reports with [`Self::inbox_read`].
    pub fn take_inbox_read(&mut self, now: Now) -> Option<Cursor> {
        let due = self.welcomed && self.closing.is_none() && self.inbox.is_behind() && !self.replaying();
        if !due || self.inbox.retry_at.is_some_and(|at| now.instant < at) {
            return None;
        }
        self.inbox.retry_at = None;
        self.inbox.safe.map(|safe| Cursor { sequence: self.inbox.read_to, ..safe })
    }

    /// What reading the inbox came to.
    pub fn inbox_read(&mut self, missed: Missed, now: Now) {
        let Some(cursor) = missed.cursor else {
            self.inbox.empty = 0;
            self.inbox.retry_at = Some(now.instant + inbox::RETRY);
            return;
        };
        // What was not taken live may not be in the inbox yet.
        let nothing = cursor.sequence == self.inbox.read_to && missed.notes.is_empty();
        self.inbox.empty = if nothing { self.inbox.empty + 1 } else { 0 };
        let again = inbox::AGAIN * 2_u32.saturating_pow(self.inbox.empty.saturating_sub(1));
        self.inbox.retry_at = nothing.then(|| now.instant + again.min(inbox::RETRY));
        self.inbox.read_to = cursor.sequence;
        self.replay(missed);
    }

    /// Queues what the device missed on lane `inbox`, in the order given. What came live meanwhile, or is outdated by
    /// what did, is left out.
    pub(super) fn replay(&mut self, missed: Missed) {
        if missed.more {
            self.inbox.record = self.inbox.record.max(self.inbox.read_to + 1);
        }
        // A client stores the cursor of a replayed frame. It may not pass what came live, is in the inbox and not acked.
        let held = self.lanes.iter().flatten().any(|lane| lane.holds_inboxed(u32::MAX));
        let safe = self.inbox.safe.filter(|_| held);
        for (note, cursor) in missed.notes {
            let cursor = safe.unwrap_or(cursor);
            if self.seen.insert(&note.id) && !self.is_superfluous(&note) && !self.comes_late(&note) {
                self.replace(&note);
                self.lane(SessionLane::Inbox).push_replayed(note, cursor);
            }
        }
    }

    /// Sees to it that a notification that is in the inbox all the same and was not taken is read from there: its
    /// record may be announced already, or come.
    pub(super) fn note_refused(&mut self, note: &Notification) {
        if note.policy.inbox == Inbox::Always {
            // Not the time of this offer: what is shed may have been taken by one whose batch began later.
            self.inbox.refused_ms = self.inbox.offered_ms;
            self.inbox.record = self.inbox.record.max(self.inbox.read_to + 1);
        }
    }

    /// Something of the inbox waits or is not acked yet.
    pub(super) fn replaying(&self) -> bool {
        let lane = self.lanes[SessionLane::Inbox.index()].as_ref();
        lane.is_some_and(|lane| lane.queued() + lane.unacked() > 0)
    }
}
