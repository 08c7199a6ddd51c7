//! What tests share: a real nats-server for one test (own port, own store, gone when dropped), and the whole service
//! on it, with clients and sessions by hand.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context};
use fanfare::catalog::Catalog;
use fanfare::client::raw::{RawLane, RawSession, RawStream};
use fanfare::client::{self, Bind, Client, Endpoint, Received, Target, Tokens, Trust};
use fanfare::clock::Now;
use fanfare::cluster;
use fanfare::config::Config;
use fanfare::id::UserId;
use fanfare::lifecycle::{Keys, Parts, Service};
use fanfare::protocol::frame::{Hello, SessionLane, Welcome};
use fanfare::protocol::{ClientFrame, CloseCode, Encoding, ServerFrame};
use fanfare::provision::{Env, apply_all};
use fanfare::transport::auth::{Verifier, sign_hs256};
use fanfare::transport::tls::Identity;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A running nats-server with JetStream.
pub(crate) struct NatsServer {
    child: Child,
    url: String,
    /// Store and configuration; removed when dropped, after the server.
    dir: TempDir,
}

impl NatsServer {
    /// Starts a server with JetStream.
    pub(crate) async fn start() -> Self {
        Self::start_with("jetstream {}").await
    }

    /// Starts a server with more lines of configuration. Say `jetstream {}` there to have JetStream.
    pub(crate) async fn start_with(config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = config_file(&dir);
        // Beside store_dir, which must be this test's own, the lines decide.
        let store = dir.path().join("store").display().to_string();
        let config = config.replace("jetstream {}", &format!("jetstream {{ store_dir: \"{store}\" }}"));
        std::fs::write(&file, config).expect("a configuration file");
        let child = spawn(&dir, "-1");
        let url = wait_for_url(&dir, &child).await;
        Self { child, url, dir }
    }

    /// Ends the server as a crash would; its store stays.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again with the same port and store.
    pub(crate) async fn restart(&mut self) {
        let (_, port) = self.url.rsplit_once(':').expect("a port");
        self.child = spawn(&self.dir, port);
        wait_for_url(&self.dir, &self.child).await;
    }

