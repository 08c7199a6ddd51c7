//! The other nodes: who serves whom, and what goes to their sessions.
//!
//! `presence` is this node's map of users and the nodes that serve them.

pub mod presence;

pub use presence::Presence;
