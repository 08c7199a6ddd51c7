//! `fanfare bench fanout`: what a push to the members of a group costs and how long it takes, from JetStream to the
//! device, beside a bare loop and a WebSocket that are given the same frames in turn.

mod system;

use serde::Serialize;
use serde_json::json;

use super::load::{Flow, Kind, Pushes};
use super::place::Place;
use super::report::{Bound, Line, Report, Table, maybe};
use super::{BenchError, Progress, failed, median};
use system::{System, bare, gateway, name, populate};

/// What a push may cost beside the bare loop.
const BARE_MUST: f64 = 1.15;

/// Messages under way when it goes as fast as it goes: enough that the server always has one to do.
const IN_FLIGHT: u64 = 16;

/// Groups that the members are divided into when pushes are spread.
const SPREAD: u32 = 50;

/// How the pushes of a second lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each message goes to all members at once.
    Burst,
    /// Each message goes to a fiftieth of them, one group after the other.
    Spread,
}

/// Pushes a second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Rate {
    /// So many.
    PerSecond(f64),
    /// As many as it can.
    Saturated,
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "saturated" {
            return Ok(Self::Saturated);
        }
        let rate = text.parse().ok().filter(|rate: &f64| (1.0..=1e7).contains(rate));
        rate.map(Self::PerSecond).ok_or_else(|| format!("{text} is neither a rate from 1 on nor `saturated`"))
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PerSecond(rate) => write!(f, "{rate}/s"),
            Self::Saturated => f.write_str("saturated"),
        }
    }
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Members, each with a session.
    pub members: u32,
    /// Bytes of the payload.
    pub payload: usize,
    /// Rates.
    pub rates: Vec<Rate>,
    /// Modes.
    pub modes: Vec<Mode>,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// How often each is repeated, in turn; medians count.
    pub rounds: u32,
}

/// What one system took in one round.
#[derive(Debug, Clone, Serialize)]
struct Sample {
    system: Kind,
    mode: Mode,
    rate: Rate,
    /// Processor time of the server for a push, in microseconds; `None` when the run has no figures.
    server_us: Option<f64>,
    /// The same of the load.
    load_us: Option<f64>,
    /// The same of nats-server, where it has a part in it.
    nats_us: Option<f64>,
    flow: Flow,
}

impl Mode {
    /// How many groups, and members of each.
    fn groups(self, members: u32) -> (u32, u32) {
        match self {
            Self::Burst => (1, members),
            Self::Spread => (SPREAD.min(members), members / SPREAD.min(members)),
        }
    }
}

/// What a push costs a server: that of all systems under test, and of what is beside them.
struct Bench<'a> {
    settings: &'a Settings,
    place: Place,
    systems: Vec<System>,
    /// Bytes of the gateway's frame for each mode, which the others are given, too.
    frame_bytes: Vec<usize>,
    progress: Progress<'a>,
}

impl<'a> Bench<'a> {
    /// Opens all sessions.
    async fn prepare(settings: &'a Settings, progress: Progress<'a>) -> Result<Self, BenchError> {
        let members = settings.members;
        let (place, door) = Place::start().await?;
        for mode in &settings.modes {
            let (groups, each) = mode.groups(members);
            populate(&place, groups, each).await?;
        }
        let mut systems = vec![gateway(&place, door, members, progress).await?];
        systems.push(bare(&place, Kind::Bare, members, progress).await?);
        if cfg!(feature = "bench") {
            systems.push(bare(&place, Kind::Websocket, members, progress).await?);
        }
        Ok(Self { settings, place, systems, frame_bytes: Vec::new(), progress })
    }

    fn pushes(&self, mode: Mode, rate: Rate, bytes: usize) -> Pushes {
        let (groups, members) = mode.groups(self.settings.members);
        let rate = match rate {
            Rate::PerSecond(rate) => Some(rate),
            Rate::Saturated => None,
        };
        let in_flight = IN_FLIGHT * u64::from(groups);
        Pushes { groups, members, rate, in_flight, seconds: self.settings.seconds, bytes }
    }

    /// Pushes some messages to everybody: streams are opened, members are loaded, and the frame's size is known.
    async fn warm_up(&mut self) -> Result<(), BenchError> {
        let modes = self.settings.modes.clone();
        for mode in modes {
            (self.progress)(&format!("warming up: {mode:?}"));
            let mut bytes = self.settings.payload;
            for at in 0..self.systems.len() {
                let pushes = Pushes { seconds: 1.0, ..self.pushes(mode, Rate::Saturated, bytes) };
                let (flow, _) = self.systems[at].push(&self.place, &pushes).await?;
                if let Some(trouble) = flow.trouble {
                    return Err(trouble)
                        .map_err(failed(format!("warm up the {}", name(self.systems[at].kind))));
                }
                if at == 0 {
                    bytes = flow.frame_bytes.round() as usize;
                }
            }
            self.frame_bytes.push(bytes);
        }
        Ok(())
    }

