//! From a connection to a session: TLS, HTTP/3 where spoken, origin, hello, token, registration, welcome.
//!
//! Everything here has a time limit, and a permit bounds how many are here at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use metrics::counter;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use web_transport_quinn as wt;
use wt::proto::ConnectResponse;

use super::driver::{self, Control};
use super::endpoint::Shared;
use super::tls::ALPN_BARE;
use crate::causes::with_causes;
use crate::clock::Now;
use crate::control::Verdict;
use crate::protocol::frame::{Close, Welcome};
use crate::protocol::{
    CLIENT_FRAME_BYTES_MAX, CloseCode, DATAGRAM_BYTES_MAX, Encoding, SERVER_FRAME_BYTES_MAX, ServerFrame,
    codec,
};
use crate::session::hello::{Admitted, admit};
use crate::session::{Core, Limits, Recipient, Registry, Session};

/// Path of the WebTransport endpoint.
const PATH: &str = "/v1/push";
/// Subprotocol, picked when offered.
const SUBPROTOCOL: &str = "fanfare.v1";
/// Time for TLS and HTTP/3: several round trips on a bad mobile link.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time a client is told to wait when the node is full.
const OVERLOADED_RETRY_MS: u64 = 5_000;

/// Serves one connection from its first packet to its end.
pub(super) async fn serve(incoming: quinn::Incoming, shared: Arc<Shared>, permit: OwnedSemaphorePermit) {
    // A moment's work that needs more room than the session has for the rest of its life.
    if let Some((transport, control, registered)) = Box::pin(open(incoming, &shared, permit)).await {
        let code = driver::drive(transport, control, &registered.session, &shared).await;
        counter!("fanfare_edge_closed_total", "code" => code).increment(1);
        tracing::debug!(session = registered.session.id, code, "session ended");
    }
}

/// Brings a connection to a session that is welcomed or about to be closed; `None` when it got none.
async fn open(
    incoming: quinn::Incoming,
    shared: &Arc<Shared>,
    permit: OwnedSemaphorePermit,
) -> Option<(Arc<wt::Session>, Control, Registered)> {
    let connected = timeout(CONNECT_TIMEOUT, connect(incoming, shared)).await;
    // What follows costs little computing, so it does not count among the handshakes.
    drop(permit);
    match connected {
        Ok(Ok(Connected::Open(session))) => return greet(session, shared).await,
        Ok(Ok(Connected::OriginDenied(session, origin))) => {
            let close =
                Close::new(CloseCode::OriginDenied, format!("origin {origin} is not allowed here"), 0);
            driver::refuse(&session, None, &close).await;
        }
        Ok(Err(error)) => {
            counter!("fanfare_edge_refused_total", "reason" => "handshake_failed").increment(1);
            tracing::debug!(error = with_causes(&error), "handshake failed");
        }
        Err(_) => counter!("fanfare_edge_refused_total", "reason" => "handshake_timeout").increment(1),
    }
    None
}

enum Connected {
    Open(wt::Session),
    OriginDenied(wt::Session, String),
}

