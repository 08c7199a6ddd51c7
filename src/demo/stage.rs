//! The demo's world: a few users who know each other, and the samples published to them.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::State;
use serde_json::{Value, json};

use super::samples::{self, Sample};
use super::scenario::Step;
use crate::catalog::{Catalog, Kind, Role, ShapeMode, Target};
use crate::clock::Now;
use crate::directory::{Change, ChangeError, Key, Writer};
use crate::id::UserId;
use crate::nats::QUEUES;

/// The demo's users.
pub const USERS: [&str; 4] = ["alice", "bob", "carol", "dave"];

/// The sets that the samples speak of.
const SETS: [(Kind, &str); 4] = [
    (Kind::Group, "group-123"),
    (Kind::Group, "group-456"),
    (Kind::Conversation, "conv-456"),
    (Kind::Call, "call-123"),
];

/// The state of the work queues together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Queued {
    /// Messages that wait.
    pub waiting: u64,
    /// Messages that were ever stored.
    pub stored: u64,
}

/// Why a sample was not published.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// There is no sample of this type.
    #[error("there is no sample of type {0}")]
    UnknownSample(String),
    /// NATS refused, or the bucket did.
    #[error("NATS: {0}")]
    Nats(String),
}

impl From<ChangeError> for StageError {
    fn from(error: ChangeError) -> Self {
        Self::Nats(error.to_string())
    }
}

/// What was published.
#[derive(Debug)]
pub struct Published {
    /// The subject.
    pub subject: String,
    /// The id in the envelope.
    pub notification_id: String,
    /// The envelope.
    pub envelope: Value,
}

/// Publishes samples and keeps the sets they need.
#[derive(Debug)]
pub struct Stage {
    client: async_nats::Client,
    context: Context,
    writer: Writer,
    catalog: Arc<Catalog>,
}

impl Stage {
    /// Opens the `audience` bucket.
    pub async fn open(
        client: async_nats::Client,
        context: Context,
        catalog: Arc<Catalog>,
    ) -> Result<Self, StageError> {
        Ok(Self { client, writer: Writer::open(context.clone()).await?, context, catalog })
    }

    /// Makes the demo's users know each other.
    pub async fn populate(&self) -> Result<(), StageError> {
        for user in USERS {
            self.settle(&UserId::new(user).expect("a valid id")).await?;
        }
        Ok(())
    }

    /// Makes `user` a member of the demo's sets, and a follower of everybody.
    async fn settle(&self, user: &UserId) -> Result<(), StageError> {
        for (kind, id) in SETS {
            self.add(kind, id, user).await?;
        }
        for friend in USERS.into_iter().filter(|friend| *friend != user.as_str()) {
            self.add(Kind::Followers, friend, user).await?;
        }
        Ok(())
    }

    async fn add(&self, kind: Kind, id: &str, user: &UserId) -> Result<(), StageError> {
        let key = Key::new(kind, id).expect("a stored kind and a valid id");
        let v = Now::read().unix_ms * 1_000;
        self.writer.write(&key, &Change::Member { user: user.clone(), role: Some(Role::Member), v }).await?;
        Ok(())
    }

    /// Publishes the sample of `event_type` as a service would, so that `user` is among those who get it.
    pub async fn publish_sample(&self, event_type: &str, user: &UserId) -> Result<Published, StageError> {
        let unknown = || StageError::UnknownSample(event_type.to_owned());
        let sample = sample(event_type).ok_or_else(unknown)?;
        let target = self.catalog.get(event_type).ok_or_else(unknown)?.target;
        if !matches!(target, Target::User | Target::Any | Target::Broadcast | Target::Name) {
            self.settle(user).await?;
        }
        let (token, payload) = addressed(&sample, target, user);
        self.publish(event_type, &token, payload, json!({})).await
    }

    /// Publishes a step of a scenario, with `names` replaced by others.
    pub async fn publish_step(&self, step: &Step, names: &[(&str, &str)]) -> Result<Published, StageError> {
        let sample =
            sample(step.event_type).ok_or_else(|| StageError::UnknownSample(step.event_type.to_owned()))?;
        let payload = samples::renamed(&sample.payload_at(now_s(), &step.fields), names);
        let target = names.iter().find(|(old, _)| *old == step.target).map_or(step.target, |(_, new)| new);
        self.publish(step.event_type, target, payload, step.metadata.clone()).await
    }

    /// Publishes one notification with a plain core NATS publish, as the specification's services do. Who caused it is
    /// whom the payload names as `from_user_id`.
    pub async fn publish(
        &self,
        event_type: &str,
        target: &str,
        payload: Value,
        metadata: Value,
    ) -> Result<Published, StageError> {
        let subject = format!("notification.{event_type}.{target}");
        let notification_id = uuid::Uuid::new_v4().to_string();
        let mut envelope = json!({
            "notification_id": notification_id,
            "type": event_type,
            "timestamp": Now::read().unix_ms / 1_000,
            "payload": payload,
            "metadata": metadata,
        });
        let from = envelope["payload"].get("from_user_id").filter(|from| from.is_string()).cloned();
        if let Some(from) = from {
            envelope["from_user_id"] = from;
        }
        let refused = |error: String| StageError::Nats(error);
        self.client
            .publish(subject.clone(), envelope.to_string().into())
            .await
            .map_err(|error| refused(error.to_string()))?;
        self.client.flush().await.map_err(|error| refused(error.to_string()))?;
        Ok(Published { subject, notification_id, envelope })
    }

    /// Messages in a stream.
    pub async fn count(&self, stream: &str) -> Result<u64, StageError> {
        Ok(self.state(stream).await?.messages)
    }

    /// What waits in the work queues, and how much they ever held.
    pub async fn queued(&self) -> Result<Queued, StageError> {
        let mut queued = Queued::default();
        for queue in QUEUES {
            let state = self.state(queue).await?;
            queued.waiting += state.messages;
            queued.stored += state.last_sequence;
        }
        Ok(queued)
    }

    async fn state(&self, stream: &str) -> Result<State, StageError> {
        let stream = self.context.get_stream(stream).await;
        Ok(stream.map_err(|error| StageError::Nats(error.to_string()))?.cached_info().state.clone())
    }

    /// How long a lone notification of this type waits for later ones to replace it.
    pub fn held(&self, event_type: &str) -> Option<Duration> {
        let shape = self.catalog.get(event_type)?.shape.as_ref()?;
        let waits = shape.mode == ShapeMode::Coalesce && !shape.leading;
        waits.then(|| Duration::from_millis(shape.window_ms))
    }

    /// The way into the `audience` bucket.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }
}

fn sample(event_type: &str) -> Option<Sample> {
    samples::all().into_iter().find(|sample| sample.event_type == event_type)
}

fn now_s() -> i64 {
    (Now::read().unix_ms / 1_000) as i64
}

/// The last token of the subject and the payload, with `user` in the place of the specification's `user-123`.
fn addressed(sample: &Sample, target: Target, user: &UserId) -> (String, Value) {
    let payload = sample.payload_at(now_s(), &[]);
    let payload = samples::renamed(
        &payload,
        &[("user-123", user.as_str()), ("user-456", "bob"), ("user-789", "carol")],
    );
    let field = |name: &str| payload.get(name).and_then(Value::as_str).unwrap_or(user.as_str()).to_owned();
    let token = match target {
        Target::User | Target::Any => user.to_string(),
        Target::Group => field("group_id"),
        Target::Conversation => field("conversation_id"),
        Target::Call => field("call_id"),
        Target::Broadcast => "broadcast".to_owned(),
        Target::Name => sample.target.clone(),
    };
    (token, payload)
}
