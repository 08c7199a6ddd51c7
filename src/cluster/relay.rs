//! The relay: a worker asks another node to offer a notification to its sessions.
//!
//! Request and reply over core NATS, on `fanfare.node.{node}.{lane}`: at most 1,000 users and the payload once. `ask` is
//! the worker's side, `serve` the node's that has the sessions, `wire` what they say. The node offers and answers; it
//! never tries again and never passes on. A request that comes twice is answered from memory.

pub mod ask;
mod late;
mod peer;
mod pulse;
pub mod serve;
mod waiting;
mod wire;

use std::time::Duration;

pub use ask::{Asker, Relay};
pub use serve::Server;

use crate::catalog::Lane;
use crate::id::NodeId;

/// Time a node has for an answer: far more than the 4 ms (P99) that one took in an experiment, since machines are busy. Then
/// it is asked again, once: the answer may have been lost.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often a node is asked in one go.
const TRIES: usize = 2;

/// The subjects on which nodes are asked.
pub const SUBJECTS: &str = "fanfare.node.*.*";

/// The subject on which `node` is asked.
fn subject(node: &NodeId, lane: Lane) -> String {
    format!("fanfare.node.{node}.{}", lane.as_str())
}

/// Describes the metrics of this part.
pub(super) fn describe() {
    metrics::describe_counter!(
        "fanfare_relay_asked_total",
        "users whom other nodes were asked about, by lane and by what came of it"
    );
    metrics::describe_histogram!("fanfare_relay_seconds", "from asking another node to its answer, by lane");
    metrics::describe_counter!(
        "fanfare_relay_broadcasts_unheard_total",
        "nodes that did not say that they told their users of a broadcast"
    );
    metrics::describe_counter!(
        "fanfare_relay_served_total",
        "requests of other nodes, by lane and by what came of them"
    );
}