/// Why no session came about; the peer sees a QUIC or HTTP/3 error.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error(transparent)]
    Quic(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Http(#[from] wt::ServerError),
    #[error("no path {0} here")]
    Path(String),
}

async fn connect(incoming: quinn::Incoming, shared: &Shared) -> Result<Connected, ConnectError> {
    let connection = incoming.accept()?.await?;
    let handshake = connection
        .handshake_data()
        .and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    if handshake.is_some_and(|data| data.protocol.as_deref() == Some(ALPN_BARE)) {
        return Ok(Connected::Open(wt::Session::raw(connection)));
    }
    let request = wt::Request::accept(connection).await?;
    if request.url.path() != PATH {
        let path = request.url.path().to_owned();
        request.reject(wt::http::StatusCode::NOT_FOUND).await?;
        return Err(ConnectError::Path(path));
    }
    let origin =
        request.headers.get("origin").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let offered = request.protocols.iter().any(|protocol| protocol == SUBPROTOCOL);
    let response = if offered { ConnectResponse::OK.with_protocol(SUBPROTOCOL) } else { ConnectResponse::OK };
    let session = request.respond(response).await?;
    match origin {
        Some(origin) if !origin_allowed(&shared.config.allowed_origins, &origin) => {
            Ok(Connected::OriginDenied(session, origin))
        }
        _ => Ok(Connected::Open(session)),
    }
}

fn origin_allowed(allowed: &[String], origin: &str) -> bool {
    allowed.iter().any(|known| known == "*" || known.eq_ignore_ascii_case(origin))
}

/// Waits for the hello, then either refuses or registers and welcomes the session.
async fn greet(
    session: wt::Session,
    shared: &Arc<Shared>,
) -> Option<(Arc<wt::Session>, Control, Registered)> {
    let Ok(waiting) = shared.greetings.try_acquire() else {
        let close =
            Close::new(CloseCode::Overloaded, "too many connections without a hello", OVERLOADED_RETRY_MS);
        driver::refuse(&session, None, &close).await;
        return None;
    };
    let limit = Duration::from_millis(shared.config.hello_timeout_ms);
    let mut control = None;
    let hello = timeout(limit, first_frame(&session, &mut control)).await;
    drop(waiting);
    let (body, buffer) = match hello {
        Ok(Ok(hello)) => hello,
        Ok(Err(FirstFrame::Gone)) => return None,
        Ok(Err(FirstFrame::Bad(close))) => {
            driver::refuse(&session, control, &close).await;
            return None;
        }
        Err(_) => {
            let close =
                Close::new(CloseCode::HelloTimeout, format!("no hello within {} ms", limit.as_millis()), 0);
            driver::refuse(&session, control, &close).await;
            return None;
        }
    };
    let now = Now::read();
    let admitted = match admit(&body, |token| shared.verifier.verify(token, now)) {
        Ok(_) if shared.registry.sessions() >= shared.config.sessions_max => {
            Err(Close::new(CloseCode::Overloaded, "this node is full", OVERLOADED_RETRY_MS))
        }
        admitted => admitted,
    };
    // Before it is registered, so that a login that has ended does not take the place of a good one of the same device.
    let admitted = admitted.and_then(|admitted| match verdict(shared, &admitted, now) {
        Some(verdict) => Err(verdict.close()),
        None => Ok(admitted),
    });
    let mut admitted = match admitted {
        Ok(_) if !buffer.is_empty() => {
            let close = Close::new(CloseCode::ProtocolError, "only hello may be sent before the welcome", 0);
            driver::refuse(&session, control, &close).await;
            return None;
        }
        Ok(admitted) => admitted,
        Err(close) => {
            driver::refuse(&session, control, &close).await;
            return None;
        }
    };
    // A path or a client that takes none gets lane low instead.
    admitted.datagrams &= session.max_datagram_size() >= DATAGRAM_BYTES_MAX;
    let (send, recv) = control?;
    let control = Control { send, recv, buffer };
    let registered =
        Registered { session: register(shared, admitted.clone(), now), registry: shared.registry.clone() };
    if shared.draining.is_cancelled() {
        // It came too late to be asked to leave with the others.
        registered.session.own_core(|core| core.close(CloseCode::Draining, "the node is shutting down", 0));
    } else {
        // A client that leaves meanwhile is not waited for; the driver sees that it is gone.
        tokio::select! {
            () = welcome(shared, &registered.session, &admitted) => {}
            _ = session.closed() => {}
        }
    }
    Some((Arc::new(session), control, registered))
}

/// A registered session. It is unregistered when its task ends, also by a panic: nobody would write what it is given any
/// more.
struct Registered {
    registry: Arc<Registry>,
    session: Arc<Session>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.unregister(&self.session);
    }
}

fn verdict(shared: &Shared, admitted: &Admitted, now: Now) -> Option<Verdict> {
    shared.control.verdict(&admitted.user, &admitted.device, admitted.token_issued_ms, now.unix_ms)
}

