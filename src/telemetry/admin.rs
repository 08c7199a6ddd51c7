//! The admin port: `/metrics`, `/livez`, `/readyz`. Plain HTTP, on loopback unless configured otherwise.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::RwLock;
use serde::Deserialize;
use tokio::task::JoinSet;

/// Time between the recorder's clean-ups of old histogram samples.
const UPKEEP: Duration = Duration::from_secs(5);

/// Where the admin port is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// TCP address. Keep it off public networks: it tells about load.
    pub listen: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9180)) }
    }
}

/// Why the admin port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on tcp {address} for the admin port: {source}")]
pub struct AdminError {
    /// The address.
    pub address: SocketAddr,
    /// What the system said.
    pub source: std::io::Error,
}

/// Whether this node should get new clients, and if not, why. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<RwLock<Result<(), &'static str>>>);

impl Readiness {
    /// Not ready yet.
    pub fn starting() -> Self {
        Self(Arc::new(RwLock::new(Err("starting"))))
    }

    /// Ready from now on.
    pub fn ready(&self) {
        *self.0.write() = Ok(());
    }

    /// Not ready any more.
    pub fn not_ready(&self, why: &'static str) {
        *self.0.write() = Err(why);
    }
}

#[derive(Clone)]
struct AdminState {
    metrics: PrometheusHandle,
    readiness: Readiness,
    nats: async_nats::Client,
}

/// A running admin port. Its tasks end when it is dropped.
#[derive(Debug)]
pub struct Admin {
    /// The bound TCP address.
    pub address: SocketAddr,
    tasks: JoinSet<()>,
}

impl Admin {
    /// Opens the port.
    pub async fn start(
        config: &Config,
        readiness: Readiness,
        nats: async_nats::Client,
    ) -> Result<Self, AdminError> {
        let failed = |source| AdminError { address: config.listen, source };
        let listener = tokio::net::TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let metrics = super::metrics::install();
        let router = Router::new()
            .route("/metrics", get(|State(state): State<AdminState>| async move { state.metrics.render() }))
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .with_state(AdminState { metrics: metrics.clone(), readiness, nats });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the admin port has failed");
            }
        });
        tasks.spawn(async move {
            let mut every = tokio::time::interval(UPKEEP);
            loop {
                every.tick().await;
                metrics.run_upkeep();
            }
        });
        Ok(Self { address, tasks })
    }

    /// Resolves when the port does not answer any more.
    pub async fn failed(&mut self) {
        self.tasks.join_next().await;
    }
}

/// Ready means: started, not draining, and connected to NATS.
async fn readyz(State(state): State<AdminState>) -> (StatusCode, String) {
    let connected = state.nats.connection_state() == async_nats::connection::State::Connected;
    match *state.readiness.0.read() {
        Ok(()) if connected => (StatusCode::OK, "ready\n".to_owned()),
        Ok(()) => (StatusCode::SERVICE_UNAVAILABLE, "not connected to NATS\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
