//! Stage 5: a batch is offered to the sessions that serve it: those of this node at once, those of others by asking.
//!
//! Two seams: [`Sessions`] are this node's, [`Nodes`] are the others. What both say of a user is one [`Answer`].

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::BATCH_USERS_MAX;
use crate::clock::Now;
use crate::id::{DeviceId, NodeId, UserId};
use crate::protocol::Notification;
use crate::session::{Push, Receipts, Recipient, Registry};

/// Whoever has sessions. Each call is short and never waits.
pub trait Sessions: Send + Sync {
    /// See [`Registry::push`].
    fn push(
        &self,
        note: &Arc<Notification>,
        recipient: &Recipient,
        receipts: Option<&Receipts>,
        now: Now,
    ) -> Push;
    /// See [`Registry::broadcast_part`].
    fn broadcast_part(&self, part: usize, note: &Arc<Notification>) -> Option<(usize, usize)>;
    /// The devices of a user that have a session; nobody where that is not known.
    fn devices(&self, user: &UserId) -> Vec<DeviceId> {
        let _ = user;
        Vec::new()
    }
}

impl Sessions for Registry {
    fn push(
        &self,
        note: &Arc<Notification>,
        recipient: &Recipient,
        receipts: Option<&Receipts>,
        now: Now,
    ) -> Push {
        Self::push(self, note, recipient, receipts, now)
    }

    fn broadcast_part(&self, part: usize, note: &Arc<Notification>) -> Option<(usize, usize)> {
        Self::broadcast_part(self, part, note)
    }

    fn devices(&self, user: &UserId) -> Vec<DeviceId> {
        self.of_user(user).iter().map(|session| session.device.clone()).collect()
    }
}

/// Users a second whom a node tells of a broadcast. Each costs some 30 µs of processor time until it is on the wire, so on
/// two cores most of the time is left for what is urgent.
const BROADCAST_PER_S: u32 = 20_000;

/// Offers `note` to every session of this node, at a pace that leaves room for others; gives how many users took it and
/// how many were full.
pub async fn broadcast(sessions: &dyn Sessions, note: &Arc<Notification>) -> (usize, usize) {
    let started = Instant::now();
    let (mut accepted, mut full) = (0, 0);
    for part in 0.. {
        let Some((took, refused)) = sessions.broadcast_part(part, note) else { break };
        accepted += took;
        full += refused;
        let users = u32::try_from(accepted + full).unwrap_or(u32::MAX);
        tokio::time::sleep_until(started + Duration::from_secs(1) * users / BROADCAST_PER_S).await;
    }
    (accepted, full)
}

/// What came of offering a notification to all sessions of one user, wherever they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The user has no session that is meant.
    Absent,
    /// The node that had the user's sessions has none any more: they may be elsewhere by now.
    Moved,
    /// The node that has the user's sessions did not say what became of it.
    Unreached {
        /// It may be asked again: the node is silent for a moment only.
        again: bool,
    },
    /// The user has sessions that are meant, and every one of them is full.
    Full,
    /// Shaping shows the user another one in its place.
    Coalesced,
    /// So many sessions took it.
    Accepted(usize),
}

impl From<Push> for Answer {
    fn from(push: Push) -> Self {
        match push {
            Push::Absent => Self::Absent,
            Push::Full => Self::Full,
            Push::Coalesced => Self::Coalesced,
            Push::Accepted(sessions) => Self::Accepted(sessions),
        }
    }
}

impl Answer {
    /// What two nodes say of the same user: the better news.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let rank = |answer| match answer {
            Self::Absent => 0,
            Self::Moved => 1,
            Self::Unreached { again: false } => 2,
            Self::Unreached { again: true } => 3,
            Self::Full => 4,
            Self::Coalesced => 5,
            Self::Accepted(_) => 6,
        };
        match (self, other) {
            (Self::Accepted(some), Self::Accepted(more)) => Self::Accepted(some + more),
            _ if rank(other) > rank(self) => other,
            _ => self,
        }
    }
}

/// The other nodes of the gateway.
pub trait Nodes: Send + Sync {
    /// Those that serve `user`, as far as this node knows.
    fn serving(&self, user: &UserId) -> Vec<NodeId>;
    /// True while this node knows of every session of the others.
    fn is_current(&self) -> bool;
    /// Unix milliseconds up to which this node knows of every session of the others.
    fn known_as_of_ms(&self) -> u64;
    /// The number of the connection over which they are reached, from 1 on; 0 while there is none, or one that carries
    /// nothing. One that carried nothing for a while has another number afterwards.
    fn connection(&self) -> u64;
    /// Asks `node` to offer `note` to its sessions of `to`, at most [`BATCH_USERS_MAX`] users, and waits for it no longer
    /// than `until`. Gives an answer for each of them, in their order. With `receipts`, each session that takes it reports
    /// once.
    fn relay<'a>(
        &'a self,
        node: &'a NodeId,
        note: &'a Arc<Notification>,
        to: Vec<&'a Recipient>,
        receipts: Option<&'a Receipts>,
        until: Instant,
    ) -> BoxFuture<'a, Vec<Answer>>;
    /// Has `note` offered to every session of every other node; gives how many users took it and how many were full.
    fn broadcast<'a>(&'a self, note: &'a Arc<Notification>) -> BoxFuture<'a, (usize, usize)>;
    /// The devices of `user` that have a session on another node.
    fn devices<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, Result<Vec<DeviceId>, Unread>>;
}

