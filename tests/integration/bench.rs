//! `fanfare bench`, each at a tiny scale: what it prints, what it judges, and that nothing of it stays behind. What the
//! figures are is not looked at: they are those of a debug build on a busy machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::{binary, eventually};

/// Longest run of a bench, beyond which it hangs.
const PATIENCE: Duration = Duration::from_mins(4);

/// A bench that runs with a folder of its own for everything temporary.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
        command
            .arg("bench")
            .args(args)
            .env("TMPDIR", self.folder.path())
            .env("NATS_SERVER", binary())
            // Of another service on this machine, say; the bench has a configuration of its own.
            .env("FANFARE__EDGE__HEARTBEAT_MS", "100")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs it to its end; gives its report and its exit code.
    async fn run(&self, args: &[&str]) -> (Value, Option<i32>) {
        let output = self.command(&[args, &["--json"]].concat()).output();
        let output = tokio::time::timeout(PATIENCE, output).await.expect("it has an end").unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let report =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"));
        self.nothing_is_left().await;
        (report, output.status.code())
    }

    /// Waits until neither files nor processes of the bench are there.
    async fn nothing_is_left(&self) {
        eventually("every process of the bench is gone", async || self.processes().is_empty()).await;
        let files: Vec<PathBuf> = self.files();
        assert!(files.is_empty(), "{files:?}");
    }

    fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Processes with the bench's folder in their environment.
    fn processes(&self) -> Vec<String> {
        let mark = format!("TMPDIR={}", self.folder.path().display()).into_bytes();
        let all = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        all.filter(|path| has(&path.join("environ"), &mark)).map(|path| path.display().to_string()).collect()
    }
}

/// True when a file of NUL-separated texts has this one.
fn has(file: &Path, text: &[u8]) -> bool {
    std::fs::read(file).is_ok_and(|bytes| bytes.split(|byte| *byte == 0).any(|part| part == text))
}

/// Checks what every report has, and gives its lines that must be met: what they judge and whether they are.
fn judged(report: &Value, bench: &str) -> Vec<(String, bool)> {
    assert_eq!(report["bench"], bench);
    assert!(report["command"].as_str().unwrap().starts_with(&format!("fanfare bench {bench}")));
    assert!(report["machine"]["cores"].as_u64() > Some(0));
    let lines = report["lines"].as_array().unwrap().iter();
    let musts = lines.filter(|line| line["kind"] == "must");
    musts.map(|line| (line["what"].as_str().unwrap().to_owned(), line["met"].as_bool().unwrap())).collect()
}

/// A bench ends with 1 exactly when a line that must be met is not.
fn assert_code(musts: &[(String, bool)], code: Option<i32>) {
    assert_eq!(code, Some(i32::from(musts.iter().any(|(_, met)| !met))), "{musts:?}");
}

#[tokio::test]
async fn sessions_are_opened_held_and_counted() {
    let (report, code) = Bench::new().run(&["sessions", "--count", "50", "--hold", "1"]).await;
    let musts = judged(&report, "sessions");
    assert_eq!(musts[0], ("sessions that failed".to_owned(), true));
    assert!(musts[1].0.contains("kB of server memory a session"), "{musts:?}");
    assert_code(&musts, code);
    let results = &report["results"];
    assert_eq!((&results["sessions"], &results["failures"]), (&50.into(), &0.into()));
    for figure in ["handshakes_per_s", "handshake_us", "server_kb", "load_kb"] {
        assert!(results[figure].as_f64() > Some(0.0), "{figure} in {results}");
    }
}

#[tokio::test]
async fn a_group_is_pushed_to_by_the_gateway_and_by_the_bare_loop() {
    let args =
        ["fanout", "--members", "20", "--rate", "100,20000,saturated", "--seconds", "1", "--rounds", "1"];
    let (report, code) = Bench::new().run(&args).await;
    let musts = judged(&report, "fanout");
    let judged: Vec<&str> = musts.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(
        judged,
        [
            "server CPU a push of the bare loop's, burst, 20000/s",
            "server CPU a push of the bare loop's, burst, saturated"
        ]
    );
    assert_code(&musts, code);
    let samples = report["results"]["samples"].as_array().unwrap();
    for system in ["gateway", "bare"] {
        for mode in ["burst", "spread"] {
            let of = |sample: &&Value| sample["system"] == system && sample["mode"] == mode;
            let found: Vec<_> = samples.iter().filter(of).collect();
            assert_eq!(found.len(), 3, "{system} {mode}");
            assert!(found.iter().all(|sample| sample["flow"]["delivered"].as_u64() > Some(0)), "{found:?}");
        }
    }
}

