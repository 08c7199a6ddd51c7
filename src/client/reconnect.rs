//! The life of a client: one session after the other, until the server or the application ends it.
//!
//! One task, owned by the [`Client`](super::Client), runs [`Driver::run`] and ends with it. After a goaway two
//! sessions go on side by side for a short while; the server ends the older.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Goaway, Step};
use super::endpoint::{Endpoint, Target};
use super::state::{STABLE_AFTER, Verdict, verdict};
use super::{Closed, Event, Item, Shared, Why};
use crate::protocol::CloseCode;

/// Longest wait for the server's close after bye.
const BYE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the older session may go on beside the newer one. The server ends it as soon as the newer one opens.
const OLD_TIMEOUT: Duration = Duration::from_secs(5);

/// Reason of a goaway after which the same address would lead to a node that stops.
const DRAINING: &str = "draining";

/// Runs sessions for one client.
pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    /// Where to connect, in the order in which to try; at least one.
    pub(crate) targets: Vec<Target>,
    pub(crate) endpoint: Endpoint,
    pub(crate) events: mpsc::Sender<Item>,
    /// Cancelled when the application leaves.
    pub(crate) leave: CancellationToken,
}

enum Next {
    Ended(Closed),
    Goaway(Goaway),
    Left,
}

impl Driver {
    /// Runs until the end; the last event is `Closed`.
    pub(crate) async fn run(self) {
        let closed = self.sessions().await;
        let _ = self.events.send(Item::Event(Event::Closed(Box::new(closed)))).await;
    }

    async fn sessions(&self) -> Closed {
        let reconnect = self.shared.config.reconnect;
        let mut old = None;
        let mut failures = 0_u32;
        let mut targets = self.targets.iter().cycle();
        let mut target = targets.next().expect("a client has at least one target");
        loop {
            let Some(opened) = self.unless_left(&mut old, self.open(target)).await else {
                return farewell(old).await;
            };
            let (closed, lived) = match opened {
                Err(closed) => (closed, Duration::ZERO),
                Ok(mut connection) => match self.live(&mut connection, &mut old).await {
                    Next::Left => return farewell(Some(connection)).await,
                    Next::Ended(closed) => (closed, connection.since.elapsed()),
                    Next::Goaway(goaway) => {
                        failures = 0;
                        old = Some(connection);
                        if goaway.reason == DRAINING {
                            target = targets.next().unwrap_or(target);
                        }
                        let why = Why::Goaway { reason: goaway.reason };
                        if self.wait(&mut old, why, goaway.delay).await.is_none() {
                            return farewell(old).await;
                        }
                        continue;
                    }
                },
            };
            failures = if lived >= STABLE_AFTER { 1 } else { failures.saturating_add(1) };
            let Verdict::Again { delay, new_token } = verdict(&closed, failures, rand::random()) else {
                return closed;
            };
            if !reconnect {
                return closed;
            }
            if new_token {
                self.shared.forget_token();
            }
            if closed.code() != Some(CloseCode::Rotate.code()) {
                target = targets.next().unwrap_or(target);
            }
            if self.wait(&mut old, Why::Closed(Box::new(closed)), delay).await.is_none() {
                return farewell(old).await;
            }
        }
    }

    async fn open(&self, target: &Target) -> Result<Connection, Closed> {
        let connection =
            Connection::open(target, &self.endpoint, self.shared.clone(), self.events.clone()).await?;
        self.shared.stats.opened();
        Ok(connection)
    }

    /// Lets a session live. The older one goes on beside it until the server ends it or its time is over.
    async fn live(&self, connection: &mut Connection, old: &mut Option<Connection>) -> Next {
        let old_until = Instant::now() + OLD_TIMEOUT;
        loop {
            tokio::select! {
                biased;
                () = self.leave.cancelled() => return Next::Left,
                step = connection.next() => match step {
                    Step::Ended(closed) => return Next::Ended(closed),
                    Step::Goaway(goaway) if self.shared.config.reconnect => return Next::Goaway(goaway),
                    Step::Goaway(_) => {}
                },
                () = gone(old) => {}
                () = sleep_until(old_until), if old.is_some() => *old = None,
            }
        }
    }

    /// Says why and waits, while the older session goes on. `None` when the application left.
    async fn wait(&self, old: &mut Option<Connection>, why: Why, delay: Duration) -> Option<()> {
        let due = sleep(delay);
        let waiting = Item::Event(Event::Waiting { why, delay });
        self.unless_left(old, async {
            // The delay runs from now, also when the application is slow to take the event.
            let _ = tokio::join!(self.events.send(waiting), due);
        })
        .await
    }

    /// Does `work` while the older session goes on. `None` when the application left.
    async fn unless_left<T>(&self, old: &mut Option<Connection>, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                () = self.leave.cancelled() => return None,
                done = &mut work => return Some(done),
                () = gone(old) => {}
            }
        }
    }
}

/// Lets the older session go on; returns when it is over. Its reason does not matter: a newer one follows.
async fn gone(old: &mut Option<Connection>) {
    let Some(connection) = old else {
        return std::future::pending().await;
    };
    while !matches!(connection.next().await, Step::Ended(_)) {}
    *old = None;
}

/// Says bye and waits for the server's close.
async fn farewell(connection: Option<Connection>) -> Closed {
    let Some(mut connection) = connection else {
        return Closed::failed("left without a session");
    };
    connection.bye();
    let ended = timeout(BYE_TIMEOUT, async {
        loop {
            if let Step::Ended(closed) = connection.next().await {
                return closed;
            }
        }
    });
    ended.await.unwrap_or_else(|_| Closed::failed("no close in time after bye"))
}
