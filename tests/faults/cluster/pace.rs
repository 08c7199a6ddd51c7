//! How long notifications take: of those who have nothing to do with a node that stands still, and by the relay.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::ensure;
use async_nats::jetstream::Context;
use fanfare::catalog::{Kind, Role};
use fanfare::directory::{Change, Key, Writer};
use fanfare::id::UserId;
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;
use tokio::time::Instant;

use super::{THREE_NODES, account, everybody_is_live, name, untouched};
use crate::account::{Account, Device};
use crate::history::{History, percentile};
use crate::publisher::{Load, Progress, publish};
use crate::rows::{ACKED, CALM, Guard, PLAIN, Scale, connect, users};
use crate::stack::{Changes, Ground, Stack};

/// What a node that stands still may cost others, in milliseconds. It is asked twice, for a second each.
const HELD_UP_MS: u64 = 2_000;

/// The same in a set so large that it is offered to in batches.
const CROWD_HELD_UP_MS: u64 = 3_000;

/// How many of a hundred may take longer: those that the node had pulled when it stopped are nobody else's to deliver.
const PULLED_BY_IT: usize = 5;

/// The same for messages to the group. There are few, so what it had pulled is more of them.
const PULLED_BY_IT_OF_THE_CROWD: usize = 25;

/// Members of the group.
const MEMBERS: usize = 3_000;

/// Of these so many are connected at the node that stands still, and so many elsewhere.
const CONNECTED: usize = 50;

/// Time between two messages to the group.
const GROUP_EVERY: Duration = Duration::from_millis(200);

/// What the difference at P50 may be in a debug build on a busy machine, in milliseconds.
const RELAY_MS: i64 = 20;

/// Which part of the run a notification belongs to, by when it was published.
struct Pause {
    began: Instant,
    ended: Instant,
}

pub(super) async fn slow_node(scale: Scale) -> anyhow::Result<Account> {
    let users = users(60);
    let mut stack = Stack::on(THREE_NODES, &Changes::default()).await?;
    connect(&mut stack, &users).await?;
    let members: Vec<_> = (0..MEMBERS).map(|number| format!("member-{number}")).collect();
    found_group(&stack.context, &members).await?;
    let edges: Vec<_> = stack.nodes.iter().map(|node| node.edge).collect();
    let (slow, rest) = (edges[..1].to_vec(), edges[1..].to_vec());
    stack.devices(&members[..CONNECTED], true, |orders| orders.edges = slow).await?;
    stack.devices(&members[CONNECTED..2 * CONNECTED], true, |orders| orders.edges = rest).await?;
    let (before, slow) = (stack.history(), name(&stack, 0));
    let there = before.at(&slow);
    let others: Vec<Device> = before.devices().filter(|device| !there.contains(device)).cloned().collect();

    let mut load = Load::new(ACKED, &users, scale.of(4_000));
    load.per_s = Some(u32::try_from(load.count / 20).unwrap_or(1));
    let (progress, context) = (Progress::default(), stack.context.clone());
    let pause = async {
        progress.reached(load.count / 4).await;
        let began = Instant::now();
        stack.nodes[0].signal("STOP").await?;
        tokio::time::sleep(Duration::from_secs(10)).await;
        let ended = Instant::now();
        stack.nodes[0].signal("CONT").await?;
        anyhow::Ok(Pause { began, ended })
    };
    let work = async { tokio::join!(publish(&context, &load, &progress), pause) };
    let (group, (published, pause)) = write_to_group(&context, work).await?;
    let pause = pause?;
    everybody_is_live(&stack, None).await?;
    stack.settled(CALM).await?;
    let after = stack.history();
    untouched(&before, &after, &others)?;

    let alone = published.iter().map(|published| (published.copy.1.clone(), published.at)).collect();
    let live = [
        ("to one", alone, HELD_UP_MS, PULLED_BY_IT),
        ("to the group", group, CROWD_HELD_UP_MS, PULLED_BY_IT_OF_THE_CROWD),
    ];
    for (what, times, held_up_ms, percent) in live {
        let [calm, paused] = pause.latencies_ms(&times, &others, &before, &after);
        latencies(&calm, &format!("the other nodes, {what}, before"));
        latencies(&paused, &format!("the other nodes, {what}, meanwhile"));
        ensure!(!calm.is_empty() && !paused.is_empty(), "something was shown before and meanwhile");
        let bound = percentile(&calm, 99) + held_up_ms;
        let late = paused.iter().filter(|ms| **ms > bound).count();
        ensure!(
            late * 100 <= paused.len() * percent,
            "{late} of {} {what} took longer than {bound} ms while another node stood still",
            paused.len()
        );
    }
    Ok(account(stack, published, &load, Guard::On).await?.0)
}

