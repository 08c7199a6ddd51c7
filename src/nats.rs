//! NATS: the one connection, and what we read from and write to JetStream.

pub mod acker;
mod authentication;
pub mod config;
pub mod connect;
pub mod context;
pub mod denial;
pub mod direct_get;
pub mod ephemeral;
pub mod kv;
pub mod publish;
mod pull;
pub mod role;
pub mod schedule;
pub mod secret;
pub mod source;
pub mod stored;
pub mod tail;
pub mod watch;

pub use acker::Acker;
pub use config::Config;
pub use connect::{ConnectError, connect};
pub use denial::{Denial, denied};
pub use ephemeral::Ephemeral;
pub use kv::{Bucket, KvError, Update};
pub use publish::WriteError;
pub use role::Role;
pub use schedule::Schedule;
pub use secret::Secret;
pub use source::{Message, Origin, STORED_AT, Source};
pub use watch::{Watch, WatchError};

/// The work queue that services publish to, of lane normal.
pub const NOTIFICATIONS: &str = "NOTIFICATIONS";
/// The same of lane high.
pub const NOTIFICATIONS_HIGH: &str = "NOTIFICATIONS_HIGH";
/// The same of lane low.
pub const NOTIFICATIONS_LOW: &str = "NOTIFICATIONS_LOW";
/// All of them.
pub const QUEUES: [&str; 3] = [NOTIFICATIONS_HIGH, NOTIFICATIONS, NOTIFICATIONS_LOW];
/// The hand-off to the push service.
pub const OFFLINE_PUSH: &str = "OFFLINE_PUSH";
/// What devices missed.
pub const INBOX: &str = "INBOX";
/// What could not be handled, with the reason.
pub const DEAD_LETTERS: &str = "NOTIFICATIONS_DLQ";
/// What the server itself says about messages that it gave up.
pub const ADVISORIES: &str = "ADVISORIES";
/// What became of notifications.
pub const OUTCOMES: &str = "OUTCOMES";
/// The key-value bucket with the members of groups, conversations, calls and the followers of users.
pub const AUDIENCE: &str = "audience";
/// The key-value bucket with bans, ended logins and notices.
pub const CONTROL: &str = "control";
/// The key-value bucket with states of minutes: calls and synchronisations.
pub const TRANSIENT: &str = "transient";
/// The key-value bucket that says which nodes serve a user.
pub const PRESENCE: &str = "presence";
/// The key-value bucket with the leases of nodes.
pub const NODES: &str = "nodes";
