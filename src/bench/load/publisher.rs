//! Where the load publishes: JetStream, or the socket of a bare server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::{self, Context};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::bench::{BenchError, failed};

/// Publishes that wait for JetStream's acknowledgement, at most; beyond it the publisher waits, and is late.
const UNACKED_MAX: usize = 4_096;

/// One message.
#[derive(Debug)]
pub(super) struct Message {
    /// Subject, for JetStream.
    pub(super) subject: String,
    /// First session and how many, for a bare server.
    pub(super) to: (u32, u32),
    /// The body.
    pub(super) body: String,
}

/// Publishes messages.
pub(super) enum Publisher {
    /// To JetStream.
    Nats {
        context: Box<Context>,
        acks: mpsc::Sender<PublishAckFuture>,
        refused: Arc<AtomicU64>,
        /// Awaits the acknowledgements.
        _collector: JoinSet<()>,
    },
    /// To a bare server.
    Bare(TcpStream),
}

impl Publisher {
    /// Connects to NATS.
    pub(super) async fn nats(url: &str) -> Result<Self, BenchError> {
        let config = crate::nats::Config { url: url.to_owned(), ..crate::nats::Config::default() };
        let client = crate::nats::connect(&config).await.map_err(failed("connect to nats-server"))?;
        let (acks, mut waiting) = mpsc::channel::<PublishAckFuture>(UNACKED_MAX);
        let refused = Arc::new(AtomicU64::new(0));
        let mut collector = JoinSet::new();
        let count = refused.clone();
        collector.spawn(async move {
            while let Some(ack) = waiting.recv().await {
                if ack.await.is_err() {
                    count.fetch_add(1, Relaxed);
                }
            }
        });
        let context = Box::new(jetstream::new(client));
        Ok(Self::Nats { context, acks, refused, _collector: collector })
    }

    /// Connects to a bare server.
    pub(super) async fn bare(address: SocketAddr) -> Result<Self, BenchError> {
        let stream = TcpStream::connect(address).await.map_err(failed("connect to the bare server"))?;
        stream.set_nodelay(true).map_err(failed("connect to the bare server"))?;
        Ok(Self::Bare(stream))
    }

    /// Sends one; waits when too many are not acknowledged.
    pub(super) async fn send(&mut self, message: Message) -> Result<(), BenchError> {
        match self {
            Self::Nats { context, acks, .. } => {
                let ack = context.publish(message.subject, message.body.into()).await;
                acks.send(ack.map_err(failed("publish"))?).await.map_err(failed("publish"))
            }
            Self::Bare(stream) => {
                let (first, count) = message.to;
                let mut bytes = Vec::with_capacity(12 + message.body.len());
                for number in [first, count, message.body.len() as u32] {
                    bytes.extend_from_slice(&number.to_be_bytes());
                }
                bytes.extend_from_slice(message.body.as_bytes());
                stream.write_all(&bytes).await.map_err(failed("push"))
            }
        }
    }

    /// Publishes that JetStream did not take, up to now.
    pub(super) fn refused(&self) -> u64 {
        match self {
            Self::Nats { refused, .. } => refused.load(Relaxed),
            Self::Bare(_) => 0,
        }
    }

    /// Waits until everything that was sent is acknowledged or refused.
    pub(super) async fn settled(&self) {
        if let Self::Nats { acks, .. } = self {
            // All places are free once nothing waits; the last one taken out may still be awaited, which is one of many.
            let _ = acks.reserve_many(UNACKED_MAX).await;
        }
    }
}
