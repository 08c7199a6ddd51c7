//! The client against a real QUIC server in the same process, which does what each test says.

mod server;
mod several;

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use base64::Engine as _;
use serde_json::json;
use web_transport_quinn::{SessionError, WebTransportError};

use self::server::{SERVER_TIME, Server, datagram, notification, shared_endpoint, within};
use super::raw::RawSession;
use super::{AckMode, Client, Closed, Event, Received, Target, Tokens, Trust, Why};
use crate::protocol::frame::{ServerFrame, SessionLane};
use crate::protocol::{ClientFrame, CloseCode, Encoding};

const HIGH: SessionLane = SessionLane::High;
const NORMAL: SessionLane = SessionLane::Normal;
const INBOX: SessionLane = SessionLane::Inbox;

#[tokio::test]
async fn both_transports_and_encodings_carry_a_whole_session() {
    for scheme in ["https", "quic"] {
        for encoding in [Encoding::Json, Encoding::Msgpack] {
            let mut server = Server::start();
            let mut config = server.config();
            config.url = server.url(scheme);
            config.encoding = encoding;
            let (mut client, mut peer) = server.live(config).await;
            assert_eq!((peer.hello.version, peer.hello.encoding, &peer.hello.resume), (1, encoding, &None));

            let mut lane = peer.lane(HIGH).await;
            let mut frame = notification("n-1", &json!({"text": "你好", "n": [1, -1, 0.5, null]}));
            frame["data"]["require_ack"] = true.into();
            lane.write(&frame).await;
            let received = next(&mut client).await;
            assert_eq!(
                (received.lane, received.seq, received.notification_id.as_str()),
                (Some(HIGH), 1, "n-1")
            );
            assert_eq!(received.payload, frame["data"]["payload"]);
            assert_eq!(received.from_user_id.as_deref(), Some("bob"));
            assert!(received.require_ack && !received.via_datagram);
            peer.expect_ack(HIGH, 1).await;

            peer.ping(77, "p-1").await;
            assert_eq!(peer.read().await, ClientFrame::Pong { t: 77 });
            assert_eq!(client.cursor().as_deref(), Some("p-1"));

            lane.notify("n-2").await;
            next(&mut client).await;
            let (closed, ()) = tokio::join!(within(client.close()), async {
                peer.expect_ack(HIGH, 2).await;
                assert_eq!(peer.read().await, ClientFrame::Bye);
                peer.close(CloseCode::Normal, 0).await;
            });
            assert_eq!((closed.code(), closed.transport), (Some(0), Some((0, "because".into()))), "{scheme}");
        }
    }
}

#[tokio::test]
async fn roots_are_trusted_by_name() {
    let mut server = Server::start();
    let mut config = server.config();
    config.trust = Trust::Roots(server.pem.clone());
    config.url = config.url.replace("127.0.0.1", "localhost");
    server.live(config).await;
}

#[tokio::test]
async fn another_certificate_is_refused() {
    let server = Server::start();
    let mut config = server.config();
    config.trust = Trust::CertificateHashes(vec![[7; 32]]);
    config.reconnect = false;
    let closed = within(Client::connect(config).unwrap().live()).await.unwrap_err();
    assert_eq!(closed.code(), None);
    assert!(closed.error.is_some());
}

#[tokio::test]
async fn a_lane_is_acked_after_32_frames() {
    let mut server = Server::start();
    let (mut client, mut peer) = server.live(server.config()).await;
    let mut high = peer.lane(HIGH).await;
    let mut normal = peer.lane(NORMAL).await;
    normal.notify("other").await;
    next(&mut client).await;
    for seq in 1..=32 {
        high.notify(&format!("n-{seq}")).await;
        assert_eq!(next(&mut client).await.seq, seq);
    }
    peer.expect_ack(HIGH, 32).await;
    peer.expect_ack(NORMAL, 1).await;
}

#[tokio::test]
async fn duplicates_are_acked_and_given_once_across_sessions() {
    let mut server = Server::start();
    let (mut client, mut peer) = server.live(server.config()).await;
    let mut high = peer.lane(HIGH).await;
    high.require("n-1").await;
    next(&mut client).await;
    peer.expect_ack(HIGH, 1).await;
    let mut inbox = peer.lane(INBOX).await;
    inbox.replay("n-1", "c-1").await;
    inbox.replay("n-2", "c-2").await;
    assert_eq!(next(&mut client).await.notification_id, "n-2");
    assert_eq!(client.cursor().as_deref(), Some("c-2"));

    peer.close(CloseCode::HeartbeatTimeout, 1).await;
    let (mut peer, ()) = tokio::join!(server.accept(), async {
        assert!(matches!(within(client.next()).await, Some(Event::Waiting { .. })));
    });
    assert_eq!(peer.hello.resume.as_ref().map(|resume| resume.inbox.as_str()), Some("c-2"));
    peer.welcome().await;
    within(client.live()).await.unwrap();
    let mut high = peer.lane(HIGH).await;
    high.require("n-2").await;
    high.require("n-3").await;
    assert_eq!(next(&mut client).await.notification_id, "n-3");
    peer.expect_ack(HIGH, 2).await;
    let stats = client.stats();
    assert_eq!((stats.sessions, stats.notifications, stats.duplicates), (2, 3, 2));
}