/// The sessions of a user on other nodes cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the sessions of a user on other nodes cannot be read: {0}")]
pub struct Unread(pub Box<dyn std::error::Error + Send + Sync>);

/// There are no other nodes.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Nodes for Alone {
    fn serving(&self, _: &UserId) -> Vec<NodeId> {
        Vec::new()
    }

    fn is_current(&self) -> bool {
        true
    }

    fn known_as_of_ms(&self) -> u64 {
        u64::MAX
    }

    fn connection(&self) -> u64 {
        1
    }

    fn relay<'a>(
        &'a self,
        _: &'a NodeId,
        _: &'a Arc<Notification>,
        to: Vec<&'a Recipient>,
        _: Option<&'a Receipts>,
        _: Instant,
    ) -> BoxFuture<'a, Vec<Answer>> {
        async move { vec![Answer::Absent; to.len()] }.boxed()
    }

    fn broadcast<'a>(&'a self, _: &'a Arc<Notification>) -> BoxFuture<'a, (usize, usize)> {
        async { (0, 0) }.boxed()
    }

    fn devices<'a>(&'a self, _: &'a UserId) -> BoxFuture<'a, Result<Vec<DeviceId>, Unread>> {
        async { Ok(Vec::new()) }.boxed()
    }
}

/// Those whom other nodes are still to be asked about, and what this node's sessions said of them.
#[derive(Debug, Default)]
pub struct Relays {
    users: Vec<(Recipient, Answer)>,
    /// Each node and its users, by their places in `users`. There are few nodes.
    nodes: Vec<(NodeId, Vec<usize>)>,
}

impl Relays {
    /// `nodes` are to be asked about `recipient` as well.
    pub fn add(&mut self, recipient: Recipient, here: Answer, nodes: Vec<NodeId>) {
        let place = self.users.len();
        self.users.push((recipient, here));
        for node in nodes {
            match self.nodes.iter_mut().find(|(known, _)| *known == node) {
                Some((_, places)) => places.push(place),
                None => self.nodes.push((node, vec![place])),
            }
        }
    }

    /// True when nobody is to be asked.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// True when one more batch would make a message to one of the nodes too large.
    pub fn is_full(&self) -> bool {
        self.users.len() >= BATCH_USERS_MAX
    }

    /// Asks all nodes at once, and gives what became of each recipient, and whether all of the nodes could say so.
    pub async fn ask(
        mut self,
        nodes: Arc<dyn Nodes>,
        note: Arc<Notification>,
        receipts: Option<Receipts>,
        until: Instant,
    ) -> Vec<(Recipient, Answer, Reach)> {
        let mut reach = vec![Reach::All; self.users.len()];
        let asked = self.nodes.iter().flat_map(|(node, places)| {
            // More than a batch only if a whole one was added to one that was not full yet.
            places.chunks(BATCH_USERS_MAX).map(move |places| (node, places))
        });
        let asked = asked.map(|(node, places)| {
            let to: Vec<&Recipient> = places.iter().map(|place| &self.users[*place].0).collect();
            nodes.relay(node, &note, to, receipts.as_ref(), until).map(move |answers| (places, answers))
        });
        for (places, answers) in futures::future::join_all(asked).await {
            for (place, answer) in places.iter().zip(answers) {
                if matches!(answer, Answer::Moved | Answer::Unreached { .. }) {
                    reach[*place] = Reach::Some;
                }
                let known = &mut self.users[*place].1;
                *known = known.and(answer);
            }
        }
        let users = self.users.into_iter().zip(reach);
        users.map(|((recipient, answer), reach)| (recipient, answer, reach)).collect()
    }
}

/// Whether a notification could be offered to every session that a user may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Wherever they are.
    All,
    /// There may be more on a node that did not say so.
    Some,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Answer; 8] = [
        Answer::Absent,
        Answer::Moved,
        Answer::Unreached { again: false },
        Answer::Unreached { again: true },
        Answer::Full,
        Answer::Coalesced,
        Answer::Accepted(1),
        Answer::Accepted(2),
    ];

    #[test]
    fn the_better_news_counts_and_sessions_add_up() {
        use Answer::{Absent, Accepted, Coalesced, Full, Moved, Unreached};
        assert_eq!(Accepted(1).and(Accepted(2)), Accepted(3));
        assert_eq!(Coalesced.and(Accepted(1)), Accepted(1));
        assert_eq!(
            Full.and(Unreached { again: true }),
            Full,
            "somebody is there, and the worker tries again"
        );
        assert_eq!(Moved.and(Absent), Moved);
        assert_eq!(Unreached { again: false }.and(Moved), Unreached { again: false });
    }

    proptest! {
        #[test]
        fn it_does_not_matter_who_answers_first(a in 0..ALL.len(), b in 0..ALL.len(), c in 0..ALL.len()) {
            let (a, b, c) = (ALL[a], ALL[b], ALL[c]);
            prop_assert_eq!(a.and(b), b.and(a));
            prop_assert_eq!(a.and(b).and(c), a.and(b.and(c)));
        }
    }
}
