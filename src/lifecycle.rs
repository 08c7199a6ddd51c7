//! Builds the service from its configuration and takes it down again.
//!
//! The one place that knows every part: workers pull and decide, the edge serves sessions, the admin port tells about
//! both. [`Service::stop`] drains: readiness turns first, workers finish what is in hand, sessions are asked to leave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::config::Config;
use crate::session::Registry;
use crate::session::inbox::Position;
use crate::telemetry::{Admin, AdminError, Readiness};
use crate::transport::tls::{Identity, TlsError};
use crate::transport::{self, Edge, EdgeError, auth};
use crate::{control, delivery, nats, worker};

/// Time beyond the drain that sessions get before the process stops waiting for them.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// Time beyond `worker.drain_s` that workers get for giving back what is left: some thousand words, and the 2 s in which
/// the connection sends them.
const WORKER_MARGIN: Duration = Duration::from_secs(5);

/// Time to deliver again what the last sessions held, once they have ended.
const REROUTE_LIMIT: Duration = Duration::from_secs(5);

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
    /// Certificate and key.
    pub identity: Identity,
    /// Token keys.
    pub verifier: auth::Verifier,
    /// The connection to NATS.
    pub client: async_nats::Client,
}

/// A running node.
#[derive(Debug)]
pub struct Service {
    edge: transport::Handle,
    worker: worker::Handle,
    reroute: worker::Rerouter,
    worker_limit: Duration,
    evidence: delivery::evidence::Writer,
    inbox: delivery::replay::Follower,
    control: control::Follower,
    admin: Admin,
    readiness: Readiness,
    soft: CancellationToken,
}

impl Parts {
    /// Reads keys and certificate as configured and connects to NATS.
    pub async fn load(config: Config, catalog: Arc<Catalog>) -> Result<Self, ServeError> {
        let verifier = auth::Verifier::load(&config.auth)?;
        let identity = Identity::load(&config.edge.tls)?;
        let client = nats::connect(&config.nats).await?;
        Ok(Self { config, catalog, identity, verifier, client })
    }

    /// Starts every part.
    pub async fn start(self) -> Result<Service, ServeError> {
        let Self { config, catalog, identity, verifier, client } = self;
        let readiness = Readiness::starting();
        let admin = Admin::start(&config.admin, readiness.clone(), client.clone()).await?;
        let registry = Arc::new(Registry::new(config.edge.sessions_per_user_max));
        let (control, bans) = control::start(client.clone(), catalog.clone(), registry.clone()).await?;
        let position = Position::default();
        let (replay, inbox) =
            delivery::replay::start(client.clone(), catalog.clone(), position.clone(), registry.clone())
                .await?;
        let (recorder, evidence) =
            delivery::evidence::start(client.clone(), &config.worker.evidence, &config.edge.node);
        let edge = Edge {
            config: config.edge,
            identity,
            verifier,
            registry: registry.clone(),
            control,
            inbox: position,
            replay: Arc::new(replay),
        }
        .start()?;
        let soft = CancellationToken::new();
        let worker_limit = Duration::from_secs(config.worker.drain_s) + WORKER_MARGIN;
        let undelivered = registry.undelivered().expect("taken here only");
        let worker = worker::start(client, catalog, registry, recorder, config.worker, soft.clone()).await?;
        let reroute = worker.reroute(undelivered);
        readiness.ready();
        tracing::info!(edge = %edge.address(), admin = %admin.address, "serving");
        Ok(Service {
            edge,
            worker,
            reroute,
            worker_limit,
            evidence,
            inbox,
            control: bans,
            admin,
            readiness,
            soft,
        })
    }
}

impl Service {
    /// UDP address of the edge.
    pub fn edge_address(&self) -> SocketAddr {
        self.edge.address()
    }

    /// TCP address of the admin port.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address
    }

    /// Resolves with the name of a part that has ended before its time. The service is not whole then: stop it, and
    /// let the supervisor start it again.
    pub async fn failed(&mut self) -> &'static str {
        tokio::select! {
            () = self.worker.failed() => "worker",
            () = self.reroute.failed() => "rerouter",
            () = self.evidence.failed() => "evidence writer",
            () = self.edge.failed() => "edge",
            () = self.inbox.failed() => "inbox follower",
            () = self.control.failed() => "control follower",
            () = self.admin.failed() => "admin port",
        }
    }

    /// Stops gently: new work and new clients are refused, what is in hand is finished, sessions move elsewhere.
    /// Ends in bounded time, whatever clients and NATS do. Dropping the future stops at once.
    pub async fn stop(self) {
        self.readiness.not_ready("draining");
        self.soft.cancel();
        let drain = self.edge.drain();
        tracing::info!(seconds = drain.as_secs(), "draining");
        tokio::join!(self.worker.join(self.worker_limit), self.edge.join(drain + STOP_MARGIN));
        // Nobody is left who could hold something.
        self.reroute.join(REROUTE_LIMIT).await;
        self.evidence.join(EVIDENCE_LIMIT).await;
        drop((self.inbox, self.control, self.admin));
    }
}
