//! Moves the bytes of one session: control stream, lanes and datagrams, in one task.
//!
//! The core decides, the driver obeys. Frames are taken from the core only when a stream has nothing left to write, so
//! what is taken is on its way; writes are cancel-safe and keep their place across turns of the loop.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::{BoxFuture, Fuse, FusedFuture};
use metrics::counter;
use tokio::time::{Instant, timeout};
use web_transport_quinn as wt;

use super::endpoint::Shared;
use super::when_woken::WhenWoken;
use crate::clock::Now;
use crate::protocol::frame::{Close, SessionLane};
use crate::protocol::{CLIENT_FRAME_BYTES_MAX, CloseCode, Encoding, ServerFrame, codec};
use crate::session::inbox::{Cursor, Missed};
use crate::session::{Core, Request, Session, Undelivered, hello};

/// Time for the last frame to reach the client, and again for the close itself.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Chunks handed to quinn in one write: as many as one wake-up commonly has ready.
const CHUNKS_PER_WRITE: usize = 64;

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

/// A stream and what it has still to write.
struct Outgoing {
    stream: wt::SendStream,
    chunks: Vec<Bytes>,
}

impl Outgoing {
    fn new(stream: wt::SendStream) -> Self {
        Self { stream, chunks: Vec::new() }
    }

    /// Writes until nothing is left. Cancel-safe: a chunk leaves the queue when quinn has it.
    async fn flush(&mut self) -> Result<(), wt::WriteError> {
        while !self.chunks.is_empty() {
            let count = self.chunks.len().min(CHUNKS_PER_WRITE);
            let written = self.stream.write_chunks(&mut self.chunks[..count]).await?;
            self.chunks.drain(..written.chunks);
        }
        Ok(())
    }

    /// Writes the rest, ends the stream and waits until the peer has all of it.
    async fn finish(mut self) {
        let whole = async {
            self.flush().await.ok()?;
            self.stream.finish().ok()?;
            self.stream.stopped().await.ok()
        };
        // A peer that does not take the last frame sees the close code all the same.
        let _ = timeout(CLOSE_TIMEOUT, whole).await;
    }
}

/// A lane's stream, opened when there is something to write.
enum LaneStream {
    Idle,
    Opening(BoxFuture<'static, Result<wt::SendStream, wt::SessionError>>, Vec<Bytes>),
    Open(Outgoing),
}

impl LaneStream {
    fn is_empty(&self) -> bool {
        match self {
            Self::Idle => true,
            Self::Opening(_, chunks) => chunks.is_empty(),
            Self::Open(out) => out.chunks.is_empty(),
        }
    }

