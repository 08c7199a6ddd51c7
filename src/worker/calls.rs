//! Calls and synchronisations: effects whose state is in bucket `transient`, so that any worker goes on with
//! it.
//!
//! A ring is noted before it is sent, and after it was sent the state is read again: whoever answers in between finds
//! it noted, or is found. What ends a ring may be sent twice, never not at all.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::effects::EffectError;
use super::hand::Place;
use super::handler::{End, Handler};
use crate::catalog::{Kind, Offline, Role};
use crate::clock::Now;
use crate::delivery::call::{Answer, Call, Ring, Timeout};
use crate::delivery::sync_guard::Recent;
use crate::delivery::{HandOff, Keep, Ledger, Outcome, offline};
use crate::directory::{Change, Key, LookupError, Members};
use crate::id::UserId;
use crate::nats::{Message, Schedule, Update};
use crate::pipeline::effects::{Invite, SyncRequest};
use crate::pipeline::{self, Plan};
use crate::protocol::Notification;

/// Requests to synchronise are remembered longer than a loop needs, for ids that come again.
const SYNC_TTL: Duration = Duration::from_mins(10);

/// Members of a call that are written at once: 500 people are registered in eight round trips and not in a thousand.
const REGISTERED_AT_ONCE: usize = 64;

/// Kind of the schedules that end invitations.
pub(super) const CALL: &str = "call";

/// The event that tells of the end of a call.
const CALL_STATUS: &str = "livekit.call_status";

/// Seconds an invitation waits for an answer: what the specification says.
pub(super) const TIMEOUT_S: u64 = 30;

impl Handler {
    /// Registers the call's people and its time limit. Gives what the invitation still comes to for whom it is for.
    pub(super) async fn invite(&self, invite: &Invite, plan: &Plan) -> Result<Call, EffectError> {
        let at_ms = plan.note.published_at_ms;
        let call = self.call(&invite.call, |call| call.invite(invite, at_ms)).await?;
        let user = UserId::new(&plan.audience.id).ok();
        let Some(of) = Key::new(Kind::Call, &invite.call) else { return Ok(call) };
        let known = match self.directory.members(&of).await {
            Ok(members) => members,
            Err(LookupError::Unknown(_)) => Arc::default(),
            Err(error) => return Err(error.into()),
        };
        // By the time of the first invitation: who left since then is not brought back by another one's.
        let new = call.participants().filter(|(user, _)| known.role(user).is_none());
        let writes: Vec<_> =
            new.map(|(user, at_ms)| self.member(&of, user, Some(Role::Member), at_ms * 1_000)).collect();
        stream::iter(writes).buffer_unordered(REGISTERED_AT_ONCE).try_collect::<Vec<()>>().await?;
        let invited = user.as_ref().and_then(|user| call.invited_ms(user));
        let due = (invited.unwrap_or(at_ms)).div_ceil(1_000) + self.limits.call_timeout.as_secs();
        let body = serde_json::json!({
            "type": CALL_STATUS,
            "timestamp": due,
            "payload": {
                "call_id": invite.call, "status": "ended", "reason": "invite_timeout", "timestamp": due,
            },
        });
        let schedule = Schedule {
            kind: CALL,
            id: &format!("{}-timeout-{due}", invite.call),
            at: due,
            subject: &format!("notification.{CALL_STATUS}.{}", invite.call),
            body: body.to_string().into(),
        };
        schedule.write(&self.context).await?;
        // As it is now: it may have ended while members were written, and who was none yet was not told.
        Ok(self.state(&call_key(&invite.call)).await?.unwrap_or(call))
    }

    /// Notes an answer, and ends the ring of whoever gave it.
    pub(super) async fn answer(&self, id: &str, user: &UserId, joined: bool) -> Result<(), EffectError> {
        let answer = if joined { Answer::Joined } else { Answer::Rejected };
        let call = self.call(id, |call| call.answer(user, answer)).await?;
        let ring = call.ring_of(user).map(|ring| (user.clone(), ring.clone()));
        let ring = ring.into_iter().collect();
        self.end_rings(id, ring, if joined { "answered" } else { "rejected" }).await
    }

