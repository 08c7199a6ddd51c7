//! A worker that is cut off without a word while it waits for another node's answer knows nothing of that node.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use tokio::time::Instant;

use super::{account, everybody_is_live};
use crate::account::Account;
use crate::cable::Passes;
use crate::publisher::{Load, Progress, publish};
use crate::rows::{ACKED, CALM, Guard, users};
use crate::stack::{Changes, Ground, PATIENCE, Stack};

/// The first node only pulls, and is cut off; the second one has the sessions; the third one takes over.
const GROUND: Ground =
    Ground { nodes: 3, replicas: None, cables: true, roles: &["worker", "edge", "worker"] };

/// Longer than JetStream waits for an ack of this lane, so that what the worker held is the other one's meanwhile.
const AWAY: Duration = Duration::from_secs(15);

pub(super) async fn asker_cut() -> anyhow::Result<Account> {
    let users = users(20);
    let mut stack = Stack::on(GROUND, &Changes::default()).await?;
    let there = vec![stack.nodes[1].edge];
    stack.devices(&users, true, |orders| orders.edges = there).await?;
    let load = Load::new(ACKED, &users, 2 * users.len());
    let mut asked = stack.client.subscribe("fanfare.node.*.high").await?;
    stack.client.flush().await?;

    // It cannot answer before the worker is cut off.
    stack.nodes[1].signal("STOP").await?;
    let published = publish(&stack.context, &load, &Progress::default()).await;
    for _ in 0..load.count {
        tokio::time::timeout(PATIENCE, asked.next()).await.context("nobody asks the node")?;
    }
    let cut = Instant::now();
    stack.nodes[0].nats(Passes::Nothing);
    stack.nodes[1].signal("CONT").await?;
    tokio::time::sleep_until(cut + AWAY).await;
    stack.nodes[0].nats(Passes::Everything);

    everybody_is_live(&stack, None).await?;
    stack.settled(CALM).await?;
    let (account, found) = account(stack, published, &load, Guard::On).await?;
    let wrongly = &found.handed_off;
    ensure!(wrongly.is_empty(), "{wrongly:?} were handed off, and their devices had sessions all the time");
    Ok(account)
}
