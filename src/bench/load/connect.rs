//! Opens sessions and holds them, each in one task.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::arrivals::Arrivals;
use super::device::Device;
use crate::bench::place::Door;
use crate::bench::process::{Said, say};
use crate::bench::{BenchError, failed};
use crate::client::raw::RawSession;
use crate::client::{Bind, Endpoint, Target, Trust};
use crate::clock::Now;
use crate::id::UserId;
use crate::protocol::Encoding;
use crate::protocol::frame::Hello;
use crate::transport::auth::sign_hs256;

/// Sessions that share a socket: enough sockets that none of them loses packets in a burst.
const SESSIONS_A_SOCKET: u32 = 2_500;

/// Time for a handshake and its welcome; then it counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Longer than any bench.
const TOKEN_LIFE: Duration = Duration::from_hours(24);

/// Time between two words about how far it is.
const SAY_EVERY: Duration = Duration::from_millis(500);

/// What serves the sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::bench) enum Kind {
    /// `fanfare serve`.
    Gateway,
    /// A bare loop over WebTransport.
    Bare,
    /// A bare loop over WebSocket with TLS.
    Websocket,
}

/// What became of an order to connect.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::bench) struct Connected {
    pub(in crate::bench) opened: u32,
    pub(in crate::bench) failed: u32,
    pub(in crate::bench) seconds: f64,
    /// Why the first one failed.
    pub(in crate::bench) why: Option<String>,
}

/// How the sessions are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::bench) struct State {
    pub(in crate::bench) open: u32,
    pub(in crate::bench) ended: u32,
    /// Why the first one ended.
    pub(in crate::bench) why: Option<String>,
}

#[derive(Debug, Default)]
struct Ended {
    count: AtomicU32,
    why: Mutex<Option<String>>,
}

/// The sessions of this process; dropping it ends them. They have a runtime of their own, so that who publishes by the clock
/// does not wait behind a thousand who read.
#[derive(Debug)]
pub(super) struct Sessions {
    /// `None` when dropped.
    runtime: Option<Runtime>,
    handle: Handle,
    tasks: JoinSet<()>,
    opened: u32,
    ended: Arc<Ended>,
}

/// A session that was opened: its task, which says why it ended.
type Task = futures::future::BoxFuture<'static, String>;

