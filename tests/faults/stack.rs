//! What a row runs on: a nats-server, `fanfare serve` and processes of devices, all of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::{self, Context};
use fanfare::clock::Now;
use fanfare::demo::NatsServer;
use fanfare::id::UserId;
use fanfare::transport::auth::sign_hs256;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::account::{Account, Found, Published};
use crate::device::Orders;
use crate::kept;

/// HS256 secret of every run.
pub(crate) const SECRET: &[u8] = b"a secret of 32 bytes or more, for faults";

/// Longest wait for anything that should come.
const PATIENCE: Duration = Duration::from_secs(90);

/// A run's differences from what the project ships.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// In the declarations of streams and consumers: file, text, replacement.
    pub(crate) declarations: Vec<(&'static str, &'static str, &'static str)>,
    /// A catalog that takes the place of the built-in one.
    pub(crate) catalog: Option<String>,
    /// More lines of configuration.
    pub(crate) config: &'static str,
}

/// A running gateway with its devices.
pub(crate) struct Stack {
    pub(crate) nats: NatsServer,
    /// The publisher's own connection.
    pub(crate) client: async_nats::Client,
    pub(crate) context: Context,
    pub(crate) edge: SocketAddr,
    admin: SocketAddr,
    serve: Option<Child>,
    /// When the gateway was last killed.
    crash: Option<Instant>,
    devices: Vec<Devices>,
    catalog: bool,
    dir: TempDir,
}

/// A process of devices.
struct Devices {
    child: Child,
    out: PathBuf,
    /// What they were shown counts as received.
    counts: bool,
}

