//! Sends a plan, step by step, and looks again. The only place from which a write can be reached.

use std::time::Duration;

use async_nats::Client;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::observe::{live_consumer, live_stream, observe, request};
use super::plan::{Action, Options, Plan, plan};
use super::step::{self, Config, Step, What};
use super::{Desired, Error};

/// How long a consumer stays paused when nobody resumes it, because this process is gone: longer than several waits.
const PAUSE: Duration = Duration::from_mins(15);

/// The same for a consumer that is not yet at its place, and would hand out everything again.
const PAUSE_UNPLACED: Duration = Duration::from_hours(24);

/// Time between two looks while something is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// Time between two reports of how much is left.
const REPORT: Duration = Duration::from_secs(2);

/// The server's code for a consumer or stream that is not there.
const NOT_FOUND: [u64; 2] = [10_014, 10_059];

/// Told what is going on, a line each.
pub type Progress<'a> = &'a mut (dyn FnMut(&str) + Send);

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Streams and consumers that are new.
    pub created: usize,
    /// Streams and consumers that were changed.
    pub updated: usize,
    /// Streams and consumers that were deleted and made again.
    pub replaced: usize,
    /// Streams and consumers that are gone.
    pub deleted: usize,
    /// Streams and consumers that were as they should be.
    pub unchanged: usize,
}

