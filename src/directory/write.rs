//! Changes audiences in the bucket: read, compare, update with the expected revision, repeat on conflict.
//!
//! A change that is older than what the bucket has is dropped: the highest version wins, whoever writes it.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::kv::{Operation, Store};
use async_nats::jetstream::message::PublishMessage;
use futures::{StreamExt, TryStreamExt, stream};

use super::load::{self, LoadError};
use super::members::{Change, Key, Members, Value};
use crate::catalog::Kind;
use crate::nats::{AUDIENCE, WriteError, publish};

/// A tombstone stays 48 h, longer than any event that is older than it can still be delivered from a stream.
const TOMBSTONE: Duration = Duration::from_hours(48);

/// Somebody's part in a call is kept so long after the last word about it: nobody tells the end of every call.
const CALL_MEMBER: Duration = Duration::from_hours(48);

/// The end of a call outlives the members that it hides: an older event may write one until a day after it.
const CALL_END: Duration = Duration::from_hours(96);

/// Members of a set that is gone are replaced so many at a time, no more often than this: 1,000 a second, so that the
/// end of a group of 100,000 leaves the bucket and those who follow it to others.
const SWEPT_AT_ONCE: usize = 64;
const SWEEP_EVERY: Duration = Duration::from_millis(64);

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

    /// Writes one change of the audience `of`; false when the bucket has the same or a newer one.
    pub async fn write(&self, of: &Key, change: &Change) -> Result<bool, ChangeError> {
        let (key, value) = encode(of, change);
        self.compare_and_write(key, &value, ttl(of, change)).await
    }

    /// As [`Self::write`], for a key that probably does not exist yet: one request instead of two when that is so.
    pub async fn write_new(&self, of: &Key, change: &Change) -> Result<bool, ChangeError> {
        let (key, value) = encode(of, change);
        let ttl = ttl(of, change);
        if self.put(&key, &value, ttl, 0).await? {
            return Ok(true);
        }
        self.compare_and_write(key, &value, ttl).await
    }

    async fn compare_and_write(
        &self,
        key: String,
        value: &Value,
        ttl: Option<Duration>,
    ) -> Result<bool, ChangeError> {
        for _ in 0..TRIES {
            let (revision, known) = self.entry(&key).await?;
            if known.is_some_and(|known| known.order() >= value.order()) {
                return Ok(false);
            }
            if self.put(&key, value, ttl, revision).await? {
                return Ok(true);
            }
        }
        Err(ChangeError::Contended(key))
    }

    /// The key's last revision, and its value if it can be read.
    async fn entry(&self, key: &str) -> Result<(u64, Option<Value>), ChangeError> {
        let entry = self.store.entry(key).await.map_err(|error| ChangeError::Bucket(error.into()))?;
        let revision = entry.as_ref().map_or(0, |entry| entry.revision);
        let known = entry.filter(|entry| entry.operation == Operation::Put);
        Ok((revision, known.and_then(|entry| serde_json::from_slice(&entry.value).ok())))
    }

    /// Writes `value` if the key's last revision is `revision`; 0 says that there is none. False when it is another.
    async fn put(
        &self,
        key: &str,
        value: &Value,
        ttl: Option<Duration>,
        revision: u64,
    ) -> Result<bool, ChangeError> {
        let mut message = PublishMessage::build()
            .payload(serde_json::to_vec(value).unwrap_or_default().into())
            .expected_last_subject_sequence(revision);
        if let Some(ttl) = ttl {
            message = message.ttl(ttl);
        }
        match publish::write(&self.context, AUDIENCE, format!("$KV.{AUDIENCE}.{key}"), message).await {
            Ok(()) => Ok(true),
            Err(error) if error.source.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// True when the end of `of` at version `v`, or a later one, is written.
    pub async fn is_gone(&self, of: &Key, v: u64) -> Result<bool, ChangeError> {
        let (_, header) = self.entry(&of.header()).await?;
        Ok(header.and_then(|header| header.gone).is_some_and(|gone| gone >= v))
    }

    /// Replaces the members that the header of `of` hides by tombstones, which vanish after two days; gives their number.
    /// Whoever joined later stays, whenever that is written. It can be repeated, and then goes on where it ended.
    pub async fn sweep(&self, of: &Key) -> Result<u64, ChangeError> {
        let members = self.read(of).await?;
        let hidden: Vec<_> = members.hidden().collect();
        let mut pace = tokio::time::interval(SWEEP_EVERY);
        let mut swept = 0;
        for some in hidden.chunks(SWEPT_AT_ONCE) {
            pace.tick().await;
            let writes: Vec<_> = some
                .iter()
                .map(|(user, v)| async move {
                    let left = Change::Member { user: (*user).clone(), role: None, v: *v };
                    self.write(of, &left).await
                })
                .collect();
            let writes = stream::iter(writes).buffer_unordered(SWEPT_AT_ONCE);
            swept += writes.try_fold(0, async |swept, written| Ok(swept + u64::from(written))).await?;
        }
        Ok(swept)
    }

    /// True when the keys of this audience vanish by themselves.
    pub fn vanishes(of: &Key) -> bool {
        of.kind == Kind::Call
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

/// How long the key of a change is kept; `None` for ever.
fn ttl(of: &Key, change: &Change) -> Option<Duration> {
    match (of.kind, change) {
        (Kind::Call, Change::Member { .. }) => Some(CALL_MEMBER),
        (Kind::Call, Change::Gone { .. } | Change::Alias { .. }) => Some(CALL_END),
        (_, Change::Member { role: None, .. }) => Some(TOMBSTONE),
        (_, Change::Member { .. } | Change::Gone { .. } | Change::Alias { .. }) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::catalog::Role;
    use crate::directory::members;
    use crate::id::UserId;

    /// What services publish about a group, each at its own time.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Joined(u8),
        Left(u8),
        Role(u8, Role),
        Disbanded,
    }

    fn change(event: Event, v: u64) -> Change {
        let member = |n: u8, role| Change::Member { user: UserId::new(&format!("u{n}")).unwrap(), role, v };
        match event {
            Event::Joined(n) => member(n, Some(Role::Member)),
            Event::Left(n) => member(n, None),
            Event::Role(n, role) => member(n, Some(role)),
            Event::Disbanded => Change::Gone { v },
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        let role = prop_oneof![Just(Role::Member), Just(Role::Admin), Just(Role::Owner)];
        prop_oneof![
            4 => (0u8..4).prop_map(Event::Joined),
            3 => (0u8..4).prop_map(Event::Left),
            3 => (0u8..4, role).prop_map(|(n, role)| Event::Role(n, role)),
            1 => Just(Event::Disbanded),
        ]
    }

    /// Events as they happened, and the order in which they were handled: any, and some of them again.
    fn history() -> impl Strategy<Value = (Vec<Event>, Vec<usize>)> {
        proptest::collection::vec(event(), 1..16).prop_flat_map(|events| {
            let all: Vec<usize> = (0..events.len()).collect();
            let again = proptest::collection::vec(0..events.len(), 0..8);
            let handled =
                again.prop_flat_map(move |again| Just([all.clone(), again].concat()).prop_shuffle());
            (Just(events), handled)
        })
    }

    /// Who is a member when everything is handled as it happened.
    fn as_it_happened(events: &[Event]) -> BTreeMap<String, Role> {
        let mut members = BTreeMap::new();
        for event in events {
            match *event {
                Event::Joined(n) => drop(members.insert(format!("u{n}"), Role::Member)),
                Event::Left(n) => drop(members.remove(&format!("u{n}"))),
                Event::Role(n, role) => drop(members.insert(format!("u{n}"), role)),
                Event::Disbanded => members.clear(),
            }
        }
        members
    }

    fn present(members: &Members) -> BTreeMap<String, Role> {
        members.iter().map(|(user, role)| (user.to_string(), role)).collect()
    }

    /// The bucket: what [`Writer::write`] leaves there, and what a load makes of it.
    fn through_the_bucket(of: &Key, changes: &[Change]) -> Members {
        let mut bucket: BTreeMap<String, Value> = BTreeMap::new();
        for change in changes {
            let (key, value) = encode(of, change);
            if bucket.get(&key).is_none_or(|known| known.order() < value.order()) {
                bucket.insert(key, value);
            }
        }
        let mut loaded = Members::default();
        for (key, value) in &bucket {
            let (_, change) = members::parse(key, &serde_json::to_vec(value).unwrap()).unwrap();
            loaded.apply(change);
        }
        loaded
    }

    proptest! {
        #[test]
        fn every_order_and_repetition_ends_as_the_timestamps_say((events, handled) in history()) {
            let of = Key::new(Kind::Group, "g").unwrap();
            let changes: Vec<Change> =
                handled.iter().map(|at| change(events[*at], 1_000 + *at as u64)).collect();
            let mut cached = Members::default();
            changes.iter().cloned().for_each(|change| cached.apply(change));
            let expected = as_it_happened(&events);
            prop_assert_eq!(&present(&cached), &expected, "in the cache");
            prop_assert_eq!(&present(&through_the_bucket(&of, &changes)), &expected, "in the bucket");
        }

        #[test]
        fn bucket_and_cache_agree_about_changes_of_one_moment(
            changes in proptest::collection::vec((event(), 1u64..3), 0..12),
        ) {
            let of = Key::new(Kind::Group, "g").unwrap();
            let changes: Vec<Change> = changes.into_iter().map(|(event, v)| change(event, v)).collect();
            let mut cached = Members::default();
            changes.iter().cloned().for_each(|change| cached.apply(change));
            prop_assert_eq!(present(&cached), present(&through_the_bucket(&of, &changes)));
        }
    }
}
