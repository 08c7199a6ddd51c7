//! `fanfare dlq`: shows the dead letters, sends them again, deletes them.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use async_nats::jetstream;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, MissedTickBehavior};

use super::progress::{Progress, grouped};
use crate::catalog::Catalog;
use crate::clock::Now;
use crate::config::Config;
use crate::delivery::dead_letter::{self, Archive, Filter, Letter, Summary};
use crate::id;
use crate::pipeline::Reason;

/// Failures that are shown before the rest is only counted.
const FAILURES_SHOWN: u64 = 20;

/// Arguments of `fanfare dlq`.
#[derive(Debug, Args)]
pub(crate) struct Dlq {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Shows the newest dead letters, one a line, and how many there are by reason and event.
    List {
        #[command(flatten)]
        filter: FilterArgs,
        /// How many are shown; all are counted.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        limit: u64,
        /// One JSON object a line, without the counts.
        #[arg(long)]
        json: bool,
    },
    /// Shows one with its headers and its body.
    Show {
        /// Its sequence, as `list` shows it.
        seq: u64,
        /// As one JSON object.
        #[arg(long)]
        json: bool,
        /// Leave nothing out: also show tokens, and the body as it came.
        #[arg(long)]
        secrets: bool,
    },
    /// Publishes originals once more on their subjects, oldest first, and deletes the dead letters. One whose time to live
    /// is over is taken and ends as expired: nobody sees it.
    Replay {
        #[command(flatten)]
        which: Which,
        /// At most so many a second.
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=1_000))]
        rate: u64,
        /// Only say how many it would be.
        #[arg(long)]
        dry_run: bool,
        /// With --all: do it. Without, it is only said how many it would be.
        #[arg(long, conflicts_with = "dry_run")]
        yes: bool,
    },
    /// Deletes dead letters for ever.
    Purge {
        #[command(flatten)]
        which: Which,
        /// Do it. Without, it is only said how many it would be.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
struct FilterArgs {
    /// Only those with this reason, such as `write_refused`.
    #[arg(long, value_parser = reason)]
    reason: Option<Reason>,
    /// Only those of this event, such as `friend.request`.
    #[arg(long)]
    event: Option<String>,
    /// Only those of the last 45s, 30m, 2h or 7d.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    since: Option<Duration>,
}

impl FilterArgs {
    fn filter(&self) -> Filter {
        let ago = |ago: &Duration| (Now::read().unix_ms * 1_000).saturating_sub(ago.as_micros() as u64);
        Filter { reason: self.reason, event: self.event.clone(), since_us: self.since.as_ref().map(ago) }
    }
}

#[derive(Debug, Args)]
struct Which {
    /// Sequences, as `list` shows them.
    #[arg(value_name = "SEQ", required_unless_present = "all", conflicts_with_all = ["all", "reason", "event", "since"])]
    seqs: Vec<u64>,
    /// All that the filters let pass.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

impl Which {
    /// Their sequences, oldest first. A million take 8 MB.
    async fn seqs(&self, archive: &Archive) -> anyhow::Result<Vec<u64>> {
        let mut seqs = self.seqs.clone();
        if self.all {
            archive.scan(&self.filter.filter(), |letter| seqs.push(letter.seq)).await?;
        }
        seqs.sort_unstable();
        seqs.dedup();
        Ok(seqs)
    }
}

fn reason(text: &str) -> Result<Reason, String> {
    let names = || Reason::ALL.iter().map(|reason| reason.as_str()).collect::<Vec<_>>().join(", ");
    let known = Reason::ALL.iter().copied().find(|reason| reason.as_str() == text);
    known.ok_or_else(|| format!("it is none of {}", names()))
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number and s, m, h or d, such as 2h".to_owned();
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let unit_s = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let seconds =
        number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_s)).ok_or_else(wrong)?;
    Ok(Duration::from_secs(seconds))
}

