//! Contexts of the `nats` command (`nats context save`): a server and a user under one name, in a file of JSON.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Config, Secret};

/// Why a context cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Neither `XDG_CONFIG_HOME` nor `HOME` says where contexts are.
    #[error("contexts of the nats command are below $XDG_CONFIG_HOME or $HOME/.config, and neither is set")]
    NoHome,
    /// The name is not one that the `nats` command gives.
    #[error("{0:?} is no name of a context")]
    Name(String),
    /// No context is selected.
    #[error(
        "no context is selected: cannot read {path}: {source}; give a name, or run `nats context select`"
    )]
    NoneSelected {
        /// The file that would name it.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read context {name:?} of the nats command, {path}: {source}")]
    Read {
        /// The context.
        name: String,
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a context. What it says is not repeated: it may be a secret.
    #[error("{path} is no context of the nats command: no JSON object of texts (line {line})")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
    },
    /// It says something that cannot be done.
    #[error("{path} has {key}, which fanfare does not know how to use: {advice}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What.
        key: &'static str,
        /// What to do.
        advice: &'static str,
    },
}

/// What the `nats` command writes; an empty text is as good as none. What it says beside this does not concern the
/// connection.
#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    url: Option<String>,
    user: Option<String>,
    password: Option<Secret>,
    token: Option<Secret>,
    creds: Option<String>,
    nkey: Option<String>,
    cert: Option<String>,
    key: Option<String>,
    ca: Option<String>,
    inbox_prefix: Option<String>,
    tls_first: bool,
    jetstream_domain: Option<String>,
    jetstream_api_prefix: Option<String>,
    nsc: Option<String>,
    socks_proxy: Option<String>,
    user_jwt: Option<Secret>,
    user_seed: Option<Secret>,
}

/// The context of that name; of an empty name the selected one.
pub(super) fn read(name: &str) -> Result<Config, ContextError> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("HOME");
    let config = variable("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
    read_in(&config.ok_or(ContextError::NoHome)?.join("nats"), name, home.as_deref())
}

fn read_in(folder: &Path, name: &str, home: Option<&Path>) -> Result<Config, ContextError> {
    let mut name = name.to_owned();
    if name.is_empty() {
        let path = folder.join("context.txt");
        let selected = std::fs::read_to_string(&path);
        selected.map_err(|source| ContextError::NoneSelected { path, source })?.trim().clone_into(&mut name);
    }
    if name.is_empty() || name.contains(['/', '\\']) || name.contains("..") {
        return Err(ContextError::Name(name));
    }
    let path = folder.join("context").join(format!("{name}.json"));
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text, path, home),
        Err(source) => Err(ContextError::Read { name, path, source }),
    }
}

fn parse(text: &str, path: PathBuf, home: Option<&Path>) -> Result<Config, ContextError> {
    // A list would be taken for the fields in their order.
    if !text.trim_start().starts_with('{') {
        return Err(ContextError::Parse { path, line: 1 });
    }
    let file: File = match serde_json::from_str(text) {
        Ok(file) => file,
        Err(error) => return Err(ContextError::Parse { path, line: error.line() }),
    };
    let said = |text: Option<String>| text.filter(|text| !text.is_empty());
    let secret = |secret: Option<Secret>| secret.filter(|secret| !secret.reveal().is_empty());
    let domain = "streams are expected in the account's own JetStream: connect to a server of that domain";
    let unsupported = [
        ("jetstream_domain", said(file.jetstream_domain).is_some(), domain),
        ("jetstream_api_prefix", said(file.jetstream_api_prefix).is_some(), domain),
        ("nsc", said(file.nsc).is_some(), "export a credentials file: `nsc generate creds`"),
        ("socks_proxy", said(file.socks_proxy).is_some(), "connect without a proxy"),
        ("user_jwt", secret(file.user_jwt).is_some(), "use a credentials file (creds)"),
        ("user_seed", secret(file.user_seed).is_some(), "use a credentials file (creds)"),
    ];
    if let Some((key, _, advice)) = unsupported.into_iter().find(|(_, is_set, _)| *is_set) {
        return Err(ContextError::Unsupported { path, key, advice });
    }
    let file_at = |text: Option<String>| said(text).map(|text| at_home(&text, home));
    let mut config = Config {
        credentials: file_at(file.creds),
        nkey: file_at(file.nkey),
        user: said(file.user),
        password: secret(file.password),
        token: secret(file.token),
        tls_ca: file_at(file.ca),
        tls_certificate: file_at(file.cert),
        tls_key: file_at(file.key),
        tls_first: file.tls_first,
        inbox_prefix: said(file.inbox_prefix),
        ..Config::default()
    };
    if let Some(url) = said(file.url) {
        config.url = url;
    }
    Ok(config)
}

/// The path; one below `~` is below the home of whoever runs this.
fn at_home(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Config, ContextError> {
        parse(text, "c.json".into(), Some(Path::new("/home/ann")))
    }

    #[test]
    fn a_context_says_where_and_who() {
        let config = parsed(
            r#"{"description": "d", "url": "nats://a,nats://b", "socks_proxy": "", "token": "", "user": "u",
                "password": "p", "creds": "", "cert": "/c.pem", "key": "~/k.pem", "ca": "", "nsc": "",
                "jetstream_domain": "", "inbox_prefix": "_INBOX_u", "user_jwt": "", "color_scheme": "", "new": 1}"#,
        );
        let expected = Config {
            url: "nats://a,nats://b".to_owned(),
            user: Some("u".to_owned()),
            password: Some(Secret::new("p")),
            tls_certificate: Some("/c.pem".into()),
            tls_key: Some("/home/ann/k.pem".into()),
            inbox_prefix: Some("_INBOX_u".to_owned()),
            ..Config::default()
        };
        assert_eq!(config.unwrap(), expected);
        assert_eq!(parsed("{}").unwrap(), Config::default());
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for key in ["jetstream_domain", "jetstream_api_prefix", "nsc", "socks_proxy", "user_jwt", "user_seed"]
        {
            let error = parsed(&format!(r#"{{"{key}": "hub"}}"#)).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("c.json"), "{error}");
        }
        for shape in ["[]", "null", "\"url\"", ""] {
            assert!(matches!(parsed(shape), Err(ContextError::Parse { .. })), "{shape}");
        }
        let error = parsed(r#"{"password": ["s3cret"]}"#).unwrap_err().to_string();
        assert!(error.contains("c.json") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn the_selected_context_is_that_of_an_empty_name() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name| read_in(folder.path(), name, None);
        assert!(matches!(read(""), Err(ContextError::NoneSelected { .. })));
        std::fs::create_dir(folder.path().join("context")).unwrap();
        std::fs::write(folder.path().join("context/prod.json"), r#"{"url": "nats://p"}"#).unwrap();
        std::fs::write(folder.path().join("context.txt"), "prod\n").unwrap();
        assert_eq!(read("").unwrap().url, "nats://p");
        assert_eq!(read("prod").unwrap().url, "nats://p");
        assert!(read("test").unwrap_err().to_string().contains("test.json"));
        assert!(matches!(read("../context/prod"), Err(ContextError::Name(_))));
    }
}
