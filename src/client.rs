//! A client of the push protocol, for tests of services, for tools and for applications in Rust.
//!
//! [`Client::connect`] starts one task that keeps a session: it connects, acks, answers pings, renews the token and
//! connects again by the protocol's rules. The application reads [`Client::next`]. Between the two is a queue of
//! [`Config::queue`] events. When the application does not read, the queue fills and the lanes' readers wait; then
//! nothing more is taken off the streams, nothing is acked, and the server's window fills: so a slow application is
//! held back and costs bounded memory. Pings are still answered, and datagrams that find the queue full are dropped. A
//! client that lost its session connects again once its events found room.
//!
//! Dropping the client ends the task and the session without a bye.

pub mod raw;

mod config;
mod connection;
mod endpoint;
mod outbox;
mod reconnect;
mod state;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use rand::seq::SliceRandom as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use config::{AckMode, Config, TokenError, Tokens};
#[cfg(feature = "bench")]
pub(crate) use endpoint::tls_config;
pub use endpoint::{Bind, ConfigError, ConnectError, Endpoint, Target, Trust};
pub use wire::FrameError;

use crate::protocol::frame::{Close, SessionLane, Welcome};
use outbox::Outbox;
use state::{Dedup, Done};

/// What happens to a client.
#[derive(Debug)]
pub enum Event {
    /// A session is open, the first one or after a reconnect.
    Live(Box<Welcome>),
    /// A notification that was not seen before.
    Notification(Box<Received>),
    /// One that was; it is acked. Only with [`Config::repeats`].
    Repeated(Box<Received>),
    /// The client connects again after `delay`.
    Waiting {
        /// What made it wait.
        why: Why,
        /// Time until the next attempt.
        delay: Duration,
    },
    /// The last event: the client does not connect again.
    Closed(Box<Closed>),
}

/// Why a client is about to connect again.
#[derive(Debug)]
pub enum Why {
    /// The session, or the attempt to open one, ended.
    Closed(Box<Closed>),
    /// The server asked for it. The session goes on until the next one is open.
    Goaway {
        /// `draining` or `rotate`.
        reason: String,
    },
}

/// How a session ended. The close frame and the transport's close normally agree; either may be missing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Closed {
    /// The server's last frame, when one came.
    pub frame: Option<Close>,
    /// Code and reason of the server's close of the WebTransport session or of the QUIC connection.
    pub transport: Option<(u32, String)>,
    /// What else ended it, or kept it from opening, as text for a log.
    pub error: Option<String>,
}

impl Closed {
    /// The close code: of the frame, else of the transport. `None` when the server gave none.
    pub fn code(&self) -> Option<u32> {
        self.frame.as_ref().map(|frame| frame.code).or(self.transport.as_ref().map(|(code, _)| *code))
    }

    /// The server's reason: of the frame, else of the transport; else empty.
    pub fn reason(&self) -> &str {
        let frame = self.frame.as_ref().map(|frame| frame.reason.as_str());
        frame.or(self.transport.as_ref().map(|(_, reason)| reason.as_str())).unwrap_or_default()
    }

    fn failed(error: impl fmt::Display) -> Self {
        Self { error: Some(error.to_string()), ..Self::default() }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code(), &self.error) {
            (Some(code), _) => write!(f, "closed with {code}: {}", self.reason()),
            (None, Some(error)) => f.write_str(error),
            (None, None) => f.write_str("closed without a reason"),
        }
    }
}

/// A notification as it came.
#[derive(Debug, Clone)]
pub struct Received {
    /// The lane, or `None` for a datagram.
    pub lane: Option<SessionLane>,
    /// Ordinal on the lane, from 1; 0 for a datagram.
    pub seq: u64,
    /// Unique id. The client gives each id once.
    pub notification_id: String,
    /// `{service}.{event}`.
    pub notification_type: String,
    /// Unix seconds, by the publisher.
    pub timestamp: i64,
    /// Unix milliseconds at which JetStream stored it, or the edge received it when it is ephemeral.
    pub published_at_ms: u64,
    /// Who caused it.
    pub from_user_id: Option<String>,
    /// `high`, `normal` or `low`.
    pub priority: String,
    /// The server waits for an ack.
    pub require_ack: bool,
    /// The business data.
    pub payload: serde_json::Value,
    /// Cursor of a replayed notification.
    pub inbox: Option<String>,
    /// It came as a datagram.
    pub via_datagram: bool,
    /// Bytes of the frame's body.
    pub bytes: usize,
    /// When its last byte was read.
    pub received_at: Instant,
    /// The same by this machine's wall clock, in Unix milliseconds.
    pub received_at_ms: u64,
    session: Option<Arc<Outbox>>,
}

