//! The command line: one subcommand a file in `cli/`; the exit code says whose mistake it was.

mod audience;
mod docs;
mod provision;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code for usage and configuration mistakes (`EX_USAGE` of sysexits).
pub const EXIT_USAGE: u8 = 64;

/// Notification gateway: NATS JetStream to devices over WebTransport.
#[derive(Debug, Parser)]
#[command(name = "fanfare", version, about)]
pub struct Cli {
    /// Configuration file; repeat it, later files win.
    #[arg(long, global = true, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// NATS address, over configuration and environment.
    #[arg(long, global = true, value_name = "URL")]
    nats: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show and change the members of groups, conversations, calls and followers.
    Audience(audience::Audience),
    /// Print documents that are generated from the catalog.
    Docs(docs::Docs),
    /// Lint, plan and apply the streams and consumers.
    Provision(provision::Provision),
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let mut config = match crate::config::load(&cli.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("fanfare: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if let Some(url) = cli.nats {
        config.nats.url = url;
    }
    let result = match &cli.command {
        Command::Audience(args) => block_on(audience::run(args, &config.nats)),
        Command::Docs(args) => docs::run(args),
        Command::Provision(args) => block_on(provision::run(args, &config.nats)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("fanfare: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs a command that needs no more than one thread.
fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}
