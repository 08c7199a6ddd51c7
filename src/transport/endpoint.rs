//! The UDP endpoint: accepts connections, owns their tasks, and drains them when the node stops.
//!
//! One socket serves WebTransport and bare QUIC, told apart by ALPN. Each connection is one task of a tracker that
//! [`Handle::join`] waits for; the accepting task ends with the handle.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, describe_counter};
use serde::Deserialize;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{Admission, Decision};
use super::connection_id::{Routable, ServerId};
use super::runtime::Runtime;
use super::tls::{self, Identity, TlsError};
use super::{auth, handshake};
use crate::clock::Now;
use crate::control::Control;
use crate::id::NodeId;
use crate::protocol::{CloseCode, SERVER_FRAME_BYTES_MAX};
use crate::session::{Limits, Registry, Rotation, TICK};

/// How the edge listens and what a session may use.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// UDP address for QUIC.
    pub listen: SocketAddr,
    /// Name of this node in `welcome` and logs.
    pub node: String,
    /// The id of this node in the configuration of a load balancer that reads connection ids.
    pub server_id: Option<ServerId>,
    /// Origins of web pages that may connect, such as `https://app.example.com`; `*` allows any.
    /// Clients that send no origin (apps, servers) are not asked for one.
    pub allowed_origins: Vec<String>,
    /// Time between pings in milliseconds; two without an answer end the session.
    pub heartbeat_ms: u64,
    /// Time for the first frame in milliseconds.
    pub hello_timeout_ms: u64,
    /// Frames a lane may hold un-acked.
    pub window: usize,
    /// Notifications that may wait in one session before they are written.
    pub queue_frames: usize,
    /// Time in milliseconds that a full session may go without an ack before it is closed.
    pub slow_after_ms: u64,
    /// Sessions a node takes; more are told to come back later.
    pub sessions_max: usize,
    /// Sessions of one user on all nodes; a newer one ends the oldest.
    pub sessions_per_user_max: usize,
    /// Handshakes that may be under way at once; more are refused before any cryptography.
    pub handshakes_max: usize,
    /// Handshakes a second; two seconds of them may come at once, more are refused before any cryptography.
    pub handshakes_per_s: u32,
    /// Bytes of notifications after which a session is replaced by a fresh one; 0 is never.
    pub rotate_bytes: u64,
    /// Seconds after which it is; 0 is never. Both vary by a tenth from session to session.
    pub rotate_after_s: u64,
    /// Sessions a second that are asked to leave when the node stops.
    pub drain_rate: u32,
    /// Certificate and key.
    pub tls: tls::Config,
}

/// See [`Config::handshakes_per_s`].
const HANDSHAKES_PER_S_AND_CORE: u32 = 300;

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 4433)),
            node: std::env::var("HOSTNAME").unwrap_or_else(|_| "node".to_owned()),
            server_id: None,
            allowed_origins: Vec::new(),
            heartbeat_ms: 25_000,
            hello_timeout_ms: 5_000,
            window: 256,
            queue_frames: 1_000,
            slow_after_ms: 30_000,
            sessions_max: 150_000,
            sessions_per_user_max: 16,
            // Two seconds of handshakes at 300/s a core on two cores.
            handshakes_max: 1_200,
            // A handshake takes 0.8 to 1.2 ms: a third of each core, and at most half where cores are slower.
            handshakes_per_s: HANDSHAKES_PER_S_AND_CORE
                * std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
            rotate_bytes: 12 * 1024 * 1024,
            rotate_after_s: 12 * 3_600,
            drain_rate: 300,
            tls: tls::Config::default(),
        }
    }
}

/// Why the edge cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// Certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The crypto provider lacks what QUIC needs.
    #[error("TLS cannot be used with QUIC: {0}")]
    Crypto(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// The address is taken or not ours.
    #[error("cannot listen on udp {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What every connection needs.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) limits: Limits,
    pub(super) verifier: auth::Verifier,
    pub(super) node: watch::Receiver<NodeId>,
    pub(super) registry: Arc<Registry>,
    pub(super) control: Arc<Control>,
    pub(super) inbox: crate::session::inbox::Position,
    pub(super) replay: Arc<dyn crate::session::inbox::Replay>,
    /// Connections that may wait for their hello at once.
    pub(super) greetings: Semaphore,
    /// Cancelled when the node takes no more sessions.
    pub(super) draining: CancellationToken,
}

/// Everything the edge is built from.
#[derive(Debug)]
pub struct Edge {
    /// Settings.
    pub config: Config,
    /// Certificate and key.
    pub identity: Identity,
    /// Token keys.
    pub verifier: auth::Verifier,
    /// The current id of this node.
    pub node: watch::Receiver<NodeId>,
    /// Where sessions are registered.
    pub registry: Arc<Registry>,
    /// Who may have no session, and what new ones are shown.
    pub control: Arc<Control>,
    /// Where the inbox stands.
    pub inbox: crate::session::inbox::Position,
    /// Reads what a device missed.
    pub replay: Arc<dyn crate::session::inbox::Replay>,
}

