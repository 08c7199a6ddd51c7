//! Whose entries in the bucket `presence` are to be written: each user once, whatever happens meanwhile.
//!
//! Level-triggered: it says who, and the registry says what. A user is written again when something changed while a write
//! was under way, so there are never two writes of one user at once. As many users as have sessions here, or had some
//! until now.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use metrics::counter;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};

use super::Presence;
use crate::id::UserId;
use crate::session::Announce;

/// Longest wait for the other nodes to know a new session. After it the session goes on, and is announced later.
const WAIT: Duration = Duration::from_secs(2);

/// Where a user stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Written as soon as there is room.
    Due,
    /// Written when `later` says so.
    Later,
    /// A write is under way, and whether another one must follow.
    Writing { again: bool },
}

#[derive(Debug)]
struct Pending {
    stage: Stage,
    /// Those who wait for the write under way.
    these: Vec<oneshot::Sender<()>>,
    /// Those who wait for the next one.
    next: Vec<oneshot::Sender<()>>,
}

impl Pending {
    fn at(stage: Stage) -> Self {
        Self { stage, these: Vec::new(), next: Vec::new() }
    }
}

#[derive(Debug, Default)]
struct State {
    users: HashMap<UserId, Pending>,
    due: VecDeque<UserId>,
    later: VecDeque<(Instant, UserId)>,
}

impl State {
    fn changed(&mut self, user: &UserId) {
        let Some(pending) = self.users.get_mut(user) else {
            self.users.insert(user.clone(), Pending::at(Stage::Due));
            self.due.push_back(user.clone());
            return;
        };
        match pending.stage {
            Stage::Due => {}
            Stage::Later => {
                pending.stage = Stage::Due;
                self.due.push_back(user.clone());
            }
            Stage::Writing { .. } => pending.stage = Stage::Writing { again: true },
        }
    }

    /// What ends when every change until now is written; `None` when that is so.
    fn written(&mut self, user: &UserId) -> Option<oneshot::Receiver<()>> {
        let pending = self.users.get_mut(user)?;
        let (done, wait) = oneshot::channel();
        match pending.stage {
            Stage::Writing { again: false } => pending.these.push(done),
            _ => pending.next.push(done),
        }
        Some(wait)
    }

    fn begin(&mut self) -> Option<UserId> {
        let user = self.due.pop_front()?;
        let pending = self.users.get_mut(&user).expect("who is due is pending");
        pending.stage = Stage::Writing { again: false };
        pending.these.append(&mut pending.next);
        Some(user)
    }

    fn done(&mut self, user: &UserId) {
        let Some(pending) = self.users.get_mut(user) else { return };
        for waiting in pending.these.drain(..) {
            // It may have given up.
            let _ = waiting.send(());
        }
        if pending.stage == (Stage::Writing { again: true }) {
            pending.stage = Stage::Due;
            self.due.push_back(user.clone());
        } else {
            self.users.remove(user);
        }
    }

    fn failed(&mut self, user: &UserId, retry_at: Instant) {
        let Some(pending) = self.users.get_mut(user) else { return };
        // What must follow is the same as what failed: the user's sessions as they will be then.
        pending.stage = Stage::Later;
        pending.next.append(&mut pending.these);
        self.later.push_back((retry_at, user.clone()));
    }

    fn doubt(&mut self, user: &UserId, now: Instant) {
        if !self.users.contains_key(user) {
            self.users.insert(user.clone(), Pending::at(Stage::Later));
            self.later.push_back((now, user.clone()));
        }
    }

    fn again(&mut self, user: &UserId, now: Instant) {
        match self.users.get_mut(user) {
            Some(pending) if matches!(pending.stage, Stage::Writing { .. }) => {
                pending.stage = Stage::Writing { again: true };
            }
            _ => self.doubt(user, now),
        }
    }

    fn turn(&mut self, now: Instant, most: usize) {
        let mut taken = 0;
        while taken < most
            && let Some((at, _)) = self.later.front()
            && *at <= now
            && let Some((_, user)) = self.later.pop_front()
        {
            // Who changed meanwhile was not left waiting.
            if let Some(pending) = self.users.get_mut(&user).filter(|pending| pending.stage == Stage::Later) {
                pending.stage = Stage::Due;
                self.due.push_back(user);
                taken += 1;
            }
        }
    }
}

/// Shared by the registry, which says who changed, and the task that writes.
#[derive(Debug, Default)]
pub struct Announcements {
    state: Mutex<State>,
    work: Notify,
    /// Goes by the connection to NATS; set when the node takes part.
    presence: OnceLock<Arc<Presence>>,
    /// Unix milliseconds until which no other node forgets the entries of this one for want of a lease.
    held_until_ms: AtomicU64,
}

impl Announcements {
    /// For a registry and a cluster.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The node takes part, and this is what it sees of the others.
    pub(super) fn follow(&self, presence: Arc<Presence>) {
        let _ = self.presence.set(presence);
    }

    /// The lease that was acknowledged last keeps the entries for so long.
    pub(super) fn held_until(&self, unix_ms: u64) {
        self.held_until_ms.store(unix_ms, Ordering::Release);
    }

    /// The next user to be written. The registry is to be read after it.
    pub(super) fn begin(&self) -> Option<UserId> {
        self.state.lock().begin()
    }

