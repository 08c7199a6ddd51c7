//! A user's sessions on several nodes: the newer session of a device ends the older one, and a user has only so many.
//!
//! Every node ends its own. One task reads the user's entries and decides; the order is JetStream's. The limit is kept as
//! well as that allows: for a moment there may be more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use metrics::counter;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Node;
use super::entry::Told;
use crate::id::{DeviceId, UserId};
use crate::protocol::CloseCode;

/// Users looked at side by side.
const AT_ONCE: usize = 64;

/// Wait before users are looked at again whose entries could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// How often the entries are read again when a replica answered that has not yet what was seen, and the wait between:
/// replicas were at most 6.5 ms behind.
const READS: u32 = 8;
const REPLICA_LAG: Duration = Duration::from_millis(5);

/// Users with sessions here to be looked at, each with the last sequence that was seen of their entries. As many as have
/// sessions here.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    users: Mutex<HashMap<UserId, u64>>,
    work: Notify,
}

impl Conflicts {
    /// The user may have more sessions than may be.
    pub(super) fn check(&self, user: &UserId, seen: u64) {
        let mut users = self.users.lock();
        let known = users.entry(user.clone()).or_default();
        *known = seen.max(*known);
        self.work.notify_one();
    }
}

/// True when what another node has told of a user may end one of the sessions here.
pub(super) fn may_end(own: &[Told], told: &[Told], all_elsewhere: usize, most: usize) -> bool {
    !own.is_empty()
        && (own.len() + all_elsewhere > most
            || told.iter().any(|told| own.iter().any(|own| own.device == told.device)))
}

/// Which of the `own` sessions of a user must end, by position, when there are others `elsewhere`, each with its place in
/// the order. An own one without a place is the newest: it is looked at when it has one.
fn ending(own: &[Told], elsewhere: &[(DeviceId, u64)], most: usize) -> Vec<(usize, CloseCode)> {
    let place = |told: &Told| if told.at == 0 { u64::MAX } else { told.at };
    let mut newest: HashMap<&DeviceId, u64> = HashMap::new();
    let own_places = own.iter().map(|told| (&told.device, place(told)));
    for (device, since) in elsewhere.iter().map(|(device, since)| (device, *since)).chain(own_places) {
        let known = newest.entry(device).or_default();
        *known = since.max(*known);
    }
    let mut ranked: Vec<_> = newest.iter().map(|(device, since)| (*since, *device)).collect();
    ranked.sort_unstable_by(|one, other| other.cmp(one));
    let stay = &ranked[..ranked.len().min(most)];
    let verdict = |told: &Told| {
        if newest[&told.device] > place(told) {
            return Some(CloseCode::Replaced);
        }
        let stays = stay.iter().any(|(_, device)| **device == told.device);
        (!stays && told.at != 0).then_some(CloseCode::TooManySessions)
    };
    own.iter().enumerate().filter_map(|(at, told)| Some((at, verdict(told)?))).collect()
}

pub(super) async fn run(node: Arc<Node>) {
    loop {
        node.conflicts.work.notified().await;
        let users = std::mem::take(&mut *node.conflicts.users.lock());
        let failed = futures::stream::iter(users)
            .map(|(user, seen)| node.settle(user, seen))
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect::<Vec<_>>()
            .await;
        if !failed.is_empty() {
            tokio::time::sleep(RETRY).await;
            for (user, seen) in failed {
                node.conflicts.check(&user, seen);
            }
        }
    }
}

