//! Telling the other nodes who has sessions here, as the registry and the edge see it.
//!
//! The one who tells them is in `cluster`; this is the seam. The registry is the truth, and what is told follows it.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;

use crate::id::UserId;

/// Tells the other nodes.
pub trait Announce: Send + Sync + std::fmt::Debug {
    /// The sessions of `user` on this node are others than before. Never waits.
    fn changed(&self, user: &UserId);

    /// True when nothing of what was told before these Unix milliseconds can have been forgotten by then, as far as this
    /// node has been sure of it until now.
    fn held(&self, unix_ms: u64) -> bool;

    /// Resolves when every change until this call can be known to the other nodes, or after 2 s; at once while NATS is
    /// known to be away.
    fn announced<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, ()>;
}

/// What the other nodes know of a session. Written by the one who tells them.
#[derive(Debug)]
pub struct Known {
    /// Unix milliseconds after which every push to the user finds the session.
    found_from_ms: AtomicU64,
}

impl Default for Known {
    fn default() -> Self {
        Self { found_from_ms: AtomicU64::new(u64::MAX) }
    }
}

impl Known {
    /// Nobody may know of it any more: until it is told of again, no push is sure to find it.
    pub fn forget(&self) {
        self.found_from_ms.store(u64::MAX, Ordering::Release);
    }

    /// Unix milliseconds after which every push to the user finds the session.
    pub fn found_from_ms(&self) -> u64 {
        self.found_from_ms.load(Ordering::Acquire)
    }

    /// Every push finds it after these Unix milliseconds, if not earlier.
    pub fn found_from(&self, unix_ms: u64) {
        self.found_from_ms.fetch_min(unix_ms, Ordering::AcqRel);
    }
}
