//! `fanfare docs`: documents that are generated from what the program knows.

mod bad_input;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::catalog::{self, Catalog, document};
use crate::provision::{finding, schema};

/// Arguments of `fanfare docs`.
#[derive(Debug, Args)]
pub(crate) struct Docs {
    #[command(subcommand)]
    document: Document,
}

#[derive(Debug, Subcommand)]
enum Document {
    /// Print the list of events as Markdown.
    Events {
        /// Print nothing; fail unless this file is that list.
        #[arg(long, value_name = "FILE")]
        check: Option<PathBuf>,
        /// Catalog, over configuration and the built-in one.
        #[arg(long, value_name = "FILE")]
        catalog: Option<PathBuf>,
    },
    /// Print the JSON schema of declarations, for editors.
    DeclarationsSchema,
    /// Print the mistakes that `provision lint` finds, as a table of Markdown.
    Lint,
}

/// Prints or checks one document.
pub(crate) fn run(args: &Docs, configured: &catalog::Config) -> anyhow::Result<ExitCode> {
    let (check, file) = match &args.document {
        Document::Events { check, catalog } => (check, catalog),
        Document::DeclarationsSchema => {
            print!("{}", schema::text());
            return Ok(ExitCode::SUCCESS);
        }
        Document::Lint => {
            print!("{}", finding::table());
            return Ok(ExitCode::SUCCESS);
        }
    };
    let file = file.clone().or_else(|| configured.file.clone());
    let text = events(&catalog::Config { file }.load()?);
    let Some(file) = check else {
        print!("{text}");
        return Ok(ExitCode::SUCCESS);
    };
    let committed =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    anyhow::ensure!(
        committed == text,
        "{file} is out of date: run `fanfare docs events > {file}`",
        file = file.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// The list of events, and what comes of messages that are none of them.
fn events(catalog: &Catalog) -> String {
    document::markdown(catalog) + &bad_input::section()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_list_is_the_generated_one() {
        let committed = include_str!("../../docs/events.md");
        assert!(
            committed == events(&Catalog::built_in().unwrap()),
            "docs/events.md is out of date: run `fanfare docs events > docs/events.md`"
        );
    }
}
