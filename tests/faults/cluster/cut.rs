//! A node that is cut off from NATS goes on with the sessions it has, and nobody else notices.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use fanfare::client::{Client, Event};
use tokio::time::Instant;

use super::{ALWAYS, THREE_NODES, account, connect_pairs, everybody_is_live, name, parted, untouched};
use crate::account::Account;
use crate::cable::Passes;
use crate::publisher::{Load, Progress, publish};
use crate::rows::{CALM, Guard, users};
use crate::stack::{Changes, Ground, PATIENCE, Stack, eventually};

/// Notifications a second.
const PER_S: u32 = 50;

/// Who opens the app at the node that is cut off, and then again elsewhere.
const MOVER: &str = "mover";

pub(super) async fn node_cut(away: Duration, passes: Passes) -> anyhow::Result<Account> {
    let users = users(60);
    let mut stack = Stack::on(Ground { cables: true, ..THREE_NODES }, &Changes::default()).await?;
    connect_pairs(&mut stack, &users).await?;
    let before = stack.history();
    let (there, others) = parted(&before, &name(&stack, 0))?;
    let seconds = away.as_secs() as usize + 10;
    let mut load = Load::new(&["friend.request", "message.new", ALWAYS], &users, seconds * PER_S as usize);
    load.per_s = Some(PER_S);
    let (progress, context) = (Progress::default(), stack.context.clone());
    let outage = async {
        progress.reached(2 * PER_S as usize).await;
        let (node, cut) = (&stack.nodes[0], Instant::now());
        node.nats(passes);
        node.notices_the_cut().await?;
        ensure!(cut.elapsed() < away, "it noticed only after {:?}", cut.elapsed());
        let older = open(&stack, 0).await.context("at the node that is cut off")?;
        tokio::time::sleep_until(cut + away / 2).await;
        let newer = open(&stack, 1).await.context("elsewhere")?;
        tokio::time::sleep_until(cut + away).await;
        untouched(&before, &stack.history(), &there).context("before it was healed")?;
        node.nats(Passes::Everything);
        eventually("the node is ready again", async || node.is_ready().await).await?;
        anyhow::Ok((older, newer))
    };
    let (published, ended) = tokio::join!(publish(&context, &load, &progress), outage);
    let (older, newer) = ended?;
    everybody_is_live(&stack, None).await?;
    stack.settled(CALM).await?;
    untouched(&before, &stack.history(), &others)?;
    the_newer_one_lives(&stack, older, newer).await?;
    let (account, found) = account(stack, published, &load, Guard::On).await?;
    let elsewhere = |user: &String| !there.iter().any(|(cut_off, _)| cut_off == user);
    let wrongly = found.handed_off.iter().filter(|copy| copy.0 != MOVER && elsewhere(&copy.0));
    let wrongly: Vec<_> = wrongly.collect();
    ensure!(wrongly.is_empty(), "{wrongly:?} were handed off, and no device of these users was at the node");
    Ok(account)
}

/// A session of [`MOVER`]'s phone.
async fn open(stack: &Stack, node: usize) -> anyhow::Result<Client> {
    let mut client = Client::connect(stack.client_at(node, MOVER)?)?;
    tokio::time::timeout(PATIENCE, client.live()).await?.map_err(|closed| anyhow::anyhow!("{closed}"))?;
    Ok(client)
}

/// Of two sessions of one device the older one ends, and the newer one is given what is published.
async fn the_newer_one_lives(stack: &Stack, mut older: Client, mut newer: Client) -> anyhow::Result<()> {
    let ended = async { while !matches!(older.next().await, Some(Event::Closed(_)) | None) {} };
    tokio::time::timeout(PATIENCE, ended).await.context("the older session of a device lives on")?;
    let load = Load::new(&["friend.request"], &[MOVER.to_owned()], 1);
    publish(&stack.context, &load, &Progress::default()).await;
    let given = tokio::time::timeout(PATIENCE, newer.notification())
        .await
        .context("the newer one is given nothing")?;
    given.map_err(|closed| anyhow::anyhow!("the newer session of a device has ended: {closed}"))?;
    Ok(())
}
