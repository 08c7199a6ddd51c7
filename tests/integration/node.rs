//! `fanfare serve` in a process of its own: the metrics of one process are the sums of all its services.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use fanfare::catalog::{BUILT_IN, Catalog};
use fanfare::client::{self, AckMode, Client, Tokens, Trust};
use fanfare::provision::{Env, apply_all};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::support::{NatsServer, SECRET, eventually, token, within};

/// `fanfare serve` as an operator starts it.
pub(crate) struct Node {
    child: Child,
    edge: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) client: async_nats::Client,
    trust: Trust,
    _folder: tempfile::TempDir,
    _server: NatsServer,
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::start_with(BUILT_IN, async |_| {}).await
    }

    /// With more lines in section `edge`.
    pub(crate) async fn start_configured(edge: &str) -> Self {
        Self::start_as(BUILT_IN, edge, async |_| {}).await
    }

    /// With another catalog, and what is to be done on the provisioned server before it starts.
    pub(crate) async fn start_with(
        catalog_text: &str,
        before: impl AsyncFnOnce(&async_nats::Client),
    ) -> Self {
        Self::start_as(catalog_text, "", before).await
    }

    async fn start_as(catalog_text: &str, edge: &str, before: impl AsyncFnOnce(&async_nats::Client)) -> Self {
        let server = NatsServer::start().await;
        let client = server.client().await;
        let catalog = Catalog::from_toml(catalog_text).expect("a good catalog");
        apply_all(&client, &catalog, Env::DEV).await.expect("a fresh server can be provisioned");
        before(&client).await;
        let folder = tempfile::tempdir().expect("a folder");
        let trust = write_keys(folder.path());
        let write = |name: &str, contents: &[u8]| {
            std::fs::write(folder.path().join(name), contents).expect("a file");
        };
        write("catalog.toml", catalog_text.as_bytes());
        write(
            "fanfare.toml",
            format!(
                r#"
            auth.keys = [{{ algorithm = "HS256", file = "secret" }}]
            log.json = true
            catalog.file = "catalog.toml"
            [edge]
            listen = "127.0.0.1:0"
            tls = {{ certificate = "certificate.pem", key = "key.pem" }}
            {edge}
            [admin]
            listen = "127.0.0.1:0"
            "#
            )
            .as_bytes(),
        );
        let log = folder.path().join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .args(["--config", "fanfare.toml", "serve"])
            .env("FANFARE__NATS__URL", server.url())
            .env_remove("RUST_LOG")
            .current_dir(folder.path())
            .stderr(std::fs::File::create(&log).expect("a file"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let mut addresses = None;
        eventually("it serves", async || {
            addresses = serving(&log);
            addresses.is_some()
        })
        .await;
        let (edge, admin) = addresses.expect("it serves");
        let edge = edge.expect("it serves devices");
        Self { child, edge, admin, client, trust, _folder: folder, _server: server }
    }

    /// A client's configuration.
    pub(crate) fn device(&self, user: &str) -> client::Config {
        let url = format!("https://{}/v1/push", self.edge);
        client::Config::new(url, "d1", Tokens::fixed(token(user)), self.trust.clone())
    }

    pub(crate) async fn client(&self, user: &str, ack: AckMode) -> Client {
        let mut config = self.device(user);
        config.ack = ack;
        let mut client = Client::connect(config).expect("a good configuration");
        within(client.live()).await.expect("a session");
        client
    }

    pub(crate) async fn publish(&self, subject: &str, envelope: &Value) {
        self.client.publish(subject.to_owned(), envelope.to_string().into()).await.expect("NATS takes it");
    }

    /// Sends SIGTERM and waits for an orderly end.
    pub(crate) async fn terminate(mut self, last: Client) {
        self.signal("TERM").await;
        drop(last);
        let status = self.ended().await;
        assert!(status.success(), "{status}");
    }

    /// Sends a signal.
    pub(crate) async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().await.expect("kill runs");
        assert!(sent.success());
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        within(self.child.wait()).await.expect("it ends")
    }
}

/// Writes certificate, key and token secret as `certificate.pem`, `key.pem` and `secret`; gives what clients trust.
pub(crate) fn write_keys(folder: &Path) -> Trust {
    let names = vec!["127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let write = |name: &str, contents: &[u8]| std::fs::write(folder.join(name), contents).expect("a file");
    write("certificate.pem", made.cert.pem().as_bytes());
    write("key.pem", made.signing_key.serialize_pem().as_bytes());
    write("secret", SECRET);
    Trust::Roots(made.cert.pem())
}

/// The addresses that the service logs once it serves: of the edge, where there is one, and of the admin port.
pub(crate) fn serving(log: &Path) -> Option<(Option<SocketAddr>, SocketAddr)> {
    let text = std::fs::read_to_string(log).expect("the file is there");
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let fields = lines.map(|line| line["fields"].clone()).find(|fields| fields["message"] == "serving")?;
    let address = |name: &str| Some(fields[name].as_str()?.parse().expect("an address"));
    Some((address("edge"), address("admin").expect("an admin port")))
}

/// The value of a metric, named with its labels.
pub(crate) fn value(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(line.parse().expect("a number"))
}

/// Status and body of an HTTP request.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("the port is open");
    let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it is sent");
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.expect("it is answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).expect("a status");
    (status.parse().expect("a number"), body.to_owned())
}
