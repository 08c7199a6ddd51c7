//! Every write of a key-value bucket in order: first the last one of each key, then each as it comes.
//!
//! A watch belongs to one connection and one life of the bucket: after either it may have missed something, so its owner
//! asks [`Watch::is_connected`] and [`Watch::is_same_bucket`], and starts over. No task of its own.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::header::{NATS_MARKER_REASON, NATS_MESSAGE_TTL};
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use futures::StreamExt;
use time::OffsetDateTime;
use tokio::time::timeout;

/// Header with which key-value clients mark a key that is gone.
const OPERATION: &str = "KV-Operation";

/// Time between two messages as long as keys are left that were there at the start.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a bucket cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("bucket {bucket}: {source} (if it does not exist, run `fanfare provision apply`)")]
pub struct WatchError {
    bucket: &'static str,
    source: async_nats::Error,
}

/// What became of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It has this value.
    Put(Bytes),
    /// Somebody deleted it.
    Deleted,
    /// Its life is over.
    Expired,
}

/// One write.
#[derive(Debug, Clone)]
pub struct Write {
    /// The key.
    pub key: String,
    /// Its sequence in the bucket.
    pub sequence: u64,
    /// Unix milliseconds at which JetStream stored it.
    pub stored_ms: u64,
    /// What it says.
    pub change: Change,
}

/// A bucket that is followed.
pub struct Watch {
    bucket: &'static str,
    context: Context,
    messages: pull::Ordered,
    /// Keys that were there at the start and are still to come.
    left: u64,
    connects: u64,
    created: OffsetDateTime,
    last_sequence: u64,
}

impl Watch {
    /// Starts to watch `bucket`.
    pub async fn open(context: &Context, bucket: &'static str) -> Result<Self, WatchError> {
        let failed = |source| WatchError { bucket, source };
        // Before anything is read: what is lost by a reconnect from here on is seen as one.
        let connects = connects(context);
        let stream =
            context.get_stream(format!("KV_{bucket}")).await.map_err(|error| failed(error.into()))?;
        let info = stream.cached_info();
        let (created, last_sequence) = (info.created, info.state.last_sequence);
        let config = pull::OrderedConfig {
            filter_subject: format!("$KV.{bucket}.>"),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| failed(error.into()))?;
        let left = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(|error| failed(error.into()))?;
        Ok(Self { bucket, context: context.clone(), messages, left, connects, created, last_sequence })
    }

    /// Every key that was there at the start has been given.
    pub fn has_all(&self) -> bool {
        self.left == 0
    }

    /// When the bucket was made: another bucket of the same name has another time.
    pub fn created(&self) -> OffsetDateTime {
        self.created
    }

    /// The bucket's last sequence at the start.
    pub fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// The number of the connection on which it began, as the client's statistics count.
    pub fn connects(&self) -> u64 {
        self.connects
    }

    /// The next write; without a limit of time once all keys have been given. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Write, WatchError> {
        let next = match self.left {
            0 => self.messages.next().await,
            _ => timeout(READ_TIMEOUT, self.messages.next()).await.map_err(|error| self.failed(error))?,
        };
        let message = next.ok_or_else(|| self.failed("the consumer ended"))?;
        let message = message.map_err(|error| self.failed(error))?;
        let info = message.info().map_err(|error| self.failed(error))?;
        self.left = if self.left == 0 { 0 } else { info.pending };
        let (sequence, stored_ms) =
            (info.stream_sequence, (info.published.unix_timestamp_nanos() / 1_000_000).max(0) as u64);
        let prefix = format!("$KV.{}.", self.bucket);
        let key = message.subject.strip_prefix(&prefix).unwrap_or_default().to_owned();
        let header = |name: &str| message.headers.as_ref().is_some_and(|headers| headers.get(name).is_some());
        let change = match () {
            () if header(NATS_MARKER_REASON.as_ref()) => Change::Expired,
            () if header(OPERATION) || message.payload.is_empty() => Change::Deleted,
            () => Change::Put(message.payload.clone()),
        };
        Ok(Write { key, sequence, stored_ms, change })
    }

    /// True as long as the connection is the same.
    pub fn is_connected(&self) -> bool {
        connects(&self.context) == self.connects
    }

    /// True when the bucket is still the one that is watched. Asks the server.
    pub async fn is_same_bucket(&mut self) -> Result<bool, WatchError> {
        let stream = self.context.get_stream(format!("KV_{}", self.bucket)).await;
        let stream = stream.map_err(|error| self.failed(error))?;
        Ok(stream.cached_info().created == self.created)
    }

    fn failed(&self, source: impl Into<async_nats::Error>) -> WatchError {
        WatchError { bucket: self.bucket, source: source.into() }
    }
}

/// How often the client has connected.
fn connects(context: &Context) -> u64 {
    context.client().statistics().connects.load(Ordering::Relaxed)
}

/// The message that deletes a key, for so long: a mark that stayed for ever would take up room for ever.
pub fn deletion(mark_lives: Duration) -> PublishMessage {
    PublishMessage::build()
        .header(OPERATION, "DEL")
        .header(NATS_MESSAGE_TTL, format!("{}s", mark_lives.as_secs().max(1)))
}
