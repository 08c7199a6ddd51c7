//! The last word on one JetStream message: Ack, Term or Nak, and Progress before it.
//!
//! The last word takes the acker by value, so nobody can say two. An acker that is dropped without one leaves the
//! message to JetStream, which delivers it again after `ack_wait`; each such drop is counted.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::message::Acker as Inner;
use metrics::{Counter, counter};

/// The counters of what is said, found once: looking one up takes longer than saying it.
#[derive(Debug)]
pub(super) struct Said {
    ack: Counter,
    term: Counter,
    nak: Counter,
    progress: Counter,
    none: Counter,
}

impl Default for Said {
    fn default() -> Self {
        let said = |kind| counter!("fanfare_nats_acks_total", "kind" => kind);
        Self {
            ack: said("ack"),
            term: said("term"),
            nak: said("nak"),
            progress: said("progress"),
            none: said("none"),
        }
    }
}

/// Holds the right to settle one message.
pub struct Acker {
    inner: Inner,
    said: Arc<Said>,
    settled: bool,
}

impl Acker {
    /// An acker around the client's own, which counts in `said`.
    pub(super) fn new(inner: Inner, said: Arc<Said>) -> Self {
        Self { inner, said, settled: false }
    }

    /// Every outcome is final: JetStream removes the message.
    pub async fn ack(self) {
        self.settle(AckKind::Ack).await;
    }

    /// The message is in the dead letters: JetStream removes it and never delivers it again.
    pub async fn term(self) {
        self.settle(AckKind::Term).await;
    }

    /// Not now: JetStream delivers the message again after `delay`, which counts as a delivery.
    pub async fn nak(self, delay: Duration) {
        self.settle(AckKind::Nak(Some(delay))).await;
    }

    /// Still at it: JetStream starts `ack_wait` anew. No last word.
    pub async fn progress(&self) {
        self.send(AckKind::Progress).await;
    }

    async fn settle(mut self, kind: AckKind) {
        self.settled = true;
        self.send(kind).await;
    }

    async fn send(&self, kind: AckKind) {
        let (name, count) = match kind {
            AckKind::Ack => ("ack", &self.said.ack),
            AckKind::Term => ("term", &self.said.term),
            AckKind::Nak(_) => ("nak", &self.said.nak),
            AckKind::Progress | AckKind::Next => ("progress", &self.said.progress),
        };
        count.increment(1);
        if let Err(error) = self.inner.ack_with(kind).await {
            // The connection is closed for good; JetStream delivers the message again to somebody else.
            tracing::warn!(%error, kind = name, "a message could not be settled and will be delivered again");
        }
    }
}

impl Drop for Acker {
    fn drop(&mut self) {
        if !self.settled {
            self.said.none.increment(1);
        }
    }
}

impl std::fmt::Debug for Acker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acker").field("settled", &self.settled).finish_non_exhaustive()
    }
}