    /// One round: every mode and rate, system after system.
    async fn round(&mut self, round: u32, samples: &mut Vec<Sample>) -> Result<(), BenchError> {
        let Settings { modes, rates, rounds, payload, .. } = self.settings;
        for (at, mode) in modes.iter().enumerate() {
            for rate in rates {
                for system in 0..self.systems.len() {
                    let kind = self.systems[system].kind;
                    (self.progress)(&format!(
                        "round {} of {rounds}: {mode:?}, {rate}, {}",
                        round + 1,
                        name(kind)
                    ));
                    let bytes = if kind == Kind::Gateway { *payload } else { self.frame_bytes[at] };
                    let pushes = self.pushes(*mode, *rate, bytes);
                    let (flow, costs) = self.systems[system].push(&self.place, &pushes).await?;
                    let costs = costs.map(|cost| flow.trouble.is_none().then_some(cost));
                    let nats_us = costs[2].filter(|_| kind == Kind::Gateway);
                    let [server_us, load_us, _] = costs;
                    samples.push(Sample {
                        system: kind,
                        mode: *mode,
                        rate: *rate,
                        server_us,
                        load_us,
                        nats_us,
                        flow,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Medians of all rounds of a system, mode and rate.
#[derive(Debug, Clone, Serialize)]
struct Summary {
    system: Kind,
    mode: Mode,
    rate: Rate,
    pushes_per_s: Option<f64>,
    server_us: Option<f64>,
    load_us: Option<f64>,
    nats_us: Option<f64>,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// Until the last member has it, in the middle and at worst but one in 100.
    last_p50_ms: Option<f64>,
    last_p99_ms: Option<f64>,
}

fn summary(samples: &[Sample], system: Kind, mode: Mode, rate: Rate) -> Summary {
    let rounds: Vec<&Sample> = samples
        .iter()
        .filter(|sample| (sample.system, sample.mode, sample.rate) == (system, mode, rate))
        .filter(|sample| sample.flow.trouble.is_none())
        .collect();
    let of = |figure: &dyn Fn(&Sample) -> Option<f64>| {
        median(rounds.iter().filter_map(|one| figure(one)).collect())
    };
    Summary {
        system,
        mode,
        rate,
        pushes_per_s: of(&|one| Some(one.flow.rate)),
        server_us: of(&|one| one.server_us),
        load_us: of(&|one| one.load_us),
        nats_us: of(&|one| one.nats_us),
        p50_ms: of(&|one| Some(one.flow.latency.first()?.p50)),
        p95_ms: of(&|one| Some(one.flow.latency.first()?.p95)),
        p99_ms: of(&|one| Some(one.flow.latency.first()?.p99)),
        last_p50_ms: of(&|one| Some(one.flow.last.p50)),
        last_p99_ms: of(&|one| Some(one.flow.last.p99)),
    }
}

const HEAD: [&str; 12] = [
    "mode",
    "rate",
    "server",
    "pushes/s",
    "server us/push",
    "NATS us",
    "load us",
    "P50 ms",
    "P95 ms",
    "P99 ms",
    "last P50",
    "last P99",
];

impl Summary {
    fn row(&self) -> Vec<String> {
        let names =
            [format!("{:?}", self.mode).to_lowercase(), self.rate.to_string(), name(self.system).to_owned()];
        let figures = [
            self.pushes_per_s,
            self.server_us,
            self.nats_us,
            self.load_us,
            self.p50_ms,
            self.p95_ms,
            self.p99_ms,
            self.last_p50_ms,
            self.last_p99_ms,
        ];
        names.into_iter().chain(figures.map(maybe)).collect()
    }
}

/// Compares the gateway's cost of a push in bursts with the others': the limits are those of the load that was asked for.
fn lines(summaries: &[Summary], settings: &Settings) -> Vec<Line> {
    let cost = |system, rate| {
        let found =
            summaries.iter().find(|one| (one.system, one.mode, one.rate) == (system, Mode::Burst, rate));
        found.and_then(|one| one.server_us)
    };
    let share = |rate, of| Some(cost(Kind::Gateway, rate)? / cost(of, rate)?.max(f64::MIN_POSITIVE));
    let mut lines = Vec::new();
    for rate in settings.rates.iter().filter(|_| settings.modes.contains(&Mode::Burst)) {
        let what = format!("server CPU a push of the bare loop's, burst, {rate}");
        let value = share(*rate, Kind::Bare);
        // At lower rates both spend most of their time on waking up.
        let strict = *rate == Rate::Saturated || matches!(rate, Rate::PerSecond(rate) if *rate >= 20_000.0);
        lines.push(if strict {
            Line::must(what, value, Bound::AtMost, BARE_MUST)
        } else {
            Line::aim(what, value, Bound::AtMost, BARE_MUST)
        });
        if cfg!(feature = "bench") {
            let what = format!("server CPU a push of the WebSocket's, burst, {rate}");
            lines.push(Line::aim(what, share(*rate, Kind::Websocket), Bound::AtMost, 1.0));
        }
    }
    lines
}

/// Measures and judges.
pub async fn run(settings: &Settings, command: String, progress: Progress<'_>) -> Result<Report, BenchError> {
    let mut report = Report::begin("fanout", command);
    let mut bench = Bench::prepare(settings, progress).await?;
    bench.warm_up().await?;
    let mut samples = Vec::new();
    for round in 0..settings.rounds {
        bench.round(round, &mut samples).await?;
    }
    let kinds: Vec<Kind> = bench.systems.iter().map(|system| system.kind).collect();
    let mut table = Table::new(&HEAD);
    let mut summaries = Vec::new();
    for mode in &settings.modes {
        for rate in &settings.rates {
            for kind in &kinds {
                let summary = summary(&samples, *kind, *mode, *rate);
                table.rows.push(summary.row());
                summaries.push(summary);
            }
        }
    }
    report.lines = lines(&summaries, settings);
    for (mode, bytes) in settings.modes.iter().zip(&bench.frame_bytes) {
        let (groups, members) = mode.groups(settings.members);
        let mode = format!("{mode:?}").to_lowercase();
        report
            .notes
            .push(format!("{mode}: {groups} groups of {members}, frames of {bytes} B in each system"));
    }
    if !cfg!(feature = "bench") {
        report.notes.push("built without --features bench, so without the WebSocket".to_owned());
    }
    for sample in &samples {
        if let Some(trouble) = &sample.flow.trouble {
            let Sample { system, mode, rate, .. } = sample;
            report.notes.push(format!("no figures of the {}, {mode:?}, {rate}: {trouble}", name(*system)));
        }
    }
    report.tables.push(table);
    report.results = json!({ "summary": summaries, "samples": samples, "payload_bytes": settings.payload });
    Ok(report)
}

/// What a push costs the gateway, at one rate and for groups of each size: see `scale`.
pub(super) async fn by_group_size(
    sizes: &[u32],
    rate: u32,
    progress: Progress<'_>,
) -> Result<Vec<(u32, Flow, f64)>, BenchError> {
    let sessions = sizes.iter().copied().max().unwrap_or(1);
    let (place, door) = Place::start().await?;
    let groups = |size: u32| (sessions / size).clamp(1, GROUPS_MAX);
    for size in sizes {
        progress(&format!("writing {} groups of {size}", groups(*size)));
        populate(&place, groups(*size), *size).await?;
    }
    let mut system = gateway(&place, door, sessions, progress).await?;
    let mut found = Vec::new();
    for size in sizes {
        progress(&format!("pushing to groups of {size}"));
        let (groups, members) = (groups(*size), *size);
        let in_flight = (WARM_UP / u64::from(members)).max(1);
        // Each group is loaded once before.
        let warm_up = Pushes { groups, members, rate: None, in_flight, seconds: 2.0, bytes: GROUP_PAYLOAD };
        system.push(&place, &warm_up).await?;
        let pushes = Pushes { rate: Some(f64::from(rate)), seconds: GROUP_SECONDS, ..warm_up };
        let (flow, [server_us, ..]) = system.push(&place, &pushes).await?;
        found.push((members, flow, server_us));
    }
    Ok(found)
}

/// Pushes under way while groups of one size are loaded.
const WARM_UP: u64 = 2_000;

/// Bytes of their payload.
const GROUP_PAYLOAD: usize = 300;

/// Groups of one size that are made.
const GROUPS_MAX: u32 = 200;

/// Seconds for which pushes to groups of one size are measured; with 100,000 members several messages fit.
const GROUP_SECONDS: f64 = 15.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_or_saturated() {
        assert_eq!("saturated".parse(), Ok(Rate::Saturated));
        assert_eq!("20000".parse(), Ok(Rate::PerSecond(20_000.0)));
        for bad in ["", "0", "-1", "fast", "NaN"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spread_pushes_reach_as_many_in_smaller_groups() {
        assert_eq!(Mode::Burst.groups(1_000), (1, 1_000));
        assert_eq!(Mode::Spread.groups(1_000), (50, 20));
        assert_eq!(Mode::Spread.groups(20), (20, 1));
    }

    #[test]
    fn only_a_rate_from_20_000_on_and_saturation_must_be_met() {
        let settings = Settings {
            members: 10,
            payload: 300,
            rates: vec![Rate::PerSecond(10_000.0), Rate::PerSecond(20_000.0), Rate::Saturated],
            modes: vec![Mode::Burst],
            seconds: 1.0,
            rounds: 1,
        };
        let lines = lines(&[], &settings);
        let musts = lines.iter().filter(|line| line.kind == super::super::report::Kind::Must);
        assert_eq!(musts.clone().count(), 2);
        assert!(musts.clone().all(|line| !line.met), "what was not measured is missed");
    }
}
