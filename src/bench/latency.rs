//! `fanfare bench latency`: how long a notification takes from its publish to its device, by lane, at several rates; and
//! whether lane high keeps its latency while the other lanes work through a backlog.

use std::time::Duration;

use async_nats::jetstream::Context;
use serde::Serialize;
use serde_json::json;

use super::load::{CLASSES, Connected, Fill, Flow, Kind, Order, Traffic};
use super::place::Place;
use super::process::Process;
use super::report::{Bound, Line, Report, Table, figure};
use super::{BenchError, Progress, failed, queue};
use crate::nats::{NOTIFICATIONS, NOTIFICATIONS_LOW, QUEUES};

/// 95 of 100 notifications must take less, in milliseconds, in every lane.
const P95_MUST: f64 = 100.0;

/// The aim for 99 of 100, at this rate.
const P99_AIM: f64 = 20.0;
const P99_RATE: f64 = 5_000.0;

/// What a backlog of other lanes may add to lane high before it counts as changed: what two quiet runs differ by.
const BACKLOG_AIM: f64 = 1.25;

/// The streams and consumers that have the backlog, each with an event of its lane that keeps nothing for users who are away.
const BEHIND: [(&str, &str, &str); 2] =
    [(NOTIFICATIONS, "normal", "session.unread_updated"), (NOTIFICATIONS_LOW, "low", "push.delivery_status")];

/// Users of the backlog.
const AWAY: u32 = 10_000;

/// Time for an order beside what it takes by itself.
const MOMENT: Duration = Duration::from_mins(1);

/// Handshakes, and messages, a second of a machine that is far too slow for this.
const SLOWEST_HANDSHAKES: u32 = 20;
const SLOWEST_FILL: u64 = 500;

/// Seconds of traffic before it is measured: streams are opened, and caches filled.
const WARM_UP: f64 = 3.0;

/// Time for what an overload left in the stream.
const QUIET: Duration = Duration::from_mins(1);

/// What to do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Sessions, one a user.
    pub sessions: u32,
    /// Notifications a second, one after the other.
    pub rates: Vec<f64>,
    /// Seconds of each.
    pub seconds: f64,
    /// Messages of lanes normal and low that lie before the workers in another run of lane high alone.
    pub backlog: Option<u64>,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
struct Run {
    rate: f64,
    high_only: bool,
    /// Messages of the other lanes that were waiting at the begin and at the end.
    backlog: Option<[u64; 2]>,
    flow: Flow,
    /// Processor time of the gateway a notification, in microseconds.
    gateway_us: f64,
}

struct Bench<'a> {
    settings: &'a Settings,
    place: Place,
    load: Process,
    progress: Progress<'a>,
}

impl<'a> Bench<'a> {
    async fn prepare(settings: &'a Settings, progress: Progress<'a>) -> Result<Self, BenchError> {
        let (place, door) = Place::start().await?;
        let mut load = Process::start("load", &["bench", "load"], place.folder())?;
        let () = load.ask(&Order::Nats { url: place.nats_url().to_owned() }, MOMENT, |_| ()).await?;
        let count = settings.sessions;
        let order = Order::Connect { door, kind: Kind::Gateway, count, at_once: 128 };
        let limit = MOMENT + Duration::from_secs(u64::from(count / SLOWEST_HANDSHAKES));
        let said = |open| progress(&format!("{open} of {count} sessions are open"));
        let connected: Connected = load.ask(&order, limit, said).await?;
        if let Some(why) = connected.why {
            return Err(why).map_err(failed("open sessions"));
        }
        Ok(Self { settings, place, load, progress })
    }

    /// Traffic after everything of before is gone.
    async fn by_itself(&mut self, rate: f64, seconds: f64, high_only: bool) -> Result<Run, BenchError> {
        for stream in QUEUES {
            queue::quiet(&self.place.context, stream, QUIET).await?;
        }
        self.traffic(rate, seconds, high_only).await
    }

