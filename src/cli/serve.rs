//! `fanfare serve`: the service itself, until a signal ends it.

use std::sync::Arc;

use anyhow::Context;

use crate::config::Config;
use crate::lifecycle::Parts;
use crate::telemetry::logs;

/// Serves until SIGTERM or SIGINT, then drains; a second signal ends it at once.
pub(super) async fn run(config: Config) -> anyhow::Result<()> {
    logs::install(&config.log);
    let catalog = Arc::new(config.catalog.load()?);
    let mut service = Parts::load(config, catalog).await?.start().await?;
    let failed = tokio::select! {
        result = signal() => result.context("wait for signals").map(|()| None)?,
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
        again = signal() => {
            again.context("wait for signals")?;
            anyhow::bail!("stopped by a second signal before the drain was over")
        }
    }
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn signal() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        result = tokio::signal::ctrl_c() => result,
    }
}