#[tokio::test]
async fn a_close_with_0_that_nobody_asked_for_is_a_lost_connection() {
    for scheme in ["https", "quic"] {
        let mut server = Server::start();
        let mut config = server.config();
        config.url = server.url(scheme);
        let (mut client, peer) = server.live(config).await;

        peer.session.close(0, b"");

        assert!(matches!(within(client.next()).await, Some(Event::Waiting { .. })), "{scheme}");
        let mut peer = server.accept().await;
        peer.welcome().await;
        within(client.live()).await.unwrap();
    }
}

#[tokio::test]
async fn frames_that_came_before_the_close_are_given() {
    let mut server = Server::start();
    let (mut client, mut peer) = server.live(server.config()).await;
    let mut lane = peer.lane(HIGH).await;
    lane.notify("kicked").await;
    peer.close(CloseCode::LoggedOut, 0).await;
    assert_eq!(next(&mut client).await.notification_id, "kicked");
    assert_eq!(closed(&mut client).await.code(), Some(3503));
}

#[tokio::test]
async fn reconnects_after_3003_when_the_server_says() {
    let mut server = Server::start();
    for scheme in ["https", "quic"] {
        let mut config = server.config();
        config.url = server.url(scheme);
        let (mut client, mut peer) = server.live(config).await;
        peer.close(CloseCode::HeartbeatTimeout, 40).await;
        let Some(Event::Waiting { why: Why::Closed(closed), delay }) = within(client.next()).await else {
            panic!("no waiting")
        };
        assert_eq!(delay, Duration::from_millis(40));
        assert_eq!(closed.frame.unwrap().name, "heartbeat_timeout");
        assert_eq!(closed.transport, Some((3003, "because".into())));
        let mut peer = server.accept().await;
        assert_eq!(peer.hello.resume.as_ref().unwrap().inbox, "w", "the first session had none");
        peer.welcome().await;
        within(client.live()).await.unwrap();
    }
}

#[tokio::test]
async fn a_first_session_that_breaks_with_a_frame_in_hand_resumes_from_its_welcome() {
    let mut server = Server::start();
    let mut config = server.config();
    config.ack = AckMode::Manual;
    let (mut client, mut peer) = server.live(config).await;
    assert_eq!(peer.hello.resume, None);
    peer.lane(HIGH).await.require("n-1").await;
    next(&mut client).await;
    peer.close(CloseCode::HeartbeatTimeout, 1).await;
    assert_eq!(server.accept().await.hello.resume.unwrap().inbox, "w");
}

#[tokio::test]
async fn a_session_with_a_cursor_keeps_it_until_a_frame_or_a_ping_gives_a_newer_one() {
    let mut server = Server::start();
    let mut config = server.config();
    config.resume = Some("before".into());
    let (mut client, mut peer) = server.live(config).await;
    peer.close(CloseCode::HeartbeatTimeout, 1).await;
    let mut peer = server.accept().await;
    assert_eq!(peer.hello.resume.as_ref().unwrap().inbox, "before", "the welcome's would skip the replay");
    peer.welcome().await;
    within(client.live()).await.unwrap();
    peer.lane(SessionLane::Inbox).await.replay("r-1", "frame").await;
    next(&mut client).await;
    peer.close(CloseCode::HeartbeatTimeout, 1).await;
    let mut peer = server.accept().await;
    assert_eq!(peer.hello.resume.as_ref().unwrap().inbox, "frame");
    peer.welcome().await;
    within(client.live()).await.unwrap();
    peer.ping(1, "ping").await;
    assert_eq!(peer.read().await, ClientFrame::Pong { t: 1 });
    peer.close(CloseCode::HeartbeatTimeout, 1).await;
    assert_eq!(server.accept().await.hello.resume.unwrap().inbox, "ping");
}

#[tokio::test]
async fn does_not_reconnect_after_3501_or_when_told_not_to() {
    let mut server = Server::start();
    for (code, reconnect) in [(CloseCode::Unauthorized, true), (CloseCode::Draining, false)] {
        let mut config = server.config();
        config.reconnect = reconnect;
        let mut client = Client::connect(config).unwrap();
        let mut peer = server.accept().await;
        peer.close(code, 1).await;
        let closed = closed(&mut client).await;
        assert_eq!((closed.code(), closed.reason()), (Some(code.code()), "because"));
        assert!(within(client.next()).await.is_none());
    }
}

