//! Members of audiences, cached and kept current.
//!
//! A look-up reads the whole audience once, one flight each, and keeps it for ten minutes: from the bucket, or from the
//! service that owns memberships. A subscription to the bucket's subjects applies every write to what is cached. Loads may come from a server that lags, so the writes of
//! the last seconds are laid over each load. After a reconnect the cache starts empty: nobody knows what was missed.
//!
//! One task runs here, the subscription's; [`Directory::follow`] is its body and whoever spawns it owns and ends it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::{Client, Subscriber};
use futures::{FutureExt, StreamExt};
use metrics::{Counter, counter, gauge, histogram};
use moka::future::Cache;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::ask;
use super::load::{self, LoadError};
use super::members::{self, Change, Key, Members};
use crate::catalog::Kind;
use crate::nats::AUDIENCE;

/// Where members come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The bucket `audience`.
    #[default]
    Bucket,
    /// A service that answers requests on `audience.resolve.{kind}`.
    Request,
}

/// Where members come from, and the limits of the cache.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where members come from.
    pub source: Source,
    /// With `source = "request"`: the kinds that are asked for. All others stay in the bucket; the gateway itself
    /// fills calls there.
    pub request_kinds: Vec<Kind>,
    /// With `source = "request"`: milliseconds that the service has for an answer. Without one the notification comes
    /// again later.
    pub request_timeout_ms: u64,
    /// Memory for cached members in bytes; the least used audiences leave first.
    pub cache_bytes: u64,
    /// Seconds an audience stays cached; a write that the subscription missed shows after it.
    pub cache_ttl_s: u64,
}

impl Default for Config {
    /// 64 MiB hold some 700,000 members; ten minutes is the specification's time for group lists. Two seconds are long
    /// for a query and short beside the 10 s after which JetStream would give an urgent message to somebody else.
    fn default() -> Self {
        Self {
            source: Source::default(),
            request_kinds: vec![Kind::Group, Kind::Conversation],
            request_timeout_ms: 2_000,
            cache_bytes: 64 * 1024 * 1024,
            cache_ttl_s: 600,
        }
    }
}

/// Loads at once. More would only queue inside the server.
const LOADS: usize = 16;

/// Replicas lag by milliseconds; 10 s is far beyond it.
const RECENT: Duration = Duration::from_secs(10);

/// Recent writes that are remembered. Beyond it the oldest is forgotten, which at 3,000 writes/s keeps 10 s.
const RECENT_MAX: usize = 32 * 1024;

/// Why there are no members.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// Nobody ever wrote this audience.
    #[error("nobody ever wrote the members of {0}")]
    Unknown(String),
    /// The bucket could not be read, or the service did not answer.
    #[error(transparent)]
    Load(Arc<LoadError>),
}

/// The writes of the last seconds, by audience: loads must not walk the writes of all others.
#[derive(Debug, Default)]
struct Recent {
    order: VecDeque<(Instant, Key)>,
    changes: HashMap<Key, VecDeque<Change>>,
}

impl Recent {
    /// Remembers a write of now. False when another one was forgotten before its time to make room.
    fn push(&mut self, now: Instant, key: Key, change: Change) -> bool {
        while self.order.front().is_some_and(|(at, _)| now.duration_since(*at) > RECENT) {
            self.forget_oldest();
        }
        let room = self.order.len() < RECENT_MAX;
        if !room {
            self.forget_oldest();
        }
        self.order.push_back((now, key.clone()));
        self.changes.entry(key).or_default().push_back(change);
        room
    }

    fn forget_oldest(&mut self) {
        let Some((_, key)) = self.order.pop_front() else { return };
        if let Some(changes) = self.changes.get_mut(&key) {
            changes.pop_front();
            if changes.is_empty() {
                self.changes.remove(&key);
            }
        }
    }

    fn of(&self, key: &Key) -> impl Iterator<Item = &Change> {
        self.changes.get(key).into_iter().flatten()
    }
}

/// One cached audience. Copied when it changes while a fan-out walks it.
type Cached = Arc<RwLock<Arc<Members>>>;

