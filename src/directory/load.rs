//! Reads all keys of one audience from the bucket.
//!
//! One direct get with `multi_last` answers up to 1,024 keys in one round trip. For larger audiences the server says
//! 413, and an ordered consumer with the last message of each subject reads them.

use std::time::Duration;

use async_nats::StatusCode;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use bytes::Bytes;
use futures::StreamExt;

use super::members::{self, Key, Members};
use crate::nats::AUDIENCE;

/// No answer within 5 s is none: JetStream's own time limit for requests.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Status that ends a batch of direct gets.
const END_OF_BATCH: u16 = 204;

/// More subjects matched than one answer can hold.
const TOO_MANY: u16 = 413;

/// Why an audience could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The server did not answer in time; without permission it does not answer at all.
    #[error("no answer from bucket {AUDIENCE} within {TIMEOUT:?} (a missing permission looks the same)")]
    TimedOut,
    /// The bucket does not exist, or refuses direct gets.
    #[error("bucket {AUDIENCE}: {0} (if it does not exist, run `fanfare provision apply`)")]
    Refused(String),
    /// The connection or the consumer failed.
    #[error("bucket {AUDIENCE}: {0}")]
    Nats(async_nats::Error),
}

fn nats(error: impl Into<async_nats::Error>) -> LoadError {
    LoadError::Nats(error.into())
}

/// Reads the audience `key`. One that nobody ever wrote comes back as [`Members::is_unknown`].
pub(crate) async fn load(context: &Context, key: &Key) -> Result<Members, LoadError> {
    let direct =
        tokio::time::timeout(TIMEOUT, direct(context, key)).await.map_err(|_| LoadError::TimedOut)??;
    match direct {
        Some(members) => Ok(members),
        None => ordered(context, key).await,
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

/// One request; `None` when there are too many keys for it.
async fn direct(context: &Context, key: &Key) -> Result<Option<Members>, LoadError> {
    let client = context.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(nats)?;
    let request = serde_json::json!({ "multi_last": subjects(key) }).to_string();
    let subject = format!("$JS.API.DIRECT.GET.KV_{AUDIENCE}");
    client.publish_with_reply(subject, inbox, Bytes::from(request)).await.map_err(nats)?;
    let mut members = Members::default();
    while let Some(answer) = answers.next().await {
        match answer.status.map(|status| status.as_u16()) {
            None => {
                let headers = answer.headers.unwrap_or_default();
                let subject = headers.get("Nats-Subject").map_or("", |value| value.as_str());
                apply(&mut members, subject, &answer.payload);
                // Without a last word the count of what is left tells the end.
                if headers.get("Nats-Num-Pending").is_some_and(|left| left.as_str() == "0") {
                    return Ok(Some(members));
                }
            }
            Some(END_OF_BATCH | 404) => return Ok(Some(members)),
            Some(TOO_MANY) => return Ok(None),
            Some(status) => {
                let text = answer.description.as_deref().map(str::to_owned);
                let no_responders = StatusCode::NO_RESPONDERS.as_u16() == status;
                let default = if no_responders { "nobody serves direct gets of it" } else { "refused" };
                return Err(LoadError::Refused(
                    text.filter(|text| !text.is_empty()).unwrap_or(default.to_owned()),
                ));
            }
        }
    }
    Err(LoadError::TimedOut)
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
