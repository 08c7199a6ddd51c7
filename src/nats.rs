//! NATS: the one connection, and what we read from and write to JetStream.

pub mod connect;

pub use connect::{Config, ConnectError, connect};

/// The work queue that services publish to.
pub const NOTIFICATIONS: &str = "NOTIFICATIONS";
/// The hand-off to the push service.
pub const OFFLINE_PUSH: &str = "OFFLINE_PUSH";
/// What devices missed.
pub const INBOX: &str = "INBOX";
/// What could not be handled, with the reason.
pub const DEAD_LETTERS: &str = "NOTIFICATIONS_DLQ";
