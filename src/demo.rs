//! `fanfare dev`: everything on one machine, with a page to look at and samples to publish.

pub mod nats_server;
pub mod samples;

pub use nats_server::NatsServer;
