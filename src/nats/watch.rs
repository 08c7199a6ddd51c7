//! Every write of a key-value bucket in order: first the last one of each key, then each as it comes.
//!
//! A watch belongs to one connection and one life of the bucket: after either it may have missed something, so its owner
//! asks [`Watch::is_connected`], waits for [`Watch::lost`], and starts over. No task of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::header::{NATS_MARKER_REASON, NATS_MESSAGE_TTL};
use async_nats::jetstream::consumer::pull::OrderedError;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{Context, Message};
use bytes::Bytes;
use futures::StreamExt;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use super::tail;

/// Header with which key-value clients mark a key that is gone.
const OPERATION: &str = "KV-Operation";

/// Time between two messages as long as keys are left that were there at the start.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Silence after which the consumer is asked whether any of them are left: what is purged meanwhile never comes.
const SILENCE: Duration = Duration::from_millis(250);

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
    stream: Stream<()>,
    /// The consumer, and how many messages came from it.
    consumer: (String, u64),
    /// Keys that were there at the start and are still to come.
    left: u64,
    /// The highest sequence that was given.
    seen: Arc<AtomicU64>,
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
        let name = format!("KV_{bucket}");
        let stream = context.get_stream(&name).await.map_err(|error| failed(error.into()))?;
        let info = stream.cached_info();
        let (created, last_sequence) = (info.created, info.state.last_sequence);
        let config = pull::OrderedConfig {
            filter_subject: format!("$KV.{bucket}.>"),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| failed(error.into()))?;
        let info = consumer.cached_info();
        let (left, consumer_name) = (info.num_pending, info.name.clone());
        let messages = consumer.messages().await.map_err(|error| failed(error.into()))?;
        let stream = context.get_stream_no_info(&name).await.map_err(|error| failed(error.into()))?;
        Ok(Self {
            bucket,
            context: context.clone(),
            messages,
            stream,
            consumer: (consumer_name, 0),
            left,
            seen: Arc::default(),
            connects,
            created,
            last_sequence,
        })
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

    /// The next of the keys that were there at the start; `None` when all have been given.
    pub async fn read(&mut self) -> Result<Option<Write>, WatchError> {
        let limit = Instant::now() + READ_TIMEOUT;
        while self.left > 0 {
            match timeout(SILENCE, self.messages.next()).await {
                Ok(message) => return self.write(message).map(Some),
                Err(_) if self.has_given_all().await => self.left = 0,
                Err(elapsed) if Instant::now() > limit => return Err(self.failed(elapsed)),
                Err(_) => {}
            }
        }
        // The last writes may be of keys that are gone.
        self.seen.fetch_max(self.last_sequence, Ordering::AcqRel);
        Ok(None)
    }

    /// The next write, without a limit of time. For when [`Watch::read`] is through. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Write, WatchError> {
        let message = self.messages.next().await;
        self.write(message)
    }

    /// True when the consumer has nothing left for us, neither with the server nor on its way.
    fn has_given_all(&self) -> impl Future<Output = bool> + use<> {
        let (stream, (name, came)) = (self.stream.clone(), self.consumer.clone());
        async move {
            let info = stream.consumer_info(name).await;
            info.is_ok_and(|info| info.num_pending == 0 && info.delivered.consumer_sequence == came)
        }
    }

    fn write(&mut self, message: Option<Result<Message, OrderedError>>) -> Result<Write, WatchError> {
        let message = message.ok_or_else(|| self.failed("the consumer ended"))?;
        let message = message.map_err(|error| self.failed(error))?;
        let info = message.info().map_err(|error| self.failed(error))?;
        self.left = if self.left == 0 { 0 } else { info.pending };
        if self.consumer.0 != info.consumer {
            info.consumer.clone_into(&mut self.consumer.0);
        }
        self.consumer.1 = info.consumer_sequence;
        self.seen.fetch_max(info.stream_sequence, Ordering::AcqRel);
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

    /// Resolves when the bucket is another one, or its writes do not come any more. For when [`Watch::read`] is through;
    /// to be polled beside [`Watch::next`]. `as_of_ms` is moved to the Unix milliseconds up to which every write was given.
    pub fn lost(&self, as_of_ms: Arc<AtomicU64>) -> impl Future<Output = WatchError> + use<> {
        let bucket = self.bucket;
        let (context, stream, seen) = (self.context.clone(), format!("KV_{bucket}"), self.seen.clone());
        let lost = tail::lost(context, stream, self.created, seen, as_of_ms);
        async move { WatchError { bucket, source: lost.await.into() } }
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
