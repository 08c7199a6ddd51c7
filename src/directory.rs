//! The directory: who belongs to which audience.
//!
//! `members` decides (highest version wins), `load` reads a whole audience from the bucket, `audience` caches and keeps
//! current, `write` changes the bucket.

pub mod audience;
mod load;
pub mod members;
pub mod write;

pub use audience::{Config, Directory, LookupError};
pub use load::LoadError;
pub use members::{Change, Key, Members};
pub use write::{ChangeError, Writer};