/// A running edge.
#[derive(Debug)]
pub struct Handle {
    endpoint: quinn::Endpoint,
    address: SocketAddr,
    registry: Arc<Registry>,
    tasks: TaskTracker,
    /// Accepts, and refuses while draining; turns the wheel of shaping. Ends when dropped.
    acceptor: JoinSet<()>,
    draining: CancellationToken,
    drain_rate: u32,
}

/// Connections that may wait for their hello at once: at 40 kB each they cost 400 MB. More are told to come back.
const GREETINGS_MAX: usize = 10_000;

/// Packets that wait while every core is at work: those of two seconds of handshakes, or the acks of a burst to all.
/// What does not fit is lost and sent again, each time after a longer while.
const RECEIVE_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// Time a client has for leaving after its goaway delay.
const GOAWAY_GRACE: Duration = Duration::from_secs(5);

/// Time beyond it that connections get to end by themselves before they are cut off.
const DRAIN_MARGIN: Duration = Duration::from_secs(10);

/// Time for the close of those. It leaves within a round trip; a client that does not answer is not waited for.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

impl Edge {
    /// Binds the socket and starts accepting.
    pub fn start(self) -> Result<Handle, EdgeError> {
        describe_counter!("fanfare_edge_refused_total", "connections that got no session, by reason");
        describe_counter!(
            "fanfare_edge_retries_total",
            "connections that had to show their address is real, because many were being opened"
        );
        describe_counter!("fanfare_edge_closed_total", "sessions ended, by close code name");
        let Self { config, identity, verifier, node, registry, control, inbox, replay } = self;
        let endpoint = listen(server_config(identity, &config)?, &config)
            .map_err(|source| EdgeError::Listen { address: config.listen, source })?;
        let address =
            endpoint.local_addr().map_err(|source| EdgeError::Listen { address: config.listen, source })?;
        let limits = Limits {
            window: config.window,
            queue_frames: config.queue_frames,
            heartbeat: Duration::from_millis(config.heartbeat_ms),
            slow_after: Duration::from_millis(config.slow_after_ms),
            rotation: Rotation::new(config.rotate_bytes, Duration::from_secs(config.rotate_after_s)),
        };
        let drain_rate = config.drain_rate;
        let (tasks, draining) = (TaskTracker::new(), CancellationToken::new());
        let registered = registry.clone();
        let shared = Arc::new(Shared {
            config,
            limits,
            verifier,
            node,
            registry: registered,
            control,
            inbox,
            replay,
            greetings: Semaphore::new(GREETINGS_MAX),
            draining: draining.clone(),
        });
        let mut acceptor = JoinSet::new();
        let wheel = registry.clone();
        acceptor.spawn(async move {
            let mut every = tokio::time::interval(TICK);
            every.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                every.tick().await;
                wheel.turn().await;
            }
        });
        acceptor.spawn(accept(endpoint.clone(), shared, tasks.clone()));
        Ok(Handle { endpoint, address, registry, tasks, acceptor, draining, drain_rate })
    }
}

impl Handle {
    /// The bound UDP address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resolves when a task that should run until the end has ended, which is a bug.
    pub async fn failed(&mut self) {
        self.acceptor.join_next().await;
    }

    /// Sessions open on this node.
    pub fn sessions(&self) -> usize {
        self.registry.sessions()
    }

    /// Refuses new connections and asks every session to connect elsewhere, at the drain rate.
    /// Gives the time after which all are closed.
    pub fn drain(&self) -> Duration {
        self.draining.cancel();
        let spread = spread(self.sessions(), self.drain_rate);
        let delay = || spread.mul_f64(rand::random());
        self.registry.goaway(CloseCode::Draining, delay, GOAWAY_GRACE);
        spread + GOAWAY_GRACE
    }

    /// Waits until every connection is gone, at most some seconds beyond `drain`, and closes the socket.
    pub async fn join(mut self, drain: Duration) {
        self.draining.cancel();
        self.tasks.close();
        if tokio::time::timeout(drain + DRAIN_MARGIN, self.tasks.wait()).await.is_err() {
            tracing::warn!(sessions = self.sessions(), "sessions were still open at the end of the drain");
        }
        self.acceptor.abort_all();
        // Their sessions have ended; those whom they went to are told at once.
        self.registry.turn_to_the_end().await;
        // Every session was closed by itself before; this is for those that did not answer.
        let code = CloseCode::Draining;
        self.endpoint.close(code.code().into(), code.name().as_bytes());
        let _ = tokio::time::timeout(CLOSE_LIMIT, self.endpoint.wait_idle()).await;
    }
}

