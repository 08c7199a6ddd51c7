//! Receipts: how a session tells the worker that a client acked, or that it never will.
//!
//! A receipt reports exactly once. Dropping it reports [`AckEvent::Lost`], so that no path can forget to.

use tokio::sync::mpsc;

use crate::id::{DeviceId, UserId};

/// What became of one copy that must be acked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AckEvent {
    /// This device of the user acked.
    Acked(UserId, DeviceId),
    /// A session of the user ended, or gave the copy up, without an ack.
    Lost(UserId),
}

/// Where the receipts of one notification report.
/// Unbounded by type, bounded by use: one event for each session of one or two users.
#[derive(Debug, Clone)]
pub struct Receipts(mpsc::UnboundedSender<AckEvent>);

impl Receipts {
    /// A source of receipts and the end where their events arrive; it closes when every receipt has reported.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<AckEvent>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Passes on what a session of another node reported.
    pub fn report(&self, event: AckEvent) {
        // A worker that has stopped waiting needs no news.
        let _ = self.0.send(event);
    }

    /// True when nobody waits for reports any more.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// A receipt for one session's copy.
    pub fn receipt(&self, user: &UserId, device: &DeviceId) -> Receipt {
        Receipt { open: Some((self.0.clone(), user.clone(), device.clone())) }
    }
}

/// Held by a session for one copy until the client acks it.
#[derive(Debug)]
pub struct Receipt {
    open: Option<(mpsc::UnboundedSender<AckEvent>, UserId, DeviceId)>,
}

impl Receipt {
    /// False when nobody waits for its report any more.
    pub(super) fn is_awaited(&self) -> bool {
        self.open.as_ref().is_some_and(|(sender, ..)| !sender.is_closed())
    }

    /// The client acked.
    pub fn acked(mut self) {
        if let Some((sender, user, device)) = self.open.take() {
            // A worker that has stopped waiting (deadline, shutdown) needs no news.
            let _ = sender.send(AckEvent::Acked(user, device));
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some((sender, user, _)) = self.open.take() {
            let _ = sender.send(AckEvent::Lost(user));
        }
    }
}
