//! Ephemeral notifications (typing): core NATS, never stored, at most once.
//!
//! One queue group over all nodes, so each is handled once. The subscription's capacity is the bound: when this node
//! does not keep up, the client drops the newest ones and says so in its connection events.

use async_nats::{Client, SubscribeError, Subscriber};
use futures::StreamExt;
use futures::stream::{SelectAll, select_all};

use super::source::{Message, Origin};

/// The queue group that all workers join.
pub const QUEUE_GROUP: &str = "fanfare";

/// The ephemeral notifications that this node is chosen for.
#[derive(Debug)]
pub struct Ephemeral {
    subscriptions: SelectAll<Subscriber>,
}

impl Ephemeral {
    /// Subscribes to `subjects`, those of the catalog's ephemeral events.
    pub async fn subscribe(client: &Client, subjects: Vec<String>) -> Result<Self, SubscribeError> {
        let mut subscriptions = Vec::new();
        for subject in subjects {
            subscriptions.push(client.queue_subscribe(subject, QUEUE_GROUP.to_owned()).await?);
        }
        Ok(Self { subscriptions: select_all(subscriptions) })
    }

    /// The next one and `now_ms()`, read when it arrived, as its time. Never resolves when there is no
    /// subject or the connection is closed for good.
    pub async fn next(&mut self, now_ms: impl Fn() -> u64) -> Message {
        match self.subscriptions.next().await {
            Some(message) => Message {
                subject: message.subject.to_string(),
                body: message.payload,
                headers: message.headers.unwrap_or_default(),
                origin: Origin {
                    stream: String::new(),
                    seq: 0,
                    stored_at_us: now_ms() * 1_000,
                    deliveries: 1,
                },
            },
            None => std::future::pending().await,
        }
    }
}
