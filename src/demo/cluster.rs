//! What `fanfare dev --cluster` runs: three nats-servers and three nodes, each a process of its own that can be killed,
//! stopped and started again while the others go on.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::keys::{self, CERTIFICATE, KEY, KeysError, SETTINGS};
use super::nats_server::{NatsCluster, NatsServerError, free_ports, terminate};

/// Time the nodes have for their start.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// Time they have for a gentle stop at the end of all; then they are killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for an answer of an admin port.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the cluster did not start, or something was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// NATS.
    #[error(transparent)]
    Nats(#[from] NatsServerError),
    /// A process, a port or a file.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// No certificate for development.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A node does not get ready.
    #[error("{name} is not ready within {} s; its warnings are above", START_TIMEOUT.as_secs())]
    NotReady {
        /// Which one.
        name: String,
    },
    /// There is none with this number.
    #[error("there are nodes and servers 1 to {}, and no {number}", NatsCluster::SIZE)]
    NoSuch {
        /// What was asked for.
        number: usize,
    },
    /// What is to be started runs, or what is to be ended does not.
    #[error("{what} {number} {}", if *.runs { "runs already" } else { "does not run" })]
    State {
        /// Node or server.
        what: &'static str,
        /// Its number.
        number: usize,
        /// Whether it runs.
        runs: bool,
    },
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> ClusterError {
    move |source| ClusterError::Io { what, source }
}

/// What to do to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// As a crash would (SIGKILL).
    Kill,
    /// Gently (SIGTERM).
    Stop,
    /// Again, where it was.
    Start,
}

/// One of the processes and what to do to it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    what: What,
    /// From 1.
    number: usize,
    action: Action,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum What {
    Node,
    Server,
}

/// How a process is.
#[derive(Debug, Serialize)]
pub struct Member {
    /// Its name, which for a node is the one of its welcomes.
    pub name: String,
    /// `ready`, `down`, or what its admin port says.
    pub state: String,
    /// Open sessions, of a node that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u64>,
}

/// How all processes are.
#[derive(Debug, Serialize)]
pub struct Members {
    /// The nodes, by number.
    pub nodes: Vec<Member>,
    /// The nats-servers, by number.
    pub servers: Vec<Member>,
}

/// What the nodes need to know.
#[derive(Debug)]
pub struct Settings {
    /// UDP port of the first node; the others have the next ones. 0 picks free ones.
    pub first_port: u16,
    /// HS256 secret.
    pub secret: Vec<u8>,
    /// A catalog instead of the built-in one.
    pub catalog: Option<PathBuf>,
}

/// Three servers and three nodes. Dropping it kills them all.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    /// After the nodes, so that it goes after them.
    nats: NatsCluster,
    catalog: Option<PathBuf>,
    /// Configuration, secret and certificate.
    folder: TempDir,
}

impl Cluster {
    /// Starts the servers. The nodes come after whoever has provisioned them.
    pub async fn start(settings: Settings) -> Result<Self, ClusterError> {
        let folder = tempfile::Builder::new().prefix("fanfare-cluster-").tempdir();
        let folder = folder.map_err(failed("make a folder"))?;
        write_files(folder.path(), &settings.secret)?;
        let nodes = nodes(settings.first_port).map_err(failed("find free ports"))?;
        let nats = NatsCluster::start().await?;
        Ok(Self { nodes, nats, catalog: settings.catalog, folder })
    }

