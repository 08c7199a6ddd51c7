//! Reads what exists: configurations and states of the streams that are wanted or carry our label, and of their
//! consumers. No write is reachable from here.
//!
//! Configurations are read as plain JSON, because typed clients drop fields that they do not know.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::{Client, Request, RequestErrorKind};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Desired, Error, OWNER_LABEL, Wanted, step};

/// Oldest server that has message schedules (2.12).
pub const SERVER_MIN: (u64, u64) = (2, 12);

/// How long one API request may take. Three replicas need up to a second to make a stream.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Time in which a cluster elects leaders, and how often it is looked whether it has.
const COMPLETE_WITHIN: Duration = Duration::from_secs(10);
const LIST_AGAIN: Duration = Duration::from_millis(500);

/// JetStream error codes with a meaning of their own, from the server's `errors.json`.
mod code {
    pub(super) const NOT_ENABLED: u64 = 10076;
    pub(super) const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
}

/// A stream that exists.
#[derive(Debug, Clone, Default)]
pub struct LiveStream {
    /// Its configuration as the server tells it.
    pub config: Map<String, Value>,
    /// When it was made: another stream of the same name has another time.
    pub created: String,
    /// Messages it holds.
    pub messages: u64,
    /// Bytes it holds.
    pub bytes: u64,
    /// How old its oldest message is, by the server's clock; `None` when it is empty.
    pub oldest: Option<Duration>,
    /// Its consumers by name, also those that nobody declared.
    pub consumers: BTreeMap<String, LiveConsumer>,
}

impl LiveStream {
    /// The consumer that keeps the place of `consumer`: by its labels, since anybody may give a consumer such a name.
    pub(super) fn bookmark(&self, consumer: &str, owner: &str) -> Option<&LiveConsumer> {
        let bookmark = self.consumers.get(&step::bookmark(consumer))?;
        let keeps = label(&bookmark.config, step::BOOKMARK) == Some(consumer);
        (keeps && is_ours(&bookmark.config, owner)).then_some(bookmark)
    }
}

impl Live {
    /// The stream that keeps the next sequence of `stream`, by its labels.
    pub(super) fn note(&self, stream: &str, owner: &str) -> Option<&LiveStream> {
        let note = self.streams.get(&step::note(stream))?;
        let keeps = label(&note.config, step::NEXT_OF) == Some(stream);
        (keeps && is_ours(&note.config, owner)).then_some(note)
    }
}

/// A consumer that exists.
#[derive(Debug, Clone, Default)]
pub struct LiveConsumer {
    /// Its configuration as the server tells it.
    pub config: Map<String, Value>,
    /// When it was made.
    pub created: String,
    /// Messages that it has not handed out.
    pub pending: u64,
    /// Messages that it has handed out and that are not acknowledged.
    pub unacknowledged: u64,
    /// Until when it hands out nothing; `None` when it is not paused.
    pub paused_until: Option<String>,
}

/// What exists: the wanted streams, and those that carry our owner label.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// The server's version.
    pub version: String,
    /// The streams by name.
    pub streams: BTreeMap<String, LiveStream>,
    /// All others of the account: their names and subjects.
    pub others: Vec<(String, Vec<String>)>,
}

/// The entry of an object's `metadata` with this key.
pub(super) fn label<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    config.get("metadata")?.get(key)?.as_str()
}

/// True when an object carries the label of `owner`.
pub(super) fn is_ours(config: &Map<String, Value>, owner: &str) -> bool {
    label(config, OWNER_LABEL) == Some(owner)
}

/// Reads the wanted streams and those with our label, and all their consumers.
pub async fn observe(client: &Client, desired: &Desired) -> Result<Live, Error> {
    let wanted = |name: &str, config: &Map<String, Value>| {
        // Whoever has the name of a helper is known before one is to be made.
        let is_meant = |stream: &Wanted| stream.stream == name || step::note(&stream.stream) == name;
        is_ours(config, &desired.owner) || desired.streams.iter().any(is_meant)
    };
    observe_where(client, wanted).await
}

/// Reads every stream of the account and all their consumers.
pub async fn observe_all(client: &Client) -> Result<Live, Error> {
    observe_where(client, |_, _| true).await
}

async fn observe_where(
    client: &Client,
    wanted: impl Fn(&str, &Map<String, Value>) -> bool,
) -> Result<Live, Error> {
    let version = client.server_info().version;
    check_version(&version)?;
    let (mut streams, mut others) = (BTreeMap::new(), Vec::new());
    for info in list(client, "$JS.API.STREAM.LIST", "streams").await? {
        let config = object(&info, "config");
        let Some(name) = config.get("name").and_then(Value::as_str).map(str::to_owned) else { continue };
        if wanted(&name, &config) {
            let mut stream = live_stream(&info);
            for info in list(client, &format!("$JS.API.CONSUMER.LIST.{name}"), "consumers").await? {
                let consumer = live_consumer(&info);
                // The server's own, by which another stream sources this one.
                if consumer.config.get("sourcing") != Some(&Value::Bool(true)) {
                    stream.consumers.insert(text(&info, "name").to_owned(), consumer);
                }
            }
            streams.insert(name, stream);
        } else {
            others.push((name, super::plan::texts(&config, "subjects")));
        }
    }
    Ok(Live { version, streams, others })
}

