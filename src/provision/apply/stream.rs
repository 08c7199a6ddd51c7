//! The requests on a stream.

use async_nats::Client;
use serde_json::Value;

use super::found;
use crate::provision::Error;
use crate::provision::observe::{label, live_stream, request};
use crate::provision::plan::{editable, texts};
use crate::provision::step::{self, Config, Step, What};

/// What is in it that is in the way of a deletion.
pub(super) const UNTAKEN: &str = "that nobody has taken";

fn call(name: &str, stream: &str) -> String {
    format!("$JS.API.STREAM.{name}.{stream}")
}

/// What the server tells about it.
pub(super) async fn info(client: &Client, stream: &str) -> Result<Value, Error> {
    request(client, &call("INFO", stream), &Value::Null).await
}

/// Sends one step. What waits, and what sends nothing, is not here.
pub(super) async fn send(client: &Client, step: &Step) -> Result<(), Error> {
    let stream = &step.stream;
    let create = |config: Config| async { write(client, &call("CREATE", stream), config).await };
    match &step.what {
        What::Create(config) => create(config.clone()).await,
        What::CreateClosed(config) => {
            let note = info(client, &step::note(stream)).await?;
            let next = note.pointer("/config/metadata").and_then(|labels| labels.get(step::NEXT)?.as_str());
            let mut config = step::closed_config(stream, config);
            if let Some(next) = next.and_then(|next| next.parse::<u64>().ok()).filter(|next| *next > 1) {
                config.insert("first_seq".to_owned(), next.into());
            }
            create(config).await
        }
        What::Update(config) | What::Close(Some(config), _) => {
            write(client, &call("UPDATE", stream), config.clone()).await
        }
        What::Open(open) => {
            let config = editable(&live_stream(&info(client, stream).await?).config);
            write(client, &call("UPDATE", stream), step::open_config(&config, open)).await
        }
        What::Note(config) => {
            let last = info(client, stream).await?.pointer("/state/last_seq").and_then(Value::as_u64);
            let mut config = Value::Object(config.clone());
            config["metadata"][step::NEXT] = (last.unwrap_or_default() + 1).to_string().into();
            request(client, &call("CREATE", &step::note(stream)), &config).await.map(drop)
        }
        What::Delete { created, empty, closed } => {
            if *closed && found(info(client, stream).await)?.is_some_and(|info| !is_closed(stream, &info)) {
                return Err(Error::Overtaken { place: step.place() });
            }
            delete(client, step, |live| live.created == *created, *empty).await
        }
        What::Forget => {
            let is_note = |config: &Config| {
                label(config, step::NEXT_OF).is_some_and(|noted| step::note(noted) == *stream)
            };
            delete(client, step, |live| is_note(&live.config), true).await
        }
        _ => Ok(()),
    }
}

/// It takes nothing at the moment.
pub(super) fn is_closed(stream: &str, info: &Value) -> bool {
    texts(&live_stream(info).config, "subjects") == [step::closed(stream)]
}

async fn write(client: &Client, subject: &str, config: Config) -> Result<(), Error> {
    request(client, subject, &Value::Object(config)).await.map(drop)
}

/// Deletes it when it is the one that is meant.
async fn delete(
    client: &Client,
    step: &Step,
    is_meant: impl Fn(&crate::provision::LiveStream) -> bool,
    empty: bool,
) -> Result<(), Error> {
    let Some(info) = found(info(client, &step.stream).await)? else { return Ok(()) };
    let live = live_stream(&info);
    if !is_meant(&live) {
        return Err(Error::Replaced { place: step.place() });
    }
    if empty && live.messages > 0 {
        return Err(Error::Busy { place: step.place(), left: live.messages, what: UNTAKEN, seconds: 0 });
    }
    found(request(client, &call("DELETE", &step.stream), &Value::Null).await).map(drop)
}
