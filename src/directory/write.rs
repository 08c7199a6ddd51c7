//! Changes audiences in the bucket: read, compare, update with the expected revision, repeat on conflict.
//!
//! A change that is older than what the bucket has is dropped: the highest version wins, whoever writes it.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::kv::{Operation, Store};
use async_nats::jetstream::message::PublishMessage;

use super::load::{self, LoadError};
use super::members::{Change, Key, Members, Value};
use crate::nats::{AUDIENCE, WriteError, publish};

/// A tombstone stays 48 h, longer than any event that is older than it can still be delivered from a stream.
const TOMBSTONE: Duration = Duration::from_hours(48);

/// Conflicts in a row before a writer gives up; two writers of one key need one or two.
const TRIES: usize = 16;

/// Why a change was not written.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The bucket is not there, or does not answer.
    #[error("bucket {AUDIENCE}: {0} (if it does not exist, run `fanfare provision apply`)")]
    Bucket(async_nats::Error),
    /// The write was refused.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Others kept changing the same key.
    #[error("key {0} changed {TRIES} times while it was written")]
    Contended(String),
    /// The members could not be read.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Writes to the bucket.
#[derive(Debug, Clone)]
pub struct Writer {
    context: Context,
    store: Store,
}

impl Writer {
    /// Opens the bucket.
    pub async fn open(context: Context) -> Result<Self, ChangeError> {
        let store =
            context.get_key_value(AUDIENCE).await.map_err(|error| ChangeError::Bucket(error.into()))?;
        Ok(Self { context, store })
    }

    /// Writes one change of the audience `of`; false when the bucket has a newer one.
    pub async fn write(&self, of: &Key, change: &Change) -> Result<bool, ChangeError> {
        let (key, value) = encode(of, change);
        for _ in 0..TRIES {
            let entry = self.store.entry(&*key).await.map_err(|error| ChangeError::Bucket(error.into()))?;
            let revision = entry.as_ref().map_or(0, |entry| entry.revision);
            let known = entry.filter(|entry| entry.operation == Operation::Put);
            let known: Option<Value> = known.and_then(|entry| serde_json::from_slice(&entry.value).ok());
            if known.is_some_and(|known| known.version() >= value.version()) {
                return Ok(false);
            }
            let mut message = PublishMessage::build()
                .payload(serde_json::to_vec(&value).unwrap_or_default().into())
                .expected_last_subject_sequence(revision);
            if value.left {
                message = message.ttl(TOMBSTONE);
            }
            match publish::write(&self.context, AUDIENCE, format!("$KV.{AUDIENCE}.{key}"), message).await {
                Ok(()) => return Ok(true),
                Err(error) if error.source.kind() == PublishErrorKind::WrongLastSequence => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(ChangeError::Contended(key))
    }

    /// Reads the members as the bucket has them now.
    pub async fn read(&self, of: &Key) -> Result<Members, ChangeError> {
        Ok(load::load(&self.context, of).await?)
    }
}

fn encode(of: &Key, change: &Change) -> (String, Value) {
    match change {
        Change::Member { user, role: Some(role), v } => {
            (of.member(user), Value { role: Some(*role), v: Some(*v), ..Value::default() })
        }
        Change::Member { user, role: None, v } => {
            (of.member(user), Value { left: true, v: Some(*v), ..Value::default() })
        }
        Change::Gone { v } => (of.header(), Value { gone: Some(*v), ..Value::default() }),
        Change::Alias { group, v } => {
            (of.header(), Value { group: Some(group.clone()), v: Some(*v), ..Value::default() })
        }
    }
}
