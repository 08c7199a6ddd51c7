//! The directory: who belongs to which audience.
//!
//! `members` decides (highest version wins), `load` reads a whole audience from the bucket and `ask` from a service,
//! `audience` caches and keeps current, `write` changes the bucket.

mod ask;
pub mod audience;
mod load;
pub mod members;
pub mod write;

pub use ask::AskError;
pub use audience::{Config, Directory, LookupError, Source};
pub use load::LoadError;
pub use members::{Change, Key, Members};
pub use write::{ChangeError, Writer};
