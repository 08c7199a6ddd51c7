//! A user's sessions on several nodes: the newer session of a device ends the older one, and a user has only so many.
//!
//! Every node ends its own. One task reads the user's entries and decides, by when sessions began on JetStream's clock.
//! Only one that is older beyond doubt ends with a code after which its client stays away. The limit is kept as well as
//! that allows: for a moment there may be more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use metrics::counter;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Node;
use super::entry::{DOUBT_MS, Entry, Told};
use crate::id::{DeviceId, NodeId, UserId};
use crate::protocol::CloseCode;
use crate::session::Session;

/// Users looked at side by side.
const AT_ONCE: usize = 64;

/// Wait before users are looked at again whose entries could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// How often the entries are read again when a replica answered that has not yet what was seen, and the wait between:
/// replicas were at most 6.5 ms behind.
const READS: u32 = 8;
const REPLICA_LAG: Duration = Duration::from_millis(5);

/// Wait of a client whose session may be the newer one after all: when it is back, nobody doubts who is newer.
const AGAIN_MS: u64 = DOUBT_MS + 1_000;

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

/// Where a session stands among those of all nodes: when it began by JetStream's clock, then its node, so that all nodes
/// have the same order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    began_ms: u64,
    node: NodeId,
}

/// A session on another node.
#[derive(Debug)]
struct There {
    device: DeviceId,
    place: Place,
    /// It may have begun long before its place says.
    doubtful: bool,
    /// Its node has a lease. Without one it is dead perhaps, and takes nobody's place.
    live: bool,
}

impl There {
    /// True when it began after `own` whatever clocks and networks did.
    fn is_surely_newer(&self, own: &Place) -> bool {
        !self.doubtful && self.place.began_ms > own.began_ms.saturating_add(DOUBT_MS)
    }
}

/// Which of the `own` sessions of a user must end, by position, when there are others `elsewhere`. An own one without a
/// place is the newest: it is looked at when it has one.
fn ending(own: &[(DeviceId, Option<Place>)], elsewhere: &[There], most: usize) -> Vec<(usize, CloseCode)> {
    let mut newest: HashMap<&DeviceId, (bool, Option<&Place>)> = HashMap::new();
    let own_places = own.iter().map(|(device, place)| (device, (place.is_none(), place.as_ref())));
    let live = elsewhere.iter().filter(|there| there.live);
    for (device, place) in live.map(|there| (&there.device, (false, Some(&there.place)))).chain(own_places) {
        let known = newest.entry(device).or_insert(place);
        *known = place.max(*known);
    }
    let mut ranked: Vec<_> = newest.iter().map(|(device, place)| (*place, *device)).collect();
    ranked.sort_unstable_by(|one, other| other.cmp(one));
    let stay = &ranked[..ranked.len().min(most)];
    let verdict = |device: &DeviceId, place: &Place| {
        let newer = elsewhere.iter().filter(|there| there.device == *device && there.place > *place);
        match newer.map(|there| there.is_surely_newer(place)).max() {
            Some(true) => Some(CloseCode::Replaced),
            // The client that has no newer one comes back, and is the newest then.
            Some(false) => Some(CloseCode::Rotate),
            None if stay.iter().any(|(_, stays)| *stays == device) => None,
            None => Some(CloseCode::TooManySessions),
        }
    };
    let verdicts = own.iter().map(|(device, place)| verdict(device, place.as_ref()?));
    verdicts.enumerate().filter_map(|(at, code)| Some((at, code?))).collect()
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
        let (own, others): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| self.lives.includes(&entry.node));
        let elsewhere: Vec<_> =
            others.iter().flat_map(|entry| there(entry, self.presence.is_live(&entry.node))).collect();
        let sessions = self.registry.of_user(&user);
        let own: Vec<_> =
            sessions.iter().map(|session| (session.device.clone(), place(session, &own))).collect();
        for (at, code) in ending(&own, &elsewhere, self.sessions_per_user_max) {
            let (reason, retry_after_ms) = match code {
                CloseCode::TooManySessions => ("a newer session took the place", 0),
                CloseCode::Rotate => ("the same device has a session on another node", AGAIN_MS),
                _ => ("the same device connected to another node", 0),
            };
            self.registry.end(&sessions[at], code, reason, retry_after_ms);
            counter!("fanfare_cluster_ended_total", "code" => code.name()).increment(1);
        }
        None
    }
}

/// The place of a session of this node, as its latest entry in the bucket says. Others go by the same.
fn place(session: &Session, own: &[Entry]) -> Option<Place> {
    let tells = |told: &&Told| told.device == session.device && told.start == session.started_ms;
    let told = own.iter().filter_map(|entry| Some((entry, entry.sessions.iter().find(tells)?)));
    let (entry, told) = told.max_by_key(|(entry, _)| entry.sequence)?;
    Some(Place { began_ms: told.began_ms(entry.stored_ms), node: entry.node.clone() })
}

