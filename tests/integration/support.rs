//! A real nats-server for one test: own port, own store, gone when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running nats-server with JetStream.
pub(crate) struct NatsServer {
    child: Child,
    url: String,
    /// Store and configuration; removed when dropped, after the server.
    _dir: tempfile::TempDir,
}

impl NatsServer {
    /// Starts a server with JetStream.
    pub(crate) async fn start() -> Self {
        Self::start_with("jetstream {}").await
    }

    /// Starts a server with more lines of configuration. Say `jetstream {}` there to have JetStream.
    pub(crate) async fn start_with(config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("nats.conf");
        // Beside store_dir, which must be this test's own, the lines decide.
        let store = dir.path().join("store").display().to_string();
        let config = config.replace("jetstream {}", &format!("jetstream {{ store_dir: \"{store}\" }}"));
        std::fs::write(&file, config).expect("a configuration file");
        let child = Command::new(binary())
            .args(["-a", "127.0.0.1", "-p", "-1", "-c"])
            .arg(&file)
            .arg("--ports_file_dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server starts");
        let ports = dir.path().join(format!("nats-server_{}.ports", child.id()));
        let url = wait_for_url(&ports).await;
        Self { child, url, _dir: dir }
    }

    /// The server's address.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A new connection.
    pub(crate) async fn client(&self) -> async_nats::Client {
        async_nats::connect(&self.url).await.expect("the server takes connections")
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server writes its ports into a file once it listens.
async fn wait_for_url(ports: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let text = std::fs::read_to_string(ports).unwrap_or_default();
        if let Ok(ports) = serde_json::from_str::<serde_json::Value>(&text) {
            return ports["nats"][0].as_str().expect("an address").to_owned();
        }
        assert!(Instant::now() < deadline, "nats-server did not listen within 10 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `NATS_SERVER`, else one below `.tools`, else the one on the path.
fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("NATS_SERVER") {
        return path.into();
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools");
    find(&tools, 5).unwrap_or_else(|| "nats-server".into())
}

fn find(dir: &Path, depth: usize) -> Option<PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).collect();
    let here = entries.iter().find(|path| path.is_file() && path.ends_with("nats-server"));
    here.cloned().or_else(|| {
        let mut folders = entries.iter().filter(|path| depth > 0 && path.is_dir());
        folders.find_map(|folder| find(folder, depth - 1))
    })
}
