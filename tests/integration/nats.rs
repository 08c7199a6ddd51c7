//! The connection to NATS: each way to say who one is, on a server that asks for it.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fanfare::nats::{Config, Secret, connect};
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::{NatsServer, within};

#[tokio::test]
async fn a_server_that_wants_certificates_takes_the_configured_ones_only() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    certificates(folder.path());
    let server = NatsServer::start_with(&format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        file("server.pem"),
        file("server-key.pem"),
        file("ca.pem")
    ))
    .await;
    let (_, port) = server.url().rsplit_once(':').expect("a port");
    let good = Config {
        url: format!("nats://localhost:{port}"),
        tls_ca: Some(file("ca.pem")),
        tls_certificate: Some(file("client.pem")),
        tls_key: Some(file("client-key.pem")),
        ..Config::default()
    };
    let stranger = Config { tls_ca: Some(file("other-ca.pem")), ..good.clone() };
    let nobody = Config { tls_certificate: None, tls_key: None, ..good.clone() };

    let client = within(connect(&good)).await.expect("the certificates are right");
    within(client.flush()).await.expect("it answers");
    let error = within(connect(&stranger)).await.expect_err("nobody here knows the server").to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
    assert!(within(connect(&nobody)).await.is_err(), "the server wants a certificate");
}

#[tokio::test]
async fn required_tls_is_not_left_out_for_a_server_without() {
    let server = NatsServer::start_with("").await;
    let config = Config { url: server.url().to_owned(), tls_required: true, ..Config::default() };

    assert!(within(connect(&config)).await.is_err());
}

#[tokio::test]
async fn tls_may_come_before_the_first_word() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    certificates(folder.path());
    let server = NatsServer::start_with(&format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, handshake_first: true }}",
        file("server.pem"),
        file("server-key.pem")
    ))
    .await;
    let (_, port) = server.url().rsplit_once(':').expect("a port");
    let url = format!("nats://localhost:{port}");
    let config = Config { url, tls_ca: Some(file("ca.pem")), tls_first: true, ..Config::default() };
    works(&config).await;
}

/// A file with `text` in a folder that goes with the first of both.
fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

async fn works(config: &Config) {
    let client = within(connect(config)).await.expect("this is who may");
    within(client.flush()).await.expect("it answers");
}

/// Asserts that nobody is let in, and gives what is said about it.
async fn refused(config: &Config, url: &str) -> String {
    let config = Config { url: url.to_owned(), ..config.clone() };
    let error = within(connect(&config)).await.expect_err("this is not who may").to_string();
    assert!(!error.contains("s3cret"), "{error}");
    error
}

#[tokio::test]
async fn a_user_has_a_password_here_or_in_a_file() {
    let server = NatsServer::start_with("authorization { users: [{ user: ann, password: s3cret }] }").await;
    let (_folder, path) = file("s3cret\n");
    let user = Config { url: server.url().to_owned(), user: Some("ann".to_owned()), ..Config::default() };
    works(&Config { password: Some(Secret::new("s3cret")), ..user.clone() }).await;
    works(&Config { password_file: Some(path), ..user.clone() }).await;

    let wrong = Config { password: Some(Secret::new("s3cret too")), ..user.clone() };
    let error = refused(&wrong, server.url()).await;
    assert!(error.contains("as user \"ann\"") && error.contains("authorization violation"), "{error}");
    let error = refused(&Config::default(), server.url()).await;
    assert!(error.contains("as a user without a name"), "{error}");
    let missing = Config { password_file: Some("no/such/file".into()), ..user };
    let error = refused(&missing, server.url()).await;
    assert!(error.contains("cannot use nats.password_file no/such/file: "), "{error}");
}

#[tokio::test]
async fn a_user_or_a_token_stands_in_the_address() {
    let server =
        NatsServer::start_with("authorization { users: [{ user: ann, password: \"s3cret:@/%\" }] }").await;
    let at = |who: &str| server.url().replace("nats://", &format!("nats://{who}@"));
    let with = |url: String| Config { url, ..Config::default() };
    works(&with(at("ann:s3cret%3A%40%2F%25"))).await;
    // Of several addresses the first one that says so counts for all.
    works(&with(format!("{}, {}", server.url(), at("ann:s3cret%3A%40%2F%25")))).await;
    let wrong = at("ann:s3cret");
    let error = refused(&with(wrong.clone()), &wrong).await;
    assert!(error.contains("as user \"ann\" of nats.url"), "{error}");

    let server = NatsServer::start_with("authorization { token: s3cret }").await;
    let at = |who: &str| server.url().replace("nats://", &format!("nats://{who}@"));
    works(&with(at("s3cret"))).await;
    let wrong = at("s3crets");
    let error = refused(&with(wrong.clone()), &wrong).await;
    assert!(error.contains("as the holder of the token in nats.url"), "{error}");
}

#[tokio::test]
async fn a_token_is_here_or_in_a_file() {
    let server = NatsServer::start_with("authorization { token: s3cret }").await;
    let (_folder, path) = file("s3cret");
    let base = Config { url: server.url().to_owned(), ..Config::default() };
    works(&Config { token: Some(Secret::new("s3cret")), ..base.clone() }).await;
    works(&Config { token_file: Some(path), ..base.clone() }).await;
    let error = refused(&Config { token: Some(Secret::new("s3cret too")), ..base }, server.url()).await;
    assert!(error.contains("as the holder of the token"), "{error}");
}

