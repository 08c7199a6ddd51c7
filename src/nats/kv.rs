//! One key-value bucket: keys with a life of their own, changed by compare-and-set.
//!
//! The client's own `put` drops a key's TTL and its `create_with_ttl` loses it on an expired key, so writes are plain
//! publishes on the key's subject with the expected revision.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::kv::{Operation, Store};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;

use super::{WriteError, publish};

/// Conflicts in a row before a writer gives up: more than the invitations of a large group call, handled at once, cause.
const TRIES: u32 = 64;

/// Longest wait after a conflict; each one is drawn between nothing and a millisecond for each conflict so far.
const WAIT_MS_MAX: u64 = 50;

/// Why a key was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// The bucket is not there, or does not answer.
    #[error("bucket {bucket}: {source} (if it does not exist, run `fanfare provision apply`)")]
    Bucket {
        /// The bucket.
        bucket: &'static str,
        /// What the client or the server said.
        source: async_nats::Error,
    },
    /// The write was refused.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Others kept changing the same key.
    #[error("key {0} changed {TRIES} times while it was written")]
    Contended(String),
}

/// What an update comes to.
#[derive(Debug)]
pub enum Update<T> {
    /// The key stays as it is.
    Keep(T),
    /// The key gets this value.
    Put {
        /// The value.
        value: Vec<u8>,
        /// Time after which the key vanishes, in whole seconds rounded up; `None` for never.
        ttl: Option<Duration>,
        /// What the caller gets once it is written.
        then: T,
    },
}

/// A bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    name: &'static str,
    context: Context,
    store: Store,
}

impl Bucket {
    /// Opens the bucket `name`.
    pub async fn open(context: Context, name: &'static str) -> Result<Self, KvError> {
        let store = context
            .get_key_value(name)
            .await
            .map_err(|source| KvError::Bucket { bucket: name, source: source.into() })?;
        Ok(Self { name, context, store })
    }

    /// The value of a key; `None` when it is not there. A replica may answer that is milliseconds behind.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, KvError> {
        Ok(self.entry(key).await?.1)
    }

    /// The value of a key with every write that was acknowledged before: its leader is asked, and no replica.
    pub async fn latest(&self, key: &str) -> Result<Option<Bytes>, KvError> {
        let subject = format!("$KV.{}.{key}", self.name);
        match self.store.stream.get_last_raw_message_by_subject(&subject).await {
            // What deleted or purged it, or says that its life ended, has no body.
            Ok(message) => Ok((!message.payload.is_empty()).then_some(message.payload)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Reads a key, lets `decide` say what becomes of it, and writes that unless somebody else was faster; then it
    /// decides again. `decide` must be free of side effects.
    pub async fn update<T>(
        &self,
        key: &str,
        mut decide: impl FnMut(Option<&Bytes>) -> Update<T>,
    ) -> Result<T, KvError> {
        for conflicts in 0..TRIES {
            let (revision, known) = self.entry(key).await?;
            let (value, ttl, then) = match decide(known.as_ref()) {
                Update::Keep(result) => return Ok(result),
                Update::Put { value, ttl, then } => (value, ttl, then),
            };
            let mut message =
                PublishMessage::build().payload(value.into()).expected_last_subject_sequence(revision);
            if let Some(ttl) = ttl {
                message = message.ttl(whole_seconds(ttl));
            }
            let subject = format!("$KV.{}.{key}", self.name);
            match publish::write(&self.context, self.name, subject, message).await {
                Ok(()) => return Ok(then),
                Err(error) if error.source.kind() == PublishErrorKind::WrongLastSequence => {}
                Err(error) => return Err(error.into()),
            }
            let wait_ms = u64::from(conflicts).min(WAIT_MS_MAX) as f64 * rand::random::<f64>();
            tokio::time::sleep(Duration::from_millis(wait_ms as u64)).await;
        }
        Err(KvError::Contended(key.to_owned()))
    }

    /// The keys that have a value now.
    pub async fn keys(&self) -> Result<Vec<String>, KvError> {
        use futures::TryStreamExt;
        let keys = self.store.keys().await.map_err(|source| self.failed(source))?;
        keys.try_collect().await.map_err(|source| self.failed(source))
    }

    async fn entry(&self, key: &str) -> Result<(u64, Option<Bytes>), KvError> {
        let entry = self.store.entry(key).await.map_err(|source| self.failed(source))?;
        Ok(match entry {
            None => (0, None),
            Some(entry) => {
                let value =
                    (entry.operation == Operation::Put && !entry.value.is_empty()).then_some(entry.value);
                (entry.revision, value)
            }
        })
    }

    fn failed(&self, source: impl Into<async_nats::Error>) -> KvError {
        KvError::Bucket { bucket: self.name, source: source.into() }
    }
}

/// NATS counts lives in whole seconds and refuses less than one.
fn whole_seconds(ttl: Duration) -> Duration {
    Duration::from_secs(ttl.as_millis().div_ceil(1_000).max(1).try_into().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_rounded_up_to_seconds() {
        let seconds = |ms| whole_seconds(Duration::from_millis(ms)).as_secs();
        assert_eq!([0, 1, 1_000, 1_001].map(seconds), [1, 1, 1, 2]);
    }
}
