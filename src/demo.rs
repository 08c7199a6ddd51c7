//! `fanfare dev`: everything on one machine, with a page to look at and samples to publish.
//!
//! For development and for the newcomer's first five minutes; nothing of the service depends on it.

pub mod cluster;
pub mod keys;
pub mod nats_server;
pub mod once;
pub mod page;
pub mod samples;
pub mod scenario;
pub mod stage;
pub mod story;

pub use nats_server::{NatsCluster, NatsServer};