#[tokio::test]
async fn an_nkey_is_a_seed_in_a_file() {
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let server =
        NatsServer::start_with(&format!("authorization {{ users: [{{ nkey: {} }}] }}", user.public_key()))
            .await;
    let with = |seed: &str| {
        let (folder, path) = file(seed);
        (folder, Config { url: server.url().to_owned(), nkey: Some(path), ..Config::default() })
    };
    let (_folder, good) = with(&format!("{}\n", user.seed().unwrap()));
    works(&good).await;

    let seed = stranger.seed().unwrap();
    let (_folder, config) = with(&seed);
    let error = refused(&config, server.url()).await;
    assert!(
        error.contains(&format!("as nkey {}", stranger.public_key())) && !error.contains(&seed),
        "{error}"
    );
    let account = KeyPair::new_account().seed().unwrap();
    for bad in [account.as_str(), "SUAMESS"] {
        let (_folder, config) = with(bad);
        let error = refused(&config, server.url()).await;
        assert!(error.contains("cannot use nats.nkey ") && !error.contains(bad), "{error}");
    }
    let (_folder, empty) = with("\n");
    let error = refused(&empty, server.url()).await;
    assert!(error.contains("cannot use nats.nkey ") && error.contains("it is empty"), "{error}");
}

#[tokio::test]
async fn credentials_are_a_jwt_and_a_seed_in_a_file() {
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let limits = json!({ "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
        "conn": -1, "leaf": -1 });
    let account_jwt = jwt(&operator, &account, &json!({ "type": "account", "version": 2, "limits": limits }));
    let server = NatsServer::start_with(&format!(
        "operator: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_jwt} }}",
        jwt(&operator, &operator, &json!({ "type": "operator", "version": 2 })),
        account.public_key()
    ))
    .await;
    let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let with = |jwt: String| {
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed().unwrap()
        );
        let (folder, path) = file(&text);
        (folder, Config { url: server.url().to_owned(), credentials: Some(path), ..Config::default() })
    };
    let (_folder, good) = with(jwt(&account, &user, &claims));
    works(&good).await;

    // Of an account that the server does not know.
    let (_folder, strange) = with(jwt(&KeyPair::new_account(), &user, &claims));
    let error = refused(&strange, server.url()).await;
    assert!(error.contains("as the user of /"), "{error}");
    let (_folder, path) = file("no credentials");
    let bad = Config { credentials: Some(path), ..Config::default() };
    let error = refused(&bad, server.url()).await;
    assert!(error.contains("cannot use nats.credentials /"), "{error}");
}

/// A JWT as NATS has them, about `subject` by `issuer`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: &Value) -> String {
    let (issuer_key, subject) = (issuer.public_key(), subject.public_key());
    let claims =
        json!({ "jti": "1", "iat": 1, "iss": issuer_key, "name": "n", "sub": subject, "nats": nats });
    let head = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let body = format!("{}.{}", encoded(&head), encoded(&claims));
    format!("{body}.{}", URL_SAFE_NO_PAD.encode(issuer.sign(body.as_bytes()).unwrap()))
}

#[tokio::test]
async fn commands_take_a_context_of_the_nats_command() {
    let server = NatsServer::start_with(
        "jetstream {}\nauthorization { users: [{ user: ann, password: s3cret, permissions: { \
         publish: \"$JS.API.>\", subscribe: \"_INBOX_ann.>\" } }] }",
    )
    .await;
    let folder = tempfile::tempdir().unwrap();
    let contexts = folder.path().join("nats/context");
    std::fs::create_dir_all(&contexts).unwrap();
    let write = |name: &str, url: &str, more: &str| {
        let text = format!(
            r#"{{"url": "{url}", "user": "ann", "password": "s3cret", "inbox_prefix": "_INBOX_ann"{more}}}"#
        );
        std::fs::write(contexts.join(format!("{name}.json")), text).unwrap();
    };
    write("prod", server.url(), "");
    write("moved", "nats://127.0.0.1:1", "");
    write("hub", server.url(), r#", "jetstream_domain": "hub""#);
    std::fs::write(folder.path().join("nats/context.txt"), "prod").unwrap();
    let run = async |args: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_fanfare"));
        program.args(args).env("XDG_CONFIG_HOME", folder.path());
        let output = program.output().await.unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!text.contains("s3cret"), "{text}");
        (output.status.code(), text)
    };
    // Nothing is provisioned: there is something to do.
    for args in [
        ["--context", "prod", "provision", "plan"].as_slice(),
        &["--context", "", "provision", "plan"],
        &["--context", "moved", "--nats", server.url(), "provision", "plan"],
    ] {
        let (code, text) = run(args).await;
        assert_eq!(code, Some(2), "{args:?}: {text}");
    }
    let (code, text) = run(&["--context", "prod", "config", "show"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("ann") && text.contains("(left out)"), "{text}");
    for (context, words) in [("hub", "jetstream_domain"), ("nowhere", "nowhere.json")] {
        let (code, text) = run(&["--context", context, "provision", "plan"]).await;
        assert_eq!(code, Some(64), "{text}");
        assert!(text.contains(words), "{text}");
    }
}

/// An authority, a server and a client signed by it, and another authority, as PEM files.
fn certificates(folder: &Path) {
    let write = |name: &str, pem: String| std::fs::write(folder.join(name), pem).unwrap();
    let authority = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), rcgen::Issuer::new(params, key))
    };
    let (ca, issuer) = authority();
    write("ca.pem", ca);
    write("other-ca.pem", authority().0);
    for name in ["server", "client"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        write(&format!("{name}.pem"), certificate.pem());
        write(&format!("{name}-key.pem"), key.serialize_pem());
    }
}
