//! Several nodes as one gateway: who serves whom, in the buckets `nodes` and `presence`.
//!
//! Each node keeps a lease (`lease`), writes the sessions it has (`announcer`, told by the registry through
//! `announcements`) and follows both buckets (`follow`) into [`Presence`]. The registry is the truth of a node, the
//! bucket follows it; after any gap both are compared. `conflicts` ends sessions here that newer ones elsewhere replace.
//! While NATS is away each node serves the sessions it has. `relay` asks other nodes to offer a notification to their
//! sessions, and answers when this one is asked.

pub mod announcements;
mod announcer;
mod conflicts;
pub mod entries;
pub mod entry;
mod follow;
mod lease;
mod nodes;
pub mod presence;
pub mod relay;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{self, Context};
use metrics::{describe_counter, describe_gauge};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use announcements::Announcements;
pub use entries::Entries;
pub use presence::Presence;

use crate::clock::Now;
use crate::id::NodeId;
use crate::nats::{WatchError, WriteError};
use crate::session::Registry;
use crate::telemetry::cpu::Meter;
use conflicts::Conflicts;
use lease::Lives;

/// What a node does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Both.
    #[default]
    All,
    /// Pulls notifications, and serves no devices.
    Worker,
    /// Serves devices, and pulls nothing.
    Edge,
}

impl Role {
    /// True for a node that devices connect to.
    pub fn serves_devices(self) -> bool {
        self != Self::Worker
    }

    /// True for a node that takes notifications from JetStream.
    pub fn pulls(self) -> bool {
        self != Self::Edge
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Worker => "worker",
            Self::Edge => "edge",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How long what lasts. They depend on each other, so only tests change them.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Life of a lease, in whole seconds.
    pub lease: Duration,
    /// Time between two renewals: two may fail.
    pub renew: Duration,
    /// Time for which entries outlive their node's lease.
    pub grace: Duration,
    /// Time without a renewal after which a node begins another life: well before `lease` and `grace` are over.
    pub life: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(5),
            grace: Duration::from_mins(1),
            life: Duration::from_secs(50),
        }
    }
}

/// How this node takes part.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    /// What it does.
    pub role: Role,
    /// How long what lasts.
    pub times: Times,
}

