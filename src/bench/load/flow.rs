//! Messages by the clock: sent when they are due, whatever became of those before; or as fast as it goes, with a bound
//! on those under way.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::arrivals::{Arrivals, MESSAGES_MAX};
use super::publisher::{Message, Publisher};
use crate::bench::histogram::Percentiles;
use crate::bench::{BenchError, failed};

/// A message that leaves later than this is late: far more than the timer's millisecond.
const LATE: Duration = Duration::from_millis(5);

/// Late messages beyond which a run has not held its rate: one, or this share of all.
const LATE_SHARE_MAX: f64 = 0.01;

/// Time for what is under way at the end.
const TAIL: Duration = Duration::from_secs(10);

/// Groups that are pushed to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::bench) struct Pushes {
    /// How many groups, one after the other.
    pub(in crate::bench) groups: u32,
    /// Members of each.
    pub(in crate::bench) members: u32,
    /// Pushes a second; `None` is as fast as it goes.
    pub(in crate::bench) rate: Option<f64>,
    /// Messages under way when it goes as fast as it goes.
    pub(in crate::bench) in_flight: u64,
    /// How long.
    pub(in crate::bench) seconds: f64,
    /// Bytes of the payload; for a bare server, of the whole frame.
    pub(in crate::bench) bytes: usize,
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::bench) struct Flow {
    /// Messages that were sent.
    pub(in crate::bench) sent: u64,
    /// Deliveries that came.
    pub(in crate::bench) delivered: u64,
    /// Deliveries a second, from the first message's time to the last delivery.
    pub(in crate::bench) rate: f64,
    /// Mean bytes of a frame that came.
    pub(in crate::bench) frame_bytes: f64,
    /// Milliseconds from schedule to read, for each class of messages.
    pub(in crate::bench) latency: Vec<Percentiles>,
    /// Milliseconds until the last one of those who should get a message had it.
    pub(in crate::bench) last: Percentiles,
    /// Share of the messages that were sent late.
    pub(in crate::bench) late_share: f64,
    /// Why these figures are none: it did not hold its rate, or not everything arrived.
    pub(in crate::bench) trouble: Option<String>,
}

/// A message that is due.
#[derive(Debug)]
pub(super) struct Shot {
    /// Since the start.
    pub(super) at: Duration,
    /// How many get it.
    pub(super) expected: u32,
    /// For the latency.
    pub(super) class: usize,
    /// All of them must come; else only the latency of those that do is noted.
    pub(super) all: bool,
    /// What is sent, with `@mark` where its mark belongs.
    pub(super) message: Message,
}

/// The name of a group in the directory.
pub(in crate::bench) fn group(members: u32, number: u32) -> String {
    format!("bench-{members}-{number}")
}

/// `content` of as many characters as make `text` so many bytes long. The mark has 8 digits and more.
fn padded(text: &str, bytes: usize) -> String {
    const MARK_DIGITS: usize = 8;
    let length = text.len() - "@pad".len() - "@mark".len() + MARK_DIGITS;
    text.replace("@pad", &"x".repeat(bytes.saturating_sub(length)))
}

