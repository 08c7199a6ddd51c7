//! The sweeper: brings to the dead letters what JetStream gave up by itself.
//!
//! A message that used up its deliveries stays in the work queue and is given to nobody any more; the server's
//! advisory is all that tells of it. All nodes share the durable consumer of ADVISORIES, and each takes one advisory
//! after the other: there is one only for what failed. A terminated message needs nothing, it left the queue with its
//! Term; ours are in the dead letters before that.

use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::handler::Handler;
use crate::delivery::evidence::Record;
use crate::delivery::{Ledger, dead_letter, retry};
use crate::nats::{ADVISORIES, Acker, Message, Source, stored};
use crate::pipeline::{Reason, Refusal};

/// The durable consumer of [`ADVISORIES`].
const CONSUMER: &str = "sweeper";

/// Advisories asked for at once. Each is a few requests, so the last one begins well within `ack_wait`.
const BATCH: usize = 16;

/// Time between two tries to delete a message whose dead letter is written.
const DELETE_AGAIN: Duration = Duration::from_secs(5);

/// What the clocks of two servers may differ by.
const CLOCKS_US: u64 = 5_000_000;

/// What the server says about a message that used up its deliveries.
#[derive(Debug, Deserialize)]
struct Advisory {
    timestamp: String,
    stream: String,
    consumer: String,
    stream_seq: u64,
    deliveries: u64,
}

/// How an advisory ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Swept {
    /// Its message is in the dead letters and nowhere else.
    DeadLettered,
    /// Its message is gone: somebody else was faster, or it was too old.
    Gone,
    /// It is about a stream that this node does not pull from, and whose messages it must not touch.
    Foreign,
}

impl Swept {
    fn as_str(self) -> &'static str {
        match self {
            Self::DeadLettered => "dead_lettered",
            Self::Gone => "gone",
            Self::Foreign => "foreign",
        }
    }
}

/// Sweeps `streams` for ever.
pub(super) async fn run(handler: Arc<Handler>, streams: Vec<String>) {
    let mut source = Source::new(handler.context().clone(), ADVISORIES, CONSUMER, BATCH);
    loop {
        let (message, acker) = source.next().await;
        let advisory: Advisory = match serde_json::from_slice(&message.body) {
            Ok(advisory) => advisory,
            Err(error) => {
                counted("unreadable");
                tracing::error!(%error, advisory_seq = message.origin.seq, "an advisory cannot be read and is left out");
                acker.term().await;
                continue;
            }
        };
        match sweep(&handler, &streams, &advisory, &acker).await {
            Ok(Swept::Foreign) => {
                counted(Swept::Foreign.as_str());
                tracing::error!(
                    stream = advisory.stream,
                    "an advisory is about a stream that is not in worker.streams; another node may know it"
                );
                acker.nak(retry::refused_write_delay(message.origin.deliveries, rand::random())).await;
            }
            Ok(swept) => {
                counted(swept.as_str());
                acker.ack().await;
            }
            Err(error) => {
                let delay = retry::refused_write_delay(message.origin.deliveries, rand::random());
                tracing::error!(
                    %error,
                    stream = advisory.stream,
                    stream_seq = advisory.stream_seq,
                    delay_s = delay.as_secs(),
                    "a message that used up its deliveries could not be swept and is tried again later"
                );
                acker.nak(delay).await;
            }
        }
    }
}

async fn sweep(
    handler: &Handler,
    streams: &[String],
    advisory: &Advisory,
    acker: &Acker,
) -> Result<Swept, Box<dyn std::error::Error + Send + Sync>> {
    // Whoever may publish advisories could name any stream, and its message would be deleted.
    if !streams.contains(&advisory.stream) {
        return Ok(Swept::Foreign);
    }
    let context = handler.context();
    let stored = stored::get(context, &advisory.stream, advisory.stream_seq).await?;
    let Some(mut message) = stored.filter(|message| about(advisory, message)) else { return Ok(Swept::Gone) };
    message.origin.deliveries = advisory.deliveries;
    let detail = format!(
        "consumer {} of {} delivered it {} times, and nobody said what became of it",
        advisory.consumer, advisory.stream, advisory.deliveries
    );
    let refusal = Refusal::new(Reason::MaxDeliveries, detail);
    dead_letter::write(context, handler.catalog(), &message, &refusal).await?;
    let record = Record::dead_lettered(&message, &refusal);
    handler.commit(Ledger::dead_lettered(record));
    // Not from the beginning: after `duplicate_window` a repetition would write a second dead letter.
    while let Err(error) = stored::delete(context, &advisory.stream, advisory.stream_seq).await {
        tracing::error!(%error, "a dead letter is written and its message cannot be deleted; tried again");
        tokio::time::sleep(DELETE_AGAIN).await;
        acker.progress().await;
    }
    Ok(Swept::DeadLettered)
}

/// Is it the message that the advisory means? In a stream that was made anew another one has its sequence.
fn about(advisory: &Advisory, message: &Message) -> bool {
    OffsetDateTime::parse(&advisory.timestamp, &Rfc3339).is_ok_and(|at| {
        let at_us = (at.unix_timestamp_nanos() / 1_000).max(0) as u64;
        message.origin.stored_at_us <= at_us + CLOCKS_US
    })
}

fn counted(result: &'static str) {
    counter!("fanfare_worker_given_up_total", "result" => result).increment(1);
}

/// Describes the metrics of this part.
pub(super) fn describe() {
    metrics::describe_counter!(
        "fanfare_worker_given_up_total",
        "messages that used up their deliveries, by result: dead_lettered, gone, foreign, unreadable"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::Origin;

    #[test]
    fn an_advisory_is_not_about_a_message_that_is_younger() {
        let text = r#"{"type":"io.nats.jetstream.advisory.v1.max_deliver","id":"x",
            "timestamp":"2026-11-22T13:00:00.5Z","stream":"NOTIFICATIONS","consumer":"high","stream_seq":7,
            "deliveries":20}"#;
        let advisory: Advisory = serde_json::from_str(text).unwrap();
        let at_us = 1_795_352_400_500_000;
        let message = |stored_at_us| Message {
            subject: String::new(),
            body: "".into(),
            headers: async_nats::HeaderMap::new(),
            origin: Origin { stream: "NOTIFICATIONS".to_owned(), seq: 7, stored_at_us, deliveries: 0 },
        };

        assert_eq!((advisory.stream_seq, advisory.deliveries), (7, 20));
        assert!(about(&advisory, &message(at_us - 60_000_000)));
        assert!(about(&advisory, &message(at_us + CLOCKS_US)), "clocks differ");
        assert!(!about(&advisory, &message(at_us + CLOCKS_US + 1)));
    }
}
