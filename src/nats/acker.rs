//! The last word on one JetStream message: Ack, Term or Nak, and Progress before it.
//!
//! The last word takes the acker by value, so nobody can say two. An acker that is dropped without one leaves the
//! message to JetStream, which delivers it again after `ack_wait`; each such drop is counted.

use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::message::Acker as Inner;
use metrics::counter;

/// Holds the right to settle one message.
pub struct Acker {
    inner: Inner,
    settled: bool,
}

impl Acker {
    /// An acker around the client's own.
    pub(crate) fn new(inner: Inner) -> Self {
        Self { inner, settled: false }
    }

    /// Every outcome is final: JetStream removes the message.
    pub async fn ack(self) {
        self.settle(AckKind::Ack, "ack").await;
    }

    /// The message is in the dead letters: JetStream removes it and never delivers it again.
    pub async fn term(self) {
        self.settle(AckKind::Term, "term").await;
    }

    /// Not now: JetStream delivers the message again after `delay`, which counts as a delivery.
    pub async fn nak(self, delay: Duration) {
        self.settle(AckKind::Nak(Some(delay)), "nak").await;
    }

    /// Still at it: JetStream starts `ack_wait` anew. No last word.
    pub async fn progress(&self) {
        self.send(AckKind::Progress, "progress").await;
    }

    async fn settle(mut self, kind: AckKind, name: &'static str) {
        self.settled = true;
        self.send(kind, name).await;
    }

    async fn send(&self, kind: AckKind, name: &'static str) {
        counter!("fanfare_nats_acks_total", "kind" => name).increment(1);
        if let Err(error) = self.inner.ack_with(kind).await {
            // The connection is closed for good; JetStream delivers the message again to somebody else.
            tracing::warn!(%error, kind = name, "a message could not be settled and will be delivered again");
        }
    }
}

impl Drop for Acker {
    fn drop(&mut self) {
        if !self.settled {
            counter!("fanfare_nats_acks_total", "kind" => "none").increment(1);
        }
    }
}

impl std::fmt::Debug for Acker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acker").field("settled", &self.settled).finish_non_exhaustive()
    }
}
