//! The sessions of this node by user, and the one call that offers a notification to them.
//!
//! Sharded so that fan-outs and connects do not wait for each other; a push locks one shard for reading and each session
//! it reaches, for as long as it takes to hand the frame to the transport. Nothing here awaits.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, gauge};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use tokio::sync::mpsc;

use super::shaper::{self, HELD_MAX, Shaper};
use super::{Announce, Core, Offer, Receipts, Recipient, Session, Undelivered};
use crate::catalog::Inbox;
use crate::clock::Now;
use crate::id::{DeviceId, UserId};
use crate::protocol::{CloseCode, Notification};
use crate::turn::Turn;

/// Power of two well above the number of cores, so that two tasks seldom meet.
const SHARDS: usize = 64;

/// What became of a push to one user on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// So many sessions took it.
    Accepted(usize),
    /// The user has sessions that are meant, and shaping shows them another one in its place.
    Coalesced,
    /// The user has sessions that are meant, and every one of them is full.
    Full,
    /// The user has no session here that is meant.
    Absent,
}

/// Most users have one session, which is found without looking elsewhere.
type Users = HashMap<UserId, SmallVec<[Arc<Session>; 1]>>;

/// All sessions of this node. Shared by every task.
#[derive(Debug)]
pub struct Registry {
    shards: Vec<RwLock<Users>>,
    hasher: RandomState,
    next_id: AtomicU64,
    sessions: AtomicUsize,
    per_user_max: usize,
    shaper: Shaper,
    announce: Option<Arc<dyn Announce>>,
    undelivered: mpsc::Sender<Vec<Undelivered>>,
    left: Mutex<Option<mpsc::Receiver<Vec<Undelivered>>>>,
}

/// Ended sessions whose notifications wait for another delivery. A node that loses all its sessions at once has more;
/// what finds no room is lost, and counted.
const ENDED_MAX: usize = 131_072;

impl Default for Registry {
    fn default() -> Self {
        Self::new(16)
    }
}

impl Registry {
    /// An empty registry. A user has at most `per_user_max` sessions: a newer one ends the oldest.
    pub fn new(per_user_max: usize) -> Self {
        describe_gauge!("fanfare_session_open", "sessions open on this node");
        describe_counter!(
            "fanfare_session_unacked_at_end_total",
            "frames that a client had not acked when its session ended; it may have them or not"
        );
        describe_counter!(
            "fanfare_session_rotated_total",
            "sessions that were asked to make room for a fresh one, by reason"
        );
        describe_counter!(
            "fanfare_session_dropped_total",
            "notifications given up by a session after it took them, by reason"
        );
        let (undelivered, left) = mpsc::channel(ENDED_MAX);
        Self {
            undelivered,
            left: Mutex::new(Some(left)),
            shards: std::iter::repeat_with(RwLock::default).take(SHARDS).collect(),
            hasher: RandomState::new(),
            next_id: AtomicU64::new(1),
            sessions: AtomicUsize::new(0),
            per_user_max,
            shaper: Shaper::default(),
            announce: None,
        }
    }

    /// Tells `announce` of every change of a user's sessions, so that other nodes get to know. Without it there are
    /// no other nodes.
    #[must_use]
    pub fn announcing(self, announce: Arc<dyn Announce>) -> Self {
        Self { announce: Some(announce), ..self }
    }

    /// Resolves when the other nodes can know the sessions that `user` has here now, or after a short while.
    pub async fn announced(&self, user: &UserId) {
        if let Some(announce) = &self.announce {
            announce.announced(user).await;
        }
    }

    /// Registers a session. An older one of the same device is closed as replaced, and the user's oldest one when
    /// there are too many.
    pub fn register(&self, user: UserId, device: DeviceId, platform: String, core: Core) -> Arc<Session> {
        let (id, now) = (self.next_id.fetch_add(1, Ordering::Relaxed), Now::read());
        let session = Arc::new(Session::new(id, (user, device, platform), core, now));
        let mut ended = Vec::new();
        {
            let mut users = self.shard(&session.user).write();
            let sessions = users.entry(session.user.clone()).or_default();
            if let Some(at) = sessions.iter().position(|known| known.device == session.device) {
                ended.push((sessions.remove(at), CloseCode::Replaced, "the same device connected again"));
            }
            if sessions.len() >= self.per_user_max {
                ended.push((
                    sessions.remove(0),
                    CloseCode::TooManySessions,
                    "a newer session took the place",
                ));
            }
            sessions.push(session.clone());
            if self.announce.is_none() {
                session.known.found_from(Now::read().unix_ms);
            }
        }
        self.count(1 - ended.len() as isize);
        self.changed(&session.user);
        for (old, code, reason) in ended {
            self.close(&old, code, reason, 0);
        }
        session
    }

