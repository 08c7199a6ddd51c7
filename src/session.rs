//! Sessions: what the edge knows of connected devices, and how a push reaches them.
//!
//! `core` decides (sans-IO), `registry` finds, `transport` moves the bytes.

pub mod receipt;
pub mod recipient;
pub mod registry;

pub use receipt::{AckEvent, Receipt, Receipts};
pub use recipient::{Devices, Recipient};
pub use registry::{Push, Registry};
