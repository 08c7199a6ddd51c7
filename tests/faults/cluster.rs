//! The rows with several nodes: one of them is killed, cut off, slow or restarted, or a server of NATS is.
//!
//! Devices have the addresses of all nodes. Beside the account, each row looks at the sessions: whom it must not touch it
//! did not touch, and whom it moved are back.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::Instant;

use crate::account::{Account, Found, Promise, Published};
use crate::cable::Passes;
use crate::history::{History, Turn, percentile};
use crate::publisher::{Load, Progress, publish};
use crate::rows::{ACKED, CALM, Guard, PLAIN, Row, Run, Scale, careless, changed, connect, users};
use crate::stack::{Changes, Ground, Stack, eventually};

const THREE_NODES: Ground = Ground { nodes: 3, replicas: None, cables: false, roles: &[] };

/// Every row.
pub(crate) fn all() -> Vec<Row> {
    let row =
        |name, control, short, run: Run| Row { name, control, promise: Promise::Everything, short, run };
    vec![
        row("one of three nodes is killed (-9)", "max_deliver = 1", true, |scale, guard| {
            Box::pin(node_killed(scale, guard))
        }),
        row(
            "of three nats-servers the leader is killed for 8 s",
            "one replica, in memory",
            false,
            |scale, guard| Box::pin(leader_killed(scale, guard)),
        ),
        row("a node is cut off from NATS for 20 s, and knows", "", false, |_, _| {
            Box::pin(node_cut(Duration::from_secs(20), Passes::Refused))
        }),
        row("a node is cut off from NATS for 90 s, without a word", "", false, |_, _| {
            Box::pin(node_cut(Duration::from_secs(90), Passes::Nothing))
        }),
        row(
            "three nodes are restarted in turn (SIGTERM)",
            "killed (-9) instead, nothing kept",
            false,
            |scale, guard| Box::pin(rolling_restart(scale, guard)),
        ),
        row("one of three nodes stands still for 10 s", "", false, |scale, _| Box::pin(slow_node(scale))),
        row("two nodes, and only the first one pulls: latencies", "", false, |scale, _| {
            Box::pin(relay_latency(scale))
        }),
    ]
}

/// The name of a node by its number from 0.
fn name(stack: &Stack, node: usize) -> String {
    stack.nodes[node].name.clone()
}

/// Waits until every device has a session, none of them at `gone`.
async fn everybody_is_live(stack: &Stack, gone: Option<&str>) -> anyhow::Result<()> {
    eventually("every device has a session", async || {
        let history = stack.history();
        history.waiting().is_empty() && gone.is_none_or(|gone| history.at(gone).is_empty())
    })
    .await
}

/// Nothing happened to the sessions of these users.
fn untouched(before: &History, after: &History, users: &[String]) -> anyhow::Result<()> {
    for user in users {
        let turns = after.since(before, user);
        ensure!(turns.is_empty(), "{user} has no part in it, and its session changed: {turns:?}");
    }
    Ok(())
}

/// Everything published was shown by a session and handed off to nobody: nobody counts as offline.
fn all_live(published: &[Published], found: &Found) -> anyhow::Result<()> {
    for Published { copy, .. } in published {
        ensure!(found.seen.contains(copy), "{copy:?} was not delivered to a device that is connected");
        ensure!(!found.handed_off.contains(copy), "{copy:?} was handed off, and its device is connected");
    }
    Ok(())
}

/// Settles the accounts. Before that, with the protection on, publishes once more to everybody: all is well again, so
/// nobody may count as offline.
async fn account(
    mut stack: Stack,
    mut published: Vec<Published>,
    load: &Load,
    guard: Guard,
) -> anyhow::Result<Account> {
    if guard == Guard::Off {
        return stack.account(&published).await;
    }
    let count = 4 * load.users.len();
    let once_more = Load { first: load.count, count, per_s: Some(100), ..load.clone() };
    let before = stack.history();
    let again = publish(&stack.context, &once_more, &Progress::default()).await;
    stack.settled(CALM).await?;
    untouched(&before, &stack.history(), &load.users)?;
    let found = stack.found().await?;
    all_live(&again, &found)?;
    published.extend(again);
    Ok(Account::settle(&published, &found, None))
}

