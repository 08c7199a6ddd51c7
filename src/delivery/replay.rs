//! Reads the inbox: what a device missed, for its next session, and where the stream stands.
//!
//! A read is a direct get of the user's own subject from the client's cursor on, never a consumer. It goes to the end,
//! since what is outdated is known only there, and keeps what one session may hold. One task follows the stream's end
//! with a headers-only consumer; [`Follower`] owns and ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::{self, Context};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use metrics::counter;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::inbox::OFFERED_AT;
use crate::catalog::{Catalog, Lane};
use crate::clock::Now;
use crate::id::{DeviceId, UserId};
use crate::nats::direct_get::{self, DirectGetError, End};
use crate::nats::{INBOX, tail};
use crate::protocol::notification::{Frames, Policy};
use crate::protocol::{Notification, Payload};
use crate::session::Registry;
use crate::session::inbox::{Cursor, Missed, Position, Replay};
use crate::session::outdated::Outdated;

/// Records the stream keeps for one user (`max_msgs_per_subject`). That many found means that older ones may be gone.
const KEPT_PER_USER: u64 = 200;

/// Records are kept this long; a cursor older than it proves nothing.
const KEPT_S: u64 = 7 * 24 * 3_600;

/// Bytes that a session is given at once, and those of one direct get. The rest is given when the client has acked
/// them, so a session holds no more of its inbox.
const READ_BYTES: usize = 1024 * 1024;

/// Time a session waits for its inbox, its turn among the reads included. Clients give up a connection after 10 s.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// Time after which a read ends with what it has. Within it a whole inbox is looked through for what outdates what.
const READ_ALL: Duration = Duration::from_secs(2);

/// How often a read goes on because the leader has what the replica that answered had not; then it is left to the next.
const LEADER_ASKS: u32 = 8;

/// Time for a replica to catch up: at most 6.5 ms were measured.
const REPLICA_LAG: Duration = Duration::from_millis(5);

/// Reads at once. A direct get takes a millisecond; more at once would only queue inside the server.
const READS: usize = 64;

/// Wait before the stream's end is followed again after an error.
const RETRY: Duration = Duration::from_secs(1);

/// Why the inbox cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("stream {INBOX}: {0} (if it does not exist, run `fanfare provision apply`)")]
pub struct ReplayError(async_nats::Error);

/// Reads records of the inbox.
#[derive(Debug)]
pub struct Reader {
    client: Client,
    catalog: Arc<Catalog>,
    position: Position,
    reads: Semaphore,
    /// The stream has more than one replica.
    replicated: bool,
}

/// The task that follows the end of the stream. Ends when dropped.
#[derive(Debug)]
pub struct Follower {
    task: JoinSet<()>,
}

impl Follower {
    /// Resolves when the task has ended, which is a bug.
    pub async fn failed(&mut self) {
        self.task.join_next().await;
    }
}

/// The devices a record is for, as [`super::inbox`] writes them.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum DeviceChoice {
    Except(Vec<DeviceId>),
    Only(Vec<DeviceId>),
}

impl DeviceChoice {
    fn includes(&self, device: &DeviceId) -> bool {
        match self {
            Self::Except(devices) => !devices.contains(device),
            Self::Only(devices) => devices.contains(device),
        }
    }
}

#[derive(Deserialize)]
struct Record<'a> {
    notification_id: String,
    notification_type: String,
    timestamp: i64,
    published_at_ms: u64,
    expires_at_ms: u64,
    stream_seq: u64,
    from_user_id: Option<UserId>,
    priority: Lane,
    require_ack: bool,
    devices: Option<DeviceChoice>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// Opens the inbox: reads where it stands and follows it from there.
pub async fn start(
    client: Client,
    catalog: Arc<Catalog>,
    position: Position,
    registry: Arc<Registry>,
) -> Result<(Reader, Follower), ReplayError> {
    describe();
    let context = jetstream::new(client.clone());
    let replicated = locate(&context, &position).await?;
    let mut task = JoinSet::new();
    let followed = position.clone();
    task.spawn(async move {
        loop {
            if let Err(error) = follow(&context, &followed, &registry).await {
                counter!("fanfare_inbox_follow_errors_total").increment(1);
                tracing::warn!(%error, "following the inbox failed and is tried again");
            }
            tokio::time::sleep(RETRY).await;
        }
    });
    let reads = Semaphore::new(READS);
    Ok((Reader { client, catalog, position, reads, replicated }, Follower { task }))
}

/// Reads epoch and last sequence of the stream. True when it has more than one replica.
async fn locate(context: &Context, position: &Position) -> Result<bool, ReplayError> {
    let stream = context.get_stream(INBOX).await.map_err(|error| ReplayError(error.into()))?;
    let info = stream.cached_info();
    position.advance(info.created.unix_timestamp() as u64, info.state.last_sequence);
    Ok(info.config.num_replicas > 1)
}