/// Why a node cannot take part. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A bucket cannot be read.
    #[error(transparent)]
    Read(#[from] WatchError),
    /// The lease was refused.
    #[error("{0} (if the bucket does not exist, run `fanfare provision apply`)")]
    Lease(#[from] WriteError),
}

/// What a node's part is built from.
#[derive(Debug)]
pub struct Cluster {
    /// The connection to NATS.
    pub client: Client,
    /// The sessions of this node.
    pub registry: Arc<Registry>,
    /// What `registry` tells of its changes.
    pub announcements: Arc<Announcements>,
    /// The node's name.
    pub name: String,
    /// Sessions of one user on all nodes.
    pub sessions_per_user_max: usize,
    /// Sessions that this node takes; 0 when it serves no devices.
    pub sessions_max: usize,
    /// How it takes part.
    pub settings: Settings,
    /// Cancelled when the node is about to stop.
    pub draining: CancellationToken,
}

/// What the tasks of this part share.
#[derive(Debug)]
struct Node {
    client: Client,
    context: Context,
    registry: Arc<Registry>,
    announcements: Arc<Announcements>,
    name: String,
    role: Role,
    times: Times,
    sessions_per_user_max: usize,
    sessions_max: usize,
    cpu: Mutex<Meter>,
    started_ms: u64,
    lives: Arc<Lives>,
    presence: Arc<Presence>,
    entries: Entries,
    conflicts: Conflicts,
    /// The last entry was refused: said once.
    refused: AtomicBool,
    /// The lease was seen to vanish.
    lease_gone: Notify,
    /// Somebody deleted it, and the others have dropped the entries. They are written again after the lease, so that who
    /// cleans up and finds no lease removes none of them.
    dropped: AtomicBool,
}

/// A node that takes part. Dropped, it stops without a word, as in a crash.
#[derive(Debug)]
pub struct Handle {
    node: Arc<Node>,
    tasks: JoinSet<()>,
}

impl Cluster {
    /// Writes the node's lease, reads who else is there, and follows both from then on. Fails when that cannot be done.
    pub async fn start(self) -> Result<Handle, ClusterError> {
        describe();
        let Self {
            client,
            registry,
            announcements,
            name,
            sessions_per_user_max,
            sessions_max,
            settings,
            draining,
        } = self;
        let now = Now::read();
        let lives = Arc::new(Lives::new(NodeId::of(&name, now.unix_ms)));
        let node = Arc::new(Node {
            context: jetstream::new(client.clone()),
            registry,
            announcements,
            name,
            role: settings.role,
            times: settings.times,
            sessions_per_user_max,
            sessions_max,
            cpu: Mutex::new(Meter::start(now.instant)),
            started_ms: now.unix_ms,
            presence: Arc::new(Presence::of(client.clone())),
            entries: Entries::new(client.clone(), lives.clone()),
            conflicts: Conflicts::default(),
            refused: AtomicBool::new(false),
            lease_gone: Notify::new(),
            dropped: AtomicBool::new(false),
            lives,
            client,
        });
        node.announcements.follow(node.presence.clone());
        node.renew(&node.lives.current(), false).await?;
        node.renewed(now);
        let mut follower = follow::Follower::new(node.clone());
        let watches = follower.read().await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(lease::run(node.clone(), draining, now));
        tasks.spawn(follower.run(watches));
        tasks.spawn(announcer::run(node.clone()));
        tasks.spawn(conflicts::run(node.clone()));
        Ok(Handle { node, tasks })
    }
}

impl Handle {
    /// Which other nodes serve whom.
    pub fn presence(&self) -> Arc<Presence> {
        self.node.presence.clone()
    }

    /// The current id of this node.
    pub fn node(&self) -> watch::Receiver<NodeId> {
        self.node.lives.watch()
    }

    /// Reads users' sessions on all nodes.
    pub fn entries(&self) -> Entries {
        self.node.entries.clone()
    }

    /// Resolves when a task that should run until the end has ended, which is a bug.
    pub async fn failed(&mut self) {
        self.tasks.join_next().await;
    }

    /// Takes the node out, within `limit`. Call it when no session is left.
    pub async fn leave(mut self, limit: Duration) {
        // First, so that nothing is written after the last words.
        self.tasks.shutdown().await;
        let error: async_nats::Error = match tokio::time::timeout(limit, self.node.leave()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(elapsed) => elapsed.into(),
        };
        tracing::warn!(%error, "this node could not take leave of the others; its lease runs out by itself");
    }
}

fn describe() {
    describe_gauge!("fanfare_cluster_nodes", "nodes with a lease, this one included");
    describe_gauge!(
        "fanfare_cluster_unannounced",
        "users whose entry in the bucket presence is to be written"
    );
    describe_counter!("fanfare_cluster_announced_total", "entries written to the bucket presence, by kind");
    describe_counter!(
        "fanfare_cluster_announce_errors_total",
        "entries that JetStream did not take; they are written again"
    );
    describe_counter!(
        "fanfare_cluster_announce_timeouts_total",
        "sessions that were welcomed before the other nodes could know of them"
    );
    describe_counter!(
        "fanfare_cluster_read_total",
        "readings of the buckets nodes and presence, at start and after gaps in the connection to NATS"
    );
    describe_counter!(
        "fanfare_cluster_follow_errors_total",
        "errors while following the buckets nodes and presence"
    );
    describe_counter!("fanfare_cluster_lease_errors_total", "renewals of this node's lease that failed");
    describe_counter!(
        "fanfare_cluster_lives_total",
        "times this node took another id after NATS was away for long"
    );
    describe_counter!("fanfare_cluster_ended_total", "sessions ended for newer ones on other nodes, by code");
}
