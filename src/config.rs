//! Joins the sections' configuration: file over built-in defaults, environment over files, flags over both.

use std::path::PathBuf;

use figment::Figment;
use figment::providers::{Env, Format, Toml};
use serde::Deserialize;

/// The whole configuration. Each section's type lives beside the code that uses it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The catalog of events.
    pub catalog: crate::catalog::Config,
    /// The connection to NATS.
    pub nats: crate::nats::Config,
    /// The QUIC endpoint and its sessions.
    pub edge: crate::transport::Config,
    /// Which tokens are accepted.
    pub auth: crate::transport::auth::Config,
    /// The worker pool.
    pub worker: crate::worker::Config,
    /// The admin port.
    pub admin: crate::telemetry::admin::Config,
    /// Logs.
    pub log: crate::telemetry::logs::Config,
}

/// Why a configuration was refused; names the file or variable and the key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that was named does not exist.
    #[error("configuration file {0} does not exist")]
    Missing(PathBuf),
    /// A value that cannot be used.
    #[error("configuration: {0}")]
    Invalid(Box<figment::Error>),
}

/// Loads `files` in order (later wins), then `FANFARE__SECTION__KEY` variables.
pub fn load(files: &[PathBuf]) -> Result<Config, ConfigError> {
    let mut figment = Figment::new();
    for file in files {
        if !file.exists() {
            return Err(ConfigError::Missing(file.clone()));
        }
        figment = figment.merge(Toml::file_exact(file));
    }
    figment
        .merge(Env::prefixed("FANFARE__").split("__"))
        .extract()
        .map_err(|error| ConfigError::Invalid(error.into()))
}
