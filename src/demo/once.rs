//! `fanfare dev --once`: publishes every sample, receives with real clients, and compares with what must come.
//!
//! Devices are connected over WebTransport and over bare QUIC, in both encodings. A delivery to a device that should
//! not get it is as much a failure as a missing one, and so is a session that was lost, a notification that came
//! twice, and anything left in the streams at the end. `devices` has the clients, `report` what became of the steps.

mod devices;
mod report;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

pub use report::Report;

use super::scenario::{MEMBERS, Step};
use super::stage::{Stage, StageError};
use crate::catalog::Kind;
use crate::client::{Closed, ConfigError};
use crate::clock::Now;
use crate::directory::{Change, Key};
use crate::id::UserId;
use crate::nats::{DEAD_LETTERS, OFFLINE_PUSH, QUEUES};
use devices::Devices;
use report::{Content, Row};

/// Time a delivery may take before it counts as missing, and a notification before it must have left the work queue.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time after the last step in which nothing more may come.
const SETTLE: Duration = Duration::from_secs(2);

/// Seconds that an invitation to a call must wait for an answer in the service that is run against: a story of the
/// scenario waits for it.
pub const CALL_TIMEOUT_S: u64 = 4;

/// Between two looks at the work queue.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Deliveries that wait for the comparison; a full queue holds the clients back, and nothing is lost.
const ARRIVALS: usize = 1_024;

/// Why the run could not be made. A wrong or missing delivery is no error but a row of the report.
#[derive(Debug, thiserror::Error)]
pub enum OnceError {
    /// Publishing failed.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A client could not be set up.
    #[error(transparent)]
    Client(#[from] ConfigError),
    /// A client got no session.
    #[error("device {device} got no session: {closed}")]
    NoSession {
        /// Which one.
        device: &'static str,
        /// What it was told.
        closed: Closed,
    },
}

/// Where the service is.
#[derive(Debug)]
pub struct Place {
    /// `HOST:PORT` of the edge.
    pub edge: std::net::SocketAddr,
    /// SHA-256 of its certificate.
    pub certificate_hash: [u8; 32],
    /// HS256 secret for tokens.
    pub secret: Vec<u8>,
}

/// Publishes every step and collects what comes of it. [`super::scenario::steps`] has those of the specification,
/// [`super::story::steps`] has some that depend on each other. The streams must be empty at the start.
pub async fn run(stage: &Stage, place: &Place, steps: Vec<Step>) -> Result<Report, OnceError> {
    settle_members(stage).await?;
    let (sender, mut arrivals) = mpsc::channel(ARRIVALS);
    let ends: Vec<_> = steps.iter().flat_map(|step| step.ends.iter().copied()).collect();
    let devices = Devices::connect(place, sender, &ends).await?;
    let offline_pushes = steps.iter().map(|step| step.offline_pushes).sum();
    let mut report = Report::default();
    for step in steps {
        let (title, stored) = (step.title, stage.queued().await?.stored);
        let published_at = Instant::now();
        let row = if step.by_itself {
            Row::awaited(step, published_at)
        } else {
            let published = stage.publish_step(&step, &[]).await?;
            let content = Content::published(&published.envelope);
            let held = stage.held(step.event_type);
            Row::new(step, published.notification_id, content, published_at, held)
        };
        let at = report.add(row);
        let deadline = published_at + PATIENCE;
        while !report.is_complete(at) {
            match timeout_at(deadline, arrivals.recv()).await {
                Ok(Some(arrival)) => report.book(arrival),
                Ok(None) | Err(_) => break,
            }
        }
        // The next step of a story depends on what this one does. One for nobody shows nothing but that it was handled.
        if !title.is_empty() && !settled(stage, stored).await? {
            report.faults.push(format!("{title}: it was not handled"));
        }
    }
    let end = Instant::now() + SETTLE;
    while let Ok(Some(arrival)) = timeout_at(end, arrivals.recv()).await {
        report.book(arrival);
    }
    report.faults.extend(streams(stage, offline_pushes).await?);
    report.faults.extend(devices.end().await);
    Ok(report)
}

/// What is wrong with the streams at the end. The work queues are empty when every notification was settled, so this also
/// shows that acks reach them: without them it would be a hand-off that settles.
async fn streams(stage: &Stage, offline_pushes: u64) -> Result<Vec<String>, StageError> {
    settled(stage, 0).await?;
    let mut faults = Vec::new();
    let queues = QUEUES.map(|queue| (queue, 0));
    for (stream, wanted) in queues.into_iter().chain([(DEAD_LETTERS, 0), (OFFLINE_PUSH, offline_pushes)]) {
        let found = stage.count(stream).await?;
        if found != wanted {
            faults.push(format!("stream {stream} holds {found} messages at the end instead of {wanted}"));
        }
    }
    Ok(faults)
}

/// Waits until the work queues have had more than `after` messages and are empty: what was delivered may still have an
/// effect to come. False when it took too long.
async fn settled(stage: &Stage, after: u64) -> Result<bool, StageError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let queued = stage.queued().await?;
        if queued.waiting == 0 && queued.stored > after {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn settle_members(stage: &Stage) -> Result<(), StageError> {
    for (kind, id, user, role) in MEMBERS {
        let key = Key::new(kind, id).expect("a stored kind and a valid id");
        let user = UserId::new(user).expect("a valid id");
        let change = Change::Member { user, role: Some(role), v: Now::read().unix_ms * 1_000 };
        stage.writer().write(&key, &change).await?;
    }
    debug_assert!(MEMBERS.iter().all(|(kind, ..)| *kind != Kind::Broadcast));
    Ok(())
}
