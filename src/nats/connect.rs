//! Connects to NATS with the limits the gateway needs. One connection a process; every part shares it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::Event;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;

/// How to reach NATS.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Server addresses, separated by commas, such as `nats://127.0.0.1:4222`.
    pub url: String,
    /// Credentials file (`.creds`) with a user JWT and seed.
    pub credentials: Option<PathBuf>,
    /// Certificates in PEM that may have signed the server's. Absent: those of the system.
    pub tls_ca: Option<PathBuf>,
    /// This client's certificate chain in PEM, for servers that ask for one. Goes with `tls_key`.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key in PEM.
    pub tls_key: Option<PathBuf>,
    /// Fail rather than connect without TLS. Implied by `tls://` addresses and by each of the other TLS settings.
    pub tls_required: bool,
    /// Name shown in the server's connection list.
    pub name: String,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("url", &self.shown_url())
            .field("credentials", &self.credentials)
            .field("tls_ca", &self.tls_ca)
            .field("tls_certificate", &self.tls_certificate)
            .field("tls_key", &self.tls_key)
            .field("tls_required", &self.tls_required)
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
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            credentials: None,
            tls_ca: None,
            tls_certificate: None,
            tls_key: None,
            tls_required: false,
            name: "fanfare".to_owned(),
        }
    }
}

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The credentials file cannot be read.
    #[error("cannot read credentials {path}: {source}")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A certificate without a key, or a key without a certificate.
    #[error("nats.tls_certificate and nats.tls_key go together, and only {0} is set")]
    TlsPair(&'static str),
    /// A PEM file is missing or has not what it should.
    #[error("cannot use {key} {path}: {source}")]
    Pem {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: pem::Error,
    },
    /// No server answered.
    #[error(
        "cannot connect to NATS at {url}: {}; is nats-server running there, and are the credentials and TLS settings \
         right?",
        with_causes(source)
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

/// An error with what lies behind it: the client's own words for a failed handshake are `TLS error`.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let mut text = error.to_string();
    for cause in causes.map(ToString::to_string).filter(|cause| !cause.is_empty()) {
        // Many errors say what lies behind them, too.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Reads the PEM files once before the client does, which would fail with less to go by, or take a file without a
/// certificate for an empty list, and try again for ever.
fn check_tls(config: &Config) -> Result<(), ConnectError> {
    match (&config.tls_certificate, &config.tls_key) {
        (Some(_), None) => return Err(ConnectError::TlsPair("tls_certificate")),
        (None, Some(_)) => return Err(ConnectError::TlsPair("tls_key")),
        (None, None) | (Some(_), Some(_)) => {}
    }
    let certificates = |path: &Path| {
        let all: Vec<_> = CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?;
        if all.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(()) }
    };
    let key = |path: &Path| PrivateKeyDer::from_pem_file(path).map(|_| ());
    let check = |name, path: Option<&PathBuf>, read: &dyn Fn(&Path) -> Result<(), pem::Error>| {
        path.map_or(Ok(()), |path| {
            read(path).map_err(|source| ConnectError::Pem { key: name, path: path.clone(), source })
        })
    };
    check("nats.tls_ca", config.tls_ca.as_ref(), &certificates)?;
    check("nats.tls_certificate", config.tls_certificate.as_ref(), &certificates)?;
    check("nats.tls_key", config.tls_key.as_ref(), &key)
}

/// Connects and waits for the first server. Later losses are repaired by the client in the background.
pub async fn connect(config: &Config) -> Result<async_nats::Client, ConnectError> {
    check_tls(config)?;
    let mut options = async_nats::ConnectOptions::new()
        .name(&config.name)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .client_capacity(SENDER_CAPACITY)
        .ping_interval(Duration::from_secs(10))
        .event_callback(|event| async move {
            match event {
                Event::Connected => tracing::info!("connected to NATS"),
                Event::Disconnected => tracing::warn!("the connection to NATS is lost and is being repaired"),
                Event::Draining | Event::Closed => tracing::debug!(%event, "the connection to NATS ends"),
                event => tracing::warn!(%event, "NATS connection"),
            }
        });
    if let Some(path) = &config.credentials {
        options = options
            .credentials_file(path)
            .await
            .map_err(|source| ConnectError::Credentials { path: path.clone(), source })?;
    }
    if let Some(path) = &config.tls_ca {
        options = options.add_root_certificates(path.clone());
    }
    if let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    let tls = config.tls_required || config.tls_ca.is_some() || config.tls_certificate.is_some();
    options
        .require_tls(tls)
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

    #[test]
    fn tls_files_that_cannot_be_used_are_named_before_anything_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "no certificate").unwrap();
        let missing = folder.path().join("missing.pem");
        for path in [empty, missing] {
            let config = Config { tls_ca: Some(path.clone()), ..Config::default() };
            let error = check_tls(&config).expect_err("it cannot be used").to_string();
            assert!(
                error.starts_with("cannot use nats.tls_ca ") && error.contains(path.to_str().unwrap()),
                "{error}"
            );
        }
        let config = Config { tls_key: Some("key.pem".into()), ..Config::default() };
        assert!(matches!(check_tls(&config), Err(ConnectError::TlsPair("tls_key"))));
        assert!(check_tls(&Config::default()).is_ok());
    }
}
