//! `fanfare audience import`: brings the memberships of a shop that already has some.
//!
//! A file is read twice: once to find every mistake before anything is written, once to write. The place that was
//! reached is kept beside it, so that an interrupted import goes on where it stopped, at the version it began with.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use async_nats::jetstream;
use clap::{Args, ValueEnum};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::checkpoint::Checkpoint;
use super::lines::Lines;
use crate::cli::progress::{self, Progress};
use crate::clock::Now;
use crate::directory::{ChangeError, Format, Row, Writer, write_all};
use crate::nats;

/// Mistakes that are shown before the rest is only counted.
const MISTAKES_SHOWN: u64 = 20;

/// The checkpoint is written this often; a kill repeats at most so much work.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);

/// Arguments of `fanfare audience import`.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// CSV with a header line (kind,id,user,role) or one JSON object a line; `-` reads from standard input.
    file: PathBuf,
    /// How the memberships are written down; by default the file's extension says it.
    #[arg(long, value_enum)]
    format: Option<FormatName>,
    /// Leave out lines that cannot be read, and count them.
    #[arg(long)]
    skip_invalid: bool,
    /// Go on where an import of this file stopped.
    #[arg(long, conflicts_with_all = ["restart", "from_line"])]
    resume: bool,
    /// Begin again, although an import of this file was interrupted.
    #[arg(long, conflicts_with = "from_line")]
    restart: bool,
    /// Go on after this line; for standard input, which has no place to keep it.
    #[arg(long, value_name = "LINE", requires = "version")]
    from_line: Option<u64>,
    /// The version that the interrupted import printed, in Unix microseconds.
    #[arg(long = "import-v", value_name = "V", requires = "from_line")]
    version: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatName {
    Csv,
    Ndjson,
}

impl Import {
    fn is_stdin(&self) -> bool {
        self.file == Path::new("-")
    }

    fn format(&self) -> Option<Format> {
        match self.format {
            Some(FormatName::Csv) => Some(Format::Csv),
            Some(FormatName::Ndjson) => Some(Format::Ndjson),
            None => match self.file.extension()?.to_str()? {
                "csv" => Some(Format::Csv),
                "ndjson" | "jsonl" => Some(Format::Ndjson),
                _ => None,
            },
        }
    }

    /// Where to begin. The version of a fresh import is the present, so that events that come while it runs win.
    async fn begin(&self) -> anyhow::Result<Checkpoint> {
        let fresh = Checkpoint { v: Now::read().unix_ms * 1_000, ..Checkpoint::default() };
        if let (Some(line), Some(v)) = (self.from_line, self.version) {
            return Ok(Checkpoint { line, v, ..fresh });
        }
        if self.is_stdin() {
            if self.resume || self.restart {
                bail!("standard input keeps no place: --from-line and --import-v say where to go on");
            }
            return Ok(fresh);
        }
        match Checkpoint::load(&self.file).await? {
            Some(known) if self.resume => Ok(known),
            Some(known) if !self.restart => bail!(
                "an import of {} stopped after line {}: go on with --resume, or begin again with --restart",
                self.file.display(),
                known.line
            ),
            None if self.resume => bail!("no import of {} was interrupted", self.file.display()),
            _ => Ok(fresh),
        }
    }
}

/// What the first reading of a file found.
#[derive(Debug, Default)]
struct Survey {
    rows: u64,
    mistakes: u64,
}

/// Runs the command against the NATS of `config`.
pub(super) async fn run(args: &Import, config: &nats::Config) -> anyhow::Result<ExitCode> {
    let Some(format) = args.format() else {
        eprintln!("fanfare: say --format csv or --format ndjson for {}", args.file.display());
        return Ok(ExitCode::from(crate::cli::EXIT_USAGE));
    };
    let begin = args.begin().await?;
    let total = if args.is_stdin() {
        None
    } else {
        let survey = survey(args, format, begin.line).await?;
        if survey.mistakes > 0 && !args.skip_invalid {
            eprintln!(
                "fanfare: {} lines cannot be read and nothing was written: correct them, or leave them out with \
                 --skip-invalid",
                survey.mistakes
            );
            return Ok(ExitCode::from(crate::cli::EXIT_USAGE));
        }
        Some(survey.rows)
    };
    let client = nats::connect(config).await?;
    let context = jetstream::context::ContextBuilder::new().backpressure_on_inflight(true).build(client);
    let writer = Writer::open(context).await?;
    let lines = Lines::open(&args.file, format).await?;
    write(args, &writer, lines, begin, total).await
}

/// Reads the whole file without writing anything; says what is wrong with which line.
async fn survey(args: &Import, format: Format, after: u64) -> anyhow::Result<Survey> {
    let mut lines = Lines::open(&args.file, format).await?;
    let mut survey = Survey::default();
    while let Some((line, row)) = lines.next().await? {
        match row {
            _ if line <= after => {}
            Ok(_) => survey.rows += 1,
            Err(error) => {
                survey.mistakes += 1;
                if survey.mistakes <= MISTAKES_SHOWN {
                    eprintln!("line {line}: {error}");
                } else if survey.mistakes == MISTAKES_SHOWN + 1 {
                    eprintln!("(more lines cannot be read; they are only counted)");
                }
            }
        }
    }
    Ok(survey)
}