/// Tells the sessions of each record's user, and only then moves the position past it.
async fn follow(context: &Context, position: &Position, registry: &Registry) -> Result<(), ReplayError> {
    let failed = |error: async_nats::Error| ReplayError(error);
    let stream = context.get_stream(INBOX).await.map_err(|error| failed(error.into()))?;
    let (created, last) = (stream.cached_info().created, stream.cached_info().state.last_sequence);
    let epoch = created.unix_timestamp() as u64;
    let here = position.cursor(0);
    // Another epoch is another stream, whose records all are new here.
    let start_sequence = if here.epoch == epoch { here.sequence + 1 } else { 1 };
    let config = pull::OrderedConfig {
        headers_only: true,
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|error| failed(error.into()))?;
    // Up to the last one, when nothing is to come: the last records may be gone already.
    let nothing = consumer.cached_info().num_pending == 0;
    let seen = Arc::new(AtomicU64::new(if nothing { last } else { start_sequence - 1 }));
    let mut records = consumer.messages().await.map_err(|error| failed(error.into()))?;
    let stuck = tail::lost(context.clone(), INBOX.to_owned(), created, seen.clone(), Arc::default());
    let mut stuck = std::pin::pin!(stuck);
    loop {
        let record = tokio::select! {
            record = records.next() => match record {
                Some(record) => record.map_err(|error| failed(error.into()))?,
                None => return Ok(()),
            },
            why = &mut stuck => return Err(failed(why.into())),
        };
        let Ok(info) = record.info() else { continue };
        if let Some(user) = record.subject.strip_prefix("inbox.") {
            let offered_at = record.headers.as_ref().and_then(|headers| headers.get(OFFERED_AT));
            let offered_at_ms = offered_at.and_then(|at| at.as_str().parse().ok());
            registry.inbox_record(user, info.stream_sequence, offered_at_ms);
        }
        position.advance(epoch, info.stream_sequence);
        seen.fetch_max(info.stream_sequence, Ordering::AcqRel);
    }
}

/// A record that says something to the device.
struct Found {
    note: Notification,
    /// It is to be shown on this device.
    meant: bool,
}

/// What one read gives to a session.
#[derive(Default)]
struct Page {
    /// In the order of the stream, each with its sequence.
    notes: Vec<(Notification, u64)>,
    bytes: usize,
    /// There is more that is meant for the device.
    full: bool,
    /// Sequence up to which nothing is left for another page.
    read_to: u64,
    outdated: Outdated,
}

impl Reader {
    async fn read(&self, user: &UserId, device: &DeviceId, resume: &str) -> Result<Missed, DirectGetError> {
        let now = Now::read();
        let started = now.instant;
        let here = self.position.cursor(now.unix_ms);
        let (after, held) = self.from(resume);
        let fresh = after.is_some_and(|cursor| cursor.unix_s.saturating_add(KEPT_S) > now.unix_ms / 1_000);
        let mut missed = Missed { recovered: fresh, held: Some(held), ..Missed::default() };
        // Clients may send any numbers here.
        let start = after.map_or(1, |cursor| cursor.sequence.saturating_add(1));
        let mut page = Page { read_to: start - 1, ..Page::default() };
        let (mut found, mut last) = (0, start - 1);
        let mut asks = LEADER_ASKS;
        let mut cut = false;
        loop {
            let request = serde_json::json!({
                "seq": last + 1, "next_by_subj": format!("inbox.{user}"), "batch": KEPT_PER_USER,
                "max_bytes": READ_BYTES,
            });
            let end = direct_get::many(&self.client, INBOX, &request, |stored| {
                found += 1;
                last = stored.sequence();
                page.take(self.note(stored.body(), device, now), last, stored.body().len());
            })
            .await?;
            let more = matches!(end, End::More(_));
            if more && started.elapsed() > READ_ALL {
                // Better a part, which may be outdated by a later one, than nothing.
                cut = true;
                break;
            }
            if more {
                continue;
            }
            // A replica may lag behind the record that made a session read.
            if !self.replicated || !self.leader_has(user, last + 1).await? {
                break;
            }
            if asks == 0 {
                cut = true;
                break;
            }
            asks -= 1;
            tokio::time::sleep(REPLICA_LAG).await;
        }
        let read_to = match (page.full, cut) {
            (true, _) => page.read_to,
            (false, true) => last,
            (false, false) => last.max(here.sequence),
        };
        missed.more = page.full || cut;
        missed.recovered &= found < KEPT_PER_USER;
        missed.cursor = Some(Cursor { sequence: read_to, ..here });
        let shown = page.shown().map(|(note, sequence)| (Arc::new(note), Cursor { sequence, ..here }));
        missed.notes = shown.collect();
        counter!("fanfare_inbox_replayed_total").increment(missed.notes.len() as u64);
        Ok(missed)
    }

