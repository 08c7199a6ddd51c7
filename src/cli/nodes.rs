//! `fanfare nodes` and `fanfare sessions`: which nodes there are, and where a user is connected.

use std::process::ExitCode;

use async_nats::jetstream;
use clap::Args;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clock::Now;
use crate::cluster::entries;
use crate::cluster::entry::{Entry, Lease, Told};
use crate::id::UserId;
use crate::nats::watch::Change;
use crate::nats::{self, NODES, Watch};

/// Arguments of `fanfare nodes`.
#[derive(Debug, Args)]
pub(crate) struct Nodes {
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Arguments of `fanfare sessions`.
#[derive(Debug, Args)]
pub(crate) struct Sessions {
    /// The user.
    #[arg(value_parser = UserId::new)]
    user: UserId,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Shown {
    node: String,
    #[serde(flatten)]
    lease: Lease,
    renewed_ms: u64,
}

#[derive(Debug, Serialize)]
struct Session<'a> {
    node: &'a str,
    #[serde(flatten)]
    told: &'a Told,
}

/// Shows the nodes that have a lease.
pub(crate) async fn nodes(args: &Nodes, config: &nats::Config) -> anyhow::Result<ExitCode> {
    let context = jetstream::new(nats::connect(config).await?);
    let mut watch = Watch::open(&context, NODES).await?;
    let mut nodes = Vec::new();
    while let Some(write) = watch.read().await? {
        if let Change::Put(body) = write.change {
            // What another version wrote in another way is a node all the same.
            let lease = serde_json::from_slice(&body).unwrap_or_default();
            nodes.push(Shown { node: write.key, lease, renewed_ms: write.stored_ms });
        }
    }
    nodes.sort_by(|one, other| one.node.cmp(&other.node));
    if args.json {
        for node in &nodes {
            println!("{}", serde_json::to_string(node)?);
        }
    } else if nodes.is_empty() {
        println!("no nodes");
    } else {
        print_nodes(&nodes, Now::read().unix_ms);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_nodes(nodes: &[Shown], now_ms: u64) {
    let wide =
        |of: fn(&Shown) -> &str| nodes.iter().map(|node| of(node).len()).max().unwrap_or_default().max(4);
    let (id, name) = (wide(|node| &node.node), wide(|node| &node.lease.name));
    println!(
        "{:id$}  {:name$}  {:6}  {:9}  {:>15}  {:>5}  {:8}  {:>11}  renewed",
        "node", "name", "role", "version", "sessions", "cores", "draining", "uptime"
    );
    for Shown { node, lease, renewed_ms } in nodes {
        let Lease { name: called, role, version, sessions, sessions_max, cores, draining, started_ms } =
            lease;
        let sessions = format!("{sessions} of {sessions_max}");
        let cores = cores.map_or_else(|| "-".to_owned(), |cores| format!("{cores:.2}"));
        let draining = if *draining { "yes" } else { "no" };
        let (uptime, renewed) = (ago(*started_ms, now_ms), ago(*renewed_ms, now_ms));
        println!(
            "{node:id$}  {called:name$}  {role:6}  {version:9}  {sessions:>15}  {cores:>5}  {draining:8}  {uptime:>11}  {renewed} ago"
        );
    }
}

/// The time since then in its two largest units. A clock that is ahead of ours says nothing.
fn ago(then_ms: u64, now_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(then_ms) / 1_000;
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}

/// Shows where a user is connected.
pub(crate) async fn sessions(args: &Sessions, config: &nats::Config) -> anyhow::Result<ExitCode> {
    let client = nats::connect(config).await?;
    let entries = entries::of_user(&client, &args.user).await?.entries;
    let told = |entry: &'_ Entry| entry.sessions.len();
    if !args.json && entries.iter().map(told).sum::<usize>() == 0 {
        println!("no sessions");
        return Ok(ExitCode::SUCCESS);
    }
    let id = entries.iter().map(|entry| entry.node.as_str().len()).max().unwrap_or_default().max(4);
    let devices = entries.iter().flat_map(|entry| &entry.sessions).map(|told| told.device.as_str().len());
    let device = devices.max().unwrap_or_default().max(6);
    if !args.json {
        println!("{:id$}  {:device$}  {:10}  since", "node", "device", "platform");
    }
    for entry in &entries {
        for told in &entry.sessions {
            let node = entry.node.as_str();
            if args.json {
                println!("{}", serde_json::to_string(&Session { node, told })?);
            } else {
                let Told { device: called, platform, start, .. } = told;
                println!("{node:id$}  {:device$}  {platform:10}  {}", called.as_str(), moment(*start));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn moment(unix_ms: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp((unix_ms / 1_000) as i64).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| unix_ms.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_their_two_largest_units() {
        let told = |seconds: u64| ago(1_000, 1_000 + seconds * 1_000);
        assert_eq!([59, 61, 3_700, 90_000].map(told), ["59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
        assert_eq!(ago(5_000, 1_000), "0 s", "its clock is ahead");
    }
}
