//! One node: a process `fanfare serve` with ports, a name, a log and perhaps cables to NATS of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::cable::{Cable, Passes};
use crate::stack::{PATIENCE, eventually, tail};

pub(crate) struct Node {
    /// What its sessions are welcomed by.
    pub(crate) name: String,
    pub(crate) edge: SocketAddr,
    admin: SocketAddr,
    /// One for each server, or none where it is connected directly.
    cables: Vec<Cable>,
    log: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// A node that does not run yet; its log goes to a file in `dir`. With `cables` it reaches the servers by them.
    pub(crate) async fn new(
        number: usize,
        dir: &Path,
        servers: &[SocketAddr],
        cables: bool,
    ) -> anyhow::Result<Self> {
        let name = format!("node-{number}");
        let edge = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let admin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let log = dir.join(format!("{name}.log"));
        let mut strung = Vec::new();
        for server in servers.iter().filter(|_| cables) {
            strung.push(Cable::start(*server).await?);
        }
        Ok(Self { name, edge, admin, cables: strung, log, child: None })
    }

    /// Starts it as `command`, which is `fanfare serve` with its configuration, and waits until it is ready.
    pub(crate) async fn serve(&mut self, mut command: Command) -> anyhow::Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(&self.log)?;
        if !self.cables.is_empty() {
            let urls: Vec<_> = self.cables.iter().map(|cable| format!("nats://{}", cable.address)).collect();
            command.env("FANFARE__NATS__URL", urls.join(","));
        }
        command
            .env("FANFARE__EDGE__NODE", &self.name)
            .env("FANFARE__EDGE__LISTEN", self.edge.to_string())
            .env("FANFARE__ADMIN__LISTEN", self.admin.to_string());
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn()?);
        eventually("the node is ready", async || self.is_ready().await)
            .await
            .with_context(|| format!("{}:\n{}", self.name, tail(&self.log())))
    }

    /// Kills it as a crash would.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Stops it as a supervisor does, and waits for its end, which must be in order.
    pub(crate) async fn terminate(&mut self) -> anyhow::Result<()> {
        self.signal("TERM").await?;
        let mut child = self.child.take().context("a running node")?;
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
        let status = ended.with_context(|| format!("{} does not stop", self.name))??;
        ensure!(status.success(), "{} ended with {status}:\n{}", self.name, tail(&self.log()));
        Ok(())
    }

    /// Sends a signal by its name.
    pub(crate) async fn signal(&self, name: &str) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("a running node")?;
        let pid = child.id().context("a running node")?.to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().await?;
        ensure!(sent.success(), "{} cannot be sent {name}", self.name);
        Ok(())
    }

    /// What passes between it and NATS from now on.
    pub(crate) fn nats(&self, passes: Passes) {
        for cable in &self.cables {
            cable.set(passes);
        }
    }

    pub(crate) async fn is_ready(&self) -> bool {
        self.get("/readyz").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// Waits until it says itself that it has no NATS: nothing else leads there than its cables.
    pub(crate) async fn notices_the_cut(&self) -> anyhow::Result<()> {
        eventually("the node notices that NATS is away", async || {
            self.get("/readyz").await.is_ok_and(|answer| answer.contains("not connected to NATS"))
        })
        .await
    }

    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = tokio::net::TcpStream::connect(self.admin).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// What it has logged, in all its lives.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}
