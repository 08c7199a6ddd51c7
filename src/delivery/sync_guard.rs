//! The loop guard of synchronisation requests: devices must not set each other off for ever. Pure.
//!
//! For each device there is a short list of the requests that it received or made lately, kept in bucket `transient` as
//! `sync.{user}.{device}`.

use serde::{Deserialize, Serialize};

use crate::pipeline::effects::SyncRequest;

/// A device that asks so soon after it was asked answers with a question.
const LOOP_MS: u64 = 30_000;

/// Requests remembered for a device; the oldest goes. A loop repeats within a few.
const REMEMBERED: usize = 16;

/// One request that a device received or made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Unix milliseconds by JetStream.
    at_ms: u64,
    /// Its sequence in the stream: a redelivery is the same request.
    seq: u64,
    /// False when the device made it.
    received: bool,
    data_types: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sync_id: Option<String>,
}

/// What one device received and made lately.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recent(Vec<Entry>);

impl Recent {
    /// True when the device of this list must not make this request: it received one for the same kind of data within
    /// 30 s before, or the request's id is known from another one.
    pub fn closes_loop(&self, request: &SyncRequest, at_ms: u64, seq: u64) -> bool {
        self.0.iter().filter(|entry| entry.seq != seq).any(|entry| {
            let lately = entry.received && entry.at_ms <= at_ms && at_ms - entry.at_ms < LOOP_MS;
            let seen = entry.sync_id.is_some() && entry.sync_id == request.sync_id;
            seen || (lately && overlap(&entry.data_types, &request.data_types))
        })
    }

    /// Remembers that the device received the request, or made it; false when that is remembered already.
    pub fn add(&mut self, request: &SyncRequest, received: bool, at_ms: u64, seq: u64) -> bool {
        if self.0.iter().any(|entry| entry.seq == seq) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0.remove(0);
        }
        let (data_types, sync_id) = (request.data_types.clone(), request.sync_id.clone());
        self.0.push(Entry { at_ms, seq, received, data_types, sync_id });
        true
    }
}

/// An empty list stands for everything.
fn overlap(a: &[String], b: &[String]) -> bool {
    a.is_empty() || b.is_empty() || a.iter().any(|kind| b.contains(kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{DeviceId, UserId};

    fn request(id: &str, kinds: &[&str]) -> SyncRequest {
        SyncRequest {
            user: UserId::new("u").unwrap(),
            from: DeviceId::new("d").unwrap(),
            data_types: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            sync_id: Some(id.to_owned()),
        }
    }

    #[test]
    fn a_device_that_was_asked_must_not_ask_back_at_once() {
        let mut recent = Recent::default();
        assert!(recent.add(&request("s1", &["messages", "contacts"]), true, 1_000, 1));
        assert!(!recent.add(&request("s1", &["messages"]), true, 1_000, 1), "a redelivery");
        let closes = |request: &SyncRequest, at_ms| recent.closes_loop(request, at_ms, 2);

        assert!(closes(&request("s2", &["contacts"]), 30_999));
        assert!(closes(&request("s2", &[]), 2_000), "everything");
        assert!(!closes(&request("s2", &["contacts"]), 31_000), "30 s later");
        assert!(!closes(&request("s2", &["sessions"]), 2_000), "something else");
        assert!(!closes(&request("s2", &["contacts"]), 999), "it asked first");
        assert!(closes(&request("s1", &["sessions"]), 99_000), "a known id");
        assert!(!recent.closes_loop(&request("s1", &["messages"]), 1_000, 1), "a redelivery");
    }

    #[test]
    fn what_a_device_asked_itself_does_not_stop_it_and_its_list_is_bounded() {
        let mut recent = Recent::default();
        recent.add(&request("s0", &["messages"]), false, 1_000, 100);
        assert!(!recent.closes_loop(&request("s1", &["messages"]), 2_000, 101));
        for seq in 0..99 {
            recent.add(&request("x", &[]), true, 1_000, seq);
        }
        assert_eq!(recent.0.len(), REMEMBERED);
    }
}
