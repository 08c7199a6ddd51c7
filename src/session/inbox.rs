//! The inbox as a session sees it: where it stands, and what a device missed.
//!
//! The reader itself is in `delivery`; this is the seam through which the edge asks it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::id::{DeviceId, UserId};
use crate::protocol::Notification;

/// A place in the inbox that a client keeps: `{epoch}-{sequence}-{unix seconds}`. Opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// When the stream was created, Unix seconds: another stream has another epoch.
    pub epoch: u64,
    /// Last stream sequence that is included.
    pub sequence: u64,
    /// When it was taken, Unix seconds.
    pub unix_s: u64,
}

impl Cursor {
    /// Parses a client's cursor.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-').map(|part| part.parse::<u64>().ok());
        let cursor = Self { epoch: parts.next()??, sequence: parts.next()??, unix_s: parts.next()?? };
        parts.next().is_none().then_some(cursor)
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}", self.epoch, self.sequence, self.unix_s)
    }
}

/// Where the inbox stands on this node. Cheap to clone; one writer, the task that follows the stream.
#[derive(Debug, Clone, Default)]
pub struct Position(Arc<[AtomicU64; 2]>);

impl Position {
    /// Notes the stream's epoch and its last sequence. The sequence never goes back within an epoch.
    pub fn advance(&self, epoch: u64, sequence: u64) {
        if self.0[0].swap(epoch, Ordering::AcqRel) == epoch {
            self.0[1].fetch_max(sequence, Ordering::AcqRel);
        } else {
            self.0[1].store(sequence, Ordering::Release);
        }
    }

    /// The cursor for now.
    pub fn cursor(&self, unix_ms: u64) -> Cursor {
        Cursor {
            epoch: self.0[0].load(Ordering::Acquire),
            sequence: self.0[1].load(Ordering::Acquire),
            unix_s: unix_ms / 1_000,
        }
    }
}

/// What a device missed, and whether that is all of it.
#[derive(Debug, Default)]
pub struct Missed {
    /// Notifications in stream order, each with its cursor.
    pub notes: Vec<(Arc<Notification>, Cursor)>,
    /// Nothing after the client's cursor was lost.
    pub recovered: bool,
    /// The inbox was read up to here.
    pub cursor: Option<Cursor>,
    /// There is more of it, to be read when this is acked.
    pub more: bool,
    /// The client's own cursor: pings repeat it until the replay is acked, so that a client that dies in the middle
    /// does not skip the rest.
    pub held: Option<Cursor>,
}

/// Reads the inbox.
pub trait Replay: Send + Sync + std::fmt::Debug {
    /// What `device` of `user` has in the inbox after `resume`; without it nothing is missed.
    fn missed<'a>(
        &'a self,
        user: &'a UserId,
        device: &'a DeviceId,
        resume: Option<&'a str>,
    ) -> BoxFuture<'a, Missed>;
}

/// Where the session stands in its user's inbox.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The last cursor the client may store: everything up to it is processed or not for this device.
    pub(super) safe: Option<Cursor>,
    /// Where the inbox stood at an earlier ping, and the session's era then. It becomes safe once everything that was
    /// taken before it is acked: a client that vanishes must find it again.
    pub(super) candidate: Option<(Cursor, u32)>,
    /// Sequence up to which the inbox was read for this session.
    pub(super) read_to: u64,
    /// Sequence of the latest record for the user.
    pub(super) record: u64,
    /// Unix milliseconds of the latest offer.
    pub(super) offered_ms: u64,
    /// Unix milliseconds at which a notification that the inbox keeps was last not taken.
    pub(super) refused_ms: u64,
    /// After a read that failed or found nothing, when to try again.
    pub(super) retry_at: Option<Instant>,
    /// Reads in a row that found nothing.
    pub(super) empty: u32,
}

impl State {
    /// The cursor of the ping that begins `era`. A client stores it, so it may not pass what the client has not
    /// processed: neither records that are to be replayed (then `here` has none), nor what was taken live and is in the
    /// inbox, too. So it stays a ping behind, and longer while something taken before that is not acked (`held`).
    pub(super) fn advance(
        &mut self,
        era: u32,
        held: impl Fn(u32) -> bool,
        here: impl FnOnce() -> Option<Cursor>,
    ) -> Cursor {
        if let Some((reached, since)) = self.candidate
            && !held(since)
        {
            self.safe = Some(reached);
            self.candidate = None;
        }
        if self.candidate.is_none() {
            self.candidate = here().map(|cursor| (cursor, era));
        }
        self.safe.unwrap_or_default()
    }

    /// There is a record that was not read for this session.
    pub(super) fn is_behind(&self) -> bool {
        self.record > self.read_to
    }
}

/// Time before the inbox is read again when nothing was there, unless a record is announced before; it doubles up to
/// [`RETRY`].
pub(super) const AGAIN: Duration = Duration::from_millis(100);

/// Time before the inbox is read again after a failure.
pub(super) const RETRY: Duration = Duration::from_secs(5);
