//! The load: a process of its own that opens sessions, publishes, and notes what comes and when.
//!
//! Publishing is open loop: each message has a time at which it is due, latency counts from then, and a load that cannot
//! hold its times says so. Publisher and readers share a process and its clock.

mod arrivals;
mod connect;
mod device;
mod flow;
mod priority;
mod publisher;
mod stock;
mod traffic;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::place::Door;
use super::process::obey;
use super::{BenchError, failed};
use arrivals::Arrivals;
pub(super) use connect::{Connected, Kind, State, user};
pub(super) use flow::{Flow, Pushes, group};
use publisher::Publisher;
pub(super) use stock::{Drain, Fill};
pub(super) use traffic::{CLASSES, Traffic};

/// What the load is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Open sessions of users `bench-{n}` for `n` from 0 to `count`, so many at once.
    Connect {
        /// Where.
        door: Door,
        /// What is served there.
        kind: Kind,
        /// How many.
        count: u32,
        /// Handshakes at once.
        at_once: usize,
    },
    /// Say how many sessions are open.
    State,
    /// Publish to NATS from now on.
    Nats {
        /// Its address.
        url: String,
    },
    /// Publish to a bare server from now on.
    Bare {
        /// Where it takes what is to be pushed.
        address: std::net::SocketAddr,
    },
    /// Push to groups.
    Push(Pushes),
    /// Publish to single users.
    Traffic(Traffic),
    /// Fill a stream.
    Fill(Fill),
    /// Empty a stream, which needs no service.
    Drain(Drain),
}

/// Does what the orders on standard input say.
pub async fn run() -> Result<(), BenchError> {
    priority::before_others();
    let mut load =
        Load { arrivals: Arc::new(Arrivals::new()), sessions: connect::Sessions::new()?, publisher: None };
    obey(async |order| load.carry_out(order).await).await
}

struct Load {
    arrivals: Arc<Arrivals>,
    sessions: connect::Sessions,
    publisher: Option<Publisher>,
}

impl Load {
    async fn carry_out(&mut self, order: Order) -> Result<Value, BenchError> {
        match order {
            Order::Connect { door, kind, count, at_once } => {
                json(&self.sessions.open(&door, kind, count, at_once, &self.arrivals).await?)
            }
            Order::State => json(&self.sessions.state()),
            Order::Nats { url } => {
                self.publisher = Some(Publisher::nats(&url).await?);
                Ok(Value::Null)
            }
            Order::Bare { address } => {
                self.publisher = Some(Publisher::bare(address).await?);
                Ok(Value::Null)
            }
            Order::Push(pushes) => {
                json(&flow::push(&self.arrivals, publisher(&mut self.publisher)?, &pushes).await?)
            }
            Order::Traffic(traffic) => {
                json(&traffic::run(&self.arrivals, publisher(&mut self.publisher)?, &traffic).await?)
            }
            Order::Fill(fill) => json(&stock::fill(publisher(&mut self.publisher)?, &fill).await?),
            Order::Drain(drain) => match publisher(&mut self.publisher)? {
                Publisher::Nats { context, .. } => json(&stock::drain(context, &drain).await?),
                Publisher::Bare(_) => Err("a bare server has no streams").map_err(failed("drain")),
            },
        }
    }
}

fn publisher(publisher: &mut Option<Publisher>) -> Result<&mut Publisher, BenchError> {
    publisher.as_mut().ok_or("nobody said where to").map_err(failed("publish"))
}

fn json(answer: &impl Serialize) -> Result<Value, BenchError> {
    serde_json::to_value(answer).map_err(failed("answer"))
}
