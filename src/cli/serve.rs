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
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let (terminate, interrupt) = (unix(SignalKind::terminate())?, unix(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, hangup: None })
    }

    /// Also SIGHUP, the end of the terminal, unless the command was started to outlive it.
    pub(super) fn with_hangup() -> std::io::Result<Self> {
        let hangup = if hangup_is_ignored() { None } else { Some(unix(SignalKind::hangup())?) };
        Ok(Self { hangup, ..Self::listen()? })
    }

    /// The next one, also when it came before the call.
    pub(super) async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether `nohup` started this process. Where the system has no such file, it counts as started without.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The first bit is the first signal, SIGHUP.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
