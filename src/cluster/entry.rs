//! What the buckets `presence` and `nodes` hold: a user's sessions on a node, and a node's lease.

use serde::{Deserialize, Serialize};

use super::Role;
use crate::id::{DeviceId, NodeId, UserId};
use crate::session::Session;

/// A session as the other nodes see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The device.
    pub device: DeviceId,
    /// The hello's platform.
    #[serde(default)]
    pub platform: String,
    /// Unix milliseconds of its start by the node's own clock, for people.
    #[serde(default)]
    pub start: u64,
    /// Sequence of the write that first told of it; 0 in that very write.
    #[serde(default)]
    pub at: u64,
}

impl Told {
    pub(super) fn of(session: &Session) -> Self {
        Self {
            device: session.device.clone(),
            platform: session.platform.clone(),
            start: session.started_ms,
            at: session.known.at(),
        }
    }

    /// Its place in the order of all nodes' sessions, read from the entry that was written at `sequence`. It is
    /// JetStream's order, not that of the nodes' clocks.
    pub fn since(&self, sequence: u64) -> u64 {
        if self.at == 0 { sequence } else { self.at }
    }
}

/// The sessions of a user on one node.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The node.
    pub node: NodeId,
    /// Sequence of the entry.
    pub sequence: u64,
    /// The sessions.
    pub sessions: Vec<Told>,
}

/// The key of a user's entry.
pub fn key(user: &UserId, node: &NodeId) -> String {
    format!("{user}.{node}")
}

/// Whose entry a key is; `None` for what is no key of ours.
pub fn parse(key: &str) -> Option<(UserId, NodeId)> {
    let (user, node) = key.split_once('.')?;
    Some((UserId::new(user).ok()?, NodeId::new(node).ok()?))
}

/// What a node says of itself with each renewal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lease {
    /// Its name.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Its program.
    pub version: String,
    /// Sessions open on it.
    pub sessions: usize,
    /// It is about to stop.
    pub draining: bool,
    /// Unix milliseconds at which its process started.
    pub started_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back_and_strangers_are_not() {
        let (user, node) = (UserId::new("u-1").unwrap(), NodeId::of("edge.example", 7));
        assert_eq!(parse(&key(&user, &node)), Some((user, node)));
        for stranger in ["", "u", "u.", ".n", "u.n.x", "u v.n"] {
            assert_eq!(parse(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn values_of_other_versions_are_read() {
        let told: Vec<Told> =
            serde_json::from_str(r#"[{"device":"d","more":1},{"device":"e","at":5}]"#).unwrap();
        assert_eq!(told.iter().map(|told| told.since(9)).collect::<Vec<_>>(), [9, 5]);
        let lease: Lease = serde_json::from_str(r#"{"name":"n","role":"edge","more":1}"#).unwrap();
        assert_eq!((lease.name.as_str(), lease.role), ("n", Role::Edge));
    }
}
