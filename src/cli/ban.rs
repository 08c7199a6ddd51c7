//! `fanfare ban`: bans users, lifts bans and shows who is banned.

use std::process::ExitCode;

use anyhow::bail;
use async_nats::jetstream;
use clap::{Args, Subcommand};

use crate::clock::Now;
use crate::control::ban::{self, Asked};
use crate::control::{Ban, Writer};
use crate::id::UserId;
use crate::nats;

/// Arguments of `fanfare ban`.
#[derive(Debug, Args)]
pub(crate) struct Bans {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bans users: every node ends their sessions and refuses new ones.
    Add {
        /// The users.
        #[arg(required = true, value_parser = UserId::new)]
        users: Vec<UserId>,
        /// Seconds the ban lasts; for ever without it.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        for_s: Option<u64>,
    },
    /// Lifts bans.
    Remove {
        /// The users.
        #[arg(required = true, value_parser = UserId::new)]
        users: Vec<UserId>,
    },
    /// Shows who is banned, one a line with the end in Unix seconds.
    List,
}

/// Runs the command against the NATS of `config`.
pub(crate) async fn run(bans: &Bans, config: &nats::Config) -> anyhow::Result<ExitCode> {
    let client = nats::connect(config).await?;
    let writer = Writer::open(jetstream::new(client)).await?;
    let now_ms = Now::read().unix_ms;
    let v = now_ms * 1_000;
    let (users, ban) = match &bans.action {
        Action::List => return list(&writer, now_ms).await,
        Action::Add { users, for_s } => {
            let end = for_s.map(|seconds| (now_ms / 1_000).saturating_add(seconds));
            let until = match ban::asked(for_s.is_none(), end, now_ms) {
                Asked::Until(until) => until,
                Asked::Over | Asked::Nothing => bail!("--for-s is at least a second"),
            };
            (users, Ban::until(v, until))
        }
        Action::Remove { users } => (users, Ban::lifted(v)),
    };
    let mut written = 0;
    for user in users {
        written += usize::from(writer.ban(user, &ban, now_ms).await?);
    }
    println!("{written} of {} users written", users.len());
    if written < users.len() {
        bail!("{} users have a newer state, which stays", users.len() - written);
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(writer: &Writer, now_ms: u64) -> anyhow::Result<ExitCode> {
    for (user, ban) in writer.bans(now_ms).await? {
        match ban.until_ms {
            Some(until) => println!("{user}\t{}", until / 1_000),
            None => println!("{user}\tfor ever"),
        }
    }
    Ok(ExitCode::SUCCESS)
}
