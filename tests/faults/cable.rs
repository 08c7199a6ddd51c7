//! A cable to NATS that can be cut: a TCP proxy between one node and one server.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passes {
    Everything,
    /// Nothing, without a word: connections stay open and hold back what was sent. What a lost route looks like.
    Nothing,
    /// Nothing, and both ends are told: connections end, and new ones end at once.
    Refused,
}

/// A running cable. Ends when dropped, with its connections.
pub(crate) struct Cable {
    pub(crate) address: SocketAddr,
    passes: watch::Sender<Passes>,
    _task: JoinSet<()>,
}

impl Cable {
    pub(crate) async fn start(server: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (passes, watched) = watch::channel(Passes::Everything);
        let mut task = JoinSet::new();
        task.spawn(accept(listener, server, watched));
        Ok(Self { address, passes, _task: task })
    }

    pub(crate) fn set(&self, passes: Passes) {
        self.passes.send_replace(passes);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, passes: watch::Receiver<Passes>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let mut watched = passes.clone();
        connections.spawn(async move {
            tokio::select! {
                () = carry(near, server, watched.clone()) => {}
                // Both sockets go with the other future.
                _ = watched.wait_for(|passes| *passes == Passes::Refused) => {}
            }
        });
    }
}

async fn carry(near: TcpStream, server: SocketAddr, passes: watch::Receiver<Passes>) {
    if !open(&mut passes.clone()).await {
        return;
    }
    let Ok(far) = TcpStream::connect(server).await else { return };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::join!(pump(near_in, far_out, passes.clone()), pump(far_in, near_out, passes));
}

/// Carries bytes one way; their end, too, has to wait while nothing passes.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut passes: watch::Receiver<Passes>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await.unwrap_or(0);
        if !open(&mut passes).await {
            return;
        }
        if length == 0 {
            // Fails only when the other end has gone first.
            let _ = to.shutdown().await;
            return;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Waits until something passes; false at the cable's own end.
async fn open(passes: &mut watch::Receiver<Passes>) -> bool {
    passes.wait_for(|passes| *passes == Passes::Everything).await.is_ok()
}
