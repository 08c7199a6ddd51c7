//! Logs to standard error: text for people, JSON for machines. Filtered by `RUST_LOG` or the configured level.

use std::io::IsTerminal;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// What libraries say at their usual levels is either ours to say (connections of NATS) or not an operator's business (a
/// client that vanished without a close). `RUST_LOG` shows it.
const LIBRARIES: &str = "async_nats=error,web_transport_quinn=error";

/// How to log.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Filter in the syntax of `RUST_LOG`, which wins when it is set: `info`, `fanfare=debug`.
    pub level: String,
    /// One JSON object a line instead of text.
    pub json: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), json: false }
    }
}

/// Installs the logger for the whole process. A second call changes nothing.
pub fn install(config: &Config) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{},{LIBRARIES}", config.level)));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    // Fails only when a logger is there already, which then stays.
    let _ = if config.json { builder.json().try_init() } else { builder.try_init() };
}
