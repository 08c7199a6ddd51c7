//! `fanfare dev --cluster` as a developer starts it: what its panel can do, and that nothing is left of it.

use std::net::SocketAddr;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::support::{eventually, within};

struct Demo {
    child: Child,
    page: SocketAddr,
    /// Every TCP port of its children.
    ports: Vec<SocketAddr>,
}

impl Demo {
    async fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .args(["dev", "--cluster", "--json", "--port", "0", "--listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let read = tokio::time::timeout(std::time::Duration::from_mins(2), out.read_line(&mut line));
        read.await.expect("it starts").unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        let address = |url: &str| url.rsplit_once("//").unwrap().1.replace("localhost", "127.0.0.1");
        let address = |url: &str| address(url).parse::<SocketAddr>().unwrap();
        let admin = told["admin"].as_array().unwrap().iter().map(|url| address(url.as_str().unwrap()));
        let nats = told["nats_url"].as_str().unwrap().split(',').map(address);
        let ports = admin.chain(nats).collect();
        assert_eq!(told["push_urls"].as_array().unwrap().len(), 3);
        Self { child, page: address(told["page"].as_str().unwrap()), ports }
    }

    /// Status and body of a request to the page.
    async fn ask(&self, body: Option<Value>) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.page).await.unwrap();
        let (method, body) = body.map_or(("GET", String::new()), |body| ("POST", body.to_string()));
        let request = format!(
            "{method} /api/cluster HTTP/1.1\r\nHost: page\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    async fn order(&self, what: &str, number: usize, action: &str) -> u16 {
        self.ask(Some(json!({"what": what, "number": number, "action": action}))).await.0
    }

    async fn becomes(&self, list: &str, number: usize, state: &str) {
        eventually(&format!("{list} {number} is {state}"), async || {
            self.ask(None).await.1[list][number - 1]["state"] == state
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_process_can_be_ended_and_started_and_none_is_left() {
    let mut demo = Demo::start().await;
    let (status, members) = demo.ask(None).await;
    assert_eq!(status, 200);
    for list in ["nodes", "servers"] {
        let all: Vec<_> = members[list].as_array().unwrap().iter().map(|one| &one["state"]).collect();
        assert_eq!(all, ["ready"; 3], "{members}");
    }
    assert_eq!(members["nodes"][0]["name"], "node-1");

    assert_eq!(demo.order("node", 1, "kill").await, 200);
    demo.becomes("nodes", 1, "down").await;
    assert_eq!(demo.order("node", 1, "kill").await, 409, "it does not run");
    assert_eq!(demo.order("node", 2, "stop").await, 200);
    demo.becomes("nodes", 2, "down").await;
    for node in [1, 2] {
        assert_eq!(demo.order("node", node, "start").await, 200);
        demo.becomes("nodes", node, "ready").await;
    }
    for action in ["kill", "stop"] {
        assert_eq!(demo.order("server", 3, action).await, 200);
        demo.becomes("servers", 3, "down").await;
        assert_eq!(demo.order("server", 3, "start").await, 200);
        demo.becomes("servers", 3, "ready").await;
    }
    assert_eq!(demo.order("node", 4, "kill").await, 404);
    assert_eq!(demo.order("node", 0, "kill").await, 404);
    assert_eq!(demo.order("node", 1, "start").await, 409, "it runs already");
    assert_eq!(demo.order("cable", 1, "kill").await, 422);

    let pid = demo.child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let ended = within(demo.child.wait()).await.unwrap();
    assert!(ended.success(), "{ended}");
    for port in &demo.ports {
        eventually("nobody listens there", async || TcpStream::connect(port).await.is_err()).await;
    }
}
