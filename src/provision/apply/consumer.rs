//! The requests on a consumer.

use std::time::Duration;

use async_nats::Client;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::found;
use crate::provision::observe::{label, live_consumer, request};
use crate::provision::step::{self, Config, Step, What};
use crate::provision::{Error, LiveConsumer};

/// How long a consumer stays paused when nobody resumes it, because this process is gone: longer than several looks.
pub(super) const PAUSE: Duration = Duration::from_mins(15);

/// The same for a consumer that is not yet at its place, and would hand out everything again.
pub(super) const PAUSE_UNPLACED: Duration = Duration::from_hours(24);

/// Time in which a consumer's leader hears of a pause, and between two looks.
const PAUSED_WITHIN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);

/// A consumer's requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Consumer<'a> {
    pub(super) client: &'a Client,
    pub(super) stream: &'a str,
    pub(super) name: &'a str,
}

impl Consumer<'_> {
    async fn call(self, name: &str, body: &Value) -> Result<Value, Error> {
        let Self { client, stream, name: consumer } = self;
        request(client, &format!("$JS.API.CONSUMER.{name}.{stream}.{consumer}"), body).await
    }

    /// What the server tells about it.
    pub(super) async fn info(self) -> Result<Value, Error> {
        self.call("INFO", &Value::Null).await
    }

    pub(super) async fn write(self, config: &Config, action: &str) -> Result<(), Error> {
        let body = json!({ "stream_name": self.stream, "config": config, "action": action });
        self.call("CREATE", &body).await.map(drop)
    }

    /// Pauses it for `time` from now, or until `before`, whichever is later. True when it hands out nothing any more: a
    /// cluster answers before the consumer's leader knows.
    pub(super) async fn pause(self, time: Duration, before: Option<&str>) -> Result<bool, Error> {
        let until = json!({ "pause_until": later(&self.info().await?, time, before) });
        self.call("PAUSE", &until).await?;
        let started = Instant::now();
        loop {
            if live_consumer(&self.info().await?).paused_until.is_some() {
                return Ok(true);
            }
            if started.elapsed() >= PAUSED_WITHIN {
                return Ok(false);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) async fn resume(self, until: Option<&str>) -> Result<(), Error> {
        let until = until.map_or_else(|| json!({}), |until| json!({ "pause_until": until }));
        self.call("PAUSE", &until).await.map(drop)
    }

    /// Sends one step. What waits is not here.
    pub(super) async fn send(self, step: &Step) -> Result<(), Error> {
        match &step.what {
            What::Create(config) => self.write(config, "create").await,
            What::CreateAgain(config) => {
                let stream = super::stream::info(self.client, self.stream).await?;
                let mut config = config.clone();
                config.insert("pause_until".to_owned(), later(&stream, PAUSE_UNPLACED, None).into());
                self.write(&config, "create").await
            }
            What::Update(config)
            | What::Mark(config)
            | What::Release(config)
            | What::Placed(config)
            | What::Unmark(config) => self.write(config, "update").await,
            What::Pause { before, unplaced } => {
                let time = if *unplaced { PAUSE_UNPLACED } else { PAUSE };
                let paused = self.pause(time, before.as_deref()).await?;
                if paused { Ok(()) } else { Err(Error::NotPaused { place: step.place() }) }
            }
            What::Resume(until) => self.resume(until.as_deref()).await,
            What::Bookmark(config) => {
                let mut config = config.clone();
                config.insert("opt_start_seq".to_owned(), place(&self.info().await?).into());
                Consumer { name: &step::bookmark(self.name), ..self }.write(&config, "create").await
            }
            What::Rewind => self.call("RESET", &json!({ "seq": 1 })).await.map(drop),
            What::Return => {
                let bookmark = Consumer { name: &step::bookmark(self.name), ..self }.info().await?;
                let seq = bookmark.pointer("/config/opt_start_seq").and_then(Value::as_u64).unwrap_or(1);
                self.call("RESET", &json!({ "seq": seq })).await.map(drop)
            }
            What::Delete { created, .. } => self.delete(step, |live| live.created == *created).await,
            What::Forget => {
                let keeps = |config: &Config| {
                    label(config, step::BOOKMARK).is_some_and(|kept| step::bookmark(kept) == self.name)
                };
                self.delete(step, |live| keeps(&live.config)).await
            }
            What::Drain
            | What::Close(..)
            | What::CreateClosed(_)
            | What::Open(_)
            | What::AwaitEmpty
            | What::Note(_) => Ok(()),
        }
    }

    /// Deletes it when it is the one that is meant.
    async fn delete(self, step: &Step, is_meant: impl Fn(&LiveConsumer) -> bool) -> Result<(), Error> {
        let Some(info) = found(self.info().await)? else { return Ok(()) };
        if !is_meant(&live_consumer(&info)) {
            return Err(Error::Replaced { place: step.place() });
        }
        found(self.call("DELETE", &Value::Null).await).map(drop)
    }
}

/// A time so long after an answer, by the server's clock, or `before` when that is later.
fn later(info: &Value, time: Duration, before: Option<&str>) -> String {
    let parse = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
    let asked = info.get("ts").and_then(Value::as_str).and_then(parse);
    let until = asked.unwrap_or_else(OffsetDateTime::now_utc) + time;
    match before {
        Some(before) if parse(before).is_some_and(|before| before > until) => before.to_owned(),
        _ => until.format(&Rfc3339).expect("a time of this century"),
    }
}

/// The next sequence for a consumer: after all that it handed out, or, when some of that is not acknowledged, after all that
/// is; and not before its start.
fn place(info: &Value) -> u64 {
    let at = |field: &str| info.pointer(field).and_then(Value::as_u64).unwrap_or_default();
    let acknowledged = at("/ack_floor/stream_seq");
    let last = if at("/num_ack_pending") == 0 {
        acknowledged.max(at("/delivered/stream_seq"))
    } else {
        acknowledged
    };
    (last + 1).max(at("/config/opt_start_seq"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_after_what_is_acknowledged() {
        let info = |pending: u64| json!({"num_ack_pending": pending, "delivered": {"stream_seq": 9}, "ack_floor": {"stream_seq": 4}});
        assert_eq!((place(&info(0)), place(&info(3)), place(&json!({}))), (10, 5, 1));
        assert_eq!(place(&json!({"config": {"opt_start_seq": 7}})), 7, "it has not begun");
    }

    #[test]
    fn a_longer_pause_stays() {
        let info = json!({"ts": "2026-01-02T03:04:05Z"});
        let until = |before| later(&info, PAUSE, before);
        assert_eq!(until(None), "2026-01-02T03:19:05Z");
        assert_eq!(until(Some("2026-01-02T03:10:00Z")), "2026-01-02T03:19:05Z");
        assert_eq!(until(Some("2027-01-02T03:10:00+01:00")), "2027-01-02T03:10:00+01:00");
    }
}