async fn node_killed(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let limit = ("notifications_high.toml", "max_deliver = 20", "max_deliver = 1");
    let users = users(150);
    let mut stack = Stack::on(THREE_NODES, &changed(guard, &[limit])).await?;
    connect(&mut stack, &users).await?;
    let (before, victim) = (stack.history(), name(&stack, 0));
    let (moved, others): (Vec<_>, Vec<_>) = {
        let there = before.at(&victim);
        users.iter().cloned().partition(|user| there.contains(user))
    };
    ensure!(!moved.is_empty() && !others.is_empty(), "devices are spread over the nodes");
    let load = Load::new(ACKED, &users, scale.of(20_000));
    let (progress, context) = (Progress::default(), stack.context.clone());
    let crash = async {
        progress.reached(load.count / 2).await;
        stack.kill(0).await
    };
    let (published, crashed) = tokio::join!(publish(&context, &load, &progress), crash);
    crashed?;
    everybody_is_live(&stack, Some(&victim)).await?;
    stack.settled(CALM).await?;
    untouched(&before, &stack.history(), &others)?;
    account(stack, published, &load, guard).await
}

async fn leader_killed(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let memory = ("notifications.toml", "storage = \"file\"", "storage = \"memory\"");
    let replicas = Some(if guard == Guard::On { 3 } else { 1 });
    let users = users(50);
    let mut stack = Stack::on(Ground { replicas, ..THREE_NODES }, &changed(guard, &[memory])).await?;
    connect(&mut stack, &users).await?;
    let load = Load::new(&["friend.request", "message.new"], &users, scale.of(10_000));
    let (progress, context) = (Progress::default(), stack.context.clone());
    let middle = load.count / 2;
    let outage = async {
        progress.reached(middle).await;
        // So that some are waiting in the stream when it happens.
        let stream = stack.context.get_stream("NOTIFICATIONS").await?;
        let until = time::OffsetDateTime::now_utc() + Duration::from_secs(4);
        for consumer in ["high", "normal"] {
            stream.pause_consumer(consumer, until).await?;
        }
        progress.reached(middle + load.count / 10).await;
        let leader = stack.nats.leader(&stack.context, "NOTIFICATIONS").await?;
        stack.nats.kill(leader).await;
        tokio::time::sleep(Duration::from_secs(8)).await;
        stack.nats.restart(leader).await
    };
    let (published, ended) = tokio::join!(publish(&context, &load, &progress), outage);
    ended?;
    everybody_is_live(&stack, None).await?;
    stack.settled(CALM).await?;
    account(stack, published, &load, guard).await
}

async fn node_cut(away: Duration, passes: Passes) -> anyhow::Result<Account> {
    const PER_S: u32 = 50;
    let users = users(60);
    let mut stack = Stack::on(Ground { cables: true, ..THREE_NODES }, &Changes::default()).await?;
    connect(&mut stack, &users).await?;
    let seconds = away.as_secs() as usize + 10;
    let mut load = Load::new(&["friend.request", "message.new"], &users, seconds * PER_S as usize);
    load.per_s = Some(PER_S);
    let (progress, context) = (Progress::default(), stack.context.clone());
    let outage = async {
        progress.reached(2 * PER_S as usize).await;
        let (node, cut) = (&stack.nodes[0], Instant::now());
        node.nats(passes);
        node.notices_the_cut().await?;
        ensure!(cut.elapsed() < away, "it noticed only after {:?}", cut.elapsed());
        tokio::time::sleep_until(cut + away).await;
        node.nats(Passes::Everything);
        eventually("the node is ready again", async || node.is_ready().await).await
    };
    let (published, ended) = tokio::join!(publish(&context, &load, &progress), outage);
    ended?;
    everybody_is_live(&stack, None).await?;
    stack.settled(CALM).await?;
    account(stack, published, &load, Guard::On).await
}