impl Pause {
    /// Milliseconds to the application at `devices`, of what was published before it, and meanwhile.
    fn latencies_ms(
        &self,
        times: &HashMap<String, Instant>,
        devices: &[Device],
        before: &History,
        after: &History,
    ) -> [Vec<u64>; 2] {
        let mut found = [Vec::new(), Vec::new()];
        for (id, ms) in devices.iter().flat_map(|device| after.shown_to(before, device)) {
            match times.get(id) {
                Some(at) if *at < self.began => found[0].push(ms),
                Some(at) if *at < self.ended => found[1].push(ms),
                Some(_) | None => {}
            }
        }
        found
    }
}

const GROUP: &str = "crowd";

async fn found_group(context: &Context, members: &[String]) -> anyhow::Result<()> {
    let writer = Writer::open(context.clone()).await?;
    let key = Key::new(Kind::Conversation, GROUP).expect("a good id");
    let all = futures::stream::iter(members).map(|user| {
        let change =
            Change::Member { user: UserId::new(user).expect("a good id"), role: Some(Role::Member), v: 1 };
        let (writer, key) = (&writer, &key);
        async move { writer.write(key, &change).await }
    });
    all.buffer_unordered(64).try_collect::<Vec<_>>().await?;
    Ok(())
}

/// Publishes to the group for as long as `work` takes; gives when each message was published, and what came of `work`.
async fn write_to_group<T>(
    context: &Context,
    work: impl Future<Output = T>,
) -> anyhow::Result<(HashMap<String, Instant>, T)> {
    let mut times = HashMap::new();
    let mut due = tokio::time::interval(GROUP_EVERY);
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok((times, done)),
            _ = due.tick() => {}
        }
        let id = format!("{GROUP}-{}", times.len());
        let payload = json!({"conversation_type": "group", "conversation_id": GROUP, "content": id});
        let body = json!({"notification_id": id, "type": "message.new", "payload": payload}).to_string();
        let publish =
            async { context.publish(format!("notification.message.new.{GROUP}"), body.into()).await?.await };
        tokio::select! {
            done = &mut work => return Ok((times, done)),
            published = publish => published?,
        };
        times.insert(id, Instant::now());
    }
}

pub(super) async fn relay_latency(scale: Scale) -> anyhow::Result<Account> {
    let users = users(100);
    let ground = Ground { nodes: 2, roles: &["all", "edge"], ..THREE_NODES };
    let mut stack = Stack::on(ground, &Changes::default()).await?;
    connect(&mut stack, &users).await?;
    let before = stack.history();
    let mut load = Load::new(PLAIN, &users, scale.of(10_000));
    load.per_s = Some(200);
    let published = publish(&stack.context, &load, &Progress::default()).await;
    stack.settled(CALM).await?;
    let after = stack.history();
    untouched(&before, &after, before.devices())?;
    let [here, there] = [0, 1].map(|node| {
        let devices = before.at(&name(&stack, node));
        let shown = devices.iter().flat_map(|device| after.shown_to(&before, device));
        shown.map(|(_, ms)| ms).collect::<Vec<_>>()
    });
    latencies(&here, "the node that pulled it");
    latencies(&there, "the other node");
    let more = |percent| percentile(&there, percent) as i64 - percentile(&here, percent) as i64;
    println!("    the other node takes {} ms more at P50, {} ms at P95", more(50), more(95));
    ensure!(!here.is_empty() && !there.is_empty(), "devices are spread over the nodes");
    ensure!(more(50) <= RELAY_MS, "a relayed notification takes {} ms more at P50", more(50));
    Ok(account(stack, published, &load, Guard::On).await?.0)
}

fn latencies(ms: &[u64], at: &str) {
    let [p50, p95, p99] = [50, 95, 99].map(|percent| percentile(ms, percent));
    println!("    devices at {at}: {} shown, P50 {p50} ms, P95 {p95} ms, P99 {p99} ms", ms.len());
}
