//! `fanfare bench`: measures the service on this machine; exit code 1 when a line that must be met is not.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::serve::signal;
use crate::bench::fanout::{Mode, Rate};
use crate::bench::report::Plot;
use crate::bench::{BenchError, Progress, Report, bare, fanout, ingest, latency, load, scale, sessions};

/// Arguments of `fanfare bench`.
#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(subcommand)]
    what: What,
    /// Print JSON instead of a table.
    #[arg(long, global = true, conflicts_with = "markdown")]
    json: bool,
    /// Print what docs/benchmarks.md has room for.
    #[arg(long, global = true)]
    markdown: bool,
    /// Also write the JSON into this folder, as `{bench}.json`.
    #[arg(long, global = true, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace what stands in this page between `<!-- bench {name} -->` and `<!-- end -->`.
    #[arg(long, global = true, value_name = "FILE")]
    page: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What a session costs: handshakes, memory, heartbeats.
    Sessions {
        /// Sessions to open.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        count: u32,
        /// Seconds to hold them; two heartbeats unless set.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=3_600))]
        hold: u64,
    },
    /// What a push to a group costs and how long it takes, beside a bare loop and WebSocket.
    Fanout {
        /// Members of the group, each with a session.
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
        members: u32,
        /// Bytes of the payload.
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(120..=16_384))]
        payload: u32,
        /// Pushes a second, or `saturated`.
        #[arg(long, value_delimiter = ',', default_value = "10000,20000,saturated")]
        rate: Vec<Rate>,
        /// All members at once, or one fiftieth after the other.
        #[arg(long, value_delimiter = ',', default_value = "burst,spread")]
        mode: Vec<Mode>,
        /// Seconds of each measurement.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=20))]
        seconds: u32,
        /// Repetitions of each, in turn.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
    },
    /// How long a notification takes, by lane.
    Latency {
        /// Sessions, one a user.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
        sessions: u32,
        /// Notifications a second.
        #[arg(long, value_delimiter = ',', default_value = "1000,5000,10000", value_parser = clap::value_parser!(u32).range(1..=200_000))]
        rate: Vec<u32>,
        /// Seconds of each rate.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=120))]
        seconds: u32,
        /// Then lane high by itself, and beside so many messages that wait in the other lanes.
        #[arg(long, value_parser = clap::value_parser!(u64).range(2..=2_000_000))]
        backlog: Option<u64>,
    },
    /// How fast the workers empty a stream, beside a loop that pulls and acks.
    Ingest {
        /// Messages of each measurement.
        #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(10..=1_000_000))]
        count: u64,
        /// Users with a session, for what goes to them.
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
        sessions: u32,
        /// Repetitions of each, in turn.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
    },
    /// How the cost of a session, a push and a message changes with the number of sessions, the size of groups and the
    /// number of streams. Plots go to --out.
    Scale {
        /// Numbers of sessions.
        #[arg(long, value_delimiter = ',', default_value = "1000,10000,50000,100000", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        sessions: Vec<u32>,
        /// Sizes of groups.
        #[arg(long, value_delimiter = ',', default_value = "10,100,1000,10000,100000", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        groups: Vec<u32>,
        /// Numbers of streams.
        #[arg(long, value_delimiter = ',', default_value = "1,2,4", value_parser = clap::value_parser!(u32).range(1..=16))]
        streams: Vec<u32>,
        /// Which curves.
        #[arg(long, value_delimiter = ',', default_value = "sessions,groups,streams")]
        of: Vec<Curves>,
        /// Seconds to hold sessions.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=3_600))]
        hold: u64,
        /// Pushes a second to groups of each size. Two cores with both ends and 100,000 sessions carry some 6,000.
        #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        pushes: u32,
        /// Messages in all streams together.
        #[arg(long, default_value_t = 400_000, value_parser = clap::value_parser!(u64).range(16..=4_000_000))]
        messages: u64,
    },
    /// Sessions, fan-out, latency and ingest in a short form: less than five minutes.
    All,
    /// The load; told what to do on standard input.
    #[command(hide = true)]
    Load,
    /// A server without a service; told what to do on standard input.
    #[command(hide = true)]
    Bare {
        /// Over WebSocket instead of WebTransport.
        #[arg(long)]
        websocket: bool,
    },
}

/// The curves of `scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Curves {
    Sessions,
    Groups,
    Streams,
}

/// Runs a bench. A signal ends it, and everything it started.
pub(super) async fn run(args: Bench) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Load => load::run().await.map(|()| ExitCode::SUCCESS).map_err(Into::into),
        What::Bare { websocket } => {
            bare::run(websocket).await.map(|()| ExitCode::SUCCESS).map_err(Into::into)
        }
        _ => tokio::select! {
            done = measured(&args) => done,
            stopped = signal() => {
                stopped.context("listen for signals")?;
                anyhow::bail!("stopped by a signal")
            }
        },
    }
}