    /// The user's write was acknowledged.
    pub(super) fn done(&self, user: &UserId) {
        self.state.lock().done(user);
    }

    /// The user's write failed and is to be repeated at `retry_at`.
    pub(super) fn failed(&self, user: &UserId, retry_at: Instant) {
        self.state.lock().failed(user, retry_at);
    }

    /// The user's entry is not as it should be, unless it is about to be written anyway. In its turn.
    pub(super) fn doubt(&self, user: &UserId) {
        self.state.lock().doubt(user, Instant::now());
    }

    /// The user's entry must be written anew, whatever is under way. In its turn.
    pub(super) fn again(&self, user: &UserId) {
        self.state.lock().again(user, Instant::now());
    }

    /// Makes at most so many due whose time has come.
    pub(super) fn turn(&self, most: usize) {
        self.state.lock().turn(Instant::now(), most);
    }

    /// How many are to be written.
    pub(super) fn pending(&self) -> usize {
        self.state.lock().users.len()
    }

    /// Resolves when [`Announcements::begin`] may have somebody.
    pub(super) async fn work(&self) {
        self.work.notified().await;
    }
}

impl Announce for Announcements {
    fn changed(&self, user: &UserId) {
        self.state.lock().changed(user);
        self.work.notify_one();
    }

    fn held(&self, unix_ms: u64) -> bool {
        // After a gap only a reading tells whether the bucket is the same.
        let current = || self.presence.get().is_some_and(|presence| presence.is_current());
        unix_ms < self.held_until_ms.load(Ordering::Acquire) && current()
    }

    fn announced<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, ()> {
        let written = self.state.lock().written(user);
        // Nothing is written while NATS is away.
        let away = self.presence.get().is_some_and(|presence| !presence.is_connected());
        async move {
            let Some(written) = written else { return };
            if away || timeout(WAIT, written).await.is_err() {
                counter!("fanfare_cluster_announce_timeouts_total").increment(1);
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    #[test]
    fn a_user_is_written_once_for_many_changes_and_again_for_one_during_the_write() {
        let (mut state, ann) = (State::default(), user("ann"));
        state.changed(&ann);
        state.changed(&ann);
        assert_eq!(state.begin(), Some(ann.clone()));
        assert_eq!(state.begin(), None);
        state.changed(&ann);
        state.changed(&ann);
        assert_eq!(state.begin(), None, "never two writes of one user at once");
        state.done(&ann);
        assert_eq!(state.begin(), Some(ann.clone()));
        state.done(&ann);
        assert_eq!(state.begin(), None);
        assert!(state.users.is_empty());
    }

    #[test]
    fn who_waits_waits_for_a_write_that_has_everything_until_then() {
        let (mut state, ann) = (State::default(), user("ann"));
        assert!(state.written(&ann).is_none(), "nothing to wait for");
        state.changed(&ann);
        let mut first = state.written(&ann).unwrap();
        state.begin();
        let mut same = state.written(&ann).unwrap();
        state.changed(&ann);
        let mut second = state.written(&ann).unwrap();
        state.done(&ann);
        assert!(first.try_recv().is_ok() && same.try_recv().is_ok());
        assert!(second.try_recv().is_err(), "its change came during the write");
        state.begin();
        state.done(&ann);
        assert!(second.try_recv().is_ok());
    }

    #[test]
    fn what_failed_comes_again_in_its_time_and_who_waits_goes_on_waiting() {
        let (mut state, ann, now) = (State::default(), user("ann"), Instant::now());
        let later = now + Duration::from_secs(1);
        state.changed(&ann);
        let mut waits = state.written(&ann).unwrap();
        state.begin();
        state.failed(&ann, later);
        state.turn(now, 10);
        assert_eq!(state.begin(), None);
        state.turn(later, 10);
        assert_eq!(state.begin(), Some(ann.clone()));
        assert!(waits.try_recv().is_err());
        state.done(&ann);
        assert!(waits.try_recv().is_ok());

        state.changed(&ann);
        state.begin();
        state.failed(&ann, later);
        state.changed(&ann);
        assert_eq!(state.begin(), Some(ann.clone()), "a change does not wait for the retry");
        state.done(&ann);
        state.turn(later, 10);
        assert_eq!(state.begin(), None, "and the retry has nothing left to do");
    }

    #[test]
    fn doubts_are_paced_and_leave_alone_who_is_written_anyway() {
        let (mut state, now) = (State::default(), Instant::now());
        let users: Vec<_> = (0..10).map(|n| user(&format!("u{n}"))).collect();
        state.changed(&users[0]);
        assert_eq!(state.begin(), Some(users[0].clone()));
        for user in &users {
            state.doubt(user, now);
            state.doubt(user, now);
        }
        state.turn(now, 4);
        assert_eq!(state.due, &users[1..5]);
        state.done(&users[0]);
        assert!(!state.users.contains_key(&users[0]), "the doubt came while it was written");
        state.turn(now, 100);
        assert_eq!(state.due, &users[1..]);
    }

    #[test]
    fn under_a_new_id_even_a_write_under_way_is_followed_by_another() {
        let (mut state, ann, now) = (State::default(), user("ann"), Instant::now());
        state.changed(&ann);
        state.begin();
        state.again(&ann, now);
        state.done(&ann);
        assert_eq!(state.begin(), Some(ann));
    }
}