/// The longest a drain of so many sessions takes, from the first goaway to the closed socket.
pub fn drain_limit(sessions: usize, drain_rate: u32) -> Duration {
    spread(sessions, drain_rate) + GOAWAY_GRACE + DRAIN_MARGIN + CLOSE_LIMIT
}

/// The time over which sessions are asked to leave.
fn spread(sessions: usize, drain_rate: u32) -> Duration {
    // More sessions than that are only ever a number in a configuration.
    let sessions = u32::try_from(sessions).unwrap_or(u32::MAX);
    Duration::from_secs_f64(f64::from(sessions) / f64::from(drain_rate.max(1)))
}

/// Accepts until told to stop; then refuses, so that clients try another node at once.
async fn accept(endpoint: quinn::Endpoint, shared: Arc<Shared>, tasks: TaskTracker) {
    let Config { handshakes_max, handshakes_per_s, .. } = shared.config;
    let handshakes = Arc::new(Semaphore::new(handshakes_max));
    let mut admission = Admission::new(handshakes_max, handshakes_per_s, Now::read().instant);
    while let Some(incoming) = endpoint.accept().await {
        let under_way = handshakes_max - handshakes.available_permits();
        let proven = incoming.remote_address_validated() || !incoming.may_retry();
        let decision = if shared.draining.is_cancelled() {
            Decision::Refuse("draining")
        } else {
            admission.decide(under_way, proven, Now::read().instant)
        };
        match (decision, handshakes.clone().try_acquire_owned()) {
            (Decision::Accept, Ok(permit)) => {
                tasks.spawn(handshake::serve(incoming, shared.clone(), permit));
            }
            (Decision::Retry, _) => {
                counter!("fanfare_edge_retries_total").increment(1);
                // Fails only for addresses that were validated, which are not here.
                let _ = incoming.retry();
            }
            (Decision::Refuse(reason), _) => refuse(incoming, reason),
            // Never here: only this task takes permits.
            (Decision::Accept, Err(_)) => refuse(incoming, "handshakes_full"),
        }
    }
}

fn refuse(incoming: quinn::Incoming, reason: &'static str) {
    counter!("fanfare_edge_refused_total", "reason" => reason).increment(1);
    incoming.refuse();
}

/// The socket of all sessions, with [`RECEIVE_BUFFER_BYTES`].
pub(crate) fn listen(server: quinn::ServerConfig, config: &Config) -> std::io::Result<quinn::Endpoint> {
    let mut endpoint = quinn::EndpointConfig::default();
    if let Some(server_id) = config.server_id.clone() {
        endpoint.cid_generator(move || Box::new(Routable(server_id.clone())));
    }
    let socket = std::net::UdpSocket::bind(config.listen)?;
    let buffer = socket2::SockRef::from(&socket);
    if buffer.recv_buffer_size()? < RECEIVE_BUFFER_BYTES {
        // Where it is too much, Linux gives less, and others nothing of it.
        let _ = buffer.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    }
    // Linux counts its own bookkeeping, too, and tells twice of what it gave.
    let given = buffer.recv_buffer_size()? / if cfg!(target_os = "linux") { 2 } else { 1 };
    if given < RECEIVE_BUFFER_BYTES {
        tracing::info!(
            given,
            wanted = RECEIVE_BUFFER_BYTES,
            "the socket's receive buffer is small: bursts of packets will be lost and sent again; raise the system's limit \
             (net.core.rmem_max on Linux)"
        );
    }
    quinn::Endpoint::new(endpoint, Some(server), socket, Arc::new(Runtime::default()))
}

/// The small transport: quinn keeps a slot for each permitted stream and a buffer for each window, so both are only as
/// large as the protocol needs. A client has one control stream and HTTP/3's few.
pub(crate) fn server_config(identity: Identity, config: &Config) -> Result<quinn::ServerConfig, EdgeError> {
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(identity.server_config()?)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    let idle = Duration::from_millis(config.heartbeat_ms * 3);
    transport
        .max_concurrent_bidi_streams(8_u32.into())
        .max_concurrent_uni_streams(8_u32.into())
        .stream_receive_window((16_u32 * 1024).into())
        .receive_window((64_u32 * 1024).into())
        // All lanes share it: their budgets plus the largest frame must fit.
        .send_window(SERVER_FRAME_BYTES_MAX as u64 + 256 * 1024)
        .datagram_receive_buffer_size(Some(16 * 1024))
        .datagram_send_buffer_size(32 * 1024)
        .crypto_buffer_size(16 * 1024)
        .mtu_discovery_config(None)
        .keep_alive_interval(None)
        .max_idle_timeout(Some(
            idle.try_into().unwrap_or(quinn::IdleTimeout::from(quinn::VarInt::from_u32(75_000))),
        ));
    server.transport_config(Arc::new(transport));
    Ok(server)
}
