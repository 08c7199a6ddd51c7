//! The two wires: envelopes that services publish, frames that clients exchange with the edge.
//!
//! Pure encoding and decoding; no sockets, no time. `docs/protocol.md` is the text for client authors.

pub mod close;
pub mod codec;
pub mod envelope;
pub mod frame;
pub mod notification;
pub mod payload;
#[cfg(test)]
mod vectors;

pub use close::CloseCode;
pub use codec::{CodecError, Encoding};
pub use envelope::{Envelope, EnvelopeError};
pub use frame::{ClientFrame, ServerFrame};
pub use notification::Notification;
pub use payload::Payload;

/// Largest body of a client's frame in bytes: a hello with a large token fits many times.
pub const CLIENT_FRAME_BYTES_MAX: usize = 64 * 1024;

/// Largest body of a server's frame in bytes. A payload is at most 256 KiB, so this leaves room for any encoding of it.
pub const SERVER_FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Largest body of a datagram in bytes; every browser's limit is above it.
pub const DATAGRAM_BYTES_MAX: usize = 1_000;

/// Bytes of the big-endian length before each frame on a stream.
pub const LENGTH_BYTES: usize = 4;
