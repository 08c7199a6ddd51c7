//! `fanfare audience`: shows and changes the members of groups, conversations, calls and followers.

mod checkpoint;
mod import;
mod lines;

use std::process::ExitCode;

use anyhow::{Context, bail};
use async_nats::jetstream;
use clap::{Args, Subcommand, ValueEnum};

use crate::catalog::{Kind, Role};
use crate::clock::Now;
use crate::directory::{Change, Key, Writer};
use crate::id::UserId;
use crate::nats;

/// Arguments of `fanfare audience`.
#[derive(Debug, Args)]
pub(crate) struct Audience {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Adds users, or changes the role of those who are members already.
    Add {
        #[command(flatten)]
        of: Of,
        /// The users.
        #[arg(required = true, value_parser = UserId::new)]
        users: Vec<UserId>,
        /// Their role.
        #[arg(long, value_enum, default_value_t)]
        role: RoleName,
    },
    /// Removes users.
    Remove {
        #[command(flatten)]
        of: Of,
        /// The users.
        #[arg(required = true, value_parser = UserId::new)]
        users: Vec<UserId>,
    },
    /// Shows the members, one a line with the role.
    List {
        #[command(flatten)]
        of: Of,
    },
    /// Removes the keys of those who belonged to a set that is gone, 1,000 a second. The gateway does so for groups that
    /// events disband; this is for those whose end was written by hand or went to the dead letters.
    Sweep {
        #[command(flatten)]
        of: Of,
    },
    /// Brings very many memberships from a file, such as those a shop has when it begins with Fanfare. What services
    /// published since the import began wins over it.
    Import(import::Import),
}

#[derive(Debug, Args)]
struct Of {
    /// What kind of audience.
    kind: KindName,
    /// Which one.
    #[arg(value_parser = audience_id)]
    id: String,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum RoleName {
    Owner,
    Admin,
    #[default]
    Member,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Owner => Self::Owner,
            RoleName::Admin => Self::Admin,
            RoleName::Member => Self::Member,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindName {
    Group,
    Conversation,
    Call,
    Followers,
}

impl Of {
    fn key(&self) -> anyhow::Result<Key> {
        let kind = match self.kind {
            KindName::Group => Kind::Group,
            KindName::Conversation => Kind::Conversation,
            KindName::Call => Kind::Call,
            KindName::Followers => Kind::Followers,
        };
        Key::new(kind, &self.id).context(crate::id::InvalidId)
    }
}

fn audience_id(text: &str) -> Result<String, crate::id::InvalidId> {
    if crate::id::is_valid(text) { Ok(text.to_owned()) } else { Err(crate::id::InvalidId) }
}

/// Runs the command against the NATS of `config`.
pub(crate) async fn run(audience: &Audience, config: &nats::Config) -> anyhow::Result<ExitCode> {
    let (of, change) = match &audience.action {
        Action::Add { of, users, role } => (of, Some((users, Some(Role::from(*role))))),
        Action::Remove { of, users } => (of, Some((users, None))),
        Action::List { of } => (of, None),
        Action::Sweep { of } => return sweep(of, config).await,
        Action::Import(args) => return import::run(args, config).await,
    };
    let key = of.key()?;
    let client = nats::connect(config).await?;
    let writer = Writer::open(jetstream::new(client)).await?;
    let Some((users, role)) = change else { return list(&writer, &key).await };
    let v = Now::read().unix_ms * 1_000;
    let asked = users.len();
    let mut changed = 0;
    for user in users {
        let written = writer
            .write(&key, &Change::Member { user: user.clone(), role, v })
            .await
            .with_context(|| format!("after {changed} of {asked} users; the command can be repeated"))?;
        changed += usize::from(written);
    }
    println!("{changed} of {asked} users written");
    if changed < asked {
        bail!("{} users have a newer state, which stays", asked - changed);
    }
    Ok(ExitCode::SUCCESS)
}

async fn sweep(of: &Of, config: &nats::Config) -> anyhow::Result<ExitCode> {
    let key = of.key()?;
    let client = nats::connect(config).await?;
    let writer = Writer::open(jetstream::new(client)).await?;
    let swept = writer.sweep(&key).await.context("some may be removed; the command can be repeated")?;
    println!("{swept} members removed that {} had before its end", key.header());
    Ok(ExitCode::SUCCESS)
}

async fn list(writer: &Writer, key: &Key) -> anyhow::Result<ExitCode> {
    let members = writer.read(key).await?;
    if members.is_unknown() {
        bail!("nobody ever wrote the members of {}", key.header());
    }
    if let Some(group) = members.alias() {
        println!("another name of group.{group}");
    }
    for (user, role) in members.iter() {
        let role = match role {
            Role::Owner => "owner",
            Role::Admin => "admin",
            Role::Member => "member",
        };
        println!("{user}\t{role}");
    }
    Ok(ExitCode::SUCCESS)
}
