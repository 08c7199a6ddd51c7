//! Where notifications come from: a pull stream on one lane's durable consumer. Advisories come the same way.
//!
//! First stop of the path. A source never ends: errors of the stream are logged and counted, and a stream that ended
//! (consumer deleted, server away for long) is opened again with a capped backoff. No task of our own runs here.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{Consumer, pull};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use metrics::counter;

use super::{Acker, schedule};

/// Time after which an unanswered pull request is renewed.
const EXPIRES: Duration = Duration::from_secs(10);

/// The server says this often that it is there when there is nothing to deliver; two missing are an error item, and a
/// new request. A request that meets a consumer in the moment of its deletion gets no answer at all, and 6 s is how long
/// a lane may then stand still.
const HEARTBEAT: Duration = Duration::from_secs(3);

/// First and longest wait before a stream is opened again.
const REOPEN_MS: (u64, u64) = (250, 15_000);

/// Where and when JetStream stored a message, and how often it was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The stream.
    pub stream: String,
    /// Sequence in the stream; 0 for messages that no stream holds.
    pub seq: u64,
    /// Unix microseconds at which it was stored (at which it arrived, when no stream holds it); for one that was published
    /// again, at which it was first stored.
    pub stored_at_us: u64,
    /// Deliveries so far, this one included.
    pub deliveries: u64,
}

/// Header of a message that was published again: Unix microseconds at which the original was stored. From then its life and
/// its versions count, so that what is sent again late neither rings a phone nor undoes what happened since.
pub const STORED_AT: &str = "Fanfare-Stored-At";

/// When a message was first stored, by its headers and the time at which it was stored now.
pub(super) fn first_stored_us(headers: &HeaderMap, stored_us: i128) -> u64 {
    let stored_us = stored_us.max(0) as u64;
    let first = headers.get(STORED_AT).and_then(|value| value.as_str().parse().ok());
    // Nothing was stored later than it came here.
    first.map_or(stored_us, |first: u64| first.min(stored_us))
}

impl Origin {
    /// Unix milliseconds at which it was stored.
    pub fn stored_at_ms(&self) -> u64 {
        self.stored_at_us / 1_000
    }
}

/// One message as it came.
#[derive(Debug, Clone)]
pub struct Message {
    /// The subject it was published on.
    pub subject: String,
    /// The body.
    pub body: Bytes,
    /// The headers; empty when there were none.
    pub headers: HeaderMap,
    /// Its place in the stream.
    pub origin: Origin,
}

impl Message {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(async_nats::HeaderValue::as_str)
    }

    /// The id of the notification when its envelope tells none: the one it had when it was scheduled or published again,
    /// else its `Nats-Msg-Id`. Never empty.
    pub fn given_id(&self) -> Option<&str> {
        // A publisher's own header of that name means nothing.
        let again = self.header(schedule::DUE).or_else(|| self.header(STORED_AT)).is_some();
        let id = self.header(schedule::ID).filter(|_| again).or_else(|| self.header("Nats-Msg-Id"));
        id.filter(|id| !id.is_empty())
    }
}

/// The messages of one consumer.
pub struct Source {
    context: Context,
    stream_name: &'static str,
    consumer: &'static str,
    batch: usize,
    stream: Option<pull::Stream>,
    failures: u32,
}

impl Source {
    /// A source on the durable `consumer` of `stream_name`, which asks for `batch` messages at a time. Opened at first use.
    pub fn new(context: Context, stream_name: &'static str, consumer: &'static str, batch: usize) -> Self {
        Self { context, stream_name, consumer, batch, stream: None, failures: 0 }
    }

    /// Waits for the next message. Dropping the future loses nothing.
    pub async fn next(&mut self) -> (Message, Acker) {
        loop {
            let Some(stream) = &mut self.stream else {
                self.open().await;
                continue;
            };
            match stream.next().await {
                Some(Ok(message)) => {
                    self.failures = 0;
                    if let Some(incoming) = split(message) {
                        return incoming;
                    }
                }
                Some(Err(error)) => {
                    counter!("fanfare_nats_pull_errors_total", "kind" => kind(error.kind())).increment(1);
                    tracing::warn!(%error, stream = self.stream_name, consumer = self.consumer, "pulling had an error and goes on");
                    // Nobody took the request: the consumer is gone or moves. The stream itself would notice only
                    // after two heartbeats.
                    if error.kind() == pull::MessagesErrorKind::NoResponders {
                        self.stream = None;
                    }
                }
                None => self.stream = None,
            }
        }
    }

    /// The messages that were pulled and not taken, so that they can be given back. Ends the stream.
    pub fn left_over(&mut self) -> Vec<(Message, Acker)> {
        let Some(mut stream) = self.stream.take() else { return Vec::new() };
        let mut messages = Vec::new();
        while let Some(Some(item)) = stream.next().now_or_never() {
            messages.extend(item.ok().and_then(split));
        }
        messages
    }

