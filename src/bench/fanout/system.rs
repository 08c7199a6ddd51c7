//! The servers of a fan-out, each with the load that its sessions belong to: how they are started, pushed through and metered.

use std::time::Duration;

use futures::{StreamExt, stream};

use crate::bench::bare::{Order as ServeOrder, Serving};
use crate::bench::load::{Connected, Flow, Kind, Order, Pushes, group, user};
use crate::bench::place::{Door, Place};
use crate::bench::process::Process;
use crate::bench::usage::Usage;
use crate::bench::{BenchError, Progress, failed};
use crate::catalog::{Kind as Set, Role};
use crate::clock::Now;
use crate::directory::{Key, Row, Writer, import};
use crate::id::UserId;

/// Handshakes at once, of any server.
const AT_ONCE: usize = 128;

/// Time for an order beside what it takes by itself.
const MOMENT: Duration = Duration::from_mins(1);

/// Handshakes a second of a machine that is far too slow for this.
const SLOWEST_PER_S: u32 = 20;

/// Acks of what was read last leave within a second, and belong to the cost.
const ACKS: Duration = Duration::from_millis(1_200);

/// A server under test with its load.
pub(super) struct System {
    pub(super) kind: Kind,
    /// `None` for the gateway, which the place holds.
    server: Option<Process>,
    load: Process,
}

impl System {
    /// Processor time and memory of server, load and nats-server.
    fn usage(&self, place: &Place) -> Result<[Usage; 3], BenchError> {
        let server = match &self.server {
            Some(server) => server.usage()?,
            None => place.gateway_usage()?,
        };
        Ok([server, self.load.usage()?, place.nats_usage()?])
    }

    pub(super) async fn push(
        &mut self,
        place: &Place,
        pushes: &Pushes,
    ) -> Result<(Flow, [f64; 3]), BenchError> {
        let before = self.usage(place)?;
        let limit = MOMENT + Duration::from_secs_f64(pushes.seconds * 2.0);
        let flow: Flow = self.load.ask(&Order::Push(pushes.clone()), limit, |_| ()).await?;
        tokio::time::sleep(ACKS).await;
        let after = self.usage(place)?;
        let each =
            |at: usize| after[at].cpu_since(&before[at]).as_secs_f64() * 1e6 / flow.delivered.max(1) as f64;
        let costs = [each(0), each(1), each(2)];
        Ok((flow, costs))
    }
}

/// The gateway with a load whose sessions are open.
pub(super) async fn gateway(
    place: &Place,
    door: Door,
    count: u32,
    progress: Progress<'_>,
) -> Result<System, BenchError> {
    let mut load = Process::start("load", &["bench", "load"], place.folder())?;
    connect(&mut load, door, Kind::Gateway, count, progress).await?;
    let url = place.nats_url().to_owned();
    let () = load.ask(&Order::Nats { url }, MOMENT, |_| ()).await?;
    Ok(System { kind: Kind::Gateway, server: None, load })
}

/// A bare server with a load whose sessions are open.
pub(super) async fn bare(
    place: &Place,
    kind: Kind,
    count: u32,
    progress: Progress<'_>,
) -> Result<System, BenchError> {
    let (name, args): (_, &[&str]) = match kind {
        Kind::Websocket => ("WebSocket server", &["bench", "bare", "--websocket"]),
        Kind::Bare | Kind::Gateway => ("bare server", &["bench", "bare"]),
    };
    let mut server = Process::start(name, args, place.folder())?;
    let serving: Serving = server.ask(&ServeOrder::Serve(count as usize), MOMENT, |_| ()).await?;
    let certificate = place.identity()?.sha256();
    let door = Door { address: serving.sessions, certificate, secret: place.secret().to_owned() };
    let mut load = Process::start("load", &["bench", "load"], place.folder())?;
    connect(&mut load, door, kind, count, progress).await?;
    let () = load.ask(&Order::Bare { address: serving.pushes }, MOMENT, |_| ()).await?;
    Ok(System { kind, server: Some(server), load })
}

/// Opens every session, or says why not.
async fn connect(
    load: &mut Process,
    door: Door,
    kind: Kind,
    count: u32,
    progress: Progress<'_>,
) -> Result<(), BenchError> {
    let order = Order::Connect { door, kind, count, at_once: AT_ONCE };
    let limit = MOMENT + Duration::from_secs(u64::from(count / SLOWEST_PER_S));
    let said = |open| progress(&format!("{open} of {count} sessions with the {} are open", name(kind)));
    let connected: Connected = load.ask(&order, limit, said).await?;
    match connected.why {
        Some(why) => Err(format!("{} of {count} failed, the first: {why}", connected.failed))
            .map_err(failed("open sessions")),
        None => Ok(()),
    }
}

pub(super) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Gateway => "gateway",
        Kind::Bare => "bare loop",
        Kind::Websocket => "WebSocket",
    }
}

/// Makes the first `groups × members` users members of groups.
pub(super) async fn populate(place: &Place, groups: u32, members: u32) -> Result<(), BenchError> {
    let writer = Writer::open(place.context.clone()).await.map_err(failed("open the directory"))?;
    let rows = (0..groups * members).map(|n| {
        let of = Key::new(Set::Conversation, &group(members, n / members)).expect("a valid id");
        let user = UserId::new(&user(n)).expect("a valid id");
        (u64::from(n), Row { of, user, role: Role::Member })
    });
    let mut written = Box::pin(import::write_all(&writer, Now::read().unix_ms * 1_000, stream::iter(rows)));
    while let Some(row) = written.next().await {
        row.map_err(failed("write members"))?;
    }
    Ok(())
}