/// Runs the command against the NATS of `config`.
pub(crate) async fn run(dlq: &Dlq, config: &Config) -> anyhow::Result<ExitCode> {
    let catalog = config.catalog.load()?;
    let client = crate::nats::connect(&config.nats).await?;
    let archive = Archive::open(jetstream::new(client)).await?;
    match &dlq.action {
        Action::List { filter, limit, json } => {
            list(&archive, &catalog, &filter.filter(), *limit as usize, *json).await
        }
        Action::Show { seq, json, secrets } => show(&archive, &catalog, *seq, *json, *secrets).await,
        Action::Replay { which, rate, dry_run, yes } => {
            let seqs = which.seqs(&archive).await?;
            if *dry_run || (which.all && !yes) {
                println!("{} would be published again{}", letters(seqs.len() as u64), how(*dry_run));
                return Ok(ExitCode::SUCCESS);
            }
            replay(&archive, &seqs, *rate).await
        }
        Action::Purge { which, yes } => purge(&archive, which, *yes).await,
    }
}

fn letters(count: u64) -> String {
    format!("{} dead letter{}", grouped(count), if count == 1 { "" } else { "s" })
}

fn how(asked: bool) -> &'static str {
    if asked { "" } else { "; --yes does it" }
}

async fn list(
    archive: &Archive,
    catalog: &Catalog,
    filter: &Filter,
    limit: usize,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let mut summary = Summary::new(limit);
    let shown = |letter: Letter| Letter {
        detail: dead_letter::shown_text(catalog, &letter.detail).to_owned(),
        ..letter
    };
    archive.scan(filter, |letter| summary.add(shown(letter))).await?;
    if json {
        for letter in summary.newest() {
            println!("{}", as_json(letter));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["seq", "when", "reason", "subject", "deliveries", "detail"].map(str::to_owned)];
    rows.extend(summary.newest().map(|letter| {
        let Letter { seq, reason, subject, deliveries, detail, .. } = letter;
        let when = when(letter.stored_at_us);
        [
            seq.to_string(),
            when,
            id::one_line(reason),
            id::one_line(subject),
            deliveries.to_string(),
            id::one_line(detail),
        ]
    }));
    if summary.total() > 0 {
        table(&rows);
        println!();
    }
    println!("{}", letters(summary.total()));
    for (reason, event, count) in summary.kinds() {
        println!("{:>9}  {:<20} {}", grouped(count), id::one_line(reason), id::one_line(event));
    }
    Ok(ExitCode::SUCCESS)
}

/// Columns as wide as their widest entry; the last one as it is.
fn table<const N: usize>(rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

fn as_json(letter: &Letter) -> Value {
    json!({
        "seq": letter.seq, "when": when(letter.stored_at_us), "reason": letter.reason, "event": letter.event,
        "subject": letter.subject, "deliveries": letter.deliveries, "detail": letter.detail,
    })
}

async fn show(
    archive: &Archive,
    catalog: &Catalog,
    seq: u64,
    json: bool,
    secrets: bool,
) -> anyhow::Result<ExitCode> {
    let Some(letter) = archive.get(seq).await? else {
        bail!("there is no dead letter {seq} (any more): `fanfare dlq list` shows those there are");
    };
    let came = || Value::String(String::from_utf8_lossy(&letter.body).into_owned());
    let body = if secrets { Some(came()) } else { dead_letter::shown(catalog, &letter.body) };
    let withheld = || {
        format!("({} bytes that are not JSON and may hold a secret: --secrets shows them)", letter.body.len())
    };
    let all = letter.headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    let shown = |text| if secrets { text } else { dead_letter::shown_text(catalog, text) };
    let mut headers: Vec<(String, &str)> =
        all.map(|(name, value)| (name.to_string(), shown(value.as_str()))).collect();
    headers.sort_unstable();
    if json {
        let mut object = Map::new();
        for (name, value) in headers {
            let values = object.entry(name).or_insert_with(|| json!([]));
            values.as_array_mut().expect("made here").push(value.into());
        }
        let body = body.unwrap_or_else(|| withheld().into());
        let when = when(letter.origin.stored_at_us);
        println!(
            "{}",
            json!({"seq": seq, "when": when, "subject": letter.subject, "headers": object, "body": body})
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "dead letter {seq} of {} on {}\n",
        when(letter.origin.stored_at_us),
        id::one_line(&letter.subject)
    );
    for (name, value) in headers {
        println!("  {}: {}", id::one_line(&name), id::one_line(value));
    }
    let body = match body {
        None => withheld(),
        Some(Value::String(text)) => text,
        Some(body) => format!("{body:#}"),
    };
    // Control characters would steer the terminal.
    let printable = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    println!("\n{}", body.chars().map(printable).collect::<String>());
    Ok(ExitCode::SUCCESS)
}

async fn replay(archive: &Archive, seqs: &[u64], rate: u64) -> anyhow::Result<ExitCode> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate as u32);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = Failures::default();
    let mut progress = progress(seqs.len());
    let mut published = 0;
    for seq in seqs {
        ticks.tick().await;
        match archive.replay(*seq).await {
            Ok(()) => published += 1,
            Err(error) => {
                failures.add(&progress, *seq, &error);
                if error.concerns_all() {
                    println!("{} published again", letters(published));
                    bail!("stopped at dead letter {seq}; the command can be repeated");
                }
            }
        }
        progress.advance(Instant::now());
    }
    progress.finish();
    println!("{} published again", letters(published));
    failures.end()
}

async fn purge(archive: &Archive, which: &Which, yes: bool) -> anyhow::Result<ExitCode> {
    if yes && which.all && which.filter.filter().is_all() {
        println!("{} deleted", letters(archive.clear().await?));
        return Ok(ExitCode::SUCCESS);
    }
    let seqs = which.seqs(archive).await?;
    if !yes {
        println!("{} would be deleted{}", letters(seqs.len() as u64), how(false));
        return Ok(ExitCode::SUCCESS);
    }
    let mut failures = Failures::default();
    let mut progress = progress(seqs.len());
    let mut deleted = 0;
    for seq in &seqs {
        if archive.delete(*seq).await? {
            deleted += 1;
        } else {
            failures.add(&progress, *seq, &"there is no such dead letter (any more)");
        }
        progress.advance(Instant::now());
    }
    progress.finish();
    println!("{} deleted", letters(deleted));
    failures.end()
}

fn progress(total: usize) -> Progress {
    Progress::new(Some(total as u64), Instant::now(), std::io::stderr().is_terminal())
}

/// What could not be done: the first ones are shown, all are counted.
#[derive(Debug, Default)]
struct Failures {
    count: u64,
}

impl Failures {
    fn add(&mut self, progress: &Progress, seq: u64, error: &dyn std::fmt::Display) {
        self.count += 1;
        progress.finish();
        if self.count <= FAILURES_SHOWN {
            eprintln!("dead letter {seq}: {error}");
        } else if self.count == FAILURES_SHOWN + 1 {
            eprintln!("(more failed; they are only counted)");
        }
    }

    fn end(&self) -> anyhow::Result<ExitCode> {
        if self.count > 0 {
            bail!("{} could not be done and stay as they are", grouped(self.count));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Microseconds as `2026-11-22T13:22:58Z`.
fn when(unix_us: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp((unix_us / 1_000_000) as i64).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_reasons_are_said_right_or_refused() {
        assert_eq!(duration("45s"), Ok(Duration::from_secs(45)));
        assert_eq!(duration("2h"), Ok(Duration::from_hours(2)));
        for wrong in ["", "h", "2", "2w", "-2h", "2 h", "99999999999999999d", "2ü"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(reason("write_refused"), Ok(Reason::WriteRefused));
        assert!(reason("refused").is_err_and(|error| error.contains("write_refused")));
        assert_eq!(when(1_795_353_778_683_021), "2026-11-22T13:22:58Z");
    }
}
