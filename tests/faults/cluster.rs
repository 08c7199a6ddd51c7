//! The rows with several nodes: one of them is killed, cut off, slow or restarted, or a server of NATS is.
//!
//! Devices have the addresses of all nodes. Beside the account, each row looks at the sessions: whom it must not touch it
//! did not touch, and whom it moved are back.

mod cut;
mod pace;
mod servers;
mod silence;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{bail, ensure};

use crate::account::{Account, Copy, Device, Found, Promise, Published};
use crate::cable::Passes;
use crate::history::{History, Turn};
use crate::publisher::{Load, Progress, publish};
use crate::rows::{ACKED, CALM, Guard, Row, Run, Scale, careless, changed, connect, users};
use crate::stack::{Changes, Ground, Stack, eventually};

/// What every device of a user is to be shown, also one that was away.
const ALWAYS: &str = "session.pin_updated";

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
            |scale, guard| Box::pin(servers::leader_killed(scale, guard)),
        ),
        row("of three nats-servers one that does not lead is killed for 20 s", "", false, |scale, _| {
            Box::pin(servers::follower_killed(scale))
        }),
        row("three nats-servers are restarted in turn, presence in memory", "", false, |scale, _| {
            Box::pin(servers::restarted_in_turn(scale))
        }),
        row("a node is cut off from NATS for 20 s, and knows", "", false, |_, _| {
            Box::pin(cut::node_cut(Duration::from_secs(20), Passes::Refused))
        }),
        row("a node is cut off from NATS for 90 s, without a word", "", false, |_, _| {
            Box::pin(cut::node_cut(Duration::from_secs(90), Passes::Nothing))
        }),
        row("a worker is cut off without a word while it waits for a node", "", true, |_, _| {
            Box::pin(silence::asker_cut())
        }),
        row(
            "three nodes are restarted in turn (SIGTERM)",
            "killed (-9) instead, nothing kept",
            false,
            |scale, guard| Box::pin(rolling_restart(scale, guard)),
        ),
        row("one of three nodes stands still for 10 s", "", false, |scale, _| {
            Box::pin(pace::slow_node(scale))
        }),
        row("two nodes, and only the first one pulls: latencies", "", false, |scale, _| {
            Box::pin(pace::relay_latency(scale))
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

/// Nothing happened to the sessions of these devices.
fn untouched<'a>(
    before: &History,
    after: &History,
    devices: impl IntoIterator<Item = &'a Device>,
) -> anyhow::Result<()> {
    for device in devices {
        let turns = after.since(before, device);
        ensure!(turns.is_empty(), "{device:?} has no part in it, and its session changed: {turns:?}");
    }
    Ok(())
}

/// Everything published was shown by a session and handed off to nobody: nobody counts as offline.
fn all_live(published: &[Published], found: &Found) -> anyhow::Result<()> {
    let seen: HashSet<&Copy> = found.seen.iter().map(|(copy, _)| copy).collect();
    for Published { copy, .. } in published {
        ensure!(seen.contains(copy), "{copy:?} was not delivered to a device that is connected");
        ensure!(!found.handed_off.contains(copy), "{copy:?} was handed off, and its device is connected");
    }
    Ok(())
}

/// What is kept for every device was shown by each. That none was shown it twice is the account's to say.
fn on_every_device(published: &[Published], found: &Found, history: &History) -> anyhow::Result<()> {
    let seen: HashSet<(&Copy, &str)> = found.seen.iter().map(|(copy, at)| (copy, at.as_str())).collect();
    let always = published.iter().map(|published| &published.copy).filter(|(_, id)| id.starts_with(ALWAYS));
    let mut missed: BTreeMap<&Device, Vec<&Copy>> = BTreeMap::new();
    for copy in always {
        for device in history.devices().filter(|(user, at)| *user == copy.0 && !seen.contains(&(copy, at))) {
            missed.entry(device).or_default().push(copy);
        }
    }
    if let Some((device, copies)) = missed.first_key_value() {
        let inboxed = copies.iter().filter(|copy| found.inboxed.contains(**copy)).count();
        bail!(
            "{} device(s) were not shown all that is kept for them: {device:?} lacks {}, of which {inboxed} are in the \
             inbox, from {:?} to {:?}; its sessions: {:?}",
            missed.len(),
            copies.len(),
            copies[0].1,
            copies[copies.len() - 1].1,
            history.since(&History::default(), device)
        );
    }
    Ok(())
}

/// Connects each user's phone, and a tablet for every third one.
async fn connect_pairs(stack: &mut Stack, users: &[String]) -> anyhow::Result<()> {
    connect(stack, users).await?;
    stack.devices(&users[..users.len() / 3], true, |orders| "tablet".clone_into(&mut orders.device)).await
}

/// Devices at the node of this name, and all others. Some users have one of both.
fn parted(history: &History, node: &str) -> anyhow::Result<(Vec<Device>, Vec<Device>)> {
    let there: HashSet<Device> = history.at(node).into_iter().collect();
    let (there, others): (Vec<_>, Vec<_>) =
        history.devices().cloned().partition(|device| there.contains(device));
    let has_another = |(user, _): &Device| others.iter().any(|(other, _)| other == user);
    ensure!(there.iter().any(has_another), "no user has a device at {node} and another elsewhere");
    Ok((there, others))
}

/// Settles the accounts. Before that, with the protection on, publishes once more to everybody: all is well again, so
/// nobody may count as offline.
async fn account(
    mut stack: Stack,
    mut published: Vec<Published>,
    load: &Load,
    guard: Guard,
) -> anyhow::Result<(Account, Found)> {
    let mut again = Vec::new();
    let before = stack.history();
    if guard == Guard::On {
        let count = 4 * load.users.len();
        let once_more = Load { first: load.count, count, per_s: Some(100), ..load.clone() };
        again = publish(&stack.context, &once_more, &Progress::default()).await;
        stack.settled(CALM).await?;
        untouched(&before, &stack.history(), before.devices())?;
    }
    let found = stack.found().await?;
    if guard == Guard::On {
        all_live(&again, &found)?;
        published.extend(again);
        on_every_device(&published, &found, &stack.history())?;
    }
    Ok((Account::settle(&published, &found, stack.crash), found))
}

async fn node_killed(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let limit = ("notifications_high.toml", "max_deliver = 20", "max_deliver = 1");
    let users = users(150);
    let mut stack = Stack::on(THREE_NODES, &changed(guard, &[limit])).await?;
    connect_pairs(&mut stack, &users).await?;
    let (before, victim) = (stack.history(), name(&stack, 0));
    let (_, others) = parted(&before, &victim)?;
    let mut load = Load::new(ACKED, &users, scale.of(20_000));
    if guard == Guard::On {
        load.events = &["friend.request", ALWAYS];
        // On a machine that is busy to the last all sessions may miss their heartbeats, and nobody must here. In a debug build
        // 600 a second keep two cores busy.
        load.per_s = Some(300);
    }
    let (progress, context) = (Progress::default(), stack.context.clone());
    let crash = async {
        progress.reached(load.count / 2).await;
        stack.kill(0).await
    };
    let (published, crashed) = tokio::join!(publish(&context, &load, &progress), crash);
    crashed?;
    everybody_is_live(&stack, Some(&victim)).await?;
    stack.settled(CALM).await?;
    if guard == Guard::On {
        untouched(&before, &stack.history(), &others)?;
    }
    Ok(account(stack, published, &load, guard).await?.0)
}

async fn rolling_restart(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let catalog = (guard == Guard::Off).then(careless);
    let users = users(60);
    let mut stack = Stack::on(THREE_NODES, &Changes { catalog, ..Changes::default() }).await?;
    connect_pairs(&mut stack, &users).await?;
    let before = stack.history();
    let mut load = Load::new(&["message.new", ALWAYS], &users, scale.of(5_000));
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
        for device in before.devices() {
            let turns = after.since(&before, device);
            let lost = turns.iter().any(|turn| matches!(turn, Turn::Lost(_)));
            ensure!(
                turns.contains(&&Turn::Asked) && !lost,
                "{device:?} was not moved by a goaway: {turns:?}"
            );
        }
    }
    Ok(account(stack, published, &load, guard).await?.0)
}
