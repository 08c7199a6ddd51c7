//! `fanfare bench ingest`: how fast the workers empty a work queue, beside a loop that pulls and acks and does nothing
//! else, on a stream of the same kind with the same messages, in turn.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::load::{Connected, Drain, Fill, Kind, Order};
use super::place::Place;
use super::process::Process;
use super::queue::Filled;
use super::report::{Bound, Line, Report, Table, maybe};
use super::{BenchError, Progress, failed, median, queue};
use crate::nats::{INBOX, NOTIFICATIONS, OFFLINE_PUSH};

/// Share of the raw loop's rate that the workers must reach.
const RAW_MUST: f64 = 0.7;

/// The stream of the raw loop.
const RAW: &str = "BENCH_RAW";

/// Users who are away: enough that no cache of a user's makes it easy.
const AWAY: u32 = 10_000;

/// What is kept takes two writes to JetStream a message, so fewer of them do.
const KEPT_SHARE: u64 = 10;

/// Time for an order beside what it takes by itself.
const MOMENT: Duration = Duration::from_mins(1);

/// Messages a second of a machine that is far too slow for this.
const SLOWEST_PER_S: u64 = 500;

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Messages of each measurement.
    pub count: u64,
    /// Users with a session, for what goes to them.
    pub sessions: u32,
    /// How often each is repeated, in turn; medians count.
    pub rounds: u32,
}

/// What is in the stream, and what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Case {
    /// Pulled and acked by a loop of the load.
    Raw,
    /// To users who are away, nothing of it kept.
    Absent,
    /// To users who are online, in bursts of one state: only the last of each window is shown.
    Coalesced,
    /// To users who are online.
    Online,
    /// To users who are away, with a record in their inbox and an offline push.
    Kept,
}

impl Case {
    const ALL: [Self; 5] = [Self::Raw, Self::Absent, Self::Coalesced, Self::Online, Self::Kept];

    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw pull + ack",
            Self::Absent => "absent users",
            Self::Coalesced => "coalesced",
            Self::Online => "online users",
            Self::Kept => "absent, kept",
        }
    }

    fn stream(self) -> &'static str {
        match self {
            Self::Raw => RAW,
            Self::Absent | Self::Coalesced | Self::Online | Self::Kept => NOTIFICATIONS,
        }
    }

    /// The load empties it, and not the gateway.
    fn is_raw(self) -> bool {
        self == Self::Raw
    }

    fn fill(self, number: u32, settings: &Settings) -> Fill {
        let (event, online) = match self {
            Self::Raw | Self::Absent => ("session.unread_updated", false),
            Self::Coalesced => ("session.unread_updated", true),
            Self::Online => ("message.new", true),
            Self::Kept => ("message.new", false),
        };
        let (prefix, users) = if online { ("bench-", settings.sessions) } else { ("away-", AWAY) };
        let count = if self == Self::Kept { settings.count.div_ceil(KEPT_SHARE) } else { settings.count };
        let root = match self {
            Self::Raw => "raw.notification",
            _ => "notification",
        };
        Fill {
            number,
            root: root.to_owned(),
            event: event.to_owned(),
            prefix: prefix.to_owned(),
            users,
            count,
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Serialize)]
struct Sample {
    case: Case,
    messages: u64,
    per_s: f64,
    /// Processor time a message of who emptied it: the gateway, or the raw loop's process.
    us: f64,
    /// The same of nats-server.
    nats_us: f64,
}

fn limit(count: u64) -> Duration {
    MOMENT + Duration::from_secs(count / SLOWEST_PER_S)
}

async fn sample(
    place: &Place,
    load: &mut Process,
    case: Case,
    fill: Fill,
    progress: Progress<'_>,
) -> Result<Sample, BenchError> {
    let (stream, count) = (case.stream(), fill.count);
    let streams = [(stream, &fill)];
    queue::pause(&place.context, stream, "normal").await?;
    let filled = |done| progress(&format!("{}: {done} of {count} messages are in the stream", case.name()));
    let () = load.ask(&Order::Fill(fill.clone()), limit(count), filled).await?;
    progress(&format!("{}: emptying the stream", case.name()));
    let usage = |load: &Process| if case.is_raw() { load.usage() } else { place.gateway_usage() };
    let before = (usage(load)?, place.nats_usage()?);
    let took = if case.is_raw() {
        let drain = Drain { stream: stream.to_owned(), consumer: "normal".to_owned(), count: count + 1 };
        let order = Order::Drain(drain);
        let ((), took) = tokio::try_join!(
            load.ask(&order, limit(count), |_| ()),
            queue::drained(&place.context, &streams, limit(count))
        )?;
        took
    } else {
        queue::drained(&place.context, &streams, limit(count)).await?
    };
    let after = (usage(load)?, place.nats_usage()?);
    let each = |spent: Duration| spent.as_secs_f64() * 1e6 / count as f64;
    Ok(Sample {
        case,
        messages: count,
        per_s: count as f64 / took.as_secs_f64(),
        us: each(after.0.cpu_since(&before.0)),
        nats_us: each(after.1.cpu_since(&before.1)),
    })
}

