//! What the load has sent and what has come back of it: the one place that counts, shared by all sessions.
//!
//! Each message carries a mark: the number of the run, and its own number in it. What comes of another run is not counted.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::bench::histogram::{Histogram, Percentiles};

/// What stands before the mark in a payload.
const MARK: &[u8] = b"\"mark\":";

/// Messages of a run: a mark has room for so many.
pub(super) const MESSAGES_MAX: usize = 1 << 24;

/// The mark of message `index` in a run.
fn mark(run: u32, index: usize) -> u64 {
    (u64::from(run) << 24) | index as u64
}

/// The mark in a frame. The payload is passed on as it was published, so no JSON is parsed for it.
pub(super) fn find_mark(body: &[u8]) -> Option<u64> {
    let at = body.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    let digits = body[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    str::from_utf8(&body[at..at + digits]).ok()?.parse().ok()
}

/// One message that was sent.
#[derive(Debug)]
struct Sent {
    scheduled: Duration,
    expected: u32,
    seen: u32,
    class: usize,
    all: bool,
}

#[derive(Debug)]
struct Run {
    number: u32,
    started: Instant,
    sent: Vec<Sent>,
    classes: Vec<Histogram>,
    last: Histogram,
    counts: Counts,
    last_at: Instant,
}

/// Sums of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Deliveries that should come.
    pub(super) expected: u64,
    /// Deliveries that came.
    pub(super) delivered: u64,
    /// Deliveries beyond those that should come.
    pub(super) repeated: u64,
    /// Messages that reached everybody.
    pub(super) complete: u64,
    /// Bytes of the bodies that came.
    pub(super) bytes: u64,
}

/// Counts what comes.
#[derive(Debug)]
pub(super) struct Arrivals {
    run: Mutex<Run>,
    progress: Notify,
}

/// What became of a run.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) counts: Counts,
    pub(super) classes: Vec<Percentiles>,
    /// From the schedule to the last one of those who should get it.
    pub(super) last: Percentiles,
    /// From the first to the last delivery.
    pub(super) elapsed: Duration,
}

