//! `fanfare provision`: lint, plan and apply the declared streams and consumers, tell drift, and write declarations.

mod declared;
mod lint;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use self::declared::Declared;
use super::serve::Signals;
use crate::provision::import::Imported;
use crate::provision::plan::Painted;
use crate::provision::{Desired, Options, Plan, apply, import, observe, plan_for};

/// Exit code of `plan` when something would change, of `drift` when something differs.
const EXIT_PENDING: u8 = 2;

/// Arguments of `fanfare provision`.
#[derive(Debug, Args)]
pub(crate) struct Provision {
    #[command(subcommand)]
    step: Step,
    #[command(flatten)]
    declared: Declared,
    /// Replicas of every stream and bucket, over the environment's: 1, 3 or 5, at most as many as there are servers. For
    /// the small limits of `dev` on three servers.
    #[arg(long, global = true, value_name = "N", value_parser = replicas())]
    replicas: Option<u8>,
    /// Catalog, over configuration and the built-in one.
    #[arg(long, global = true, value_name = "FILE")]
    catalog: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Step {
    /// Check the declarations against the catalog; needs no server.
    Lint {
        /// Print what was found as JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Show what would change. Exit code 0 when nothing would, 2 when something would.
    Plan {
        #[command(flatten)]
        allow: Allow,
        /// As JSON, for machines.
        #[arg(long)]
        json: bool,
    },
    /// Show the plan, ask, and make the changes. What an earlier apply left half-done is finished.
    Apply {
        #[command(flatten)]
        allow: Allow,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Seconds that one wait may take, for messages in workers' hands or in a stream that is to be made again.
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        wait: u64,
    },
    /// Print what each role may do in NATS, and no more than it needs, as configuration of nats-server; needs no server.
    Permissions(super::permissions::Permissions),
    /// Say what differs from the declarations, for cron and CI. Exit code 0 when nothing does, 2 when something does, 1
    /// when it cannot be told. Changes nothing.
    Drift {
        /// As JSON, for machines.
        #[arg(long)]
        json: bool,
    },
    /// Write declarations of all streams and durable consumers of the account into a new directory.
    Import {
        /// The directory; it must not have anything in it.
        target: PathBuf,
    },
}

/// What may be done beside the ordinary.
#[derive(Debug, Args)]
struct Allow {
    /// Also delete what carries our label and is not declared. No streams that hold messages.
    #[arg(long)]
    prune: bool,
    /// Delete this stream and make it again, where a change needs it. Its consumers are made again, too. May be repeated.
    #[arg(long, value_name = "STREAM")]
    recreate: Vec<String>,
    /// Also what destroys stored messages; and go on when a wait has taken too long.
    #[arg(long)]
    force: bool,
}

impl Allow {
    fn options(&self) -> Options {
        let Self { prune, recreate, force } = self;
        Options { prune: *prune, force: *force, recreate: recreate.clone(), ..Options::default() }
    }
}

/// Runs one step.
pub(crate) async fn run(args: &Provision, config: &crate::config::Config) -> anyhow::Result<ExitCode> {
    if let Step::Import { target } = &args.step {
        import::check_target(Path::new(target))?;
    }
    let file = args.catalog.clone().or_else(|| config.catalog.file.clone());
    let catalog = crate::catalog::Config { file }.load()?;
    let desired = args.declared.desired(&catalog);
    let desired = match args.replicas {
        Some(replicas) => desired.map(|desired| desired.with_replicas(replicas)),
        None => desired,
    };
    if let Step::Lint { json } = args.step {
        return lint::run(desired, &catalog, json);
    }
    let desired = desired?;
    if let Step::Permissions(args) = &args.step {
        super::permissions::run(args, config, &catalog, &desired)?;
        return Ok(ExitCode::SUCCESS);
    }
    let client = crate::nats::connect(&config.nats).await?;
    match &args.step {
        // Both were done without a server.
        Step::Lint { .. } | Step::Permissions(_) => Ok(ExitCode::SUCCESS),
        Step::Plan { allow, json } => {
            let plan = plan_for(&client, &catalog, &desired, &allow.options()).await?;
            if *json {
                println!("{:#}", plan.json());
            } else {
                show(&plan);
            }
            Ok(exit(!plan.is_empty()))
        }
        Step::Drift { json } => {
            let plan = plan_for(&client, &catalog, &desired, &Options::default()).await?;
            Ok(drift(&plan, *json))
        }
        Step::Import { target } => {
            let live = observe::observe_all(&client).await?;
            let Imported { files, left_out } = import::declarations(&live, &desired.owner)?;
            import::write(target, &files)?;
            for one in left_out {
                println!("left out: {one}");
            }
            println!("{} files in {}", files.len(), target.display());
            Ok(ExitCode::SUCCESS)
        }
        Step::Apply { allow, yes, wait } => {
            let options = Options { wait: Duration::from_secs(*wait), ..allow.options() };
            let plan = plan_for(&client, &catalog, &desired, &options).await?;
            said(&format!("{}", Painted(&plan)));
            if plan.is_empty() {
                return Ok(ExitCode::SUCCESS);
            }
            if !yes && !plan.is_refused() {
                if !ask()? {
                    said("nothing was changed");
                    return Ok(exit(true));
                }
                // What is done is what was shown.
                let now = plan_for(&client, &catalog, &desired, &options).await?;
                anyhow::ensure!(now.steps == plan.steps, "the account changed meanwhile; nothing was done");
            }
            let report = applied(&client, &desired, &plan, &options).await?;
            said(&format!("{}; the server agrees", done(&report)));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Sends the plan. A signal ends it where it is, after what it held up is given back; a second one at once. So does the
/// end of the terminal; a migration goes on when only what it prints cannot be written any more.
async fn applied(
    client: &async_nats::Client,
    desired: &Desired,
    plan: &Plan,
    options: &Options,
) -> anyhow::Result<apply::Report> {
    let stop = CancellationToken::new();
    let mut signals = Signals::with_hangup()?;
    let mut told = |line: &str| drop(writeln!(std::io::stderr(), "{line}"));
    let mut applying = pin!(apply::apply(client, desired, plan, options, &stop, &mut told));
    tokio::select! {
        report = &mut applying => return Ok(report?),
        () = signals.next() => {}
    }
    drop(writeln!(std::io::stderr(), "interrupted: giving back what is held up; once more to leave at once"));
    stop.cancel();
    tokio::select! {
        report = &mut applying => Ok(report?),
        () = signals.next() => {
            anyhow::bail!("left at once: what is paused or closed stays so for now; apply again")
        }
    }
}

/// Prints what `apply` has to say. That it cannot be written is no reason to leave a migration half-done, or to say that a
/// finished one has failed.
fn said(text: &str) {
    drop(writeln!(anstream::stdout(), "{text}"));
}

/// In colours on a terminal, unless `NO_COLOR` is set.
fn show(plan: &Plan) {
    anstream::println!("{}", Painted(plan));
}

fn exit(pending: bool) -> ExitCode {
    if pending { ExitCode::from(EXIT_PENDING) } else { ExitCode::SUCCESS }
}

fn drift(plan: &Plan, json: bool) -> ExitCode {
    let drifted = !plan.is_empty() || plan.has_leftovers();
    if json {
        let mut shown = plan.json();
        shown["drift"] = drifted.into();
        println!("{shown:#}");
    } else {
        show(plan);
        println!("{}", if drifted { "drift" } else { "no drift" });
    }
    exit(drifted)
}

fn done(report: &apply::Report) -> String {
    let mut text = format!("created {}, updated {}", report.created, report.updated);
    for (count, what) in [(report.replaced, "replaced"), (report.deleted, "deleted")] {
        if count > 0 {
            text = format!("{text}, {what} {count}");
        }
    }
    text
}

/// Odd numbers that JetStream takes: an even one bears no more losses than the odd one below it.
fn replicas() -> impl TypedValueParser<Value = u8> {
    PossibleValuesParser::new(["1", "3", "5"]).map(|text| text.parse().expect("one of three numbers"))
}

fn ask() -> anyhow::Result<bool> {
    let mut stdout = std::io::stdout();
    write!(stdout, "apply? [y/N] ").and_then(|()| stdout.flush()).context("ask")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
