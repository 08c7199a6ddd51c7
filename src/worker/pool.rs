//! One worker: pulls a lane, handles what needs no waiting at once, and holds the rest in bounded number.
//!
//! The messages in hand are tasks of the worker's own `JoinSet`. At shutdown it stops pulling, gives back what was
//! pulled and not begun, lets what is in hand finish within a limit, and gives back the rest.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use metrics::{Counter, counter};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Config;
use super::hand::{Hand, Place};
use super::handler::{End, First, Handler};
use crate::catalog::Lane;
use crate::clock::Now;
use crate::delivery::evidence::Record;
use crate::delivery::{Ledger, dead_letter, retry};
use crate::nats::{Acker, Message, Source};
use crate::pipeline::{Reason, Refusal};
use crate::turn::Turn;

/// A suspect that has not taken the process down within a second of work is waiting for an ack or a write, and the next
/// one may start.
const ALONE: Duration = Duration::from_secs(1);

/// At this delivery a message is given up. JetStream would stop at 20 by itself, silently.
const CRASH_LOOP_AT: u64 = 15;

/// The last delivery that is handled. Whoever can still say why it failed writes that into the dead letter; at the next
/// one nobody knows more than that it never came to an end.
const LAST_TRY: u64 = CRASH_LOOP_AT - 1;

/// A worker of one lane.
pub(super) struct Worker {
    lane: Lane,
    source: Source,
    handler: Arc<Handler>,
    hand: Arc<Hand>,
    pulled: Counter,
    drain: Duration,
    in_hand: JoinSet<()>,
    turn: Turn,
}

impl Worker {
    pub(super) fn new(lane: Lane, source: Source, handler: Arc<Handler>, config: &Config) -> Self {
        Self {
            lane,
            source,
            handler,
            hand: Hand::new(lane, config.in_hand, config.in_hand_bytes),
            pulled: counter!("fanfare_worker_messages_total", "lane" => lane.as_str()),
            drain: Duration::from_secs(config.drain_s),
            in_hand: JoinSet::new(),
            turn: Turn::default(),
        }
    }

    /// Works until `soft` is cancelled, then drains.
    pub(super) async fn run(mut self, soft: CancellationToken) {
        let hard = CancellationToken::new();
        loop {
            let free = self.hand.has_room();
            // Stopping goes before all; finished tasks before new messages, so that the count is true.
            tokio::select! {
                biased;
                () = soft.cancelled() => break,
                Some(_) = self.in_hand.join_next() => {}
                () = self.hand.freed(), if !free => {}
                (message, acker) = self.source.next(), if free => self.take(message, acker, &hard).await,
            }
        }
        self.stop(&hard).await;
    }

    /// Handles one message, or begins to.
    async fn take(&mut self, message: Message, acker: Acker, hard: &CancellationToken) {
        self.turn.give_way().await;
        self.pulled.increment(1);
        let suspect = self.handler.suspects().includes(&message.origin);
        let first = if message.origin.deliveries >= CRASH_LOOP_AT {
            let detail = format!("delivered {} times without coming to an end", message.origin.deliveries);
            Some(First::End(End::Refused(Refusal::new(Reason::CrashLoop, detail))))
        } else if suspect {
            None
        } else {
            let first = first(&self.handler, &message);
            self.turn.spend(first.users());
            match first {
                First::End(End::Settled(ledger)) => {
                    acker.ack().await;
                    self.handler.commit(ledger);
                    return;
                }
                other => Some(other),
            }
        };
        let place = self.hand.place(message.body.len());
        let held = Held { lane: self.lane, handler: self.handler.clone(), message, acker, place };
        self.in_hand.spawn(held.finish(first, hard.clone()));
    }

    async fn stop(mut self, hard: &CancellationToken) {
        for (_, acker) in self.source.left_over() {
            acker.nak(Duration::ZERO).await;
        }
        let finish = async { while self.in_hand.join_next().await.is_some() {} };
        if tokio::time::timeout(self.drain, finish).await.is_err() {
            tracing::warn!(
                lane = self.lane.as_str(),
                messages = self.in_hand.len(),
                "messages were still in hand at the end of the drain and go back to JetStream"
            );
            hard.cancel();
            while self.in_hand.join_next().await.is_some() {}
        }
    }
}