    /// The server's address.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A new connection.
    pub(crate) async fn client(&self) -> async_nats::Client {
        async_nats::connect(&self.url).await.expect("the server takes connections")
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs the program: its exit code, and what it wrote to both.
pub(crate) async fn run(server: &NatsServer, args: &[&str]) -> (Option<i32>, String) {
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_fanfare"));
    let output =
        program.args(["--nats", server.url()]).args(args).output().await.expect("the program starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn config_file(dir: &TempDir) -> PathBuf {
    dir.path().join("nats.conf")
}

fn spawn(dir: &TempDir, port: &str) -> Child {
    Command::new(binary())
        .args(["-a", "127.0.0.1", "-p", port, "-c"])
        .arg(config_file(dir))
        .arg("--ports_file_dir")
        .arg(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server starts")
}

/// The server writes its ports into a file once it listens.
async fn wait_for_url(dir: &TempDir, child: &Child) -> String {
    let ports = dir.path().join(format!("nats-server_{}.ports", child.id()));
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let text = std::fs::read_to_string(&ports).unwrap_or_default();
        if let Ok(ports) = serde_json::from_str::<serde_json::Value>(&text) {
            return ports["nats"][0].as_str().expect("an address").to_owned();
        }
        assert!(Instant::now() < deadline, "nats-server did not listen within 10 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `NATS_SERVER`, else one below `.tools`, else the one on the path.
pub(crate) fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("NATS_SERVER") {
        return path.into();
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools");
    find(&tools, 5).unwrap_or_else(|| "nats-server".into())
}

fn find(dir: &Path, depth: usize) -> Option<PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).collect();
    let here = entries.iter().find(|path| path.is_file() && path.ends_with("nats-server"));
    here.cloned().or_else(|| {
        let mut folders = entries.iter().filter(|path| depth > 0 && path.is_dir());
        folders.find_map(|folder| find(folder, depth - 1))
    })
}

/// The schemes of the two transports, which carry the same frames.
pub(crate) const SCHEMES: [&str; 2] = ["https", "quic"];

/// Longest wait for anything: far beyond what a busy machine needs, so that only a fault reaches it.
const PATIENCE: Duration = Duration::from_secs(20);

/// HS256 secret of every service under test.
pub(crate) const SECRET: &[u8] = b"a secret of 32 bytes or more, for tests";

/// What a test may change before the service starts.
pub(crate) struct Setup {
    pub(crate) config: Config,
    pub(crate) catalog: Catalog,
    /// Checks tokens.
    pub(crate) verifier: Verifier,
}

/// The whole service, started in this process on a nats-server of its own.
pub(crate) struct Gateway {
    pub(crate) service: Service,
    pub(crate) client: async_nats::Client,
    pub(crate) context: Context,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) certificate_hash: [u8; 32],
    pub(crate) endpoint: Endpoint,
    /// Last, so that it goes last.
    pub(crate) server: NatsServer,
}

impl Gateway {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = Setup {
            config: Config::default(),
            catalog: Catalog::built_in().expect("the built-in catalog is good"),
            verifier: Verifier::with_secret(SECRET),
        };
        setup.config.edge.listen.set_ip(Ipv4Addr::LOCALHOST.into());
        setup.config.edge.listen.set_port(0);
        "test".clone_into(&mut setup.config.edge.node);
        setup.config.admin.listen.set_port(0);
        setup.config.worker.drain_s = 1;
        change(&mut setup);
        let Setup { mut config, catalog, verifier } = setup;
        let server = NatsServer::start().await;
        server.url().clone_into(&mut config.nats.url);
        let client = fanfare::nats::connect(&config.nats).await.expect("the server takes connections");
        let catalog = Arc::new(catalog);
        apply_all(&client, &catalog, Env::DEV).await.expect("a fresh server can be provisioned");
        let identity = Identity::development().expect("a certificate");
        let certificate_hash = identity.sha256();
        let parts = Parts {
            config,
            catalog: catalog.clone(),
            keys: Some(Keys { identity, verifier }),
            client: client.clone(),
            cluster: cluster::Settings::default(),
        };
        Self {
            service: parts.start().await.expect("the service starts"),
            context: jetstream::new(client.clone()),
            client,
            catalog,
            certificate_hash,
            endpoint: Endpoint::bind(Bind::Loopback).expect("a UDP socket"),
            server,
        }
    }

    /// Where clients connect.
    pub(crate) fn url(&self, scheme: &str) -> String {
        let address = self.service.edge_address().expect("it serves devices");
        if scheme == "quic" { format!("quic://{address}") } else { format!("https://{address}/v1/push") }
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::CertificateHashes(vec![self.certificate_hash])
    }

    /// A client's configuration, over WebTransport.
    pub(crate) fn device(&self, user: &str, device: &str) -> client::Config {
        let mut config =
            client::Config::new(self.url("https"), device, Tokens::fixed(token(user)), self.trust());
        config.endpoint = Some(self.endpoint.clone());
        config
    }

    /// A client with an open session, which acks what it gives.
    pub(crate) async fn client(&self, user: &str, device: &str) -> Client {
        self.connect(self.device(user, device)).await.0
    }

    /// A client with an open session, as configured.
    pub(crate) async fn connect(&self, config: client::Config) -> (Client, Welcome) {
        let mut client = Client::connect(config).expect("a good configuration");
        let welcome = within(client.live()).await.expect("a session");
        (client, welcome)
    }

    /// A session by hand without its hello.
    pub(crate) async fn open(&self, scheme: &str) -> Peer {
        self.open_from(scheme, None).await
    }

    /// The same from a page of `origin`.
    pub(crate) async fn open_from(&self, scheme: &str, origin: Option<&str>) -> Peer {
        let target = Target::new(&self.url(scheme), &self.trust(), origin).expect("a good URL");
        let session =
            within(RawSession::connect(&target, &self.endpoint)).await.expect("the transport connects");
        let control = within(session.open_stream()).await.expect("a stream");
        Peer { session, control }
    }

    /// A session by hand, welcomed, in JSON, without datagrams.
    pub(crate) async fn live(&self, scheme: &str, user: &str, device: &str) -> Peer {
        let mut peer = self.open(scheme).await;
        peer.hello(hello(&token(user), device)).await;
        peer.welcome().await;
        peer
    }

    /// Publishes to JetStream and waits for its acknowledgement.
    pub(crate) async fn publish(&self, subject: &str, envelope: &Value) {
        self.publish_bytes(subject, envelope.to_string()).await;
    }

    pub(crate) async fn publish_bytes(&self, subject: &str, body: String) {
        let sent = self.context.publish(subject.to_owned(), body.into()).await;
        sent.expect("NATS takes it").await.expect("JetStream has it");
    }

    /// Publishes with plain NATS, as services in other languages do.
    pub(crate) async fn publish_core(&self, subject: &str, envelope: &Value) {
        let sent = self.client.publish(subject.to_owned(), envelope.to_string().into()).await;
        sent.expect("NATS takes it");
        self.client.flush().await.expect("NATS has it");
    }

    /// Messages in a stream.
    pub(crate) async fn count(&self, stream: &str) -> u64 {
        self.request(&format!("STREAM.INFO.{stream}")).await["state"]["messages"].as_u64().expect("a number")
    }

    /// Messages that a lane's workers have and have not acked.
    pub(crate) async fn ack_pending(&self, lane: &str) -> u64 {
        let info = self.request(&format!("CONSUMER.INFO.{}.{lane}", queue(lane))).await;
        info["num_ack_pending"].as_u64().expect("a number")
    }

    /// An answer of JetStream's API.
    pub(crate) async fn request(&self, path: &str) -> Value {
        let answer: Value = self.context.request(path.to_owned(), &json!({})).await.expect("an answer");
        assert!(answer["error"].is_null(), "{path}: {answer}");
        answer
    }

    /// Messages in the work queues.
    pub(crate) async fn queued(&self) -> u64 {
        let mut queued = 0;
        for queue in fanfare::nats::QUEUES {
            queued += self.count(queue).await;
        }
        queued
    }

    /// Waits until the work queues are empty: every notification has had its last word.
    pub(crate) async fn settled(&self) {
        eventually("the work queues are empty", async || self.queued().await == 0).await;
    }

    /// Waits for `count` messages in a stream and reads them.
    pub(crate) async fn records(&self, stream: &str, count: u64) -> Vec<Stored> {
        eventually(&format!("{count} in {stream}"), async || self.count(stream).await >= count).await;
        let stream = self.context.get_stream(stream).await.expect("the stream is there");
        let mut records = Vec::new();
        for seq in 1..=count {
            let message = stream.get_raw_message(seq).await.expect("it is there");
            records.push(Stored {
                subject: message.subject.to_string(),
                json: serde_json::from_slice(&message.payload).unwrap_or_default(),
                body: message.payload,
                headers: message.headers,
            });
        }
        records
    }

    /// Asserts that a client who does nothing wrong is served.
    pub(crate) async fn serves(&self, after: &str) {
        for scheme in SCHEMES {
            let mut config = self.device("good", "good-device");
            config.url = self.url(scheme);
            let (mut client, _) = self.connect(config).await;
            let id = uuid::Uuid::new_v4().to_string();
            self.publish("notification.message.new.good", &message(&id)).await;
            assert_eq!(notification(&mut client).await.notification_id, id, "{scheme} after {after}");
            assert_eq!(within(client.close()).await.code(), Some(0), "{scheme} after {after}");
        }
    }
}

/// A message of a stream, read back.
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) json: Value,
    pub(crate) body: bytes::Bytes,
    headers: async_nats::HeaderMap,
}

