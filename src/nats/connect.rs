//! Connects to NATS with the limits the gateway needs. One connection a process; every part shares it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{Event, ServerError};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::authentication::Authentication;
use super::context::ContextError;
use super::denial::Inbox;
use super::{Config, denial};
use crate::causes::with_causes;

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The context of the `nats` command cannot be used.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A context says everything.
    #[error(
        "nats.context says where NATS is and who this is there: besides it only nats.name may be set; \
         --nats URL goes over its address"
    )]
    ContextAndMore,
    /// Two keys of which there can be one.
    #[error("{0} and {1} are both set: choose one")]
    Conflict(&'static str, &'static str),
    /// Half of what is needed.
    #[error("{0} needs {1}")]
    Incomplete(&'static str, &'static str),
    /// A prefix that no subject can begin with.
    #[error(
        "nats.inbox_prefix {0:?} cannot begin a subject: tokens without wildcards, with dots between them"
    )]
    InboxPrefix(String),
    /// A file with a secret cannot be used.
    #[error("cannot use {key} {path}: {source}")]
    SecretFile {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system or the parser said.
        source: std::io::Error,
    },
    /// The file of an nkey holds something else.
    #[error(
        "cannot use nats.nkey {0}: it must hold the seed of a user, which begins with SU, and nothing else"
    )]
    Seed(PathBuf),
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
    /// A certificate and the key of another one.
    #[error("nats.tls_key {key} does not belong to nats.tls_certificate {certificate}: {source}")]
    TlsMismatch {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
        /// What the TLS library said.
        source: rustls::Error,
    },
    /// No server answered.
    #[error(
        "cannot connect to NATS at {url} as {who}: {}; is nats-server running there, does it know this user, and are \
         the TLS settings right (a server with handshake_first needs nats.tls_first = true)?",
        with_causes(source)
    )]
    Connect {
        /// The addresses tried.
        url: String,
        /// Who this process said it was.
        who: String,
        /// What the client said.
        source: async_nats::ConnectError,
    },
}

/// Messages a subscription may hold. Beyond it the client drops the newest, one event a drop; a burst of relayed
/// batches or key-value updates stays far below.
const SUBSCRIPTION_CAPACITY: usize = 64 * 1024;

/// Commands that may wait for the connection's writer.
const SENDER_CAPACITY: usize = 8_192;

/// Reads the PEM files once before the client does, which would fail with less to go by, or take a file without a
/// certificate for an empty list, and try again for ever.
fn check_tls(config: &Config) -> Result<(), ConnectError> {
    if let Some(path) = &config.tls_ca {
        certificates(path).map_err(bad("nats.tls_ca", path))?;
    }
    let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) else { return Ok(()) };
    let chain = certificates(certificate).map_err(bad("nats.tls_certificate", certificate))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(bad("nats.tls_key", key))?;
    match CertifiedKey::from_der(chain, secret, &rustls::crypto::ring::default_provider()) {
        Ok(_) => Ok(()),
        Err(source) => {
            Err(ConnectError::TlsMismatch { certificate: certificate.clone(), key: key.clone(), source })
        }
    }
}

/// The certificates of a file; none is an error.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    let all: Vec<_> = CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?;
    if all.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(all) }
}

fn bad(key: &'static str, path: &Path) -> impl FnOnce(pem::Error) -> ConnectError {
    let path = path.to_owned();
    move |source| ConnectError::Pem { key, path, source }
}

/// Connects and waits for the first server. Later losses are repaired by the client in the background.
pub async fn connect(config: &Config) -> Result<async_nats::Client, ConnectError> {
    let config = config.clone().resolved()?;
    check_tls(&config)?;
    let inbox = config.inbox();
    let options = async_nats::ConnectOptions::new()
        .name(&config.name)
        .custom_inbox_prefix(&inbox.prefix)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .client_capacity(SENDER_CAPACITY)
        .ping_interval(Duration::from_secs(10));
    let (mut options, who) = Authentication::of(&config)?.apply(options)?;
    if let Some(path) = &config.tls_ca {
        options = options.add_root_certificates(path.clone());
    }
    if let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    let tls = config.tls_required || config.tls_ca.is_some() || config.tls_certificate.is_some();
    options = options.require_tls(tls);
    if config.tls_first {
        options = options.tls_first();
    }
    let known_as = who.clone();
    options
        .event_callback(move |event| {
            tell(&event, &known_as, &inbox);
            std::future::ready(())
        })
        .connect(config.url.split(',').map(str::trim).collect::<Vec<_>>())
        .await
        .map_err(|source| ConnectError::Connect { url: config.shown_url(), who, source })
}

/// Logs what happens to the connection.
fn tell(event: &Event, who: &str, inbox: &Inbox) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => tracing::warn!("the connection to NATS is lost and is being repaired"),
        Event::Draining | Event::Closed => tracing::debug!(%event, "the connection to NATS ends"),
        Event::ServerError(ServerError::Other(said)) if denial::note(said, who, inbox) => {}
        event => tracing::warn!(%event, "NATS connection"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(check_tls(&Config::default()).is_ok());
    }

    #[test]
    fn a_key_of_another_certificate_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| {
            let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
            let path = |end: &str| folder.path().join(format!("{name}.{end}"));
            std::fs::write(path("pem"), made.cert.pem()).unwrap();
            std::fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
            (path("pem"), path("key"))
        });
        let config = |certificate: &PathBuf, key: &PathBuf| Config {
            tls_certificate: Some(certificate.clone()),
            tls_key: Some(key.clone()),
            ..Config::default()
        };
        assert!(check_tls(&config(&one.0, &one.1)).is_ok());
        let error = check_tls(&config(&one.0, &other.1)).expect_err("they do not match").to_string();
        for part in ["nats.tls_key", "other.key does not belong to nats.tls_certificate", "one.pem"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