/// Measures every case, in turn.
async fn measure(settings: &Settings, progress: Progress<'_>) -> Result<Vec<Sample>, BenchError> {
    let (place, door) = Place::start().await?;
    queue::make(&place.context, RAW, "raw", Filled::AsItComes).await?;
    let mut load = Process::start("load", &["bench", "load"], place.folder())?;
    let () = load.ask(&Order::Nats { url: place.nats_url().to_owned() }, MOMENT, |_| ()).await?;
    let count = settings.sessions;
    let order = Order::Connect { door, kind: Kind::Gateway, count, at_once: 128 };
    let connected: Connected = load.ask(&order, limit(u64::from(count) * 20), |_| ()).await?;
    if let Some(why) = connected.why {
        return Err(why).map_err(failed("open sessions"));
    }
    let (mut samples, mut number) = (Vec::new(), 0);
    for round in 0..settings.rounds {
        for case in Case::ALL {
            number += 1;
            let said = |what: &str| progress(&format!("round {} of {}: {what}", round + 1, settings.rounds));
            samples.push(sample(&place, &mut load, case, case.fill(number, settings), &said).await?);
            for kept in [OFFLINE_PUSH, INBOX] {
                queue::purge(&place.context, kept).await?;
            }
        }
    }
    Ok(samples)
}

/// Measures and judges.
pub async fn run(settings: &Settings, command: String, progress: Progress<'_>) -> Result<Report, BenchError> {
    let mut report = Report::begin("ingest", command);
    let samples = measure(settings, progress).await?;
    let of = |case, figure: &dyn Fn(&Sample) -> f64| {
        median(samples.iter().filter(|sample| sample.case == case).map(figure).collect())
    };
    let share = |case| Some(of(case, &|one| one.per_s)? / of(Case::Raw, &|one| one.per_s)?);
    let mut table = Table::new(&["what", "messages/s", "of raw", "CPU us/message", "NATS us/message"]);
    for case in Case::ALL {
        let figures =
            [of(case, &|one| one.per_s), share(case), of(case, &|one| one.us), of(case, &|one| one.nats_us)];
        table.rows.push([case.name().to_owned()].into_iter().chain(figures.map(maybe)).collect());
    }
    for case in [Case::Absent, Case::Coalesced] {
        let what = format!("messages/s of the raw loop's: {}", case.name());
        report.lines.push(Line::must(what, share(case), Bound::AtLeast, RAW_MUST));
    }
    report.results = json!({ "samples": samples });
    report.tables.push(table);
    Ok(report)
}

/// How fast the workers empty several streams side by side, and what a message costs the gateway: see `scale`.
pub(super) async fn by_streams(
    numbers: &[u32],
    count: u64,
    progress: Progress<'_>,
) -> Result<Vec<(u32, f64, f64)>, BenchError> {
    let mut place = Place::prepare().await?;
    let most = numbers.iter().copied().max().unwrap_or(1);
    let names: Vec<String> = (0..most).map(|n| format!("BENCH_{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        queue::make(&place.context, name, &format!("bench{n}"), Filled::Transformed).await?;
    }
    let mut load = Process::start("load", &["bench", "load"], place.folder())?;
    let () = load.ask(&Order::Nats { url: place.nats_url().to_owned() }, MOMENT, |_| ()).await?;
    let mut found = Vec::new();
    for number in numbers {
        let names: Vec<&str> = names.iter().take(*number as usize).map(String::as_str).collect();
        let queues: Vec<String> = names.iter().map(|name| format!("{name}:normal")).collect();
        place.serve(&format!("worker.streams = {queues:?}")).await?;
        let each = count / u64::from(*number);
        let fill = |n| Fill { root: format!("bench{n}"), count: each, ..Case::Absent.fill(*number, &NOBODY) };
        let fills: Vec<Fill> = (0..names.len()).map(fill).collect();
        let streams: Vec<(&str, &Fill)> = names.iter().copied().zip(&fills).collect();
        for (n, (stream, fill)) in streams.iter().enumerate() {
            progress(&format!("filling stream {} of {number}", n + 1));
            queue::pause(&place.context, stream, "normal").await?;
            let () = load.ask(&Order::Fill((*fill).clone()), limit(each), |_| ()).await?;
        }
        progress(&format!("emptying {number} streams"));
        let before = place.gateway_usage()?;
        let took = queue::drained(&place.context, &streams, limit(count)).await?;
        let spent = place.gateway_usage()?.cpu_since(&before);
        let done = (each * u64::from(*number)) as f64;
        found.push((*number, done / took.as_secs_f64(), spent.as_secs_f64() * 1e6 / done));
    }
    Ok(found)
}

/// Nobody is online, and the fill's own count holds.
const NOBODY: Settings = Settings { count: 0, sessions: 0, rounds: 1 };
