//! The workers: they pull notifications, run the pipeline, wait where waiting is due, and settle each message.
//!
//! [`start`] spawns every task of this part into one `JoinSet` that the [`Handle`] owns: workers of each lane, the
//! ephemeral listener, the directory's subscription, the sweeper and the backlog's meter. They end when the soft token is
//! cancelled, the workers after a bounded drain.

mod backlog;
mod calls;
mod effects;
mod fanout;
mod hand;
mod handler;
mod known;
mod pool;
mod queue;
mod reroute;
mod suspects;
mod sweeper;

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{self, Context};
use futures::FutureExt;
use serde::Deserialize;
use tokio::sync::mpsc::Receiver;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, Lane};
use crate::clock::Now;
use crate::control;
use crate::delivery::{Recorder, evidence};
use crate::directory::{self, Directory};
use crate::nats::{self, Ephemeral, Message};
use crate::pipeline::{Nodes, Sessions};
use crate::session::Undelivered;
use crate::turn::Turn;
use handler::Handler;
pub use queue::Queue;
pub use reroute::Rerouter;

/// How much the workers of this process take on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The work queues that services publish to, each with the lane that it has.
    pub streams: Vec<Queue>,
    /// Workers of lane high, for each stream that has it.
    pub high: usize,
    /// Workers of lane normal, for each stream that has it.
    pub normal: usize,
    /// Workers of lane low, for each stream that has it.
    pub low: usize,
    /// Messages that one worker has in hand at once, waiting for acks, loads and writes. At this bound it stops
    /// pulling.
    pub in_hand: usize,
    /// Bytes of messages that one worker has in hand at once. At this bound it stops pulling, too.
    pub in_hand_bytes: usize,
    /// Seconds that messages in hand get to finish at shutdown. Then they are given back to JetStream.
    pub drain_s: u64,
    /// Seconds the longest token lives. A login that was ended is remembered as long; a token that lives longer comes
    /// back to life after it.
    pub token_life_s: u64,
    /// Seconds an invitation to a call waits for an answer.
    pub call_timeout_s: u64,
    /// Cache of audiences.
    pub directory: directory::Config,
    /// Records of what became of notifications.
    pub evidence: evidence::Config,
}

impl Default for Config {
    /// Two workers for the lanes with traffic: one decodes while the other routes. 1,024 in hand hold a second of
    /// `require_ack` traffic at 100/s a worker through a 10 s ack timeout; three lanes stay below `max_ack_pending`.
    /// 64 MiB hold them at 64 KiB each, and bound the workers' memory if all are as large as they may be.
    fn default() -> Self {
        Self {
            streams: [
                (nats::NOTIFICATIONS_HIGH, Lane::High),
                (nats::NOTIFICATIONS, Lane::Normal),
                (nats::NOTIFICATIONS_LOW, Lane::Low),
            ]
            .map(|(stream, lane)| Queue { stream: stream.to_owned(), lane: Some(lane) })
            .into(),
            high: 2,
            normal: 2,
            low: 1,
            in_hand: 1_024,
            in_hand_bytes: 64 * 1024 * 1024,
            drain_s: 15,
            call_timeout_s: calls::TIMEOUT_S,
            token_life_s: effects::TOKEN_LIFE.as_secs(),
            directory: directory::Config::default(),
            evidence: evidence::Config::default(),
        }
    }
}

impl Config {
    fn workers(&self, lane: Lane) -> usize {
        match lane {
            Lane::High => self.high,
            Lane::Normal => self.normal,
            Lane::Low => self.low,
        }
    }
}

/// Messages asked for at once, at most. Those that are pulled and not yet taken use up `ack_wait`, so a batch must be taken
/// within a third of it (3.3 s high, 10 s others) even by a worker whose hands are full and that takes only as many as
/// it finishes: 1,024 in hand ÷ 10 s of waiting for acks = 100/s, so 330 and 1,000 at most.
fn batch(lane: Lane) -> usize {
    match lane {
        Lane::High => 128,
        Lane::Normal | Lane::Low => 256,
    }
}

