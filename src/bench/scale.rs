//! `fanfare bench scale`: how the cost of one session, push and message changes with the number of sessions, the size of
//! groups and the number of streams. What should be flat is drawn.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::plot::{Series, svg};
use super::report::{Bound, Line, Plot, Report, Table, figure, maybe};
use super::{BenchError, Progress, fanout, ingest, sessions};

/// What the largest cost may be of the smallest before a curve is not flat.
const FLAT: f64 = 1.25;

/// The same over streams, which share nothing.
const FLAT_STREAMS: f64 = 1.1;

/// What to do. An empty list leaves its curve out.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Numbers of sessions.
    pub sessions: Vec<u32>,
    /// Sizes of groups; as many sessions as the largest has members are opened.
    pub groups: Vec<u32>,
    /// Numbers of streams.
    pub streams: Vec<u32>,
    /// Seconds that sessions are held.
    pub hold: Duration,
    /// Pushes a second to groups of each size.
    pub pushes: u32,
    /// Messages in all streams together.
    pub messages: u64,
}

/// A cost for each size.
#[derive(Debug, Clone, Serialize)]
struct Curve {
    name: &'static str,
    over: &'static str,
    unit: &'static str,
    points: Vec<(u32, Option<f64>)>,
    #[serde(skip)]
    flat: f64,
}

impl Curve {
    fn new(name: &'static str, over: &'static str, unit: &'static str) -> Self {
        Self { name, over, unit, points: Vec::new(), flat: FLAT }
    }

    /// The largest cost of the smallest; `None` when one was not measured.
    fn spread(&self) -> Option<f64> {
        let costs: Option<Vec<f64>> = self.points.iter().map(|(_, cost)| *cost).collect();
        let costs = costs.filter(|costs| !costs.is_empty())?;
        let (low, high) = (costs.iter().copied().reduce(f64::min)?, costs.into_iter().reduce(f64::max)?);
        Some(high / low.max(f64::MIN_POSITIVE))
    }

    fn plot(&self) -> Plot {
        let points = self.points.iter().filter_map(|(x, cost)| Some((f64::from(*x), (*cost)?))).collect();
        let title = format!("{}, over {}", self.name, self.over);
        let series = [Series { name: String::new(), points }];
        Plot {
            name: format!("{}-{}", self.over, self.name).replace([' ', '/'], "-"),
            svg: svg(&title, self.over, self.unit, &series),
        }
    }
}

/// Measures every curve.
pub async fn run(settings: &Settings, command: String, progress: Progress<'_>) -> Result<Report, BenchError> {
    let mut report = Report::begin("scale", command);
    let mut curves = Vec::new();
    if !settings.sessions.is_empty() {
        curves.extend(by_sessions(settings, &mut report, progress).await?);
    }
    if !settings.groups.is_empty() {
        curves.push(by_groups(settings, &mut report, progress).await?);
    }
    if !settings.streams.is_empty() {
        curves.push(by_streams(settings, &mut report, progress).await?);
    }
    for curve in &curves {
        let what = format!("{} over {}: the largest of the smallest", curve.name, curve.over);
        report.lines.push(Line::aim(what, curve.spread(), Bound::AtMost, curve.flat));
        report.plots.push(curve.plot());
    }
    report.results = json!({ "curves": curves });
    Ok(report)
}

async fn by_sessions(
    settings: &Settings,
    report: &mut Report,
    progress: Progress<'_>,
) -> Result<[Curve; 3], BenchError> {
    let mut memory = Curve::new("memory a session", "sessions", "kB of server memory");
    let mut handshakes = Curve::new("CPU a handshake", "sessions", "us");
    let mut idle = Curve::new("CPU of an idle session", "sessions", "us a second");
    let mut table = Table::new(&sessions::HEAD);
    let mut failures = 0;
    for count in &settings.sessions {
        let found =
            sessions::measure(&sessions::Settings { count: *count, hold: settings.hold }, progress).await?;
        for (curve, cost) in [
            (&mut memory, found.server_kb),
            (&mut handshakes, found.handshake_us),
            (&mut idle, found.idle_us_per_s),
        ] {
            curve.points.push((*count, (found.failures == 0).then_some(cost)));
        }
        failures += found.failures;
        table.rows.push(sessions::row(&found));
    }
    report.tables.push(table);
    report.lines.push(Line::must("sessions that failed", Some(f64::from(failures)), Bound::AtMost, 0.0));
    Ok([memory, handshakes, idle])
}

async fn by_groups(
    settings: &Settings,
    report: &mut Report,
    progress: Progress<'_>,
) -> Result<Curve, BenchError> {
    let mut curve = Curve::new("CPU a push", "members of a group", "us");
    let mut table = Table::new(&["members", "pushes/s", "CPU us/push", "last P50 ms", "last P99 ms"]);
    for (size, flow, cost) in fanout::by_group_size(&settings.groups, settings.pushes, progress).await? {
        let cost = flow.trouble.is_none().then_some(cost);
        curve.points.push((size, cost));
        let figures = [figure(flow.rate), maybe(cost), figure(flow.last.p50), figure(flow.last.p99)];
        table.rows.push([size.to_string()].into_iter().chain(figures).collect());
        report.notes.extend(flow.trouble.map(|trouble| format!("no figures of groups of {size}: {trouble}")));
    }
    report.tables.push(table);
    Ok(curve)
}

async fn by_streams(
    settings: &Settings,
    report: &mut Report,
    progress: Progress<'_>,
) -> Result<Curve, BenchError> {
    let mut curve = Curve { flat: FLAT_STREAMS, ..Curve::new("CPU a message", "streams", "us") };
    let mut table = Table::new(&["streams", "messages/s", "CPU us/message"]);
    for (number, per_s, cost) in ingest::by_streams(&settings.streams, settings.messages, progress).await? {
        curve.points.push((number, Some(cost)));
        table.rows.push(vec![number.to_string(), figure(per_s), figure(cost)]);
    }
    report.tables.push(table);
    Ok(curve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_as_flat_as_its_extremes_and_unknown_when_one_is() {
        let mut curve = Curve::new("CPU a push", "members of a group", "us");
        assert_eq!(curve.spread(), None);
        curve.points = vec![(10, Some(20.0)), (100, Some(25.0)), (1_000, Some(24.0))];
        assert_eq!(curve.spread(), Some(1.25));
        assert_eq!(curve.plot().name, "members-of-a-group-CPU-a-push");
        curve.points.push((10_000, None));
        assert_eq!(curve.spread(), None);
    }
}
