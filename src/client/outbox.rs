//! What a session still has to say on its control stream, collected until the stream's writer takes it.
//!
//! Written by the session's readers and by the application's handle, read by one writer. Not a queue: acks and pongs
//! replace earlier ones, so a control stream that is blocked costs no memory.

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::state::{Done, Ledger};
use super::{AckMode, Config};
use crate::protocol::frame::SessionLane;
use crate::protocol::{ClientFrame, codec};

/// The part of a session that outlives its connection: frames in the application's hands refer to it.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    /// Wakes the writer; a wake while it writes is kept.
    pub(crate) wake: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    ledger: Ledger,
    pong: Option<u64>,
    token: Option<String>,
    bye: bool,
}

/// What the writer has to do.
pub(crate) struct Turn {
    /// Write this.
    pub(crate) bytes: BytesMut,
    /// Look again at this time.
    pub(crate) due: Option<Instant>,
    /// It was the last.
    pub(crate) bye: bool,
}

impl Outbox {
    /// Counts a frame and gives its `seq`.
    pub(crate) fn received(&self, lane: SessionLane) -> u64 {
        self.inner.lock().ledger.received(lane)
    }

    /// Notes that a frame is processed. Gives a cursor that is now safe to store.
    pub(crate) fn done(&self, lane: SessionLane, seq: u64, done: Done) -> Option<String> {
        let cursor = self.inner.lock().ledger.done(lane, seq, done, Instant::now());
        self.wake.notify_one();
        cursor
    }

    /// Answers a ping. `store` gets its cursor when that is safe to store already, before the pong can be written.
    pub(crate) fn ping(&self, t: u64, cursor: String, store: impl FnOnce(Option<String>)) {
        let mut inner = self.inner.lock();
        store(inner.ledger.ping(cursor));
        inner.pong = Some(t);
        drop(inner);
        self.wake.notify_one();
    }

    /// Sends a fresh token.
    pub(crate) fn token(&self, token: String) {
        self.inner.lock().token = Some(token);
        self.wake.notify_one();
    }

    /// Acks what is processed and says bye.
    pub(crate) fn bye(&self) {
        self.inner.lock().bye = true;
        self.wake.notify_one();
    }

    /// Takes what is to be written now.
    pub(crate) fn take(&self, config: &Config) -> Turn {
        let mut inner = self.inner.lock();
        let mut frames = Vec::new();
        frames.extend(inner.token.take().map(|token| ClientFrame::Token { token }));
        frames.extend(inner.pong.take().map(|t| ClientFrame::Pong { t }));
        let mut due = None;
        if config.ack != AckMode::Never {
            let acks = if inner.bye { inner.ledger.flush() } else { inner.ledger.due(Instant::now()) };
            frames.extend(acks.into_iter().map(|(lane, seq)| ClientFrame::Ack { lane, seq }));
            due = inner.ledger.due_at();
        }
        frames.extend(inner.bye.then_some(ClientFrame::Bye));
        let mut bytes = BytesMut::new();
        for frame in frames {
            match codec::frame(config.encoding, &frame) {
                Ok(frame) => bytes.extend_from_slice(&frame),
                Err(error) => tracing::warn!(%error, "frame was not encoded"),
            }
        }
        Turn { bytes, due, bye: inner.bye }
    }
}
