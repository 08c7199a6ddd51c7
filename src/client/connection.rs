//! One session from hello to close: reads the control stream, the lanes and datagrams, writes what the state decided.
//!
//! A connection spawns nothing. Its parts are futures in one set that its owner polls through [`Connection::next`], so
//! dropping the connection ends them all and closes the session.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use web_transport_quinn::{RecvStream, SendStream, Session, SessionError, WebTransportError};

use super::endpoint::{Endpoint, OwnedSession, Target};
use super::outbox::{Outbox, Turn};
use super::state::{Done, renew_in, token_expiry};
use super::wire::{FrameError, FrameReader, LaneFrame, control_frame, lane_frame};
use super::{Arrived, Closed, Event, Item, Shared, unix_ms};
use crate::protocol::frame::{Close, Hello, Resume, ServerFrame, Welcome};
use crate::protocol::{ClientFrame, CloseCode, Encoding, SERVER_FRAME_BYTES_MAX, codec};

/// Longest time from the first packet to the answer to hello.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for the transport's close after the close frame, or for the server's close after the stream's end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest time in which frames that came before the close still reach the application's queue.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(100);

/// Heartbeats without a word from the server after which the session counts as lost.
const HEARTBEATS_LOST: u32 = 3;

/// What the owner of a connection must act on.
#[derive(Debug)]
pub(crate) enum Step {
    /// The server asks to connect anew; the session goes on meanwhile.
    Goaway(Goaway),
    /// The session is over.
    Ended(Closed),
}

/// See [`ServerFrame::Goaway`].
#[derive(Debug)]
pub(crate) struct Goaway {
    pub(crate) reason: String,
    pub(crate) delay: Duration,
}

enum Part {
    Lane(RecvStream),
    Goaway(FrameReader, Goaway),
    Ended(Closed),
    /// No more lanes, or no more frames on one.
    ReaderDone,
    Done,
}

/// What every part of a connection needs. The session closes with the last part.
struct Context {
    session: OwnedSession,
    outbox: Arc<Outbox>,
    shared: Arc<Shared>,
    events: mpsc::Sender<Item>,
    welcome: Welcome,
}

/// An open session.
pub(crate) struct Connection {
    context: Arc<Context>,
    parts: FuturesUnordered<BoxFuture<'static, Part>>,
    /// Parts that read lanes or accept them.
    readers: usize,
    ended: Option<(Closed, Instant)>,
    /// When the welcome came.
    pub(crate) since: Instant,
}

impl Connection {
    /// Connects, says hello and reads the answer.
    pub(crate) async fn open(
        target: &Target,
        endpoint: &Endpoint,
        shared: Arc<Shared>,
        events: mpsc::Sender<Item>,
    ) -> Result<Self, Closed> {
        let opened = timeout(OPEN_TIMEOUT, async {
            let token = shared.token().await?;
            let session = target.open(endpoint).await.map_err(Closed::failed)?;
            let (send, reader, welcome) = hello(&session, &shared, token.clone()).await?;
            Ok((session, send, reader, welcome, token))
        });
        let (session, send, mut reader, welcome, token) = match opened.await {
            Ok(opened) => opened?,
            Err(_) => return Err(Closed::failed("no answer to hello in time")),
        };
        reader.set_max(usize::try_from(welcome.max_frame).unwrap_or(SERVER_FRAME_BYTES_MAX));
        shared.store_first(&welcome.inbox);
        let outbox = Arc::new(Outbox::default());
        let context = Arc::new(Context { session, outbox, shared, events, welcome });
        let parts = FuturesUnordered::new();
        parts.push(read_control(context.clone(), reader).boxed());
        parts.push(write_control(context.clone(), send).boxed());
        parts.push(renew_token(context.clone(), token).boxed());
        parts.push(first_lane(context.clone()).boxed());
        if context.shared.config.datagrams {
            parts.push(read_datagrams(context.clone()).boxed());
        }
        Ok(Self { context, parts, readers: 1, ended: None, since: Instant::now() })
    }

