//! docs/provisioning.md is what happens: its commands are run, and print what it says.
//!
//! Each line of a `console` block that begins with `$ ` is run by bash, with the program on the path, in one directory
//! and in their order; `fanfare/` is the project in it. `./dev transcript` writes what they print into the page.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Output;

use fanfare::demo::{NatsCluster, NatsServer};
use tempfile::TempDir;
use tokio::process::Command;

/// The page, below the project's directory.
const PAGE: &str = "docs/provisioning.md";

/// What a page consists of.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    /// Lines that are nobody's output.
    Text(&'a str),
    /// A command, and what it is said to print.
    Command(&'a str, String),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_on_provisioning_is_what_happens() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(&source).unwrap();
    let dev = NatsServer::start().await.unwrap();
    // What is declared for production is reserved and not used; the server's own limit is what the disk has.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "jetstream { max_file_store: 1TB, max_memory_store: 8GB }\n").unwrap();
    let limits = ["--config".to_owned(), file.path().display().to_string()];
    let production = NatsCluster::start_with(&limits).await.unwrap();
    let place = Place::new(&[("dev", &dev.url), ("production", &production.url)]);
    let mut happened = String::new();
    for part in parts(&page) {
        match part {
            Part::Text(text) => writeln!(happened, "{text}").unwrap(),
            Part::Command(command, _) => {
                write!(happened, "$ {command}\n{}", place.run(command).await).unwrap();
            }
        }
    }
    if std::env::var_os("TRANSCRIPT").is_some_and(|what| what == "write") {
        std::fs::write(&source, happened).unwrap();
    } else if let Some((says, prints)) = page.lines().zip(happened.lines()).find(|(a, b)| a != b) {
        panic!(
            "{PAGE} says\n{says}\nwhere its commands print\n{prints}\nRun ./dev transcript, and read what changed"
        );
    } else {
        assert_eq!(page.len(), happened.len(), "{PAGE} ends elsewhere; run ./dev transcript");
    }
}

/// Cuts a page into its commands and all else.
fn parts(page: &str) -> Vec<Part<'_>> {
    let (mut parts, mut inside) = (Vec::new(), false);
    for line in page.lines() {
        match (inside, line.strip_prefix("$ "), parts.last_mut()) {
            (_, _, _) if line.starts_with("```") => {
                inside = line == "```console";
                parts.push(Part::Text(line));
            }
            (true, Some(command), _) => parts.push(Part::Command(command, String::new())),
            (true, None, Some(Part::Command(_, output))) => writeln!(output, "{line}").unwrap(),
            _ => parts.push(Part::Text(line)),
        }
    }
    parts
}

/// Where commands are run: a directory, and the contexts of the nats CLI in it.
struct Place {
    dir: TempDir,
    servers: Vec<String>,
}

impl Place {
    fn new(servers: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let contexts = dir.path().join("home/.config/nats/context");
        std::fs::create_dir_all(&contexts).unwrap();
        let work = dir.path().join("work");
        std::fs::create_dir(&work).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_MANIFEST_DIR"), work.join("fanfare")).unwrap();
        for (name, url) in servers {
            let context = serde_json::json!({ "url": url }).to_string();
            std::fs::write(contexts.join(format!("{name}.json")), context).unwrap();
        }
        Self { dir, servers: servers.iter().map(|(_, url)| (*url).to_owned()).collect() }
    }

    /// Runs a command to its end: what it writes to both outputs, without what differs from run to run.
    async fn run(&self, command: &str) -> String {
        let programs = Path::new(env!("CARGO_BIN_EXE_fanfare")).parent().unwrap();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let Output { stdout, .. } = Command::new("bash")
            .args(["-c", &format!("exec 2>&1; {command}")])
            .current_dir(self.dir.path().join("work"))
            .env("HOME", self.dir.path().join("home"))
            .env_remove("XDG_CONFIG_HOME")
            .env("PATH", path)
            .env("NO_COLOR", "1")
            .output()
            .await
            .unwrap();
        let mut text = String::from_utf8(stdout).unwrap();
        for server in &self.servers {
            text = text.replace(server.as_str(), "nats://nats.example:4222");
        }
        text
    }
}

#[test]
fn a_page_is_cut_into_commands_and_their_output() {
    let page = "a\n```console\n$ x\n1\n2\n$ y\n```\n$ no\n```toml\n$ no\n```\n";
    let text = |line| Part::Text(line);
    let command = |command, output: &str| Part::Command(command, output.to_owned());
    let expected = [
        text("a"),
        text("```console"),
        command("x", "1\n2\n"),
        command("y", ""),
        text("```"),
        text("$ no"),
        text("```toml"),
        text("$ no"),
        text("```"),
    ];
    assert_eq!(parts(page), expected);
}
