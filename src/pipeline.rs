//! The pipeline: decode, classify, resolve, batch, route. One stage a file.
//!
//! Every stage is a synchronous function of its input and a time. A stage may name the output of the stage before it
//! and nothing later; whoever runs them (`worker`) does the waiting in between.

pub mod batch;
pub mod classify;
pub mod decode;
pub mod effects;
pub mod refusal;
pub mod resolve;
pub mod route;

pub use batch::{BATCH_USERS_MAX, batches};
pub use classify::{Plan, classify};
pub use decode::{Decoded, decode};
pub use effects::Todo;
pub use refusal::{Reason, Refusal};
pub use resolve::{Fanout, resolve};
pub use route::{Alone, Answer, Nodes, Reach, Relays, Sessions, Unread, broadcast};

#[cfg(test)]
mod tests;
