//! `fanfare bench`: how fast the service is, measured beside what it could cost at least.
//!
//! One process orchestrates. What is measured is `fanfare serve` itself, a child of its own (`place`), and so is the load
//! (`load`), which does as it is told by lines of JSON. Processor time and memory of each are read from `/proc` (`usage`).
//! Everything runs on loopback, in a temporary folder, has a deadline, and ends with this process. `report` says what
//! came out and whether it is good enough.

pub mod bare;
pub mod fanout;
pub mod histogram;
pub mod ingest;
pub mod latency;
pub mod load;
pub mod place;
pub mod plot;
pub mod process;
mod queue;
pub mod report;
pub mod scale;
pub mod sessions;
pub mod usage;
#[cfg(feature = "bench")]
pub mod websocket;

use std::fmt::Display;

pub use report::Report;

/// Why a bench has no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// nats-server.
    #[error(transparent)]
    NatsServer(#[from] crate::demo::nats_server::NatsServerError),
    /// Streams and consumers.
    #[error(transparent)]
    Provision(#[from] crate::provision::Error),
    /// A part of the bench failed.
    #[error("cannot {what}: {why}")]
    Failed {
        /// What was tried.
        what: String,
        /// What was said.
        why: String,
    },
    /// A process of the bench ended, or says nothing in time.
    #[error("the {name} {what}")]
    Process {
        /// Which one.
        name: String,
        /// What is wrong with it.
        what: String,
    },
}

/// An error of the part that tries `what`.
fn failed<E: Display>(what: impl Into<String>) -> impl FnOnce(E) -> BenchError {
    move |why| BenchError::Failed { what: what.into(), why: why.to_string() }
}

/// Where a bench says how far it is.
pub type Progress<'a> = &'a (dyn Fn(&str) + Sync);

/// The middle of some figures; that of an even number of them is the mean of both in the middle. `None` of none.
pub fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let (low, high) = (figures.get(figures.len().checked_sub(1)? / 2)?, figures.get(figures.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![3.0, 1.0]), Some(2.0));
        assert_eq!(median(vec![3.0, 100.0, 1.0]), Some(3.0));
    }
}
