//! The work queues of a bench: a stream is filled while its consumers pause, and timed until it is empty.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType, Stream, SubjectTransform};
use async_nats::jetstream::{Context, consumer};
use tokio::time::Instant;

use super::load::Fill;
use super::{BenchError, failed};

/// Longer than any bench.
const PAUSE: time::Duration = time::Duration::hours(12);

/// Time between two looks at a stream: fine beside the seconds that emptying it takes.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Room in a stream of the bench's own.
const MAX_BYTES: i64 = 1 << 30;

/// Under which subjects a stream stores what comes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// As it comes.
    AsItComes,
    /// As `notification.>`, so that the gateway can be told to pull from several.
    Transformed,
}

/// Makes a stream like NOTIFICATIONS that takes `{root}.>`, with the consumer `normal`.
pub(super) async fn make(
    context: &Context,
    name: &str,
    root: &str,
    filled: Filled,
) -> Result<(), BenchError> {
    let what = || format!("make the stream {name}");
    let subject_transform = (filled == Filled::Transformed)
        .then(|| SubjectTransform { source: format!("{root}.>"), destination: "notification.>".to_owned() });
    let stream = context
        .create_stream(Config {
            name: name.to_owned(),
            subjects: vec![format!("{root}.>")],
            retention: RetentionPolicy::WorkQueue,
            storage: StorageType::File,
            max_bytes: MAX_BYTES,
            duplicate_window: Duration::from_secs(30),
            subject_transform,
            ..Config::default()
        })
        .await
        .map_err(failed(what()))?;
    let config = consumer::pull::Config {
        durable_name: Some("normal".to_owned()),
        ack_wait: Duration::from_secs(30),
        max_deliver: 20,
        max_ack_pending: 4_096,
        ..consumer::pull::Config::default()
    };
    stream.create_consumer(config).await.map(|_| ()).map_err(failed(what()))
}

/// Makes room in a stream of the environment for more than a developer's machine needs.
pub(super) async fn make_room(context: &Context, stream: &str) -> Result<(), BenchError> {
    let config = find(context, stream).await?.cached_info().config.clone();
    let roomy = context.update_stream(Config { max_bytes: MAX_BYTES, ..config }).await;
    roomy.map(|_| ()).map_err(failed(format!("make room in the stream {stream}")))
}

/// Has a consumer deliver nothing.
pub(super) async fn pause(context: &Context, stream: &str, consumer: &str) -> Result<(), BenchError> {
    let until = time::OffsetDateTime::now_utc() + PAUSE;
    let paused = find(context, stream).await?.pause_consumer(consumer, until).await;
    paused.map(|_| ()).map_err(failed(format!("pause {stream} > {consumer}")))
}

/// Has it deliver again. Requests that wait since before are served only when something happens (nats-server 2.15.1), so
/// one more message is added to what it was filled with.
pub(super) async fn resume(
    context: &Context,
    stream: &str,
    consumer: &str,
    fill: &Fill,
) -> Result<(), BenchError> {
    let what = || format!("resume {stream} > {consumer}");
    find(context, stream).await?.resume_consumer(consumer).await.map_err(failed(what()))?;
    let (subject, body) = fill.one_more();
    context.publish(subject, body.into()).await.map_err(failed(what()))?.await.map_err(failed(what()))?;
    Ok(())
}

/// Messages that a stream holds.
pub(super) async fn messages(context: &Context, stream: &str) -> Result<u64, BenchError> {
    Ok(find(context, stream).await?.cached_info().state.messages)
}

/// Waits until a stream is empty, `limit` at most: what an overload left must not meet the next run.
pub(super) async fn quiet(context: &Context, stream: &str, limit: Duration) -> Result<(), BenchError> {
    let end = Instant::now() + limit;
    while messages(context, stream).await? > 0 && Instant::now() < end {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Removes what a stream holds.
pub(super) async fn purge(context: &Context, stream: &str) -> Result<(), BenchError> {
    find(context, stream).await?.purge().await.map(|_| ()).map_err(failed(format!("purge {stream}")))
}

/// Lets the consumers `normal` of paused streams deliver, and gives the time until all are empty, `limit` at most. Each
/// stream comes with what it was filled with.
pub(super) async fn drained(
    context: &Context,
    streams: &[(&str, &Fill)],
    limit: Duration,
) -> Result<Duration, BenchError> {
    let started = Instant::now();
    for (stream, fill) in streams {
        resume(context, stream, "normal", fill).await?;
    }
    let empty = async {
        for (stream, _) in streams {
            while messages(context, stream).await? > 0 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(started.elapsed())
    };
    let late = || {
        Err(format!("it was not within {} s", limit.as_secs()))
            .map_err(failed("wait until a stream is empty"))
    };
    tokio::time::timeout(limit, empty).await.unwrap_or_else(|_| late())
}

async fn find(context: &Context, stream: &str) -> Result<Stream, BenchError> {
    context.get_stream(stream).await.map_err(failed(format!("find the stream {stream}")))
}
