//! Leaving in good order: a session is asked to make room for a fresh one, and ends when its time is over.
//!
//! Part of the core. A node that stops asks all its sessions; a session that is old, or has carried much, asks by
//! itself. Its client connects anew meanwhile, which ends the old session, and what it held goes to the new one.

use std::time::Duration;

use metrics::counter;
use tokio::time::Instant;

use super::Core;
use crate::clock::Now;
use crate::protocol::{CloseCode, ServerFrame};

/// Longest time a client is asked to wait before it makes the fresh session, while the old one goes on: a broadcast
/// fills many sessions at once, and they must not come back at once.
const RECONNECT_AFTER_MAX: Duration = Duration::from_secs(10);

/// Longest age that can be set: nobody means more, and times stay far from their end.
const AGE_MAX: Duration = Duration::from_hours(24 * 365);

/// Time for making the fresh session: a client that finds the node busy tries for minutes, and nothing presses.
const CLOSE_GRACE: Duration = Duration::from_mins(5);

/// When a session is asked to make room for a fresh one.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    /// Bytes after which it is, or `None` for any number.
    pub bytes: Option<u64>,
    /// Age at which it is, or `None` for any.
    pub after: Option<Duration>,
    /// Time the client is then asked to wait.
    pub reconnect_after: Duration,
}

impl Rotation {
    /// At these limits; 0 is none.
    pub fn new(bytes: u64, after: Duration) -> Self {
        Self {
            bytes: Some(bytes).filter(|bytes| *bytes > 0),
            after: Some(after.min(AGE_MAX)).filter(|after| !after.is_zero()),
            reconnect_after: Duration::ZERO,
        }
    }

    /// The same for one session of many, which do not all rotate at once: the limits vary by a tenth, up and down.
    /// `limit` and `delay` are random numbers in `[0, 1)`.
    #[must_use]
    pub fn spread(self, limit: f64, delay: f64) -> Self {
        let factor = 0.9 + 0.2 * limit;
        Self {
            bytes: self.bytes.map(|bytes| (bytes as f64 * factor) as u64),
            after: self.after.map(|after| after.mul_f64(factor)),
            reconnect_after: RECONNECT_AFTER_MAX.mul_f64(delay),
        }
    }
}

/// A close that waits for the client to connect anew.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaving {
    code: CloseCode,
    pub(super) deadline: Instant,
}

impl Core {
    /// Asks the client to connect anew after `reconnect_after`; the session ends with `code` after `close_after`. Said
    /// again, the earlier end holds: a node may stop while a session rotates.
    pub fn goaway(&mut self, code: CloseCode, reconnect_after: Duration, close_after: Duration, now: Now) {
        let deadline = now.instant + close_after;
        let sooner = self.leaving.is_some_and(|leaving| leaving.deadline <= deadline);
        if self.closing.is_some() || sooner {
            return;
        }
        self.leaving = Some(Leaving { code, deadline });
        self.send(&ServerFrame::Goaway {
            reason: code.name().to_owned(),
            reconnect_after_ms: reconnect_after.as_millis() as u64,
            close_after_ms: close_after.as_millis() as u64,
        });
    }

    /// Asks for a fresh session when this one is old or has carried much, and ends one whose time to leave is over.
    pub(super) fn leave_when_due(&mut self, now: Now) {
        if let Some(reason) = self.rotation_due(now) {
            counter!("fanfare_session_rotated_total", "reason" => reason).increment(1);
            let after = self.limits.rotation.reconnect_after;
            self.goaway(CloseCode::Rotate, after, after + CLOSE_GRACE, now);
        }
        if let Some(leaving) = self.leaving.take_if(|leaving| now.instant >= leaving.deadline) {
            let reason = match leaving.code {
                CloseCode::Rotate => "a fresh session was asked for and did not come",
                _ => "the node is shutting down",
            };
            self.close(leaving.code, reason, 0);
        }
    }

    fn rotation_due(&self, now: Now) -> Option<&'static str> {
        if !self.welcomed || self.leaving.is_some() || self.closing.is_some() {
            return None;
        }
        if self.has_carried_much() {
            return Some("bytes");
        }
        self.rotate_at.is_some_and(|at| now.instant >= at).then_some("age")
    }

    /// True when it has carried as many bytes as a session may, and has not asked to leave yet.
    pub(super) fn has_carried_much(&self) -> bool {
        self.leaving.is_none() && self.limits.rotation.bytes.is_some_and(|bytes| self.sent_bytes >= bytes)
    }

    /// When [`Self::leave_when_due`] has something to do without anything else happening.
    pub(super) fn leaves_at(&self) -> Option<Instant> {
        match self.leaving {
            Some(leaving) => Some(leaving.deadline),
            None => self.rotate_at.filter(|_| self.welcomed),
        }
    }
}
