//! Every role with exactly the permissions that `fanfare provision permissions` prints, on a server that denies the rest.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use async_nats::jetstream::{self, consumer::pull};
use fanfare::catalog::{Catalog, Target};
use fanfare::client::{self, AckMode, Client, Tokens, Trust};
use fanfare::clock::Now;
use fanfare::nats::{self, Role, Secret};
use futures::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::node::{serving, write_keys};
use crate::support::{NatsServer, eventually, notification, request, token, within};

/// A server on which every role has its permissions and nobody else gets in.
struct Place {
    trust: Trust,
    folder: TempDir,
    server: NatsServer,
}

impl Place {
    /// A server that is provisioned, by the provisioner.
    async fn start() -> Self {
        let place = Self::bare().await;
        place.does("provisioner", &["provision", "apply", "--yes"]).await;
        place.does("provisioner", &["provision", "plan"]).await;
        place
    }

    async fn bare() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let printed = program(&["provision", "permissions"]).output().await.unwrap();
        assert!(printed.status.success());
        let printed = String::from_utf8(printed.stdout).unwrap();
        // What an operator gives the server in its environment.
        let passwords = printed.split("password: $").skip(1).map(|rest| {
            let name = rest.lines().next().unwrap();
            format!("{name} = \"{}\"\n", name.to_lowercase())
        });
        let passwords: String = passwords.collect();
        let log = folder.path().join("nats.log").display().to_string();
        let config = format!("jetstream {{}}\nlog_file: {log:?}\n{passwords}{printed}");
        let server = NatsServer::start_with(&config).await;
        let trust = write_keys(folder.path());
        let config = r#"
            auth.keys = [{ algorithm = "HS256", file = "secret" }]
            admin.listen = "127.0.0.1:0"
            log.json = true
            [edge]
            listen = "127.0.0.1:0"
            tls = { certificate = "certificate.pem", key = "key.pem" }
        "#;
        std::fs::write(folder.path().join("fanfare.toml"), config).unwrap();
        Self { trust, folder, server }
    }

    /// The program with the user of `role`.
    fn program(&self, role: &str, args: &[&str]) -> Command {
        let user = format!("fanfare-{role}");
        let mut command = program(args);
        command
            .env("FANFARE__NATS__URL", self.server.url())
            .env("FANFARE__NATS__USER", &user)
            .env("FANFARE__NATS__PASSWORD", password(role))
            .current_dir(self.folder.path());
        command
    }

    /// Runs the program to its end: exit code and what it wrote.
    async fn run(&self, role: &str, args: &[&str]) -> (Option<i32>, String) {
        output(self.program(role, args)).await
    }

    /// The same where it must succeed.
    async fn does(&self, role: &str, args: &[&str]) -> String {
        let (code, text) = self.run(role, args).await;
        assert_eq!(code, Some(0), "{role} {args:?}: {text}");
        text
    }

    /// Starts a node and waits until it serves.
    async fn serve(&self, role: &str) -> Node {
        let log = self.folder.path().join(format!("{role}.log"));
        let child = self
            .program(role, &["--config", "fanfare.toml", "serve", "--role", role])
            .env("FANFARE__EDGE__NODE", role)
            .stderr(std::fs::File::create(&log).unwrap())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        eventually("it serves", async || serving(&log).is_some()).await;
        Node { child, log }
    }

    async fn connect(&self, role: Role) -> async_nats::Client {
        let name = role.to_string();
        let config = nats::Config {
            url: self.server.url().to_owned(),
            user: Some(format!("fanfare-{name}")),
            password: Some(Secret::new(password(&name))),
            role: Some(role),
            ..nats::Config::default()
        };
        nats::connect(&config).await.unwrap()
    }

    /// What the server denied so far.
    fn violations(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.path().join("nats.log")).unwrap();
        log.lines().filter(|line| line.contains("Violation")).map(str::to_owned).collect()
    }

    fn device(&self, node: &Node, user: &str) -> client::Config {
        let edge = serving(&node.log).unwrap().0.unwrap();
        let url = format!("https://{edge}/v1/push");
        client::Config::new(url, "phone", Tokens::fixed(token(user)), self.trust.clone())
    }
}

struct Node {
    child: Child,
    log: PathBuf,
}

