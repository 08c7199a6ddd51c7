//! The publisher: a plain NATS client that repeats a publish until JetStream has it, as services should.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::message::PublishMessage;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::account::{Copy, Published};

/// Publishes waiting for their acknowledgement at once.
const IN_FLIGHT: usize = 64;

/// Time for one acknowledgement, then the publish is repeated with the same id.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);

/// Wait before a repetition.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What to publish.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// The event of every notification, in turn.
    pub(crate) events: &'static [&'static str],
    /// To these users in turn.
    pub(crate) users: Vec<String>,
    /// Number of the first one, in its id.
    pub(crate) first: usize,
    /// So many altogether.
    pub(crate) count: usize,
    /// So many a second, evenly; as fast as it goes when `None`.
    pub(crate) per_s: Option<u32>,
    /// Bytes of text in each payload.
    pub(crate) bytes: usize,
    /// `metadata` of each envelope.
    pub(crate) metadata: Value,
    /// Seconds by which the publisher's clock is off.
    pub(crate) clock_off_s: i64,
}

impl Load {
    /// `count` notifications of `events` to `users`.
    pub(crate) fn new(events: &'static [&'static str], users: &[String], count: usize) -> Self {
        Self {
            events,
            users: users.to_vec(),
            first: 0,
            count,
            per_s: None,
            bytes: 16,
            metadata: json!({}),
            clock_off_s: 0,
        }
    }

    /// When the one with this number is published.
    fn due(&self, started: Instant, number: usize) -> Instant {
        let after = self.per_s.map(|per_s| Duration::from_secs_f64(number as f64 / f64::from(per_s)));
        started + after.unwrap_or_default()
    }

    fn message(&self, number: usize) -> (String, String, Copy) {
        let event = self.events[number % self.events.len()];
        let user = &self.users[(number / self.events.len()) % self.users.len()];
        let id = format!("{event}-{user}-{}", self.first + number);
        let text = "x".repeat(self.bytes);
        let payload = match event {
            "message.typing" => json!({"conversation_id": id, "from_user_id": "somebody", "typing": true}),
            // Each is a state of its own: repeats of one would be shown once.
            "session.pin_updated" => json!({"conversation_id": id, "is_pinned": true}),
            _ => json!({"conversation_type": "single", "message": id, "content": text}),
        };
        let envelope = json!({
            "notification_id": id, "type": event, "timestamp": unix_s() + self.clock_off_s,
            "payload": payload, "metadata": self.metadata,
        });
        (format!("notification.{event}.{user}"), envelope.to_string(), (user.clone(), id))
    }
}

#[expect(clippy::disallowed_methods, reason = "a publisher's own clock")]
fn unix_s() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_secs() as i64
}

/// How many are published. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(watch::Sender<usize>);

impl Progress {
    pub(crate) fn count(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until `count` are published.
    pub(crate) async fn reached(&self, count: usize) {
        let mut published = self.0.subscribe();
        published.wait_for(|published| *published >= count).await.expect("the sender is here");
    }
}

/// Publishes all of `load` to JetStream and gives what it has acknowledged: everything.
pub(crate) async fn publish(context: &Context, load: &Load, progress: &Progress) -> Vec<Published> {
    let started = Instant::now();
    let publishes = futures::stream::iter(0..load.count).map(|number| async move {
        tokio::time::sleep_until(load.due(started, number)).await;
        let (subject, body, copy) = load.message(number);
        loop {
            let message = PublishMessage::build().payload(body.clone().into()).message_id(&copy.1);
            let publish = async { context.send_publish(subject.clone(), message).await.ok()?.await.ok() };
            if let Ok(Some(_)) = tokio::time::timeout(ACK_TIMEOUT, publish).await {
                progress.0.send_modify(|published| *published += 1);
                return Published { copy, at: Instant::now() };
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    });
    Box::pin(publishes.buffer_unordered(IN_FLIGHT)).collect().await
}

/// Publishes all of `load` with core NATS, for events that no stream stores.
pub(crate) async fn publish_core(client: &async_nats::Client, load: &Load) -> anyhow::Result<Vec<Published>> {
    let started = Instant::now();
    let mut published = Vec::new();
    for number in 0..load.count {
        tokio::time::sleep_until(load.due(started, number)).await;
        let (subject, body, copy) = load.message(number);
        client.publish(subject, body.into()).await?;
        published.push(Published { copy, at: Instant::now() });
    }
    client.flush().await?;
    Ok(published)
}