async fn measured(args: &Bench) -> anyhow::Result<ExitCode> {
    let terminal = std::io::stderr().is_terminal();
    let said = move |line: &str| {
        if terminal {
            eprint!("\r{line}\x1b[K");
        } else {
            eprintln!("{line}");
        }
    };
    let reports = reports(&args.what, &said).await;
    if terminal {
        eprint!("\r\x1b[K");
    }
    let reports = reports?;
    for report in &reports {
        if let Some(folder) = &args.out {
            write(folder, report)?;
        }
        if let Some(page) = &args.page {
            fill(page, report)?;
        }
        if args.json {
            println!("{}", serde_json::to_string(report)?);
        } else if args.markdown {
            println!("{}", report.markdown());
        } else {
            println!("{}", report.text());
        }
    }
    let passed = reports.iter().all(Report::passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The command that repeats the bench: as it was given, without the places where it writes.
fn command() -> String {
    let mut command = "fanfare".to_owned();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--out" || word == "--page" {
            words.next();
        } else {
            command = format!("{command} {word}");
        }
    }
    command
}

async fn reports(what: &What, progress: Progress<'_>) -> Result<Vec<Report>, BenchError> {
    match what {
        What::Sessions { count, hold } => {
            let settings = sessions::Settings { count: *count, hold: Duration::from_secs(*hold) };
            Ok(vec![sessions::run(&settings, command(), progress).await?])
        }
        What::Fanout { members, payload, rate, mode, seconds, rounds } => {
            let settings = fanout::Settings {
                members: *members,
                payload: *payload as usize,
                rates: rate.clone(),
                modes: mode.clone(),
                seconds: f64::from(*seconds),
                rounds: *rounds,
            };
            Ok(vec![fanout::run(&settings, command(), progress).await?])
        }
        What::Latency { sessions, rate, seconds, backlog } => {
            let settings = latency::Settings {
                sessions: *sessions,
                rates: rate.iter().copied().map(f64::from).collect(),
                seconds: f64::from(*seconds),
                backlog: *backlog,
            };
            Ok(vec![latency::run(&settings, command(), progress).await?])
        }
        What::Ingest { count, sessions, rounds } => {
            let settings = ingest::Settings { count: *count, sessions: *sessions, rounds: *rounds };
            Ok(vec![ingest::run(&settings, command(), progress).await?])
        }
        What::Scale { sessions, groups, streams, of, hold, pushes, messages } => {
            let chosen = |which, list: &Vec<u32>| if of.contains(&which) { list.clone() } else { Vec::new() };
            let settings = scale::Settings {
                sessions: chosen(Curves::Sessions, sessions),
                groups: chosen(Curves::Groups, groups),
                streams: chosen(Curves::Streams, streams),
                hold: Duration::from_secs(*hold),
                pushes: *pushes,
                messages: *messages,
            };
            Ok(vec![scale::run(&settings, command(), progress).await?])
        }
        What::All => all(progress).await,
        What::Load | What::Bare { .. } => Ok(Vec::new()),
    }
}

/// Each bench once, with less of everything: for a look after a change. Its figures are too few to be published.
async fn all(progress: Progress<'_>) -> Result<Vec<Report>, BenchError> {
    let sessions = sessions::Settings { count: 2_000, hold: Duration::from_secs(10) };
    let fanout = fanout::Settings {
        members: 1_000,
        payload: 300,
        rates: vec![Rate::PerSecond(20_000.0), Rate::Saturated],
        modes: vec![Mode::Burst],
        seconds: 5.0,
        rounds: 2,
    };
    let latency =
        latency::Settings { sessions: 2_000, rates: vec![1_000.0, 5_000.0], seconds: 10.0, backlog: None };
    let ingest = ingest::Settings { count: 20_000, sessions: 500, rounds: 2 };
    Ok(vec![
        sessions::run(&sessions, command(), progress).await?,
        fanout::run(&fanout, command(), progress).await?,
        latency::run(&latency, command(), progress).await?,
        ingest::run(&ingest, command(), progress).await?,
    ])
}

/// Puts the report in its place in a page.
fn fill(page: &Path, report: &Report) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let filled = filled(&text, report.bench, &report.markdown());
    let filled = filled.with_context(|| format!("{} has no place for {}", page.display(), report.bench))?;
    std::fs::write(page, filled).with_context(|| format!("write {}", page.display()))
}

/// `text` with `figures` in the place of a bench; `None` when it has none.
fn filled(text: &str, bench: &str, figures: &str) -> Option<String> {
    let (before, rest) = text.split_once(&format!("<!-- bench {bench} -->\n"))?;
    let (_, after) = rest.split_once("<!-- end -->")?;
    Some(format!("{before}<!-- bench {bench} -->\n{figures}<!-- end -->{after}"))
}

fn write(folder: &Path, report: &Report) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
    let file = folder.join(format!("{}.json", report.bench));
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(&file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    for Plot { name, svg } in &report.plots {
        let file = folder.join(format!("{}-{name}.svg", report.bench));
        std::fs::write(&file, svg).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_a_place_for_every_bench() {
        let page = include_str!("../../docs/benchmarks.md");
        for bench in ["sessions", "fanout", "latency", "ingest", "scale"] {
            let once = filled(page, bench, "42\n").expect("a place");
            assert!(once.contains(&format!("<!-- bench {bench} -->\n42\n<!-- end -->")));
            assert_eq!(filled(&once, bench, "42\n"), Some(once), "again and again");
        }
        assert_eq!(filled(page, "nothing", ""), None);
    }
}
