//! Fanfare: a notification gateway. Services publish to NATS JetStream, devices receive over WebTransport.
//!
//! Data goes one way: `nats` pulls, `pipeline` decides (decode, classify, resolve, batch, route), `session` queues and
//! shapes, `transport` writes. `docs/architecture.md` is the map.

pub mod bench;
pub mod catalog;
pub mod causes;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod control;
pub mod delivery;
pub mod demo;
pub mod directory;
pub mod id;
pub mod lifecycle;
pub mod nats;
pub mod permissions;
pub mod pipeline;
pub mod protocol;
pub mod provision;
pub mod session;
pub mod telemetry;
pub mod transport;
pub mod turn;
pub mod worker;
