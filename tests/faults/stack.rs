//! What a row runs on: one nats-server or three, any number of `fanfare serve` and processes of devices, all of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::stream::PeerInfo;
use async_nats::jetstream::{self, Context};
use fanfare::client::{self, Tokens, Trust};
use fanfare::clock::Now;
use fanfare::demo::{NatsCluster, NatsServer};
use fanfare::id::UserId;
use fanfare::nats::QUEUES;
use fanfare::transport::auth::sign_hs256;
use futures::TryStreamExt as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::account::{Account, Found, Published};
use crate::device::Orders;
use crate::history::History;
use crate::kept;
use crate::node::Node;

/// HS256 secret of every run.
pub(crate) const SECRET: &[u8] = b"a secret of 32 bytes or more, for faults";

/// Longest wait for anything that should come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// How much of everything there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ground {
    pub(crate) nodes: usize,
    /// Three servers instead of one, and so many replicas of everything.
    pub(crate) replicas: Option<u8>,
    /// Each node reaches NATS by cables of its own, which can be cut.
    pub(crate) cables: bool,
    /// What each node is (`--role`); the default of the program for those beyond.
    pub(crate) roles: &'static [&'static str],
}

impl Default for Ground {
    /// One node on one server.
    fn default() -> Self {
        Self { nodes: 1, replicas: None, cables: false, roles: &[] }
    }
}

/// The servers.
#[expect(clippy::large_enum_variant, reason = "there is one in a run")]
pub(crate) enum Nats {
    One(NatsServer),
    Three(NatsCluster),
}

impl Nats {
    fn url(&self) -> &str {
        match self {
            Self::One(server) => &server.url,
            Self::Three(cluster) => &cluster.url,
        }
    }

    pub(crate) async fn kill(&mut self, server: usize) {
        match self {
            Self::One(one) => one.kill().await,
            Self::Three(cluster) => cluster.kill(server).await,
        }
    }

    pub(crate) async fn restart(&mut self, server: usize) -> anyhow::Result<()> {
        match self {
            Self::One(one) => one.restart().await?,
            Self::Three(cluster) => cluster.restart(server).await?,
        }
        Ok(())
    }

    /// Restarts a server as an operator does: it ends in order, and the next one's turn is when it has caught up.
    pub(crate) async fn restart_in_order(&mut self, server: usize, context: &Context) -> anyhow::Result<()> {
        let Self::Three(cluster) = self else { bail!("a single server has nobody to catch up with") };
        cluster.terminate(server).await?;
        eventually("the server has ended", async || !cluster.running()[server]).await?;
        cluster.restart(server).await?;
        eventually("every replica is current", async || are_current(context).await.unwrap_or(false)).await
    }

    /// The server that leads `stream`.
    pub(crate) async fn leader(&self, context: &Context, stream: &str) -> anyhow::Result<usize> {
        match self {
            Self::One(_) => Ok(0),
            Self::Three(cluster) => cluster.leader(context, stream).await.context("a leader"),
        }
    }
}

