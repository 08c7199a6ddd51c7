//! The task of one session: its control stream, its times, and what whoever pushes leaves to it.
//!
//! The core decides, the driver obeys. A push is written to its lane by whoever pushes it; this task is woken for what
//! found no room there.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt;
use futures::future::{BoxFuture, Fuse, FusedFuture};
use metrics::counter;
use tokio::time::{Instant, timeout};
use web_transport_quinn as wt;

use super::endpoint::Shared;
use super::lanes::Lanes;
use super::outgoing::{CLOSE_TIMEOUT, Outgoing};
use crate::clock::Now;
use crate::protocol::frame::Close;
use crate::protocol::{CLIENT_FRAME_BYTES_MAX, CloseCode, Encoding, ServerFrame, codec};
use crate::session::inbox::{Cursor, Missed};
use crate::session::{Request, Session, Undelivered, hello};

/// The control stream after the hello.
pub(super) struct Control {
    pub(super) send: wt::SendStream,
    pub(super) recv: wt::RecvStream,
    /// What came after the hello in the same read.
    pub(super) buffer: BytesMut,
}

/// Refuses a connection: a close frame where there is a control stream, then the close itself.
pub(super) async fn refuse(
    session: &wt::Session,
    control: Option<(wt::SendStream, wt::RecvStream)>,
    close: &Close,
) {
    counter!("fanfare_edge_refused_total", "reason" => close.name.clone()).increment(1);
    if let Some((send, _)) = control {
        let frame =
            codec::frame(Encoding::Json, &ServerFrame::Close(close.clone())).expect("a close is JSON");
        let mut out = Outgoing::new(send);
        out.chunks.push(frame);
        out.finish().await;
    }
    end(session, close.code, &close.name).await;
}

/// Closes the session and waits until the peer knows, so that a page sees code and reason.
async fn end(session: &wt::Session, code: u32, name: &str) {
    session.close(code, name.as_bytes());
    let _ = timeout(CLOSE_TIMEOUT, session.closed()).await;
}

/// QUIC priority of the control stream: above all lanes.
const CONTROL_PRIORITY: i32 = 4;

/// How long after a stream's error the connection's end is expected.
const LOST_WITHIN: Duration = Duration::from_millis(100);

/// What is counted for a session that ended without a close code of ours: the client closed or vanished.
const GONE: &str = "gone";

/// Runs `session` to its end; gives the name of the code it ended with.
pub(super) async fn drive(
    transport: Arc<wt::Session>,
    control: Control,
    session: &Session,
    shared: &Shared,
) -> &'static str {
    let Control { send, mut recv, mut buffer } = control;
    let _ = send.set_priority(CONTROL_PRIORITY);
    let mut control = Outgoing::new(send);
    // The welcome goes before everything else.
    session.own_core(|core| core.take_control(&mut control.chunks));
    let _ = control.flush().now_or_never();
    session.attach(Box::new(Lanes::new(transport.clone(), session.bell().clone())));
    let mut extra = pin!(extra_stream(&transport));
    let mut closed = pin!(transport.closed());
    // The end first: nothing else matters after it.
    let mut heard = poll_fn(|cx| {
        if closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Heard::Closed);
        }
        if extra.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Heard::ExtraStream);
        }
        pin!(recv.read_chunk(CLIENT_FRAME_BYTES_MAX, true)).poll(cx).map(Heard::Control)
    });
    let mut alarm = pin!(tokio::time::sleep_until(Now::read().instant));
    let mut inbox_read: Fuse<BoxFuture<'_, Missed>> = Fuse::terminated();
    read_frames(session, &mut buffer, shared);
    loop {
        let now = Now::read();
        let turn = session.own_core(|core| {
            let next = core.tick(now, || shared.inbox.cursor(now.unix_ms));
            core.take_control(&mut control.chunks);
            Turn {
                next,
                closing: core.closing(),
                shed: core.take_shed(),
                read_from: if inbox_read.is_terminated() { core.take_inbox_read(now) } else { None },
            }
        });
        shared.registry.deliver_elsewhere(turn.shed);
        if let Some(code) = turn.closing {
            return Box::pin(leave(&transport, control, code)).await;
        }
        if let Some(from) = turn.read_from {
            inbox_read = read_inbox(session, shared, from).fuse();
        }
        if !control.chunks.is_empty() {
            // What finds no room is written on below.
            let _ = control.flush().now_or_never();
        }
        if let Err(reason) = session.write(now) {
            if lost(&transport).await {
                return GONE;
            }
            fail(session, &reason);
            continue;
        }
        // One that rings too early costs a turn; setting it costs a lock that all sessions share.
        if turn.next < alarm.deadline() || alarm.is_elapsed() {
            alarm.as_mut().reset(turn.next);
        }
        tokio::select! {
            biased;
            // First what the client says, since acks make room, and the bell last, since its work is done at the top of
            // the loop anyway.
            heard = &mut heard => match heard {
                Heard::Closed => return session.own_core(|core| core.closing()).map_or(GONE, CloseCode::name),
                Heard::ExtraStream => fail(session, "only one client stream is allowed"),
                Heard::Control(Ok(Some(chunk))) => {
                    buffer.extend_from_slice(&chunk.bytes);
                    read_frames(session, &mut buffer, shared);
                }
                Heard::Control(Ok(None)) if buffer.is_empty() => {
                    session.own_core(|core| core.close(CloseCode::Normal, "bye", 0));
                }
                Heard::Control(Ok(None)) => fail(session, "the control stream ended inside a frame"),
                Heard::Control(Err(_)) if lost(&transport).await => return GONE,
                Heard::Control(Err(error)) => fail(session, &error.to_string()),
            },
            missed = &mut inbox_read => session.own_core(|core| core.inbox_read(missed, Now::read())),
            result = control.flush(), if !control.chunks.is_empty() => match result {
                Ok(()) => {}
                Err(_) if lost(&transport).await => return GONE,
                Err(error) => fail(session, &error.to_string()),
            },
            () = session.woken() => {}
            () = &mut alarm => {}
        }
    }
}