#[tokio::test]
async fn latency_is_told_by_lane_and_beside_a_backlog() {
    let args = ["latency", "--sessions", "20", "--rate", "100,200", "--seconds", "3", "--backlog", "2000"];
    let (report, code) = Bench::new().run(&args).await;
    let musts = judged(&report, "latency");
    assert_eq!(musts.len(), 2, "one for each rate: {musts:?}");
    assert_code(&musts, code);
    let runs = report["results"]["runs"].as_array().unwrap();
    let classes = report["results"]["classes"].as_array().unwrap();
    for run in &runs[..2] {
        let counts = run["flow"]["latency"].as_array().unwrap().iter().map(|class| class["count"].as_u64());
        assert!(counts.zip(classes).all(|(count, _)| count > Some(0)), "{run}");
    }
    let [quiet, behind] = &runs[2..] else { panic!("two of lane high alone: {runs:?}") };
    assert_eq!(quiet["backlog"], Value::Null);
    assert!(behind["backlog"][0].as_u64() >= Some(2_000), "{behind}");
}

#[tokio::test]
async fn a_stream_is_emptied_by_the_workers_and_by_the_raw_loop() {
    let bench = Bench::new();
    let (report, code) = bench.run(&["ingest", "--count", "500", "--sessions", "10", "--rounds", "1"]).await;
    let musts = judged(&report, "ingest");
    assert_eq!(musts.len(), 2, "{musts:?}");
    assert_code(&musts, code);
    let samples = report["results"]["samples"].as_array().unwrap();
    let cases: Vec<_> = samples.iter().map(|sample| sample["case"].as_str().unwrap()).collect();
    assert_eq!(cases, ["raw", "absent", "coalesced", "online", "kept"]);
    assert!(samples.iter().all(|sample| sample["per_s"].as_f64() > Some(0.0)), "{samples:?}");
}

#[tokio::test]
async fn curves_are_written_as_json_and_drawn() {
    let (bench, out) = (Bench::new(), TempDir::new().unwrap());
    let folder = out.path().to_str().unwrap();
    let sizes = ["--sessions", "5,10", "--groups", "2,10", "--streams", "1,2"];
    let shorter = ["--hold", "1", "--pushes", "100", "--messages", "200", "--out", folder];
    let (report, code) = bench.run(&[&["scale"][..], &sizes, &shorter].concat()).await;
    let musts = judged(&report, "scale");
    assert_code(&musts, code);
    let curves = report["results"]["curves"].as_array().unwrap();
    assert_eq!(curves.len(), 5, "three over sessions, one over groups, one over streams");
    assert!(curves.iter().all(|curve| curve["points"].as_array().unwrap().len() == 2), "{curves:?}");
    let files = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let drawn = files.iter().filter(|file| file.extension().is_some_and(|ending| ending == "svg"));
    assert_eq!((drawn.count(), out.path().join("scale.json").exists()), (5, true), "{files:?}");
}

#[tokio::test]
async fn a_signal_ends_a_bench_with_everything_it_started() {
    let bench = Bench::new();
    let mut child = bench.command(&["sessions", "--count", "10", "--hold", "3600"]).spawn().unwrap();
    // The bench, nats-server, the gateway and the load.
    eventually("all of it runs", async || bench.processes().len() >= 4).await;
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert_eq!(ended.code(), Some(1));
    bench.nothing_is_left().await;
}

#[tokio::test]
async fn what_cannot_be_measured_is_a_usage_error() {
    for args in [&["sessions", "--count", "0"][..], &["fanout", "--rate", "fast"], &["nothing"]] {
        let output = Bench::new().command(args).output().await.unwrap();
        assert_eq!(output.status.code(), Some(64), "{args:?}");
    }
}
