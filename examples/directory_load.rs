//! Measures how fast audiences are read: many cold ones at once, and one large one.
//!
//!     nats-server -js -p 14222 &
//!     cargo run --release --example directory_load -- nats://127.0.0.1:14222
//!
//! The numbers decide how many loads run at once and how large the cache is. Needs a server whose store is empty: it
//! is provisioned with the development streams and filled with 10,000 groups of 20 and one of 100,000 members.

use std::sync::Arc;
use std::time::Instant;

use async_nats::jetstream;
use fanfare::catalog::{Catalog, Kind, Role};
use fanfare::directory::{Config, Directory, Key, Row, Writer, write_all};
use fanfare::id::UserId;
use fanfare::provision::{Env, apply_all};
use futures::StreamExt;
use futures::future::join_all;

const GROUPS: usize = 10_000;
const SMALL: usize = 20;
const LARGE: usize = 100_000;

type Failed = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let url = std::env::args().nth(1).ok_or("give the address of an empty nats-server")?;
    let client = async_nats::connect(url).await?;
    apply_all(&client, &Catalog::built_in()?, Env::DEV).await?;
    let context =
        jetstream::context::ContextBuilder::new().backpressure_on_inflight(true).build(client.clone());
    let small =
        (0..GROUPS).flat_map(|group| (0..SMALL).map(move |n| (format!("g{group}"), group * SMALL + n)));
    let large = (0..LARGE).map(|n| ("large".to_owned(), n));
    fill(context.clone(), small.chain(large)).await?;

    let directory = Directory::new(client, context, &Config::default());
    // First, while no memory is free that was used before.
    let (before, started) = (resident_kb(), Instant::now());
    let members = directory.members(&key("large").ok_or("the id is valid")?).await?;
    assert_eq!(members.len(), LARGE);
    println!(
        "one audience of {LARGE}: {:.0} ms, {} KiB more memory, counted as {} KiB",
        started.elapsed().as_secs_f64() * 1_000.0,
        resident_kb().saturating_sub(before),
        members.bytes() / 1_024
    );
    let keys =
        (0..GROUPS).map(|n| key(&format!("g{n}"))).collect::<Option<Vec<_>>>().ok_or("ids are valid")?;
    for round in ["cold", "cached"] {
        let started = Instant::now();
        let found = join_all(keys.iter().map(|key| directory.members(key))).await;
        let members: usize =
            found.into_iter().map(|members| members.map_or(0, |members| members.len())).sum();
        assert_eq!(members, GROUPS * SMALL, "somebody is missing");
        let took = started.elapsed();
        println!("{GROUPS} {round} audiences of {SMALL} at once: {:.0} ms", took.as_secs_f64() * 1_000.0);
    }
    Ok(())
}

async fn fill(
    context: jetstream::Context,
    members: impl Iterator<Item = (String, usize)>,
) -> Result<(), Failed> {
    let writer = Arc::new(Writer::open(context).await?);
    let started = Instant::now();
    let rows = members.enumerate().filter_map(|(line, (group, user))| {
        let user = UserId::new(&format!("user-{user:011}")).ok()?;
        Some((line as u64, Row { of: key(&group)?, user, role: Role::Member }))
    });
    let results = write_all(&writer, 1, futures::stream::iter(rows));
    tokio::pin!(results);
    let mut written = 0_u64;
    while let Some(result) = results.next().await {
        result?;
        written += 1;
    }
    println!("{written} memberships written: {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn key(group: &str) -> Option<Key> {
    Key::new(Kind::Group, group)
}

/// Memory of this process in use; 0 where the system does not say.
fn resident_kb() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).map_or(0, |pages| pages * 4)
}
