//! Who this process is to NATS: one of five ways, or none.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use async_nats::{ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;

use super::{Config, ConnectError, Secret};

/// The way that a configuration chose.
#[derive(Debug)]
pub(super) enum Authentication<'a> {
    /// The server is told nothing, or sees a certificate.
    None,
    /// It stands in one of these addresses.
    Url(&'a str),
    Credentials(&'a Path),
    Nkey(&'a Path),
    Password(&'a str, Source<'a>),
    Token(Source<'a>),
}

/// Where a secret is.
#[derive(Debug)]
pub(super) enum Source<'a> {
    Here(&'a Secret),
    /// The key that names the file, and the file.
    File(&'static str, &'a Path),
}

impl Source<'_> {
    fn read(&self) -> Result<String, ConnectError> {
        match self {
            Self::Here(secret) => Ok(secret.reveal().to_owned()),
            // Whoever wrote the file with an editor or `echo` did not mean the end of its line.
            Self::File(key, path) => Ok(file(key, path)?.trim_end_matches(['\r', '\n']).to_owned()),
        }
    }
}

/// One or none of two keys.
fn source<'a>(
    [here, there]: [&'static str; 2],
    secret: Option<&'a Secret>,
    path: Option<&'a Path>,
) -> Result<Option<Source<'a>>, ConnectError> {
    match (secret, path) {
        (Some(_), Some(_)) => Err(ConnectError::Conflict(here, there)),
        (Some(secret), None) => Ok(Some(Source::Here(secret))),
        (None, path) => Ok(path.map(|path| Source::File(there, path))),
    }
}

impl<'a> Authentication<'a> {
    /// The one way of `config`; two of them, or half of one, are a mistake.
    pub(super) fn of(config: &'a Config) -> Result<Self, ConnectError> {
        let (password, token) = (
            source(
                ["nats.password", "nats.password_file"],
                config.password.as_ref(),
                config.password_file.as_deref(),
            )?,
            source(["nats.token", "nats.token_file"], config.token.as_ref(), config.token_file.as_deref())?,
        );
        let password = match (&config.user, password) {
            (Some(user), Some(password)) => Some(Self::Password(user, password)),
            (Some(_), None) => {
                return Err(ConnectError::Incomplete("nats.user", "nats.password or nats.password_file"));
            }
            (None, Some(Source::Here(_))) => {
                return Err(ConnectError::Incomplete("nats.password", "nats.user"));
            }
            (None, Some(Source::File(key, _))) => return Err(ConnectError::Incomplete(key, "nats.user")),
            (None, None) => None,
        };
        let ways = [
            ("nats.url with a user or token", config.url.contains('@').then_some(Self::Url(&config.url))),
            ("nats.credentials", config.credentials.as_deref().map(Self::Credentials)),
            ("nats.nkey", config.nkey.as_deref().map(Self::Nkey)),
            ("nats.user", password),
            ("nats.token", token.map(Self::Token)),
        ];
        let mut ways = ways.into_iter().filter_map(|(key, way)| Some((key, way?)));
        match (ways.next(), ways.next()) {
            (Some((one, _)), Some((other, _))) => Err(ConnectError::Conflict(one, other)),
            (way, _) => Ok(way.map_or(Self::None, |(_, way)| way)),
        }
    }

    /// Reads what it needs and puts it into `options`. Also says who that is, for messages.
    pub(super) fn apply(&self, options: ConnectOptions) -> Result<(ConnectOptions, String), ConnectError> {
        Ok(match self {
            Self::None => (options, "a user without a name".to_owned()),
            Self::Url(addresses) => in_address(addresses, options),
            Self::Credentials(path) => {
                let bad = |source| ConnectError::SecretFile {
                    key: "nats.credentials",
                    path: path.to_path_buf(),
                    source,
                };
                let options = options.credentials(&file("nats.credentials", path)?).map_err(bad)?;
                (options, format!("the user of {}", path.display()))
            }
            Self::Nkey(path) => {
                let seed = file("nats.nkey", path)?.trim().to_owned();
                let pair = nkeys::KeyPair::from_seed(&seed).ok();
                let Some(pair) = pair.filter(|pair| pair.key_pair_type() == nkeys::KeyPairType::User) else {
                    return Err(ConnectError::Seed(path.to_path_buf()));
                };
                (options.nkey(seed), format!("nkey {}", pair.public_key()))
            }
            Self::Password(user, password) => {
                (options.user_and_password((*user).to_owned(), password.read()?), format!("user {user:?}"))
            }
            Self::Token(token) => (options.token(token.read()?), "the holder of the token".to_owned()),
        })
    }
}

/// Takes the user and password, or the token, out of the first address that has them: the client reads addresses as places
/// and nothing else.
fn in_address(addresses: &str, options: ConnectOptions) -> (ConnectOptions, String) {
    let known = addresses.split(',').filter_map(|address| address.trim().parse::<ServerAddr>().ok());
    let Some(address) = known.into_iter().find(ServerAddr::has_user_pass) else {
        // An address that cannot be read: the client says so.
        return (options, "the user in nats.url".to_owned());
    };
    let decoded = |text: Option<&str>| percent_decode_str(text?).decode_utf8().ok().map(Cow::into_owned);
    let user = decoded(address.username()).unwrap_or_default();
    match decoded(address.password()) {
        Some(password) => {
            let who = format!("user {user:?} of nats.url");
            (options.user_and_password(user, password), who)
        }
        None => (options.token(user), "the holder of the token in nats.url".to_owned()),
    }
}

/// Reads a file with a secret.
fn file(key: &'static str, path: &Path) -> Result<String, ConnectError> {
    let failed = |source| ConnectError::SecretFile { key, path: path.to_path_buf(), source };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    if text.trim().is_empty() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it is empty")));
    }
    if is_readable_by_others(path) {
        tracing::warn!(path = %path.display(), "every user of this machine may read this secret: chmod 600");
    }
    Ok(text)
}

/// The group may read it: that is how a supervisor hands a secret to a service.
#[cfg(unix)]
fn is_readable_by_others(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
}

#[cfg(not(unix))]
fn is_readable_by_others(_: &Path) -> bool {
    false
}
