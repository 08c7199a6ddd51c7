//! The sessions of this node by user, and the one call that offers a notification to them.

use std::sync::Arc;

use super::{Receipts, Recipient};
use crate::protocol::Notification;

/// What became of a push to one user on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// So many sessions took it.
    Accepted(usize),
    /// The user has sessions that are meant, and every one of them is full.
    Full,
    /// The user has no session here that is meant.
    Absent,
}

/// All sessions of this node. Shared by every task; each call is short and never waits for a link.
#[derive(Debug, Default)]
pub struct Registry {}

impl Registry {
    /// Offers `note` to the sessions of one recipient. With `receipts`, each session that takes it reports once:
    /// acked by its client, or lost.
    pub fn push(&self, note: &Arc<Notification>, recipient: &Recipient, receipts: Option<&Receipts>) -> Push {
        let _ = (note, recipient, receipts);
        Push::Absent
    }

    /// Offers `note` to every session of the node; gives how many users took it and how many were full.
    pub fn broadcast(&self, note: &Arc<Notification>) -> (usize, usize) {
        let _ = note;
        (0, 0)
    }
}