/// Registered first, so that nothing that is pushed from now on is missed; welcomed when the inbox has been read, which
/// is after the other nodes know of it: what they found nobody for is in there.
fn register(shared: &Shared, admitted: Admitted, now: Now) -> Arc<Session> {
    let Admitted { user, device, platform, encoding, datagrams, token_expires_ms, token_issued_ms, .. } =
        admitted;
    let rotation = shared.limits.rotation.spread(rand::random(), rand::random());
    let limits = Limits { rotation, ..shared.limits };
    let mut core = Core::new(limits, encoding, datagrams, token_expires_ms, now);
    core.token_issued(token_issued_ms);
    shared.registry.register(user, device, platform, core)
}

/// Brings a registered session to its welcome, or to its close.
async fn welcome(shared: &Shared, session: &Session, admitted: &Admitted) {
    shared.registry.announced(&session.user).await;
    // Checked again now that it is registered and other nodes know of it: a ban that came in between found no session.
    if let Some(verdict) = verdict(shared, admitted, Now::read()) {
        return session.own_core(|core| core.close(verdict.code, verdict.close().reason, 0));
    }
    let missed = shared.replay.missed(&session.user, &session.device, admitted.resume.as_deref()).await;
    let now = Now::read();
    let cursor = missed.cursor.unwrap_or_else(|| shared.inbox.cursor(now.unix_ms));
    let welcome = ServerFrame::Welcome(Welcome {
        session_id: format!("{}-{}", *shared.node.borrow(), session.id),
        user_id: session.user.to_string(),
        node: shared.config.node.clone(),
        heartbeat_ms: shared.config.heartbeat_ms,
        ack_timeout_ms: crate::catalog::rules::ACK_TIMEOUT_MS,
        window: shared.config.window as u64,
        max_frame: SERVER_FRAME_BYTES_MAX as u64,
        server_time: now.unix_ms,
        inbox: cursor.to_string(),
        recovered: missed.recovered,
    });
    let frame = codec::frame(Encoding::Json, &welcome).expect("a welcome is JSON");
    session.own_core(|core| {
        core.welcome(frame, cursor, missed);
        let everywhere = Recipient::online(session.user.clone());
        for notice in shared.control.notices(now.unix_ms) {
            // A session so new has room, and one that had the announcement meanwhile knows it.
            core.offer(&notice, &everywhere, || None, now);
        }
    });
}

enum FirstFrame {
    Gone,
    Bad(Close),
}

/// Accepts the control stream and reads its first frame. What follows it stays in the buffer.
async fn first_frame(
    session: &wt::Session,
    control: &mut Option<(wt::SendStream, wt::RecvStream)>,
) -> Result<(Bytes, BytesMut), FirstFrame> {
    let (_, recv) = control.insert(session.accept_bi().await.map_err(|_| FirstFrame::Gone)?);
    let mut buffer = BytesMut::new();
    loop {
        match codec::split(&mut buffer, CLIENT_FRAME_BYTES_MAX) {
            Ok(Some(body)) => return Ok((body, buffer)),
            Ok(None) => {}
            Err(error) => {
                return Err(FirstFrame::Bad(Close::new(CloseCode::ProtocolError, error.to_string(), 0)));
            }
        }
        match recv.read_chunk(CLIENT_FRAME_BYTES_MAX, true).await {
            Ok(Some(chunk)) => buffer.extend_from_slice(&chunk.bytes),
            Ok(None) => {
                let close =
                    Close::new(CloseCode::ProtocolError, "the control stream ended before a whole hello", 0);
                return Err(FirstFrame::Bad(close));
            }
            Err(wt::ReadError::SessionError(_)) => return Err(FirstFrame::Gone),
            // The connection is alive, and would stay so for as long as its owner likes.
            Err(error) => {
                return Err(FirstFrame::Bad(Close::new(CloseCode::ProtocolError, error.to_string(), 0)));
            }
        }
    }
}
