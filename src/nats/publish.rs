//! Writes to JetStream that count only once the server has acknowledged them.

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use metrics::counter;

/// A write that JetStream did not acknowledge; what it was for is not done.
#[derive(Debug, thiserror::Error)]
#[error("write to {stream}: {source}")]
pub struct WriteError {
    /// The stream that was meant.
    pub stream: &'static str,
    /// What the client or the server said.
    pub source: PublishError,
}

/// Publishes on `subject` and waits for the acknowledgement of `stream`.
pub async fn write(
    context: &Context,
    stream: &'static str,
    subject: String,
    message: PublishMessage,
) -> Result<(), WriteError> {
    write_sequence(context, stream, subject, message).await.map(|_| ())
}

/// The same; gives the sequence under which it is stored.
pub async fn write_sequence(
    context: &Context,
    stream: &'static str,
    subject: String,
    message: PublishMessage,
) -> Result<u64, WriteError> {
    let sent = match context.send_publish(subject, message).await {
        Ok(acknowledged) => acknowledged.await.map(|acknowledged| acknowledged.sequence),
        Err(error) => Err(error),
    };
    sent.map_err(|source| {
        counter!("fanfare_nats_write_errors_total", "stream" => stream, "kind" => kind(source.kind()))
            .increment(1);
        WriteError { stream, source }
    })
}

fn kind(kind: PublishErrorKind) -> &'static str {
    match kind {
        PublishErrorKind::StreamNotFound => "stream_not_found",
        PublishErrorKind::TimedOut => "timed_out",
        PublishErrorKind::BrokenPipe => "broken_pipe",
        PublishErrorKind::MaxPayloadExceeded => "max_payload_exceeded",
        _ => "refused",
    }
}

/// Describes the metrics of this part.
pub(crate) fn describe() {
    metrics::describe_counter!(
        "fanfare_nats_write_errors_total",
        "writes that JetStream did not acknowledge, by stream and kind"
    );
}
