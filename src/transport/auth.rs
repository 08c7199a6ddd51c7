//! Tokens: JWTs checked against keys from files.
//!
//! A key names its one algorithm, so a token cannot choose how it is checked; `none` is no algorithm here.

use std::path::PathBuf;

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

use crate::clock::Now;
use crate::id::UserId;
use crate::session::hello::{Claims, TokenError};

/// Milliseconds a token is accepted after its `exp`, for clocks that differ a little between machines.
const LEEWAY_MS: u64 = 5_000;

/// Milliseconds that an `iat` may be ahead, for the same reason.
const AHEAD_MS_MAX: u64 = 60_000;

/// Which tokens are accepted.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Keys that may have signed a token. At least one is needed to serve.
    pub keys: Vec<Key>,
    /// `aud` that a token must have; empty checks none.
    pub audience: Vec<String>,
}

/// One key file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// `HS256` (the file is the secret), `EdDSA`, `ES256` or `RS256` (the file is the public key in PEM).
    pub algorithm: KeyAlgorithm,
    /// The key's file.
    pub file: PathBuf,
    /// Key id: a token with another `kid` is not checked against this key.
    #[serde(default)]
    pub kid: Option<String>,
}

/// The algorithms a key can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum KeyAlgorithm {
    /// HMAC with SHA-256.
    HS256,
    /// Ed25519.
    EdDSA,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RS256,
}

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No key is configured.
    #[error("no token key: set auth.keys = [{{ algorithm = \"ES256\", file = \"public.pem\" }}]")]
    NoKey,
    /// A key file cannot be read.
    #[error("cannot read token key {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A key file has no key of its algorithm.
    #[error("token key {path} is no {algorithm:?} key: {source}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What was expected.
        algorithm: KeyAlgorithm,
        /// What the parser said.
        source: jsonwebtoken::errors::Error,
    },
    /// An HMAC secret that can be guessed.
    #[error("token key {path} has {bytes} bytes, an HS256 secret needs at least 32")]
    ShortSecret {
        /// The file.
        path: PathBuf,
        /// Its length without white space at the ends.
        bytes: usize,
    },
}

/// Checks tokens. Immutable; shared by every handshake.
pub struct Verifier {
    keys: Vec<(Algorithm, Option<String>, DecodingKey)>,
    audience: Vec<String>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct RawClaims {
    sub: String,
    exp: f64,
    iat: f64,
    device_id: Option<String>,
    platform: Option<String>,
}

impl Verifier {
    /// Reads the key files.
    pub fn load(config: &Config) -> Result<Self, AuthError> {
        if config.keys.is_empty() {
            return Err(AuthError::NoKey);
        }
        let keys = config.keys.iter().map(load_key).collect::<Result<_, _>>()?;
        Ok(Self { keys, audience: config.audience.clone() })
    }

    /// A verifier with one HS256 secret, for development and tests.
    pub fn with_secret(secret: &[u8]) -> Self {
        Self { keys: vec![(Algorithm::HS256, None, DecodingKey::from_secret(secret))], audience: Vec::new() }
    }

    /// Checks signature, times and claims of `token`.
    pub fn verify(&self, token: &str, now: Now) -> Result<Claims, TokenError> {
        let invalid = |why: &dyn std::fmt::Display| TokenError::Invalid(why.to_string());
        let header = jsonwebtoken::decode_header(token).map_err(|error| invalid(&error))?;
        let mut refusal = invalid(&"no key for its algorithm and kid");
        for (algorithm, kid, key) in &self.keys {
            let other_kid = kid.is_some() && header.kid.is_some() && *kid != header.kid;
            if *algorithm != header.alg || other_kid {
                continue;
            }
            match jsonwebtoken::decode::<RawClaims>(token, key, &self.validation(*algorithm)) {
                Ok(token) => return claims(token.claims, now),
                Err(error) => refusal = invalid(&error),
            }
        }
        Err(refusal)
    }

    /// `exp` is compared in [`claims`], with the caller's clock.
    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.set_required_spec_claims(&["exp", "sub"]);
        validation.validate_exp = false;
        validation.validate_aud = !self.audience.is_empty();
        if validation.validate_aud {
            validation.set_audience(&self.audience);
            validation.required_spec_claims.insert("aud".to_owned());
        }
        validation
    }
}

fn claims(raw: RawClaims, now: Now) -> Result<Claims, TokenError> {
    let user = UserId::new(&raw.sub).map_err(|error| TokenError::Invalid(format!("sub: {error}")))?;
    let (issued_ms, expires_ms) = (unix_ms(raw.iat), unix_ms(raw.exp).saturating_add(LEEWAY_MS));
    if expires_ms <= now.unix_ms {
        return Err(TokenError::Expired);
    }
    if issued_ms > now.unix_ms + AHEAD_MS_MAX {
        // Such a token would outlive any revocation.
        return Err(TokenError::Invalid("iat is in the future".to_owned()));
    }
    Ok(Claims { user, issued_ms, expires_ms, device: raw.device_id, platform: raw.platform })
}

/// A `NumericDate` in milliseconds. The conversion saturates, and what is no number counts as 0.
fn unix_ms(date: f64) -> u64 {
    (date * 1_000.0) as u64
}

fn load_key(key: &Key) -> Result<(Algorithm, Option<String>, DecodingKey), AuthError> {
    let bytes =
        std::fs::read(&key.file).map_err(|source| AuthError::Read { path: key.file.clone(), source })?;
    let (algorithm, parsed) = match key.algorithm {
        KeyAlgorithm::HS256 => {
            let secret = bytes.trim_ascii();
            if secret.len() < 32 {
                return Err(AuthError::ShortSecret { path: key.file.clone(), bytes: secret.len() });
            }
            (Algorithm::HS256, Ok(DecodingKey::from_secret(secret)))
        }
        KeyAlgorithm::EdDSA => (Algorithm::EdDSA, DecodingKey::from_ed_pem(&bytes)),
        KeyAlgorithm::ES256 => (Algorithm::ES256, DecodingKey::from_ec_pem(&bytes)),
        KeyAlgorithm::RS256 => (Algorithm::RS256, DecodingKey::from_rsa_pem(&bytes)),
    };
    let parsed = parsed.map_err(|source| AuthError::Key {
        path: key.file.clone(),
        algorithm: key.algorithm,
        source,
    })?;
    Ok((algorithm, key.kid.clone(), parsed))
}

/// Signs a token for `user` with an HS256 secret: for development and tests.
pub fn sign_hs256(secret: &[u8], user: &UserId, now: Now, ttl: std::time::Duration) -> String {
    let issued = now.unix_ms / 1_000;
    let claims = serde_json::json!({ "sub": user, "iat": issued, "exp": issued + ttl.as_secs() });
    let header = jsonwebtoken::Header::new(Algorithm::HS256);
    jsonwebtoken::encode(&header, &claims, &jsonwebtoken::EncodingKey::from_secret(secret))
        .expect("HS256 signs any JSON")
}