/// What comes from the client's side.
enum Heard {
    Closed,
    ExtraStream,
    Control(Result<Option<quinn::Chunk>, wt::ReadError>),
}

/// What the core wants of one turn of the loop, beside writing.
struct Turn {
    /// When it is to be asked again.
    next: Instant,
    closing: Option<CloseCode>,
    /// For others to deliver.
    shed: Vec<Undelivered>,
    /// Where the inbox is to be read from.
    read_from: Option<Cursor>,
}

/// Says the last words and closes; gives the name of the code.
async fn leave(transport: &wt::Session, control: Outgoing, code: CloseCode) -> &'static str {
    control.finish().await;
    end(transport, code.code(), code.name()).await;
    code.name()
}

/// Reads what came into the inbox after `from` while the session is open.
fn read_inbox<'a>(session: &'a Session, shared: &'a Shared, from: Cursor) -> BoxFuture<'a, Missed> {
    async move { shared.replay.missed(&session.user, &session.device, Some(&from.to_string())).await }.boxed()
}

/// True when the whole connection is gone, or goes within a moment: a client that leaves resets its streams, and those
/// packets may overtake the close.
fn lost(transport: &wt::Session) -> BoxFuture<'_, bool> {
    // It comes once in a session's life, which is to be small until then.
    async { timeout(LOST_WITHIN, transport.closed()).await.is_ok() }.boxed()
}

/// Ends the session for a violation.
fn fail(session: &Session, reason: &str) {
    session.own_core(|core| core.close(CloseCode::ProtocolError, reason, 0));
}

/// Resolves when the client opens a stream besides the control stream.
async fn extra_stream(transport: &wt::Session) {
    let opened = tokio::select! {
        stream = transport.accept_bi() => stream.is_ok(),
        stream = transport.accept_uni() => stream.is_ok(),
    };
    if !opened {
        // The connection is gone, which the caller learns from it directly.
        std::future::pending::<()>().await;
    }
}

/// Hands every whole frame in `buffer` to the core.
fn read_frames(session: &Session, buffer: &mut BytesMut, shared: &Shared) {
    loop {
        match codec::split(buffer, CLIENT_FRAME_BYTES_MAX) {
            Ok(Some(body)) => {
                let now = Now::read();
                if let Some(Request::Token(token)) = session.own_core(|core| core.on_frame(&body, now)) {
                    renew_token(session, &token, now, shared);
                }
            }
            Ok(None) => return,
            Err(error) => return fail(session, &error.to_string()),
        }
    }
}

/// A fresh token must be valid, for the same user, and for this device; and its login must not have ended.
fn renew_token(session: &Session, token: &str, now: Now, shared: &Shared) {
    let renewed = shared.verifier.verify(token, now).map_err(|error| error.close()).and_then(|claims| {
        hello::matches(&claims, &session.device, &session.platform)?;
        if claims.user == session.user {
            Ok(claims)
        } else {
            Err(Close::new(CloseCode::Unauthorized, "the token is for another user", 0))
        }
    });
    match renewed {
        Ok(claims) => {
            // Said first and checked second, like a new session.
            session.own_core(|core| core.token_issued(claims.issued_ms));
            let verdict =
                shared.control.verdict(&session.user, &session.device, claims.issued_ms, now.unix_ms);
            session.own_core(|core| match verdict {
                Some(verdict) => core.close(verdict.code, verdict.close().reason, 0),
                None => core.token_renewed(claims.expires_ms),
            });
        }
        // Whatever is wrong with it, the client must not come back with the same one.
        Err(close) => session.own_core(|core| core.close(CloseCode::Unauthorized, close.reason, 0)),
    }
}
