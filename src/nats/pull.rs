//! Pull requests on one durable consumer, with no more asked for than is about to be used.
//!
//! What is asked for belongs to whoever asked: when this process stands still, JetStream keeps sending until its requests
//! are used up, and those messages wait for `ack_wait` while other nodes could have them. So a source begins with a few,
//! doubles while they are used up at once, and halves when they are not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{Consumer, pull};
use async_nats::{Client, Statistics, StatusCode, Subject, Subscriber};
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;

/// Time after which an unanswered pull request is renewed.
const EXPIRES: Duration = Duration::from_secs(10);

/// The server says this often that it is there when there is nothing to deliver; after two of them without a word a request
/// is given up. One that meets a consumer in the moment of its deletion gets no answer at all, and 6 s is how long
/// a lane may then stand still.
const HEARTBEAT: Duration = Duration::from_secs(3);

/// How often the connection is looked at while nothing comes.
const LOOK: Duration = Duration::from_millis(100);

/// The fewest messages that are asked for at once.
const WINDOW_MIN: usize = 2;

/// A window that lasts less is too small: at 0.5 ms for a request it would cost more than a hundredth of the time.
const TOO_SHORT: Duration = Duration::from_millis(50);

/// One that lasts longer is larger than it has to be.
const TOO_LONG: Duration = Duration::from_millis(200);

/// Why pulling stopped. The consumer is to be opened again.
#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    /// The consumer cannot be read, or its inbox.
    #[error("{0}")]
    Open(async_nats::Error),
    /// The server was silent for two heartbeats.
    #[error("no heartbeat")]
    MissingHeartbeat,
    /// Nobody takes pull requests: the consumer is gone, or has no leader.
    #[error("nobody takes pull requests")]
    NoResponders,
    /// The consumer was deleted.
    #[error("the consumer was deleted")]
    ConsumerDeleted,
    /// The server ended a request.
    #[error("the server ended a pull request: {0}")]
    Ended(String),
}

impl PullError {
    /// The kind's name in metrics.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Open(_) => "open",
            Self::MissingHeartbeat => "missing_heartbeat",
            Self::NoResponders => "no_responders",
            Self::ConsumerDeleted => "consumer_deleted",
            Self::Ended(_) => "pull",
        }
    }
}

/// An open consumer.
pub(super) struct Pull {
    client: Client,
    statistics: Arc<Statistics>,
    consumer: Consumer<pull::Config>,
    inbox: Subject,
    answers: Subscriber,
    window: Window,
    /// Asked for and not delivered.
    asked: usize,
    /// How often this was looked at since the server last said something. Not a time: when this process stands still, what
    /// the server said is waiting for it.
    silent: u32,
    /// The number of the connection on which it was asked.
    connects: u64,
}

impl Pull {
    /// Opens `consumer` of `stream`. At most `window_max` messages are asked for at once.
    pub(super) async fn open(
        context: &Context,
        stream: &str,
        consumer: &str,
        window_max: usize,
    ) -> Result<Self, PullError> {
        let failed = |error: async_nats::Error| PullError::Open(error);
        let consumer =
            context.get_consumer_from_stream(consumer, stream).await.map_err(|error| failed(error.into()))?;
        let client = context.client();
        let inbox = Subject::from(client.new_inbox());
        let answers = client.subscribe(inbox.clone()).await.map_err(|error| failed(error.into()))?;
        Ok(Self {
            statistics: client.statistics(),
            client,
            consumer,
            inbox,
            answers,
            window: Window::new(window_max),
            asked: 0,
            silent: 0,
            connects: 0,
        })
    }

