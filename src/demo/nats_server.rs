//! A nats-server of our own: a child process on a free port with a store that goes when it does. And several of them as
//! one cluster, to try what three servers do on one machine.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream::{self, Context, stream};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Time a fresh server has for its first answer.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// Time a fresh cluster has for its first stream: servers elect their leader 5 to 10 s after their start.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(45);

/// A stream that a fresh cluster makes and deletes, to show that it can.
const PROBE: &str = "PROBE";

/// Why no server could be started.
#[derive(Debug, thiserror::Error)]
pub enum NatsServerError {
    /// The program is not there.
    #[error(
        "cannot start {program}: {source}; install nats-server 2.12 or newer, or run through ./dev, which brings it"
    )]
    Start {
        /// What was tried.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No folder or port for it.
    #[error("cannot prepare nats-server: {0}")]
    Prepare(std::io::Error),
    /// It does not answer.
    #[error("nats-server did not answer on {url} within {} s; its log is {log}", START_TIMEOUT.as_secs())]
    Silent {
        /// Its address.
        url: String,
        /// Its log file.
        log: PathBuf,
    },
    /// The servers do not find together.
    #[error("no stream with a replica on each of {url} could be made within {} s: {why}", CLUSTER_TIMEOUT.as_secs())]
    NoCluster {
        /// Their addresses.
        url: String,
        /// What the last try said.
        why: String,
    },
}

/// A running server. Dropping it kills the process and removes its store.
#[derive(Debug)]
pub struct NatsServer {
    /// Address for clients.
    pub url: String,
    child: Child,
    port: u16,
    /// What makes it a member of a cluster; empty for a server by itself.
    membership: Vec<String>,
    folder: TempDir,
}

impl NatsServer {
    /// Starts `$NATS_SERVER`, else the `nats-server` of the PATH, with JetStream, and waits for its first answer.
    pub async fn start() -> Result<Self, NatsServerError> {
        let [port] = free_ports().map_err(NatsServerError::Prepare)?;
        let server = Self::spawned(port, Vec::new())?;
        server.answered().await?;
        Ok(server)
    }

    fn spawned(port: u16, membership: Vec<String>) -> Result<Self, NatsServerError> {
        let folder =
            tempfile::Builder::new().prefix("fanfare-nats-").tempdir().map_err(NatsServerError::Prepare)?;
        let child = spawn(port, &membership, &folder)?;
        Ok(Self { url: format!("nats://127.0.0.1:{port}"), child, port, membership, folder })
    }

    /// Kills the process as a crash would; the store stays.
    pub async fn kill(&mut self) {
        // Fails only when it is gone already.
        let _ = self.child.kill().await;
    }

    /// Starts it again on the same port and store.
    pub async fn restart(&mut self) -> Result<(), NatsServerError> {
        self.child = spawn(self.port, &self.membership, &self.folder)?;
        self.answered().await
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// True while the process lives.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    async fn answered(&self) -> Result<(), NatsServerError> {
        let tries = async {
            while tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(START_TIMEOUT, tries).await.map_err(|_| NatsServerError::Silent {
            url: self.url.clone(),
            log: self.folder.path().join("nats.log"),
        })
    }
}

impl Drop for NatsServer {
    /// Before the folder goes: a server that still writes there would leave it behind.
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Three servers on this machine as one cluster, each with a store of its own. They tell clients nothing about each
/// other, so whoever is given one address stays with it.
#[derive(Debug)]
pub struct NatsCluster {
    /// All addresses for clients, separated by commas.
    pub url: String,
    servers: [NatsServer; Self::SIZE],
}

impl NatsCluster {
    /// Servers of a cluster.
    pub const SIZE: usize = 3;

    /// Starts the servers, and waits until they have made a stream with a replica on each.
    pub async fn start() -> Result<Self, NatsServerError> {
        Self::start_with(&[]).await
    }

    /// The same with more options for each of them.
    pub async fn start_with(options: &[String]) -> Result<Self, NatsServerError> {
        let [a, b, c, ra, rb, rc] = free_ports().map_err(NatsServerError::Prepare)?;
        let routes = [ra, rb, rc].map(|port| format!("nats://127.0.0.1:{port}"));
        let server =
            |at: usize, port| NatsServer::spawned(port, [membership(at, &routes), options.to_vec()].concat());
        let servers = [server(0, a)?, server(1, b)?, server(2, c)?];
        let url = servers.iter().map(|server| server.url.as_str()).collect::<Vec<_>>().join(",");
        let cluster = Self { url, servers };
        for server in &cluster.servers {
            server.answered().await?;
        }
        cluster.formed().await?;
        Ok(cluster)
    }

