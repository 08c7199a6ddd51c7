//! `fanfare provision`: lint, plan and apply the declared streams and consumers.

mod declared;
mod lint;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};

use self::declared::Declared;
use crate::provision::{apply, plan_for};

/// Exit code of `plan` when something would change.
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
    Plan,
    /// Make the changes. Deletes nothing.
    Apply {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Print what each role may do in NATS, and no more than it needs, as configuration of nats-server; needs no server.
    Permissions(super::permissions::Permissions),
}

/// Runs one step.
pub(crate) async fn run(args: &Provision, config: &crate::config::Config) -> anyhow::Result<ExitCode> {
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
    let plan = plan_for(&client, &catalog, &desired).await?;
    println!("{plan}");
    let yes = match args.step {
        Step::Apply { yes } => yes,
        Step::Lint { .. } | Step::Plan | Step::Permissions(_) => {
            let pending = !plan.is_empty();
            return Ok(if pending { ExitCode::from(EXIT_PENDING) } else { ExitCode::SUCCESS });
        }
    };
    if plan.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if !yes && !plan.is_refused() && !ask()? {
        println!("nothing was changed");
        return Ok(ExitCode::from(EXIT_PENDING));
    }
    let report = apply::apply(&client, &desired, &plan).await?;
    println!("created {}, updated {}; the server agrees", report.created, report.updated);
    Ok(ExitCode::SUCCESS)
}

/// Odd numbers that JetStream takes: an even one bears no more losses than the odd one below it.
fn replicas() -> impl TypedValueParser<Value = u8> {
    PossibleValuesParser::new(["1", "3", "5"]).map(|text| text.parse().expect("one of three numbers"))
}

fn ask() -> anyhow::Result<bool> {
    print!("apply? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
