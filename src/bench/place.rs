//! Where a bench runs: a folder, a nats-server and the gateway, all of them gone when this is dropped.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::process::Child;

use super::process::{command, usage};
use super::usage::Usage;
use super::{BenchError, failed};
use crate::catalog::Catalog;
use crate::demo::NatsServer;
use crate::demo::keys::{self, CERTIFICATE, KEY};
use crate::demo::nats_server::end;
use crate::provision::{self, Env};
use crate::transport::tls::{self, Identity};

/// Time the gateway has for its start.
const START_TIMEOUT: Duration = Duration::from_secs(30);

const CONFIG: &str = "fanfare.toml";
const LOG: &str = "serve.log";

/// Nothing of the configuration may be what is measured: no bound on handshakes and sessions is reached, and no session
/// is replaced meanwhile. All else is the default.
const UNBOUNDED: &str = r#"
edge.listen = "127.0.0.1:0"
edge.node = "bench"
edge.sessions_max = 10000000
edge.handshakes_max = 10000
edge.handshakes_per_s = 1000000
edge.rotate_bytes = 0
edge.rotate_after_s = 0
admin.listen = "127.0.0.1:0"
log = { level = "warn,fanfare::lifecycle=info", json = true }
"#;

/// How the load gets in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Door {
    /// UDP or TCP address.
    pub(super) address: SocketAddr,
    /// SHA-256 of the certificate.
    pub(super) certificate: [u8; 32],
    /// HS256 secret of tokens.
    pub(super) secret: String,
}

/// A running gateway with all it needs.
#[derive(Debug)]
pub(super) struct Place {
    /// First, so that it is the first to go.
    gateway: Option<Child>,
    pub(super) context: Context,
    nats: NatsServer,
    secret: String,
    folder: TempDir,
}

impl Place {
    /// A provisioned nats-server and the gateway's keys; the gateway does not run yet.
    pub(super) async fn prepare() -> Result<Self, BenchError> {
        let folder = tempfile::Builder::new().prefix("fanfare-bench-").tempdir();
        let folder = folder.map_err(failed("make a folder"))?;
        let secret = uuid::Uuid::new_v4().simple().to_string();
        keys::write(folder.path(), secret.as_bytes()).map_err(failed("write keys"))?;
        let nats = NatsServer::start().await?;
        let config = crate::nats::Config { url: nats.url.clone(), ..crate::nats::Config::default() };
        let client = crate::nats::connect(&config).await.map_err(failed("connect to nats-server"))?;
        let catalog = Catalog::built_in().map_err(failed("read the catalog"))?;
        provision::apply_all(&client, &catalog, Env::DEV).await?;
        Ok(Self { gateway: None, context: jetstream::new(client), nats, secret, folder })
    }

    /// The same with a gateway that runs.
    pub(super) async fn start() -> Result<(Self, Door), BenchError> {
        let mut place = Self::prepare().await?;
        let door = place.serve("").await?;
        Ok((place, door))
    }

    /// Starts the gateway, with these settings beside those of every bench, in place of one that may run.
    pub(super) async fn serve(&mut self, settings: &str) -> Result<Door, BenchError> {
        self.stop();
        let config = format!("{}\n{UNBOUNDED}{settings}\n", keys::SETTINGS);
        std::fs::write(self.folder().join(CONFIG), config)
            .map_err(failed("write the gateway's configuration"))?;
        let start = || -> std::io::Result<Child> {
            let log = std::fs::File::create(self.folder().join(LOG))?;
            command(self.folder())?
                .args(["--config", CONFIG, "--nats", &self.nats.url, "serve"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
        };
        self.gateway = Some(start().map_err(failed("start the gateway"))?);
        let address = tokio::time::timeout(START_TIMEOUT, self.served()).await;
        let late = || format!("did not start within {} s", START_TIMEOUT.as_secs());
        let address = address.unwrap_or_else(|_| Err(late()));
        let address = address.map_err(|what| BenchError::Process { name: "gateway".to_owned(), what })?;
        Ok(Door { address, certificate: self.identity()?.sha256(), secret: self.secret.clone() })
    }

    /// Ends the gateway, if it runs.
    pub(super) fn stop(&mut self) {
        if let Some(mut child) = self.gateway.take() {
            end(&mut child);
        }
    }

    /// Waits for the line of the log that says where it serves.
    async fn served(&mut self) -> Result<SocketAddr, String> {
        loop {
            let log = std::fs::read_to_string(self.folder().join(LOG)).unwrap_or_default();
            if let Some(address) = log.lines().find_map(edge_address) {
                return Ok(address);
            }
            let running = self.gateway.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)));
            if !running {
                return Err(format!("has ended: {}", log.lines().last().unwrap_or("it said nothing")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The certificate and its key.
    pub(super) fn identity(&self) -> Result<Identity, BenchError> {
        identity(self.folder())
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn nats_url(&self) -> &str {
        &self.nats.url
    }

    pub(super) fn secret(&self) -> &str {
        &self.secret
    }

    /// What the gateway has used.
    pub(super) fn gateway_usage(&self) -> Result<Usage, BenchError> {
        usage("gateway", self.gateway.as_ref().and_then(Child::id))
    }

    /// What nats-server has used.
    pub(super) fn nats_usage(&self) -> Result<Usage, BenchError> {
        usage("nats-server", self.nats.pid())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The certificate and its key in a folder of a bench.
pub(super) fn identity(folder: &Path) -> Result<Identity, BenchError> {
    let files = tls::Config { certificate: folder.join(CERTIFICATE), key: folder.join(KEY) };
    Identity::load(&files).map_err(failed("read the certificate"))
}

/// The address in the line `serving` of the gateway's log.
fn edge_address(line: &str) -> Option<SocketAddr> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let fields = &line["fields"];
    (fields["message"] == "serving").then(|| fields["edge"].as_str()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_in_the_line_that_says_serving() {
        let line = r#"{"level":"INFO","fields":{"message":"serving","edge":"127.0.0.1:4433"}}"#;
        assert_eq!(edge_address(line), Some(SocketAddr::from(([127, 0, 0, 1], 4433))));
        assert_eq!(edge_address(r#"{"fields":{"message":"other","edge":"127.0.0.1:4433"}}"#), None);
        assert_eq!(edge_address("no JSON"), None);
    }
}
