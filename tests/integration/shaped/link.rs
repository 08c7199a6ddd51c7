//! A slow link on the loopback: a UDP proxy with a rate, a bounded queue and a delay from the server to one client.
//!
//! The other direction has the delay only. What finds the queue full is lost, as at a mobile network's bottleneck.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A running proxy. Ends when dropped.
pub(crate) struct Link {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Link {
    /// Forwards between the first client that sends and `server`, `bits_per_s` down, with `delay` each way.
    pub(crate) async fn start(
        server: SocketAddr,
        bits_per_s: u64,
        queue_bytes: usize,
        delay: Duration,
    ) -> Self {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let back = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        back.connect(server).await.unwrap();
        let address = front.local_addr().unwrap();
        let (client, known) = tokio::sync::watch::channel(None);
        let mut tasks = JoinSet::new();
        let (receive, send) = (front.clone(), back.clone());
        let up = async move {
            let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
            let mut buffer = vec![0; 2_048];
            loop {
                let due = waiting.front().map(|(at, _)| *at);
                tokio::select! {
                    received = receive.recv_from(&mut buffer) => {
                        let (length, from) = received.unwrap();
                        client.send_replace(Some(from));
                        waiting.push_back((Instant::now() + delay, buffer[..length].to_vec()));
                    }
                    () = at(due) => {
                        let (_, packet) = waiting.pop_front().unwrap();
                        let _ = send.send(&packet).await;
                    }
                }
            }
        };
        tasks.spawn(up);
        tasks.spawn(async move {
            // Packets by the time at which their last bit is at the other end.
            let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
            let (mut queued, mut free_at) = (0, Instant::now());
            let mut buffer = vec![0; 2_048];
            loop {
                let due = waiting.front().map(|(at, _)| *at);
                tokio::select! {
                    received = back.recv(&mut buffer) => {
                        let length = received.unwrap();
                        if queued + length <= queue_bytes {
                            queued += length;
                            let bits = length as f64 * 8.0;
                            let takes = Duration::from_secs_f64(bits / bits_per_s as f64);
                            free_at = free_at.max(Instant::now()) + takes;
                            waiting.push_back((free_at + delay, buffer[..length].to_vec()));
                        }
                    }
                    () = at(due) => {
                        let (_, packet) = waiting.pop_front().unwrap();
                        queued -= packet.len();
                        let to = *known.borrow();
                        if let Some(to) = to {
                            let _ = front.send_to(&packet, to).await;
                        }
                    }
                }
            }
        });
        Self { address, _tasks: tasks }
    }

    /// Where the client connects to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