impl Sessions {
    /// None yet.
    pub(super) fn new() -> Result<Self, BenchError> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.enable_all().on_thread_start(super::priority::like_others).build();
        let runtime = runtime.map_err(failed("start a runtime"))?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle, tasks: JoinSet::new(), opened: 0, ended: Arc::default() })
    }

    /// Opens `count` sessions, at most `at_once` handshakes at a time.
    pub(super) async fn open(
        &mut self,
        door: &Door,
        kind: Kind,
        count: u32,
        at_once: usize,
        arrivals: &Arc<Arrivals>,
    ) -> Result<Connected, BenchError> {
        let opener = {
            // Sockets belong to the runtime in which they are opened.
            let _inside = self.handle.enter();
            Arc::new(Opener::new(door, kind, count)?)
        };
        let started = Instant::now();
        let (mut failures, mut why, mut said) = (0, None, started);
        let (mut waiting, mut attempts) = (0..count, JoinSet::new());
        loop {
            while attempts.len() < at_once.max(1)
                && let Some(n) = waiting.next()
            {
                let (opener, arrivals) = (opener.clone(), arrivals.clone());
                let attempt =
                    async move { tokio::time::timeout(CONNECT_TIMEOUT, opener.open(n, arrivals)).await };
                attempts.spawn_on(attempt, &self.handle);
            }
            let Some(attempt) = attempts.join_next().await else { break };
            let attempt = attempt.map_err(failed("open a session"))?;
            match attempt.unwrap_or_else(|_| Err("no session within 30 s".to_owned())) {
                Ok(task) => {
                    self.opened += 1;
                    let ended = self.ended.clone();
                    let task = async move {
                        let why = task.await;
                        ended.count.fetch_add(1, Relaxed);
                        ended.why.lock().get_or_insert(why);
                    };
                    self.tasks.spawn_on(task, &self.handle);
                }
                Err(error) => {
                    failures += 1;
                    why.get_or_insert(error);
                }
            }
            if said.elapsed() > SAY_EVERY {
                said = Instant::now();
                say(&Said::Progress(u64::from(self.opened)));
            }
        }
        Ok(Connected { opened: self.opened, failed: failures, seconds: started.elapsed().as_secs_f64(), why })
    }

    pub(super) fn state(&self) -> State {
        let ended = self.ended.count.load(Relaxed);
        State { open: self.opened - ended, ended, why: self.ended.why.lock().clone() }
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a session needs to be opened.
struct Opener {
    door: Door,
    kind: Kind,
    target: Target,
    endpoints: Vec<Endpoint>,
    #[cfg(feature = "bench")]
    websocket: crate::bench::websocket::Connector,
}

impl Opener {
    fn new(door: &Door, kind: Kind, count: u32) -> Result<Self, BenchError> {
        let trust = Trust::CertificateHashes(vec![door.certificate]);
        let url = format!("https://{}/v1/push", door.address);
        let target = Target::new(&url, &trust, None).map_err(failed("prepare to connect"))?;
        let sockets = count.div_ceil(SESSIONS_A_SOCKET).max(1);
        let endpoints = (0..sockets).map(|_| Endpoint::bind(Bind::Loopback)).collect::<Result<_, _>>();
        Ok(Self {
            kind,
            target,
            endpoints: endpoints.map_err(failed("open a socket"))?,
            #[cfg(feature = "bench")]
            websocket: crate::bench::websocket::Connector::new(&trust)?,
            door: door.clone(),
        })
    }

    async fn open(&self, n: u32, arrivals: Arc<Arrivals>) -> Result<Task, String> {
        let endpoint = &self.endpoints[n as usize % self.endpoints.len()];
        match self.kind {
            Kind::Gateway => {
                let device = Device::connect(&self.target, endpoint, self.hello(n)?).await?;
                Ok(Box::pin(device.run(arrivals)))
            }
            Kind::Bare => {
                let session = RawSession::connect(&self.target, endpoint).await;
                let session = session.map_err(|error| error.to_string())?;
                Ok(Box::pin(read_bare(session, arrivals)))
            }
            #[cfg(feature = "bench")]
            Kind::Websocket => {
                let socket = self.websocket.open(self.door.address).await?;
                Ok(Box::pin(socket.read(move |body| arrivals.arrived(body, Instant::now()))))
            }
            #[cfg(not(feature = "bench"))]
            Kind::Websocket => Err("built without --features bench".to_owned()),
        }
    }

    fn hello(&self, n: u32) -> Result<Hello, String> {
        let user = UserId::new(&user(n)).map_err(|error| error.to_string())?;
        Ok(Hello {
            version: 1,
            token: sign_hs256(self.door.secret.as_bytes(), &user, Now::read(), TOKEN_LIFE),
            device_id: "d1".to_owned(),
            platform: "desktop".to_owned(),
            encoding: Encoding::Json,
            datagrams: false,
            resume: None,
        })
    }
}

/// The user of a session.
pub(in crate::bench) fn user(n: u32) -> String {
    format!("bench-{n}")
}

/// Reads the only stream of a bare session until it ends; says why it did.
async fn read_bare(session: RawSession, arrivals: Arc<Arrivals>) -> String {
    let mut lane = match session.accept_lane().await {
        Ok(lane) => lane,
        Err(error) => return error.to_string(),
    };
    loop {
        match lane.read_body().await {
            Ok(Some(body)) => arrivals.arrived(&body, Instant::now()),
            Ok(None) => return "the stream has ended".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
}
