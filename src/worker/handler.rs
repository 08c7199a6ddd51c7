//! Handles one message: the part that never waits, and what is left for later.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use metrics::counter;
use tokio::sync::Semaphore;

use super::calls;
use super::fanout::{self, Run};
use super::hand::{Hand, Place};
use super::known::Known;
use super::suspects::Suspects;
use crate::catalog::{Catalog, Effect, Inbox, Kind, Lane, Offline};
use crate::clock::Now;
use crate::control;
use crate::delivery::inbox::Pacer;
use crate::delivery::{Ended, Ledger, Missed, Outcome, Recorder, Totals};
use crate::directory::{self, Directory, Key, LookupError, Members};
use crate::id::UserId;
use crate::nats::{Bucket, Message, Schedule, schedule};
use crate::pipeline::{self, Fanout, Nodes, Plan, Reason, Refusal, Sessions};

/// Fan-outs to more than one batch that run at once on this node; more would delay everything else.
const BULK: usize = 2;

/// Sets that are gone whose members are removed at once on this node, 1,000 of them a second each.
const SWEEPS: usize = 4;

/// How handling a message ended.
pub(super) enum End {
    /// Every recipient has an outcome.
    Settled(Ledger),
    /// It goes to the dead letters.
    Refused(Refusal),
    /// Something could not be read or written; it must come again.
    Unwritten(Box<dyn std::error::Error + Send + Sync>),
    /// The process stops; somebody else takes it.
    GivenBack,
}

/// What the part that never waits came to.
pub(super) enum First {
    /// It is done.
    End(End),
    /// There is something to wait for.
    Later(Box<Later>),
}

impl First {
    /// To how many users it was routed, or would have been.
    pub(super) fn users(&self) -> u64 {
        match self {
            Self::End(End::Settled(ledger)) => ledger.recipients(),
            Self::Later(later) => match &**later {
                Later::Rest(run) => run.ledger.recipients(),
                _ => 0,
            },
            Self::End(_) => 0,
        }
    }
}

/// What there is to wait for.
pub(super) enum Later {
    /// The members of the set, and then everything else.
    Members(Plan),
    /// What is left of a batch that was routed.
    Rest(Run),
    /// Keeping it until it is due: Unix seconds, and the id it has.
    Schedule {
        /// Unix seconds.
        at: u64,
        /// The notification's id.
        id: Arc<str>,
    },
    /// Effects, and the delivery between them.
    Effects(Plan),
    /// The time limit of a call's invitations.
    CallTimeout(Plan),
    /// Telling everybody, which takes too long to do it between two messages.
    Broadcast(Plan),
}

/// The key-value buckets that effects write.
pub(super) struct Buckets {
    pub(super) audience: directory::Writer,
    pub(super) control: control::Writer,
    pub(super) transient: Bucket,
}

/// Times of effects.
pub(super) struct Limits {
    /// How long a token lives at most.
    pub(super) token_life: Duration,
    /// How long an invitation to a call waits for an answer.
    pub(super) call_timeout: Duration,
}

/// What handling needs. One a process, shared by all workers.
pub(super) struct Handler {
    pub(super) context: Context,
    catalog: Arc<Catalog>,
    pub(super) sessions: Arc<dyn Sessions>,
    pub(super) nodes: Arc<dyn Nodes>,
    pub(super) directory: Arc<Directory>,
    pub(super) audience: directory::Writer,
    pub(super) control: control::Writer,
    pub(super) transient: Bucket,
    pub(super) limits: Limits,
    pub(super) known: Known,
    pub(super) pacer: Pacer,
    bulk: Semaphore,
    pub(super) sweeps: Semaphore,
    suspects: Suspects,
    totals: Arc<Totals>,
    pub(super) evidence: Recorder,
}

