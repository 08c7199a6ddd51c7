//! Fanfare: a notification gateway. Services publish to NATS JetStream, devices receive over WebTransport.
//!
//! Data goes one way: `nats` pulls, `pipeline` decides (decode, classify, resolve, batch, route), `session` queues and
//! shapes, `transport` writes. `docs/architecture.md` is the map.

pub mod catalog;
pub mod cli;
pub mod client;
pub mod config;
pub mod id;
pub mod nats;
pub mod protocol;
pub mod session;
