//! The directory: who belongs to which audience.
//!
//! `members` decides (highest version wins), `load` reads a whole audience from the bucket and `ask` from a service,
//! `audience` caches and keeps current, `write` changes the bucket, `rows` and `import` bring whole populations.

mod ask;
pub mod audience;
pub mod import;
mod load;
pub mod members;
pub mod rows;
pub mod write;

pub use ask::{AskError, QUESTIONS};
pub use audience::{Config, Directory, LookupError, Source};
pub use import::{Imported, write_all};
pub use load::LoadError;
pub use members::{Change, Key, Members};
pub use rows::{Format, Parser, Row, RowError};
pub use write::{ChangeError, Writer};
