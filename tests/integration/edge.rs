//! What clients do wrong, over both transports: each mistake has its close code, and costs nobody else anything.

use std::time::Duration;

use fanfare::client::{Client, Event};
use fanfare::clock::Now;
use fanfare::protocol::frame::SessionLane;
use fanfare::protocol::{ClientFrame, CloseCode, Encoding, ServerFrame};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::support::{
    Gateway, SCHEMES, SECRET, framed, hello, message, next_on, notification, token, token_for, within,
};

use CloseCode::{
    HeartbeatTimeout, HelloTimeout, Normal, OriginDenied, Overloaded, ProtocolError, Replaced, TokenExpired,
    TooManySessions, Unauthorized, UnsupportedVersion,
};

/// One byte more than a client's frame may have.
const TOO_LONG: u32 = 64 * 1024 + 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_frame_that_is_no_hello_is_a_protocol_error() {
    let gateway = Gateway::start().await;

    let nested = format!("{{\"type\":{}", "[".repeat(30_000));
    let long_token = json!({"type": "hello", "version": 1, "device_id": "d", "platform": "web"});
    for scheme in SCHEMES {
        for (what, bytes) in [
            ("garbage", vec![0x9f, 0x00, 0xff, 0x13, 0x37, 0x42]),
            ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
            ("length zero", vec![0, 0, 0, 0]),
            ("a length over 64 KiB", TOO_LONG.to_be_bytes().to_vec()),
            ("no text", framed([0xff, 0xfe, 0x00])),
            ("no JSON", framed("hello")),
            ("a list", framed(r#"["hello"]"#)),
            ("a text", framed(r#""hello""#)),
            ("a number", framed("1")),
            ("null", framed("null")),
            ("an empty object", framed("{}")),
            ("deep nesting", framed(nested.clone())),
            ("a hello without a token", framed(long_token.to_string())),
            ("an unknown type", framed(r#"{"type":"subscribe"}"#)),
            ("a bye", framed(r#"{"type":"bye"}"#)),
            ("an ack", framed(r#"{"type":"ack","lane":"high","seq":0}"#)),
            ("a pong", framed(r#"{"type":"pong","t":1}"#)),
            ("a token", framed(format!(r#"{{"type":"token","token":"{}"}}"#, token("mallory")))),
        ] {
            let what = format!("{scheme}, {what}");
            let mut peer = gateway.open(scheme).await;
            peer.control.write(&bytes).await.expect("the stream takes it");
            peer.expect_close(ProtocolError, &what).await;
        }
    }
    gateway.serves("bad first frames").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_stream_that_ends_before_its_hello_is_a_protocol_error() {
    let gateway = Gateway::start().await;

    for scheme in SCHEMES {
        for bytes in [&[0, 0][..], &[0, 0, 0, 9], b"\x00\x00\x00\x09{\"type\""] {
            let mut peer = gateway.open(scheme).await;
            peer.control.write(bytes).await.expect("the stream takes it");
            peer.control.finish().expect("it is open");
            peer.expect_close(ProtocolError, &format!("{scheme}, {bytes:?}")).await;
        }
    }
    // Over WebTransport a reset overtakes the bytes that make it a stream of the session, so nobody ever sees it.
    let mut peer = gateway.open("quic").await;
    peer.control.write(&[0, 0]).await.expect("the stream takes it");
    peer.control.reset(7).expect("it is open");
    peer.expect_close(ProtocolError, "reset").await;
    gateway.serves("cut hellos").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_says_no_hello_in_time_is_closed() {
    let gateway = Gateway::start_with(|setup| setup.config.edge.hello_timeout_ms = 300).await;

    for scheme in SCHEMES {
        let silent = gateway.open(scheme).await;
        silent.expect_end(HelloTimeout, &format!("{scheme}, nothing said")).await;

        let mut slow = gateway.open(scheme).await;
        slow.control.write(&framed("{}")[..5]).await.expect("the stream takes it");
        slow.expect_close(HelloTimeout, &format!("{scheme}, half a frame")).await;
    }
    gateway.serves("silence").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn violations_in_an_open_session_are_protocol_errors() {
    let gateway = Gateway::start().await;

    let second_hello = serde_json::to_string(&ClientFrame::Hello(hello(&token("mallory"), "d1")));
    let second_hello = second_hello.expect("it is JSON");
    for scheme in SCHEMES {
        for (what, bytes) in [
            ("a second hello", framed(&second_hello)),
            ("an unknown type", framed(r#"{"type":"subscribe"}"#)),
            ("an ack beyond what was sent", framed(r#"{"type":"ack","lane":"high","seq":1}"#)),
            (
                "an ack of the largest number",
                framed(format!(r#"{{"type":"ack","lane":"low","seq":{}}}"#, u64::MAX)),
            ),
            ("an ack of an unknown lane", framed(r#"{"type":"ack","lane":"urgent","seq":0}"#)),
            ("a negative ack", framed(r#"{"type":"ack","lane":"high","seq":-1}"#)),
            ("the other encoding", framed(b"\x81\xa4type\xa3bye")),
            ("a list", framed("[]")),
            ("length zero", vec![0, 0, 0, 0]),
            ("a length over 64 KiB", TOO_LONG.to_be_bytes().to_vec()),
        ] {
            let mut peer = gateway.live(scheme, "mallory", "d1").await;
            peer.control.write(&bytes).await.expect("the stream takes it");
            peer.expect_close(ProtocolError, &format!("{scheme}, {what}")).await;
        }

        let mut cut = gateway.live(scheme, "mallory", "d1").await;
        cut.control.write(&framed(r#"{"type":"bye"}"#)[..7]).await.expect("the stream takes it");
        cut.control.finish().expect("it is open");
        cut.expect_close(ProtocolError, &format!("{scheme}, a cut frame")).await;

        let mut reset = gateway.live(scheme, "mallory", "d1").await;
        reset.control.reset(7).expect("it is open");
        reset.expect_close(ProtocolError, &format!("{scheme}, a reset")).await;
    }
    gateway.serves("violations").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_beyond_the_last_frame_is_a_protocol_error_and_an_old_one_is_none() {
    let gateway = Gateway::start().await;

    for scheme in SCHEMES {
        let mut peer = gateway.live(scheme, "ann", "d1").await;
        let mut normal = None;
        for count in 1..=3 {
            let id = format!("{scheme}-{count}");
            gateway.publish("notification.message.new.ann", &message(&id)).await;
            let normal = match &mut normal {
                Some(normal) => normal,
                none => none.insert(peer.lane(SessionLane::Normal).await),
            };
            assert_eq!(next_on(normal).await.0, id, "the session goes on");
            for seq in [count, 0, count - 1, count] {
                peer.ack(SessionLane::Normal, seq).await;
            }
        }
        peer.ack(SessionLane::Normal, 4).await;
        peer.expect_close(ProtocolError, scheme).await;
    }
    gateway.serves("acks").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_has_one_stream() {
    let gateway = Gateway::start().await;

    for scheme in SCHEMES {
        let peer = gateway.live(scheme, "mallory", "d1").await;
        let mut second = within(peer.session.open_stream()).await.expect("the transport allows it");
        // The header of a stream alone may have ended the session before more is written, here and below.
        let _ = second.write(b"x").await;
        peer.expect_close(ProtocolError, &format!("{scheme}, a bidirectional stream")).await;

        let peer = gateway.live(scheme, "mallory", "d1").await;
        let _ = within(peer.session.send_uni(b"x")).await;
        peer.expect_close(ProtocolError, &format!("{scheme}, a unidirectional stream")).await;

        let mut early = gateway.open(scheme).await;
        let _ = within(early.session.send_uni(b"x")).await;
        early.hello(hello(&token("mallory"), "d1")).await;
        early.expect_close(ProtocolError, &format!("{scheme}, a stream before the hello")).await;
    }
    gateway.serves("streams too many").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_of_a_client_are_ignored() {
    let gateway = Gateway::start().await;

    for scheme in SCHEMES {
        let mut peer = gateway.live(scheme, scheme, "d1").await;
        for _ in 0..100 {
            peer.session.send_datagram(vec![0xff; 500].into()).expect("the transport allows it");
        }
        gateway.publish(&format!("notification.message.new.{scheme}"), &message(scheme)).await;
        let mut normal = peer.lane(SessionLane::Normal).await;
        assert_eq!(next_on(&mut normal).await.0, scheme);
        peer.send(&ClientFrame::Bye).await;
        peer.expect_close(Normal, scheme).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_tokens_open_no_session() {
    let gateway = Gateway::start_with(|setup| setup.config.edge.allowed_origins = vec!["*".to_owned()]).await;

    let now = Now::read().unix_ms / 1_000;
    let good = json!({"sub": "ann", "iat": now, "exp": now + 60});
    let signed = |change: &dyn Fn(&mut Value)| {
        let mut claims = good.clone();
        change(&mut claims);
        jwt(&claims, SECRET)
    };
    let without =
        |name: &'static str| signed(&move |claims| drop(claims.as_object_mut().map(|all| all.remove(name))));
    let parts: Vec<String> = signed(&|_| {}).split('.').map(str::to_owned).collect();
    let none = jwt_part(&json!({"alg": "none", "typ": "JWT"}));
    for scheme in SCHEMES {
        for (what, token, code) in [
            ("another secret", jwt(&good, b"another secret of 32 bytes or so"), Unauthorized),
            ("alg none", format!("{none}.{}.", parts[1]), Unauthorized),
            ("alg none, signed", format!("{none}.{}.{}", parts[1], parts[2]), Unauthorized),
            ("no signature", format!("{}.{}.", parts[0], parts[1]), Unauthorized),
            (
                "other claims",
                format!("{}.{}.{}", parts[0], jwt_part(&json!({"sub": "eve"})), parts[2]),
                Unauthorized,
            ),
            ("no JWT", "token".to_owned(), Unauthorized),
            ("nothing", String::new(), Unauthorized),
            ("no iat", without("iat"), Unauthorized),
            ("no exp", without("exp"), Unauthorized),
            ("no sub", without("sub"), Unauthorized),
            ("no valid user", signed(&|claims| claims["sub"] = json!("a.b")), Unauthorized),
            ("exp as text", signed(&|claims| claims["exp"] = json!("soon")), Unauthorized),
            ("another device", signed(&|claims| claims["device_id"] = json!("d2")), Unauthorized),
            ("another platform", signed(&|claims| claims["platform"] = json!("ios")), Unauthorized),
            ("expired", signed(&|claims| claims["exp"] = json!(now - 60)), TokenExpired),
        ] {
            let mut peer = gateway.open(scheme).await;
            peer.hello(hello(&token, "d1")).await;
            peer.expect_close(code, &format!("{scheme}, {what}")).await;
        }
        let mut peer = gateway.open(scheme).await;
        let own = signed(&|claims| {
            claims["device_id"] = json!("d1");
            claims["platform"] = json!("desktop");
        });
        peer.hello(hello(&own, "d1")).await;
        assert_eq!(peer.welcome().await.user_id, "ann", "the same claims, all good");
    }
    gateway.serves("bad tokens").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hellos_of_another_version_or_with_a_bad_device_are_refused() {
    let gateway = Gateway::start().await;

    for scheme in SCHEMES {
        for (what, version, device, code) in [
            ("version 0", 0, "d1", UnsupportedVersion),
            ("version 2", 2, "d1", UnsupportedVersion),
            ("a device with a dot", 1, "a.b", ProtocolError),
            ("no device", 1, "", ProtocolError),
        ] {
            let mut peer = gateway.open(scheme).await;
            let mut hello = hello(&token("ann"), device);
            hello.version = version;
            peer.hello(hello).await;
            peer.expect_close(code, &format!("{scheme}, {what}")).await;
        }
    }
    gateway.serves("bad hellos").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_connect_from_allowed_origins_only() {
    let allowed = "https://app.example.com";
    let gateway =
        Gateway::start_with(|setup| setup.config.edge.allowed_origins = vec![allowed.to_owned()]).await;

    for origin in
        ["https://evil.example.com", "http://app.example.com", "https://app.example.com.evil", "null"]
    {
        let mut config = gateway.device("ann", "d1");
        config.origin = Some(origin.to_owned());
        config.reconnect = false;
        let closed = within(Client::connect(config).expect("a good configuration").live()).await;
        assert_eq!(closed.expect_err("denied").code(), Some(OriginDenied.code()), "{origin}");
    }
    for origin in [Some(allowed), None] {
        let mut peer = gateway.open_from("https", origin).await;
        peer.hello(hello(&token("ann"), "d1")).await;
        peer.welcome().await;
    }
    gateway.serves("denied origins").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_connects_again_replaces_its_session() {
    let gateway = Gateway::start().await;

    for (first, second) in [("https", "quic"), ("quic", "https")] {
        let other_user = format!("not-{first}");
        let older = gateway.live(first, first, "d1").await;
        let newer = gateway.live(second, first, "d1").await;
        let other = gateway.live(second, &other_user, "d1").await;
        older.expect_close(Replaced, first).await;

        gateway.publish(&format!("notification.message.new.{first}"), &message(first)).await;
        assert_eq!(next_on(&mut newer.lane(SessionLane::Normal).await).await.0, first);
        gateway.publish(&format!("notification.message.new.{other_user}"), &message(second)).await;
        assert_eq!(next_on(&mut other.lane(SessionLane::Normal).await).await.0, second, "of another user");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_too_many_ends_the_users_oldest() {
    let gateway = Gateway::start_with(|setup| setup.config.edge.sessions_per_user_max = 2).await;

    for scheme in SCHEMES {
        let oldest = gateway.live(scheme, scheme, "d1").await;
        let kept = [gateway.live(scheme, scheme, "d2").await, gateway.live(scheme, scheme, "d3").await];
        oldest.expect_close(TooManySessions, scheme).await;
        gateway.publish(&format!("notification.message.new.{scheme}"), &message(scheme)).await;
        for peer in kept {
            assert_eq!(next_on(&mut peer.lane(SessionLane::Normal).await).await.0, scheme);
        }
    }
    gateway.serves("sessions too many").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_node_sends_clients_away_with_a_delay() {
    let gateway = Gateway::start_with(|setup| setup.config.edge.sessions_max = 1).await;
    let mut only = gateway.live("https", "ann", "d1").await;

    let mut late = gateway.open("quic").await;
    late.hello(hello(&token("ben"), "d1")).await;
    match late.frame().await {
        ServerFrame::Close(close) => assert!(close.retry_after_ms > 0 && close.reconnect, "{close:?}"),
        other => panic!("{other:?}"),
    }
    late.expect_end(Overloaded, "full").await;

    only.send(&ClientFrame::Bye).await;
    only.expect_close(Normal, "the only one leaves").await;
    gateway.serves("it was full").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_token_prolongs_the_session_and_others_end_it() {
    let gateway = Gateway::start().await;

    for scheme in SCHEMES {
        let short = token_for(scheme, Duration::from_secs(2));
        let (mut renewed, mut forgotten) = (gateway.open(scheme).await, gateway.open(scheme).await);
        renewed.hello(hello(&short, "renewed")).await;
        forgotten.hello(hello(&short, "forgotten")).await;
        renewed.welcome().await;
        forgotten.welcome().await;
        renewed.send(&ClientFrame::Token { token: token(scheme) }).await;

        // Both had the same token, so when it has ended the one, the other lives by its new token.
        forgotten.expect_close(TokenExpired, &format!("{scheme}, not renewed")).await;
        gateway.publish(&format!("notification.message.new.{scheme}"), &message(scheme)).await;
        assert_eq!(next_on(&mut renewed.lane(SessionLane::Normal).await).await.0, scheme);

        let expired = token_for(scheme, Duration::ZERO);
        for (what, token) in [
            ("of another user", token("ben")),
            ("not valid", "token".to_owned()),
            ("for another device", for_device(scheme, "d2")),
            ("over", expired.replace('.', "..")),
        ] {
            let mut peer = gateway.live(scheme, scheme, "d1").await;
            peer.send(&ClientFrame::Token { token }).await;
            peer.expect_close(Unauthorized, &format!("{scheme}, {what}")).await;
        }
    }
    gateway.serves("bad fresh tokens").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_is_closed_with_0() {
    let gateway = Gateway::start().await;

    for scheme in SCHEMES {
        let mut peer = gateway.live(scheme, "ann", "d1").await;
        peer.send(&ClientFrame::Bye).await;
        peer.expect_close(Normal, &format!("{scheme}, bye")).await;

        let mut peer = gateway.live(scheme, "ann", "d1").await;
        peer.control.finish().expect("it is open");
        peer.expect_close(Normal, &format!("{scheme}, the stream's end")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_answers_nothing_is_closed_after_two_heartbeats() {
    let gateway = Gateway::start_with(|setup| setup.config.edge.heartbeat_ms = 400).await;

    for scheme in SCHEMES {
        let mut peer = gateway.live(scheme, "ann", "d1").await;
        assert!(matches!(peer.frame().await, ServerFrame::Ping { .. }));
        peer.expect_close(HeartbeatTimeout, scheme).await;
    }

    let mut peer = gateway.live("https", "ann", "d1").await;
    for _ in 0..4 {
        match peer.frame().await {
            ServerFrame::Ping { t, .. } => peer.send(&ClientFrame::Pong { t }).await,
            other => panic!("a client that answers stays: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_a_lane_is_closed_and_nobody_else() {
    let gateway = Gateway::start().await;

    for scheme in SCHEMES {
        let mut bystander = gateway.client(scheme, "bystander").await;
        let peer = gateway.live(scheme, scheme, "stops").await;
        gateway
            .publish(&format!("notification.message.new.{scheme}"), &message(&format!("{scheme}-1")))
            .await;
        let mut normal = peer.lane(SessionLane::Normal).await;
        assert_eq!(next_on(&mut normal).await.0, format!("{scheme}-1"));
        normal.stop(9);
        // The stop is on its way; a write that follows it fails.
        let closed = peer.expect_close(ProtocolError, scheme);
        tokio::pin!(closed);
        for sent in 2.. {
            let next = notification(&mut bystander).await;
            assert!(next.notification_id.starts_with(scheme), "{next:?}");
            if futures::poll!(&mut closed).is_ready() {
                break;
            }
            gateway
                .publish(&format!("notification.message.new.{scheme}"), &message(&format!("{scheme}-{sent}")))
                .await;
        }
    }
    gateway.serves("a stopped lane").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_push_path_is_served() {
    let gateway = Gateway::start().await;

    for path in ["/", "/v1", "/v1/push/", "/v2/push"] {
        let mut config = gateway.device("ann", "d1");
        config.url = config.url.replace("/v1/push", path);
        config.reconnect = false;
        let mut client = Client::connect(config).expect("a good configuration");
        match within(client.next()).await {
            Some(Event::Closed(closed)) => assert!(closed.error.is_some(), "{path}: {closed:?}"),
            other => panic!("{path}: {other:?}"),
        }
    }
    gateway.serves("other paths").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_msgpack_session_is_closed_in_msgpack() {
    let gateway = Gateway::start().await;

    for scheme in SCHEMES {
        let mut peer = gateway.open(scheme).await;
        let mut hello = hello(&token("ann"), "d1");
        hello.encoding = Encoding::Msgpack;
        peer.hello(hello).await;
        peer.welcome().await;
        peer.control.write(&framed(r#"{"type":"bye"}"#)).await.expect("the stream takes it");
        let frame = within(peer.control.read_frame(Encoding::Msgpack)).await.expect("a frame");
        match frame {
            Some(ServerFrame::Close(close)) => assert_eq!(close.code, ProtocolError.code()),
            other => panic!("{other:?}"),
        }
        peer.expect_end(ProtocolError, scheme).await;
    }
}

/// A part of a JWT.
fn jwt_part(value: &Value) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
}

fn jwt(claims: &Value, secret: &[u8]) -> String {
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret))
        .expect("HS256 signs any JSON")
}

fn for_device(user: &str, device: &str) -> String {
    let now = Now::read().unix_ms / 1_000;
    jwt(&json!({"sub": user, "iat": now, "exp": now + 60, "device_id": device}), SECRET)
}