/// Sends the steps of `plan` in order, then reads everything again and fails when something still differs. After a failure
/// half-way the next plan has what is left. Sends no write for an empty plan, and none at all for a plan with a change that
/// is refused.
pub async fn apply(
    client: &Client,
    desired: &Desired,
    plan: &Plan,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Report, Error> {
    if plan.is_refused() {
        return Err(Error::Refused(Box::new(plan.clone())));
    }
    let mut undo = Vec::new();
    for step in &plan.steps {
        progress(&step.to_string());
        if let Err(error) = send(client, step, options, progress).await {
            give_back(client, &undo, options, progress).await;
            return Err(error);
        }
        tracing::info!(%step, "provisioned");
        keep(step, &mut undo);
    }
    if !plan.is_empty() {
        verify(client, desired, options).await?;
    }
    Ok(Report {
        created: plan.count(Action::Create),
        updated: plan.count(Action::Update) + plan.count(Action::Finish),
        replaced: plan.count(Action::Replace),
        deleted: plan.count(Action::Delete),
        unchanged: plan.unchanged,
    })
}

async fn verify(client: &Client, desired: &Desired, options: &Options) -> Result<(), Error> {
    let rest = plan(desired, &observe(client, desired).await?, options);
    if rest.is_empty() { Ok(()) } else { Err(Error::NotSettled(Box::new(rest))) }
}

/// Notes how to end what `step` holds up: a pause, or a stream that takes nothing.
fn keep(step: &Step, undo: &mut Vec<Step>) {
    let place = |other: &Step| other.stream == step.stream && other.consumer == step.consumer;
    match &step.what {
        What::Pause => {
            undo.push(Step { what: What::Resume(None), ..step.clone() });
        }
        What::Close(_, open) => undo.push(Step { what: What::Update(open.clone()), ..step.clone() }),
        What::Resume(_) | What::Delete { .. } => undo.retain(|other| !place(other)),
        _ => {}
    }
}

/// After a failure: nobody should wait longer than needed. When this fails, too, pauses end by themselves.
async fn give_back(client: &Client, undo: &[Step], options: &Options, progress: Progress<'_>) {
    for step in undo {
        progress(&format!("giving up: {step}"));
        if let Err(error) = send(client, step, options, progress).await {
            tracing::warn!(%error, %step, "could not be given back; apply again");
            return;
        }
    }
}

/// Sends one step and waits for what it says.
pub async fn send(
    client: &Client,
    step: &Step,
    options: &Options,
    progress: Progress<'_>,
) -> Result<(), Error> {
    let Step { stream, consumer, what } = step;
    let Some(consumer) = consumer else { return send_stream(client, step, options, progress).await };
    let create = format!("$JS.API.CONSUMER.CREATE.{stream}.{consumer}");
    let call = |name: &str| format!("$JS.API.CONSUMER.{name}.{stream}.{consumer}");
    let body =
        |config: &Config, action: &str| json!({ "stream_name": stream, "config": config, "action": action });
    match what {
        What::Create(config) => request(client, &create, &body(config, "create")).await.map(drop),
        What::CreateAgain(config) => {
            let info = request(client, &format!("$JS.API.STREAM.INFO.{stream}"), &Value::Null).await?;
            let mut config = config.clone();
            config.insert("pause_until".to_owned(), after(&info, PAUSE_UNPLACED).into());
            request(client, &create, &body(&config, "create")).await.map(drop)
        }
        What::Update(config) | What::Mark(config) | What::Release(config) | What::Unmark(config) => {
            request(client, &create, &body(config, "update")).await.map(drop)
        }
        What::Pause => {
            let info = request(client, &call("INFO"), &Value::Null).await?;
            let until = json!({ "pause_until": after(&info, PAUSE) });
            let answer = request(client, &call("PAUSE"), &until).await?;
            let paused = answer.get("paused").and_then(Value::as_bool).unwrap_or_default();
            if paused { Ok(()) } else { Err(Error::NotPaused { place: step.place() }) }
        }
        What::Resume(until) => {
            let until = until.as_ref().map_or_else(|| json!({}), |until| json!({ "pause_until": until }));
            request(client, &call("PAUSE"), &until).await.map(drop)
        }
        What::Drain => {
            wait(step, "in hand that are not acknowledged", options, progress, async || {
                let info = request(client, &call("INFO"), &Value::Null).await?;
                Ok(live_consumer(&info).unacknowledged)
            })
            .await
        }
        What::Bookmark(config) => {
            let info = request(client, &call("INFO"), &Value::Null).await?;
            let mut config = config.clone();
            config.insert("opt_start_seq".to_owned(), place(&info).into());
            let create = format!("$JS.API.CONSUMER.CREATE.{stream}.{}", step::bookmark(consumer));
            request(client, &create, &body(&config, "create")).await.map(drop)
        }
        What::Rewind => request(client, &call("RESET"), &json!({ "seq": 1 })).await.map(drop),
        What::Return => {
            let bookmark = format!("$JS.API.CONSUMER.INFO.{stream}.{}", step::bookmark(consumer));
            let info = request(client, &bookmark, &Value::Null).await?;
            let seq = info.pointer("/config/opt_start_seq").and_then(Value::as_u64).unwrap_or(1);
            request(client, &call("RESET"), &json!({ "seq": seq })).await.map(drop)
        }
        What::Delete { created, .. } => {
            if let Some(created) = created {
                let Some(info) = found(request(client, &call("INFO"), &Value::Null).await)? else {
                    return Ok(());
                };
                if live_consumer(&info).created != *created {
                    return Err(Error::Replaced { place: step.place() });
                }
            }
            found(request(client, &call("DELETE"), &Value::Null).await).map(drop)
        }
        What::Close(..) | What::AwaitEmpty | What::Note(_) => Ok(()),
    }
}

async fn send_stream(
    client: &Client,
    step: &Step,
    options: &Options,
    progress: Progress<'_>,
) -> Result<(), Error> {
    let stream = &step.stream;
    let call = |name: &str| format!("$JS.API.STREAM.{name}.{stream}");
    match &step.what {
        What::Create(config) => {
            request(client, &call("CREATE"), &Value::Object(config.clone())).await.map(drop)
        }
        What::CreateAgain(config) => {
            let note = format!("$JS.API.STREAM.INFO.{}", step::note(stream));
            let info = request(client, &note, &Value::Null).await?;
            let next = info.pointer("/config/metadata").and_then(|labels| labels.get(step::NEXT)?.as_str());
            let mut config = config.clone();
            if let Some(next) = next.and_then(|next| next.parse::<u64>().ok()).filter(|next| *next > 1) {
                config.insert("first_seq".to_owned(), next.into());
            }
            request(client, &call("CREATE"), &Value::Object(config)).await.map(drop)
        }
        What::Update(config) | What::Close(config, _) => {
            request(client, &call("UPDATE"), &Value::Object(config.clone())).await.map(drop)
        }
        What::AwaitEmpty => {
            wait(step, "that nobody has taken", options, progress, async || {
                let info = request(client, &call("INFO"), &Value::Null).await?;
                Ok(live_stream(&info).messages)
            })
            .await
        }
        What::Note(config) => {
            let info = request(client, &call("INFO"), &Value::Null).await?;
            let last = info.pointer("/state/last_seq").and_then(Value::as_u64).unwrap_or_default();
            let mut config = Value::Object(config.clone());
            config["metadata"][step::NEXT] = (last + 1).to_string().into();
            let create = format!("$JS.API.STREAM.CREATE.{}", step::note(stream));
            request(client, &create, &config).await.map(drop)
        }
        What::Delete { created, empty } => {
            let Some(info) = found(request(client, &call("INFO"), &Value::Null).await)? else {
                return Ok(());
            };
            let live = live_stream(&info);
            if created.as_ref().is_some_and(|created| *created != live.created) {
                return Err(Error::Replaced { place: step.place() });
            }
            if *empty && live.messages > 0 {
                let (place, what) = (step.place(), "that nobody has taken");
                return Err(Error::Busy { place, left: live.messages, what, seconds: 0 });
            }
            found(request(client, &call("DELETE"), &Value::Null).await).map(drop)
        }
        _ => Ok(()),
    }
}

/// Waits until `left` says 0. With `force` it goes on after the time is over.
async fn wait(
    step: &Step,
    what: &'static str,
    options: &Options,
    progress: Progress<'_>,
    left: impl AsyncFn() -> Result<u64, Error>,
) -> Result<(), Error> {
    let started = Instant::now();
    let mut reported = started;
    loop {
        let left = left().await?;
        if left == 0 {
            return Ok(());
        }
        if started.elapsed() >= options.wait {
            if options.force {
                progress(&format!("{}: going on with {left} messages {what}", step.place()));
                return Ok(());
            }
            return Err(Error::Busy { place: step.place(), left, what, seconds: options.wait.as_secs() });
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            progress(&format!("{}: {left} messages {what}", step.place()));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// An object that is gone is no failure of its deletion.
fn found(answer: Result<Value, Error>) -> Result<Option<Value>, Error> {
    match answer {
        Err(Error::Server { code, .. }) if NOT_FOUND.contains(&code) => Ok(None),
        other => other.map(Some),
    }
}

/// A time so long after an answer, by the server's clock.
fn after(info: &Value, time: Duration) -> String {
    let asked =
        info.get("ts").and_then(Value::as_str).and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    let until = asked.unwrap_or_else(OffsetDateTime::now_utc) + time;
    until.format(&Rfc3339).expect("a time of this century")
}

/// The next sequence for a consumer: after all that it handed out, or, when some of that is not acknowledged, after all that
/// is.
fn place(info: &Value) -> u64 {
    let at = |field: &str| info.pointer(field).and_then(Value::as_u64).unwrap_or_default();
    let acknowledged = at("/ack_floor/stream_seq");
    let last = if at("/num_ack_pending") == 0 {
        acknowledged.max(at("/delivered/stream_seq"))
    } else {
        acknowledged
    };
    last + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_after_what_is_acknowledged() {
        let info = |pending: u64| json!({"num_ack_pending": pending, "delivered": {"stream_seq": 9}, "ack_floor": {"stream_seq": 4}});
        assert_eq!((place(&info(0)), place(&info(3)), place(&json!({}))), (10, 5, 1));
    }
}
