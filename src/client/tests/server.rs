//! A server of a few lines that speaks the protocol as the test says, over WebTransport and bare QUIC.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use web_transport_quinn::proto::ConnectResponse;
use web_transport_quinn::{Request, SendStream, Session};

use crate::client::wire::FrameReader;
use crate::client::{Bind, Client, Config, Endpoint, Tokens, Trust};
use crate::protocol::frame::{Close, Hello, ServerFrame, SessionLane, Welcome};
use crate::protocol::{CLIENT_FRAME_BYTES_MAX, ClientFrame, CloseCode, Encoding, codec};

/// Fails a test that would hang.
pub(super) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("nothing happened for 10 s")
}

pub(super) struct Server {
    endpoint: quinn::Endpoint,
    pub(super) hash: [u8; 32],
    pub(super) pem: String,
    sessions: mpsc::Receiver<Opened>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(super) fn start() -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let cert =
            rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let hash = web_transport_quinn::crypto::sha256(&provider, cert.der()).as_ref().try_into().unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], private)
            .unwrap();
        tls.alpn_protocols = vec![b"h3".to_vec(), b"fanfare/1".to_vec()];
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let endpoint = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let (sender, sessions) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(endpoint.clone(), sender));
        Self { endpoint, hash, pem: cert.pem(), sessions, _tasks: tasks }
    }

    pub(super) fn url(&self, scheme: &str) -> String {
        let port = self.endpoint.local_addr().unwrap().port();
        format!("{scheme}://127.0.0.1:{port}/v1/push")
    }

    pub(super) fn trust(&self) -> Trust {
        Trust::CertificateHashes(vec![self.hash])
    }

    pub(super) fn config(&self) -> Config {
        let mut config = Config::new(self.url("quic"), "device-1", Tokens::fixed("a.b.c"), self.trust());
        config.bind = Bind::Loopback;
        config
    }

    /// The next session's first stream.
    pub(super) async fn accept_raw(&mut self) -> Opened {
        within(self.sessions.recv()).await.unwrap()
    }

    /// The next session, which said hello.
    pub(super) async fn accept(&mut self) -> Peer {
        let mut opened = self.accept_raw().await;
        let body = within(opened.reader.next()).await.unwrap().unwrap();
        let ClientFrame::Hello(hello) = codec::decode(Encoding::Json, &body).unwrap() else {
            panic!("no hello")
        };
        let Opened { session, send, reader } = opened;
        Peer { session, send, reader, hello }
    }

    /// A client with a live session.
    pub(super) async fn live(&mut self, config: Config) -> (Client, Peer) {
        let mut client = Client::connect(config).unwrap();
        let mut peer = self.accept().await;
        peer.welcome().await;
        within(client.live()).await.unwrap();
        (client, peer)
    }
}

async fn accept(endpoint: quinn::Endpoint, sessions: mpsc::Sender<Opened>) {
    let mut tasks = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        let sessions = sessions.clone();
        tasks.spawn(async move {
            let connection = incoming.await.unwrap();
            let data = connection.handshake_data().unwrap();
            let data = data.downcast::<quinn::crypto::rustls::HandshakeData>().unwrap();
            let session = if data.protocol.as_deref() == Some(b"h3") {
                let request = Request::accept(connection).await.unwrap();
                assert_eq!(request.url.path(), "/v1/push");
                request.respond(ConnectResponse::OK.with_protocol("fanfare.v1")).await.unwrap()
            } else {
                Session::raw(connection)
            };
            let Ok((send, receive)) = session.accept_bi().await else {
                return;
            };
            let reader = FrameReader::new(receive, CLIENT_FRAME_BYTES_MAX);
            let _ = sessions.send(Opened { session, send, reader }).await;
        });
    }
}

pub(super) struct Opened {
    pub(super) session: Session,
    pub(super) send: SendStream,
    pub(super) reader: FrameReader,
}