    /// The address of each server.
    pub fn urls(&self) -> [&str; Self::SIZE] {
        self.servers.each_ref().map(|server| server.url.as_str())
    }

    /// Kills a server as a crash would; its store stays.
    pub async fn kill(&mut self, server: usize) {
        self.servers[server].kill().await;
    }

    /// Starts a killed server again on the same ports and store. It may still be catching up afterwards.
    pub async fn restart(&mut self, server: usize) -> Result<(), NatsServerError> {
        self.servers[server].restart().await
    }

    /// Has a server end in order.
    pub async fn terminate(&mut self, server: usize) -> std::io::Result<()> {
        terminate(&self.servers[server].child).await
    }

    /// Which servers live.
    pub fn running(&mut self) -> [bool; Self::SIZE] {
        self.servers.each_mut().map(NatsServer::is_running)
    }

    /// The server that leads a stream; `None` while the others elect one, or cannot be asked.
    pub async fn leader(&self, context: &Context, stream: &str) -> Option<usize> {
        let stream = context.get_stream(stream).await.ok()?;
        let leader = stream.cached_info().cluster.as_ref()?.leader.clone()?;
        (0..Self::SIZE).find(|at| server_name(*at) == leader)
    }

    /// Waits until there is a leader who gives a stream a place on every server.
    async fn formed(&self) -> Result<(), NatsServerError> {
        let mut why = String::new();
        let tries = async {
            loop {
                match self.probed().await {
                    Ok(()) => break,
                    Err(error) => why = error,
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let formed = tokio::time::timeout(CLUSTER_TIMEOUT, tries).await;
        formed.map_err(|_| NatsServerError::NoCluster { url: self.url.clone(), why })
    }

    async fn probed(&self) -> Result<(), String> {
        let client = async_nats::connect(self.urls().as_slice()).await.map_err(|error| error.to_string())?;
        let context = jetstream::new(client);
        let probe = stream::Config {
            name: PROBE.to_owned(),
            num_replicas: Self::SIZE,
            storage: stream::StorageType::Memory,
            max_bytes: 1_024,
            ..stream::Config::default()
        };
        context.get_or_create_stream(probe).await.map_err(|error| error.to_string())?;
        context.delete_stream(PROBE).await.map_err(|error| error.to_string())?;
        Ok(())
    }
}

/// Kills a child and waits until it is gone, which takes milliseconds: for whoever is dropped and cannot wait otherwise.
pub(crate) fn end(child: &mut Child) {
    const TRIES: u32 = 1_000;
    // Fails only when it is gone already.
    let _ = child.start_kill();
    for _ in 0..TRIES {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        #[expect(clippy::disallowed_methods, reason = "a destructor cannot await, and this is its end")]
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends SIGTERM, if it still runs.
pub(super) async fn terminate(child: &Child) -> std::io::Result<()> {
    let Some(pid) = child.id() else { return Ok(()) };
    Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
    Ok(())
}

fn server_name(at: usize) -> String {
    format!("nats-{}", at + 1)
}

/// Options of the server with this number. Without advice to clients: a test that takes a client's way to one server
/// must not have it go round by another.
fn membership(at: usize, routes: &[String]) -> Vec<String> {
    [
        "--server_name",
        &server_name(at),
        "--cluster_name",
        "fanfare",
        "--cluster",
        &routes[at],
        "--routes",
        &routes.join(","),
        "--no_advertise",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn spawn(port: u16, membership: &[String], folder: &TempDir) -> Result<Child, NatsServerError> {
    let program = PathBuf::from(std::env::var_os("NATS_SERVER").unwrap_or_else(|| "nats-server".into()));
    Command::new(&program)
        .args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream"])
        .arg("--store_dir")
        .arg(folder.path())
        .arg("--log")
        .arg(folder.path().join("nats.log"))
        .args(membership)
        .stdin(Stdio::null())
        // Ctrl-C is meant for the parent, which ends it last.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| NatsServerError::Start { program, source })
}

/// Ports that are free now, all different: each is held until all are found.
pub(super) fn free_ports<const N: usize>() -> std::io::Result<[u16; N]> {
    let mut held = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}