    async fn open(&mut self) {
        if self.failures > 0 {
            tokio::time::sleep(backoff(self.failures)).await;
        }
        self.failures = self.failures.saturating_add(1);
        match open(&self.context, self.stream_name, self.consumer, self.batch).await {
            Ok(stream) => self.stream = Some(stream),
            Err(error) => {
                counter!("fanfare_nats_pull_errors_total", "kind" => "open").increment(1);
                tracing::error!(
                    %error,
                    stream = self.stream_name,
                    consumer = self.consumer,
                    "nothing of this consumer is handled: it cannot be pulled from; \
                     if it does not exist, run `fanfare provision apply`"
                );
            }
        }
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("consumer", &self.consumer).finish_non_exhaustive()
    }
}

async fn open(
    context: &Context,
    stream: &str,
    consumer: &str,
    batch: usize,
) -> Result<pull::Stream, async_nats::Error> {
    let consumer: Consumer<pull::Config> = context.get_consumer_from_stream(consumer, stream).await?;
    let stream = consumer
        .stream()
        .max_messages_per_batch(batch)
        .expires(EXPIRES)
        .heartbeat(HEARTBEAT)
        .messages()
        .await?;
    Ok(stream)
}

/// Doubles from the first wait to the longest.
fn backoff(failures: u32) -> Duration {
    let (first, longest) = REOPEN_MS;
    Duration::from_millis(first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest))
}

fn split(message: async_nats::jetstream::Message) -> Option<(Message, Acker)> {
    let origin = match message.info() {
        Ok(info) => Origin {
            stream: info.stream.to_owned(),
            seq: info.stream_sequence,
            stored_at_us: first_stored_us(
                message.headers.as_ref().unwrap_or(&HeaderMap::new()),
                info.published.unix_timestamp_nanos() / 1_000,
            ),
            deliveries: info.delivered.max(0) as u64,
        },
        Err(error) => {
            counter!("fanfare_nats_pull_errors_total", "kind" => "not_jetstream").increment(1);
            tracing::error!(%error, "a message came to the pull inbox that JetStream did not send");
            return None;
        }
    };
    let (message, acker) = message.split();
    let incoming = Message {
        subject: message.subject.to_string(),
        body: message.payload,
        headers: message.headers.unwrap_or_default(),
        origin,
    };
    Some((incoming, Acker::new(acker)))
}

fn kind(kind: pull::MessagesErrorKind) -> &'static str {
    match kind {
        pull::MessagesErrorKind::MissingHeartbeat => "missing_heartbeat",
        pull::MessagesErrorKind::ConsumerDeleted => "consumer_deleted",
        pull::MessagesErrorKind::Pull => "pull",
        pull::MessagesErrorKind::PushBasedConsumer => "push_based_consumer",
        pull::MessagesErrorKind::NoResponders => "no_responders",
        pull::MessagesErrorKind::RequestLimitExceeded => "request_limit_exceeded",
        pull::MessagesErrorKind::Other => "other",
    }
}

/// Describes the metrics of this part.
pub(crate) fn describe() {
    metrics::describe_counter!(
        "fanfare_nats_pull_errors_total",
        "errors while pulling notifications, by kind"
    );
    metrics::describe_counter!(
        "fanfare_nats_acks_total",
        "words said to JetStream about messages, by kind; `none` was delivered again after ack_wait"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_again_is_as_old_as_its_original_and_never_younger() {
        let mut headers = HeaderMap::new();
        assert_eq!(first_stored_us(&headers, 7), 7);
        for (header, first) in [("5", 5), ("9", 7), ("soon", 7)] {
            headers.insert(STORED_AT, header);
            assert_eq!(first_stored_us(&headers, 7), first, "{header}");
        }
    }

    #[test]
    fn what_is_published_again_keeps_its_id() {
        let given = |names: &[(&str, &str)]| {
            let headers = names.iter().map(|(name, value)| {
                (name.parse().unwrap(), value.parse::<async_nats::HeaderValue>().unwrap())
            });
            let origin = Origin { stream: "S".to_owned(), seq: 1, stored_at_us: 1, deliveries: 1 };
            let message =
                Message { subject: "a".to_owned(), body: Bytes::new(), headers: headers.collect(), origin };
            message.given_id().map(str::to_owned)
        };
        let (publisher, ours) = (("Nats-Msg-Id", "NOTIFICATIONS_DLQ:1:1"), (schedule::ID, "m1"));
        assert_eq!(given(&[publisher, ours, (STORED_AT, "9")]).as_deref(), Some("m1"));
        assert_eq!(given(&[publisher, ours, (schedule::DUE, "1")]).as_deref(), Some("m1"));
        assert_eq!(given(&[publisher, ours]).as_deref(), Some(publisher.1), "a header of the publisher's");
        assert_eq!(given(&[publisher, (STORED_AT, "9")]).as_deref(), Some(publisher.1));
        assert_eq!(given(&[("Nats-Msg-Id", "")]), None);
    }

    #[test]
    fn backoff_doubles_up_to_its_cap() {
        assert_eq!(backoff(1), Duration::from_millis(250));
        assert_eq!(backoff(2), Duration::from_millis(500));
        assert_eq!(backoff(40), Duration::from_secs(15));
    }
}