impl Stack {
    /// Starts NATS, provisions it and starts the gateway.
    pub(crate) async fn start(changes: &Changes) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("fanfare-faults-").tempdir()?;
        let edge = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let admin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        prepare(dir.path(), edge, admin, changes)?;
        let nats = NatsServer::start().await?;
        let client = async_nats::connect(&nats.url).await?;
        let context = jetstream::new(client.clone());
        let catalog = changes.catalog.is_some();
        let mut stack = Self {
            nats,
            client,
            context,
            edge,
            admin,
            serve: None,
            crash: None,
            devices: Vec::new(),
            catalog,
            dir,
        };
        stack.provision().await?;
        stack.serve().await?;
        Ok(stack)
    }

    fn fanfare(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
        command
            .args(["--config", "fanfare.toml"])
            .env("FANFARE__NATS__URL", &self.nats.url)
            .env_remove("RUST_LOG")
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if self.catalog {
            command.env("FANFARE__CATALOG__FILE", self.dir.path().join("catalog.toml"));
        }
        command
    }

    /// Runs `fanfare provision apply` with this run's declarations.
    pub(crate) async fn provision(&self) -> anyhow::Result<()> {
        let output = self.fanfare().args(["provision", "--dir", ".", "apply", "--yes"]).output().await?;
        let text = [output.stdout, output.stderr].concat();
        ensure!(output.status.success(), "provision: {}", String::from_utf8_lossy(&text));
        Ok(())
    }

    /// Starts the gateway and waits until it is ready.
    pub(crate) async fn serve(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log"))?;
        self.serve = Some(self.fanfare().arg("serve").stdout(Stdio::null()).stderr(log).spawn()?);
        let started = Instant::now();
        while !self.is_ready().await {
            ensure!(started.elapsed() < PATIENCE, "the gateway is not ready:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn is_ready(&self) -> bool {
        self.get("/readyz").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = tokio::net::TcpStream::connect(self.admin).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// What the gateway has logged.
    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits until the gateway has logged `text`.
    pub(crate) async fn said(&self, text: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        while !self.log().contains(text) {
            ensure!(
                started.elapsed() < PATIENCE,
                "the gateway does not say `{text}`:\n{}",
                tail(&self.log())
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Kills the gateway as a crash would.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut serve) = self.serve.take() {
            self.crash = Some(Instant::now());
            serve.kill().await?;
        }
        Ok(())
    }

    /// Devices as `change` makes them; returns when all are live. `counts` says whether what they are shown counts.
    pub(crate) async fn devices(
        &mut self,
        users: &[String],
        counts: bool,
        change: impl FnOnce(&mut Orders),
    ) -> anyhow::Result<()> {
        let out = self.dir.path().join(format!("devices-{}", self.devices.len()));
        let mut orders = Orders {
            edge: self.edge,
            ca: self.dir.path().join("certificate.pem"),
            out: out.clone(),
            users: users.iter().map(|user| (user.clone(), token(user))).collect(),
            acks: true,
            resumes: true,
            reads: true,
            datagrams: true,
            clock: None,
        };
        change(&mut orders);
        let mut command = Command::new(std::env::current_exe()?);
        if let Some(clock) = &orders.clock {
            let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/faketime");
            let found = Command::new(tool).stderr(Stdio::inherit()).output().await?;
            ensure!(found.status.success(), "no libfaketime, see above");
            let library = String::from_utf8(found.stdout)?.trim().to_owned();
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME", clock)
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let mut child =
            command.arg("device").stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true).spawn()?;
        let input = child.stdin.as_mut().context("an input")?;
        input.write_all(format!("{}\n", serde_json::to_string(&orders)?).as_bytes()).await?;
        self.devices.push(Devices { child, out: out.clone(), counts });
        let started = Instant::now();
        while !std::fs::read_to_string(&out).unwrap_or_default().contains("\"ready\"") {
            ensure!(started.elapsed() < PATIENCE, "devices are not live:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Kills the last process of devices that was started.
    pub(crate) async fn kill_devices(&mut self) -> anyhow::Result<()> {
        self.devices.last_mut().context("devices")?.child.kill().await?;
        Ok(())
    }

    /// Waits until the work queue is empty and devices are shown nothing new for `calm`.
    pub(crate) async fn settled(&self, calm: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        let (mut last, mut since) = (0, Instant::now());
        loop {
            ensure!(started.elapsed() < PATIENCE, "it does not settle:\n{}", tail(&self.log()));
            tokio::time::sleep(Duration::from_millis(100)).await;
            let waiting = match self.context.get_stream("NOTIFICATIONS").await {
                Ok(stream) => stream.cached_info().state.messages,
                Err(_) => continue,
            };
            let written: u64 = self.devices.iter().map(|devices| size(&devices.out)).sum();
            if waiting > 0 || written != last {
                (last, since) = (written, Instant::now());
            }
            if since.elapsed() >= calm {
                return Ok(());
            }
        }
    }

    /// Stops the devices and settles the accounts of `published`.
    pub(crate) async fn account(mut self, published: &[Published]) -> anyhow::Result<Account> {
        let mut found = Found::default();
        for devices in &mut self.devices {
            if devices.child.try_wait()?.is_none() {
                let input = devices.child.stdin.as_mut().context("an input")?;
                input.write_all(b"stop\n").await?;
                if tokio::time::timeout(PATIENCE, devices.child.wait()).await.is_err() {
                    bail!("a process of devices does not stop");
                }
            }
            for line in std::fs::read_to_string(&devices.out)?.lines() {
                let line: Value = serde_json::from_str(line)?;
                found.again += u64::from(line["again"].is_string());
                if devices.counts {
                    found.latencies_ms.extend(line["ms"].as_u64());
                }
                if let (true, Some(user), Some(id)) = (devices.counts, line["u"].as_str(), line["n"].as_str())
                {
                    found.seen.push((user.to_owned(), id.to_owned()));
                }
            }
        }
        kept::read(&self.context, &mut found).await?;
        Ok(Account::settle(published, &found, self.crash))
    }
}

/// A token that a service with a right clock gave.
fn token(user: &str) -> String {
    let user = UserId::new(user).expect("a valid id");
    sign_hs256(SECRET, &user, Now::read(), Duration::from_hours(1))
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Writes configuration, certificate, declarations and catalog.
fn prepare(dir: &Path, edge: SocketAddr, admin: SocketAddr, changes: &Changes) -> anyhow::Result<()> {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
    std::fs::write(dir.join("certificate.pem"), made.cert.pem())?;
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem())?;
    std::fs::write(dir.join("secret"), SECRET)?;
    let config = format!(
        r#"
        auth.keys = [{{ algorithm = "HS256", file = "secret" }}]
        [edge]
        listen = "{edge}"
        # Dead links are found within seconds, so that a run is short.
        heartbeat_ms = 2000
        tls = {{ certificate = "certificate.pem", key = "key.pem" }}
        {}
        [admin]
        listen = "{admin}"
        "#,
        changes.config
    );
    std::fs::write(dir.join("fanfare.toml"), config)?;
    if let Some(catalog) = &changes.catalog {
        std::fs::write(dir.join("catalog.toml"), catalog)?;
    }
    for folder in ["streams", "consumers"] {
        std::fs::create_dir(dir.join(folder))?;
        for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))? {
            let file = file?;
            let mut text = std::fs::read_to_string(file.path())?;
            for (name, from, to) in &changes.declarations {
                if file.file_name().to_str() == Some(name) {
                    ensure!(text.contains(from), "{name} has no `{from}`");
                    text = text.replace(from, to);
                }
            }
            std::fs::write(dir.join(folder).join(file.file_name()), text)?;
        }
    }
    Ok(())
}
