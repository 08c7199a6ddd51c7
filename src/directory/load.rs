//! Reads all keys of one audience from the bucket.
//!
//! One direct get with `multi_last` answers up to 1,024 keys in one round trip. For larger audiences the server says
//! 413, and an ordered consumer with the last message of each subject reads them.

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use futures::StreamExt;
use serde_json::json;

use super::ask::AskError;
use super::members::{self, Key, Members};
use crate::nats::AUDIENCE;
use crate::nats::direct_get::{self, DirectGetError, End, TIMEOUT};

/// Why an audience could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The server did not answer, or refused.
    #[error("bucket {AUDIENCE}: {0}")]
    Direct(#[from] DirectGetError),
    /// The members stopped coming.
    #[error("bucket {AUDIENCE}: no answer within {TIMEOUT:?}")]
    TimedOut,
    /// The service that owns memberships gave none.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The connection or the consumer failed.
    #[error("bucket {AUDIENCE}: {0}")]
    Nats(async_nats::Error),
}

fn nats(error: impl Into<async_nats::Error>) -> LoadError {
    LoadError::Nats(error.into())
}

/// Reads the audience `key`. One that nobody ever wrote comes back as [`Members::is_unknown`].
pub(crate) async fn load(context: &Context, key: &Key) -> Result<Members, LoadError> {
    let mut members = Members::default();
    let request = json!({ "multi_last": subjects(key) });
    let take = |stored: direct_get::Stored| apply(&mut members, stored.subject(), stored.body());
    match direct_get::many(&context.client(), &format!("KV_{AUDIENCE}"), &request, take).await? {
        End::Complete => Ok(members),
        // Boxed: it is seldom needed, and every look-up's future would have its size.
        End::More(_) | End::TooMany => Box::pin(ordered(context, key)).await,
    }
}

/// The subjects of an audience: its members and its header.
fn subjects(key: &Key) -> [String; 2] {
    let header = format!("$KV.{AUDIENCE}.{}", key.header());
    [format!("{header}.>"), header]
}

fn apply(members: &mut Members, subject: &str, body: &[u8]) {
    let key = subject.strip_prefix(concat!("$KV.", "audience", "."));
    if let Some((_, change)) = key.and_then(|key| members::parse(key, body)) {
        members.apply(change);
    }
}

/// Reads any number of keys, in several round trips.
async fn ordered(context: &Context, key: &Key) -> Result<Members, LoadError> {
    let stream = context.get_stream_no_info(format!("KV_{AUDIENCE}")).await.map_err(nats)?;
    let config = pull::OrderedConfig {
        filter_subjects: subjects(key).into(),
        deliver_policy: DeliverPolicy::LastPerSubject,
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(nats)?;
    let mut members = Members::default();
    if consumer.cached_info().num_pending == 0 {
        return Ok(members);
    }
    let mut messages = consumer.messages().await.map_err(nats)?;
    loop {
        let next = tokio::time::timeout(TIMEOUT, messages.next()).await.map_err(|_| LoadError::TimedOut)?;
        let message = next.ok_or(LoadError::TimedOut)?.map_err(nats)?;
        apply(&mut members, &message.subject, &message.payload);
        if message.info().map_err(nats)?.pending == 0 {
            return Ok(members);
        }
    }
}
