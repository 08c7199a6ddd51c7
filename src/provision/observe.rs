//! Reads what exists: the live configurations of the streams and consumers that are wanted. No write is reachable
//! from here.
//!
//! Configurations are read as plain JSON, because typed clients drop fields that they do not know.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{Client, Request, RequestErrorKind};
use serde_json::{Map, Value, json};

use super::{Desired, Error};

/// Oldest server that has message schedules (2.12).
pub const SERVER_MIN: (u64, u64) = (2, 12);

/// Oldest server that can rewind a consumer (2.14).
pub(super) const REWIND_MIN: (u64, u64) = (2, 14);

/// How long one API request may take. Three replicas need up to a second to make a stream.
const TIMEOUT: Duration = Duration::from_secs(5);

/// JetStream error codes with a meaning of their own, from the server's `errors.json`.
mod code {
    pub(super) const STREAM_NOT_FOUND: u64 = 10059;
    pub(super) const NOT_ENABLED: u64 = 10076;
    pub(super) const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
}

/// A stream that exists.
#[derive(Debug, Clone, Default)]
pub struct LiveStream {
    /// Its configuration as the server tells it.
    pub config: Map<String, Value>,
    /// Bytes it holds.
    pub bytes: u64,
    /// Its consumers' configurations by name, also of those that nobody declared.
    pub consumers: BTreeMap<String, Map<String, Value>>,
}

/// What exists of what is wanted, by stream name.
pub type Live = BTreeMap<String, LiveStream>;

/// Reads the wanted streams and all their consumers.
pub async fn observe(client: &Client, desired: &Desired) -> Result<Live, Error> {
    check_version(&client.server_info().version)?;
    let mut live = Live::new();
    for wanted in &desired.streams {
        let subject = format!("$JS.API.STREAM.INFO.{}", wanted.stream);
        let answer = match request(client, &subject, &Value::Null).await {
            Err(Error::Server { code: code::STREAM_NOT_FOUND, .. }) => continue,
            other => other?,
        };
        let bytes = answer.pointer("/state/bytes").and_then(Value::as_u64).unwrap_or_default();
        let has_consumers = desired.consumers.iter().any(|consumer| consumer.stream == wanted.stream);
        let consumers =
            if has_consumers { consumers(client, &wanted.stream).await? } else { BTreeMap::new() };
        live.insert(
            wanted.stream.clone(),
            LiveStream { config: object(&answer, "config"), bytes, consumers },
        );
    }
    Ok(live)
}

/// All consumers of a stream, page by page.
async fn consumers(client: &Client, stream: &str) -> Result<BTreeMap<String, Map<String, Value>>, Error> {
    let subject = format!("$JS.API.CONSUMER.LIST.{stream}");
    let mut found = BTreeMap::new();
    let mut offset = 0;
    loop {
        let answer = request(client, &subject, &json!({ "offset": offset })).await?;
        let page = answer.get("consumers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for consumer in page {
            if let Some(name) = consumer.get("name").and_then(Value::as_str) {
                found.insert(name.to_owned(), object(consumer, "config"));
            }
        }
        offset += page.len() as u64;
        let total = answer.get("total").and_then(Value::as_u64).unwrap_or_default();
        if page.is_empty() || offset >= total {
            return Ok(found);
        }
    }
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
    if parse(version) < SERVER_MIN {
        return Err(Error::OldServer { found: version.to_owned() });
    }
    Ok(())
}

/// Versions look like `2.15.1` or `2.12.0-RC.3`.
pub(super) fn parse(version: &str) -> (u64, u64) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or_default());
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
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
