//! A stream and what it has still to write.

use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use web_transport_quinn as wt;

/// Time for the last frame to reach the client, and again for the close itself.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Chunks handed to quinn in one write: as many as one wake-up commonly has ready.
const CHUNKS_PER_WRITE: usize = 64;

/// See the module.
pub(super) struct Outgoing {
    pub(super) stream: wt::SendStream,
    pub(super) chunks: Vec<Bytes>,
}

impl Outgoing {
    pub(super) fn new(stream: wt::SendStream) -> Self {
        Self { stream, chunks: Vec::new() }
    }

    /// Writes until nothing is left, as far as there is room. A chunk leaves the queue when quinn has it, and quinn keeps
    /// the waker of a write that found none.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), wt::WriteError>> {
        while !self.chunks.is_empty() {
            let count = self.chunks.len().min(CHUNKS_PER_WRITE);
            let written = ready!(pin!(self.stream.write_chunks(&mut self.chunks[..count])).poll(cx))?;
            self.chunks.drain(..written.chunks);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes until nothing is left. Cancel-safe.
    pub(super) async fn flush(&mut self) -> Result<(), wt::WriteError> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Writes the rest, ends the stream and waits until the peer has all of it.
    pub(super) async fn finish(mut self) {
        let whole = async {
            self.flush().await.ok()?;
            self.stream.finish().ok()?;
            self.stream.stopped().await.ok()
        };
        // A peer that does not take the last frame sees the close code all the same.
        let _ = timeout(CLOSE_TIMEOUT, whole).await;
    }
}