/// What the stream of rows tells besides the rows.
#[derive(Debug, Default)]
struct Notes {
    /// Lines left out since the last row.
    skipped: u64,
    /// Lines left out before each row in flight.
    skipped_before: VecDeque<u64>,
    /// Why it ended before the input did.
    failed: Option<anyhow::Error>,
}

/// The rows after `begin`, until the input ends, `stop` is cancelled or a line cannot be used.
fn rows<'a>(
    lines: Lines,
    after: u64,
    skip_invalid: bool,
    notes: &'a Mutex<Notes>,
    stop: &'a CancellationToken,
) -> impl Stream<Item = (u64, Row)> + 'a {
    let next = move |mut lines: Lines| async move {
        loop {
            let read = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                read = lines.next() => read,
            };
            match read {
                Ok(None) => return None,
                Ok(Some((line, _))) if line <= after => {}
                Ok(Some((line, Ok(row)))) => {
                    let notes = &mut *notes.lock();
                    notes.skipped_before.push_back(std::mem::take(&mut notes.skipped));
                    return Some(((line, row), lines));
                }
                Ok(Some(_)) if skip_invalid => notes.lock().skipped += 1,
                Ok(Some((line, Err(error)))) => {
                    notes.lock().failed = Some(anyhow::anyhow!("line {line}: {error}"));
                    return None;
                }
                Err(error) => {
                    notes.lock().failed = Some(error);
                    return None;
                }
            }
        }
    };
    futures::stream::unfold(lines, next)
}

async fn write(
    args: &Import,
    writer: &Writer,
    lines: Lines,
    begin: Checkpoint,
    total: Option<u64>,
) -> anyhow::Result<ExitCode> {
    let (notes, stop) = (Mutex::<Notes>::default(), CancellationToken::new());
    let rows = rows(lines, begin.line, args.skip_invalid, &notes, &stop);
    let results = write_all(writer, begin.v, rows);
    tokio::pin!(results);
    let mut at = begin;
    let mut progress = Progress::new(total, Instant::now(), std::io::stderr().is_terminal());
    let mut saved = Instant::now();
    let failed = loop {
        let result = tokio::select! {
            biased;
            signal = crate::cli::serve::signal(), if !stop.is_cancelled() => {
                signal.context("wait for signals")?;
                // No row is taken any more; those in flight come to their end.
                stop.cancel();
                continue;
            }
            result = results.next() => result,
        };
        match result {
            None => break None,
            Some(Err(error)) => break Some(explain(error)),
            Some(Ok(imported)) => {
                at.take(imported);
                at.skipped += notes.lock().skipped_before.pop_front().unwrap_or_default();
                progress.advance(Instant::now());
            }
        }
        if saved.elapsed() >= CHECKPOINT_EVERY && !args.is_stdin() {
            at.save(&args.file).await?;
            saved = Instant::now();
        }
    };
    progress.finish();
    let Notes { skipped, failed: unreadable, .. } = std::mem::take(&mut *notes.lock());
    let failed = failed.or(unreadable);
    if failed.is_none() && !stop.is_cancelled() {
        at.skipped += skipped;
    }
    finish(args, at, failed, stop.is_cancelled(), &progress).await
}

/// Says what to do about a full bucket, the one refusal that a large import meets.
fn explain(error: ChangeError) -> anyhow::Error {
    let full = format!("{error}").contains("maximum bytes exceeded");
    let error = anyhow::Error::from(error);
    if full {
        return error.context(
            "the bucket is full: raise max_bytes of KV_audience in streams/buckets.toml and apply it",
        );
    }
    error
}

/// Says what was done, and how to go on when that is not all.
async fn finish(
    args: &Import,
    at: Checkpoint,
    failed: Option<anyhow::Error>,
    stopped: bool,
    progress: &Progress,
) -> anyhow::Result<ExitCode> {
    println!(
        "{} memberships written, {} the bucket has already or newer, {} lines left out; {}",
        progress::grouped(at.written),
        progress::grouped(at.unchanged),
        progress::grouped(at.skipped),
        progress.summary(Instant::now()),
    );
    if failed.is_none() && !stopped {
        Checkpoint::remove(&args.file).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let go_on = if args.is_stdin() {
        format!("with the same input and --from-line {} --import-v {}", at.line, at.v)
    } else {
        at.save(&args.file).await?;
        "with --resume".to_owned()
    };
    match failed {
        Some(error) => Err(error.context(format!("stopped after line {}; go on {go_on}", at.line))),
        None => bail!("interrupted after line {}; go on {go_on}", at.line),
    }
}
