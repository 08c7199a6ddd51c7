//! The command line: one subcommand a file in `cli/`; the exit code says whose mistake it was.

mod audience;
mod ban;
mod bench;
mod config;
mod dev;
mod dlq;
mod docs;
mod listen;
mod nodes;
mod permissions;
mod printing;
mod progress;
mod provision;
mod publish;
mod serve;
mod token;
mod trace;

use std::panic;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::nats::{self, Role};

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
    /// A context of the nats command, instead of the configuration's section nats; '' for the selected one.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything on this machine, with a demo page.
    Dev(dev::DevArgs),
    /// Run the service.
    Serve(serve::Serve),
    /// Publish a notification.
    Publish(publish::Publish),
    /// Print what a user gets, as a device.
    Listen(listen::Listen),
    /// Show what became of a notification.
    Trace(trace::Trace),
    /// Print a token for a user.
    Token(token::Token),
    /// Show and change the members of groups, conversations, calls and followers.
    Audience(audience::Audience),
    /// Ban users, lift bans, show who is banned.
    Ban(ban::Bans),
    /// Show the nodes of the gateway.
    Nodes(nodes::Nodes),
    /// Show where a user is connected.
    Sessions(nodes::Sessions),
    /// Show, send again and delete the dead letters: what could not be handled.
    Dlq(dlq::Dlq),
    /// Lint, plan and apply the streams and consumers.
    Provision(provision::Provision),
    /// Check or show the configuration.
    Config(config::Show),
    /// Measure what sessions and pushes cost on this machine.
    Bench(bench::Bench),
    /// Print documents that are generated from the catalog.
    Docs(docs::Docs),
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    printing::guarded(command_line)
}

fn command_line() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be said when even this cannot be printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let config = match configured(&cli) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("fanfare: {}", told(&error));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let stays = matches!(cli.command, Command::Serve(_) | Command::Dev(_));
    let result = execute(cli.command, config);
    let denied = nats::denied();
    let code = match result {
        // What NATS drops may have been what the command was for, whatever it believes.
        Ok(_) if !denied.is_empty() && !stays => ExitCode::FAILURE,
        Ok(code) => return code,
        Err(error) => {
            eprintln!("fanfare: {}", told(&error));
            ExitCode::FAILURE
        }
    };
    // An answer that was denied looks like a late one to whoever waits for it.
    for denial in denied {
        eprintln!("fanfare: {denial}");
    }
    code
}

/// Files, environment and flags, and what the command connects for.
fn configured(cli: &Cli) -> anyhow::Result<Config> {
    let mut config = crate::config::load(&cli.config)?;
    if let Some(context) = &cli.context {
        config.nats = nats::Config {
            context: Some(context.clone()),
            name: config.nats.name,
            ..nats::Config::default()
        };
    }
    config.nats = config.nats.resolved().context("configuration")?;
    if let Some(url) = &cli.nats {
        config.nats.url.clone_from(url);
    }
    config.nats.role = cli.command.role();
    Ok(config)
}

impl Command {
    /// What it connects to NATS for.
    fn role(&self) -> Option<Role> {
        match self {
            Self::Dev(_) => Some(Role::All),
            Self::Serve(args) => Some(args.role()),
            Self::Publish(args) => args.service().map(Role::Publisher),
            Self::Trace(_) | Self::Nodes(_) | Self::Sessions(_) => Some(Role::Monitor),
            Self::Audience(_) => Some(Role::Members),
            Self::Ban(_) | Self::Dlq(_) => Some(Role::Operator),
            Self::Provision(_) => Some(Role::Provisioner),
            Self::Listen(_) | Self::Token(_) | Self::Config(_) | Self::Docs(_) | Self::Bench(_) => None,
        }
    }
}

fn execute(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let ended = panic::catch_unwind(panic::AssertUnwindSafe(|| runtime.block_on(commanded(command, config))));
    // A read of standard input that nobody waits for any more would hold up the end until its next line.
    runtime.shutdown_background();
    ended.unwrap_or_else(|panic| panic::resume_unwind(panic))
}

async fn commanded(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    match command {
        Command::Dev(args) => Box::pin(dev::run(config, args)).await,
        Command::Publish(args) => publish::run(&args, &config).await.map(|()| ExitCode::SUCCESS),
        Command::Listen(args) => listen::run(args, &config).await.map(|()| ExitCode::SUCCESS),
        Command::Trace(args) => trace::run(&args, &config).await,
        Command::Token(args) => token::run(&args, &config).map(|()| ExitCode::SUCCESS),
        Command::Audience(args) => audience::run(&args, &config.nats).await,
        Command::Ban(args) => ban::run(&args, &config.nats).await,
        Command::Nodes(args) => nodes::nodes(&args, &config.nats).await,
        Command::Sessions(args) => nodes::sessions(&args, &config.nats).await,
        Command::Dlq(args) => dlq::run(&args, &config).await,
        Command::Provision(args) => provision::run(&args, &config).await,
        Command::Config(args) => Ok(config::run(&args, &config)),
        Command::Bench(args) => bench::run(args).await,
        Command::Docs(args) => docs::run(&args, &config.catalog),
        Command::Serve(args) => serve::run(&args, config).await.map(|()| ExitCode::SUCCESS),
    }
}

/// The error and its causes, each said once: many of our errors quote their cause.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told {
        told if told.is_empty() => cause,
        told if told.contains(&cause) => told,
        told => format!("{told}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("no such file").context("read key.pem: no such file").context("serve");
        assert_eq!(told(&error), "serve: read key.pem: no such file");
    }
}
