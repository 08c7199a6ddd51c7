//! `fanfare bench sessions`: what a session costs to open and to hold. Real tokens, hello and welcome, heartbeats.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::load::{Connected, Kind, Order, State};
use super::place::Place;
use super::process::Process;
use super::report::{Bound, Line, Report, Table, figure};
use super::usage::Usage;
use super::{BenchError, Progress, failed};

/// Memory of the server that a session may take, in kB of 1,000 bytes.
const KB_MUST: f64 = 42.0;

/// Where it should go: what a prototype of a driver of its own took, and a little.
const KB_AIM: f64 = 26.0;

/// Handshakes at once: enough to keep the server busy, and few enough that nobody's address has to be shown first.
const AT_ONCE: usize = 256;

/// Time for the load to start and for what takes no time.
const MOMENT: Duration = Duration::from_secs(30);

/// Handshakes a second of a machine that is far too slow for this.
const SLOWEST_PER_S: u32 = 20;

/// Time for the last writes of opening before the processor counts as idle.
const SETTLE: Duration = Duration::from_secs(3);

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Sessions.
    pub count: u32,
    /// Time they are held.
    pub hold: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Sessions that were opened.
    pub sessions: u32,
    /// Sessions that could not be opened, or ended before their time.
    pub failures: u32,
    /// Why the first of them did.
    pub why: Option<String>,
    /// Sessions opened a second.
    pub handshakes_per_s: f64,
    /// Processor time of the server for each, in microseconds.
    pub handshake_us: f64,
    /// Resident memory of the server for each, in kB of 1,000 bytes.
    pub server_kb: f64,
    /// The same of the load.
    pub load_kb: f64,
    /// The same of nats-server.
    pub nats_kb: f64,
    /// Processor time of the server for a session and second while nothing but heartbeats goes on, in microseconds.
    pub idle_us_per_s: f64,
    /// The same of all sessions, in cores.
    pub idle_cores: f64,
}

/// Opens sessions and holds them.
pub async fn measure(settings: &Settings, progress: Progress<'_>) -> Result<Outcome, BenchError> {
    let Settings { count, hold } = *settings;
    let (place, door) = Place::start().await?;
    let mut load = Process::start("load", &["bench", "load"], place.folder())?;
    let _: State = load.ask(&Order::State, MOMENT, |_| ()).await?;
    let before = (place.gateway_usage()?, load.usage()?, place.nats_usage()?);
    let order = Order::Connect { door, kind: Kind::Gateway, count, at_once: AT_ONCE };
    let limit = MOMENT + Duration::from_secs(u64::from(count / SLOWEST_PER_S));
    let connected: Connected =
        load.ask(&order, limit, |open| progress(&format!("{open} of {count} sessions are open"))).await?;
    let opened = place.gateway_usage()?;
    let n = f64::from(connected.opened.max(1));
    progress(&format!("{} sessions are open and held for {} s", connected.opened, hold.as_secs()));
    tokio::time::sleep(SETTLE).await;
    let (idle, began) = (place.gateway_usage()?, Instant::now());
    tokio::time::sleep(hold).await;
    let after = (place.gateway_usage()?, load.usage()?, place.nats_usage()?);
    let held = began.elapsed().as_secs_f64();
    let state: State = load.ask(&Order::State, MOMENT, |_| ()).await?;
    let cpu = |from: &Usage, to: &Usage| to.cpu_since(from).as_secs_f64();
    let kb = |from: &Usage, to: &Usage| to.rss.saturating_sub(from.rss) as f64 / 1_000.0 / n;
    Ok(Outcome {
        sessions: connected.opened,
        failures: connected.failed + state.ended,
        why: connected.why.or(state.why),
        handshakes_per_s: f64::from(connected.opened) / connected.seconds.max(0.001),
        handshake_us: cpu(&before.0, &opened) * 1e6 / n,
        server_kb: kb(&before.0, &after.0),
        load_kb: kb(&before.1, &after.1),
        nats_kb: kb(&before.2, &after.2),
        idle_us_per_s: cpu(&idle, &after.0) * 1e6 / n / held,
        idle_cores: cpu(&idle, &after.0) / held,
    })
}

/// Columns of [`row`].
pub(super) const HEAD: [&str; 9] = [
    "sessions",
    "failures",
    "handshakes/s",
    "CPU us/handshake",
    "kB/session",
    "load kB",
    "NATS kB",
    "idle us/session/s",
    "idle cores",
];

/// An outcome for people.
pub(super) fn row(outcome: &Outcome) -> Vec<String> {
    let figures = [
        outcome.handshakes_per_s,
        outcome.handshake_us,
        outcome.server_kb,
        outcome.load_kb,
        outcome.nats_kb,
        outcome.idle_us_per_s,
        outcome.idle_cores,
    ];
    let counts = [outcome.sessions, outcome.failures].map(|count| count.to_string());
    counts.into_iter().chain(figures.map(figure)).collect()
}

/// Measures and judges.
pub async fn run(settings: &Settings, command: String, progress: Progress<'_>) -> Result<Report, BenchError> {
    let mut report = Report::begin("sessions", command);
    let outcome = measure(settings, progress).await?;
    if outcome.sessions == 0 {
        let why = outcome.why.unwrap_or_default();
        return Err(why).map_err(failed("open a session"));
    }
    let failures = Some(f64::from(outcome.failures));
    report.lines = vec![
        Line::must("sessions that failed", failures, Bound::AtMost, 0.0),
        Line::must("kB of server memory a session", Some(outcome.server_kb), Bound::AtMost, KB_MUST),
        Line::aim("kB of server memory a session", Some(outcome.server_kb), Bound::AtMost, KB_AIM),
    ];
    report.notes.extend(outcome.why.as_ref().map(|why| format!("the first failure: {why}")));
    let mut table = Table::new(&HEAD);
    table.rows.push(row(&outcome));
    report.tables.push(table);
    report.results = json!(outcome);
    Ok(report)
}
