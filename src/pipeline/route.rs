//! Stage 5: a batch is offered to the sessions that serve it.
//!
//! All sessions are on this node; the trait is the seam where other nodes' sessions, and tests, come in.

use std::sync::Arc;

use crate::id::{DeviceId, UserId};
use crate::protocol::Notification;
use crate::session::{Push, Receipts, Recipient, Registry};

/// Whoever has sessions. Each call is short and never waits.
pub trait Sessions: Send + Sync {
    /// See [`Registry::push`].
    fn push(&self, note: &Arc<Notification>, recipient: &Recipient, receipts: Option<&Receipts>) -> Push;
    /// See [`Registry::broadcast`].
    fn broadcast(&self, note: &Arc<Notification>) -> (usize, usize);
    /// The devices of a user that have a session; nobody where that is not known.
    fn devices(&self, user: &UserId) -> Vec<DeviceId> {
        let _ = user;
        Vec::new()
    }
}

impl Sessions for Registry {
    fn push(&self, note: &Arc<Notification>, recipient: &Recipient, receipts: Option<&Receipts>) -> Push {
        Self::push(self, note, recipient, receipts)
    }

    fn broadcast(&self, note: &Arc<Notification>) -> (usize, usize) {
        Self::broadcast(self, note)
    }

    fn devices(&self, user: &UserId) -> Vec<DeviceId> {
        self.of_user(user).iter().map(|session| session.device.clone()).collect()
    }
}

/// Offers `note` to everybody of `batch`, and gives each one's answer.
pub fn route<'a>(
    sessions: &'a dyn Sessions,
    note: &'a Arc<Notification>,
    batch: Vec<Recipient>,
    receipts: Option<&'a Receipts>,
) -> impl Iterator<Item = (Recipient, Push)> + 'a {
    batch.into_iter().map(move |recipient| {
        let answer = sessions.push(note, &recipient, receipts);
        (recipient, answer)
    })
}
