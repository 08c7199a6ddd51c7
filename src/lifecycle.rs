//! Builds the service from its configuration and takes it down again.
//!
//! The one place that knows every part: workers pull and decide, the edge serves sessions, the admin port tells about
//! both. [`Service::stop`] drains: readiness turns first, workers finish what is in hand, sessions are asked to leave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::{describe_gauge, gauge};
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::cluster::relay::{self, Relay};
use crate::cluster::{Cluster, Role};
use crate::config::Config;
use crate::session::Registry;
use crate::session::inbox::Position;
use crate::telemetry::{Admin, AdminError, Readiness};
use crate::transport::tls::{Identity, TlsError};
use crate::transport::{self, Edge, EdgeError, auth};
use crate::{cluster, control, delivery, nats, worker};

/// Time beyond `worker.drain_s` that workers get for giving back what is left: some thousand words, and the 2 s in which
/// the connection sends them.
const WORKER_MARGIN: Duration = Duration::from_secs(5);

/// Time to deliver again what the last sessions held, once they have ended.
const REROUTE_LIMIT: Duration = Duration::from_secs(5);

/// Time to take leave of the other nodes after that.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// Time to write the last evidence after that.
const EVIDENCE_LIMIT: Duration = Duration::from_secs(2);

/// Why the service did not start. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No NATS.
    #[error(transparent)]
    Nats(#[from] nats::ConnectError),
    /// Token keys.
    #[error(transparent)]
    Auth(#[from] auth::AuthError),
    /// Certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The UDP endpoint.
    #[error(transparent)]
    Edge(#[from] EdgeError),
    /// The admin port.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The workers.
    #[error(transparent)]
    Worker(#[from] worker::StartError),
    /// Bans and ended logins.
    #[error(transparent)]
    Control(#[from] control::ControlError),
    /// The other nodes.
    #[error(transparent)]
    Cluster(#[from] cluster::ClusterError),
    /// The inbox.
    #[error(transparent)]
    Inbox(#[from] delivery::replay::ReplayError),
}

/// What the service is built from.
#[derive(Debug)]
pub struct Parts {
    /// The whole configuration.
    pub config: Config,
    /// The rules.
    pub catalog: Arc<Catalog>,
    /// For devices; not needed by a node that serves none.
    pub keys: Option<Keys>,
    /// The connection to NATS.
    pub client: async_nats::Client,
    /// Its part among other nodes.
    pub cluster: cluster::Settings,
}

/// What devices are served with.
#[derive(Debug)]
pub struct Keys {
    /// Certificate and key.
    pub identity: Identity,
    /// Token keys.
    pub verifier: auth::Verifier,
}

/// What decides how long a stop takes.
#[derive(Debug, Clone, Copy)]
struct StopLimits {
    drain_rate: u32,
    worker: Duration,
}

impl StopLimits {
    fn new(config: &Config) -> Self {
        let worker = Duration::from_secs(config.worker.drain_s) + WORKER_MARGIN;
        Self { drain_rate: config.edge.drain_rate, worker }
    }

    /// The longest a stop takes with so many sessions, or without an edge: workers and sessions end side by side, and
    /// what the last sessions held is delivered again after both.
    fn total(self, sessions: Option<usize>) -> Duration {
        let edge = sessions.map(|sessions| transport::drain_limit(sessions, self.drain_rate));
        edge.unwrap_or_default().max(self.worker) + REROUTE_LIMIT + LEAVE_LIMIT + EVIDENCE_LIMIT
    }
}

/// Seconds that a supervisor must leave a node of this configuration between the signal and a kill, with as many
/// sessions as it takes in its role.
pub fn grace_period_s(config: &Config, role: Role) -> u64 {
    let sessions = role.serves_devices().then_some(config.edge.sessions_max);
    StopLimits::new(config).total(sessions).as_secs_f64().ceil() as u64
}

/// A running node.
#[derive(Debug)]
pub struct Service {
    /// First, so that it is the first to go: a service that is dropped says nothing more to other nodes, as in a crash.
    cluster: cluster::Handle,
    /// `None` on a node that serves no devices.
    devices: Option<Devices>,
    worker: worker::Handle,
    reroute: worker::Rerouter,
    asker: relay::Asker,
    stop: StopLimits,
    evidence: delivery::evidence::Writer,
    admin: Admin,
    readiness: Readiness,
    soft: CancellationToken,
}

/// What serves devices.
#[derive(Debug)]
struct Devices {
    edge: transport::Handle,
    inbox: delivery::replay::Follower,
    control: control::Follower,
    server: relay::Server,
}

impl Parts {
    /// Reads keys and certificate as configured, where `role` needs them, and connects to NATS.
    pub async fn load(config: Config, catalog: Arc<Catalog>, role: Role) -> Result<Self, ServeError> {
        let keys = if role.serves_devices() {
            let verifier = auth::Verifier::load(&config.auth)?;
            Some(Keys { verifier, identity: Identity::load(&config.edge.tls)? })
        } else {
            None
        };
        let client = nats::connect(&config.nats).await?;
        let cluster = cluster::Settings { role, ..cluster::Settings::default() };
        Ok(Self { config, catalog, keys, client, cluster })
    }

    /// Starts every part.
    pub async fn start(self) -> Result<Service, ServeError> {
        let Self { config, catalog, keys, client, cluster: settings } = self;
        let (stop, grace_s) = (StopLimits::new(&config), grace_period_s(&config, settings.role));
        let readiness = Readiness::starting();
        let admin = Admin::start(&config.admin, readiness.clone(), client.clone()).await?;
        let announcements = cluster::Announcements::new();
        let registry = Registry::new(config.edge.sessions_per_user_max).announcing(announcements.clone());
        let registry = Arc::new(registry);
        let (recorder, evidence) =
            delivery::evidence::start(client.clone(), &config.worker.evidence, &config.edge.node);
        let soft = CancellationToken::new();
        let cluster = Cluster {
            client: client.clone(),
            registry: registry.clone(),
            announcements,
            name: config.edge.node.clone(),
            sessions_per_user_max: config.edge.sessions_per_user_max,
            sessions_max: if keys.is_some() { config.edge.sessions_max } else { 0 },
            settings,
            draining: soft.clone(),
        }
        .start()
        .await?;
        let devices = match keys {
            Some(keys) => {
                let place = (client.clone(), catalog.clone(), registry.clone());
                Some(Box::pin(Devices::start(keys, config.edge, place, &cluster)).await?)
            }
            None => None,
        };
        let undelivered = registry.undelivered().expect("taken here only");
        let (nodes, asker) =
            Relay::start(client.clone(), &cluster).await.map_err(worker::StartError::from)?;
        let duty = if settings.role.pulls() { worker::Duty::Pull } else { worker::Duty::Reroute };
        let duty = (duty, soft.clone());
        let worker = worker::start(client, catalog, (registry, nodes), recorder, config.worker, duty).await?;
        let reroute = worker.reroute(undelivered);
        readiness.ready();
        describe_gauge!(
            "fanfare_lifecycle_grace_seconds",
            "time a supervisor must leave this node for its stop when it is full"
        );
        gauge!("fanfare_lifecycle_grace_seconds").set(grace_s as f64);
        let edge = devices.as_ref().map(|devices| tracing::field::display(devices.edge.address()));
        tracing::info!(edge, admin = %admin.address, role = %settings.role, "serving");
        tracing::info!(
            "set terminationGracePeriodSeconds or TimeoutStopSec to at least {grace_s}: a full node stops within it"
        );
        Ok(Service { cluster, devices, worker, reroute, asker, stop, evidence, admin, readiness, soft })
    }
}

impl Devices {
    /// Listens to other nodes before any device can connect: they ask as soon as they know of one.
    async fn start(
        Keys { identity, verifier }: Keys,
        config: transport::Config,
        (client, catalog, registry): (async_nats::Client, Arc<Catalog>, Arc<Registry>),
        cluster: &cluster::Handle,
    ) -> Result<Self, ServeError> {
        let (bans, control) = control::start(client.clone(), catalog.clone(), registry.clone()).await?;
        let position = Position::default();
        let (replay, inbox) =
            delivery::replay::start(client.clone(), catalog.clone(), position.clone(), registry.clone())
                .await?;
        let server = relay::Server::start(client, cluster.node(), catalog, registry.clone())
            .await
            .map_err(worker::StartError::from)?;
        let edge = Edge {
            config,
            identity,
            verifier,
            node: cluster.node(),
            registry,
            control: bans,
            inbox: position,
            replay: Arc::new(replay),
        }
        .start()?;
        Ok(Self { edge, inbox, control, server })
    }

    async fn failed(&mut self) -> &'static str {
        tokio::select! {
            () = self.edge.failed() => "edge",
            () = self.inbox.failed() => "inbox follower",
            () = self.control.failed() => "control follower",
            () = self.server.failed() => "relay",
        }
    }
}

impl Service {
    /// UDP address of the edge; `None` on a node that serves no devices.
    pub fn edge_address(&self) -> Option<SocketAddr> {
        self.devices.as_ref().map(|devices| devices.edge.address())
    }

    /// TCP address of the admin port.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address
    }

    /// Its part among other nodes.
    pub fn cluster(&self) -> &cluster::Handle {
        &self.cluster
    }

    /// Resolves with the name of a part that has ended before its time. The service is not whole then: stop it, and
    /// let the supervisor start it again.
    pub async fn failed(&mut self) -> &'static str {
        let devices = async {
            match &mut self.devices {
                Some(devices) => devices.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.worker.failed() => "worker",
            () = self.reroute.failed() => "rerouter",
            () = self.asker.failed() => "relay",
            () = self.cluster.failed() => "cluster",
            () = self.evidence.failed() => "evidence writer",
            part = devices => part,
            () = self.admin.failed() => "admin port",
        }
    }

    /// Stops gently: new work and new clients are refused, what is in hand is finished, sessions move elsewhere.
    /// Ends in bounded time, whatever clients and NATS do. Dropping the future stops at once.
    pub async fn stop(self) {
        self.readiness.not_ready("draining");
        self.soft.cancel();
        let sessions = self.devices.as_ref().map(|devices| devices.edge.sessions());
        let at_most_s = self.stop.total(sessions).as_secs_f64().ceil();
        tracing::info!(sessions, at_most_s, "draining");
        // What serves the sessions runs until the last of them has gone.
        let (edge, followers) = self
            .devices
            .map(|Devices { edge, inbox, control, server }| (edge, (inbox, control, server)))
            .unzip();
        let edge = async {
            if let Some(edge) = edge {
                let drain = edge.drain();
                edge.join(drain).await;
            }
        };
        tokio::join!(self.worker.join(self.stop.worker), edge);
        // Nobody is left who could hold something.
        self.reroute.join(REROUTE_LIMIT).await;
        self.cluster.leave(LEAVE_LIMIT).await;
        self.evidence.join(EVIDENCE_LIMIT).await;
        drop((followers, self.asker, self.admin));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grace_period_holds_the_longer_of_both_drains_and_what_follows_them() {
        let mut config = Config::default();
        // 500 s at the drain rate, 5 s to leave, 11 s to be cut off, 5 s to deliver again, 2 s to take leave of the other
        // nodes, and 2 s for evidence.
        (config.edge.sessions_max, config.edge.drain_rate, config.worker.drain_s) = (150_000, 300, 15);
        assert_eq!(grace_period_s(&config, Role::All), 525);
        config.edge.sessions_max = 3_001;
        assert_eq!(grace_period_s(&config, Role::All), 11 + 25, "rounded up");
        config.worker.drain_s = 60;
        assert_eq!(grace_period_s(&config, Role::All), 60 + 5 + 5 + 2 + 2, "now the workers need longer");
        assert_eq!(grace_period_s(&config, Role::Worker), 60 + 5 + 5 + 2 + 2, "there are no sessions");
    }
}
