//! `fanfare bench`: measures the service on this machine; exit code 1 when a line that must be met is not.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::serve::signal;
use crate::bench::fanout::{Mode, Rate};
use crate::bench::{BenchError, Progress, Report, bare, fanout, load, sessions};

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

/// The command as it was given, which repeats the bench.
fn command() -> String {
    let words = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    format!("fanfare {words}")
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
        What::Load | What::Bare { .. } => Ok(Vec::new()),
    }
}

fn write(folder: &std::path::Path, report: &Report) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
    let file = folder.join(format!("{}.json", report.bench));
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(&file, text + "\n").with_context(|| format!("write {}", file.display()))
}