async fn rolling_restart(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let catalog = (guard == Guard::Off).then(careless);
    let users = users(60);
    let mut stack = Stack::on(THREE_NODES, &Changes { catalog, ..Changes::default() }).await?;
    connect(&mut stack, &users).await?;
    let before = stack.history();
    let mut load = Load::new(PLAIN, &users, scale.of(5_000));
    // For as long as the restarts take.
    load.per_s = Some(u32::try_from(load.count / 12).unwrap_or(1));
    let (progress, context) = (Progress::default(), stack.context.clone());
    let restarts = async {
        for node in 0..THREE_NODES.nodes {
            progress.reached((node + 1) * load.count / 5).await;
            if guard == Guard::On {
                stack.nodes[node].terminate().await?;
            } else {
                stack.kill(node).await?;
            }
            stack.serve(node).await?;
        }
        anyhow::Ok(())
    };
    let (published, ended) = tokio::join!(publish(&context, &load, &progress), restarts);
    ended?;
    everybody_is_live(&stack, None).await?;
    stack.settled(CALM).await?;
    if guard == Guard::On {
        let after = stack.history();
        for user in &users {
            let turns = after.since(&before, user);
            let lost = turns.iter().any(|turn| matches!(turn, Turn::Lost(_)));
            ensure!(turns.contains(&&Turn::Asked) && !lost, "{user} was not moved by a goaway: {turns:?}");
        }
    }
    account(stack, published, &load, guard).await
}

async fn slow_node(scale: Scale) -> anyhow::Result<Account> {
    let users = users(60);
    let mut stack = Stack::on(THREE_NODES, &Changes::default()).await?;
    connect(&mut stack, &users).await?;
    let (before, slow) = (stack.history(), name(&stack, 0));
    let there = before.at(&slow);
    let others: Vec<_> = users.iter().filter(|user| !there.contains(user)).cloned().collect();
    let mut load = Load::new(ACKED, &users, scale.of(4_000));
    load.per_s = Some(u32::try_from(load.count / 20).unwrap_or(1));
    let (progress, context) = (Progress::default(), stack.context.clone());
    let pause = async {
        progress.reached(load.count / 4).await;
        stack.nodes[0].signal("STOP").await?;
        tokio::time::sleep(Duration::from_secs(10)).await;
        stack.nodes[0].signal("CONT").await
    };
    let (published, ended) = tokio::join!(publish(&context, &load, &progress), pause);
    ended?;
    everybody_is_live(&stack, None).await?;
    stack.settled(CALM).await?;
    let after = stack.history();
    untouched(&before, &after, &others)?;
    for node in &stack.nodes[1..] {
        latencies(&after.latencies_ms(&before, &node.name), &node.name);
    }
    account(stack, published, &load, Guard::On).await
}

async fn relay_latency(scale: Scale) -> anyhow::Result<Account> {
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
    untouched(&before, &after, &users)?;
    let [here, there] = [0, 1].map(|node| after.latencies_ms(&before, &name(&stack, node)));
    latencies(&here, "the node that pulled it");
    latencies(&there, "the other node");
    let more = |percent| percentile(&there, percent) as i64 - percentile(&here, percent) as i64;
    println!("    the other node takes {} ms more at P50, {} ms at P95", more(50), more(95));
    account(stack, published, &load, Guard::On).await
}

fn latencies(sorted_ms: &[u64], at: &str) {
    let [p50, p95, p99] = [50, 95, 99].map(|percent| percentile(sorted_ms, percent));
    println!("    devices at {at}: {} shown, P50 {p50} ms, P95 {p95} ms, P99 {p99} ms", sorted_ms.len());
}