impl Stored {
    /// A header's value; empty when there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(async_nats::HeaderValue::as_str).unwrap_or_default()
    }
}

/// A session by hand: its transport and its control stream.
pub(crate) struct Peer {
    pub(crate) session: RawSession,
    pub(crate) control: RawStream,
}

impl Peer {
    pub(crate) async fn hello(&mut self, hello: Hello) {
        self.send(&ClientFrame::Hello(hello)).await;
    }

    pub(crate) async fn send(&mut self, frame: &ClientFrame) {
        self.control.write_frame(Encoding::Json, frame).await.expect("the stream takes it");
    }

    pub(crate) async fn welcome(&mut self) -> Welcome {
        match self.frame().await {
            ServerFrame::Welcome(welcome) => welcome,
            other => panic!("no welcome: {other:?}"),
        }
    }

    /// The server's next frame on the control stream.
    pub(crate) async fn frame(&mut self) -> ServerFrame {
        within(self.control.read_frame(Encoding::Json)).await.expect("a frame").expect("not the end")
    }

    /// The next lane that the server opens.
    pub(crate) async fn lane(&self, wanted: SessionLane) -> RawLane {
        let mut lane = within(self.session.accept_lane()).await.expect("a lane");
        let header = within(lane.read_header(Encoding::Json)).await.expect("a frame");
        assert_eq!(header, Some(wanted));
        lane
    }