/// A stream from what the server tells about it.
pub(super) fn live_stream(info: &Value) -> LiveStream {
    let state = |field: &str| info.pointer(&format!("/state/{field}"));
    let number = |field: &str| state(field).and_then(Value::as_u64).unwrap_or_default();
    let time = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
    let messages = number("messages");
    let first = state("first_ts").and_then(Value::as_str).and_then(time).filter(|_| messages > 0);
    let age = |first: OffsetDateTime| {
        let asked = time(text(info, "ts")).unwrap_or_else(OffsetDateTime::now_utc);
        Duration::try_from(asked - first).unwrap_or_default()
    };
    LiveStream {
        config: object(info, "config"),
        created: text(info, "created").to_owned(),
        messages,
        bytes: number("bytes"),
        oldest: first.map(age),
        consumers: BTreeMap::new(),
    }
}

/// A consumer from what the server tells about it.
pub(super) fn live_consumer(info: &Value) -> LiveConsumer {
    let number = |field: &str| info.get(field).and_then(Value::as_u64).unwrap_or_default();
    let paused = info.get("paused").and_then(Value::as_bool).unwrap_or_default();
    let until = info.pointer("/config/pause_until").and_then(Value::as_str).filter(|_| paused);
    LiveConsumer {
        config: object(info, "config"),
        created: text(info, "created").to_owned(),
        pending: number("num_pending"),
        unacknowledged: number("num_ack_pending"),
        paused_until: until.map(str::to_owned),
    }
}

/// Everything that a listing of the API has. Of a cluster, what is just being made or led by nobody does not answer for a
/// moment; also what the server makes for itself to source one stream from another.
async fn list(client: &Client, subject: &str, field: &str) -> Result<Vec<Value>, Error> {
    let started = Instant::now();
    loop {
        match list_once(client, subject, field).await {
            Err(Error::Incomplete { .. }) if started.elapsed() < COMPLETE_WITHIN => {
                tokio::time::sleep(LIST_AGAIN).await;
            }
            answer => return answer,
        }
    }
}

/// Everything that a listing has, page by page.
async fn list_once(client: &Client, subject: &str, field: &str) -> Result<Vec<Value>, Error> {
    let mut found: Vec<Value> = Vec::new();
    loop {
        let mut answer = request(client, subject, &json!({ "offset": found.len() })).await?;
        // What does not answer exists all the same: to take it for absent would be to make it again.
        let missing = answer.get("missing").and_then(Value::as_array).into_iter().flatten();
        let missing: Vec<&str> = missing.filter_map(Value::as_str).collect();
        if !missing.is_empty() {
            return Err(Error::Incomplete { subject: subject.to_owned(), missing: missing.join(", ") });
        }
        let total = answer.get("total").and_then(Value::as_u64).unwrap_or_default();
        let page = answer.get_mut(field).and_then(Value::as_array_mut).map(std::mem::take);
        let page = page.unwrap_or_default();
        let last = page.is_empty();
        found.extend(page);
        if last || found.len() as u64 >= total {
            return Ok(found);
        }
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn object(value: &Value, field: &str) -> Map<String, Value> {
    value.get(field).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// Sends one request of the JetStream API and returns its answer; the server's refusals become errors.
pub(super) async fn request(client: &Client, subject: &str, body: &Value) -> Result<Value, Error> {
    let payload = if body.is_null() { String::new() } else { body.to_string() };
    let request = Request::new().payload(payload.into()).timeout(Some(TIMEOUT));
    let message =
        client.send_request(subject.to_owned(), request).await.map_err(|source| match source.kind() {
            RequestErrorKind::NoResponders => Error::NoJetStream,
            RequestErrorKind::TimedOut => {
                Error::NoAnswer { subject: subject.to_owned(), seconds: TIMEOUT.as_secs() }
            }
            _ => Error::Request { subject: subject.to_owned(), source },
        })?;
    let answer: Value = serde_json::from_slice(&message.payload)
        .map_err(|source| Error::Answer { subject: subject.to_owned(), source })?;
    match answer.get("error") {
        None => Ok(answer),
        Some(error) => Err(refusal(subject, error)),
    }
}

fn refusal(subject: &str, error: &Value) -> Error {
    match error.get("err_code").and_then(Value::as_u64).unwrap_or_default() {
        code::NOT_ENABLED | code::NOT_ENABLED_FOR_ACCOUNT => Error::NoJetStream,
        code => Error::Server {
            subject: subject.to_owned(),
            code,
            description: error
                .get("description")
                .and_then(Value::as_str)
                .unwrap_or("no reason given")
                .to_owned(),
        },
    }
}

fn check_version(version: &str) -> Result<(), Error> {
    let (major, minor, _) = parse(version);
    if (major, minor) < SERVER_MIN {
        return Err(Error::OldServer { found: version.to_owned() });
    }
    Ok(())
}

/// Versions look like `2.15.1` or `2.12.0-RC.3`.
pub(super) fn parse(version: &str) -> (u64, u64, u64) {
    let mut parts = version.split(['.', '-']).map(|part| part.parse().unwrap_or_default());
    let mut next = || parts.next().unwrap_or_default();
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_without_schedules_are_refused() {
        for old in ["2.11.9", "2.9.0", "1.4.1", ""] {
            let error = check_version(old).unwrap_err();
            assert!(matches!(error, Error::OldServer { .. }), "{old}");
            assert!(error.to_string().contains("need 2.12 or later"), "{error}");
        }
        for new in ["2.12.0", "2.12.0-RC.3", "2.15.1", "3.0.0"] {
            assert!(check_version(new).is_ok(), "{new}");
        }
    }
}
