//! `fanfare serve`: the service itself, until a signal ends it.

use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal as unix};

use crate::cluster::Role;
use crate::config::Config;
use crate::lifecycle::{Parts, Service};
use crate::nats;
use crate::telemetry::logs;

/// Arguments of `fanfare serve`.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// What this node does, where both parts are to be scaled apart: `worker` pulls notifications and serves no devices,
    /// `edge` serves devices and pulls none.
    #[arg(long, value_enum, default_value_t)]
    role: Role,
}

impl Serve {
    /// What it connects to NATS for.
    pub(super) fn role(&self) -> nats::Role {
        match self.role {
            Role::All => nats::Role::All,
            Role::Worker => nats::Role::Worker,
            Role::Edge => nats::Role::Edge,
        }
    }
}

/// Serves until SIGTERM or SIGINT, then drains; a second signal ends it at once.
pub(super) async fn run(args: &Serve, config: Config) -> anyhow::Result<()> {
    logs::install(&config.log);
    let catalog = Arc::new(config.catalog.load()?);
    let service = Parts::load(config, catalog, args.role).await?.start().await?;
    until_stopped(service).await
}

/// Lets the service run until SIGTERM, SIGINT or the end of one of its parts, which is an error, and drains it. A second
/// signal ends it at once.
pub(super) async fn until_stopped(mut service: Service) -> anyhow::Result<()> {
    // Listened to once and for both: a signal that comes between two listeners would be heard by none.
    let mut signals = Signals::listen().context("listen for signals")?;
    let failed = tokio::select! {
        () = signals.next() => None,
        part = service.failed() => Some(part),
    };
    if let Some(part) = failed {
        tracing::error!(part, "a part of the service has ended before its time: the service stops");
    }
    tokio::select! {
        () = service.stop() => match failed {
            Some(part) => anyhow::bail!("the {part} has ended before its time"),
            None => Ok(()),
        },
        () = signals.next() => anyhow::bail!("stopped by a second signal before the drain was over"),
    }
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn signal() -> std::io::Result<()> {
    Signals::listen()?.next().await;
    Ok(())
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: unix(SignalKind::terminate())?, interrupt: unix(SignalKind::interrupt())? })
    }

    /// The next one, also when it came before the call.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
