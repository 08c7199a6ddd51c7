//! The last word on one JetStream message: Ack, Term or Nak, and Progress before it.
//!
//! The last word takes the acker by value, so nobody can say two. An acker that is dropped without one leaves the
//! message to JetStream, which delivers it again after `ack_wait`; each such drop is counted.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::{Client, Subject};
use metrics::{Counter, counter};

/// What the ackers of a source share: the connection on which they say it, which has much to copy, and the counters of
/// what is said, which take longer to find than to increment.
#[derive(Debug)]
pub(super) struct Voice {
    client: Client,
    ack: Counter,
    term: Counter,
    nak: Counter,
    progress: Counter,
    none: Counter,
}

impl Voice {
    pub(super) fn new(client: Client) -> Self {
        let said = |kind| counter!("fanfare_nats_acks_total", "kind" => kind);
        Self {
            client,
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
    /// Where JetStream hears about the message.
    reply: Subject,
    voice: Arc<Voice>,
    settled: bool,
}

impl Acker {
    /// An acker of the message whose acks go to `reply`.
    pub(super) fn new(reply: Subject, voice: Arc<Voice>) -> Self {
        Self { reply, voice, settled: false }
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
            AckKind::Ack => ("ack", &self.voice.ack),
            AckKind::Term => ("term", &self.voice.term),
            AckKind::Nak(_) => ("nak", &self.voice.nak),
            AckKind::Progress | AckKind::Next => ("progress", &self.voice.progress),
        };
        count.increment(1);
        if let Err(error) = self.voice.client.publish(self.reply.clone(), kind.into()).await {
            // The connection is closed for good; JetStream delivers the message again to somebody else.
            tracing::warn!(%error, kind = name, "a message could not be settled and will be delivered again");
        }
    }
}

impl Drop for Acker {
    fn drop(&mut self) {
        if !self.settled {
            self.voice.none.increment(1);
        }
    }
}

impl std::fmt::Debug for Acker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acker").field("settled", &self.settled).finish_non_exhaustive()
    }
}
