//! `fanfare dev --once`: publishes every sample, receives with real clients, and compares with what must come.
//!
//! Devices are connected over WebTransport and over bare QUIC, in both encodings. A delivery to a device that should
//! not get it is as much a failure as a missing one.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::samples::{self, Sample};
use super::scenario::{DEVICES, Device, MEMBERS, Step};
use super::stage::{Stage, StageError};
use crate::catalog::Kind;
use crate::client::{Bind, Client, Closed, Config, ConfigError, Endpoint, Event, Received, Tokens, Trust};
use crate::clock::Now;
use crate::directory::{Change, Key};
use crate::id::UserId;
use crate::protocol::Encoding;
use crate::transport::auth;

/// Time a delivery may take before it counts as missing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time after the last step in which nothing more may come.
const SETTLE: Duration = Duration::from_secs(2);

/// Deliveries that wait for the comparison; a full queue holds the clients back, and nothing is lost.
const ARRIVALS: usize = 1_024;

/// Why the run could not be made. A wrong or missing delivery is no error but a row of the report.
#[derive(Debug, thiserror::Error)]
pub enum OnceError {
    /// Publishing failed.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A client could not be set up.
    #[error(transparent)]
    Client(#[from] ConfigError),
    /// A client got no session.
    #[error("device {device} got no session: {closed}")]
    NoSession {
        /// Which one.
        device: &'static str,
        /// What it was told.
        closed: Closed,
    },
}

/// Where the service is.
#[derive(Debug)]
pub struct Place {
    /// `HOST:PORT` of the edge.
    pub edge: std::net::SocketAddr,
    /// SHA-256 of its certificate.
    pub certificate_hash: [u8; 32],
    /// HS256 secret for tokens.
    pub secret: Vec<u8>,
}

/// What became of one step.
#[derive(Debug)]
struct Row {
    step: Step,
    expected: Vec<Device>,
    /// The row's window, for notifications that wait in it on purpose.
    held: Option<Duration>,
    /// Latencies of expected deliveries.
    latencies: Vec<Duration>,
    lanes_wrong: usize,
    wrong: usize,
}

impl Row {
    fn passed(&self) -> bool {
        self.latencies.len() == self.expected.len() && self.wrong == 0 && self.lanes_wrong == 0
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct Report {
    rows: Vec<Row>,
    /// Deliveries of notifications that nobody published.
    strays: usize,
}

struct Arrival {
    device: Device,
    received: Received,
}

/// Publishes every step and collects what comes of it. [`super::scenario::steps`] has those of the specification.
pub async fn run(stage: &Stage, place: &Place, steps: Vec<Step>) -> Result<Report, OnceError> {
    settle_members(stage).await?;
    let (sender, mut arrivals) = mpsc::channel(ARRIVALS);
    let _clients = connect(place, &sender).await?;
    let samples: HashMap<_, _> =
        samples::all().into_iter().map(|sample| (sample.event_type.clone(), sample)).collect();
    let mut rows = Vec::new();
    let mut by_id = HashMap::new();
    let mut strays = 0;
    for step in steps {
        let expected = step.devices();
        let published_at = Instant::now();
        let id = publish(stage, &step, &samples[step.event_type]).await?;
        by_id.insert(id, (rows.len(), published_at));
        let held = stage.held(step.event_type);
        rows.push(Row { step, expected, held, latencies: Vec::new(), lanes_wrong: 0, wrong: 0 });
        let deadline = published_at + PATIENCE;
        let at = rows.len() - 1;
        while rows[at].latencies.len() < rows[at].expected.len() {
            match timeout_at(deadline, arrivals.recv()).await {
                Ok(Some(arrival)) => account(&mut rows, &by_id, &arrival, &mut strays),
                Ok(None) | Err(_) => break,
            }
        }
    }
    let end = Instant::now() + SETTLE;
    while let Ok(Some(arrival)) = timeout_at(end, arrivals.recv()).await {
        account(&mut rows, &by_id, &arrival, &mut strays);
    }
    Ok(Report { rows, strays })
}

/// Books one delivery on the row of its notification.
fn account(
    rows: &mut [Row],
    by_id: &HashMap<String, (usize, Instant)>,
    arrival: &Arrival,
    strays: &mut usize,
) {
    let Some((at, published_at)) = by_id.get(&arrival.received.notification_id) else {
        *strays += 1;
        return;
    };
    let row = &mut rows[*at];
    if !row.expected.contains(&arrival.device) {
        row.wrong += 1;
        return;
    }
    row.latencies.push(arrival.received.received_at.saturating_duration_since(*published_at));
    let lane = arrival.received.lane.map_or("datagram", |lane| lane.as_str());
    row.lanes_wrong += usize::from(lane != row.step.lane);
}

async fn settle_members(stage: &Stage) -> Result<(), StageError> {
    for (kind, id, user, role) in MEMBERS {
        let key = Key::new(kind, id).expect("a stored kind and a valid id");
        let user = UserId::new(user).expect("a valid id");
        let change = Change::Member { user, role: Some(role), v: Now::read().unix_ms * 1_000 };
        stage.writer().write(&key, &change).await?;
    }
    debug_assert!(MEMBERS.iter().all(|(kind, ..)| *kind != Kind::Broadcast));
    Ok(())
}

/// Connects every device and waits until all are live.
async fn connect(place: &Place, arrivals: &mpsc::Sender<Arrival>) -> Result<JoinSet<()>, OnceError> {
    let endpoint = Endpoint::bind(Bind::Loopback)?;
    let mut clients = JoinSet::new();
    for (at, device) in DEVICES.into_iter().enumerate() {
        let (user, device_id) = device;
        let user = UserId::new(user).expect("a valid id");
        let token = auth::sign_hs256(&place.secret, &user, Now::read(), Duration::from_hours(1));
        let url = match at % 3 {
            0 => format!("quic://{}", place.edge),
            _ => format!("https://{}/v1/push", place.edge),
        };
        let trust = Trust::CertificateHashes(vec![place.certificate_hash]);
        let mut config = Config::new(url, device_id, Tokens::fixed(token), trust);
        config.encoding = if at % 2 == 0 { Encoding::Json } else { Encoding::Msgpack };
        config.endpoint = Some(endpoint.clone());
        let mut client = Client::connect(config)?;
        client.live().await.map_err(|closed| OnceError::NoSession { device: device_id, closed })?;
        let arrivals = arrivals.clone();
        clients.spawn(async move {
            while let Some(event) = client.next().await {
                if let Event::Notification(received) = event {
                    let arrival = Arrival { device, received: *received };
                    if arrivals.send(arrival).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
    Ok(clients)
}

async fn publish(stage: &Stage, step: &Step, sample: &Sample) -> Result<String, StageError> {
    let now_s = (Now::read().unix_ms / 1_000) as i64;
    let payload = sample.payload_at(now_s, &step.fields);
    let published = stage.publish(step.event_type, step.target, payload, step.metadata.clone()).await?;
    Ok(published.notification_id)
}

impl Report {
    /// True when every expected delivery arrived, on its lane, and no other.
    pub fn passed(&self) -> bool {
        self.strays == 0 && self.rows.iter().all(Row::passed)
    }

    /// The table and, as its last line, the summary.
    pub fn render(&self) -> String {
        let mut lines = vec![format!(
            "{:<38} {:<28} {:>8} {:>6} {:>5}  {:<8} {:>10}",
            "event", "audience", "expected", "actual", "wrong", "lane", "latency"
        )];
        for row in &self.rows {
            let Step { event_type, variant, audience, lane, .. } = &row.step;
            let event = if variant.is_empty() {
                (*event_type).to_owned()
            } else {
                format!("{event_type} ({variant})")
            };
            let mut latencies = row.latencies.clone();
            let latency = match (percentile(&mut latencies, 1.0), row.held) {
                (Some(slowest), None) => format!("{:.1} ms", slowest.as_secs_f64() * 1e3),
                (Some(slowest), Some(window)) => {
                    format!(
                        "{} s + {:.0} ms",
                        window.as_secs(),
                        (slowest.as_secs_f64() - window.as_secs_f64()) * 1e3
                    )
                }
                (None, _) => "-".to_owned(),
            };
            let verdict = match (row.passed(), row.lanes_wrong) {
                (true, _) => "",
                (false, 0) => "  FAILED",
                (false, _) => "  WRONG LANE",
            };
            lines.push(format!(
                "{event:<38} {audience:<28} {:>8} {:>6} {:>5}  {lane:<8} {latency:>10}{verdict}",
                row.expected.len(),
                row.latencies.len(),
                row.wrong,
            ));
        }
        lines.push(String::new());
        lines.push(self.summary());
        lines.join("\n")
    }

    fn summary(&self) -> String {
        let events = |wanted: fn(&Row) -> bool| {
            let mut by_type: HashMap<&str, bool> = HashMap::new();
            for row in &self.rows {
                let whole = by_type.entry(row.step.event_type).or_insert(true);
                *whole &= wanted(row);
            }
            by_type.values().filter(|whole| **whole).count()
        };
        let arrived = events(|row| row.latencies.len() == row.expected.len() && row.lanes_wrong == 0);
        let of = |held: bool| self.rows.iter().filter(move |row| row.held.is_some() == held);
        let mut latencies: Vec<_> = of(false).flat_map(|row| row.latencies.iter().copied()).collect();
        let held: usize = of(true).map(|row| row.latencies.len()).sum();
        let p95 = percentile(&mut latencies, 0.95).unwrap_or_default();
        let expected: usize = self.rows.iter().map(|row| row.expected.len()).sum();
        let wrong: usize = self.rows.iter().map(|row| row.wrong).sum::<usize>() + self.strays;
        format!(
            "{arrived} of {} events delivered ({} of {expected} deliveries in {} notifications), P95 {:.1} ms \
             without the {held} that a coalescing window held, {wrong} wrong deliveries",
            events(|_| true),
            latencies.len() + held,
            self.rows.len(),
            p95.as_secs_f64() * 1e3,
        )
    }
}

/// The value below which the share `of` of `values` lies; sorts them.
fn percentile(values: &mut [Duration], of: f64) -> Option<Duration> {
    values.sort_unstable();
    let at = (values.len() as f64 * of).ceil() as usize;
    values.get(at.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_the_smallest_value_that_covers_the_share() {
        let mut values: Vec<_> = (1..=20).map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut values, 0.95), Some(Duration::from_millis(19)));
        assert_eq!(percentile(&mut values, 1.0), Some(Duration::from_millis(20)));
        assert_eq!(percentile(&mut [], 0.5), None);
    }
}
