//! A process with devices: clients of the SDK, one for each user, that write down what the application was shown.
//!
//! The first line on its input is what to be ([`Orders`]); `stop` ends it in order. It writes a line of JSON for each
//! notification shown (`n`, and the milliseconds since JetStream stored it), one for each that came again and was
//! not shown (`again`), one for each session that opened (`live`, with its node), was asked to move (`asked`) or ended
//! (`lost`), each with user (`u`) and device (`d`), and one when every session is open (`ready`).

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use fanfare::client::{AckMode, Bind, Client, Config, Endpoint, Event, Tokens, Trust, Why};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;

/// What a process of devices is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is one habit of a device")]
pub(crate) struct Orders {
    /// Where the edges are, or the links before them; one at least.
    pub(crate) edges: Vec<SocketAddr>,
    /// The certificate to trust, in PEM.
    pub(crate) ca: PathBuf,
    /// Where to write.
    pub(crate) out: PathBuf,
    /// One device for each, with a token.
    pub(crate) users: Vec<(String, String)>,
    /// What each of these devices is to its user.
    pub(crate) device: String,
    /// Ack what is shown.
    pub(crate) acks: bool,
    /// Come back with the cursor of the session before.
    pub(crate) resumes: bool,
    /// Read what comes; else the application is stuck once it is live.
    pub(crate) reads: bool,
    /// Take datagrams.
    pub(crate) datagrams: bool,
    /// What the process's clock shows, in the words of faketime: `+6h`.
    pub(crate) clock: Option<String>,
}

/// A file that all devices of the process write to, a line at a time.
#[derive(Debug, Clone)]
struct Log(Arc<Mutex<std::fs::File>>);

impl Log {
    fn line(&self, line: &serde_json::Value) {
        // One write a line, so that a killed process leaves whole lines.
        let line = format!("{line}\n");
        self.0.lock().write_all(line.as_bytes()).expect("the log takes a line");
    }
}

/// Runs a process of devices.
pub(crate) async fn run() -> ExitCode {
    let line = || {
        let mut line = String::new();
        // An error is the end of the input, which is the end of the parent.
        let _ = std::io::stdin().read_line(&mut line);
        line
    };
    let first = line();
    let orders: Orders = serde_json::from_str(&first).expect("orders");
    let log = Log(Arc::new(Mutex::new(std::fs::File::create(&orders.out).expect("a log"))));
    let ca = std::fs::read_to_string(&orders.ca).expect("the certificate");
    let endpoint = Endpoint::bind(Bind::Loopback).expect("a UDP socket");
    let (stop, stopped) = watch::channel(false);
    let everybody = Arc::new(Barrier::new(orders.users.len() + 1));
    let mut devices = JoinSet::new();
    for (user, token) in orders.users.clone() {
        let (orders, ca, endpoint) = (orders.clone(), ca.clone(), endpoint.clone());
        devices.spawn(device(
            user,
            token,
            orders,
            ca,
            endpoint,
            log.clone(),
            everybody.clone(),
            stopped.clone(),
        ));
    }
    everybody.wait().await;
    log.line(&json!({ "ready": true }));
    let _ = tokio::task::spawn_blocking(line).await;
    let _ = stop.send(true);
    devices.join_all().await;
    ExitCode::SUCCESS
}

/// One device until it is told to stop.
#[expect(clippy::too_many_arguments, reason = "one call, of one task's own things")]
async fn device(
    user: String,
    token: String,
    orders: Orders,
    ca: String,
    endpoint: Endpoint,
    log: Log,
    live: Arc<Barrier>,
    mut stopped: watch::Receiver<bool>,
) {
    let tokens = Tokens::fixed(token);
    let mut urls: Vec<_> = orders.edges.iter().map(|edge| format!("https://{edge}/v1/push")).collect();
    let url = urls.pop().expect("an edge");
    let config = || {
        let mut config =
            Config::new(&url, format!("{user}-{}", orders.device), tokens.clone(), Trust::Roots(ca.clone()));
        config.other_urls.clone_from(&urls);
        config.endpoint = Some(endpoint.clone());
        config.ack = if orders.acks { AckMode::Auto } else { AckMode::Never };
        config.repeats = true;
        config.datagrams = orders.datagrams;
        // Without a cursor the next session is a new client's, which has missed nothing.
        config.reconnect = orders.resumes;
        config
    };
    let mut client = Client::connect(config()).expect("a good configuration");
    let mut waits = Some(live);
    let note = |mut what: serde_json::Value| {
        what["u"] = user.as_str().into();
        what["d"] = orders.device.as_str().into();
        log.line(&what);
    };
    loop {
        let event = tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => break,
            event = client.next() => event,
        };
        match event {
            Some(Event::Live(welcome)) => {
                note(json!({ "live": welcome.node }));
                if let Some(live) = waits.take() {
                    live.wait().await;
                }
                if !orders.reads {
                    let _ = stopped.wait_for(|stopped| *stopped).await;
                    break;
                }
            }
            Some(Event::Notification(received)) => {
                let ms = received.received_at_ms.saturating_sub(received.published_at_ms);
                note(json!({ "n": received.notification_id, "ms": ms }));
            }
            Some(Event::Repeated(received)) => {
                note(json!({ "again": received.notification_id }));
            }
            Some(Event::Waiting { why: Why::Goaway { reason }, .. }) => {
                note(json!({ "asked": reason }));
            }
            Some(Event::Waiting { why: Why::Closed(closed), .. }) => {
                note(json!({ "lost": closed.to_string() }));
            }
            ended @ (Some(Event::Closed(_)) | None) => {
                note(json!({ "lost": format!("for good: {ended:?}") }));
                tokio::time::sleep(Duration::from_millis(500)).await;
                client = Client::connect(config()).expect("a good configuration");
            }
        }
    }
    client.close().await;
}
