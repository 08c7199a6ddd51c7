//! Carries out what events do besides being delivered: before the fan-out, so that it sees them, or after it.
//!
//! Effects come before everything else about a message, even before its expiry: a member who left two hours ago has
//! left. Each is a write that the highest version wins, so a redelivery or another order changes nothing.

use std::time::Duration;

use metrics::counter;

use super::hand::Place;
use super::handler::{End, Handler};
use crate::catalog::{Kind, Role};
use crate::clock::Now;
use crate::control::{Ban, Notice};
use crate::delivery::call::Ring;
use crate::delivery::{Ledger, Outcome};
use crate::directory::{self, Change, ChangeError, Key, LookupError};
use crate::id::UserId;
use crate::nats::{KvError, Message};
use crate::pipeline::{Plan, Todo, Unread};
use crate::session::Devices;

/// Why an effect could not be carried out. The message comes again.
#[derive(Debug, thiserror::Error)]
pub(super) enum EffectError {
    /// The bucket `control` or `transient`.
    #[error(transparent)]
    Key(#[from] KvError),
    /// The bucket `audience`.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// A stream.
    #[error(transparent)]
    Write(#[from] crate::nats::WriteError),
    /// The members could not be read.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// Sessions on other nodes.
    #[error(transparent)]
    Nodes(#[from] Unread),
}

/// Whether the notification is still to be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Go {
    On,
    Nowhere,
    /// Not live any more, as if its time were over.
    TooLate,
    /// Everybody was told before; only what comes after the fan-out is left.
    Told,
}

impl Handler {
    /// Does what the plan's effects ask for, and delivers the notification in between.
    pub(super) async fn with_effects(&self, message: &Message, mut plan: Plan, place: &Place) -> End {
        let todos = std::mem::take(&mut plan.effects);
        let mut told = false;
        for todo in &todos {
            match self.before(todo, &plan, message).await {
                Ok(Go::On) => {}
                Ok(Go::TooLate) => {
                    plan.note.expires_at_ms = plan.note.expires_at_ms.min(Now::read().unix_ms);
                }
                Ok(Go::Told) => told = true,
                Ok(Go::Nowhere) => return self.unaddressed(&plan, Outcome::Excluded),
                Err(error) => return End::Unwritten(Box::new(error)),
            }
            counter!("fanfare_worker_effects_total", "event" => plan.note.event.name.clone()).increment(1);
        }
        let v = plan.v;
        let end = if told { End::Settled(Ledger::empty()) } else { self.deliver(plan, place).await };
        if !matches!(end, End::Settled(_)) {
            return end;
        }
        for todo in &todos {
            if let Err(error) = self.after(todo, v, place).await {
                return End::Unwritten(Box::new(error));
            }
        }
        end
    }

    async fn before(&self, todo: &Todo, plan: &Plan, message: &Message) -> Result<Go, EffectError> {
        let now_ms = Now::read().unix_ms;
        let again = message.origin.deliveries > 1;
        match todo {
            Todo::Ban(user, until_ms) => {
                let notification_id = Some(plan.note.id.clone());
                let ban = Ban { notification_id, ..Ban::until(plan.v, *until_ms) };
                self.control.ban(user, &ban, now_ms).await?;
            }
            Todo::Revoke(user, devices) => self.revoke(user, devices, plan, now_ms).await?,
            Todo::Member(of, user, role) => self.member(of, user, *role, plan.v).await?,
            Todo::Conversation(of, users) => self.conversation(of, users, plan.v).await?,
            Todo::Notice(id, until_ms) => {
                self.control.notice(id, &Notice::new(&plan.note, plan.v, *until_ms), now_ms).await?;
            }
            Todo::LoopGuard(request) => {
                if !self.guard(request, plan, message.origin.seq).await? {
                    return Ok(Go::Nowhere);
                }
            }
            Todo::Invite(invite) => {
                let call = self.invite(invite, plan).await?;
                let user = UserId::new(&plan.audience.id).ok();
                let standing = user.map_or(Ring::Ring, |user| call.standing(&user));
                // One that comes again may be older than its answer. A first one is a new invitation, also of somebody
                // who said no before; but there is none to a call that has ended.
                match standing {
                    Ring::Answered if again => return Ok(Go::Nowhere),
                    Ring::Missed if again || call.has_ended() => return Ok(Go::TooLate),
                    _ if call.is_later_than(plan.note.published_at_ms) => return Ok(Go::TooLate),
                    Ring::Ring | Ring::Answered | Ring::Missed => {}
                }
            }
            Todo::Answer(call, user, joined) => self.answer(call, user, *joined).await?,
            Todo::EndCall(call) => self.end_call(call, &plan.note.id, plan.note.published_at_ms).await?,
            // The end is written after the fan-out. Whoever joined since then is not told of it.
            Todo::Hide(of) if again && self.audience.is_gone(of, plan.v).await? => return Ok(Go::Told),
            Todo::Hide(_) => {}
        }
        Ok(Go::On)
    }

    async fn after(&self, todo: &Todo, v: u64, place: &Place) -> Result<(), EffectError> {
        match todo {
            Todo::Hide(of) => {
                self.change(of, Change::Gone { v }).await?;
                if directory::Writer::vanishes(of) { Ok(()) } else { self.sweep(of, place).await }
            }
            Todo::EndCall(call) => self.end_open_rings(call, "ended").await,
            _ => Ok(()),
        }
    }

    /// Removes the keys of those who are hidden. The message is in hand until that is done, so after a crash it comes
    /// again: then nobody is told, and the rest is removed.
    async fn sweep(&self, of: &Key, place: &Place) -> Result<(), EffectError> {
        let aside = place.step_aside();
        let _permit = self.sweeps.acquire().await.ok();
        drop(aside);
        let swept = self.audience.sweep(of).await?;
        counter!("fanfare_worker_swept_members_total").increment(swept);
        Ok(())
    }

    async fn revoke(
        &self,
        user: &UserId,
        devices: &Devices,
        plan: &Plan,
        now_ms: u64,
    ) -> Result<(), EffectError> {
        let at_ms = plan.note.published_at_ms;
        Ok(self.control.revoke(user, devices, at_ms, &plan.note.id, (self.limits.token_life, now_ms)).await?)
    }

    pub(super) async fn member(
        &self,
        of: &Key,
        user: &UserId,
        role: Option<Role>,
        v: u64,
    ) -> Result<(), EffectError> {
        self.change(of, Change::Member { user: user.clone(), role, v }).await
    }

    /// Registers both users once: whoever is registered is remembered, and found in the cache after that.
    async fn conversation(&self, of: &Key, users: &[UserId; 2], v: u64) -> Result<(), EffectError> {
        debug_assert_eq!(of.kind, Kind::Conversation);
        // A message to one person must not wait for the service that owns the conversations.
        if self.directory.is_asked(of.kind) {
            return Ok(());
        }
        let known = match self.directory.members(of).await {
            Ok(members) => users.iter().filter(|user| members.role(user).is_some()).count(),
            Err(LookupError::Unknown(_)) => 0,
            Err(error) => return Err(error.into()),
        };
        if known < users.len() {
            for user in users {
                self.member(of, user, Some(Role::Member), v).await?;
            }
        }
        self.known.registered(of, users);
        Ok(())
    }

    /// Writes a change of an audience, and has it in this node's cache when it returns.
    pub(super) async fn change(&self, of: &Key, change: Change) -> Result<(), EffectError> {
        self.audience.write(of, &change).await?;
        self.directory.note(of.clone(), change).await;
        Ok(())
    }
}

/// Time a token lives at most where the configuration says nothing: a day.
pub(super) const TOKEN_LIFE: Duration = Duration::from_hours(24);

/// Describes the metrics of this part.
pub(super) fn describe() {
    metrics::describe_counter!("fanfare_worker_effects_total", "effects carried out, by event");
    metrics::describe_counter!(
        "fanfare_worker_swept_members_total",
        "members of sets that are gone, removed"
    );
}
