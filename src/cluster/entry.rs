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
    /// How old it was when this was written, in milliseconds that the node counted itself.
    #[serde(default)]
    pub age_ms: u64,
}

/// Two starts that are closer than this are in no order: clocks of NATS servers differ, and writes take their time.
pub(super) const DOUBT_MS: u64 = 2_000;

impl Told {
    pub(super) fn of(session: &Session) -> Self {
        Self {
            device: session.device.clone(),
            platform: session.platform.clone(),
            start: session.started_ms,
            age_ms: u64::try_from(session.age().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Unix milliseconds of its start by JetStream's clock, which is one for all nodes, when its entry was stored at
    /// `stored_ms`. Never too early: what took its time on the way to JetStream, and a machine that slept, make it later.
    pub fn began_ms(&self, stored_ms: u64) -> u64 {
        stored_ms.saturating_sub(self.age_ms)
    }

    /// True when [`Told::began_ms`] may be far too late: the entry was on its way for long, as the node's own clock tells.
    /// A node whose clock is wrong looks like it.
    pub fn is_doubtful(&self, stored_ms: u64) -> bool {
        self.start.saturating_add(self.age_ms).abs_diff(stored_ms) > DOUBT_MS
    }
}

/// The sessions of a user on one node.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The node.
    pub node: NodeId,
    /// Sequence of the entry.
    pub sequence: u64,
    /// Unix milliseconds at which JetStream stored it.
    pub stored_ms: u64,
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
    /// Sessions that it takes.
    pub sessions_max: usize,
    /// Processor cores that it used since it last said so; `None` where the system does not tell.
    pub cores: Option<f32>,
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
    fn a_start_is_the_same_in_every_write_and_doubtful_in_one_that_came_late() {
        let told = |age_ms| Told {
            device: DeviceId::new("d").unwrap(),
            platform: String::new(),
            start: 100_000,
            age_ms,
        };
        for age_ms in [0, 1_000, 60_000] {
            let stored_ms = 100_000 + age_ms;
            assert_eq!(
                (told(age_ms).began_ms(stored_ms), told(age_ms).is_doubtful(stored_ms)),
                (100_000, false)
            );
        }
        assert!(told(0).is_doubtful(130_000), "it waited in the client while NATS was away");
        assert!(told(0).is_doubtful(90_000), "a wrong clock");
    }

    #[test]
    fn values_of_other_versions_are_read() {
        let told: Vec<Told> =
            serde_json::from_str(r#"[{"device":"d","more":1},{"device":"e","age_ms":5}]"#).unwrap();
        assert_eq!(told.iter().map(|told| told.began_ms(9)).collect::<Vec<_>>(), [9, 4]);
        let lease: Lease = serde_json::from_str(r#"{"name":"n","role":"edge","more":1}"#).unwrap();
        assert_eq!((lease.name.as_str(), lease.role), ("n", Role::Edge));
    }
}