impl Arrivals {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let run = Run {
            number: 0,
            started: now,
            sent: Vec::new(),
            classes: Vec::new(),
            last: Histogram::default(),
            counts: Counts::default(),
            last_at: now,
        };
        Self { run: Mutex::new(run), progress: Notify::new() }
    }

    /// Begins a run with so many classes of messages; what still comes of the one before is not counted any more.
    pub(super) fn begin(&self, classes: usize, started: Instant) {
        let mut run = self.run.lock();
        *run = Run {
            number: run.number + 1,
            started,
            sent: Vec::new(),
            classes: vec![Histogram::default(); classes],
            last: Histogram::default(),
            counts: Counts::default(),
            last_at: started,
        };
    }

    /// Notes a message before it is sent, and gives its mark. Unless `all` is set it need not come, and only its latency is
    /// noted.
    pub(super) fn expect(&self, scheduled: Duration, expected: u32, class: usize, all: bool) -> u64 {
        let mut run = self.run.lock();
        run.sent.push(Sent { scheduled, expected, seen: 0, class, all });
        run.counts.expected += if all { u64::from(expected) } else { 0 };
        mark(run.number, run.sent.len() - 1)
    }

    /// Notes a frame that was read.
    pub(super) fn arrived(&self, body: &[u8], now: Instant) {
        let Some(mark) = find_mark(body) else { return };
        let mut guard = self.run.lock();
        let run = &mut *guard;
        if mark >> 24 != u64::from(run.number) {
            return;
        }
        let Some(sent) = run.sent.get_mut((mark & 0xff_ffff) as usize) else { return };
        sent.seen += 1;
        if sent.seen > sent.expected {
            run.counts.repeated += 1;
            return;
        }
        let latency = now.duration_since(run.started).saturating_sub(sent.scheduled);
        run.classes[sent.class].record(latency);
        if !sent.all {
            return;
        }
        run.counts.delivered += 1;
        run.counts.bytes += body.len() as u64;
        run.last_at = run.last_at.max(now);
        if sent.seen == sent.expected {
            run.counts.complete += 1;
            run.last.record(latency);
            drop(guard);
            self.progress.notify_waiters();
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.run.lock().counts
    }

    /// Waits until so many messages have reached everybody, until `deadline` at most; false when it is over before.
    pub(super) async fn complete(&self, messages: u64, deadline: Instant) -> bool {
        self.wait(deadline, |counts| counts.complete >= messages).await
    }

    /// Waits until everything has come that should, until `deadline` at most.
    pub(super) async fn all(&self, deadline: Instant) -> bool {
        self.wait(deadline, |counts| counts.delivered >= counts.expected).await
    }

    async fn wait(&self, deadline: Instant, holds: impl Fn(Counts) -> bool) -> bool {
        loop {
            let progress = self.progress.notified();
            if holds(self.counts()) {
                return true;
            }
            if tokio::time::timeout_at(deadline, progress).await.is_err() {
                return holds(self.counts());
            }
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        let run = self.run.lock();
        Outcome {
            counts: run.counts,
            classes: run.classes.iter().map(Histogram::percentiles).collect(),
            last: run.last.percentiles(),
            elapsed: run.last_at.duration_since(run.started),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_found_where_there_is_one() {
        assert_eq!(find_mark(br#"{"data":{"payload":{"mark":123,"x":""}}}"#), Some(123));
        for without in [&b"{}"[..], br#"{"mark":"x"}"#, br#"{"mark":99999999999999999999999}"#] {
            assert_eq!(find_mark(without), None);
        }
    }

    #[tokio::test]
    async fn a_message_is_complete_when_everybody_has_it_and_repeats_are_counted() {
        let (arrivals, start) = (Arrivals::new(), Instant::now());
        arrivals.begin(1, start);
        let mark = arrivals.expect(Duration::from_millis(10), 2, 0, true);
        let body = format!("{{\"mark\":{mark}}}").into_bytes();
        for ms in [20, 30, 40] {
            assert_eq!(arrivals.complete(1, start).await, ms == 40);
            arrivals.arrived(&body, start + Duration::from_millis(ms));
        }
        let Outcome { counts, classes, last, elapsed } = arrivals.outcome();
        assert_eq!((counts.expected, counts.delivered, counts.repeated, counts.complete), (2, 2, 1, 1));
        assert_eq!((classes[0].count, last.count), (2, 1));
        assert!((19.0..21.0).contains(&last.max), "from the schedule on: {last:?}");
        assert_eq!(elapsed, Duration::from_millis(30));
    }

    #[tokio::test]
    async fn what_need_not_come_is_not_waited_for_and_its_latency_is_known() {
        let (arrivals, start) = (Arrivals::new(), Instant::now());
        arrivals.begin(2, start);
        let mark = arrivals.expect(Duration::ZERO, 1, 1, false);
        assert!(arrivals.all(start).await);
        arrivals.arrived(format!("{{\"mark\":{mark}}}").as_bytes(), start);
        let Outcome { counts, classes, .. } = arrivals.outcome();
        assert_eq!((counts.delivered, classes[0].count, classes[1].count), (0, 0, 1));
    }

    #[test]
    fn what_comes_of_an_earlier_run_is_not_counted() {
        let arrivals = Arrivals::new();
        arrivals.begin(1, Instant::now());
        let mark = arrivals.expect(Duration::ZERO, 1, 0, true);
        arrivals.begin(1, Instant::now());
        arrivals.expect(Duration::ZERO, 1, 0, true);
        arrivals.arrived(format!("{{\"mark\":{mark}}}").as_bytes(), Instant::now());
        assert_eq!(arrivals.counts().delivered, 0);
    }
}
