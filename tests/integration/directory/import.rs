//! `fanfare audience import` as an operator runs it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_are_named_before_anything_is_written_and_can_be_left_out() {
    let server = provisioned().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("members.csv");
    let text =
        "kind,id,user,role\ngroup,g1,ann,owner\ngroup,g1,bob,boss\nuser,g1,eve,\ngroup,g1,bob,member\n";
    std::fs::write(&file, text).unwrap();

    let output = import(&server, &file, &[]).await;
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{errors}");
    assert!(errors.contains("line 3: role `boss` is none of owner, admin, member"), "{errors}");
    assert!(errors.contains("line 4: kind `user` is none of"), "{errors}");
    assert!(errors.contains("2 lines cannot be read and nothing was written"), "{errors}");
    assert!(in_bucket(&server, "g1").await.is_empty());

    let output = import(&server, &file, &["--skip-invalid"]).await;
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.starts_with("2 memberships written, 0 the bucket has already or newer, 2 lines left out"),
        "{said}"
    );
    let expected = BTreeMap::from([("ann".to_owned(), Role::Owner), ("bob".to_owned(), Role::Member)]);
    assert_eq!(in_bucket(&server, "g1").await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_after_the_import_began_wins_over_it() {
    let server = provisioned().await;
    let writer = Writer::open(jetstream::new(server.client().await)).await.unwrap();
    let change = |user: &str, role, v| Change::Member { user: UserId::new(user).unwrap(), role, v };
    let ahead = fanfare::clock::Now::read().unix_ms * 1_000 + 3_600_000_000;
    writer.write(&group("g1"), &change("newer", None, ahead)).await.unwrap();
    writer.write(&group("g1"), &change("older", Some(Role::Admin), 1)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("members.ndjson");
    let line = |user: &str| json!({"kind": "group", "id": "g1", "user": user}).to_string();
    std::fs::write(&file, [line("newer"), line("older"), line("fresh"), line("fresh")].join("\n")).unwrap();

    let output = import(&server, &file, &[]).await;

    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("2 memberships written, 2 the bucket has already or newer"), "{said}");
    let expected = BTreeMap::from([("fresh".to_owned(), Role::Member), ("older".to_owned(), Role::Member)]);
    assert_eq!(in_bucket(&server, "g1").await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_import_says_how_to_go_on_and_does() {
    let server = provisioned().await;
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["--nats", server.url(), "audience", "import", "-", "--format", "csv"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let lines: Vec<String> = (0..2_000).map(|n| format!("group,g1,u{n:04},member\n")).collect();
    let mut stdin = child.stdin.take().unwrap();
    let header = "kind,id,user,role\n";
    stdin.write_all((header.to_owned() + &lines[..1_000].concat()).as_bytes()).await.unwrap();
    stdin.flush().await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while in_bucket(&server, "g1").await.len() < 1_000 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let id = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(1), "with standard input still open");
    let hint = errors.split("go on with the same input and ").nth(1).expect(&errors).trim().to_owned();
    assert!(hint.starts_with("--from-line 1001 --import-v "), "{errors}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.csv");
    std::fs::write(&file, header.to_owned() + &lines.concat()).unwrap();
    let output = import(&server, &file, &hint.split(' ').collect::<Vec<_>>()).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("1,000 memberships written, 0 the bucket has already"), "{said}");
    assert_eq!(in_bucket(&server, "g1").await.len(), 2_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_goes_on_at_its_checkpoint() {
    let server = provisioned().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("members.csv");
    std::fs::write(&file, "kind,id,user\ngroup,g1,ann\ngroup,g1,bob\n").unwrap();
    let checkpoint = folder.path().join("members.csv.import.json");
    std::fs::write(
        &checkpoint,
        json!({"line": 2, "v": V, "written": 1, "unchanged": 0, "skipped": 0}).to_string(),
    )
    .unwrap();

    let output = import(&server, &file, &[]).await;
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("stopped after line 2: go on with --resume, or begin again with --restart"),
        "{errors}"
    );

    assert!(import(&server, &file, &["--resume"]).await.status.success());
    assert_eq!(in_bucket(&server, "g1").await.into_keys().collect::<Vec<_>>(), ["bob"]);
    assert!(!checkpoint.exists());
}

async fn import(server: &NatsServer, file: &Path, more: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["--nats", server.url(), "audience", "import"])
        .arg(file)
        .args(more)
        .output()
        .await
        .unwrap()
}
