//! The loop guard of synchronisation requests: devices must not set each other off for ever. Pure.
//!
//! For each user there is a short list of the requests that passed lately, kept in bucket `transient` as `sync.{user}`.
//! It is one value, so the question whether a request may pass and the note that it did are one step: of two that are
//! asked at once, one is noted first and the other finds it.

use serde::{Deserialize, Serialize};

use crate::id::DeviceId;
use crate::pipeline::effects::SyncRequest;

/// A device that asks so soon after it was asked answers with a question.
const LOOP_MS: u64 = 30_000;

/// Requests remembered for a user; the oldest goes. A loop repeats within a few, and a user has 16 sessions at most.
const REMEMBERED: usize = 32;

/// Devices remembered for a request; more are left out. As many as a user may have sessions.
const DEVICES_MAX: usize = 16;

/// One request that passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Unix milliseconds by JetStream.
    at_ms: u64,
    /// Its sequence in the stream: a redelivery is the same request.
    seq: u64,
    /// The device that made it.
    from: DeviceId,
    /// The devices that were to get it.
    to: Vec<DeviceId>,
    data_types: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sync_id: Option<String>,
}

/// The requests of one user's devices that passed lately.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recent(Vec<Entry>);

impl Recent {
    /// Lets a request pass and remembers it for `to`, the devices that get it. False when it closes a loop: its device
    /// got one for the same kind of data within 30 s, or the request was seen.
    ///
    /// Which of two is older does not count: requests are handled side by side, and the one that is noted first passes.
    pub fn pass(&mut self, request: &SyncRequest, to: &[DeviceId], at_ms: u64, seq: u64) -> bool {
        if self.0.iter().any(|entry| entry.seq == seq) {
            return true;
        }
        if self.0.iter().any(|entry| entry.closes_loop(request, at_ms)) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0.remove(0);
        }
        self.0.push(Entry {
            at_ms,
            seq,
            from: request.from.clone(),
            to: to.iter().take(DEVICES_MAX).cloned().collect(),
            data_types: request.data_types.clone(),
            sync_id: request.sync_id.clone(),
        });
        true
    }
}

impl Entry {
    fn closes_loop(&self, request: &SyncRequest, at_ms: u64) -> bool {
        let received = self.to.contains(&request.from);
        let lately = at_ms.abs_diff(self.at_ms) < LOOP_MS;
        let same_id = self.sync_id.is_some() && self.sync_id == request.sync_id;
        same_id || (received && lately && overlap(&self.data_types, &request.data_types))
    }
}

/// An empty list stands for everything.
fn overlap(a: &[String], b: &[String]) -> bool {
    a.is_empty() || b.is_empty() || a.iter().any(|kind| b.contains(kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::UserId;

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    fn request(from: &str, id: &str, kinds: &[&str]) -> SyncRequest {
        SyncRequest {
            user: UserId::new("u").unwrap(),
            from: device(from),
            data_types: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            sync_id: Some(id.to_owned()),
        }
    }

    #[test]
    fn a_device_that_was_asked_must_not_ask_back_at_once() {
        let mut recent = Recent::default();
        let tablet = [device("tablet")];
        let first = request("phone", "s1", &["messages", "contacts"]);
        assert!(recent.pass(&first, &tablet, 40_000, 1));
        let passes =
            |request: &SyncRequest, at_ms| recent.clone().pass(request, &[device("phone")], at_ms, 2);

        assert!(!passes(&request("tablet", "s2", &["contacts"]), 69_999));
        assert!(!passes(&request("tablet", "s2", &[]), 41_000), "everything");
        assert!(!passes(&request("tablet", "s2", &["contacts"]), 39_999), "older, and noted later");
        assert!(!passes(&request("tablet", "s1", &["sessions"]), 99_000), "a known id");
        assert!(!passes(&request("phone", "s1", &["sessions"]), 99_000), "an id of its own");
        assert!(!passes(&request("laptop", "s1", &["sessions"]), 99_000), "whoever knows it");
        assert!(passes(&request("tablet", "s2", &["contacts"]), 70_000), "30 s later");
        assert!(passes(&request("tablet", "s2", &["sessions"]), 41_000), "something else");
        assert!(passes(&request("phone", "s2", &["messages"]), 41_000), "it asked, nobody asked it");
        assert!(passes(&request("laptop", "s2", &["messages"]), 41_000), "it did not get the first one");
    }

    #[test]
    fn a_redelivery_passes_again_and_changes_nothing() {
        let mut recent = Recent::default();
        assert!(recent.pass(&request("phone", "s1", &[]), &[device("tablet")], 1_000, 1));
        let before = recent.clone();
        assert!(recent.pass(&request("phone", "s1", &[]), &[device("tablet"), device("tv")], 1_000, 1));
        assert_eq!(recent, before);
        assert!(!recent.pass(&request("tablet", "s2", &[]), &[device("phone")], 1_000, 2));
        assert_eq!(recent, before, "what does not pass is not noted");
    }

    #[test]
    fn the_list_is_bounded() {
        let mut recent = Recent::default();
        let many: Vec<DeviceId> = (0..99).map(|n| device(&format!("d{n}"))).collect();
        for seq in 0..99 {
            assert!(recent.pass(&request("phone", &format!("s{seq}"), &[]), &many, 1_000, seq));
        }
        assert_eq!(recent.0.len(), REMEMBERED);
        assert!(recent.0.iter().all(|entry| entry.to.len() == DEVICES_MAX));
        assert_eq!(recent.0.last().map(|entry| entry.seq), Some(98), "the oldest goes");
    }
}
