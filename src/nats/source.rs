//! Where notifications come from: a pull stream on one lane's durable consumer. Advisories come the same way.
//!
//! First stop of the path. A source never ends: errors of the stream are logged and counted, and a stream that ended
//! (consumer deleted, server away for long) is opened again with a capped backoff. No task of our own runs here.

use std::sync::Arc;
use std::time::Duration;

use async_nats::header::{HeaderMap, HeaderName};
use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use metrics::counter;
use tokio::time::Instant;

use super::acker::Voice;
use super::pull::Pull;
use super::{Acker, schedule};

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
pub(super) fn first_stored_us(headers: Option<&HeaderMap>, stored_us: i128) -> u64 {
    const NAME: HeaderName = HeaderName::from_static(STORED_AT);
    let stored_us = stored_us.max(0) as u64;
    let first = headers.and_then(|headers| headers.get(NAME)?.as_str().parse().ok());
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
    pub fn header(&self, name: &'static str) -> Option<&str> {
        if self.headers.is_empty() {
            return None;
        }
        // A name that lives for ever need not be copied to be looked up.
        self.headers.get(HeaderName::from_static(name)).map(async_nats::HeaderValue::as_str)
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
    stream_name: String,
    consumer: &'static str,
    window_max: usize,
    splitter: Splitter,
    pull: Option<Pull>,
    opened: Instant,
    failures: u32,
}

impl Source {
    /// A source on the durable `consumer` of `stream_name`, which asks for at most `window_max` messages at a time. Opened
    /// at first use.
    pub fn new(context: Context, stream_name: &str, consumer: &'static str, window_max: usize) -> Self {
        let stream_name = stream_name.to_owned();
        Self {
            splitter: Splitter::new(&context),
            context,
            stream_name,
            consumer,
            window_max,
            pull: None,
            opened: Instant::now(),
            failures: 0,
        }
    }

    /// Waits for the next message. Dropping the future loses nothing.
    pub async fn next(&mut self) -> (Message, Acker) {
        loop {
            let Some(pull) = &mut self.pull else {
                self.open().await;
                continue;
            };
            match pull.next().await {
                Ok(message) => {
                    self.failures = 0;
                    if let Some(incoming) = self.splitter.split(message) {
                        return incoming;
                    }
                }
                Err(error) => {
                    counter!("fanfare_nats_pull_errors_total", "kind" => error.kind()).increment(1);
                    tracing::warn!(%error, stream = %self.stream_name, consumer = self.consumer, "pulling had an error and goes on");
                    if self.opened.elapsed() > Duration::from_millis(REOPEN_MS.1) {
                        self.failures = 0;
                    }
                    // What is still on its way to the old inbox is delivered again.
                    self.pull = None;
                }
            }
        }
    }

    /// The messages that were pulled and not taken, so that they can be given back. Ends the stream.
    pub fn left_over(&mut self) -> Vec<(Message, Acker)> {
        let messages = self.pull.take().map_or_else(Vec::new, Pull::left_over);
        messages.into_iter().filter_map(|message| self.splitter.split(message)).collect()
    }

    async fn open(&mut self) {
        if self.failures > 0 {
            tokio::time::sleep(backoff(self.failures)).await;
        }
        self.failures = self.failures.saturating_add(1);
        match Pull::open(&self.context, &self.stream_name, self.consumer, self.window_max).await {
            Ok(pull) => (self.pull, self.opened) = (Some(pull), Instant::now()),
            Err(error) => {
                counter!("fanfare_nats_pull_errors_total", "kind" => error.kind()).increment(1);
                tracing::error!(
                    %error,
                    stream = %self.stream_name,
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

/// Doubles from the first wait to the longest.
fn backoff(failures: u32) -> Duration {
    let (first, longest) = REOPEN_MS;
    Duration::from_millis(first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest))
}

/// Takes what came apart into the message and the right to settle it.
struct Splitter {
    /// Lent to each message in turn, whose place in the stream is not told without one: it has much to copy.
    context: Option<Context>,
    voice: Arc<Voice>,
}

impl Splitter {
    fn new(context: &Context) -> Self {
        Self { context: Some(context.clone()), voice: Arc::new(Voice::new(context.client())) }
    }

    fn split(&mut self, message: async_nats::Message) -> Option<(Message, Acker)> {
        let context = self.context.take().expect("given back below");
        let message = jetstream::Message { message, context };
        let origin = origin(&message);
        let jetstream::Message { message, context } = message;
        self.context = Some(context);
        let incoming = origin.and_then(|origin| {
            let reply = message.reply.ok_or("it has no reply subject")?;
            let incoming = Message {
                subject: message.subject.to_string(),
                body: message.payload,
                headers: message.headers.unwrap_or_default(),
                origin,
            };
            Ok((incoming, Acker::new(reply, self.voice.clone())))
        });
        incoming
            .inspect_err(|error| {
                counter!("fanfare_nats_pull_errors_total", "kind" => "not_jetstream").increment(1);
                tracing::error!(%error, "a message came to the pull inbox that JetStream did not send");
            })
            .ok()
    }
}

fn origin(message: &jetstream::Message) -> Result<Origin, async_nats::Error> {
    let info = message.info()?;
    let stored_us = info.published.unix_timestamp_nanos() / 1_000;
    Ok(Origin {
        stream: info.stream.to_owned(),
        seq: info.stream_sequence,
        stored_at_us: first_stored_us(message.headers.as_ref(), stored_us),
        deliveries: info.delivered.max(0) as u64,
    })
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
        assert_eq!(first_stored_us(Some(&headers), 7), 7);
        for (header, first) in [("5", 5), ("9", 7), ("soon", 7)] {
            headers.insert(STORED_AT, header);
            assert_eq!(first_stored_us(Some(&headers), 7), first, "{header}");
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