    /// Takes `session` out, if it is still in.
    pub fn unregister(&self, session: &Arc<Session>) {
        self.remove(session);
        session.detach();
        // Nobody offers it anything from here on, so this is all.
        self.deliver_elsewhere(session.own_core(Core::take_undelivered));
    }

    /// Takes `session` out and closes it; a client that reconnects waits for `retry_after_ms`. What it held is delivered
    /// elsewhere.
    pub fn end(&self, session: &Arc<Session>, code: CloseCode, reason: &'static str, retry_after_ms: u64) {
        self.remove(session);
        self.close(session, code, reason, retry_after_ms);
    }

    fn remove(&self, session: &Arc<Session>) {
        let removed = {
            let mut users = self.shard(&session.user).write();
            let Some(sessions) = users.get_mut(&session.user) else { return };
            let before = sessions.len();
            sessions.retain(|known| known.id != session.id);
            let removed = before - sessions.len();
            if sessions.is_empty() {
                users.remove(&session.user);
            }
            removed
        };
        if removed > 0 {
            self.count(-(removed as isize));
            self.changed(&session.user);
        }
    }

    fn close(&self, session: &Session, code: CloseCode, reason: &'static str, retry_after_ms: u64) {
        let held = session.with_core(|core| {
            core.close(code, reason, retry_after_ms);
            core.take_undelivered()
        });
        self.deliver_elsewhere(held);
    }

    fn changed(&self, user: &UserId) {
        if let Some(announce) = &self.announce {
            announce.changed(user);
        }
    }

    /// What ended sessions held, a batch for each session. For the one who delivers it again; `None` after the first
    /// call.
    pub fn undelivered(&self) -> Option<mpsc::Receiver<Vec<Undelivered>>> {
        self.left.lock().take()
    }

    /// Hands over what a session took and will not deliver. Never waits.
    pub fn deliver_elsewhere(&self, held: Vec<Undelivered>) {
        if held.is_empty() {
            return;
        }
        if let Err(error) = self.undelivered.try_send(held) {
            let lost = error.into_inner().len() as u64;
            counter!("fanfare_session_dropped_total", "reason" => "not_rerouted").increment(lost);
        }
    }

    /// Offers `note` to the sessions of one recipient, shaped as its row says. With `receipts`, each session that takes
    /// it reports once: acked by its client, or lost.
    pub fn push(
        &self,
        note: &Arc<Notification>,
        recipient: &Recipient,
        receipts: Option<&Receipts>,
        now: Now,
    ) -> Push {
        let Some(shape) = &note.event.shape else { return self.push_now(note, recipient, receipts, now) };
        let present = || self.serves(recipient);
        self.shaper.offer(shape, note, recipient, now, present, |note, recipient, its_own| {
            self.push_now(note, recipient, receipts.filter(|_| its_own), now)
        })
    }

    /// Sends what shaping held back until now, and gives way in between when it is much. The edge calls it every
    /// [`super::TICK`].
    pub async fn turn(&self) {
        self.turn_at(Now::read).await;
    }

    async fn turn_at(&self, now: impl Fn() -> Now) {
        let mut turn = Turn::default();
        for part in 0..shaper::PARTS {
            // Read anew, since others may have had their turn.
            turn.spend(self.turn_part(part, now()));
            turn.give_way().await;
        }
        self.shaper.report();
    }

    /// Gives how many were sent.
    fn turn_part(&self, part: usize, now: Now) -> u64 {
        self.shaper.turn(part, now, |note, recipient| {
            let answer = self.push_now(note, recipient, None, now);
            // The sessions that it was held back for have ended since.
            if answer == Push::Absent && note.policy.inbox != Inbox::Always {
                self.deliver_elsewhere(vec![Undelivered {
                    note: note.clone(),
                    recipient: recipient.clone(),
                }]);
            }
            answer
        })
    }

    /// Sends everything that shaping holds back, whatever its time: when no session is left and none will come, so
    /// that it is delivered elsewhere.
    pub async fn turn_to_the_end(&self) {
        let end = |now: Now| Now { instant: now.instant + HELD_MAX, ..now };
        self.turn_at(|| end(Now::read())).await;
    }

