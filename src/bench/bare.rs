//! The loop that a push costs at least: sessions over the same crate with the same transport settings, one long-lived
//! stream each, and nothing else. A process of its own; what it pushes comes over TCP.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use web_transport_quinn as wt;

use super::place::identity;
use super::process::obey;
use super::{BenchError, failed};
use crate::transport;

/// What a bare server is told.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Begin to serve so many sessions.
    Serve(usize),
}

/// Where it serves.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Serving {
    /// For sessions.
    pub(super) sessions: SocketAddr,
    /// For what is to be pushed.
    pub(super) pushes: SocketAddr,
}

/// A session as the loop sees it: something that takes a frame.
pub(super) trait Sink: Send + 'static {
    /// Writes one frame; a session that is gone takes it and nothing happens, since its load misses it.
    fn write(&mut self, frame: &Frame) -> impl Future<Output = ()> + Send;
}

/// One frame, shared by all who get it.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    /// With its length before it.
    framed: Bytes,
}

impl Frame {
    /// Without the length.
    #[cfg(feature = "bench")]
    pub(super) fn body(&self) -> Bytes {
        self.framed.slice(4..)
    }
}

impl Sink for wt::SendStream {
    async fn write(&mut self, frame: &Frame) {
        let _ = self.write_chunk(frame.framed.clone()).await;
    }
}

/// Serves as it is told, with the keys in the current folder, until its orders end.
pub async fn run(websocket: bool) -> Result<(), BenchError> {
    let mut tasks = JoinSet::new();
    obey(async |order| match order {
        Order::Serve(count) => {
            let count = count.max(1);
            let serving = if websocket {
                serve_websocket(&mut tasks, count).await
            } else {
                serve(&mut tasks, count).await
            };
            serde_json::to_value(serving?).map_err(failed("answer"))
        }
    })
    .await
}

async fn serve(tasks: &mut JoinSet<()>, count: usize) -> Result<Serving, BenchError> {
    let config = transport::Config {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        // Nobody pings here, and the load's own idle timeout is the shorter one.
        heartbeat_ms: 100_000,
        ..transport::Config::default()
    };
    let server = transport::server_config(identity(Path::new("."))?, &config)
        .map_err(failed("use the certificate"))?;
    let endpoint = transport::listen(server, &config).map_err(failed("listen"))?;
    let sessions = endpoint.local_addr().map_err(failed("listen"))?;
    let (opened, streams) = mpsc::channel(count);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Some(incoming) = endpoint.accept().await {
            let opened = opened.clone();
            connections.spawn(async move {
                // Who fails is missed by the load.
                let _ = hold(incoming, opened).await;
            });
        }
    });
    Ok(Serving { sessions, pushes: push(tasks, streams).await? })
}

/// Opens the session's stream and holds the session until it ends.
async fn hold(incoming: quinn::Incoming, opened: mpsc::Sender<wt::SendStream>) -> Option<()> {
    let session = wt::Request::accept(incoming.await.ok()?).await.ok()?.ok().await.ok()?;
    opened.send(session.open_uni().await.ok()?).await.ok()?;
    session.closed().await;
    None
}

#[cfg(feature = "bench")]
async fn serve_websocket(tasks: &mut JoinSet<()>, count: usize) -> Result<Serving, BenchError> {
    let (opened, sockets) = mpsc::channel(count);
    let sessions = super::websocket::serve(tasks, identity(Path::new("."))?, opened).await?;
    Ok(Serving { sessions, pushes: push(tasks, sockets).await? })
}

#[cfg(not(feature = "bench"))]
fn serve_websocket(
    _tasks: &mut JoinSet<()>,
    _count: usize,
) -> impl Future<Output = Result<Serving, BenchError>> {
    std::future::ready(Err("this build is without --features bench").map_err(failed("serve WebSocket")))
}

/// Starts the loop; gives the address at which it takes what is to be pushed.
async fn push<S: Sink>(tasks: &mut JoinSet<()>, opened: mpsc::Receiver<S>) -> Result<SocketAddr, BenchError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed("listen"))?;
    let address = listener.local_addr().map_err(failed("listen"))?;
    tasks.spawn(async move {
        if let Ok((stream, _)) = listener.accept().await {
            // It ends with the load.
            let _ = fan_out(stream, opened).await;
        }
    });
    Ok(address)
}

/// The loop itself: a frame comes in and goes to those who are meant, one after the other.
async fn fan_out<S: Sink>(stream: TcpStream, mut opened: mpsc::Receiver<S>) -> std::io::Result<()> {
    let (mut orders, mut sessions) = (BufReader::new(stream), Vec::new());
    loop {
        let (first, count) = (orders.read_u32().await?, orders.read_u32().await?);
        let length = orders.read_u32().await?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.resize(4 + length as usize, 0);
        orders.read_exact(&mut framed[4..]).await?;
        while let Ok(session) = opened.try_recv() {
            sessions.push(session);
        }
        let frame = Arc::new(Frame { framed: framed.into() });
        for session in sessions.iter_mut().skip(first as usize).take(count as usize) {
            session.write(&frame).await;
        }
    }
}