    async fn traffic(&mut self, rate: f64, seconds: f64, high_only: bool) -> Result<Run, BenchError> {
        let traffic = Traffic { rate, seconds, users: self.settings.sessions, high_only };
        let before = self.place.gateway_usage()?;
        let limit = MOMENT + Duration::from_secs_f64(seconds * 2.0);
        let flow: Flow = self.load.ask(&Order::Traffic(traffic), limit, |_| ()).await?;
        let spent = self.place.gateway_usage()?.cpu_since(&before);
        let gateway_us = spent.as_secs_f64() * 1e6 / flow.sent.max(1) as f64;
        Ok(Run { rate, high_only, backlog: None, flow, gateway_us })
    }

    /// Lane high alone, while the other consumers work through `backlog` messages that were there before.
    async fn behind(&mut self, rate: f64, backlog: u64) -> Result<Run, BenchError> {
        for stream in QUEUES {
            queue::quiet(&self.place.context, stream, QUIET).await?;
        }
        let context = &self.place.context;
        let fills = BEHIND.map(|(_, _, event)| Fill {
            number: 0,
            root: "notification".to_owned(),
            event: event.to_owned(),
            prefix: "away-".to_owned(),
            users: AWAY,
            count: backlog / BEHIND.len() as u64,
        });
        for ((stream, consumer, _), fill) in BEHIND.into_iter().zip(&fills) {
            queue::make_room(context, stream).await?;
            queue::pause(context, stream, consumer).await?;
            let progress = self.progress;
            let said = |done| progress(&format!("{done} messages of lane {consumer} are in the stream"));
            let limit = MOMENT + Duration::from_secs(backlog / SLOWEST_FILL);
            let () = self.load.ask(&Order::Fill(fill.clone()), limit, said).await?;
        }
        let waiting = behind(context).await?;
        (self.progress)(&format!("lane high at {rate}/s beside a backlog of {waiting}"));
        for ((stream, consumer, _), fill) in BEHIND.into_iter().zip(&fills) {
            queue::resume(context, stream, consumer, fill).await?;
        }
        let mut run = self.traffic(rate, self.settings.seconds, true).await?;
        let left = behind(&self.place.context).await?;
        run.backlog = Some([waiting, left]);
        Ok(run)
    }
}

/// Messages of the other lanes that wait.
async fn behind(context: &Context) -> Result<u64, BenchError> {
    let mut waiting = 0;
    for (stream, _, _) in BEHIND {
        waiting += queue::messages(context, stream).await?;
    }
    Ok(waiting)
}

/// Measures and judges.
pub async fn run(settings: &Settings, command: String, progress: Progress<'_>) -> Result<Report, BenchError> {
    let mut report = Report::begin("latency", command);
    let mut bench = Bench::prepare(settings, progress).await?;
    let slowest = settings.rates.iter().copied().fold(f64::INFINITY, f64::min);
    progress("warming up");
    bench.by_itself(slowest, WARM_UP.min(settings.seconds), false).await?;
    let mut runs = Vec::new();
    for rate in &settings.rates {
        progress(&format!("{rate} notifications/s for {} s", settings.seconds));
        let run = bench.by_itself(*rate, settings.seconds, false).await?;
        report.lines.extend(judged(&run));
        runs.push(run);
    }
    if let Some(backlog) = settings.backlog {
        progress(&format!("lane high at {slowest}/s by itself"));
        let quiet = bench.by_itself(slowest, settings.seconds, true).await?;
        let behind = bench.behind(slowest, backlog).await?;
        report.lines.push(compared(&quiet, &behind));
        if let Some([waiting, left]) = behind.backlog {
            let gone = if left == 0 { ": it was gone before the end, so take a larger one" } else { "" };
            report.notes.push(format!("backlog: {waiting} messages at the begin, {left} at the end{gone}"));
        }
        runs.extend([quiet, behind]);
    }
    let mut table = Table::new(&[
        "rate",
        "lane",
        "count",
        "P50 ms",
        "P95 ms",
        "P99 ms",
        "P99.9 ms",
        "max ms",
        "gateway us",
    ]);
    for run in &runs {
        table.rows.extend(rows(run));
        if let Some(trouble) = &run.flow.trouble {
            report.notes.push(format!("no figures at {}/s: {trouble}", run.rate));
        }
    }
    report.notes.push(
        "shaped notifications are held back by their windows, on purpose: no line judges them".to_owned(),
    );
    report.results = json!({ "sessions": settings.sessions, "classes": CLASSES, "runs": runs });
    report.tables.push(table);
    Ok(report)
}

