//! The one task that writes evidence to stream OUTCOMES.
//!
//! Whoever has something to record never waits: what does not fit any more is dropped and counted. A write that fails
//! is not repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context};
use futures::{StreamExt, stream};
use metrics::counter;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::{Config, Findings, Record, Scope, is_sampled, subject};
use crate::clock::Now;
use crate::nats::{OUTCOMES, publish};

/// Bytes of records that wait to be written or acknowledged: some 50,000 about one user, or 400 about 1,000.
const WAITING_BYTES: usize = 16 * 1024 * 1024;

/// Writes that wait for their acknowledgement at once.
const IN_FLIGHT: usize = 64;

/// A record and its share of the room, until JetStream has it.
type Waiting = (Record, OwnedSemaphorePermit);

/// Takes evidence. Cheap to clone; the writer ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Recorder {
    // Bounded by `room`, which counts bytes.
    sender: UnboundedSender<Waiting>,
    room: Arc<Semaphore>,
    node: Arc<str>,
    sample: f64,
}

/// The task that writes. Ends when dropped.
#[derive(Debug)]
pub struct Writer {
    task: JoinSet<()>,
}

/// Starts the writer of the node `node`.
pub fn start(client: Client, config: &Config, node: &str) -> (Recorder, Writer) {
    describe();
    let (sender, receiver) = unbounded_channel();
    let room = Arc::new(Semaphore::new(WAITING_BYTES));
    let mut task = JoinSet::new();
    task.spawn(run(receiver, jetstream::new(client)));
    (Recorder { sender, room, node: node.into(), sample: config.sample }, Writer { task })
}

impl Recorder {
    /// How much of a notification is worth a record.
    pub fn scope(&self, notification_id: &str) -> Scope {
        if is_sampled(notification_id, self.sample) { Scope::Everything } else { Scope::Failures }
    }

    /// Takes what was found out about a notification whose outcomes are counted. Never waits.
    pub fn take(&self, findings: Findings) {
        let records = findings.into_records();
        if records.is_empty() {
            return;
        }
        let at_ms = Now::read().unix_ms;
        for record in records {
            let record = Record { node: self.node.clone(), at_ms, ..record };
            let bytes = u32::try_from(size(&record)).unwrap_or(u32::MAX);
            // The receiver outlives this but for a writer that was stopped.
            let sent = match self.room.clone().try_acquire_many_owned(bytes) {
                Ok(room) => self.sender.send((record, room)).is_ok(),
                Err(_) => false,
            };
            if !sent {
                dropped("queue_full");
            }
        }
    }
}

impl Writer {
    /// Resolves when the task has ended before its time, which is a bug.
    pub async fn failed(&mut self) {
        self.task.join_next().await;
    }

    /// Writes what is left and ends, within `limit`. Call it when no recorder is left.
    pub async fn join(mut self, limit: Duration) {
        if tokio::time::timeout(limit, self.task.join_next()).await.is_err() {
            tracing::warn!(
                seconds = limit.as_secs(),
                "evidence could not be written in time and is lost; is NATS away?"
            );
        }
    }
}

/// Memory that a record takes, about.
fn size(record: &Record) -> usize {
    let users: usize = record.users.iter().map(|user| user.as_str().len() + 24).sum();
    256 + record.notification_id.len() + users
}

async fn run(mut receiver: UnboundedReceiver<Waiting>, context: Context) {
    let fails = AtomicBool::new(false);
    let waiting = stream::poll_fn(|cx| receiver.poll_recv(cx));
    waiting.for_each_concurrent(IN_FLIGHT, |(record, _room)| write(record, &context, &fails)).await;
}

async fn write(record: Record, context: &Context, fails: &AtomicBool) {
    let body = serde_json::to_vec(&record).expect("ids, names and numbers are JSON");
    let message = PublishMessage::build().payload(body.into());
    let written = publish::write(context, OUTCOMES, subject(&record.notification_id), message).await;
    let failed_before = fails.swap(written.is_err(), Ordering::Relaxed);
    match written {
        Ok(()) => {
            counter!("fanfare_evidence_records_total", "outcome" => record.outcome.as_str()).increment(1);
        }
        Err(error) => {
            dropped("not_written");
            if !failed_before {
                tracing::warn!(%error, "evidence cannot be written; delivery goes on without");
            }
        }
    }
}

fn dropped(reason: &'static str) {
    counter!("fanfare_evidence_dropped_total", "reason" => reason).increment(1);
}

fn describe() {
    metrics::describe_counter!("fanfare_evidence_records_total", "records written to OUTCOMES, by outcome");
    metrics::describe_counter!(
        "fanfare_evidence_dropped_total",
        "records of what became of notifications that were not written, by reason"
    );
}
