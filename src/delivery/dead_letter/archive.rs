//! The dead letters as an operator has them: reads through them, sends one again, deletes.
//!
//! A replay publishes first and deletes after JetStream's acknowledgement, so a dead letter is lost at no point; its
//! message id keeps a replay that was interrupted between the two and is repeated soon from being published twice.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{DeliverPolicy, pull::OrderedConfig};
use async_nats::jetstream::context::{GetStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{Context, ErrorCode};
use futures::StreamExt;
use time::OffsetDateTime;

use super::{Filter, Letter, MSG_ID, ORIGINAL_AT, ORIGINAL_BYTES, OURS, SEQ, STREAM, SUBJECT, message_id};
use crate::nats::schedule::ID;
use crate::nats::stored::{self, StoredError};
use crate::nats::{DEAD_LETTERS, Message, NOTIFICATIONS, Origin, STORED_AT, WriteError, publish};
use crate::protocol::envelope::ENVELOPE_BYTES_MAX;

/// No dead letter for so long, while there are more: the server is away.
const SILENCE: Duration = Duration::from_secs(15);

/// Why the dead letters cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream is missing.
    #[error("stream {DEAD_LETTERS} does not exist: run `fanfare provision apply`")]
    NoStream,
    /// The server said no, or nothing.
    #[error("read {DEAD_LETTERS}: {0}")]
    Read(async_nats::Error),
    /// It stopped in the middle.
    #[error("read {DEAD_LETTERS}: nothing came for {} s after dead letter {after}; is NATS there?", SILENCE.as_secs())]
    Silence {
        /// The last one that came; 0 for none.
        after: u64,
    },
    /// Reading or deleting one failed.
    #[error(transparent)]
    Stored(#[from] StoredError),
}

/// Why a dead letter was not sent again. It stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It is not there.
    #[error("there is no such dead letter (any more): `fanfare dlq list` shows those there are")]
    NotFound,
    /// Nobody knows where to.
    #[error("it has no header {SUBJECT} with a notification's subject: not written by this gateway")]
    NoSubject,
    /// Part of it is gone.
    #[error(
        "it was cut, as the original of {0} bytes did not fit into a dead letter: it must be published anew"
    )]
    Cut(String),
    /// It would only come back.
    #[error("its {0} bytes are more than an envelope may have ({ENVELOPE_BYTES_MAX}): publish less")]
    TooLarge(usize),
    /// No stream takes the subject.
    #[error(
        "no stream takes {0}: the catalog has no such event (any more), or its streams are not there; then run \
         `fanfare provision apply`"
    )]
    UnknownSubject(String),
    /// JetStream did not take it.
    #[error(transparent)]
    Write(WriteError),
    /// It could not be read, or not be deleted after it was published.
    #[error(transparent)]
    Stored(#[from] StoredError),
}

impl ReplayError {
    /// Would every other one fail as well?
    pub fn concerns_all(&self) -> bool {
        match self {
            Self::Stored(_) => true,
            Self::Write(error) => {
                matches!(error.source.kind(), PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe)
            }
            _ => false,
        }
    }
}

/// The stream of dead letters.
#[derive(Debug)]
pub struct Archive {
    context: Context,
    stream: Stream,
}