    pub(crate) async fn ack(&mut self, lane: SessionLane, seq: u64) {
        self.send(&ClientFrame::Ack { lane, seq }).await;
    }

    /// Asserts that the server closes with `code`: in its last frame, and in the transport's close.
    pub(crate) async fn expect_close(mut self, code: CloseCode, what: &str) {
        let close = loop {
            match within(self.control.read_frame(Encoding::Json)).await {
                Ok(Some(ServerFrame::Close(close))) => break close,
                Ok(Some(_)) => {}
                other => panic!("{what}: no close frame but {other:?}"),
            }
        };
        assert_eq!((close.code, close.name.as_str()), (code.code(), code.name()), "{what}: {close:?}");
        assert_eq!(close.reconnect, code.reconnect(), "{what}");
        self.expect_end(code, what).await;
    }

    /// The same where no frame can come, because there is no control stream.
    pub(crate) async fn expect_end(self, code: CloseCode, what: &str) {
        let closed = within(self.session.closed()).await;
        assert_eq!(closed.transport, Some((code.code(), code.name().to_owned())), "{what}: {closed:?}");
    }
}

/// The id and payload of the next notification on a lane.
pub(crate) async fn next_on(lane: &mut RawLane) -> (String, Value) {
    let mut frame = within(lane.read_value(Encoding::Json)).await.expect("a frame").expect("not the end");
    let data = frame["data"].take();
    (data["notification_id"].as_str().expect("an id").to_owned(), data["payload"].clone())
}

/// A hello in JSON without datagrams.
pub(crate) fn hello(token: &str, device: &str) -> Hello {
    Hello {
        version: 1,
        token: token.to_owned(),
        device_id: device.to_owned(),
        platform: "desktop".to_owned(),
        encoding: Encoding::Json,
        datagrams: false,
        resume: None,
    }
}

/// `body` with its length before it.
pub(crate) fn framed(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = u32::try_from(body.len()).expect("short");
    [&length.to_be_bytes(), body].concat()
}

/// A good token.
pub(crate) fn token(user: &str) -> String {
    token_for(user, Duration::from_hours(1))
}

pub(crate) fn token_for(user: &str, ttl: Duration) -> String {
    sign_hs256(SECRET, &UserId::new(user).expect("a valid id"), Now::read(), ttl)
}

/// The envelope of a single message: lane normal, no ack required.
pub(crate) fn message(id: &str) -> Value {
    json!({"notification_id": id, "type": "message.new", "from_user_id": "bob",
        "payload": {"conversation_type": "single", "content": id}})
}

/// The envelope of a friend request: lane high, an ack is required.
pub(crate) fn request(id: &str) -> Value {
    json!({"notification_id": id, "type": "friend.request", "from_user_id": "bob", "payload": {"message": id}})
}

/// The client's next notification.
pub(crate) async fn notification(client: &mut Client) -> Received {
    within(client.notification()).await.expect("a session")
}

/// Waits, but not for ever.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it comes within 20 s")
}

/// Asks again and again until the answer is yes.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The work queue of a lane.
pub(crate) fn queue(lane: &str) -> &'static str {
    let worker = fanfare::worker::Config::default();
    let queue = worker
        .streams
        .iter()
        .flat_map(fanfare::worker::Queue::consumers)
        .find(|(_, own)| own.as_str() == lane);
    let (stream, _) = queue.expect("a lane");
    fanfare::nats::QUEUES.into_iter().find(|known| *known == stream).expect("one of the queues")
}