impl Pushes {
    /// The message `n`.
    fn message(&self, n: usize, to_nats: bool) -> Message {
        let number = (n % self.groups as usize) as u32;
        let group = group(self.members, number);
        let to = (number * self.members, self.members);
        if !to_nats {
            return Message {
                subject: String::new(),
                to,
                body: padded(r#"{"mark":@mark,"content":"@pad"}"#, self.bytes),
            };
        }
        let payload = format!(
            r#"{{"mark":@mark,"conversation_id":"{group}","conversation_type":"group","content":"@pad"}}"#
        );
        let body = format!(
            r#"{{"notification_id":"b-@mark","type":"message.new","payload":{}}}"#,
            padded(&payload, self.bytes)
        );
        Message { subject: format!("notification.message.new.{group}"), to, body }
    }

    fn shot(&self, n: usize, every: f64, to_nats: bool) -> Shot {
        let at = Duration::from_secs_f64(n as f64 * every);
        Shot { at, expected: self.members, class: 0, all: true, message: self.message(n, to_nats) }
    }
}

/// Pushes to groups.
pub(super) async fn push(
    arrivals: &Arrivals,
    publisher: &mut Publisher,
    pushes: &Pushes,
) -> Result<Flow, BenchError> {
    let to_nats = matches!(publisher, Publisher::Nats { .. });
    match pushes.rate {
        Some(rate) => {
            let every = f64::from(pushes.members) / rate.max(f64::MIN_POSITIVE);
            let count = ((pushes.seconds / every) as usize).clamp(1, MESSAGES_MAX);
            let shots = (0..count).map(|n| pushes.shot(n, every, to_nats));
            open_loop(arrivals, publisher, 1, shots).await
        }
        None => saturated(arrivals, publisher, pushes, to_nats).await,
    }
}

/// Sends each message when it is due.
pub(super) async fn open_loop(
    arrivals: &Arrivals,
    publisher: &mut Publisher,
    classes: usize,
    shots: impl Iterator<Item = Shot>,
) -> Result<Flow, BenchError> {
    let (started, refused) = (Instant::now(), publisher.refused());
    arrivals.begin(classes, started);
    let (mut sent, mut late) = (0_u64, 0_u64);
    for shot in shots {
        let due = started + shot.at;
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        late += u64::from(due.elapsed() > LATE);
        send(arrivals, publisher, shot).await?;
        sent += 1;
    }
    finished(arrivals, publisher, sent, late, refused).await
}

/// Sends the next one whenever one has reached everybody.
async fn saturated(
    arrivals: &Arrivals,
    publisher: &mut Publisher,
    pushes: &Pushes,
    to_nats: bool,
) -> Result<Flow, BenchError> {
    let (started, refused) = (Instant::now(), publisher.refused());
    let end = started + Duration::from_secs_f64(pushes.seconds);
    arrivals.begin(1, started);
    let mut sent = 0_u64;
    while Instant::now() < end && (sent as usize) < MESSAGES_MAX {
        if sent >= pushes.in_flight && !arrivals.complete(sent + 1 - pushes.in_flight, end + TAIL).await {
            break;
        }
        let mut shot = pushes.shot(sent as usize, 0.0, to_nats);
        shot.at = started.elapsed();
        send(arrivals, publisher, shot).await?;
        sent += 1;
    }
    finished(arrivals, publisher, sent, 0, refused).await
}

async fn send(arrivals: &Arrivals, publisher: &mut Publisher, shot: Shot) -> Result<(), BenchError> {
    let mark = arrivals.expect(shot.at, shot.expected, shot.class, shot.all).to_string();
    let Message { subject, to, body } = shot.message;
    publisher.send(Message { subject, to, body: body.replace("@mark", &mark) }).await
}

/// Waits for what is under way, and sums up.
async fn finished(
    arrivals: &Arrivals,
    publisher: &Publisher,
    sent: u64,
    late: u64,
    refused_before: u64,
) -> Result<Flow, BenchError> {
    if sent == 0 {
        return Err("nothing was due").map_err(failed("measure"));
    }
    arrivals.all(Instant::now() + TAIL).await;
    let outcome = arrivals.outcome();
    let counts = outcome.counts;
    let (refused, late_share) = (publisher.refused() - refused_before, late as f64 / sent as f64);
    let missing = counts.expected - counts.delivered;
    let trouble = if refused > 0 {
        Some(format!("JetStream refused {refused} of {sent} messages"))
    } else if missing > 0 {
        Some(format!("{missing} of {} deliveries did not come within {} s", counts.expected, TAIL.as_secs()))
    } else if late > 1 && late_share > LATE_SHARE_MAX {
        let (late_share, late) = (late_share * 100.0, LATE.as_millis());
        Some(format!("the load could not hold the rate: {late_share:.1} % were sent over {late} ms late"))
    } else {
        None
    };
    Ok(Flow {
        sent,
        delivered: counts.delivered,
        rate: counts.delivered as f64 / outcome.elapsed.as_secs_f64().max(0.001),
        frame_bytes: counts.bytes as f64 / counts.delivered.max(1) as f64,
        latency: outcome.classes,
        last: outcome.last,
        late_share,
        trouble,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_as_long_as_it_should_be() {
        let pushes = Pushes { groups: 2, members: 10, rate: None, in_flight: 1, seconds: 1.0, bytes: 300 };
        let message = pushes.message(3, true);
        assert_eq!((message.to, message.subject.as_str()), ((10, 10), "notification.message.new.bench-10-1"));
        let body = message.body.replace("@mark", "16777216");
        let envelope: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(envelope["payload"].to_string().len(), 300);
        assert_eq!(envelope["payload"]["conversation_id"], "bench-10-1");
        assert_eq!(pushes.message(0, false).body.replace("@mark", "16777216").len(), 300);
    }
}
