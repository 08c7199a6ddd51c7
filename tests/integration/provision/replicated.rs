//! Three nats-servers with three replicas of everything.

use async_nats::jetstream;
use fanfare::demo::NatsCluster;
use fanfare::nats::Config;
use fanfare::provision::{Desired, Options};

use super::migration::{lanes, publish, take};
use super::{config_of, fanfare_at, planned, settle};
use crate::support::eventually;

#[tokio::test]
async fn three_servers_keep_three_replicas_and_lose_one() {
    let mut cluster = NatsCluster::start().await.unwrap();
    let apply = ["provision", "apply", "--yes", "--replicas", "3"];
    let (code, text) = fanfare_at(&cluster.url, &apply);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = fanfare_at(&cluster.url, &["provision", "plan", "--replicas", "3"]);
    assert_eq!((code, text.trim()), (Some(0), "nothing to do (18 unchanged)"));
    let config = Config { url: cluster.url.clone(), ..Config::default() };
    let client = fanfare::nats::connect(&config).await.unwrap();
    for stream in ["NOTIFICATIONS", "KV_nodes"] {
        let config = config_of(&client, &format!("STREAM.INFO.{stream}")).await;
        assert_eq!(config["num_replicas"], 3, "{stream}");
    }
    let jetstream = async_nats::jetstream::new(client);
    let leader = cluster.leader(&jetstream, "NOTIFICATIONS").await.expect("a leader");

    cluster.kill(leader).await;

    assert!(!cluster.running()[leader]);
    eventually("another server leads and takes a notification", async || {
        let sent = jetstream.publish("notification.friend.request.user-1", "{}".into()).await;
        let Ok(sent) = sent else { return false };
        sent.await.is_ok()
    })
    .await;
    assert_ne!(cluster.leader(&jetstream, "NOTIFICATIONS").await, Some(leader));
    cluster.restart(leader).await.unwrap();
    assert_eq!(cluster.running(), [true; NatsCluster::SIZE]);
}

#[tokio::test]
async fn migrations_work_with_three_replicas() {
    let cluster = NatsCluster::start().await.unwrap();
    let config = Config { url: cluster.url.clone(), ..Config::default() };
    let client = fanfare::nats::connect(&config).await.unwrap();
    let context = jetstream::new(client.clone());
    let three = |desired: Desired| desired.with_replicas(3);
    let (a, bc) = (r#"["a"]"#, r#"["b", "c"]"#);
    settle(&client, &three(lanes("workqueue", a, bc, "")), &Options::default()).await.unwrap();
    for (subject, text) in [("a", "a1"), ("b", "b1"), ("a", "a2"), ("c", "c1")] {
        publish(&context, subject, text).await;
    }
    assert_eq!(take(&context, "x", 1).await, ["a1"]);

    for wanted in [
        lanes("workqueue", a, bc, ", max_waiting = 7"),
        lanes("workqueue", r#"["a", "b"]"#, r#"["c"]"#, ", max_waiting = 7"),
    ] {
        let wanted = three(wanted);
        settle(&client, &wanted, &Options::default()).await.unwrap();
        assert!(planned(&client, &wanted, &Options::default()).await.is_empty());
    }

    assert_eq!(take(&context, "x", 9).await, ["b1", "a2"]);
    assert_eq!(take(&context, "y", 9).await, ["c1"]);
}
