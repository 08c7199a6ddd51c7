//! `./dev faults`: notifications are published while something breaks, and the accounts must balance.
//!
//! The gateway is `fanfare serve` in a process of its own on a real nats-server; the publisher is a plain NATS client;
//! devices are further processes of this program, which write down what their application was shown. Each row breaks
//! one thing. Its control run breaks the same thing with the protection off: notifications must be lost there, else
//! the row proves nothing.

mod account;
mod cable;
mod cluster;
mod device;
mod history;
mod kept;
mod link;
mod node;
mod publisher;
mod rows;
mod stack;

use std::process::ExitCode;
use std::time::Instant;

use account::{Account, Promise};
use rows::{Guard, Row, Scale};

/// What the command line asks for.
#[derive(Debug, Default)]
struct Asked {
    /// Fewer notifications, and only the rows that CI runs.
    short: bool,
    /// Rows whose names contain one of these; all when empty.
    names: Vec<String>,
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if args.next_if(|arg| arg == "device").is_some() {
        return runtime.block_on(device::run());
    }
    let mut asked = Asked::default();
    for arg in args {
        match arg.as_str() {
            "--short" => asked.short = true,
            name if !name.starts_with('-') => asked.names.push(name.to_owned()),
            other => {
                eprintln!("unknown option {other}; usage: ./dev faults [--short] [PART OF A ROW'S NAME]...");
                return ExitCode::from(64);
            }
        }
    }
    runtime.block_on(run(&asked))
}

async fn run(asked: &Asked) -> ExitCode {
    let wanted = |row: &Row| {
        let named = asked.names.iter().any(|name| row.name.contains(name.as_str()));
        if asked.names.is_empty() { !asked.short || row.short } else { named }
    };
    let rows: Vec<Row> = rows::all().into_iter().filter(wanted).collect();
    if rows.is_empty() {
        eprintln!("no row is named so; the rows are:");
        for row in rows::all() {
            eprintln!("  {}", row.name);
        }
        return ExitCode::from(64);
    }
    let scale = if asked.short { Scale::Short } else { Scale::Full };
    println!("{}", Account::heading());
    let mut failed = Vec::new();
    for row in rows {
        for guard in [Guard::On, Guard::Off] {
            if guard == Guard::Off && row.control.is_empty() {
                continue;
            }
            let started = Instant::now();
            let name = match guard {
                Guard::On => row.name.to_owned(),
                Guard::Off => format!("  control: {}", row.control),
            };
            match (row.run)(scale, guard).await {
                Ok(account) => {
                    let promise = if guard == Guard::On { row.promise } else { Promise::Loses };
                    let verdict = account.verdict(promise);
                    println!("{}", account.line(&name, started.elapsed(), &verdict));
                    if verdict.is_err() {
                        failed.push(name);
                    }
                }
                Err(error) => {
                    println!("{name:<58}  FAILED: {error:#}");
                    failed.push(name);
                }
            }
        }
    }
    if failed.is_empty() {
        println!("every row keeps its promise");
        return ExitCode::SUCCESS;
    }
    println!("{} row(s) do not: {}", failed.len(), failed.join("; "));
    ExitCode::FAILURE
}
