//! Sessions: what the edge knows of connected devices, and how a push reaches them.
//!
//! `hello` admits, `core` decides what happens next in one session (sans-IO), `lane` orders, bounds and remembers what
//! a client has not acked, `handle` is what others have of one session, `registry` finds those of a user. No sockets here:
//! `transport` moves the bytes, behind the seam `outlet`.

mod bell;
pub mod core;
pub mod handle;
pub mod hello;
pub mod inbox;
mod lane;
pub mod outdated;
pub mod outlet;
pub mod presence;
mod recall;
pub mod receipt;
pub mod recipient;
pub mod registry;
mod seen;
mod shape;
mod shape_key;
mod shaper;
pub mod undelivered;

pub use bell::Bell;
pub use core::{Core, Limits, Offer, Request, Rotation};
pub use handle::Session;
pub use outlet::Outlet;
pub use presence::{Announce, Known};
pub use receipt::{AckEvent, Receipt, Receipts};
pub use recipient::{Devices, Recipient};
pub use registry::{Push, Registry};
pub use shaper::TICK;
pub use undelivered::Undelivered;

#[cfg(test)]
mod tests {
    //! What the tests of several parts need.

    use serde_json::Value;

    use crate::catalog::Catalog;
    use crate::protocol::Notification;
    use crate::protocol::notification::{Frames, Policy};

    /// A notification of the built-in catalog; its id is the sequence.
    pub(super) fn note(event: &str, seq: u64, payload: &Value) -> Notification {
        let event = Catalog::built_in().unwrap().get(event).unwrap().clone();
        Notification {
            id: seq.to_string().into(),
            lane: event.lane,
            require_ack: event.ack,
            large_set: false,
            policy: Policy::default(),
            event,
            timestamp: 1,
            published_at_ms: 1,
            expires_at_ms: u64::MAX,
            stream_seq: seq,
            from_user_id: None,
            payload: payload.as_object().unwrap().clone().into(),
            frames: Frames::default(),
        }
    }
    /// A few swaps of neighbours and strangers, as workers and redeliveries make them.
    pub(super) fn shuffle<T>(items: &mut [T], order: u64) {
        for step in 0..items.len() {
            let other = (order.rotate_left(step as u32) as usize) % items.len();
            items.swap(step, other);
        }
    }
}
