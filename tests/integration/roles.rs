//! `fanfare serve` in its two parts, each a process of its own: one node that pulls, two that serve devices.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use fanfare::catalog::Catalog;
use fanfare::client::{self, AckMode, Client, Tokens, Trust};
use fanfare::provision::{Env, apply_all};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::node::{serving, write_keys};
use crate::shaped::link::Link;
use crate::support::{NatsServer, eventually, message, notification, request, run, token, within};

/// Far more than is sent here.
const BITS_PER_S: u64 = 100_000_000;
const QUEUE_BYTES: usize = 10_000_000;

/// Begins the id of what is published only to see what comes of it.
const PROBE: &str = "probe-";

struct Roles {
    /// A node without certificate and keys, whose UDP port is taken.
    worker: Child,
    edges: [SocketAddr; 2],
    context: Context,
    trust: Trust,
    _edges: Vec<Child>,
    _taken: UdpSocket,
    _folder: TempDir,
    _server: NatsServer,
}

fn serve(folder: &TempDir, server: &NatsServer, config: &str, role: &str, log: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["--config", config, "serve", "--role", role])
        .env("FANFARE__NATS__URL", server.url())
        .env("FANFARE__EDGE__NODE", log)
        .env_remove("RUST_LOG")
        .current_dir(folder.path())
        .stderr(std::fs::File::create(folder.path().join(log)).unwrap())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

impl Roles {
    async fn start() -> Self {
        let server = NatsServer::start().await;
        let client = server.client().await;
        apply_all(&client, &Catalog::built_in().unwrap(), Env::DEV).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let trust = write_keys(folder.path());
        let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap();
        let common = "admin.listen = \"127.0.0.1:0\"\nlog.json = true\n";
        let bare = format!("{common}edge.listen = \"{port}\"\n");
        std::fs::write(folder.path().join("worker.toml"), bare).unwrap();
        let whole = format!(
            r#"
            auth.keys = [{{ algorithm = "HS256", file = "secret" }}]
            {common}
            [edge]
            listen = "127.0.0.1:0"
            # A broken link is found within seconds.
            heartbeat_ms = 1000
            tls = {{ certificate = "certificate.pem", key = "key.pem" }}
            "#
        );
        std::fs::write(folder.path().join("edge.toml"), whole).unwrap();
        let worker = serve(&folder, &server, "worker.toml", "worker", "worker");
        let running = ["edge-1", "edge-2"].map(|name| serve(&folder, &server, "edge.toml", "edge", name));
        let mut edges = Vec::new();
        for name in ["worker", "edge-1", "edge-2"] {
            let mut addresses = None;
            eventually("it serves", async || {
                addresses = serving(&folder.path().join(name));
                addresses.is_some()
            })
            .await;
            edges.push(addresses.unwrap().0);
        }
        assert_eq!(edges[0], None, "a worker serves no devices");
        Self {
            worker,
            edges: [1, 2].map(|edge| edges[edge].unwrap()),
            context: jetstream::new(client),
            trust,
            _edges: running.into(),
            _taken: taken,
            _folder: folder,
            _server: server,
        }
    }

    fn device(&self, user: &str, device: &str, edge: SocketAddr) -> client::Config {
        let url = format!("https://{edge}/v1/push");
        client::Config::new(url, device, Tokens::fixed(token(user)), self.trust.clone())
    }

    /// A client with an open session of which the worker knows: what is published is handed off to nobody.
    async fn live(&self, user: &str, config: client::Config) -> Client {
        let mut client = Client::connect(config).unwrap();
        within(client.live()).await.unwrap();
        eventually("the worker knows the session", async || {
            let before = self.count("OFFLINE_PUSH").await;
            let id = format!("{PROBE}{}", uuid::Uuid::new_v4());
            self.publish("message.new", user, &message(&id)).await;
            self.settled().await;
            self.count("OFFLINE_PUSH").await == before
        })
        .await;
        client
    }

    async fn publish(&self, event: &str, user: &str, envelope: &Value) {
        let subject = format!("notification.{event}.{user}");
        self.context.publish(subject, envelope.to_string().into()).await.unwrap().await.unwrap();
    }

    async fn count(&self, stream: &str) -> u64 {
        self.context.get_stream(stream).await.unwrap().cached_info().state.messages
    }

    async fn settled(&self) {
        let waiting = async || {
            let mut waiting = 0;
            for queue in fanfare::nats::QUEUES {
                waiting += self.count(queue).await;
            }
            waiting
        };
        eventually("the work queues are empty", async || waiting().await == 0).await;
    }
}

/// The next one that is no probe.
async fn next(client: &mut Client) -> String {
    loop {
        let id = notification(client).await.notification_id;
        if !id.starts_with(PROBE) {
            return id;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_reaches_the_devices_of_edges_and_needs_neither_certificate_nor_port() {
    let mut roles = Roles::start().await;
    let [first, second] = roles.edges;
    let mut phone = roles.live("ann", roles.device("ann", "phone", first)).await;
    let mut tablet = roles.live("ann", roles.device("ann", "tablet", second)).await;
    let away = roles.count("OFFLINE_PUSH").await;
    for round in 0..5 {
        let id = format!("r{round}");
        roles.publish("friend.request", "ann", &request(&id)).await;
        for device in [&mut phone, &mut tablet] {
            assert_eq!(next(device).await, id);
        }
    }
    roles.settled().await;
    assert_eq!(roles.count("OFFLINE_PUSH").await, away, "the acks came to the worker");

    let cursor = phone.cursor();
    assert_eq!(within(phone.close()).await.code(), Some(0));
    assert_eq!(within(tablet.close()).await.code(), Some(0));
    eventually("the worker knows that nobody is there", async || {
        let id = format!("{PROBE}{}", uuid::Uuid::new_v4());
        roles.publish("message.new", "ann", &message(&id)).await;
        roles.settled().await;
        roles.count("OFFLINE_PUSH").await > away
    })
    .await;
    roles.publish("message.new", "ann", &message("missed")).await;
    roles.settled().await;
    let mut config = roles.device("ann", "phone", second);
    config.resume = cursor;
    let mut phone = Client::connect(config).unwrap();
    assert_eq!(next(&mut phone).await, "missed", "replayed by another edge");

    let pid = roles.worker.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let ended = within(roles.worker.wait()).await.unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broken_link_held_goes_to_a_device_at_the_other_edge() {
    let roles = Roles::start().await;
    let [first, second] = roles.edges;
    let link = Link::start(first, BITS_PER_S, QUEUE_BYTES, Duration::ZERO).await;
    let mut config = roles.device("bob", "phone", link.address());
    config.ack = AckMode::Never;
    let mut phone = roles.live("bob", config).await;
    roles.publish("message.new", "bob", &message("held")).await;
    assert_eq!(next(&mut phone).await, "held");
    let mut tablet = roles.live("bob", roles.device("bob", "tablet", second)).await;

    drop(link);

    assert_eq!(next(&mut tablet).await, "held");
}

#[tokio::test]
async fn an_edge_without_certificate_or_keys_does_not_start() {
    let server = NatsServer::start().await;
    let (code, text) = run(&server, &["serve", "--role", "edge"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("auth.keys"), "{text}");
}
