//! Sessions that may not be any more: told first, closed then.
//!
//! Part of the core; who is banned or logged out is decided elsewhere, from the user, the device and the time of the
//! token.

use std::sync::Arc;

use tokio::time::Instant;

use super::Core;
use crate::protocol::CloseCode;

/// A close that waits for the client to be told why.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) code: CloseCode,
    pub(super) reason: &'static str,
    /// The notification that tells it.
    told_by: Option<Arc<str>>,
    pub(super) deadline: Instant,
}

impl Core {
    /// When the session's token was issued, Unix milliseconds; 0, older than any, until it was said.
    pub fn token_issued_ms(&self) -> u64 {
        self.token_issued_ms
    }

    /// Says when the session's token was issued. Comes before the token is checked against ended logins, so that one
    /// that ends in between is not missed.
    pub fn token_issued(&mut self, issued_ms: u64) {
        self.token_issued_ms = issued_ms;
    }

    /// Ends the session once its client has acked the notification `told_by`, at `deadline` at the latest; at once when
    /// nothing tells it. Said twice, the earlier deadline holds.
    pub fn close_after(
        &mut self,
        code: CloseCode,
        reason: &'static str,
        told_by: Option<Arc<str>>,
        deadline: Instant,
    ) {
        if told_by.is_none() {
            return self.close(code, reason, 0);
        }
        let sooner = self.ending.as_ref().is_some_and(|ending| ending.deadline <= deadline);
        if !sooner {
            self.ending = Some(Ending { code, reason, told_by, deadline });
        }
        self.end_when_told();
    }

    /// The notification was acked when the session knows its id and holds it no more.
    pub(super) fn end_when_told(&mut self) {
        let Some(Ending { code, reason, told_by: Some(id), .. }) = &self.ending else { return };
        let told = self.seen.contains(id) && !self.lanes.iter().flatten().any(|lane| lane.holds(id));
        if told {
            self.close(*code, *reason, 0);
        }
    }
}
