//! A child of the bench that does what it is told: an order is a line of JSON, and so is each answer.
//!
//! The child ends when it is dropped, and by itself when the bench is gone, since its orders end then.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::usage::Usage;
use super::{BenchError, failed};
use crate::demo::nats_server::end;

/// What a child says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// How far it is.
    Progress(u64),
    /// The order is carried out.
    Done(Value),
    /// It cannot be.
    Failed(String),
}

/// A child that takes orders.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts this program with other arguments in `folder`.
    pub(super) fn start(name: &str, args: &[&str], folder: &Path) -> Result<Self, BenchError> {
        let what = format!("start the {name}");
        let mut child = command(folder)
            .map_err(failed(&what))?
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed(&what))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (orders, answers) = stdin.zip(stdout).expect("both are pipes");
        Ok(Self { name: name.to_owned(), child, orders, answers: BufReader::new(answers).lines() })
    }

    /// Gives an order and waits for its answer, `limit` at most; `progress` hears how far it is.
    pub(super) async fn ask<A: DeserializeOwned>(
        &mut self,
        order: &impl Serialize,
        limit: Duration,
        mut progress: impl FnMut(u64),
    ) -> Result<A, BenchError> {
        let mut line = serde_json::to_vec(order).expect("an order is JSON");
        line.push(b'\n');
        let answered = async {
            self.orders.write_all(&line).await.map_err(|_| "has ended".to_owned())?;
            loop {
                let line = self.answers.next_line().await.map_err(|error| error.to_string())?;
                let line = line.ok_or("has ended; what it said is above")?;
                match serde_json::from_str(&line).map_err(|error| format!("says {line}: {error}"))? {
                    Said::Progress(done) => progress(done),
                    Said::Done(answer) => {
                        return serde_json::from_value(answer)
                            .map_err(|error| format!("says {line}: {error}"));
                    }
                    Said::Failed(why) => return Err(format!("cannot go on: {why}")),
                }
            }
        };
        let answer = tokio::time::timeout(limit, answered).await;
        let late = || Err(format!("gave no answer within {} s", limit.as_secs()));
        answer
            .unwrap_or_else(|_| late())
            .map_err(|what| BenchError::Process { name: self.name.clone(), what })
    }

    /// What it has used.
    pub(super) fn usage(&self) -> Result<Usage, BenchError> {
        usage(&self.name, self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// What a process has used, which must be there.
pub(super) fn usage(name: &str, pid: Option<u32>) -> Result<Usage, BenchError> {
    let gone = || BenchError::Process {
        name: name.to_owned(),
        what: "has ended, or /proc cannot be read".to_owned(),
    };
    pid.and_then(Usage::of).ok_or_else(gone)
}

/// This program as a child in `folder`, with nothing of the environment that would change its configuration.
pub(super) fn command(folder: &Path) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FANFARE__") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    // Ctrl-C is meant for the parent, which ends its children.
    command.current_dir(folder).process_group(0).kill_on_drop(true);
    Ok(command)
}

/// Says something to the bench. A bench that is gone hears nothing, and its orders have ended.
pub(super) fn say(said: &Said) {
    use std::io::Write as _;
    let line = serde_json::to_string(said).expect("an answer is JSON");
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Does what the lines of the standard input order, one after the other, until they end.
pub(super) async fn obey<O: DeserializeOwned>(
    mut carry_out: impl AsyncFnMut(O) -> Result<Value, BenchError>,
) -> Result<(), BenchError> {
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = orders.next_line().await.map_err(failed("read an order"))? {
        let order = serde_json::from_str(&line).map_err(failed("understand an order"))?;
        say(&match carry_out(order).await {
            Ok(answer) => Said::Done(answer),
            Err(error) => Said::Failed(error.to_string()),
        });
    }
    Ok(())
}
