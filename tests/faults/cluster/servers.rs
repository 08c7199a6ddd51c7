//! Servers of NATS go, and nodes and devices go on.

use std::time::Duration;

use anyhow::ensure;
use fanfare::nats::{NOTIFICATIONS, NOTIFICATIONS_HIGH};

use super::{ALWAYS, THREE_NODES, account, connect_pairs, everybody_is_live, name, parted, untouched};
use crate::account::Account;
use crate::publisher::{Load, Progress, publish};
use crate::rows::{CALM, Guard, IN_MEMORY, Scale, changed, connect, users};
use crate::stack::{Changes, Ground, Stack};

const REPLICATED: Ground = Ground { replicas: Some(3), ..THREE_NODES };

const EVENTS: &[&str] = &["friend.request", "message.new", ALWAYS];

pub(super) async fn leader_killed(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let replicas = Some(if guard == Guard::On { 3 } else { 1 });
    let users = users(50);
    let mut stack = Stack::on(Ground { replicas, ..THREE_NODES }, &changed(guard, &IN_MEMORY)).await?;
    connect(&mut stack, &users).await?;
    let load = Load::new(&["friend.request", "message.new"], &users, scale.of(10_000));
    let (progress, context) = (Progress::default(), stack.context.clone());
    let middle = load.count / 2;
    let outage = async {
        progress.reached(middle).await;
        // So that some are waiting in the stream when it happens.
        let until = time::OffsetDateTime::now_utc() + Duration::from_secs(4);
        for (stream, consumer) in [(NOTIFICATIONS_HIGH, "high"), (NOTIFICATIONS, "normal")] {
            stack.context.get_stream(stream).await?.pause_consumer(consumer, until).await?;
        }
        progress.reached(middle + load.count / 10).await;
        let leader = stack.nats.leader(&stack.context, NOTIFICATIONS).await?;
        stack.nats.kill(leader).await;
        tokio::time::sleep(Duration::from_secs(8)).await;
        stack.nats.restart(leader).await
    };
    let (published, ended) = tokio::join!(publish(&context, &load, &progress), outage);
    ended?;
    everybody_is_live(&stack, None).await?;
    stack.settled(CALM).await?;
    Ok(account(stack, published, &load, guard).await?.0)
}

/// While the server is away some devices connect for the first time, and those of a node move because it is restarted.
pub(super) async fn follower_killed(scale: Scale) -> anyhow::Result<Account> {
    let (users, late) = (users(50), (0..20).map(|number| format!("late-{number}")).collect::<Vec<_>>());
    let mut stack = Stack::on(REPLICATED, &Changes::default()).await?;
    connect_pairs(&mut stack, &users).await?;
    let before = stack.history();
    let (_, others) = parted(&before, &name(&stack, 0))?;
    let mut load = Load::new(EVENTS, &users, scale.of(9_000));
    load.per_s = Some(u32::try_from(load.count / 40).unwrap_or(1));
    let (progress, context) = (Progress::default(), stack.context.clone());
    let outage = async {
        progress.reached(load.count / 8).await;
        let follower = (stack.nats.leader(&stack.context, NOTIFICATIONS).await? + 1) % 3;
        stack.nats.kill(follower).await;
        connect(&mut stack, &late).await?;
        stack.nodes[0].terminate().await?;
        stack.serve(0).await?;
        everybody_is_live(&stack, None).await?;
        ensure!(progress.count() < load.count, "the load was over before the server came back");
        progress.reached(load.count * 5 / 8).await;
        stack.nats.restart(follower).await
    };
    let (published, ended) = tokio::join!(publish(&context, &load, &progress), outage);
    ended?;
    stack.settled(CALM).await?;
    untouched(&before, &stack.history(), &others)?;
    load.users.extend(late);
    Ok(account(stack, published, &load, Guard::On).await?.0)
}

/// As in production, where presence is kept in memory: it lasts as long as two servers have it.
pub(super) async fn restarted_in_turn(scale: Scale) -> anyhow::Result<Account> {
    let presence = ("buckets.toml", PRESENCE_IN_A_FILE, PRESENCE_IN_MEMORY);
    let nodes = ("buckets.toml", NODES_IN_A_FILE, NODES_IN_MEMORY);
    let changes = Changes { declarations: vec![presence, nodes], ..Changes::default() };
    let users = users(50);
    let mut stack = Stack::on(REPLICATED, &changes).await?;
    connect_pairs(&mut stack, &users).await?;
    let before = stack.history();
    let mut load = Load::new(EVENTS, &users, scale.of(9_000));
    load.per_s = Some(u32::try_from(load.count / 60).unwrap_or(1));
    let (progress, context) = (Progress::default(), stack.context.clone());
    let restarts = async {
        for server in 0..3 {
            progress.reached((server + 1) * load.count / 8).await;
            stack.nats.restart_in_order(server, &stack.context).await?;
        }
        anyhow::Ok(())
    };
    let (published, ended) = tokio::join!(publish(&context, &load, &progress), restarts);
    ended?;
    stack.settled(CALM).await?;
    untouched(&before, &stack.history(), before.devices())?;
    Ok(account(stack, published, &load, Guard::On).await?.0)
}

const PRESENCE_IN_A_FILE: &str = "description = \"which nodes serve a user\"\nstorage = \"file\"";
const PRESENCE_IN_MEMORY: &str = "description = \"which nodes serve a user\"\nstorage = \"memory\"";
const NODES_IN_A_FILE: &str = "description = \"leases of gateway nodes\"\nstorage = \"file\"";
const NODES_IN_MEMORY: &str = "description = \"leases of gateway nodes\"\nstorage = \"memory\"";