fn there(entry: &Entry, live: bool) -> impl Iterator<Item = There> {
    entry.sessions.iter().map(move |told| There {
        device: told.device.clone(),
        place: Place { began_ms: told.began_ms(entry.stored_ms), node: entry.node.clone() },
        doubtful: told.is_doubtful(entry.stored_ms),
        live,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Vec<(usize, CloseCode)> = Vec::new();

    fn place(seconds: u64, node: &str) -> Place {
        Place { began_ms: seconds * 1_000, node: NodeId::of(node, 1) }
    }

    fn here(device: &str, seconds: u64) -> (DeviceId, Option<Place>) {
        (DeviceId::new(device).unwrap(), (seconds > 0).then(|| place(seconds, "here")))
    }

    fn there(device: &str, seconds: u64) -> There {
        There {
            device: DeviceId::new(device).unwrap(),
            place: place(seconds, "there"),
            doubtful: false,
            live: true,
        }
    }

    #[test]
    fn the_newer_session_of_a_device_stays() {
        let own = [here("a", 50), here("b", 60), here("new", 0)];
        assert_eq!(ending(&own, &[there("a", 70)], 16), [(0, CloseCode::Replaced)]);
        assert_eq!(ending(&own, &[there("a", 40), there("b", 30)], 16), NONE, "the others are older");
        assert_eq!(ending(&own, &[there("new", 90)], 16), NONE, "it has no place yet");
    }

    #[test]
    fn a_session_that_may_be_the_newer_one_ends_so_that_its_client_comes_back() {
        let own = [here("a", 50)];
        assert_eq!(ending(&own, &[there("a", 52)], 16), [(0, CloseCode::Rotate)], "too close");
        assert_eq!(ending(&own, &[there("a", 53)], 16), [(0, CloseCode::Replaced)]);
        let late = There { doubtful: true, ..there("a", 90) };
        assert_eq!(ending(&own, &[late], 16), [(0, CloseCode::Rotate)]);
        let late = There { doubtful: true, ..there("a", 90) };
        assert_eq!(ending(&own, &[late, there("a", 53)], 16), [(0, CloseCode::Replaced)]);
        // In the same millisecond one of both nodes ends its own.
        assert_eq!(ending(&own, &[there("a", 50)], 16), [(0, CloseCode::Rotate)]);
        let first = There { place: place(50, "a"), ..there("a", 0) };
        assert_eq!(ending(&own, &[first], 16), NONE);
    }

    #[test]
    fn beyond_the_limit_the_oldest_end_wherever_they_are() {
        let own = [here("a", 50), here("b", 80)];
        let elsewhere = [there("c", 60), there("d", 70)];
        assert_eq!(ending(&own, &elsewhere, 4), NONE);
        assert_eq!(ending(&own, &elsewhere, 3), [(0, CloseCode::TooManySessions)]);
        assert_eq!(ending(&own, &elsewhere, 2), [(0, CloseCode::TooManySessions)]);
        let all = [(0, CloseCode::TooManySessions), (1, CloseCode::TooManySessions)];
        assert_eq!(ending(&own, &[there("c", 90)], 1), all);
        // Who may be dead takes nobody's place; a device that has moved since has moved all the same.
        let dead = |device| There { live: false, ..there(device, 90) };
        assert_eq!(ending(&own, &[dead("c"), dead("d")], 2), NONE);
        assert_eq!(ending(&own, &[dead("a")], 2), [(0, CloseCode::Replaced)]);
        // A device counts once, also while its older session is still listed.
        assert_eq!(ending(&own, &[there("b", 20), there("a", 10)], 2), NONE);
        assert_eq!(
            ending(&[here("a", 50), here("n", 0)], &[there("c", 60)], 1),
            [(0, CloseCode::TooManySessions)]
        );
    }

    #[test]
    fn all_nodes_together_keep_exactly_the_newest() {
        let one = [("a", 10), ("b", 40), ("c", 70)];
        let two = [("d", 20), ("e", 50), ("a", 80)];
        let left = |own: &[(&str, u64)], other: &[(&str, u64)]| {
            let own_sessions: Vec<_> = own.iter().map(|(device, began)| here(device, *began)).collect();
            let elsewhere: Vec<_> = other.iter().map(|(device, began)| there(device, *began)).collect();
            let ended = ending(&own_sessions, &elsewhere, 3);
            let stays = |at: &usize| ended.iter().all(|(ended, _)| ended != at);
            (0..own.len()).filter(stays).map(|at| own[at].1).collect::<Vec<_>>()
        };
        assert_eq!((left(&one, &two), left(&two, &one)), (vec![70], vec![50, 80]));
    }

    #[test]
    fn entries_are_read_only_when_they_may_end_something() {
        let told = |device: &str| Told {
            device: DeviceId::new(device).unwrap(),
            platform: String::new(),
            start: 0,
            age_ms: 0,
        };
        let (own, other) = ([told("a")], [told("b")]);
        assert!(!may_end(&own, &other, 1, 2));
        assert!(may_end(&own, &other, 2, 2), "too many");
        assert!(may_end(&own, &[told("a")], 1, 2), "the same device");
        assert!(!may_end(&[], &other, 9, 2), "nobody here");
    }
}
