//! Control: who is banned, whose logins have ended and what everybody must be shown, as keys of the bucket `control`.
//!
//! The key is the effect. Workers write keys (`write`); every node follows the bucket (`follow`) into one [`Control`]
//! and closes the sessions that a key concerns, or shows them the notice. A new session registers first and asks
//! [`Control::verdict`] second, so a key that comes in between is seen by one side or the other. After any gap in the
//! connection to NATS the bucket is read anew and every session is checked again; while NATS is away sessions stay.

pub mod ban;
pub mod follow;
pub mod notice;
pub mod revocation;
pub mod write;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

pub use ban::Ban;
pub use follow::{ControlError, Follower, start};
pub use notice::Notice;
pub use revocation::Revocation;
pub use write::Writer;

use crate::clock::Now;
use crate::id::{DeviceId, UserId};
use crate::protocol::frame::Close;
use crate::protocol::{CloseCode, Notification};
use crate::session::Session;

/// Time a banned user's session gets to ack the notification of the ban.
const BANNED_GRACE: Duration = Duration::from_secs(2);

/// Time a logged-out session gets to ack the notification that says so: longer, since the app may have to save.
const LOGGED_OUT_GRACE: Duration = Duration::from_secs(5);

/// Notices shown at once. A maintenance has one; far more would be a mistake that every connect pays for.
const NOTICES_MAX: usize = 32;

/// What one key says.
#[derive(Debug, Clone)]
pub enum Change {
    /// A ban, or `None` when its key is gone.
    Ban(UserId, Option<Ban>),
    /// Ended logins, or `None` when the key is gone.
    Revoked(UserId, Option<Revocation>),
    /// A notice, or `None` when its key is gone.
    Notice(Arc<str>, Option<Arc<Notification>>),
    /// The user's ban or ended logins are there and cannot be read: what is known of the user stays.
    Unread(UserId),
}

impl Change {
    fn unread(&self) -> Option<&UserId> {
        match self {
            Self::Unread(user) => Some(user),
            Self::Ban(..) | Self::Revoked(..) | Self::Notice(..) => None,
        }
    }
}

/// Why a session may not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// [`CloseCode::Banned`] or [`CloseCode::LoggedOut`].
    pub code: CloseCode,
    /// The notification that tells the user, when there is one.
    pub notification: Option<Arc<str>>,
}

impl Verdict {
    /// The close that tells a client.
    pub fn close(&self) -> Close {
        Close::new(self.code, self.reason(), 0)
    }

    fn reason(&self) -> &'static str {
        match self.code {
            CloseCode::Banned => "the user is banned",
            _ => "this login has ended, log in again",
        }
    }

    fn grace(&self) -> Duration {
        match self.code {
            CloseCode::Banned => BANNED_GRACE,
            _ => LOGGED_OUT_GRACE,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    bans: HashMap<UserId, Ban>,
    revoked: HashMap<UserId, Revocation>,
    notices: BTreeMap<Arc<str>, Arc<Notification>>,
}

impl State {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Ban(user, Some(ban)) => drop(self.bans.insert(user, ban)),
            Change::Ban(user, None) => drop(self.bans.remove(&user)),
            Change::Revoked(user, Some(revocation)) => drop(self.revoked.insert(user, revocation)),
            Change::Revoked(user, None) => drop(self.revoked.remove(&user)),
            Change::Unread(_) => {}
            Change::Notice(id, None) => drop(self.notices.remove(&id)),
            Change::Notice(id, Some(note)) => {
                if self.notices.len() < NOTICES_MAX || self.notices.contains_key(&id) {
                    self.notices.insert(id, note);
                } else {
                    tracing::error!(notice = %id, "there are {NOTICES_MAX} notices already, this one is not shown");
                }
            }
        }
    }
}

/// What this node knows of the bucket. Shared by the handshakes and the task that follows the bucket.
#[derive(Debug, Default)]
pub struct Control(RwLock<State>);

impl Control {
    /// Applies one key.
    pub fn apply(&self, change: Change) {
        self.0.write().apply(change);
    }

    /// Takes what a whole reading of the bucket found in place of everything before, but for what could not be read:
    /// a ban must not be lifted by a mistake in its key.
    pub fn replace(&self, changes: &[Change]) {
        let mut state = State::default();
        let mut known = self.0.write();
        for user in changes.iter().filter_map(Change::unread) {
            state.bans.extend(known.bans.remove_entry(user));
            state.revoked.extend(known.revoked.remove_entry(user));
        }
        // What could be read of the same user goes over what was known.
        for change in changes {
            state.apply(change.clone());
        }
        *known = state;
    }

    /// Why a session of `user` on `device` may not be whose token was issued at `issued_ms`; `None` when it may.
    pub fn verdict(&self, user: &UserId, device: &DeviceId, issued_ms: u64, now_ms: u64) -> Option<Verdict> {
        let state = self.0.read();
        if let Some(ban) = state.bans.get(user).filter(|ban| ban.holds(now_ms)) {
            return Some(Verdict { code: CloseCode::Banned, notification: ban.notification_id.clone() });
        }
        let revoked = state.revoked.get(user).filter(|revoked| revoked.ends(device, issued_ms))?;
        Some(Verdict { code: CloseCode::LoggedOut, notification: revoked.notification_id.clone() })
    }

    /// What a new session must be shown.
    pub fn notices(&self, now_ms: u64) -> Vec<Arc<Notification>> {
        let state = self.0.read();
        state.notices.values().filter(|note| note.expires_at_ms > now_ms).cloned().collect()
    }

    /// Checks an open session: one that may not be is closed once its client has acked the notification that says so,
    /// or when its grace is over.
    pub fn enforce(&self, session: &Session, now: Now) {
        let issued_ms = session.own_core(|core| core.token_issued_ms());
        if let Some(verdict) = self.verdict(&session.user, &session.device, issued_ms, now.unix_ms) {
            let deadline = now.instant + verdict.grace();
            session.with_core(|core| {
                // A token that came meanwhile was checked by itself.
                if core.token_issued_ms() == issued_ms {
                    core.close_after(verdict.code, verdict.reason(), verdict.notification.clone(), deadline);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Devices;

    #[test]
    fn a_ban_goes_before_an_ended_login_and_both_end_with_their_keys() {
        let (user, device) = (UserId::new("u").unwrap(), DeviceId::new("d").unwrap());
        let control = Control::default();
        let code = || control.verdict(&user, &device, 5, 100).map(|verdict| verdict.code);
        let mut revocation = Revocation::default();
        revocation.revoke(&Devices::All, 5);

        assert_eq!(code(), None);
        control.apply(Change::Revoked(user.clone(), Some(revocation)));
        assert_eq!(code(), Some(CloseCode::LoggedOut));
        control.apply(Change::Ban(user.clone(), Some(Ban::until(1, Some(101)))));
        assert_eq!(code(), Some(CloseCode::Banned));
        control.apply(Change::Ban(user.clone(), Some(Ban::until(2, Some(100)))));
        assert_eq!(code(), Some(CloseCode::LoggedOut), "a ban that ran out");
        control.replace(&[Change::Unread(user.clone())]);
        assert_eq!(code(), Some(CloseCode::LoggedOut), "what is known stays when its key cannot be read");
        control.apply(Change::Unread(user.clone()));
        assert_eq!(code(), Some(CloseCode::LoggedOut));
        control.replace(&[]);
        assert_eq!(code(), None);
    }
}
