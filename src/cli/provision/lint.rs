//! `fanfare provision lint`: what is wrong with declarations, for people or for programs.

use std::process::ExitCode;

use serde_json::json;

use crate::catalog::Catalog;
use crate::provision::{Desired, Error, Finding, lint};

const MIB: u64 = 1024 * 1024;

/// Prints the findings. Those of reading are printed like those of linting, and nothing else is then known.
pub(super) fn run(
    desired: Result<Desired, Error>,
    catalog: &Catalog,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let (findings, desired) = match desired {
        Ok(desired) => (lint::lint(&desired, catalog), Some(desired)),
        Err(Error::Lint(findings)) => (findings, None),
        Err(error) => return Err(error.into()),
    };
    if json {
        println!("{:#}", json!({ "findings": findings }));
    } else {
        show(&findings, desired.as_ref(), catalog);
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(findings: &[Finding], desired: Option<&Desired>, catalog: &Catalog) {
    for finding in findings {
        println!("{finding}");
    }
    let Some(desired) = desired else {
        return println!("{} mistake(s)", findings.len());
    };
    for storage in ["file", "memory"] {
        let (once, all) = lint::reserved(desired, storage);
        println!("{storage} storage: {} MiB, with all replicas {} MiB", once / MIB, all / MIB);
    }
    println!(
        "{} streams, {} consumers, {} events: {} mistake(s)",
        desired.streams.len(),
        desired.consumers.len(),
        catalog.events().len(),
        findings.len()
    );
}
