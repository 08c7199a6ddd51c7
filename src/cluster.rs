//! The other nodes: who serves whom, and what goes to their sessions.
//!
//! `presence` is this node's map of users and the nodes that serve them. `relay` asks them to offer a
//! notification to their sessions, and answers when this one is asked.

pub mod presence;
pub mod relay;

pub use presence::Presence;