impl Node {
    /// Ends the sessions here that must; gives the user back when that cannot be known.
    async fn settle(&self, user: UserId, seen: u64) -> Option<(UserId, u64)> {
        let mut reads = 0;
        let entries = loop {
            match self.entries.of_user(&user).await {
                Ok(read) if read.last >= seen || reads == READS => break read.entries,
                Ok(_) => tokio::time::sleep(REPLICA_LAG).await,
                Err(error) => {
                    counter!("fanfare_cluster_follow_errors_total").increment(1);
                    tracing::warn!(%error, %user, "sessions on other nodes cannot be compared; tried again");
                    return Some((user, seen));
                }
            }
            reads += 1;
        };
        let elsewhere: Vec<_> = entries
            .into_iter()
            .filter(|entry| !self.lives.includes(&entry.node))
            .flat_map(|entry| {
                entry.sessions.into_iter().map(move |told| (told.since(entry.sequence), told.device))
            })
            .map(|(since, device)| (device, since))
            .collect();
        let sessions = self.registry.of_user(&user);
        let own: Vec<_> = sessions.iter().map(|session| Told::of(session)).collect();
        for (at, code) in ending(&own, &elsewhere, self.sessions_per_user_max) {
            let reason = match code {
                CloseCode::Replaced => "the same device connected to another node",
                _ => "a newer session took the place",
            };
            self.registry.end(&sessions[at], code, reason);
            counter!("fanfare_cluster_ended_total", "code" => code.name()).increment(1);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(device: &str, at: u64) -> Told {
        Told { device: DeviceId::new(device).unwrap(), platform: String::new(), start: 0, at }
    }

    fn there(device: &str, since: u64) -> (DeviceId, u64) {
        (DeviceId::new(device).unwrap(), since)
    }

    #[test]
    fn the_newer_session_of_a_device_stays() {
        let own = [told("a", 5), told("b", 6), told("new", 0)];
        assert_eq!(ending(&own, &[there("a", 7)], 16), [(0, CloseCode::Replaced)]);
        assert!(ending(&own, &[there("a", 4), there("b", 3)], 16).is_empty(), "the others are older");
        assert!(ending(&own, &[there("new", 9)], 16).is_empty(), "it has no place yet");
        // An entry of an earlier life of this node has the same place.
        assert!(ending(&own, &[there("a", 5)], 16).is_empty());
    }

    #[test]
    fn beyond_the_limit_the_oldest_end_wherever_they_are() {
        let own = [told("a", 5), told("b", 8)];
        let elsewhere = [there("c", 6), there("d", 7)];
        assert!(ending(&own, &elsewhere, 4).is_empty());
        assert_eq!(ending(&own, &elsewhere, 3), [(0, CloseCode::TooManySessions)]);
        assert_eq!(ending(&own, &elsewhere, 2), [(0, CloseCode::TooManySessions)]);
        let all = [(0, CloseCode::TooManySessions), (1, CloseCode::TooManySessions)];
        assert_eq!(ending(&own, &[there("c", 9)], 1), all);
        // A device counts once, also while its older session is still listed.
        assert!(ending(&own, &[there("b", 2), there("a", 1)], 2).is_empty());
        assert_eq!(
            ending(&[told("a", 5), told("n", 0)], &[there("c", 6)], 1),
            [(0, CloseCode::TooManySessions)]
        );
    }

    #[test]
    fn all_nodes_together_keep_exactly_the_newest() {
        let one = [told("a", 1), told("b", 4), told("c", 7)];
        let two = [told("d", 2), told("e", 5), told("a", 8)];
        let seen = |told: &[Told]| told.iter().map(|told| (told.device.clone(), told.at)).collect::<Vec<_>>();
        let left = |own: &[Told], other: &[Told]| {
            let ended = ending(own, &seen(other), 3);
            let stays = |at: &usize| ended.iter().all(|(ended, _)| ended != at);
            (0..own.len()).filter(stays).map(|at| own[at].at).collect::<Vec<_>>()
        };
        assert_eq!((left(&one, &two), left(&two, &one)), (vec![7], vec![5, 8]));
    }

    #[test]
    fn entries_are_read_only_when_they_may_end_something() {
        let (own, other) = ([told("a", 5)], [told("b", 6)]);
        assert!(!may_end(&own, &other, 1, 2));
        assert!(may_end(&own, &other, 2, 2), "too many");
        assert!(may_end(&own, &[told("a", 6)], 1, 2), "the same device");
        assert!(!may_end(&[], &other, 9, 2), "nobody here");
    }
}