    /// Starts every node and waits until all are ready.
    pub async fn start_nodes(&mut self) -> Result<(), ClusterError> {
        for at in 0..self.nodes.len() {
            self.start_node(at)?;
        }
        for node in &self.nodes {
            let ready = async {
                while node.asked("/readyz").await.is_none_or(|answer| answer.status != 200) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let ready = tokio::time::timeout(START_TIMEOUT, ready).await;
            ready.map_err(|_| ClusterError::NotReady { name: node.name.clone() })?;
        }
        Ok(())
    }

    /// Addresses of the servers, separated by commas.
    pub fn nats_url(&self) -> &str {
        &self.nats.url
    }

    /// The certificate of all nodes and its key, in PEM.
    pub fn certificate(&self) -> (PathBuf, PathBuf) {
        (self.folder.path().join(CERTIFICATE), self.folder.path().join(KEY))
    }

    /// Edge and admin address of each node.
    pub fn addresses(&self) -> Vec<(SocketAddr, SocketAddr)> {
        self.nodes.iter().map(|node| (node.edge, node.admin)).collect()
    }

    /// How all processes are now.
    pub async fn members(&mut self) -> Members {
        let nodes = join_all(self.nodes.iter_mut().map(Node::member)).await;
        let servers = self.nats.running().into_iter().enumerate();
        let state = |runs| if runs { "ready" } else { "down" }.to_owned();
        let server =
            |(at, runs)| Member { name: format!("nats-{}", at + 1), state: state(runs), sessions: None };
        Members { nodes, servers: servers.map(server).collect() }
    }

    /// Carries out an order; what is begun goes on by itself, [`Cluster::members`] shows how far it is.
    pub async fn act(&mut self, order: Order) -> Result<(), ClusterError> {
        let Order { what, number, action } = order;
        let at = number.checked_sub(1).filter(|at| *at < NatsCluster::SIZE);
        let at = at.ok_or(ClusterError::NoSuch { number })?;
        let (name, runs) = match what {
            What::Node => ("node", self.nodes[at].runs()),
            What::Server => ("server", self.nats.running()[at]),
        };
        if runs == (action == Action::Start) {
            return Err(ClusterError::State { what: name, number, runs });
        }
        match (what, action) {
            (What::Node, Action::Start) => self.start_node(at),
            (What::Node, action) => self.nodes[at].end(action).await,
            (What::Server, Action::Start) => Ok(self.nats.restart(at).await?),
            (What::Server, Action::Stop) => {
                self.nats.terminate(at).await.map_err(failed("stop a nats-server"))
            }
            (What::Server, Action::Kill) => {
                self.nats.kill(at).await;
                Ok(())
            }
        }
    }

    /// Stops the nodes gently, then the servers. Nothing runs afterwards, whoever else still holds this.
    pub async fn stop(&mut self) {
        join_all(self.nodes.iter_mut().map(Node::stopped)).await;
        self.kill().await;
    }

    /// Kills everything that still runs.
    pub async fn kill(&mut self) {
        for child in self.nodes.iter_mut().filter_map(|node| node.child.as_mut()) {
            // Fails only when it is gone already.
            let _ = child.kill().await;
        }
        for server in 0..NatsCluster::SIZE {
            self.nats.kill(server).await;
        }
    }

    fn start_node(&mut self, at: usize) -> Result<(), ClusterError> {
        let program = std::env::current_exe().map_err(failed("find this program"))?;
        let node = &mut self.nodes[at];
        let mut command = Command::new(program);
        command
            .args(["--config", CONFIG, "serve"])
            .current_dir(self.folder.path())
            .env("FANFARE__NATS__URL", &self.nats.url)
            .env("FANFARE__EDGE__NODE", &node.name)
            .env("FANFARE__EDGE__LISTEN", node.edge.to_string())
            .env("FANFARE__ADMIN__LISTEN", node.admin.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // Ctrl-C is meant for the parent, which stops its children in order.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(catalog) = &self.catalog {
            command.env("FANFARE__CATALOG__FILE", catalog);
        }
        node.child = Some(command.spawn().map_err(failed("start a node"))?);
        Ok(())
    }
}

/// One `fanfare serve`.
#[derive(Debug)]
struct Node {
    name: String,
    edge: SocketAddr,
    admin: SocketAddr,
    child: Option<Child>,
}

/// An answer of an admin port.
struct Answer {
    status: u16,
    body: String,
}

impl Node {
    fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    async fn end(&mut self, action: Action) -> Result<(), ClusterError> {
        let Some(child) = &mut self.child else { return Ok(()) };
        let ended = if action == Action::Kill { child.kill().await } else { terminate(child).await };
        ended.map_err(failed("end a node"))
    }

    /// Ends it gently if that does not take too long.
    async fn stopped(&mut self) {
        let Some(child) = &mut self.child else { return };
        if terminate(child).await.is_ok() {
            // Too late, or not to be waited for: then it is killed.
            let _ = tokio::time::timeout(STOP_TIMEOUT, child.wait()).await;
        }
    }

    async fn member(&mut self) -> Member {
        let name = self.name.clone();
        if !self.runs() {
            return Member { name, state: "down".to_owned(), sessions: None };
        }
        let (ready, metrics) = tokio::join!(self.asked("/readyz"), self.asked("/metrics"));
        let state =
            ready.map_or_else(|| "does not answer".to_owned(), |answer| answer.body.trim().to_owned());
        let sessions = metrics.and_then(|answer| {
            let line = answer.body.lines().find_map(|line| line.strip_prefix("fanfare_session_open "))?;
            Some(line.trim().parse::<f64>().ok()? as u64)
        });
        Member { name, state, sessions: sessions.or(Some(0)) }
    }

    async fn asked(&self, path: &str) -> Option<Answer> {
        let asked = async {
            let mut stream = TcpStream::connect(self.admin).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            io::Result::Ok(answer)
        };
        let answer = tokio::time::timeout(ASK_TIMEOUT, asked).await.ok()?.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some(Answer { status: head.split(' ').nth(1)?.parse().ok()?, body: body.to_owned() })
    }
}

fn nodes(first_port: u16) -> io::Result<Vec<Node>> {
    let admin: [u16; NatsCluster::SIZE] = free_ports()?;
    // Held until all are found, so that they are different.
    let mut held = Vec::new();
    let mut nodes = Vec::new();
    for (at, admin) in (0_u16..).zip(admin) {
        let wanted = if first_port == 0 { 0 } else { first_port.saturating_add(at) };
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, wanted))?;
        nodes.push(Node {
            name: format!("node-{}", at + 1),
            edge: socket.local_addr()?,
            admin: (Ipv4Addr::LOCALHOST, admin).into(),
            child: None,
        });
        held.push(socket);
    }
    Ok(nodes)
}

const CONFIG: &str = "fanfare.toml";

/// Configuration, secret and certificate, for all nodes.
fn write_files(folder: &Path, secret: &[u8]) -> Result<(), ClusterError> {
    let config = format!(
        r#"
        {SETTINGS}
        worker.evidence.sample = 1.0
        log.level = "warn"
        edge.allowed_origins = ["*"]
        "#
    );
    std::fs::write(folder.join(CONFIG), config).map_err(failed("write the nodes' configuration"))?;
    keys::write(folder, secret)?;
    Ok(())
}