    /// Lets the session go on until there is something to act on. Cancel-safe. Not to be called after `Ended`.
    pub(crate) async fn next(&mut self) -> Step {
        loop {
            let part = match self.ended.as_ref().map(|(_, until)| *until) {
                None => self.parts.next().await,
                Some(_) if self.readers == 0 => None,
                Some(until) => timeout_at(until, self.parts.next()).await.ok().flatten(),
            };
            match part {
                None => break,
                Some(Part::Lane(stream)) => {
                    self.readers += 1;
                    self.parts.push(read_lane(self.context.clone(), stream).boxed());
                    self.parts.push(accept_lane(self.context.clone()).boxed());
                }
                Some(Part::Goaway(reader, goaway)) => {
                    self.parts.push(read_control(self.context.clone(), reader).boxed());
                    return Step::Goaway(goaway);
                }
                Some(Part::Ended(closed)) => {
                    // When a lane's reader gives it, that reader stays counted: a broken session is not drained.
                    self.context.session.close(CloseCode::Normal.code(), b"");
                    self.ended.get_or_insert((closed, Instant::now() + DRAIN_TIMEOUT));
                }
                Some(Part::ReaderDone) => self.readers -= 1,
                Some(Part::Done) => {}
            }
        }
        Step::Ended(
            self.ended.take().map_or_else(|| Closed::failed("the session ended"), |(closed, _)| closed),
        )
    }

    /// Acks what is processed and says bye; the server's close follows.
    pub(crate) fn bye(&self) {
        self.context.outbox.bye();
    }
}

/// Opens the control stream, says hello and waits for welcome.
async fn hello(
    session: &Session,
    shared: &Shared,
    token: String,
) -> Result<(SendStream, FrameReader, Welcome), Closed> {
    let config = &shared.config;
    let hello = ClientFrame::Hello(Hello {
        version: 1,
        token,
        device_id: config.device_id.clone(),
        platform: config.platform.clone(),
        encoding: config.encoding,
        datagrams: config.datagrams,
        resume: shared.cursor().map(|inbox| Resume { inbox }),
    });
    let hello = codec::frame(Encoding::Json, &hello).map_err(Closed::failed)?;
    let Ok((mut send, receive)) = session.open_bi().await else {
        return Err(closed(session, None).await);
    };
    // A server that refuses before it reads says why in its close.
    let _ = send.write_all(&hello).await;
    let mut reader = FrameReader::new(receive, SERVER_FRAME_BYTES_MAX);
    loop {
        let Ok(Some(body)) = reader.next().await else {
            return Err(closed(session, None).await);
        };
        match control_frame(Encoding::Json, &body) {
            Ok(Some(ServerFrame::Welcome(welcome))) => return Ok((send, reader, welcome)),
            Ok(Some(ServerFrame::Close(frame))) => return Err(closed(session, Some(frame)).await),
            Ok(None) => {}
            Ok(Some(_)) => return Err(broken(session, "no welcome")),
            Err(error) => return Err(broken(session, &error.to_string())),
        }
    }
}

/// Waits for the transport's close and joins it with the close frame.
async fn closed(session: &Session, frame: Option<Close>) -> Closed {
    let mut closed = Closed { frame, ..Closed::default() };
    match timeout(CLOSE_TIMEOUT, session.closed()).await {
        Ok(SessionError::WebTransportError(WebTransportError::Closed(code, reason))) => {
            closed.transport = Some((code, reason));
        }
        Ok(error) => closed.error = Some(error.to_string()),
        Err(_) => {
            session.close(CloseCode::Normal.code(), b"");
            closed.error = Some("the server did not close the session".to_owned());
        }
    }
    closed
}

/// Closes a session whose server broke the protocol.
fn broken(session: &Session, why: &str) -> Closed {
    tracing::warn!(why, "server broke the protocol");
    session.close(CloseCode::ProtocolError.code(), why.as_bytes());
    Closed::failed(format!("the server broke the protocol: {why}"))
}

async fn read_control(context: Arc<Context>, mut reader: FrameReader) -> Part {
    let Context { session, outbox, shared, .. } = &*context;
    let patience =
        Duration::from_millis(context.welcome.heartbeat_ms.max(1_000)).saturating_mul(HEARTBEATS_LOST);
    loop {
        let body = match timeout(patience, reader.next()).await {
            Err(_) => return Part::Ended(Closed::failed("nothing was heard for three heartbeats")),
            Ok(Ok(Some(body))) => body,
            Ok(Ok(None) | Err(FrameError::Read(_) | FrameError::CutShort)) => {
                return Part::Ended(closed(session, None).await);
            }
            Ok(Err(error)) => return Part::Ended(broken(session, &error.to_string())),
        };
        match control_frame(shared.config.encoding, &body) {
            Ok(None) => {}
            Ok(Some(ServerFrame::Ping { t, inbox })) => outbox.ping(t, inbox, |cursor| shared.store(cursor)),
            Ok(Some(ServerFrame::Goaway { reason, reconnect_after_ms, .. })) => {
                let delay = Duration::from_millis(reconnect_after_ms);
                return Part::Goaway(reader, Goaway { reason, delay });
            }
            Ok(Some(ServerFrame::Close(frame))) => return Part::Ended(closed(session, Some(frame)).await),
            Ok(Some(_)) => return Part::Ended(broken(session, "welcome or lane on the control stream")),
            Err(error) => return Part::Ended(broken(session, &error.to_string())),
        }
    }
}

