//! Transport: QUIC and WebTransport sockets around the session core. No decision about notifications is made here.
//!
//! `endpoint` accepts as `admission` decides, `handshake` brings a connection to its hello, `lanes` writes what is pushed
//! to one session, `driver` is the session's task, `runtime` is what quinn's own tasks run on, `auth` and `tls` read keys.
//! No quinn type leaves this module, but for the socket and the settings that the bench's bare loop shares.

mod admission;
pub mod auth;
pub mod connection_id;
mod driver;
pub mod endpoint;
mod handshake;
mod lanes;
mod outgoing;
mod runtime;
pub mod tls;

pub use endpoint::{Config, Edge, EdgeError, Handle, drain_limit};
pub(crate) use endpoint::{listen, server_config};
