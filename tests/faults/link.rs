//! A link that breaks: a UDP proxy between one socket of devices and the edge, with loss, delay, cuts and new addresses.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt as _;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Packets on their way in one direction; what comes beyond it is lost, as in a router.
const PACKETS_MAX: usize = 10_000;

/// What the link does to packets, both ways.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weather {
    /// Share of packets that are lost, 0 to 1.
    pub(crate) loss: f64,
    /// Time on the way.
    pub(crate) delay: Duration,
    /// Nothing passes.
    pub(crate) cut: bool,
}

/// A running link. Ends when dropped.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    weather: Arc<Mutex<Weather>>,
    back: tokio::sync::watch::Sender<Arc<UdpSocket>>,
    _tasks: JoinSet<()>,
}

async fn socket() -> anyhow::Result<Arc<UdpSocket>> {
    Ok(Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?))
}

impl Link {
    /// A link to `server` for the one socket that sends to it.
    pub(crate) async fn start(server: SocketAddr, weather: Weather) -> anyhow::Result<Self> {
        let front = socket().await?;
        let address = front.local_addr()?;
        let (back, changed) = tokio::sync::watch::channel(socket().await?);
        let weather = Arc::new(Mutex::new(weather));
        let client = Arc::new(Mutex::new(None));
        let mut tasks = JoinSet::new();
        tasks.spawn(up(front.clone(), changed.clone(), server, client.clone(), weather.clone()));
        tasks.spawn(down(front, changed, client, weather.clone()));
        Ok(Self { address, weather, back, _tasks: tasks })
    }

    /// Changes what happens to packets from now on.
    pub(crate) fn set(&self, weather: Weather) {
        *self.weather.lock() = weather;
    }

    /// The device has another address from now on, as after a change of network.
    pub(crate) async fn change_address(&self) -> anyhow::Result<()> {
        self.back.send_replace(socket().await?);
        Ok(())
    }
}

type Waiting = VecDeque<(Instant, Vec<u8>)>;

fn enqueue(waiting: &mut Waiting, packet: &[u8], weather: &Mutex<Weather>) {
    let weather = *weather.lock();
    let lost = weather.cut || rand::rng().random_bool(weather.loss);
    if !lost && waiting.len() < PACKETS_MAX {
        waiting.push_back((Instant::now() + weather.delay, packet.to_vec()));
    }
}

async fn up(
    front: Arc<UdpSocket>,
    back: tokio::sync::watch::Receiver<Arc<UdpSocket>>,
    server: SocketAddr,
    client: Arc<Mutex<Option<SocketAddr>>>,
    weather: Arc<Mutex<Weather>>,
) {
    let mut waiting = Waiting::new();
    let mut buffer = vec![0; 2_048];
    loop {
        let due = waiting.front().map(|(at, _)| *at);
        tokio::select! {
            received = front.recv_from(&mut buffer) => {
                // An error of an earlier packet: its receiver was away.
                let Ok((length, from)) = received else { continue };
                *client.lock() = Some(from);
                enqueue(&mut waiting, &buffer[..length], &weather);
            }
            () = at(due) => {
                let Some((_, packet)) = waiting.pop_front() else { continue };
                let back = back.borrow().clone();
                let _ = back.send_to(&packet, server).await;
            }
        }
    }
}

async fn down(
    front: Arc<UdpSocket>,
    mut changed: tokio::sync::watch::Receiver<Arc<UdpSocket>>,
    client: Arc<Mutex<Option<SocketAddr>>>,
    weather: Arc<Mutex<Weather>>,
) {
    let mut waiting = Waiting::new();
    let mut buffer = vec![0; 2_048];
    loop {
        let back = changed.borrow_and_update().clone();
        let due = waiting.front().map(|(at, _)| *at);
        tokio::select! {
            received = back.recv_from(&mut buffer) => {
                let Ok((length, _)) = received else { continue };
                enqueue(&mut waiting, &buffer[..length], &weather);
            }
            () = at(due) => {
                let to = *client.lock();
                if let (Some((_, packet)), Some(to)) = (waiting.pop_front(), to) {
                    let _ = front.send_to(&packet, to).await;
                }
            }
            changed = changed.changed() => if changed.is_err() { return },
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