async fn write_control(context: Arc<Context>, mut send: SendStream) -> Part {
    let Context { outbox, shared, .. } = &*context;
    loop {
        let Turn { bytes, due, bye } = outbox.take(&shared.config);
        // An error here is the session's end, which the reader reports.
        if !bytes.is_empty() && send.write_all(&bytes).await.is_err() {
            return Part::Done;
        }
        if bye {
            // The stream stays open: the server's close ends it.
            std::future::pending::<()>().await;
        }
        tokio::select! {
            () = outbox.wake.notified() => {}
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }
}

/// Announces the session, then accepts lanes: so the application sees `Live` before any of its notifications.
async fn first_lane(context: Arc<Context>) -> Part {
    let live = Item::Event(Event::Live(Box::new(context.welcome.clone())));
    if context.events.send(live).await.is_err() {
        return Part::ReaderDone;
    }
    accept_lane(context).await
}

async fn accept_lane(context: Arc<Context>) -> Part {
    // An error here is the session's end, which the control stream's reader reports with its reason.
    context.session.accept_uni().await.map_or(Part::ReaderDone, Part::Lane)
}

async fn read_lane(context: Arc<Context>, stream: RecvStream) -> Part {
    let Context { session, outbox, shared, events, welcome } = &*context;
    let encoding = shared.config.encoding;
    let max = usize::try_from(welcome.max_frame).unwrap_or(SERVER_FRAME_BYTES_MAX);
    let mut reader = FrameReader::new(stream, max);
    let mut lane = None;
    loop {
        let body = match reader.next().await {
            Ok(Some(body)) => body,
            Err(FrameError::Codec(error)) => return Part::Ended(broken(session, &error.to_string())),
            Ok(None) | Err(_) => return Part::ReaderDone,
        };
        let frame = lane_frame(encoding, &body);
        let Some(lane) = lane else {
            match frame {
                Ok(LaneFrame::Lane(name)) => {
                    lane = Some(name);
                }
                Ok(_) => return Part::Ended(broken(session, "a lane without its first frame")),
                Err(error) => return Part::Ended(broken(session, &error.to_string())),
            }
            continue;
        };
        let seq = outbox.received(lane);
        match frame {
            Ok(LaneFrame::Notification(data, inbox)) => {
                let place = Some((outbox.clone(), lane, seq));
                let arrived =
                    Arrived { place, bytes: body.len(), data, inbox, at: Instant::now(), at_ms: unix_ms() };
                if events.send(Item::Frame(Box::new(arrived))).await.is_err() {
                    return Part::ReaderDone;
                }
            }
            other => {
                // A frame that cannot be read must not come again, so it counts as processed.
                if let Err(error) = other {
                    tracing::warn!(%error, lane = lane.as_str(), seq, "skipped a frame");
                    shared.stats.skipped();
                }
                shared.store(outbox.done(lane, seq, Done { bytes: body.len(), ..Done::default() }));
            }
        }
    }
}

async fn read_datagrams(context: Arc<Context>) -> Part {
    let Context { session, shared, events, .. } = &*context;
    loop {
        let body = match session.read_datagram().await {
            Ok(body) => body,
            Err(SessionError::WebTransportError(WebTransportError::UnknownSession)) => continue,
            Err(_) => return Part::Done,
        };
        let Ok(LaneFrame::Notification(data, inbox)) = lane_frame(shared.config.encoding, &body) else {
            shared.stats.skipped();
            continue;
        };
        let arrived =
            Arrived { place: None, bytes: body.len(), data, inbox, at: Instant::now(), at_ms: unix_ms() };
        // Ephemeral: rather lost than late, and datagrams must not wait behind a slow application.
        if events.try_send(Item::Frame(Box::new(arrived))).is_err() {
            shared.stats.dropped();
        }
    }
}

/// Sends a fresh token before the old one expires.
async fn renew_token(context: Arc<Context>, mut token: String) -> Part {
    let Context { outbox, shared, welcome, .. } = &*context;
    let start = Instant::now();
    while let Some(expiry) = token_expiry(&token) {
        // The server's clock decides when the token is over.
        let now_ms = welcome.server_time.saturating_add(start.elapsed().as_millis() as u64);
        sleep(renew_in(expiry, now_ms)).await;
        match shared.fresh_token().await {
            Ok(fresh) if fresh != token => {
                token = fresh;
                outbox.token(token.clone());
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "token was not renewed"),
        }
    }
    Part::Done
}