    /// Waits for the next message. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<async_nats::Message, PullError> {
        loop {
            self.forget_earlier();
            if self.asked <= self.window.size / 2 && self.is_connected() {
                self.ask().await?;
            }
            let answer = tokio::select! {
                biased;
                answer = self.answers.next() => answer,
                // Without looking at the clock while there is something.
                () = async { tokio::time::sleep(LOOK).await } => {
                    self.silent += 1;
                    self.forget_earlier();
                    if self.is_connected() && LOOK * self.silent > 2 * HEARTBEAT {
                        return Err(PullError::MissingHeartbeat);
                    }
                    continue;
                }
            };
            let Some(message) = answer else {
                // The connection is closed for good.
                return std::future::pending().await;
            };
            self.silent = 0;
            match message.status {
                None | Some(StatusCode::OK) => {
                    self.asked = self.asked.saturating_sub(1);
                    return Ok(message);
                }
                Some(StatusCode::IDLE_HEARTBEAT) => {}
                Some(StatusCode::NO_RESPONDERS) => return Err(PullError::NoResponders),
                Some(status) => self.ended(status, &message)?,
            }
        }
    }

    /// What was asked on an earlier connection is not waited for: it may never have arrived.
    fn forget_earlier(&mut self) {
        let connects = self.statistics.connects.load(Ordering::Relaxed);
        if connects != self.connects {
            (self.connects, self.asked, self.silent) = (connects, 0, 0);
        }
    }

    fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// A request that ran out is told with what was left of it. Everything else means that the consumer must be looked at.
    fn ended(&mut self, status: StatusCode, message: &async_nats::Message) -> Result<(), PullError> {
        let said = message.description.as_deref().unwrap_or_default();
        let left = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
        match left.and_then(|left| left.as_str().parse::<usize>().ok()) {
            Some(left) if status == StatusCode::TIMEOUT => {
                self.asked = self.asked.saturating_sub(left);
                self.window.unused();
                Ok(())
            }
            _ if said == "Consumer Deleted" => Err(PullError::ConsumerDeleted),
            _ => Err(PullError::Ended(format!("{status} {said}"))),
        }
    }

    /// Asks for as many as the window still has room for.
    async fn ask(&mut self) -> Result<(), PullError> {
        let now = Instant::now();
        if self.asked > 0 {
            self.window.used(now);
        } else {
            // Nothing was awaited, so nothing could be heard.
            self.silent = 0;
            self.window.began = now;
        }
        let request = pull::BatchConfig {
            batch: self.window.size - self.asked.min(self.window.size - 1),
            expires: Some(EXPIRES),
            idle_heartbeat: HEARTBEAT,
            ..pull::BatchConfig::default()
        };
        let batch = request.batch;
        let sent = self.consumer.request_batch(request, self.inbox.clone()).await;
        sent.map_err(|error| PullError::Open(error.into()))?;
        self.asked += batch;
        Ok(())
    }

    /// The messages that have come and were not taken.
    pub(super) fn left_over(mut self) -> Vec<async_nats::Message> {
        let mut messages = Vec::new();
        while let Some(Some(message)) = self.answers.next().now_or_never() {
            if message.status.is_none_or(|status| status == StatusCode::OK) {
                messages.push(message);
            }
        }
        messages
    }
}

/// How many messages are asked for at once. Pure.
#[derive(Debug)]
struct Window {
    size: usize,
    max: usize,
    /// When it was last filled.
    began: Instant,
}

impl Window {
    fn new(max: usize) -> Self {
        Self { size: WINDOW_MIN.min(max.max(1)), max: max.max(1), began: Instant::now() }
    }

    /// Half of it was used since it was last filled.
    fn used(&mut self, now: Instant) {
        let lasted = now.duration_since(self.began);
        self.began = now;
        if lasted < TOO_SHORT {
            self.size = (self.size * 2).min(self.max);
        } else if lasted > TOO_LONG {
            self.unused();
        }
    }

    /// It was not used up in time.
    fn unused(&mut self) {
        self.size = (self.size / 2).max(WINDOW_MIN.min(self.max));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_while_it_is_used_up_at_once_and_shrinks_again() {
        let mut window = Window::new(100);
        let mut now = window.began;
        let mut after = |window: &mut Window, ms| {
            now += Duration::from_millis(ms);
            window.used(now);
            window.size
        };
        assert_eq!([1; 7].map(|ms| after(&mut window, ms)), [4, 8, 16, 32, 64, 100, 100]);
        assert_eq!(after(&mut window, 100), 100, "it lasts as long as it should");
        assert_eq!([1_000; 7].map(|ms| after(&mut window, ms)), [50, 25, 12, 6, 3, 2, 2]);
        window.unused();
        assert_eq!(window.size, WINDOW_MIN);
    }

    #[test]
    fn a_window_may_be_smaller_than_the_smallest() {
        let mut window = Window::new(1);
        window.used(window.began);
        window.unused();
        assert_eq!(window.size, 1);
        assert_eq!(Window::new(0).size, 1);
    }
}