/// Whether each stream has a leader and no replica that lags.
async fn are_current(context: &Context) -> anyhow::Result<bool> {
    let mut streams = context.streams();
    while let Some(stream) = streams.try_next().await? {
        let cluster = stream.cluster.context("a member of a cluster")?;
        let lags = |replica: &PeerInfo| !replica.current || replica.offline;
        if cluster.leader.is_none() || cluster.replicas.len() < 2 || cluster.replicas.iter().any(lags) {
            return Ok(false);
        }
    }
    Ok(true)
}

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
    pub(crate) nodes: Vec<Node>,
    /// The publisher's own connection.
    pub(crate) client: async_nats::Client,
    pub(crate) context: Context,
    /// When a node was last killed.
    pub(crate) crash: Option<Instant>,
    devices: Vec<Devices>,
    ground: Ground,
    catalog: bool,
    pub(crate) nats: Nats,
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
    /// One node on one server.
    pub(crate) async fn start(changes: &Changes) -> anyhow::Result<Self> {
        Self::on(Ground::default(), changes).await
    }

    /// Starts NATS, provisions it and starts every node.
    pub(crate) async fn on(ground: Ground, changes: &Changes) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("fanfare-faults-").tempdir()?;
        prepare(dir.path(), changes)?;
        let nats = match ground.replicas {
            None => Nats::One(NatsServer::start().await?),
            Some(_) => Nats::Three(NatsCluster::start().await?),
        };
        let servers = nats.url().split(',').map(|url| url.trim_start_matches("nats://").parse());
        let servers: Vec<SocketAddr> = servers.collect::<Result<_, _>>()?;
        let client = async_nats::connect(nats.url().split(',').collect::<Vec<_>>()).await?;
        let context = jetstream::new(client.clone());
        let mut nodes = Vec::new();
        for number in 1..=ground.nodes {
            nodes.push(Node::new(number, dir.path(), &servers, ground.cables).await?);
        }
        let catalog = changes.catalog.is_some();
        let (crash, devices) = (None, Vec::new());
        let mut stack = Self { nodes, client, context, crash, devices, ground, catalog, nats, dir };
        stack.provision().await?;
        for node in 0..ground.nodes {
            stack.serve(node).await?;
        }
        Ok(stack)
    }

    fn fanfare(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
        command
            .args(["--config", "fanfare.toml"])
            .env("FANFARE__NATS__URL", self.nats.url())
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
        let mut command = self.fanfare();
        command.args(["provision", "--dir", ".", "apply", "--yes"]);
        if let Some(replicas) = self.ground.replicas {
            command.args(["--replicas", &replicas.to_string()]);
        }
        let output = command.output().await?;
        let text = [output.stdout, output.stderr].concat();
        ensure!(output.status.success(), "provision: {}", String::from_utf8_lossy(&text));
        Ok(())
    }

    /// Starts a node and waits until it is ready.
    pub(crate) async fn serve(&mut self, node: usize) -> anyhow::Result<()> {
        let mut command = self.fanfare();
        command.arg("serve");
        if let Some(role) = self.ground.roles.get(node) {
            command.args(["--role", role]);
        }
        self.nodes[node].serve(command).await
    }

    /// What the nodes have logged.
    fn log(&self) -> String {
        self.nodes.iter().map(Node::log).collect()
    }

    /// Waits until a node has logged `text`.
    pub(crate) async fn said(&self, text: &str) -> anyhow::Result<()> {
        let said = eventually("a log line", async || self.log().contains(text)).await;
        said.with_context(|| format!("no node says `{text}`:\n{}", tail(&self.log())))
    }

    /// Kills a node as a crash would.
    pub(crate) async fn kill(&mut self, node: usize) -> anyhow::Result<()> {
        self.crash = Some(Instant::now());
        self.nodes[node].kill().await
    }

    /// What became of the devices so far.
    pub(crate) fn history(&self) -> History {
        let mut history = History::default();
        for devices in &self.devices {
            history.read(&std::fs::read_to_string(&devices.out).unwrap_or_default());
        }
        history
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
            edges: self.nodes.iter().map(|node| node.edge).collect(),
            ca: self.dir.path().join("certificate.pem"),
            out: out.clone(),
            users: users.iter().map(|user| (user.clone(), token(user))).collect(),
            device: "phone".to_owned(),
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
        let ready = || std::fs::read_to_string(&out).unwrap_or_default().contains("\"ready\"");
        let live = eventually("devices are live", async || ready()).await;
        live.with_context(|| tail(&self.log()))
    }

    /// A client of this process with one node's address, whose session is never followed by another.
    pub(crate) fn client_at(&self, node: usize, user: &str) -> anyhow::Result<client::Config> {
        let trust = Trust::Roots(std::fs::read_to_string(self.dir.path().join("certificate.pem"))?);
        let url = format!("https://{}/v1/push", self.nodes[node].edge);
        let mut config = client::Config::new(url, format!("{user}-phone"), Tokens::fixed(token(user)), trust);
        config.bind = client::Bind::Loopback;
        config.reconnect = false;
        Ok(config)
    }

    /// Kills the last process of devices that was started.
    pub(crate) async fn kill_devices(&mut self) -> anyhow::Result<()> {
        self.devices.last_mut().context("devices")?.child.kill().await?;
        Ok(())
    }

    async fn waiting(&self) -> anyhow::Result<u64> {
        let mut waiting = 0;
        for queue in QUEUES {
            waiting += self.context.get_stream(queue).await?.cached_info().state.messages;
        }
        Ok(waiting)
    }

    /// Waits until the work queues are empty and devices are shown nothing new for `calm`.
    pub(crate) async fn settled(&self, calm: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        let (mut last, mut since) = (0, Instant::now());
        loop {
            ensure!(started.elapsed() < PATIENCE, "it does not settle:\n{}", tail(&self.log()));
            tokio::time::sleep(Duration::from_millis(100)).await;
            let Ok(waiting) = self.waiting().await else { continue };
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
        let found = self.found().await?;
        Ok(Account::settle(published, &found, self.crash))
    }

    /// Stops the devices and looks for what was published.
    pub(crate) async fn found(&mut self) -> anyhow::Result<Found> {
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
                let text = |name: &str| line[name].as_str().map(str::to_owned);
                if let (true, Some(user), Some(device), Some(id)) =
                    (devices.counts, text("u"), text("d"), text("n"))
                {
                    found.seen.push(((user, id), device));
                }
            }
        }
        kept::read(&self.context, &mut found).await?;
        Ok(found)
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

/// Asks again and again until the answer is yes.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
    let started = Instant::now();
    while !holds().await {
        ensure!(started.elapsed() < PATIENCE, "not within {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Writes configuration, certificate, declarations and catalog.
fn prepare(dir: &Path, changes: &Changes) -> anyhow::Result<()> {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
    std::fs::write(dir.join("certificate.pem"), made.cert.pem())?;
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem())?;
    std::fs::write(dir.join("secret"), SECRET)?;
    let config = format!(
        r#"
        auth.keys = [{{ algorithm = "HS256", file = "secret" }}]
        [edge]
        # Dead links are found within seconds, so that a run is short.
        heartbeat_ms = 2000
        tls = {{ certificate = "certificate.pem", key = "key.pem" }}
        {}
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
