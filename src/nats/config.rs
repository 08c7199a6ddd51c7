//! Section `nats` of the configuration: where NATS is and who this process is there. Nothing is read from files here but
//! a context of the `nats` command; what cannot go together is refused before anything is tried.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use super::authentication::Authentication;
use super::denial::Inbox;
use super::{ConnectError, Role, Secret, context};

/// How to reach NATS.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Server addresses, separated by commas, such as `nats://127.0.0.1:4222`.
    pub url: String,
    /// A context of the `nats` command instead of everything else here but `name`; empty for the selected one.
    pub context: Option<String>,
    /// Credentials file (`.creds`) with a user JWT and seed.
    pub credentials: Option<PathBuf>,
    /// File with the seed of a user's nkey (`SU…`).
    pub nkey: Option<PathBuf>,
    /// User name. Goes with a password.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
    /// Token.
    pub token: Option<Secret>,
    /// File with the token.
    pub token_file: Option<PathBuf>,
    /// Certificates in PEM that may have signed the server's. Absent: those of the system.
    pub tls_ca: Option<PathBuf>,
    /// This client's certificate chain in PEM, for servers that ask for one. Goes with `tls_key`.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key in PEM.
    pub tls_key: Option<PathBuf>,
    /// Fail rather than connect without TLS. Implied by `tls://` addresses and by each of the other TLS settings.
    pub tls_required: bool,
    /// Begin with TLS before the server has said anything, for servers with `handshake_first`.
    pub tls_first: bool,
    /// What the subjects on which answers come begin with. Absent: the role's own.
    pub inbox_prefix: Option<String>,
    /// Name shown in the server's connection list.
    pub name: String,
    /// What the connection is for. Said by the program, not by a file.
    #[serde(skip)]
    pub role: Option<Role>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            context: None,
            credentials: None,
            nkey: None,
            user: None,
            password: None,
            password_file: None,
            token: None,
            token_file: None,
            tls_ca: None,
            tls_certificate: None,
            tls_key: None,
            tls_required: false,
            tls_first: false,
            inbox_prefix: None,
            name: "fanfare".to_owned(),
            role: None,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("url", &self.shown_url())
            .field("context", &self.context)
            .field("credentials", &self.credentials)
            .field("nkey", &self.nkey)
            .field("user", &self.user)
            .field("password", &self.password)
            .field("password_file", &self.password_file)
            .field("token", &self.token)
            .field("token_file", &self.token_file)
            .field("tls_ca", &self.tls_ca)
            .field("tls_certificate", &self.tls_certificate)
            .field("tls_key", &self.tls_key)
            .field("tls_required", &self.tls_required)
            .field("tls_first", &self.tls_first)
            .field("inbox_prefix", &self.inbox_prefix)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The same with what its context says instead of the context. Refuses what does not go together.
    pub fn resolved(mut self) -> Result<Self, ConnectError> {
        if let Some(context) = self.context.take() {
            let Self { name, role, .. } = &self;
            let rest = Self { name: name.clone(), role: role.clone(), ..Self::default() };
            if self != rest {
                return Err(ConnectError::ContextAndMore);
            }
            self = Self { name: rest.name, role: rest.role, ..context::read(&context)? };
        }
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<(), ConnectError> {
        Authentication::of(self)?;
        match (&self.tls_certificate, &self.tls_key) {
            (Some(_), None) => return Err(ConnectError::TlsPair("tls_certificate")),
            (None, Some(_)) => return Err(ConnectError::TlsPair("tls_key")),
            (None, None) | (Some(_), Some(_)) => {}
        }
        match &self.inbox_prefix {
            Some(prefix) if !is_subject(prefix) => Err(ConnectError::InboxPrefix(prefix.clone())),
            _ => Ok(()),
        }
    }

    /// What the subjects on which answers come begin with.
    pub(super) fn inbox(&self) -> Inbox {
        match (&self.inbox_prefix, &self.role) {
            (Some(prefix), _) => Inbox { prefix: prefix.clone(), role: None },
            (None, Some(role)) => Inbox { prefix: role.inbox_prefix(), role: Some(role.clone()) },
            (None, None) => Inbox { prefix: "_INBOX".to_owned(), role: None },
        }
    }

    /// The addresses without what stands before an `@`: a password or a token.
    pub(super) fn shown_url(&self) -> String {
        let shown = |address: &str| match (address.split_once("://"), address.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
            (None, Some((_, host))) => format!("…@{host}"),
            (_, None) => address.to_owned(),
        };
        self.url.split(',').map(str::trim).map(shown).collect::<Vec<_>>().join(",")
    }
}

/// Tokens without wildcards.
fn is_subject(text: &str) -> bool {
    let token = |token: &str| {
        !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '*' | '>'))
    };
    text.split('.').all(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_shown() {
        let url = "nats://ann:secret@a:4222, tls://b:4222,token@c".to_owned();
        let config = Config {
            url,
            password: Some(Secret::new("secret")),
            token: Some(Secret::new("secret")),
            ..Config::default()
        };
        assert_eq!(config.shown_url(), "nats://…@a:4222,tls://b:4222,…@c");
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn what_does_not_go_together_is_refused_by_name() {
        let refused = |config: Config, words: &str| {
            let error = config.resolved().expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        };
        let base = Config::default();
        let user = Config { user: Some("u".to_owned()), ..base.clone() };
        let path = || Some(PathBuf::from("file"));
        refused(user.clone(), "nats.user needs nats.password or nats.password_file");
        refused(Config { password: Some(Secret::new("p")), ..base.clone() }, "nats.password needs nats.user");
        refused(Config { password_file: path(), ..base.clone() }, "nats.password_file needs nats.user");
        refused(
            Config { password: Some(Secret::new("p")), password_file: path(), ..user.clone() },
            "nats.password and nats.password_file",
        );
        refused(
            Config { token: Some(Secret::new("t")), token_file: path(), ..base.clone() },
            "nats.token and nats.token_file",
        );
        refused(
            Config { credentials: path(), nkey: path(), ..base.clone() },
            "nats.credentials and nats.nkey",
        );
        refused(Config { password: Some(Secret::new("p")), nkey: path(), ..user }, "nats.nkey and nats.user");
        refused(
            Config { url: "nats://u:p@h".to_owned(), nkey: path(), ..base.clone() },
            "nats.url with a user or token and nats.nkey",
        );
        refused(Config { tls_key: path(), ..base.clone() }, "only tls_key is set");
        refused(Config { inbox_prefix: Some("a.*".to_owned()), ..base.clone() }, "nats.inbox_prefix");
        refused(Config { context: Some("c".to_owned()), nkey: path(), ..base.clone() }, "nats.context");
        assert!(base.resolved().is_ok());
    }
}