    fn push_now(
        &self,
        note: &Arc<Notification>,
        recipient: &Recipient,
        receipts: Option<&Receipts>,
        now: Now,
    ) -> Push {
        let users = self.shard(&recipient.user).read();
        let Some(sessions) = users.get(&recipient.user) else { return Push::Absent };
        let meant = sessions.iter().filter(|session| recipient.devices.includes(&session.device));
        offer_all(meant, note, Some(recipient), receipts, now)
    }

    /// True when the user has a session here that is meant, and that is not about to end.
    fn serves(&self, recipient: &Recipient) -> bool {
        let users = self.shard(&recipient.user).read();
        let mut sessions = users.get(&recipient.user).into_iter().flatten();
        sessions.any(|session| {
            recipient.devices.includes(&session.device) && session.own_core(|core| core.closing()).is_none()
        })
    }

    /// Offers `note` to every session of the node.
    pub fn broadcast(&self, note: &Arc<Notification>) {
        let mut part = 0;
        while self.broadcast_part(part, note).is_some() {
            part += 1;
        }
    }

    /// Offers `note` to the sessions of one part of the node's users; gives how many of these took it and how many were
    /// full. `None` when there is no such part: they are numbered from 0.
    pub fn broadcast_part(&self, part: usize, note: &Arc<Notification>) -> Option<(usize, usize)> {
        let shard = self.shards.get(part)?;
        let (mut accepted, mut full) = (0, 0);
        let now = Now::read();
        for sessions in shard.read().values() {
            match offer_all(sessions.iter(), note, None, None, now) {
                Push::Accepted(_) => accepted += 1,
                Push::Full => full += 1,
                Push::Absent | Push::Coalesced => {}
            }
        }
        Some((accepted, full))
    }

    /// A record for `user` is in the inbox at `sequence`: the user's sessions read it, but for those that every node knew
    /// when it was offered to all, at `offered_at_ms`.
    pub fn inbox_record(&self, user: &str, sequence: u64, offered_at_ms: Option<u64>) {
        let held = |at_ms: &u64| self.announce.as_ref().is_none_or(|announce| announce.held(*at_ms));
        let offered_at_ms = offered_at_ms.filter(held);
        let shard = &self.shards[self.hasher.hash_one(user) as usize % SHARDS];
        for session in shard.read().get(user).into_iter().flatten() {
            // In the same millisecond either may have been first.
            let offered_at_ms = offered_at_ms.filter(|at_ms| session.known.found_from_ms() < *at_ms);
            session.with_core(|core| core.inbox_record(sequence, offered_at_ms));
        }
    }

    /// Sessions open on this node.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// The sessions of `user` on this node.
    pub fn of_user(&self, user: &UserId) -> Vec<Arc<Session>> {
        self.shard(user).read().get(user).map_or_else(Vec::new, |sessions| sessions.to_vec())
    }

    /// Calls `act` with every session of this node. Connects to a shard wait meanwhile, so `act` must be short.
    pub fn each(&self, mut act: impl FnMut(&Arc<Session>)) {
        for shard in &self.shards {
            shard.read().values().flatten().for_each(&mut act);
        }
    }

    /// Asks every session to connect anew elsewhere. `reconnect_after` is drawn for each one.
    pub fn goaway(&self, code: CloseCode, mut reconnect_after: impl FnMut() -> Duration, grace: Duration) {
        let now = Now::read();
        for shard in &self.shards {
            for session in shard.read().values().flatten() {
                let after = reconnect_after();
                session.with_core(|core| core.goaway(code, after, after + grace, now));
            }
        }
    }

    fn shard(&self, user: &UserId) -> &RwLock<Users> {
        &self.shards[self.hasher.hash_one(user) as usize % SHARDS]
    }

    fn count(&self, change: isize) {
        self.sessions.fetch_add(change as usize, Ordering::Relaxed);
        gauge!("fanfare_session_open").increment(change as f64);
    }
}

fn offer_all<'a>(
    sessions: impl Iterator<Item = &'a Arc<Session>>,
    note: &Arc<Notification>,
    recipient: Option<&Recipient>,
    receipts: Option<&Receipts>,
    now: Now,
) -> Push {
    let (mut accepted, mut full) = (0, false);
    for session in sessions {
        let offer = match recipient {
            Some(recipient) => session.offer(note, recipient, receipts, now),
            None => session.offer(note, &Recipient::online(session.user.clone()), receipts, now),
        };
        match offer {
            Offer::Accepted => accepted += 1,
            Offer::Full => full = true,
            Offer::Gone => {}
        }
    }
    match (accepted, full) {
        (0, false) => Push::Absent,
        (0, true) => Push::Full,
        (accepted, _) => Push::Accepted(accepted),
    }
}