/// Looks up the members of audiences. Cheap to share.
#[derive(Debug)]
pub struct Directory {
    client: Client,
    context: Context,
    cache: Cache<Key, Cached>,
    asked: Vec<Kind>,
    ask_timeout: Duration,
    loads: Semaphore,
    recent: Mutex<Recent>,
    connects: AtomicU64,
    from_cache: Counter,
    from_source: Counter,
}

impl Directory {
    /// An empty directory on the bucket. Spawn [`Self::follow`] before the first look-up.
    pub fn new(client: Client, context: Context, config: &Config) -> Self {
        describe();
        let cache = Cache::builder()
            .max_capacity(config.cache_bytes)
            .weigher(|_, members: &Cached| u32::try_from(members.read().bytes()).unwrap_or(u32::MAX))
            .time_to_live(Duration::from_secs(config.cache_ttl_s))
            .build();
        let from = |from| counter!("fanfare_directory_lookups_total", "from" => from);
        let connects = AtomicU64::new(client.statistics().connects.load(Ordering::Relaxed));
        let asked = match config.source {
            Source::Bucket => Vec::new(),
            Source::Request => config.request_kinds.iter().copied().filter(|kind| kind.is_stored()).collect(),
        };
        Self {
            client,
            context,
            cache,
            asked,
            ask_timeout: Duration::from_millis(config.request_timeout_ms),
            loads: Semaphore::new(LOADS),
            recent: Mutex::default(),
            connects,
            from_cache: from("cache"),
            from_source: from("source"),
        }
    }

    /// True when a service owns the members of sets of this kind, and the gateway need not register any.
    pub fn is_asked(&self, kind: Kind) -> bool {
        self.asked.contains(&kind)
    }

    /// Subscribes to every write to the bucket.
    pub async fn subscribe(&self) -> Result<Subscriber, async_nats::SubscribeError> {
        self.client.subscribe(format!("$KV.{AUDIENCE}.>")).await
    }

    /// Applies writes to the cache until the subscription ends, which it does with the connection.
    pub async fn follow(&self, mut writes: Subscriber) {
        while let Some(write) = writes.next().await {
            let key = write.subject.strip_prefix(concat!("$KV.", "audience", "."));
            if let Some((key, change)) = key.and_then(|key| members::parse(key, &write.payload)) {
                self.note(key, change).await;
            }
        }
    }

    /// The members of an audience. Follows the alias of a conversation.
    pub async fn members(&self, key: &Key) -> Result<Arc<Members>, LookupError> {
        self.forget_after_reconnect();
        let members = self.one(key).await?;
        let group = members.alias().and_then(|group| Key::new(Kind::Group, group));
        match group {
            Some(group) => self.one(&group).await,
            None => Ok(members),
        }
    }

    /// The members of `key`, or of the group it is another name of, where that is known without waiting and has at most
    /// `users_max` entries.
    pub fn known(&self, key: &Key, users_max: usize) -> Option<Arc<Members>> {
        self.forget_after_reconnect();
        let mut members = self.at_once(key)?;
        if let Some(group) = members.alias().and_then(|group| Key::new(Kind::Group, group)) {
            members = self.at_once(&group)?;
        }
        if members.entries() > users_max {
            return None;
        }
        self.from_cache.increment(1);
        Some(members)
    }

    fn at_once(&self, key: &Key) -> Option<Arc<Members>> {
        let cached = self.cache.get(key).now_or_never()??;
        // Whoever writes to a large set may be copying it.
        Some(cached.try_read()?.clone())
    }

    async fn one(&self, key: &Key) -> Result<Arc<Members>, LookupError> {
        if let Some(cached) = self.cache.get(key).await {
            self.from_cache.increment(1);
            return Ok(cached.read().clone());
        }
        self.from_source.increment(1);
        let cached =
            self.cache.try_get_with_by_ref(key, self.load(key)).await.map_err(|error| match &*error {
                LookupError::Unknown(name) => LookupError::Unknown(name.clone()),
                LookupError::Load(source) => LookupError::Load(source.clone()),
            })?;
        // A write may have come after the load and before the cache had it.
        self.overlay(key, &mut cached.write());
        gauge!("fanfare_directory_cached_bytes").set(self.cache.weighted_size() as f64);
        let members = cached.read().clone();
        Ok(members)
    }