#[tokio::test]
async fn the_transports_close_alone_is_enough() {
    let mut server = Server::start();
    for scheme in ["https", "quic"] {
        let mut config = server.config();
        config.url = server.url(scheme);
        let (mut client, peer) = server.live(config).await;
        peer.session.close(CloseCode::Banned.code(), b"spam");
        let closed = closed(&mut client).await;
        assert_eq!((closed.frame, closed.transport), (None, Some((3502, "spam".into()))), "{scheme}");
    }
}

#[tokio::test]
async fn goaway_moves_to_a_new_session_while_the_old_one_goes_on() {
    let mut server = Server::start();
    let (mut client, mut old) = server.live(server.config()).await;
    let mut lane = old.lane(HIGH).await;
    old.say(&ServerFrame::Goaway {
        reason: "draining".into(),
        reconnect_after_ms: 20,
        close_after_ms: 9_000,
    })
    .await;
    let Some(Event::Waiting { why: Why::Goaway { reason }, delay }) = within(client.next()).await else {
        panic!("no goaway")
    };
    assert_eq!((reason.as_str(), delay), ("draining", Duration::from_millis(20)));

    let mut new = server.accept().await;
    lane.require("on the old one").await;
    assert_eq!(next(&mut client).await.notification_id, "on the old one");
    old.expect_ack(HIGH, 1).await;

    new.welcome().await;
    within(client.live()).await.unwrap();
    old.close(CloseCode::Replaced, 0).await;
    let mut lane = new.lane(HIGH).await;
    lane.require("on the new one").await;
    assert_eq!(next(&mut client).await.notification_id, "on the new one");
    new.expect_ack(HIGH, 1).await;
}

#[tokio::test]
async fn a_new_token_is_asked_for_after_3005_and_not_after_3003() {
    let mut server = Server::start();
    let asked = std::sync::Arc::new(AtomicU32::new(0));
    let mut config = server.config();
    let count = asked.clone();
    config.tokens = Tokens::from_fn(move || {
        let number = count.fetch_add(1, Relaxed);
        async move { Ok(format!("token-{number}")) }
    });
    let (mut client, mut peer) = server.live(config).await;
    for (code, token) in [(CloseCode::HeartbeatTimeout, "token-0"), (CloseCode::TokenExpired, "token-1")] {
        peer.close(code, 1).await;
        peer = server.accept().await;
        assert_eq!(peer.hello.token, token);
        peer.welcome().await;
        within(client.live()).await.unwrap();
    }
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    let mut server = Server::start();
    let mut config = server.config();
    let expires = AtomicU32::new((SERVER_TIME / 1_000) as u32 + 1);
    config.tokens = Tokens::from_fn(move || {
        let claims = json!({"sub": "alice", "exp": expires.fetch_add(3_600, Relaxed)}).to_string();
        let body = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims);
        async move { Ok(format!("e30.{body}.s")) }
    });
    let (_client, mut peer) = server.live(config).await;
    let ClientFrame::Token { token } = peer.read().await else { panic!("no token") };
    assert_ne!(token, peer.hello.token);
}

#[tokio::test]
async fn a_slow_application_is_not_acked_for_but_pings_are_answered() {
    let mut server = Server::start();
    let mut config = server.config();
    config.queue = 2;
    let (mut client, mut peer) = server.live(config).await;
    let mut lane = peer.lane(HIGH).await;
    for number in 1..=50 {
        lane.require(&format!("n-{number}")).await;
    }
    // Streams are independent: a ping may be read before the frames that were written before it.
    let mut t = 0;
    let held = loop {
        t += 1;
        let cursor = format!("p-{t}");
        peer.ping(t, &cursor).await;
        assert_eq!(peer.read().await, ClientFrame::Pong { t }, "and no ack before it");
        if client.cursor().as_ref() != Some(&cursor) {
            break cursor;
        }
    };
    for seq in 1..=50 {
        assert_eq!(next(&mut client).await.seq, seq);
    }
    let mut acked = 0;
    while acked < 50 {
        let ClientFrame::Ack { lane: HIGH, seq } = peer.read().await else { panic!("no ack") };
        assert!(seq > acked);
        acked = seq;
    }
    assert_eq!(client.cursor(), Some(held));
}

#[tokio::test]
async fn manual_acks_come_in_any_order_and_are_sent_without_gaps() {
    let mut server = Server::start();
    let mut config = server.config();
    config.ack = AckMode::Manual;
    let (mut client, mut peer) = server.live(config).await;
    let mut lane = peer.lane(HIGH).await;
    lane.require("n-1").await;
    lane.require("n-2").await;
    let (first, second) = (next(&mut client).await, next(&mut client).await);
    client.ack(&second);
    peer.ping(5, "p").await;
    assert_eq!(peer.read().await, ClientFrame::Pong { t: 5 });
    assert_eq!(client.cursor(), Some("w".into()));
    client.ack(&first);
    peer.expect_ack(HIGH, 2).await;
}