/// Counts of a client since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sessions opened.
    pub sessions: u64,
    /// Notifications given to the application.
    pub notifications: u64,
    /// Notifications that came again, were acked and not given to the application.
    pub duplicates: u64,
    /// Notification frames that could not be decoded; they are acked.
    pub skipped: u64,
    /// Datagrams that found the queue full.
    pub datagrams_dropped: u64,
}

#[derive(Debug, Default)]
struct Counters {
    sessions: AtomicU64,
    notifications: AtomicU64,
    duplicates: AtomicU64,
    skipped: AtomicU64,
    datagrams_dropped: AtomicU64,
}

impl Counters {
    fn opened(&self) {
        self.sessions.fetch_add(1, Relaxed);
    }

    fn skipped(&self) {
        self.skipped.fetch_add(1, Relaxed);
    }

    fn dropped(&self) {
        self.datagrams_dropped.fetch_add(1, Relaxed);
    }
}

/// A token that expires sooner is not used for a new session: connecting takes up to 10 s.
const TOKEN_MARGIN_MS: u64 = 10_000;

/// What the client's handle and its task share.
struct Shared {
    config: Config,
    cursor: Mutex<Option<String>>,
    token: Mutex<Option<String>>,
    stats: Counters,
}

impl Shared {
    fn cursor(&self) -> Option<String> {
        self.cursor.lock().clone()
    }

    fn store(&self, cursor: Option<String>) {
        if cursor.is_some() {
            *self.cursor.lock() = cursor;
        }
    }

    /// Stores a welcome's cursor when none is known. Then hello had none, so nothing of before is replayed and
    /// everything to come is after it, whatever is still unprocessed. A known one stays: the welcome's would skip what
    /// is being replayed.
    fn store_first(&self, welcome: &str) {
        self.cursor.lock().get_or_insert_with(|| welcome.to_owned());
    }

    /// The token of the session before while it is good for a while, else a fresh one.
    async fn token(&self) -> Result<String, Closed> {
        let known = self.token.lock().clone();
        let soon = unix_ms() + TOKEN_MARGIN_MS;
        if let Some(token) =
            known.filter(|token| state::token_expiry(token).is_none_or(|at| at.saturating_mul(1_000) > soon))
        {
            return Ok(token);
        }
        self.fresh_token().await.map_err(|error| Closed::failed(format!("get a token: {error}")))
    }

    async fn fresh_token(&self) -> Result<String, TokenError> {
        let token = self.config.tokens.fresh().await?;
        *self.token.lock() = Some(token.clone());
        Ok(token)
    }

    fn forget_token(&self) {
        *self.token.lock() = None;
    }
}

/// A frame between its lane's reader and the application.
struct Arrived {
    /// Its session, lane and seq; `None` for a datagram.
    place: Option<(Arc<Outbox>, SessionLane, u64)>,
    bytes: usize,
    data: wire::Data,
    inbox: Option<String>,
    at: Instant,
    at_ms: u64,
}

enum Item {
    Event(Event),
    Frame(Box<Arrived>),
}

/// A device's client. See the module's text for what runs behind it.
pub struct Client {
    events: mpsc::Receiver<Item>,
    dedup: Dedup,
    shared: Arc<Shared>,
    leave: CancellationToken,
    /// Holds one task; dropping it ends the task.
    _task: JoinSet<()>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("device_id", &self.shared.config.device_id).finish_non_exhaustive()
    }
}