    async fn load(&self, key: &Key) -> Result<Cached, LookupError> {
        let _permit = self.loads.acquire().await;
        let began = Instant::now();
        let (from, loaded) = if self.is_asked(key.kind) {
            ("service", ask::ask(&self.client, key, self.ask_timeout).await.map_err(LoadError::from))
        } else {
            ("bucket", load::load(&self.context, key).await)
        };
        let mut members = match loaded {
            Ok(members) => Arc::new(members),
            Err(error) => {
                counter!("fanfare_directory_load_errors_total", "from" => from).increment(1);
                return Err(LookupError::Load(Arc::new(error)));
            }
        };
        histogram!("fanfare_directory_load_seconds", "from" => from).record(began.elapsed().as_secs_f64());
        // Whoever owns the audience knows whether there is one, whatever writes say about single members.
        let known = from == "bucket" || !members.is_unknown();
        self.overlay(key, &mut members);
        if members.is_unknown() || !known {
            Err(LookupError::Unknown(key.header()))
        } else {
            Ok(Arc::new(RwLock::new(members)))
        }
    }

    /// Applies a write that happened now. For those of this process, which must not wait for the subscription.
    pub async fn note(&self, key: Key, change: Change) {
        if !self.recent.lock().push(Instant::now(), key.clone(), change.clone()) {
            counter!("fanfare_directory_forgotten_writes_total").increment(1);
        }
        if let Some(cached) = self.cache.get(&key).await {
            Arc::make_mut(&mut cached.write()).apply(change);
        }
    }

    fn overlay(&self, key: &Key, members: &mut Arc<Members>) {
        for change in self.recent.lock().of(key) {
            Arc::make_mut(members).apply(change.clone());
        }
    }

    /// Empties the cache when the connection is another one than at the last look-up.
    fn forget_after_reconnect(&self) {
        let connects = self.client.statistics().connects.load(Ordering::Relaxed);
        // Looked at first: all workers look, and none writes.
        if self.connects.load(Ordering::Relaxed) != connects
            && self.connects.swap(connects, Ordering::Relaxed) != connects
        {
            self.cache.invalidate_all();
            tracing::info!("NATS was reconnected: cached members are read anew");
        }
    }
}

fn describe() {
    metrics::describe_counter!(
        "fanfare_directory_lookups_total",
        "audiences looked up, from cache or source"
    );
    metrics::describe_counter!(
        "fanfare_directory_load_errors_total",
        "audiences that could not be read, from bucket or service"
    );
    metrics::describe_histogram!(
        "fanfare_directory_load_seconds",
        metrics::Unit::Seconds,
        "time to read one audience, from bucket or service, without waiting for a turn"
    );
    metrics::describe_counter!(
        "fanfare_directory_forgotten_writes_total",
        "recent writes that were forgotten before their time, because there were too many"
    );
    metrics::describe_gauge!(
        "fanfare_directory_cached_bytes",
        metrics::Unit::Bytes,
        "memory of cached members"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_writes_are_kept_by_audience_until_they_are_old_or_too_many() {
        let (mut recent, start) = (Recent::default(), Instant::now());
        let key = |id: &str| Key::new(Kind::Group, id).unwrap();
        let seen = |recent: &Recent, id: &str| recent.of(&key(id)).cloned().collect::<Vec<_>>();
        for v in 1..=3 {
            assert!(recent.push(start, key(if v == 2 { "b" } else { "a" }), Change::Gone { v }));
        }
        assert_eq!(seen(&recent, "a"), [Change::Gone { v: 1 }, Change::Gone { v: 3 }]);
        assert_eq!(seen(&recent, "b"), [Change::Gone { v: 2 }]);

        let later = start + RECENT + Duration::from_secs(1);
        for v in 0..RECENT_MAX as u64 {
            assert!(recent.push(later, key("c"), Change::Gone { v }));
        }
        assert_eq!(
            (seen(&recent, "a").len(), recent.changes.len()),
            (0, 1),
            "nothing is left of the old ones"
        );
        assert!(!recent.push(later, key("d"), Change::Gone { v: 1 }));
        assert_eq!(seen(&recent, "c").len(), RECENT_MAX - 1);
    }
}
