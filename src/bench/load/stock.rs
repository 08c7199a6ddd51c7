//! Streams are filled as fast as it goes, and emptied by the loop that emptying costs at least.

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{Consumer, pull};
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::publisher::{Message, Publisher};
use crate::bench::process::{Said, say};
use crate::bench::{BenchError, failed};

/// Messages between two words about how far it is.
const SAY_EVERY: u64 = 20_000;

/// Messages asked for at once by the raw loop.
const BATCH: usize = 1_000;

/// What a stream is filled with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::bench) struct Fill {
    /// Sets its ids apart from those of others.
    pub(in crate::bench) number: u32,
    /// What stands before the event in the subject.
    pub(in crate::bench) root: String,
    /// The event.
    pub(in crate::bench) event: String,
    /// Users are `{prefix}{n}`.
    pub(in crate::bench) prefix: String,
    /// How many, in turn.
    pub(in crate::bench) users: u32,
    /// Messages.
    pub(in crate::bench) count: u64,
}

/// What the raw loop empties.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::bench) struct Drain {
    pub(in crate::bench) stream: String,
    pub(in crate::bench) consumer: String,
    /// Messages until it is done.
    pub(in crate::bench) count: u64,
}

impl Fill {
    /// Subject and body of a message after the last one.
    pub(in crate::bench) fn one_more(&self) -> (String, String) {
        let Message { subject, body, .. } = self.message(self.count);
        (subject, body)
    }

    /// Some 500 B, as the specification's notifications.
    fn message(&self, n: u64) -> Message {
        let Self { number, root, event, prefix, users, .. } = self;
        let body = format!(
            r#"{{"notification_id":"fill-{number}-{n}","type":"{event}","timestamp":1700000000,"payload":{{"n":{n},"conversation_id":"c1","conversation_type":"group","content":"{:x>300}"}}}}"#,
            ""
        );
        let user = n % u64::from((*users).max(1));
        Message { subject: format!("{root}.{event}.{prefix}{user}"), to: (0, 0), body }
    }
}

/// Publishes everything and waits for the acknowledgements.
pub(super) async fn fill(publisher: &mut Publisher, fill: &Fill) -> Result<(), BenchError> {
    let refused = publisher.refused();
    for n in 0..fill.count {
        publisher.send(fill.message(n)).await?;
        if n % SAY_EVERY == SAY_EVERY - 1 {
            say(&Said::Progress(n + 1));
        }
    }
    publisher.settled().await;
    match publisher.refused() - refused {
        0 => Ok(()),
        refused => Err(format!("JetStream refused {refused} messages")).map_err(failed("fill a stream")),
    }
}

/// Pulls and acks, and does nothing with what comes.
pub(super) async fn drain(context: &Context, drain: &Drain) -> Result<(), BenchError> {
    let consumer: Consumer<pull::Config> = context
        .get_consumer_from_stream(&drain.consumer, &drain.stream)
        .await
        .map_err(failed("find the raw consumer"))?;
    let messages = consumer.stream().max_messages_per_batch(BATCH).messages();
    let mut messages = messages.await.map_err(failed("pull from the raw consumer"))?;
    let mut done = 0;
    while done < drain.count {
        let next =
            messages.next().await.ok_or("it has ended").map_err(failed("pull from the raw consumer"))?;
        // Errors of a pull stream are items: it goes on.
        let Ok(message) = next else { continue };
        message.ack().await.map_err(failed("ack"))?;
        done += 1;
    }
    context.client().flush().await.map_err(failed("ack"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_message_is_an_envelope_of_some_500_bytes() {
        let fill = Fill {
            number: 1,
            root: "notification".to_owned(),
            event: "sync.completed".to_owned(),
            prefix: "away-".to_owned(),
            users: 10,
            count: 20,
        };
        let message = fill.message(13);
        assert_eq!(message.subject, "notification.sync.completed.away-3");
        let envelope: serde_json::Value = serde_json::from_str(&message.body).unwrap();
        assert_eq!(envelope["notification_id"], "fill-1-13");
        assert!((450..550).contains(&message.body.len()), "{}", message.body.len());
    }
}
