//! `fanfare config`: whether the configuration can be used, and what it comes to.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::config::Config;

/// Arguments of `fanfare config`.
#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Step {
    /// Check files, environment and flags, and the catalog they name. Exit code 64 when they cannot be used.
    Check,
    /// Show every value after files, environment and flags; secrets are left out.
    Show,
}

/// Checks or shows. Files and environment were already read by then, so what is left is what they refer to.
pub(crate) fn run(args: &Show, config: &Config) -> ExitCode {
    match args.step {
        Step::Show => println!("{config:#?}"),
        Step::Check => match config.catalog.load() {
            Ok(catalog) => {
                println!("configuration is valid; the catalog has {} events", catalog.events().len());
            }
            Err(error) => {
                eprintln!("fanfare: {error}");
                return ExitCode::from(super::EXIT_USAGE);
            }
        },
    }
    ExitCode::SUCCESS
}