impl Client {
    /// Checks `config` and starts to connect; [`Event::Live`] says when a session is open. Must be called inside a
    /// Tokio runtime.
    pub fn connect(config: Config) -> Result<Self, ConfigError> {
        crate::id::DeviceId::new(&config.device_id)?;
        let urls = std::iter::once(&config.url).chain(&config.other_urls);
        let mut targets = urls
            .map(|url| Target::new(url, &config.trust, config.origin.as_deref()))
            .collect::<Result<Vec<_>, _>>()?;
        // Each client has an order of its own, so that those of a node that stops are spread over all others.
        targets.shuffle(&mut rand::rng());
        let endpoint = match &config.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => Endpoint::bind(config.bind)?,
        };
        let (sender, events) = mpsc::channel(config.queue.max(1));
        let leave = CancellationToken::new();
        let shared = Arc::new(Shared {
            cursor: Mutex::new(config.resume.clone()),
            token: Mutex::default(),
            stats: Counters::default(),
            config,
        });
        let driver = reconnect::Driver {
            shared: shared.clone(),
            targets,
            endpoint,
            events: sender,
            leave: leave.clone(),
        };
        let mut task = JoinSet::new();
        task.spawn(driver.run());
        Ok(Self { events, dedup: Dedup::default(), shared, leave, _task: task })
    }

    /// The next event, or `None` after [`Event::Closed`]. Cancel-safe.
    ///
    /// With [`AckMode::Auto`] a notification counts as processed once this has returned it.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.events.recv().await? {
                Item::Event(event) => return Some(event),
                Item::Frame(frame) => {
                    let (received, fresh) = self.take(*frame);
                    if fresh {
                        return Some(Event::Notification(Box::new(received)));
                    }
                    if self.shared.config.repeats {
                        return Some(Event::Repeated(Box::new(received)));
                    }
                }
            }
        }
    }

    /// Waits until a session is open. Passes over every other event, notifications too, so it belongs at the start
    /// or after a reconnect that the caller knows of. `Err` when the client closed instead.
    pub async fn live(&mut self) -> Result<Welcome, Closed> {
        while let Some(event) = self.next().await {
            match event {
                Event::Live(welcome) => return Ok(*welcome),
                Event::Closed(closed) => return Err(*closed),
                Event::Notification(_) | Event::Repeated(_) | Event::Waiting { .. } => {}
            }
        }
        Err(Closed::failed("closed before"))
    }

    /// Waits for the next notification and passes over other events. `Err` when the client closed instead.
    pub async fn notification(&mut self) -> Result<Received, Closed> {
        while let Some(event) = self.next().await {
            match event {
                Event::Notification(received) => return Ok(*received),
                Event::Closed(closed) => return Err(*closed),
                Event::Live(_) | Event::Repeated(_) | Event::Waiting { .. } => {}
            }
        }
        Err(Closed::failed("closed before"))
    }

    /// With [`AckMode::Manual`]: `received` is processed. The order is free: what is acked to the server is only ever
    /// the part of a lane without gaps, by the protocol's rule of when. Does nothing for datagrams, for sessions that
    /// are over and in the other modes.
    pub fn ack(&self, received: &Received) {
        if self.shared.config.ack == AckMode::Manual {
            self.done(received);
        }
    }

    /// The inbox cursor to give as [`Config::resume`] after a restart: everything before it is processed. Known from the
    /// first welcome on.
    pub fn cursor(&self) -> Option<String> {
        self.shared.cursor()
    }

    /// What was counted so far.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.stats;
        Stats {
            sessions: counters.sessions.load(Relaxed),
            notifications: counters.notifications.load(Relaxed),
            duplicates: counters.duplicates.load(Relaxed),
            skipped: counters.skipped.load(Relaxed),
            datagrams_dropped: counters.datagrams_dropped.load(Relaxed),
        }
    }

    /// Begins to leave: acks what is processed, says bye and waits for the server's close. [`Client::next`] goes on
    /// until [`Event::Closed`].
    pub fn leave(&self) {
        self.leave.cancel();
    }

    /// Leaves and waits for the end. Notifications that were not read are dropped without an ack.
    pub async fn close(mut self) -> Closed {
        self.leave();
        while let Some(item) = self.events.recv().await {
            if let Item::Event(Event::Closed(closed)) = item {
                return *closed;
            }
        }
        Closed::failed("closed before")
    }

    /// The notification of a frame, and whether it is the first with its id.
    fn take(&mut self, frame: Arrived) -> (Received, bool) {
        let Arrived { place, bytes, data, inbox, at, at_ms } = frame;
        let via_datagram = place.is_none();
        let (session, lane, seq) = match place {
            Some((session, lane, seq)) => (Some(session), Some(lane), seq),
            None => (None, None, 0),
        };
        let fresh = self.dedup.insert(&data.notification_id);
        let received = Received {
            lane,
            seq,
            notification_id: data.notification_id,
            notification_type: data.notification_type,
            timestamp: data.timestamp,
            published_at_ms: data.published_at_ms,
            from_user_id: data.from_user_id,
            priority: data.priority,
            require_ack: data.require_ack,
            payload: data.payload,
            inbox,
            via_datagram,
            bytes,
            received_at: at,
            received_at_ms: at_ms,
            session,
        };
        let stats = &self.shared.stats;
        if fresh { &stats.notifications } else { &stats.duplicates }.fetch_add(1, Relaxed);
        if !fresh || self.shared.config.ack != AckMode::Manual {
            self.done(&received);
        }
        (received, fresh)
    }

    fn done(&self, received: &Received) {
        if let (Some(session), Some(lane)) = (&received.session, received.lane) {
            let done =
                Done { bytes: received.bytes, urgent: received.require_ack, cursor: received.inbox.clone() };
            self.shared.store(session.done(lane, received.seq, done));
        }
    }
}

/// Unix milliseconds.
#[expect(clippy::disallowed_methods, reason = "a stamp on what came from outside, and the age of a token")]
fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}
