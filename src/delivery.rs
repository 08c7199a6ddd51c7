//! Delivery: what becomes of each recipient once the sessions have answered.
//!
//! `round`, `acks`, `call` and `sync_guard` decide, `ledger` counts, `offline`, `inbox`, `dead_letter` and `evidence` write to
//! JetStream.

pub mod acks;
pub mod call;
pub mod dead_letter;
pub mod evidence;
pub mod inbox;
pub mod ledger;
pub mod offline;
pub mod replay;
pub mod retry;
pub mod round;
pub mod sync_guard;

pub use acks::AckWait;
pub use evidence::{Ended, Recorder};
pub use ledger::{Ledger, Outcome, Totals};
pub use round::{HandOff, Keep, Missed, Round, keep};