/// The part of handling that never waits, with a panic in it made a refusal.
fn first(handler: &Handler, message: &Message) -> First {
    let first = std::panic::catch_unwind(AssertUnwindSafe(|| handler.first(message, Now::read())));
    first.unwrap_or_else(|panic| First::End(End::Refused(panicked(&*panic))))
}

/// What a caught panic says, as a refusal.
pub(super) fn panicked(panic: &(dyn std::any::Any + Send)) -> Refusal {
    counter!("fanfare_worker_panics_total").increment(1);
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    Refusal::new(Reason::Panic, format!("handling it panicked: {text}"))
}

/// A message in hand.
struct Held {
    lane: Lane,
    handler: Arc<Handler>,
    message: Message,
    acker: Acker,
    place: Place,
}

impl Held {
    /// Brings it to its end: settled, in the dead letters, or given back. JetStream hears all the while that somebody
    /// is at it.
    async fn finish(self, first: Option<First>, hard: CancellationToken) {
        let end = {
            let work = AssertUnwindSafe(self.work(first)).catch_unwind();
            tokio::pin!(work);
            let mut progress = tokio::time::interval(super::progress_every(self.lane));
            progress.tick().await;
            loop {
                tokio::select! {
                    biased;
                    () = hard.cancelled() => break End::GivenBack,
                    end = &mut work => break end.unwrap_or_else(|panic| End::Refused(panicked(&*panic))),
                    _ = progress.tick() => self.acker.progress().await,
                }
            }
        };
        self.settle(end).await;
    }

    async fn work(&self, first: Option<First>) -> End {
        match first {
            Some(first) => self.rest(first).await,
            // Boxed, as all that is rare: every message in hand has room for the largest of what may become of it.
            None => Box::pin(self.alone()).await,
        }
    }

    /// A suspect is handled alone among suspects, so that only one of them can be the cause of the next crash.
    async fn alone(&self) -> End {
        let alone = self.handler.suspects().alone().await;
        let rest = self.rest(self::first(&self.handler, &self.message));
        tokio::pin!(rest);
        if let Ok(end) = tokio::time::timeout(ALONE, &mut rest).await {
            return end;
        }
        drop(alone);
        rest.await
    }

    async fn rest(&self, first: First) -> End {
        match first {
            First::End(end) => end,
            First::Later(work) => self.handler.later(&self.message, *work, &self.place).await,
        }
    }

    async fn settle(self, end: End) {
        match end {
            End::Settled(ledger) => {
                self.acker.ack().await;
                self.handler.commit(ledger);
            }
            End::Refused(refusal) => Box::pin(self.bury(&refusal)).await,
            End::Unwritten(error) if self.message.origin.deliveries >= LAST_TRY => {
                let detail = format!("at delivery {}: {error}", self.message.origin.deliveries);
                Box::pin(self.bury(&Refusal::new(Reason::WriteRefused, detail))).await;
            }
            End::Unwritten(error) => self.come_again(&*error).await,
            End::GivenBack => self.acker.nak(Duration::ZERO).await,
        }
    }

    /// To the dead letters; only then is it terminated.
    async fn bury(self, refusal: &Refusal) {
        let handler = &self.handler;
        match dead_letter::write(handler.context(), handler.catalog(), &self.message, refusal).await {
            Ok(()) => {
                self.acker.term().await;
                let record = Record::dead_lettered(&self.message, refusal);
                handler.commit(Ledger::dead_lettered(record));
            }
            Err(error) => self.come_again(&error).await,
        }
    }

    /// Back to JetStream for later, because something could not be read or written.
    async fn come_again(self, error: &(dyn std::error::Error + Send + Sync)) {
        let deliveries = self.message.origin.deliveries;
        let delay = retry::refused_write_delay(deliveries, rand::random());
        counter!("fanfare_worker_given_back_total", "lane" => self.lane.as_str()).increment(1);
        tracing::error!(
            %error,
            stream_seq = self.message.origin.seq,
            deliveries,
            delay_s = delay.as_secs(),
            "a notification could not be finished and is tried again later"
        );
        self.handler.suspects().gave_back(&self.message.origin);
        self.acker.nak(delay).await;
    }
}

/// Describes the metrics of this part.
pub(super) fn describe() {
    metrics::describe_counter!("fanfare_worker_messages_total", "notifications pulled, by lane");
    metrics::describe_counter!("fanfare_worker_panics_total", "panics while handling a notification");
    metrics::describe_counter!(
        "fanfare_worker_given_back_total",
        "notifications given back because JetStream did not take a write or answer a read, by lane"
    );
}