#[tokio::test]
async fn acks_can_be_withheld_for_tests_of_a_server() {
    let mut server = Server::start();
    let mut config = server.config();
    config.ack = AckMode::Never;
    let (mut client, mut peer) = server.live(config).await;
    peer.lane(HIGH).await.require("n-1").await;
    next(&mut client).await;
    client.leave();
    assert_eq!(peer.read().await, ClientFrame::Bye);
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_left_and_tried_again() {
    let mut server = Server::start();
    for scheme in ["https", "quic"] {
        let mut config = server.config();
        config.url = server.url(scheme);
        let (mut client, peer) = server.live(config).await;
        let mut uni = peer.session.open_uni().await.unwrap();
        uni.write_all(b"\0\0\0\0").await.unwrap();
        let Some(Event::Waiting { why: Why::Closed(closed), .. }) = within(client.next()).await else {
            panic!("no waiting")
        };
        assert_eq!(closed.code(), None);
        let error = within(peer.session.closed()).await;
        assert!(matches!(
            error,
            SessionError::WebTransportError(WebTransportError::Closed(code, _)) if code == 3500
        ));
        server.accept().await;
    }
}

#[tokio::test]
async fn datagrams_are_given_without_a_lane_and_unknown_frames_are_counted_on_it() {
    let mut server = Server::start();
    for (scheme, encoding) in [("https", Encoding::Msgpack), ("quic", Encoding::Json)] {
        let mut config = server.config();
        config.url = server.url(scheme);
        config.encoding = encoding;
        let (mut client, mut peer) = server.live(config).await;
        peer.session.send_datagram(datagram(encoding, &notification("typing", &json!({})))).unwrap();
        let received = next(&mut client).await;
        assert!((received.via_datagram, received.lane, received.seq) == (true, None, 0));

        let mut lane = peer.lane(HIGH).await;
        lane.write(&json!({"type": "later", "data": 1})).await;
        lane.write(&json!({"type": "notification", "data": 1})).await;
        lane.require("n-3").await;
        assert_eq!(next(&mut client).await.seq, 3);
        peer.expect_ack(HIGH, 3).await;
        assert_eq!(client.stats().skipped, 1);
    }
}

#[tokio::test]
async fn many_clients_share_one_socket() {
    let mut server = Server::start();
    let endpoint = shared_endpoint();
    let mut live = Vec::new();
    for number in 0..20 {
        let mut config = server.config();
        config.device_id = format!("device-{number}");
        config.endpoint = Some(endpoint.clone());
        live.push(server.live(config).await);
    }
    let ports: std::collections::BTreeSet<_> =
        live.iter().map(|(_, peer)| peer.session.remote_address()).collect();
    assert_eq!(ports.len(), 1);
}

#[tokio::test]
async fn dropping_the_client_closes_the_session() {
    let mut server = Server::start();
    for scheme in ["https", "quic"] {
        let mut config = server.config();
        config.url = server.url(scheme);
        let (client, peer) = server.live(config).await;
        drop(client);
        within(peer.session.closed()).await;
    }
}

#[tokio::test]
async fn a_raw_session_writes_what_it_is_told() {
    let mut server = Server::start();
    for scheme in ["https", "quic"] {
        let target = Target::new(&server.url(scheme), &server.trust(), None).unwrap();
        let raw = RawSession::connect(&target, &shared_endpoint()).await.unwrap();
        let mut control = raw.open_stream().await.unwrap();
        control.write(&[0, 0, 0, 0]).await.unwrap();
        let mut peer = server.accept_raw().await;
        assert!(within(peer.reader.next()).await.is_err(), "a frame has at least one byte");
        peer.send.write_all(b"\0\0\0\x02{}").await.unwrap();
        assert_eq!(within(control.read_body()).await.unwrap().unwrap(), "{}");

        let mut uni = peer.session.open_uni().await.unwrap();
        uni.write_all(b"\0\0\0\x1c{\"type\":\"lane\",\"lane\":\"low\"}").await.unwrap();
        let mut lane = within(raw.accept_lane()).await.unwrap();
        assert_eq!(within(lane.read_header(Encoding::Json)).await.unwrap(), Some(SessionLane::Low));
        peer.session.close(3500, b"zero length");
        assert_eq!(within(raw.closed()).await.transport, Some((3500, "zero length".into())));
    }
}

async fn next(client: &mut Client) -> Received {
    within(client.notification()).await.unwrap()
}

async fn closed(client: &mut Client) -> Closed {
    match within(client.next()).await {
        Some(Event::Closed(closed)) => *closed,
        other => panic!("{other:?}"),
    }
}
