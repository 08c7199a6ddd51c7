//! Members of audiences, cached and kept current.
//!
//! A look-up reads the whole audience once, one flight each, and keeps it for ten minutes. A subscription to the
//! bucket's subjects applies every write to what is cached. Loads may come from a server that lags, so the writes of
//! the last seconds are laid over each load. After a reconnect the cache starts empty: nobody knows what was missed.
//!
//! One task runs here, the subscription's; [`Directory::follow`] is its body and whoever spawns it owns and ends it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::{Client, Subscriber};
use futures::StreamExt;
use metrics::{counter, gauge};
use moka::future::Cache;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::load::{self, LoadError};
use super::members::{self, Change, Key, Members};
use crate::catalog::Kind;
use crate::nats::AUDIENCE;

/// Limits of the cache.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Memory for cached members in bytes; the least used audiences leave first.
    pub cache_bytes: u64,
    /// Seconds an audience stays cached; a write that the subscription missed shows after it.
    pub cache_ttl_s: u64,
}

impl Default for Config {
    /// 64 MiB hold some 700,000 members; ten minutes is the specification's time for group lists.
    fn default() -> Self {
        Self { cache_bytes: 64 * 1024 * 1024, cache_ttl_s: 600 }
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
    /// The bucket could not be read.
    #[error(transparent)]
    Load(Arc<LoadError>),
}

/// One cached audience. Copied when it changes while a fan-out walks it.
type Cached = Arc<RwLock<Arc<Members>>>;

/// Looks up the members of audiences. Cheap to share.
#[derive(Debug)]
pub struct Directory {
    client: Client,
    context: Context,
    cache: Cache<Key, Cached>,
    loads: Semaphore,
    recent: Mutex<VecDeque<(Instant, Key, Change)>>,
    connects: AtomicU64,
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
        let connects = AtomicU64::new(client.statistics().connects.load(Ordering::Relaxed));
        Self { client, context, cache, loads: Semaphore::new(LOADS), recent: Mutex::default(), connects }
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

    async fn one(&self, key: &Key) -> Result<Arc<Members>, LookupError> {
        if let Some(cached) = self.cache.get(key).await {
            counter!("fanfare_directory_lookups_total", "from" => "cache").increment(1);
            return Ok(cached.read().clone());
        }
        counter!("fanfare_directory_lookups_total", "from" => "bucket").increment(1);
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
        let mut members = match load::load(&self.context, key).await {
            Ok(members) => Arc::new(members),
            Err(error) => {
                counter!("fanfare_directory_load_errors_total").increment(1);
                return Err(LookupError::Load(Arc::new(error)));
            }
        };
        self.overlay(key, &mut members);
        if members.is_unknown() {
            Err(LookupError::Unknown(key.header()))
        } else {
            Ok(Arc::new(RwLock::new(members)))
        }
    }

    /// Applies a write that happened now. For those of this process, which must not wait for the subscription.
    pub async fn note(&self, key: Key, change: Change) {
        {
            let mut recent = self.recent.lock();
            while recent.front().is_some_and(|(at, ..)| at.elapsed() > RECENT) {
                recent.pop_front();
            }
            if recent.len() >= RECENT_MAX {
                recent.pop_front();
                counter!("fanfare_directory_forgotten_writes_total").increment(1);
            }
            recent.push_back((Instant::now(), key.clone(), change.clone()));
        }
        if let Some(cached) = self.cache.get(&key).await {
            Arc::make_mut(&mut cached.write()).apply(change);
        }
    }

    fn overlay(&self, key: &Key, members: &mut Arc<Members>) {
        for (_, _, change) in self.recent.lock().iter().filter(|(_, of, _)| of == key) {
            Arc::make_mut(members).apply(change.clone());
        }
    }

    /// Empties the cache when the connection is another one than at the last look-up.
    fn forget_after_reconnect(&self) {
        let connects = self.client.statistics().connects.load(Ordering::Relaxed);
        if self.connects.swap(connects, Ordering::Relaxed) != connects {
            self.cache.invalidate_all();
            tracing::info!("NATS was reconnected: cached members are read anew");
        }
    }
}

fn describe() {
    metrics::describe_counter!(
        "fanfare_directory_lookups_total",
        "audiences looked up, from cache or bucket"
    );
    metrics::describe_counter!("fanfare_directory_load_errors_total", "audiences that could not be read");
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
