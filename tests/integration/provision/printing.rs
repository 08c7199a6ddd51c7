//! What the program does when it cannot print.

use std::fs::File;
use std::process::{Command, Stdio};

use super::{desired, plan_of};
use crate::support::NatsServer;

/// A pipe that nobody reads.
fn broken() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("it is there").into()
}

fn program(args: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_fanfare"));
    program.args(args).stdin(Stdio::null()).stderr(Stdio::piped());
    program
}

#[test]
fn a_command_that_cannot_print_fails_and_does_not_panic() {
    for args in [&["provision", "permissions"][..], &["provision", "lint"], &["docs", "events"]] {
        for (stdout, said) in [
            (broken as fn() -> Stdio, ""),
            (full, "fanfare: failed printing to stdout: No space left on device (os error 28)\n"),
        ] {
            let output = program(args).stdout(stdout()).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stderr), said, "{args:?}");
            assert_eq!(output.status.code(), Some(1), "{args:?}");
        }
    }
    let usage = program(&["provision", "lint", "--env", "none"]).stderr(broken()).output().unwrap();
    assert_eq!(usage.status.code(), Some(1));
}

#[tokio::test]
async fn apply_comes_to_its_end_though_it_cannot_print() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let args = ["--nats", server.url(), "provision", "apply", "--yes"];

    let output = program(&args).stdout(full()).stderr(broken()).output().unwrap();

    assert_eq!(output.status.code(), Some(0));
    let plan = plan_of(&client, &desired()).await;
    assert!(plan.is_empty(), "{plan}");
}