    /// Opens the stream if needed and writes. An error ends the session.
    async fn flush(&mut self, priority: i32) -> Result<(), String> {
        if let Self::Opening(opening, chunks) = self {
            let stream = opening.await.map_err(|error| error.to_string())?;
            stream.set_priority(priority).map_err(|error| error.to_string())?;
            *self = Self::Open(Outgoing { stream, chunks: std::mem::take(chunks) });
        }
        match self {
            Self::Open(out) => out.flush().await.map_err(|error| error.to_string()),
            Self::Idle | Self::Opening(..) => Ok(()),
        }
    }
}

/// QUIC priority of the control stream: above all lanes.
const CONTROL_PRIORITY: i32 = 4;

const fn priority(lane: SessionLane) -> i32 {
    3 - lane.index() as i32
}

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
    let mut streams = Streams {
        control: Outgoing::new(send),
        lanes: [const { LaneStream::Idle }; 4],
        datagrams: Vec::new(),
        transport: transport.clone(),
    };
    let mut extra = pin!(extra_stream(&transport));
    let mut closed = pin!(transport.closed());
    // The end first: nothing else matters after it.
    let mut heard = WhenWoken::new(poll_fn(|cx| {
        if closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Heard::Closed);
        }
        if extra.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Heard::ExtraStream);
        }
        pin!(recv.read_chunk(CLIENT_FRAME_BYTES_MAX, true)).poll(cx).map(Heard::Control)
    }));
    let mut alarm = pin!(tokio::time::sleep_until(Now::read().instant));
    let mut inbox_read: Fuse<BoxFuture<'_, Missed>> = Fuse::terminated();
    read_frames(session, &mut buffer, shared);
    loop {
        let now = Now::read();
        // Most turns are for a push, so this is all that the core is locked for.
        let turn = session.own_core(|core| {
            let next = core.tick(now, || shared.inbox.cursor(now.unix_ms));
            streams.take(core, now);
            Turn {
                next,
                closing: core.closing(),
                shed: core.take_shed(),
                read_from: if inbox_read.is_terminated() { core.take_inbox_read(now) } else { None },
            }
        });
        shared.registry.deliver_elsewhere(turn.shed);
        if let Some(code) = turn.closing {
            return Box::pin(leave(&transport, streams, code)).await;
        }
        if let Some(from) = turn.read_from {
            inbox_read = read_inbox(session, shared, from).fuse();
        }
        if let Err(reason) = streams.write() {
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
            // First what the client says (acks make room), then writing by lane priority, and the bell last, since its
            // work is done at the top of the loop anyway.
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
            result = streams.flush(), if !streams.is_idle() => match result {
                Ok(()) => {}
                Err(_) if lost(&transport).await => return GONE,
                Err(reason) => fail(session, &reason),
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
async fn leave(transport: &wt::Session, streams: Streams, code: CloseCode) -> &'static str {
    streams.control.finish().await;
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

struct Streams {
    control: Outgoing,
    lanes: [LaneStream; 4],
    datagrams: Vec<Bytes>,
    transport: Arc<wt::Session>,
}

impl Streams {
    /// Takes what the core has for the control stream, for lanes that are idle, and as datagrams.
    fn take(&mut self, core: &mut Core, now: Now) {
        core.take_control(&mut self.control.chunks);
        for lane in SessionLane::ALL {
            match &mut self.lanes[lane.index()] {
                stream @ LaneStream::Idle => {
                    let mut chunks = Vec::new();
                    core.take(lane, now, &mut chunks);
                    if !chunks.is_empty() {
                        chunks.insert(0, core.lane_header(lane));
                        let transport = self.transport.clone();
                        let opening = async move { transport.open_uni().await }.boxed();
                        *stream = LaneStream::Opening(opening, chunks);
                    }
                }
                LaneStream::Open(out) if out.chunks.is_empty() => core.take(lane, now, &mut out.chunks),
                LaneStream::Opening(..) | LaneStream::Open(_) => {}
            }
        }
        core.take_datagrams(&mut self.datagrams);
    }

    /// Writes as much as goes without waiting.
    fn write(&mut self) -> Result<(), String> {
        for datagram in self.datagrams.drain(..) {
            if self.transport.send_datagram(datagram).is_err() {
                counter!("fanfare_session_dropped_total", "reason" => "datagram_not_sent").increment(1);
            }
        }
        // Each turn empties one stream; what is left then waits for room.
        while !self.is_idle() {
            match self.flush().now_or_never() {
                Some(result) => result?,
                None => break,
            }
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.control.chunks.is_empty() && self.lanes.iter().all(LaneStream::is_empty)
    }

    /// Writes until one stream has nothing left, so that it can be filled again while another waits for room. Pending
    /// when all are empty.
    async fn flush(&mut self) -> Result<(), String> {
        let Self { control, lanes: [high, inbox, normal, low], .. } = self;
        tokio::select! {
            biased;
            result = control.flush(), if !control.chunks.is_empty() => result.map_err(|error| error.to_string()),
            result = high.flush(priority(SessionLane::High)), if !high.is_empty() => result,
            result = inbox.flush(priority(SessionLane::Inbox)), if !inbox.is_empty() => result,
            result = normal.flush(priority(SessionLane::Normal)), if !normal.is_empty() => result,
            result = low.flush(priority(SessionLane::Low)), if !low.is_empty() => result,
            else => std::future::pending().await,
        }
    }
}
