//! Direct gets that answer with many messages: one request, no consumer.
//!
//! The client library has no call for them, so request and answers are raw. Any replica answers, which may lag behind
//! the leader by milliseconds.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, StatusCode};
use futures::StreamExt;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// No answer within 5 s is none: JetStream's own time limit for requests.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a direct get failed.
#[derive(Debug, thiserror::Error)]
pub enum DirectGetError {
    /// The server did not answer in time; without permission it does not answer at all.
    #[error("no answer within {TIMEOUT:?} (a missing permission looks the same)")]
    TimedOut,
    /// The stream does not exist, or refuses direct gets.
    #[error("{0} (if the stream does not exist, run `fanfare provision apply`)")]
    Refused(String),
    /// The connection failed.
    #[error(transparent)]
    Nats(async_nats::Error),
}

/// How a direct get ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Every match was answered.
    Complete,
    /// There are so many more: ask again after the last sequence.
    More(u64),
    /// Too many subjects match for one answer (status 413).
    TooMany,
}

/// One stored message.
#[derive(Debug)]
pub struct Stored {
    message: Message,
}

impl Stored {
    /// The subject it is stored under.
    pub fn subject(&self) -> &str {
        self.header("Nats-Subject").unwrap_or_default()
    }

    /// Its sequence in the stream.
    pub fn sequence(&self) -> u64 {
        self.header("Nats-Sequence").and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// Unix milliseconds at which JetStream stored it.
    pub fn stored_ms(&self) -> u64 {
        let time = self.header("Nats-Time-Stamp").and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        time.map_or(0, |time| (time.unix_timestamp_nanos() / 1_000_000).max(0) as u64)
    }

    /// The body.
    pub fn body(&self) -> &bytes::Bytes {
        &self.message.payload
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.message
            .headers
            .as_ref()
            .and_then(|headers: &HeaderMap| headers.get(name))
            .map(async_nats::HeaderValue::as_str)
    }

    /// Matches that were not answered yet.
    fn pending(&self) -> Option<u64> {
        self.header("Nats-Num-Pending").and_then(|text| text.parse().ok())
    }
}

/// Asks the leader of `stream`, which knows every write that was acknowledged, whether it has a message for `request`.
pub async fn leader_has(client: &Client, stream: &str, request: &Value) -> Result<bool, DirectGetError> {
    let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
    let answer = tokio::time::timeout(TIMEOUT, client.request(subject, request.to_string().into()))
        .await
        .map_err(|_| DirectGetError::TimedOut)?
        .map_err(|error| DirectGetError::Nats(error.into()))?;
    let answer: Value =
        serde_json::from_slice(&answer.payload).map_err(|error| DirectGetError::Nats(error.into()))?;
    match answer["error"]["code"].as_u64() {
        None => Ok(true),
        Some(404) => Ok(false),
        Some(_) => Err(DirectGetError::Refused(answer["error"].to_string())),
    }
}

/// Sends `request` to `stream` and gives each stored message to `take`.
pub async fn many(
    client: &Client,
    stream: &str,
    request: &Value,
    take: impl FnMut(Stored),
) -> Result<End, DirectGetError> {
    tokio::time::timeout(TIMEOUT, answers(client, stream, request, take))
        .await
        .map_err(|_| DirectGetError::TimedOut)?
}

async fn answers(
    client: &Client,
    stream: &str,
    request: &Value,
    mut take: impl FnMut(Stored),
) -> Result<End, DirectGetError> {
    let nats = |error: async_nats::Error| DirectGetError::Nats(error);
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| nats(error.into()))?;
    let subject = format!("$JS.API.DIRECT.GET.{stream}");
    client
        .publish_with_reply(subject, inbox, request.to_string().into())
        .await
        .map_err(|error| nats(error.into()))?;
    let mut left = 0;
    while let Some(message) = answers.next().await {
        match message.status.map(|status| status.as_u16()) {
            None => {
                let stored = Stored { message };
                left = stored.pending().unwrap_or_default();
                take(stored);
            }
            // The end of the batch, or nothing found.
            Some(204) if left > 0 => return Ok(End::More(left)),
            Some(204 | 404) => return Ok(End::Complete),
            Some(413) => return Ok(End::TooMany),
            Some(status) => return Err(DirectGetError::Refused(refusal(status, message.description))),
        }
    }
    Err(DirectGetError::TimedOut)
}

fn refusal(status: u16, description: Option<String>) -> String {
    match description.filter(|text| !text.is_empty()) {
        Some(text) => text,
        None if status == StatusCode::NO_RESPONDERS.as_u16() => "nobody serves direct gets of it".to_owned(),
        None => format!("refused with status {status}"),
    }
}
