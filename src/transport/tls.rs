//! TLS: certificates from files, or a fresh one for development.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;

/// ALPN of HTTP/3, which carries WebTransport.
pub(super) const ALPN_H3: &[u8] = b"h3";
/// ALPN of the same frames on bare QUIC.
pub(super) const ALPN_BARE: &[u8] = b"fanfare/1";

/// Browsers accept a certificate by its hash only when it is valid for at most 14 days; one day is kept for clocks.
const DEVELOPMENT_DAYS: i64 = 13;

/// Where the certificate is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Certificate chain in PEM.
    pub certificate: PathBuf,
    /// Private key in PEM.
    pub key: PathBuf,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file is missing or has not what it should.
    #[error("cannot use {what} {path}: {source}")]
    Pem {
        /// Certificate or key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not fit together, or are of a kind that is not supported.
    #[error("cannot use the certificate and key: {0}")]
    Rustls(#[from] rustls::Error),
    /// No development certificate could be made.
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
}

/// A certificate chain with its key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads both PEM files.
    pub fn load(config: &Config) -> Result<Self, TlsError> {
        let pem = |what, path: &PathBuf| {
            let path = path.clone();
            move |source| TlsError::Pem { what, path, source }
        };
        let chain = CertificateDer::pem_file_iter(&config.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(pem("certificate", &config.certificate))?;
        let key = PrivateKeyDer::from_pem_file(&config.key).map_err(pem("key", &config.key))?;
        Ok(Self { chain, key })
    }

    /// Makes a P-256 certificate for localhost and 127.0.0.1 that a browser accepts by its hash.
    pub fn development() -> Result<Self, TlsError> {
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let mut params = rcgen::CertificateParams::new(names)?;
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::hours(1);
        params.not_after = params.not_before + time::Duration::days(DEVELOPMENT_DAYS);
        params.distinguished_name.push(rcgen::DnType::CommonName, "fanfare development");
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(Self { chain: vec![certificate.der().clone()], key })
    }

    /// SHA-256 of the first certificate, as `serverCertificateHashes` wants it.
    pub fn sha256(&self) -> [u8; 32] {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.chain[0]);
        digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    pub(crate) fn server_config(self) -> Result<rustls::ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(self.chain, self.key)?;
        config.alpn_protocols = vec![ALPN_H3.to_vec(), ALPN_BARE.to_vec()];
        // A resumed session would save a signature but costs memory a session, and 0-RTT is not offered.
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}