/// The longest of a percentile over all lanes; `None` when the run has no figures.
fn worst(run: &Run, of: impl Fn(&super::histogram::Percentiles) -> f64) -> Option<f64> {
    let lanes =
        run.flow.latency.iter().zip(CLASSES).filter(|(found, class)| *class != "shaped" && found.count > 0);
    let worst = lanes.map(|(found, _)| of(found)).reduce(f64::max);
    worst.filter(|_| run.flow.trouble.is_none())
}

fn judged(run: &Run) -> Vec<Line> {
    let rate = run.rate;
    let (p95, p99) = (worst(run, |found| found.p95), worst(run, |found| found.p99));
    let mut lines =
        vec![Line::must(format!("P95 in ms of the slowest lane at {rate}/s"), p95, Bound::AtMost, P95_MUST)];
    if (rate - P99_RATE).abs() < 0.5 {
        lines.push(Line::aim(
            format!("P99 in ms of the slowest lane at {rate}/s"),
            p99,
            Bound::AtMost,
            P99_AIM,
        ));
    }
    lines
}

fn compared(quiet: &Run, behind: &Run) -> Line {
    let p99 = |run: &Run| worst(run, |found| found.p99);
    let share = p99(quiet).zip(p99(behind)).map(|(quiet, behind)| behind / quiet.max(f64::MIN_POSITIVE));
    Line::aim("P99 of lane high beside a backlog, of its own without", share, Bound::AtMost, BACKLOG_AIM)
}

fn rows(run: &Run) -> Vec<Vec<String>> {
    let held = run.flow.trouble.is_none();
    let kind = match (&run.backlog, run.high_only) {
        (Some(_), _) => ", backlog",
        (None, true) => ", alone",
        (None, false) => "",
    };
    let classes = run.flow.latency.iter().zip(CLASSES).filter(|(found, _)| found.count > 0);
    classes
        .map(|(found, class)| {
            let figures = [found.p50, found.p95, found.p99, found.p999, found.max, run.gateway_us];
            let figures = figures.map(|one| if held { figure(one) } else { "-".to_owned() });
            let names = [format!("{}/s", run.rate), format!("{class}{kind}"), found.count.to_string()];
            names.into_iter().chain(figures).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::histogram::Percentiles;
    use super::*;

    fn run(p95: [f64; 4], trouble: Option<&str>) -> Run {
        let latency = p95.map(|p95| Percentiles { count: 1, p95, p99: 2.0 * p95, ..Percentiles::default() });
        let flow = Flow {
            sent: 4,
            delivered: 4,
            rate: 1.0,
            frame_bytes: 1.0,
            latency: latency.to_vec(),
            last: Percentiles::default(),
            late_share: 0.0,
            trouble: trouble.map(str::to_owned),
        };
        Run { rate: 5_000.0, high_only: false, backlog: None, flow, gateway_us: 1.0 }
    }

    #[test]
    fn the_slowest_lane_counts_and_what_is_shaped_does_not() {
        let lines = judged(&run([1.0, 50.0, 2.0, 1_000.0], None));
        assert_eq!((lines[0].value, lines[0].met), (Some(50.0), true));
        assert_eq!((lines[1].value, lines[1].met), (Some(100.0), false));
        assert!(
            !judged(&run([1.0; 4], Some("late")))[0].met,
            "a run that did not hold its rate has no figures"
        );
    }

    #[test]
    fn a_backlog_is_compared_with_the_run_without() {
        let line = compared(&run([10.0, 0.0, 0.0, 0.0], None), &run([12.0, 0.0, 0.0, 0.0], None));
        assert_eq!((line.value, line.met), (Some(1.2), true));
    }
}
