//! Connects to NATS with the limits the gateway needs. One connection a process; every part shares it.

use std::time::Duration;

use serde::Deserialize;

/// How to reach NATS.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Server addresses, separated by commas, such as `nats://127.0.0.1:4222`.
    pub url: String,
    /// Credentials file (`.creds`) with a user JWT and seed.
    pub credentials: Option<std::path::PathBuf>,
    /// Name shown in the server's connection list.
    pub name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { url: "nats://127.0.0.1:4222".to_owned(), credentials: None, name: "fanfare".to_owned() }
    }
}

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The credentials file cannot be read.
    #[error("cannot read credentials {path}: {source}")]
    Credentials {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No server answered.
    #[error(
        "cannot connect to NATS at {url}: {source}; is nats-server running there, and are the credentials right?"
    )]
    Connect {
        /// The addresses tried.
        url: String,
        /// What the client said.
        source: async_nats::ConnectError,
    },
}

/// Messages a subscription may hold. Beyond it the client drops the newest, one event a drop; a burst of relayed
/// batches or key-value updates stays far below.
const SUBSCRIPTION_CAPACITY: usize = 64 * 1024;

/// Commands that may wait for the connection's writer.
const SENDER_CAPACITY: usize = 8_192;

/// Connects and waits for the first server. Later losses are repaired by the client in the background.
pub async fn connect(config: &Config) -> Result<async_nats::Client, ConnectError> {
    let mut options = async_nats::ConnectOptions::new()
        .name(&config.name)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .client_capacity(SENDER_CAPACITY)
        .ping_interval(Duration::from_secs(10))
        .event_callback(|event| async move { tracing::info!(%event, "NATS connection") });
    if let Some(path) = &config.credentials {
        options = options
            .credentials_file(path)
            .await
            .map_err(|source| ConnectError::Credentials { path: path.clone(), source })?;
    }
    options
        .connect(config.url.split(',').map(str::trim).collect::<Vec<_>>())
        .await
        .map_err(|source| ConnectError::Connect { url: config.url.clone(), source })
}