    /// Notes that the call is over.
    pub(super) async fn end_call(&self, id: &str, by: &Arc<str>, at_ms: u64) -> Result<(), EffectError> {
        self.call(id, |call| call.end(by, at_ms)).await.map(|_| ())
    }

    /// Ends the rings of those who never answered.
    pub(super) async fn end_open_rings(&self, id: &str, reason: &str) -> Result<(), EffectError> {
        let call: Option<Call> = self.state(&call_key(id)).await?;
        let rings = call.map(|call| call.open_rings()).unwrap_or_default();
        self.end_rings(id, rings, reason).await
    }

    async fn end_rings(
        &self,
        id: &str,
        rings: Vec<(UserId, Arc<str>)>,
        reason: &str,
    ) -> Result<(), EffectError> {
        for (user, ring) in rings {
            offline::end_of_ring(id, &ring, &user, reason, Now::read().unix_ms).write(&self.context).await?;
        }
        Ok(())
    }

    /// Decides who is rung: changes `kept` for those who have answered or are too late. Gives those who are.
    pub(super) async fn rings(
        &self,
        note: &Notification,
        hand_off: &[HandOff],
        kept: &mut [Keep],
    ) -> Result<Vec<UserId>, EffectError> {
        let mut rung = Vec::new();
        let expired = note.expires_at_ms <= Now::read().unix_ms;
        for (one, keep) in hand_off.iter().zip(kept) {
            if keep.offline != Some(Offline::Ring) {
                continue;
            }
            let user = &one.recipient.user;
            let decided = match call_id(note) {
                Some(id) => {
                    self.update(&call_key(id), Call::kept, |call: &mut Call| {
                        call.ring(user, &note.id, expired)
                    })
                    .await?
                }
                None if expired => Ring::Missed,
                None => continue,
            };
            match decided {
                Ring::Ring => rung.push(user.clone()),
                Ring::Missed => keep.offline = Some(Offline::Alert),
                // An answer is more than an ack.
                Ring::Answered => *keep = Keep { offline: None, inbox: false, outcome: Outcome::Acked },
            }
        }
        Ok(rung)
    }

    /// Ends the rings at once of those who answered while they were sent.
    pub(super) async fn rang(&self, note: &Notification, rung: &[UserId]) -> Result<(), EffectError> {
        let Some(id) = call_id(note).filter(|_| !rung.is_empty()) else { return Ok(()) };
        let call: Call = self.state(&call_key(id)).await?.unwrap_or_default();
        let settled = rung.iter().filter(|user| call.standing(user) != Ring::Ring);
        let rings = settled.map(|user| (user.clone(), note.id.clone())).collect();
        // A reason of its own: the answer itself may have ended the ring before it was sent, and a second word with the
        // same id would be dropped as a duplicate.
        self.end_rings(id, rings, "settled").await
    }

    /// The time limit of a call's invitations: over for everybody, for some, or nothing.
    pub(super) async fn call_timeout(&self, message: &Message, plan: Plan, place: &Place) -> End {
        match self.try_call_timeout(message, plan, place).await {
            Ok(end) => end,
            Err(error) => End::Unwritten(Box::new(error)),
        }
    }

    async fn try_call_timeout(
        &self,
        message: &Message,
        plan: Plan,
        place: &Place,
    ) -> Result<End, EffectError> {
        let id = plan.audience.id.clone();
        let (by, v) = (plan.note.id.clone(), plan.v);
        // All times are JetStream's.
        let waited_ms = self.limits.call_timeout.as_millis() as u64;
        let stored_ms = message.origin.stored_at_ms();
        let until_ms = stored_ms.saturating_sub(waited_ms);
        let decide = |call: &mut Call| {
            let timeout = call.timeout(&by, until_ms);
            if timeout == Timeout::Ended {
                call.end(&by, stored_ms);
            }
            timeout
        };
        let end = match self.update(&call_key(&id), Call::kept, decide).await? {
            Timeout::Nothing => End::Settled(Ledger::empty()),
            Timeout::Ended => {
                let end = self.deliver(plan, place).await;
                if matches!(end, End::Settled(_)) {
                    self.end_open_rings(&id, "timeout").await?;
                    if let Some(of) = Key::new(Kind::Call, &id) {
                        self.change(&of, Change::Gone { v }).await?;
                    }
                }
                end
            }
            Timeout::Unanswered(users) => self.unanswered(&id, plan, &users).await?,
        };
        Ok(end)
    }

