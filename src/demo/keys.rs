//! What a node that is a process of its own is given in its folder: a certificate for loopback, its key, and the secret of
//! tokens.

use std::path::Path;

/// The certificate's file, in PEM.
pub const CERTIFICATE: &str = "certificate.pem";
/// The file of its key, in PEM.
pub const KEY: &str = "key.pem";

/// The lines of a configuration that name the files, for a node that runs in their folder.
pub(crate) const SETTINGS: &str = r#"auth.keys = [{ algorithm = "HS256", file = "secret" }]
edge.tls = { certificate = "certificate.pem", key = "key.pem" }"#;

/// Days a browser accepts a certificate by its hash, less one for clocks.
const CERTIFICATE_DAYS: i64 = 13;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// No certificate.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A file.
    #[error("cannot write the keys of a node: {0}")]
    Write(#[from] std::io::Error),
}

/// Writes the three files.
pub(crate) fn write(folder: &Path, secret: &[u8]) -> Result<(), KeysError> {
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut params = rcgen::CertificateParams::new(names)?;
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::hours(1);
    params.not_after = params.not_before + time::Duration::days(CERTIFICATE_DAYS);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    std::fs::write(folder.join(CERTIFICATE), certificate.pem())?;
    std::fs::write(folder.join(KEY), key.serialize_pem())?;
    Ok(std::fs::write(folder.join("secret"), secret)?)
}
