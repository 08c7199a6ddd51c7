//! The columns of the catalog, each for every row: what a row says is what the service does.
//!
//! Driven by the rows, so a new row is tested by being there; it needs a sample in `src/demo/samples.json`.

mod away;
mod case;
mod crowd;
mod present;
mod queued;
mod shape;
