//! Single messages of a stream by their sequence: reads one, deletes one. The leader answers, so nothing lags behind.

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{DeleteMessageError, LastRawMessageErrorKind, RawMessageError};

use super::source::first_stored_us;
use super::{Message, Origin};

/// Why a stored message could not be read or deleted.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// It could not be read.
    #[error("read message {seq} of {stream}: {source}")]
    Read {
        /// The stream.
        stream: String,
        /// The sequence.
        seq: u64,
        /// What the client or the server said.
        source: Box<RawMessageError>,
    },
    /// It is still there.
    #[error("delete message {seq} of {stream}: {source}")]
    Delete {
        /// The stream.
        stream: String,
        /// The sequence.
        seq: u64,
        /// What the client or the server said.
        source: Box<DeleteMessageError>,
    },
}

/// The message `seq` of `stream`, with 0 deliveries as nobody counts them there; `None` when it is not there any more.
pub async fn get(context: &Context, stream: &str, seq: u64) -> Result<Option<Message>, StoredError> {
    let failed = |source| StoredError::Read { stream: stream.to_owned(), seq, source: Box::new(source) };
    let handle = context.get_stream_no_info(stream).await.expect("a valid name of a stream");
    let message = match handle.get_raw_message(seq).await {
        Ok(message) => message,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let stored_at_us = first_stored_us(Some(&message.headers), message.time.unix_timestamp_nanos() / 1_000);
    Ok(Some(Message {
        subject: message.subject.to_string(),
        body: message.payload,
        headers: message.headers,
        origin: Origin { stream: stream.to_owned(), seq, stored_at_us, deliveries: 0 },
    }))
}

/// Deletes the message `seq` of `stream`. One that is not there any more is deleted, too.
pub async fn delete(context: &Context, stream: &str, seq: u64) -> Result<(), StoredError> {
    let handle = context.get_stream_no_info(stream).await.expect("a valid name of a stream");
    let Err(error) = handle.delete_message(seq).await else { return Ok(()) };
    // The server has more than one word for a message that is not there.
    match get(context, stream, seq).await? {
        None => Ok(()),
        Some(_) => Err(StoredError::Delete { stream: stream.to_owned(), seq, source: Box::new(error) }),
    }
}