    /// Tells those who did not answer, on their own devices only, and ends their rings.
    async fn unanswered(&self, id: &str, plan: Plan, users: &[UserId]) -> Result<End, EffectError> {
        let mut late = Members::default();
        for user in users {
            late.apply(Change::Member { user: user.clone(), role: Some(Role::Member), v: 1 });
        }
        let fanout = pipeline::resolve(plan, Some(Arc::new(late)));
        let ledger = self.run(fanout, Now::read()).all(self).await?;
        let call =
            self.call(id, |call| users.iter().for_each(|user| call.answer(user, Answer::TimedOut))).await?;
        let rings =
            users.iter().filter_map(|user| Some((user.clone(), call.ring_of(user)?.clone()))).collect();
        self.end_rings(id, rings, "timeout").await?;
        Ok(End::Settled(ledger))
    }

    /// False when the request closes a loop. Otherwise it is remembered for every device that is about to get it.
    pub(super) async fn guard(
        &self,
        request: &SyncRequest,
        plan: &Plan,
        seq: u64,
    ) -> Result<bool, EffectError> {
        let at_ms = plan.note.published_at_ms;
        let mut to = self.sessions.devices(&request.user);
        to.extend(self.nodes.devices(&request.user).await?);
        to.retain(|device| plan.devices.includes(device));
        let key = format!("sync.{}", request.user);
        self.update(&key, |_| SYNC_TTL, |recent: &mut Recent| recent.pass(request, &to, at_ms, seq)).await
    }

    /// Changes a call, and gives it as it is then.
    async fn call(&self, id: &str, change: impl Fn(&mut Call)) -> Result<Call, EffectError> {
        self.update(&call_key(id), Call::kept, |call: &mut Call| {
            change(call);
            call.clone()
        })
        .await
    }

    /// A state with every change that was acknowledged so far: an answer that a replica has not heard of yet would
    /// leave a phone ringing.
    async fn state<S: DeserializeOwned>(&self, key: &str) -> Result<Option<S>, EffectError> {
        Ok(read(self.transient.latest(key).await?.as_ref()))
    }

    /// Changes a state, which is written only if it became another one, and is kept for `ttl` from then on.
    async fn update<S, T>(
        &self,
        key: &str,
        ttl: impl Fn(&S) -> Duration,
        change: impl Fn(&mut S) -> T,
    ) -> Result<T, EffectError>
    where
        S: Serialize + DeserializeOwned + Default + Clone + PartialEq,
    {
        let update = |known: Option<&Bytes>| {
            let old: S = read(known).unwrap_or_default();
            let mut new = old.clone();
            let result = change(&mut new);
            if new == old {
                return Update::Keep(result);
            }
            let value = serde_json::to_vec(&new).expect("ids and numbers are JSON");
            Update::Put { value, ttl: Some(ttl(&new)), then: result }
        };
        Ok(self.transient.update(key, update).await?)
    }
}

/// A state that cannot be read counts as none: it is gone within a day anyway.
fn read<S: DeserializeOwned>(value: Option<&Bytes>) -> Option<S> {
    value.and_then(|value| serde_json::from_slice(value).ok())
}

fn call_key(id: &str) -> String {
    format!("call.{id}")
}

fn call_id(note: &Notification) -> Option<&str> {
    let id = note.payload.get("call_id").and_then(serde_json::Value::as_str);
    id.filter(|id| crate::id::is_valid(id))
}
