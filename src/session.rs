//! Sessions: what the edge knows of connected devices, and how a push reaches them.
//!
//! `hello` admits, `core` decides what happens next in one session (sans-IO), `lane` orders, bounds and remembers what
//! a client has not acked, `registry` finds the sessions of a user. No sockets here: `transport` moves the bytes.

pub mod core;
pub mod hello;
pub mod inbox;
mod lane;
pub mod recall;
pub mod receipt;
pub mod recipient;
pub mod registry;
mod seen;
mod shape;
mod shaper;
pub mod undelivered;

pub use core::{Core, Limits, Offer, Request};
pub use receipt::{AckEvent, Receipt, Receipts};
pub use recipient::{Devices, Recipient};
pub use registry::{Push, Registry, Session};
pub use shaper::TICK;
pub use undelivered::Undelivered;
