//! Integration tests: each starts a real nats-server on a free port and ends it when it is done.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod auth;
mod bad_input;
mod bench;
mod cluster;
mod columns;
mod control;
mod dead_letters;
mod declarations;
mod delivery;
mod deploy;
mod dev_cluster;
mod directory;
mod edge;
mod effects;
mod events;
mod evidence;
mod migration;
mod nats;
mod node;
mod permissions;
mod provision;
mod publish;
mod roles;
mod shaped;
mod storm;
mod support;
mod transcript;
mod two_nodes;
mod worker;