impl Node {
    /// Ends it gently.
    async fn stop(mut self) {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        let ended = within(self.child.wait()).await.unwrap();
        assert!(ended.success(), "{ended}");
        let log = std::fs::read_to_string(&self.log).unwrap();
        assert!(!log.contains("NATS does not allow"), "{log}");
    }
}

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
    command.args(args).env_remove("RUST_LOG");
    command
}

async fn output(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

fn password(role: &str) -> String {
    format!("fanfare_{}_password", role.replace('-', "_"))
}

/// What all roles do on a day, with these nodes; the last one serves devices.
async fn a_day(nodes: &[&str]) {
    let mut place = Place::start().await;
    let mut running = Vec::new();
    for role in nodes {
        running.push(place.serve(role).await);
    }
    let edge = running.last().unwrap();

    // Members, by the service that has them.
    for args in [["add", "group", "g1", "ann", "ben"], ["remove", "group", "g1", "ben", "zoe"]] {
        place.does("members", &[["audience"].as_slice(), &args].concat()).await;
    }
    for kind in ["group", "conversation", "call", "followers"] {
        place.does("operator", &["audience", "add", kind, "ann", "ann", "ben"]).await;
    }
    // So many that they are not read in one answer.
    let rows: Vec<_> = (0..1_500).map(|at| format!("group,big,user-{at}")).collect();
    let rows = format!("kind,id,user\n{}\n", rows.join("\n"));
    std::fs::write(place.folder.path().join("big.csv"), rows).unwrap();
    place.does("members", &["audience", "import", "big.csv"]).await;
    assert!(place.does("operator", &["audience", "list", "group", "g1"]).await.contains("ann"));
    place.does("operator", &["audience", "sweep", "group", "g1"]).await;

    // A device gets what a service publishes, live, and what it missed.
    let friend = jetstream::new(place.connect(Role::Publisher("friend".to_owned())).await);
    let publish = async |id: &str, envelope: Value| {
        let body = serde_json::to_vec(&envelope).unwrap();
        let sent = friend.publish("notification.friend.request.ann", body.into()).await;
        within(async { sent.unwrap().await.expect(id) }).await
    };
    publish("missed", request("missed")).await;
    eventually("it is recorded", async || {
        place.does("monitor", &["trace", "missed", "--user", "ann"]).await.contains("inbox")
    })
    .await;
    let mut ann = Client::connect(place.device(edge, "ann")).unwrap();
    within(ann.live()).await.unwrap();
    eventually("the nodes know the session", async || {
        place.does("monitor", &["sessions", "ann"]).await.contains("phone")
    })
    .await;
    publish("live", request("live")).await;
    while notification(&mut ann).await.notification_id != "live" {}
    let now_s = Now::read().unix_ms / 1_000;
    let mut later = request("later");
    later["metadata"] = json!({ "deliver_at": now_s + 2 });
    publish("later", later).await;
    while notification(&mut ann).await.notification_id != "later" {}
    let cursor = ann.cursor();
    assert_eq!(within(ann.close()).await.code(), Some(0));
    let mut config = place.device(edge, "ann");
    (config.resume, config.ack) = (cursor, AckMode::Never);
    let mut deaf = Client::connect(config).unwrap();
    within(deaf.live()).await.unwrap();

    // Every event there is, by the publisher of its service.
    let samples = fanfare::demo::samples::all();
    for event in Catalog::built_in().unwrap().events() {
        let target = if event.target == Target::Broadcast { "broadcast" } else { "ann" };
        if samples.iter().any(|sample| sample.event_type == event.name)
            && !event.name.starts_with("admin.user_banned")
        {
            let role = format!("publisher-{}", event.service());
            place.does(&role, &["publish", "--type", &event.name, "--to", target]).await;
        }
    }
    place.does("publisher-group", &["publish", "--type", "group.info_updated", "--to", "big"]).await;
    place.does("publisher-admin", &["publish", "--type", "admin.user_banned", "--to", "mallory"]).await;

    // What cannot be handled, and the operator.
    publish("bad", json!({ "payload": 7 })).await;
    eventually("it is a dead letter", async || {
        place.does("operator", &["dlq", "list"]).await.contains("malformed")
    })
    .await;
    let list = place.does("operator", &["dlq", "list", "--json", "--reason", "malformed"]).await;
    let seq = serde_json::from_str::<Value>(list.lines().next().unwrap()).unwrap()["seq"].to_string();
    place.does("operator", &["dlq", "show", &seq]).await;
    place.does("operator", &["dlq", "replay", &seq]).await;
    place.does("operator", &["dlq", "purge", "--all", "--yes"]).await;
    place.does("operator", &["ban", "add", "ann"]).await;
    place.does("operator", &["ban", "remove", "ann"]).await;
    place.does("operator", &["ban", "list"]).await;
    place.does("monitor", &["nodes"]).await;
    drop(deaf);

    let provisioner = jetstream::new(place.connect(Role::Provisioner).await);
    eventually("everything is handled", async || {
        let mut left = 0;
        for queue in nats::QUEUES {
            left += provisioner.get_stream(queue).await.unwrap().cached_info().state.messages;
        }
        left == 0
    })
    .await;

    // NATS is restarted, and everything is opened anew.
    place.server.kill();
    place.server.restart().await;
    eventually("all nodes have renewed their leases", async || {
        let (code, text) = place.run("monitor", &["nodes"]).await;
        code == Some(0) && nodes.iter().all(|role| text.contains(role))
    })
    .await;
    let mut ann = Client::connect(place.device(running.last().unwrap(), "ann")).unwrap();
    within(ann.live()).await.unwrap();
    let told = place.does("publisher-friend", &["publish", "--type", "friend.request", "--to", "ann"]).await;
    let (_, id) = told.trim().rsplit_once(' ').unwrap();
    while notification(&mut ann).await.notification_id != id {}
    drop(ann);

    // The push service takes what was handed off.
    let push = jetstream::new(place.connect(Role::PushService).await);
    let stream = push.get_stream(nats::OFFLINE_PUSH).await.unwrap();
    let config = pull::Config {
        durable_name: Some("push_alert".to_owned()),
        filter_subject: "push.offline.alert".to_owned(),
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut pushes = consumer.messages().await.unwrap();
    let push = within(pushes.next()).await.unwrap().unwrap();
    within(push.double_ack()).await.unwrap();

    for node in running.into_iter().rev() {
        node.stop().await;
    }
    assert_eq!(place.violations(), [""; 0], "what was denied, and is needed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_and_an_edge_need_nothing_that_is_not_printed() {
    a_day(&["worker", "edge"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_both_parts_needs_nothing_that_is_not_printed() {
    a_day(&["all"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provisioner_replaces_consumers_and_tells_drift() {
    let place = Place::start().await;
    let dir = place.folder.path().join("changed");
    for part in ["streams", "consumers"] {
        std::fs::create_dir_all(dir.join(part)).unwrap();
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(part)).unwrap() {
            let path = entry.unwrap().path();
            // The first is a work queue's; the other one's place has to be kept.
            let text = std::fs::read_to_string(&path).unwrap();
            let changed = ["notifications_low.toml", "advisories_sweeper.toml"];
            let text = match path.file_name().unwrap().to_str() {
                Some(name) if changed.contains(&name) => {
                    text.replace("replay_policy = \"instant\"", "replay_policy = \"original\"")
                }
                _ => text,
            };
            std::fs::write(dir.join(part).join(path.file_name().unwrap()), text).unwrap();
        }
    }
    let dir = dir.to_str().unwrap();

    let (code, text) = place.run("provisioner", &["provision", "drift", "--dir", dir]).await;
    assert_eq!(code, Some(2), "{text}");
    let text = place.does("provisioner", &["provision", "apply", "--yes", "--prune", "--dir", dir]).await;
    assert!(text.contains("replaced 2; the server agrees"), "{text}");
    place.does("provisioner", &["provision", "drift", "--dir", dir]).await;
    assert_eq!(place.violations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_role_is_not_granted_fails_by_name() {
    let place = Place::start().await;
    let denied = async |role: &str, args: &[&str], words: &str| {
        let mut command = place.program(role, args);
        // Of the user, who may not do what the command is for.
        command.env("FANFARE__NATS__INBOX_PREFIX", format!("_INBOX_fanfare-{role}"));
        let (code, text) = output(command).await;
        assert_eq!(code, Some(1), "{role} {args:?}: {text}");
        let said = format!("NATS does not allow user \"fanfare-{role}\" to {words}");
        assert!(text.contains(&said), "{role} {args:?}: no {said} in {text}");
        assert!(text.contains("`fanfare provision permissions`"), "{text}");
        assert!(!text.contains("_password"), "{text}");
    };
    let message = ["publish", "--type", "message.new", "--to", "ann"];
    let typing = ["publish", "--type", "message.typing", "--to", "ann"];
    let ban = ["ban", "add", "ann"];
    let plan = ["provision", "plan"];
    tokio::join!(
        denied("publisher-friend", &message, "publish to \"notification.message.new.ann\""),
        denied("publisher-friend", &typing, "publish to \"notification.message.typing.ann\""),
        denied("worker", &plan, "publish to \"$JS.API.STREAM.LIST"),
        denied("edge", &message, "publish to \"notification.message.new.ann\""),
        denied("all", &message, "publish to \"notification.message.new.ann\""),
        denied("push-service", &["trace", "n1"], "publish to \"$JS.API.DIRECT.GET.OUTCOMES\""),
        denied("members", &ban, "publish to \"$JS.API.STREAM.INFO.KV_control\""),
        denied("provisioner", &["nodes"], "publish to \"$JS.API.CONSUMER.CREATE.KV_nodes\""),
        denied("monitor", &ban, "publish to \"$JS.API.STREAM.INFO.KV_control\""),
        denied("operator", &plan, "publish to \"$JS.API.STREAM.LIST\""),
        denied("monitor", &["--config", "fanfare.toml", "serve"], "publish to \"$KV.nodes."),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reads_what_another_role_is_answered_and_a_wrong_inbox_is_named() {
    let place = Place::bare().await;
    let publisher = place.connect(Role::Publisher("friend".to_owned())).await;
    for inbox in ["_INBOX.>", "_INBOX_fanfare-worker.>", "_INBOX_fanfare-publisher-message.>"] {
        publisher.subscribe(inbox).await.unwrap();
        publisher.flush().await.unwrap();
        eventually("it is denied", async || {
            place.violations().iter().any(|line| line.contains(&format!("Subject \"{inbox}\"")))
        })
        .await;
    }

    let mut command = place.program("monitor", &["nodes"]);
    command.env("FANFARE__NATS__INBOX_PREFIX", "_INBOX");
    let (code, text) = output(command).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("to subscribe to \"_INBOX.") && text.contains("nats.inbox_prefix"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_says_what_it_is_denied_and_counts_it() {
    let place = Place::start().await;
    let log = place.folder.path().join("log");
    let mut command = place.program("edge", &["--config", "fanfare.toml", "serve", "--role", "worker"]);
    command.env("FANFARE__NATS__INBOX_PREFIX", "_INBOX_fanfare-edge").kill_on_drop(true);
    let _node = command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    eventually("it says so", async || {
        let text = std::fs::read_to_string(&log).unwrap();
        [
            "publish to \\\"$JS.API.CONSUMER.INFO.NOTIFICATIONS_HIGH.high",
            "subscribe to \\\"notification.message.typing.*",
        ]
        .iter()
        .all(|words| text.contains(&format!("NATS does not allow user \\\"fanfare-edge\\\" to {words}")))
    })
    .await;
    eventually("it counts", async || {
        let Some((_, admin)) = serving(&log) else { return false };
        let (_, text) = crate::node::get(admin, "/metrics").await;
        crate::node::value(&text, "fanfare_nats_denied_total").is_some_and(|denied| denied >= 2.0)
    })
    .await;
}

#[tokio::test]
async fn permissions_are_printed_for_one_role_or_service_as_text_or_json() {
    let (code, text) =
        output(program(&["provision", "permissions", "publisher", "--service", "friend"])).await;
    assert_eq!(code, Some(0));
    assert!(text.contains("fanfare-publisher-friend") && !text.contains("publisher-message"), "{text}");
    let (_, text) = output(program(&["provision", "permissions", "worker", "--format", "json"])).await;
    let worker = serde_json::from_str::<Value>(&text).unwrap()["worker"].take();
    assert_eq!(worker["inbox_prefix"], "_INBOX_fanfare-worker");
    assert!(worker["publish"]["allow"].as_array().unwrap().contains(&json!("inbox.*")), "{worker}");
    for (args, words) in [
        (["publisher", "--service", "nobody"], "no event of service nobody"),
        (["worker", "--service", "friend"], "publisher only"),
    ] {
        let (code, text) = output(program(&[["provision", "permissions"].as_slice(), &args].concat())).await;
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(words), "{text}");
    }
}
