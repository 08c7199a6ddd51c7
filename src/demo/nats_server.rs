//! A nats-server of our own: a child process on a free port with a store that goes when it does.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Time a fresh server has for its first answer.
const START_TIMEOUT: Duration = Duration::from_secs(15);

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
}

/// A running server. Dropping it kills the process and removes its store.
#[derive(Debug)]
pub struct NatsServer {
    /// Address for clients.
    pub url: String,
    child: Child,
    port: u16,
    folder: TempDir,
}

impl NatsServer {
    /// Starts `$NATS_SERVER`, else the `nats-server` of the PATH, with JetStream, and waits for its first answer.
    pub async fn start() -> Result<Self, NatsServerError> {
        let folder =
            tempfile::Builder::new().prefix("fanfare-nats-").tempdir().map_err(NatsServerError::Prepare)?;
        let port = free_port().map_err(NatsServerError::Prepare)?;
        let child = spawn(port, &folder)?;
        let server = Self { url: format!("nats://127.0.0.1:{port}"), child, port, folder };
        server.answered().await?;
        Ok(server)
    }

    /// Kills the process as a crash would; the store stays.
    pub async fn kill(&mut self) {
        // Fails only when it is gone already.
        let _ = self.child.kill().await;
    }

    /// Starts it again on the same port and store.
    pub async fn restart(&mut self) -> Result<(), NatsServerError> {
        self.child = spawn(self.port, &self.folder)?;
        self.answered().await
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

fn spawn(port: u16, folder: &TempDir) -> Result<Child, NatsServerError> {
    let program = PathBuf::from(std::env::var_os("NATS_SERVER").unwrap_or_else(|| "nats-server".into()));
    Command::new(&program)
        .args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream"])
        .arg("--store_dir")
        .arg(folder.path())
        .arg("--log")
        .arg(folder.path().join("nats.log"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| NatsServerError::Start { program, source })
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