/// One session, from the server's side.
pub(super) struct Peer {
    pub(super) session: Session,
    send: SendStream,
    reader: FrameReader,
    pub(super) hello: Hello,
}

pub(super) const SERVER_TIME: u64 = 1_700_000_000_000;

impl Peer {
    pub(super) async fn welcome(&mut self) {
        let welcome = Welcome {
            session_id: "s-1".into(),
            user_id: "alice".into(),
            node: "node-a".into(),
            heartbeat_ms: 25_000,
            ack_timeout_ms: 10_000,
            window: 256,
            max_frame: 1024 * 1024,
            server_time: SERVER_TIME,
            inbox: "w".into(),
            recovered: true,
        };
        let bytes = codec::frame(Encoding::Json, &ServerFrame::Welcome(welcome)).unwrap();
        self.send.write_all(&bytes).await.unwrap();
    }

    pub(super) async fn say(&mut self, frame: &ServerFrame) {
        self.send.write_all(&codec::frame(self.hello.encoding, frame).unwrap()).await.unwrap();
    }

    pub(super) async fn ping(&mut self, t: u64, inbox: &str) {
        self.say(&ServerFrame::Ping { t, inbox: inbox.into() }).await;
    }

    /// Close frame and transport close, with one code.
    pub(super) async fn close(&mut self, code: CloseCode, retry_after_ms: u64) {
        self.say(&ServerFrame::Close(Close::new(code, "because", retry_after_ms))).await;
        // The frame must arrive: a bare QUIC close overtakes what is still on its way.
        self.send.finish().unwrap();
        let _ = self.send.stopped().await;
        self.session.close(code.code(), b"because");
    }

    pub(super) async fn read(&mut self) -> ClientFrame {
        let body = within(self.reader.next()).await.unwrap().unwrap();
        codec::decode(self.hello.encoding, &body).unwrap()
    }

    pub(super) async fn expect_ack(&mut self, lane: SessionLane, seq: u64) {
        assert_eq!(self.read().await, ClientFrame::Ack { lane, seq });
    }

    pub(super) async fn lane(&self, lane: SessionLane) -> Lane {
        let mut lane =
            Lane { send: self.session.open_uni().await.unwrap(), encoding: self.hello.encoding, name: lane };
        lane.write(&json!({"type": "lane", "lane": lane.name.as_str()})).await;
        lane
    }
}

/// One lane, from the server's side.
pub(super) struct Lane {
    send: SendStream,
    encoding: Encoding,
    name: SessionLane,
}

impl Lane {
    pub(super) async fn write(&mut self, frame: &Value) {
        self.send.write_all(&codec::frame(self.encoding, frame).unwrap()).await.unwrap();
    }

    pub(super) async fn notify(&mut self, id: &str) {
        self.write(&notification(id, &json!({}))).await;
    }

    pub(super) async fn require(&mut self, id: &str) {
        let mut frame = notification(id, &json!({}));
        frame["data"]["require_ack"] = true.into();
        self.write(&frame).await;
    }

    pub(super) async fn replay(&mut self, id: &str, cursor: &str) {
        let mut frame = notification(id, &json!({}));
        frame["inbox"] = cursor.into();
        self.write(&frame).await;
    }
}

pub(super) fn notification(id: &str, payload: &Value) -> Value {
    json!({"type": "notification", "data": {
        "notification_id": id, "notification_type": "friend.request", "timestamp": 1_700_000_000,
        "published_at_ms": 1_700_000_000_123_u64, "from_user_id": "bob", "priority": "high", "payload": payload}})
}

/// A body for a datagram.
pub(super) fn datagram(encoding: Encoding, frame: &Value) -> Bytes {
    codec::frame(encoding, frame).unwrap().slice(4..)
}

/// One socket for many clients.
pub(super) fn shared_endpoint() -> Endpoint {
    Endpoint::bind(Bind::Loopback).unwrap()
}