    /// A client's cursor, when it can be used, and where a read begins: one that cannot is as good as the first.
    fn from(&self, resume: &str) -> (Option<Cursor>, Cursor) {
        let here = self.position.cursor(Now::read().unix_ms);
        let after = Cursor::parse(resume).filter(|cursor| cursor.epoch == here.epoch);
        (after, after.unwrap_or(Cursor { sequence: 0, ..here }))
    }

    /// True when the leader has a record of `user` from `sequence` on. Answers with a record, or that there is none.
    async fn leader_has(&self, user: &UserId, sequence: u64) -> Result<bool, DirectGetError> {
        let request = serde_json::json!({ "seq": sequence, "next_by_subj": format!("inbox.{user}") });
        direct_get::leader_has(&self.client, INBOX, &request).await
    }

    /// The notification of a record, unless it says nothing to this device: for others only, expired, or of a type that
    /// is gone.
    fn note(&self, body: &bytes::Bytes, device: &DeviceId, now: Now) -> Option<Found> {
        let record: Record<'_> = match serde_json::from_slice(body) {
            Ok(record) => record,
            Err(error) => {
                counter!("fanfare_inbox_skipped_total", "reason" => "malformed").increment(1);
                tracing::warn!(%error, "an inbox record cannot be read and is skipped");
                return None;
            }
        };
        let meant = record.devices.as_ref().is_none_or(|choice| choice.includes(device));
        // A device that is left out caused it or has it.
        let known = matches!(record.devices, Some(DeviceChoice::Except(_)));
        if !(meant || known) || record.expires_at_ms <= now.unix_ms {
            return None;
        }
        let Some(event) = self.catalog.get(&record.notification_type) else {
            counter!("fanfare_inbox_skipped_total", "reason" => "unknown_event").increment(1);
            return None;
        };
        let note = Notification {
            id: record.notification_id.into(),
            event: event.clone(),
            lane: record.priority,
            timestamp: record.timestamp,
            published_at_ms: record.published_at_ms,
            expires_at_ms: record.expires_at_ms,
            stream_seq: record.stream_seq,
            from_user_id: record.from_user_id,
            require_ack: record.require_ack,
            large_set: false,
            policy: Policy::default(),
            payload: Payload::part(body, record.payload).ok()?,
            frames: Frames::default(),
        };
        Some(Found { note, meant })
    }
}

impl Page {
    /// Takes the next record, of so many bytes.
    fn take(&mut self, found: Option<Found>, sequence: u64, bytes: usize) {
        if let Some(Found { note, meant }) = found {
            self.outdated.note(&note);
            if meant {
                // A record larger than the bound is given alone.
                self.full |= !self.notes.is_empty() && self.bytes + bytes > READ_BYTES;
                if !self.full {
                    self.bytes += bytes;
                    self.notes.push((note, sequence));
                }
            }
        }
        if !self.full {
            self.read_to = sequence;
        }
    }

    /// What is to be shown, each with its sequence.
    fn shown(self) -> impl Iterator<Item = (Notification, u64)> {
        let Self { notes, outdated, .. } = self;
        notes.into_iter().filter(move |(note, _)| {
            let reason = outdated.reason(note);
            if let Some(reason) = reason {
                counter!("fanfare_inbox_skipped_total", "reason" => reason).increment(1);
            }
            reason.is_none()
        })
    }
}

impl Replay for Reader {
    fn missed<'a>(
        &'a self,
        user: &'a UserId,
        device: &'a DeviceId,
        resume: Option<&'a str>,
    ) -> BoxFuture<'a, Missed> {
        async move {
            let Some(resume) = resume else { return Missed { recovered: true, ..Missed::default() } };
            let read = async {
                // Never closed, so there always is a permit in the end.
                let _permit = self.reads.acquire().await;
                self.read(user, device, resume).await
            };
            let read = tokio::time::timeout(READ_TIMEOUT, read).await;
            match read.unwrap_or(Err(DirectGetError::TimedOut)) {
                Ok(missed) => missed,
                Err(error) => {
                    // The session is worth more than its past: it opens, and reads again from the client's cursor on.
                    counter!("fanfare_inbox_read_errors_total").increment(1);
                    tracing::error!(%error, "the inbox cannot be read; the session goes on and tries again");
                    Missed { held: Some(self.from(resume).1), ..Missed::default() }
                }
            }
        }
        .boxed()
    }
}

/// Describes the metrics of this part.
fn describe() {
    metrics::describe_counter!("fanfare_inbox_replayed_total", "records read from the inbox for a session");
    metrics::describe_counter!(
        "fanfare_inbox_skipped_total",
        "records that could not be replayed, by reason"
    );
    metrics::describe_counter!("fanfare_inbox_read_errors_total", "inboxes that could not be read");
    metrics::describe_counter!("fanfare_inbox_follow_errors_total", "interruptions of following the inbox");
}
