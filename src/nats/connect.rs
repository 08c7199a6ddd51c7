//! Connects to NATS with the limits the gateway needs. One connection a process; every part shares it.

use std::fmt;
use std::time::Duration;

use async_nats::Event;
use serde::Deserialize;

/// How to reach NATS.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Server addresses, separated by commas, such as `nats://127.0.0.1:4222`.
    pub url: String,
    /// Credentials file (`.creds`) with a user JWT and seed.
    pub credentials: Option<std::path::PathBuf>,
    /// Name shown in the server's connection list.
    pub name: String,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("url", &self.shown_url())
            .field("credentials", &self.credentials)
            .field("name", &self.name)
            .finish()
    }
}

impl Config {
    /// The addresses without what stands before an `@`: a password or a token.
    fn shown_url(&self) -> String {
        let shown = |address: &str| match (address.split_once("://"), address.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
            (None, Some((_, host))) => format!("…@{host}"),
            (_, None) => address.to_owned(),
        };
        self.url.split(',').map(str::trim).map(shown).collect::<Vec<_>>().join(",")
    }
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
        .event_callback(|event| async move {
            match event {
                Event::Connected => tracing::info!("connected to NATS"),
                Event::Disconnected => tracing::warn!("the connection to NATS is lost and is being repaired"),
                event => tracing::warn!(%event, "NATS connection"),
            }
        });
    if let Some(path) = &config.credentials {
        options = options
            .credentials_file(path)
            .await
            .map_err(|source| ConnectError::Credentials { path: path.clone(), source })?;
    }
    options
        .connect(config.url.split(',').map(str::trim).collect::<Vec<_>>())
        .await
        .map_err(|source| ConnectError::Connect { url: config.shown_url(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_shown() {
        let url = "nats://ann:secret@a:4222, tls://b:4222,token@c".to_owned();
        let config = Config { url, ..Config::default() };
        assert_eq!(config.shown_url(), "nats://…@a:4222,tls://b:4222,…@c");
        assert!(!format!("{config:?}").contains("secret"));
    }
}