impl Archive {
    /// Opens it, with the dead letters that there are now.
    pub async fn open(context: Context) -> Result<Self, ArchiveError> {
        let stream = context.get_stream(DEAD_LETTERS).await.map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(answer) if answer.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                ArchiveError::NoStream
            }
            _ => ArchiveError::Read(error.into()),
        })?;
        Ok(Self { context, stream })
    }

    /// Gives those that `filter` lets pass to `take`, oldest first; those written after [`Self::open`] are left out.
    /// Only headers travel.
    pub async fn scan(&self, filter: &Filter, mut take: impl FnMut(Letter)) -> Result<(), ArchiveError> {
        let last = self.last();
        let since =
            filter.since_us.map(|us| OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1_000));
        let deliver_policy = match since {
            Some(Ok(start_time)) => DeliverPolicy::ByStartTime { start_time },
            _ => DeliverPolicy::All,
        };
        let config = OrderedConfig { headers_only: true, deliver_policy, ..OrderedConfig::default() };
        let read = |error: async_nats::Error| ArchiveError::Read(error);
        let consumer = self.stream.create_consumer(config).await.map_err(|error| read(error.into()))?;
        if consumer.cached_info().num_pending == 0 {
            return Ok(());
        }
        let mut messages = consumer.messages().await.map_err(|error| read(error.into()))?;
        let mut after = 0;
        loop {
            let next = tokio::time::timeout(SILENCE, messages.next()).await;
            let Ok(Some(message)) = next else { return Err(ArchiveError::Silence { after }) };
            let message = message.map_err(|error| read(error.into()))?;
            let info = message.info().map_err(read)?;
            let (seq, pending) = (info.stream_sequence, info.pending);
            let stored_at_us = (info.published.unix_timestamp_nanos() / 1_000).max(0) as u64;
            if seq <= last {
                let letter = Letter::read(&Message {
                    subject: message.subject.to_string(),
                    body: bytes::Bytes::new(),
                    headers: message.headers.clone().unwrap_or_default(),
                    origin: Origin { stream: DEAD_LETTERS.to_owned(), seq, stored_at_us, deliveries: 0 },
                });
                if filter.takes(&letter) {
                    take(letter);
                }
            }
            if seq >= last || pending == 0 {
                return Ok(());
            }
            after = seq;
        }
    }

    /// One of them, as it is stored.
    pub async fn get(&self, seq: u64) -> Result<Option<Message>, StoredError> {
        // The server takes 0 for no sequence at all.
        if seq == 0 { Ok(None) } else { stored::get(&self.context, DEAD_LETTERS, seq).await }
    }

    /// Publishes the original of `seq` once more, waits for JetStream, and deletes the dead letter.
    pub async fn replay(&self, seq: u64) -> Result<(), ReplayError> {
        let letter = self.get(seq).await?.ok_or(ReplayError::NotFound)?;
        let subject = letter.header(SUBJECT).filter(|subject| subject.starts_with("notification."));
        let subject = subject.ok_or(ReplayError::NoSubject)?.to_owned();
        if let Some(bytes) = letter.header(ORIGINAL_BYTES) {
            return Err(ReplayError::Cut(bytes.to_owned()));
        }
        if letter.body.len() > ENVELOPE_BYTES_MAX {
            return Err(ReplayError::TooLarge(letter.body.len()));
        }
        // A dead letter of an earlier version lacks it, and was written soon after.
        let original_at = letter.header(ORIGINAL_AT).and_then(|text| text.parse().ok());
        let original_at = original_at.unwrap_or(letter.origin.stored_at_us).to_string();
        let mut headers = originals(&letter.headers);
        if let Some(id) = notification_id(&letter) {
            headers.insert(ID, id.as_str());
        }
        // Not the publisher's id: that may still be remembered from the original, or be that of another dead letter, and
        // JetStream would drop this one.
        let message = PublishMessage::build()
            .payload(letter.body.clone())
            .headers(headers)
            .header(STORED_AT, original_at)
            .message_id(message_id(&letter.origin));
        let sent = publish::write(&self.context, NOTIFICATIONS, subject.clone(), message).await;
        sent.map_err(|error| match error.source.kind() {
            PublishErrorKind::StreamNotFound => ReplayError::UnknownSubject(subject),
            _ => ReplayError::Write(error),
        })?;
        Ok(stored::delete(&self.context, DEAD_LETTERS, seq).await?)
    }

    /// Deletes one of them; false when it was not there.
    pub async fn delete(&self, seq: u64) -> Result<bool, StoredError> {
        let there = self.get(seq).await?.is_some();
        if there {
            stored::delete(&self.context, DEAD_LETTERS, seq).await?;
        }
        Ok(there)
    }

    /// Deletes all that there were at [`Self::open`], and says how many.
    pub async fn clear(&self) -> Result<u64, ArchiveError> {
        let purged = self.stream.purge().sequence(self.last() + 1).await;
        Ok(purged.map_err(|error| ArchiveError::Read(error.into()))?.purged)
    }

    fn last(&self) -> u64 {
        self.stream.cached_info().state.last_sequence
    }
}

/// The id that the notification has when its envelope tells none. Dead letters of an earlier version do not say it, and
/// those of other programs may say nothing.
fn notification_id(letter: &Message) -> Option<String> {
    let header = |name| letter.header(name).filter(|value| !value.is_empty());
    let place = || Some(format!("{}-{}", header(STREAM)?, header(SEQ)?));
    header(ID).or_else(|| header(MSG_ID)).map(str::to_owned).or_else(place)
}

/// The headers that the original had.
fn originals(headers: &HeaderMap) -> HeaderMap {
    let mut originals = HeaderMap::new();
    for (name, values) in headers.iter() {
        let text: &str = name.as_ref();
        let ours = OURS.iter().any(|ours| ours.eq_ignore_ascii_case(text));
        if !ours && !text.to_ascii_lowercase().starts_with("nats-") {
            for value in values {
                originals.append(text, value.clone());
            }
        }
    }
    originals
}

#[cfg(test)]
mod tests {
    use super::super::REASON;
    use super::*;

    #[test]
    fn a_replay_has_the_headers_of_the_original() {
        let mut headers = HeaderMap::new();
        for name in ["Nats-Msg-Id", REASON, MSG_ID, ID, "Fanfare-Due", "Trace"] {
            headers.insert(name, "x");
        }
        let originals = originals(&headers);
        let mut names: Vec<&str> = originals.iter().map(|(name, _)| name.as_ref()).collect();
        names.sort_unstable();
        assert_eq!(names, ["Fanfare-Due", "Trace"]);
    }

    #[test]
    fn a_dead_letter_that_does_not_say_the_id_is_the_publishers_or_has_its_place() {
        let origin = Origin { stream: DEAD_LETTERS.to_owned(), seq: 9, stored_at_us: 2, deliveries: 0 };
        let headers = HeaderMap::new();
        let mut letter = Message { subject: "dlq.unknown".to_owned(), body: "".into(), headers, origin };
        assert_eq!(notification_id(&letter), None);
        letter.headers.insert(STREAM, "NOTIFICATIONS");
        assert_eq!(notification_id(&letter), None);
        for (name, value, id) in [
            (SEQ, "17", "NOTIFICATIONS-17"),
            (MSG_ID, "", "NOTIFICATIONS-17"),
            (MSG_ID, "m1", "m1"),
            (ID, "n1", "n1"),
        ] {
            letter.headers.insert(name, value);
            assert_eq!(notification_id(&letter).as_deref(), Some(id), "{name}");
        }
    }
}