/// How often JetStream is told that a message is still worked on: a third of `ack_wait`.
fn progress_every(lane: Lane) -> Duration {
    match lane {
        Lane::High => Duration::from_secs(3),
        Lane::Normal | Lane::Low => Duration::from_secs(10),
    }
}

/// Time the connection gets to send the last words about messages: far more than a round trip, and all there is to wait
/// for when NATS is away.
const FLUSH: Duration = Duration::from_secs(2);

/// Why the workers could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A subscription was refused.
    #[error("cannot subscribe: {0}")]
    Subscribe(#[from] async_nats::SubscribeError),
    /// The bucket of members cannot be opened.
    #[error(transparent)]
    Audience(#[from] directory::ChangeError),
    /// Another bucket cannot be opened.
    #[error(transparent)]
    Bucket(#[from] nats::KvError),
}

/// What the workers of a process are there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// They pull notifications.
    Pull,
    /// They only deliver again what sessions of this process held.
    Reroute,
}

/// The running workers.
pub struct Handle {
    client: Client,
    handler: Arc<Handler>,
    tasks: JoinSet<()>,
    soft: CancellationToken,
    /// What a task left that ended before its time.
    early: Option<Result<(), JoinError>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

impl Handle {
    /// Starts to deliver again what ended sessions held. It has an end of its own, after that of the sessions.
    pub fn reroute(&self, ended: Receiver<Vec<Undelivered>>) -> Rerouter {
        Rerouter::start(ended, self.handler.clone())
    }

    /// Resolves when a task has ended that should run until the end, which is a bug. Then [`Self::join`] passes its
    /// panic on.
    pub async fn failed(&mut self) {
        self.early = match self.tasks.join_next().await {
            // Nothing runs beside the rerouter.
            None => std::future::pending().await,
            ended => ended,
        };
    }

    /// Stops the workers and waits until every task has ended, at most `limit`, which should leave some seconds beyond
    /// [`Config::drain_s`]. What is still in hand then is delivered again by JetStream. A panic is passed on.
    pub async fn join(mut self, limit: Duration) {
        self.soft.cancel();
        let mut panic = None;
        if tokio::time::timeout(limit, self.ended(&mut panic)).await.is_err() {
            // Acknowledgements wait for room in the connection's queue, which does not move while NATS is away.
            tracing::warn!(
                tasks = self.tasks.len(),
                seconds = limit.as_secs(),
                "workers did not end in time and are stopped; is NATS away?"
            );
            self.tasks.abort_all();
        }
        if let Some(panic) = panic {
            std::panic::resume_unwind(panic);
        }
    }

    /// Waits for every task, and for the connection to have sent what they said.
    async fn ended(&mut self, panic: &mut Option<Box<dyn Any + Send>>) {
        let mut ended = self.early.take();
        while ended.is_some() || !self.tasks.is_empty() {
            if let Some(Err(error)) = ended {
                *panic = error.try_into_panic().ok().or(panic.take());
            }
            ended = self.tasks.join_next().await;
        }
        // The last words about messages are in the connection's queue, and the process may end now.
        let unsent = match tokio::time::timeout(FLUSH, self.client.flush()).await {
            Ok(result) => result.err().map(|error| error.to_string()),
            Err(_) => Some(format!("NATS took nothing for {} s", FLUSH.as_secs())),
        };
        if let Some(error) = unsent {
            tracing::warn!(error, "the last acknowledgements may not have reached NATS");
        }
    }
}

/// Starts the workers. They stop pulling when `soft` is cancelled; then wait for [`Handle::join`]. What became of each
/// notification goes to `evidence`.
pub async fn start(
    client: Client,
    catalog: Arc<Catalog>,
    (sessions, nodes): (Arc<dyn Sessions>, Arc<dyn Nodes>),
    evidence: Recorder,
    config: Config,
    (duty, soft): (Duty, CancellationToken),
) -> Result<Handle, StartError> {
    describe();
    let context = context(&client);
    let directory = Arc::new(Directory::new(client.clone(), context.clone(), &config.directory));
    let audience = directory::Writer::open(context.clone()).await?;
    let control = control::Writer::open(context.clone()).await?;
    let transient = nats::Bucket::open(context.clone(), nats::TRANSIENT).await?;
    let buckets = handler::Buckets { audience, control, transient };
    let limits = handler::Limits {
        token_life: Duration::from_secs(config.token_life_s),
        call_timeout: Duration::from_secs(config.call_timeout_s),
    };
    let ephemeral = catalog.ephemeral_subjects();
    let reach = (sessions, nodes);
    let handler = Handler::new(context.clone(), catalog, reach, directory.clone(), buckets, limits, evidence);
    let handler = Arc::new(handler);
    let mut tasks = JoinSet::new();
    if duty == Duty::Reroute {
        return Ok(Handle { client, handler, tasks, soft, early: None });
    }
    let writes = directory.subscribe().await?;
    tasks.spawn(until(soft.clone(), async move { directory.follow(writes).await }));
    let ephemeral = Ephemeral::subscribe(&client, ephemeral).await?;
    tasks.spawn(until(soft.clone(), listen(ephemeral, handler.clone())));
    tasks
        .spawn(until(soft.clone(), backlog::watch(context.clone(), config.streams.clone(), handler.clone())));
    let streams = config.streams.iter().map(|queue| queue.stream.clone()).collect();
    tasks.spawn(until(soft.clone(), sweeper::run(handler.clone(), streams)));
    for (stream, lane) in config.streams.iter().flat_map(Queue::consumers) {
        for _ in 0..config.workers(lane) {
            let source = nats::Source::new(context.clone(), stream, lane.as_str(), batch(lane));
            let worker = pool::Worker::new(lane, source, handler.clone(), &config);
            tasks.spawn(worker.run(soft.clone()));
        }
    }
    Ok(Handle { client, handler, tasks, soft, early: None })
}

/// A JetStream context that slows down instead of failing when very many acknowledgements are outstanding.
fn context(client: &Client) -> Context {
    jetstream::context::ContextBuilder::new().backpressure_on_inflight(true).build(client.clone())
}

async fn until(soft: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = soft.cancelled() => {}
        () = work => {}
    }
}

/// Ephemeral notifications that wait for a look-up or for another node at once. Beyond it the next one waits, and further
/// ones in the subscription.
const EPHEMERAL_AT_ONCE: usize = 256;

/// Handles ephemeral notifications: in their order, but for those that have to wait for something.
async fn listen(mut ephemeral: Ephemeral, handler: Arc<Handler>) {
    let (mut waiting, mut turn) = (JoinSet::new(), Turn::default());
    loop {
        turn.give_way().await;
        tokio::select! {
            Some(_) = waiting.join_next(), if !waiting.is_empty() => {}
            message = ephemeral.next(|| Now::read().unix_ms), if waiting.len() < EPHEMERAL_AT_ONCE => {
                let mut handling = Box::pin(handle_ephemeral(handler.clone(), message));
                match (&mut handling).now_or_never() {
                    Some(users) => turn.spend(users),
                    None => drop(waiting.spawn(handling)),
                }
            }
        }
    }
}

/// Gives to how many users it was routed.
async fn handle_ephemeral(handler: Arc<Handler>, message: Message) -> u64 {
    AssertUnwindSafe(handler.ephemeral(&message)).catch_unwind().await.unwrap_or_else(|panic| {
        // It is gone, as ephemeral ones may be; the next one is another.
        tracing::error!(refusal = %pool::panicked(&*panic), "an ephemeral notification was dropped");
        0
    })
}

fn describe() {
    nats::source::describe();
    nats::publish::describe();
    nats::denial::describe();
    crate::delivery::ledger::describe();
    crate::delivery::dead_letter::describe();
    hand::describe();
    handler::describe();
    effects::describe();
    crate::pipeline::effects::describe();
    pool::describe();
    reroute::describe();
    sweeper::describe();
    backlog::describe();
}