impl Handler {
    pub(super) fn new(
        context: Context,
        catalog: Arc<Catalog>,
        (sessions, nodes): (Arc<dyn Sessions>, Arc<dyn Nodes>),
        directory: Arc<Directory>,
        buckets: Buckets,
        limits: Limits,
        evidence: Recorder,
    ) -> Self {
        Self {
            context,
            catalog,
            sessions,
            nodes,
            directory,
            audience: buckets.audience,
            control: buckets.control,
            transient: buckets.transient,
            limits,
            known: Known::default(),
            pacer: Pacer::default(),
            bulk: Semaphore::new(BULK),
            sweeps: Semaphore::new(SWEEPS),
            suspects: Suspects::default(),
            totals: Arc::default(),
            evidence,
        }
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    pub(super) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Who is suspected of taking the process down.
    pub(super) fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    pub(super) fn totals(&self) -> &Arc<Totals> {
        &self.totals
    }

    /// Counts the outcomes of a message of which JetStream has had its last word, and has recorded what is worth it.
    pub(super) fn commit(&self, ledger: Ledger) {
        self.evidence.take(ledger.commit(&self.totals));
    }

    /// A run for everybody of `fanout`, from now on.
    pub(super) fn run(&self, fanout: Fanout, now: Now) -> Run {
        let scope = self.evidence.scope(&fanout.note.id);
        Run::new(fanout, now, scope, self.totals.clone())
    }

    /// A message that ended in `outcome` before anybody looked up who it was for, so it counts once.
    pub(super) fn unaddressed(&self, plan: &Plan, outcome: Outcome) -> End {
        let user = (plan.audience.kind == Kind::User).then(|| UserId::new(&plan.audience.id).ok()).flatten();
        let mut ledger = Ledger::new(1, self.evidence.scope(&plan.note.id));
        ledger.settle(&plan.note, user.as_ref(), Ended { outcome, missed: None, tries: 0 });
        End::Settled(ledger)
    }

    /// Does everything that needs no waiting. A message to one user who is online and need not ack ends here.
    pub(super) fn first(&self, message: &Message, now: Now) -> First {
        let mut plan = match self.plan(message, now) {
            Ok(plan) => plan,
            Err(refusal) => return First::End(End::Refused(refusal)),
        };
        if let Some(at) = plan.deliver_at {
            return later(Later::Schedule { at, id: plan.note.id });
        }
        // Headers are the publisher's to write: only what changes calls may end one.
        let time_limit =
            message.header(schedule::DUE).is_some() && message.header(schedule::KIND) == Some(calls::CALL);
        if time_limit && plan.note.event.effects.contains(&Effect::UpdateCall) {
            return later(Later::CallTimeout(plan));
        }
        plan.effects.retain(|todo| !self.known.covers(todo));
        if !plan.effects.is_empty() {
            return later(Later::Effects(plan));
        }
        if plan.is_expired(now.unix_ms) && plan.note.policy.offline != Offline::Ring {
            return First::End(self.unaddressed(&plan, Outcome::Expired));
        }
        match plan.audience.kind {
            Kind::User => self.route(pipeline::resolve(plan, None), now),
            Kind::Broadcast => later(Later::Broadcast(plan)),
            Kind::Group | Kind::Conversation | Kind::Call | Kind::Followers => {
                let key = Key::new(plan.audience.kind, &plan.audience.id);
                // One batch, or it is not walked here.
                let members_max = pipeline::BATCH_USERS_MAX.checked_sub(plan.others());
                match key.zip(members_max).and_then(|(key, max)| self.directory.known(&key, max)) {
                    Some(members) => self.route(pipeline::resolve(plan, Some(members)), now),
                    None => later(Later::Members(plan)),
                }
            }
        }
    }

    /// Offers it to the sessions of one batch.
    fn route(&self, fanout: Fanout, now: Now) -> First {
        let mut run = self.run(fanout, now);
        let fanout = run.fanout();
        run.route(&*self.sessions, &*self.nodes, fanout.targets(), now);
        if run.is_done() { First::End(End::Settled(run.ledger)) } else { later(Later::Rest(run)) }
    }

    /// Does what [`Self::first`] left.
    pub(super) async fn later(&self, message: &Message, work: Later, place: &Place) -> End {
        let result = match work {
            Later::Rest(run) => run.finish(self).await,
            // Boxed: most messages have a few recipients, and their futures would have the size of all of these.
            Later::Schedule { at, id } => Box::pin(self.schedule(message, at, &id)).await,
            Later::Broadcast(plan) => Ok(Box::pin(self.broadcast(plan)).await),
            Later::Members(plan) => return Box::pin(self.to_members(plan, place)).await,
            Later::CallTimeout(plan) => return Box::pin(self.call_timeout(message, plan, place)).await,
            Later::Effects(plan) => return Box::pin(self.with_effects(message, plan, place)).await,
        };
        ended(result)
    }

    async fn to_members(&self, plan: Plan, place: &Place) -> End {
        match self.members(&plan).await {
            Ok(members) if members.len() <= pipeline::BATCH_USERS_MAX => {
                self.fan_out(pipeline::resolve(plan, Some(members))).await
            }
            Ok(members) => self.to_many(plan, members, place).await,
            Err(end) => end,
        }
    }

    /// Delivers to members of a large set, in turn when they are many. Whoever waits for that has no copy of the members,
    /// which would grow old and take memory, and leaves its place in hand to others.
    async fn to_many(&self, plan: Plan, members: Arc<Members>, place: &Place) -> End {
        let Ok(permit) = self.bulk.try_acquire() else {
            let fanout = pipeline::resolve(plan.clone(), Some(members));
            if !is_bulk(&fanout) {
                return self.fan_out(fanout).await;
            }
            drop(fanout);
            let aside = place.step_aside();
            // The semaphore is never closed, so there always is a permit in the end.
            let _permit = self.bulk.acquire().await.ok();
            drop(aside);
            return match self.members(&plan).await {
                Ok(members) => self.fan_out(pipeline::resolve(plan, Some(members))).await,
                Err(end) => end,
            };
        };
        let fanout = pipeline::resolve(plan, Some(members));
        let _permit = is_bulk(&fanout).then_some(permit);
        self.fan_out(fanout).await
    }

    /// Delivers what has effects, once those that come first are done.
    pub(super) async fn deliver(&self, plan: Plan, place: &Place) -> End {
        let now = Now::read();
        // Whom a call did not reach in time is told that they missed it.
        if plan.is_expired(now.unix_ms) && plan.note.policy.offline != Offline::Ring {
            return self.unaddressed(&plan, Outcome::Expired);
        }
        match plan.audience.kind {
            Kind::User => ended(self.run(pipeline::resolve(plan, None), now).all(self).await),
            Kind::Broadcast => End::Settled(self.broadcast(plan).await),
            Kind::Group | Kind::Conversation | Kind::Call | Kind::Followers => {
                self.to_members(plan, place).await
            }
        }
    }

    /// Handles an ephemeral notification: whoever is online gets it, and that is all. Gives to how many users it was
    /// routed.
    pub(super) async fn ephemeral(&self, message: &Message) -> u64 {
        let end = match self.first(message, Now::read()) {
            First::End(end) => end,
            // One at a time, so its place is nobody else's.
            First::Later(work) => self.later(message, *work, &Hand::new(Lane::Low, 1, 0).place(0)).await,
        };
        match end {
            // Counted, and nothing written: nothing of it touches a disk.
            End::Settled(ledger) => {
                let users = ledger.recipients();
                drop(ledger.commit(&self.totals));
                return users;
            }
            End::Refused(refusal) => {
                counter!("fanfare_worker_ephemeral_dropped_total", "reason" => refusal.reason.as_str())
                    .increment(1);
            }
            End::Unwritten(_) | End::GivenBack => {
                counter!("fanfare_worker_ephemeral_dropped_total", "reason" => "nats").increment(1);
            }
        }
        0
    }

    fn plan(&self, message: &Message, now: Now) -> Result<Plan, Refusal> {
        let decoded = pipeline::decode(&self.catalog, &message.subject, &message.body)?;
        let due = message.header(schedule::DUE).is_some();
        pipeline::classify(decoded, &message.origin, message.given_id(), due, now.unix_ms)
    }

    /// Keeps a message until it is due. It has no recipients before that.
    async fn schedule(&self, message: &Message, at: u64, id: &str) -> Result<Ledger, fanout::RunError> {
        let schedule =
            Schedule { kind: "deliver", id, at, subject: &message.subject, body: message.body.clone() };
        schedule.write(&self.context).await?;
        Ok(Ledger::empty())
    }

    /// The members of the plan's set. One that nobody ever wrote is asked for again: its first write may be on the way.
    async fn members(&self, plan: &Plan) -> Result<Arc<Members>, End> {
        let audience = &plan.audience;
        let Some(key) = Key::new(audience.kind, &audience.id) else {
            return Err(End::Refused(Refusal::new(Reason::NoAudience, "sets of this kind have no members")));
        };
        let mut waits = crate::delivery::retry::waits(rand::random);
        loop {
            match self.directory.members(&key).await {
                Ok(members) => return Ok(members),
                Err(LookupError::Load(error)) => return Err(End::Unwritten(Box::new(error))),
                // Somebody without friends: nobody had to write anything to say so.
                Err(LookupError::Unknown(_)) if audience.kind == Kind::Followers => {
                    return Ok(Arc::new(Members::default()));
                }
                Err(error @ LookupError::Unknown(_)) => match waits.next() {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => {
                        return Err(End::Refused(Refusal::new(Reason::UnknownAudience, error.to_string())));
                    }
                },
            }
        }
    }

    async fn fan_out(&self, fanout: Fanout) -> End {
        ended(self.run(fanout, Now::read()).all(self).await)
    }

    /// Tells everybody on every node.
    async fn broadcast(&self, plan: Plan) -> Ledger {
        let note = Arc::new(plan.note);
        let (here, elsewhere) =
            tokio::join!(pipeline::broadcast(&*self.sessions, &note), self.nodes.broadcast(&note));
        let (accepted, full) = (here.0 + elsewhere.0, here.1 + elsewhere.1);
        let low = note.lane == Lane::Low;
        let refused = if low { Outcome::DroppedLow } else { Outcome::Undeliverable };
        let mut ledger = Ledger::new((accepted + full) as u64, self.evidence.scope(&note.id));
        let delivered = Ended { outcome: Outcome::Delivered, missed: None, tries: 1 };
        let refused = Ended { outcome: refused, missed: Some(Missed::SlowClient), tries: 1 };
        ledger.settle_unnamed(&note, accepted as u64, delivered);
        ledger.settle_unnamed(&note, full as u64, refused);
        ledger
    }
}

/// True for what is delivered in more than one batch.
fn is_bulk(fanout: &Fanout) -> bool {
    fanout.recipients > pipeline::BATCH_USERS_MAX as u64
}

fn ended(result: Result<Ledger, fanout::RunError>) -> End {
    result.map_or_else(|error| End::Unwritten(Box::new(error)), End::Settled)
}

fn later(work: Later) -> First {
    First::Later(Box::new(work))
}

/// True when every recipient needs a record, whoever takes it live.
pub(super) fn always_inboxed(inbox: Inbox) -> bool {
    inbox == Inbox::Always
}

/// Describes the metrics of this part.
pub(super) fn describe() {
    metrics::describe_counter!(
        "fanfare_worker_ephemeral_dropped_total",
        "ephemeral notifications that could not be handled, by reason"
    );
}
