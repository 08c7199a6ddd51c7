//! The server is killed in the middle of an apply. The next apply finishes.

use async_nats::jetstream;
use fanfare::provision::{Options, apply};
use tokio_util::sync::CancellationToken;

use super::migration::{lanes, publish, take};
use super::{planned, settle};
use crate::support::NatsServer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_in_the_middle_of_an_apply_costs_nothing() {
    // After the mark, after the deletion, before the rewind.
    tokio::join!(killed_at("pause"), killed_at("create"), killed_at("rewind"));
}

/// `x` is replaced, or takes over a subject of `y`; the server dies before the first step that begins so.
async fn killed_at(word: &str) {
    let mut server = NatsServer::start().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    let before = lanes("workqueue", r#"["a"]"#, r#"["b", "c"]"#, "");
    let after = if word == "rewind" {
        lanes("workqueue", r#"["a", "b"]"#, r#"["c"]"#, "")
    } else {
        lanes("workqueue", r#"["a"]"#, r#"["b", "c"]"#, ", max_waiting = 7")
    };
    settle(&client, &before, &Options::default()).await.unwrap();
    for (subject, text) in [("a", "a1"), ("b", "b1"), ("a", "a2")] {
        publish(&context, subject, text).await;
    }
    assert_eq!(take(&context, "x", 1).await, ["a1"]);
    let plan = planned(&client, &after, &Options::default()).await;
    let mut killed = false;

    let error =
        apply::apply(&client, &after, &plan, &Options::default(), &CancellationToken::new(), &mut |line| {
            if line.starts_with(word) {
                killed = true;
                server.kill();
            }
        })
        .await;

    assert!(killed && error.is_err(), "{word}: {error:?}");
    server.restart().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    settle(&client, &after, &Options::default()).await.unwrap();
    assert!(planned(&client, &after, &Options::default()).await.is_empty(), "{word}");
    let mut taken = [take(&context, "x", 9).await, take(&context, "y", 9).await].concat();
    taken.sort();
    assert_eq!(taken, ["a2", "b1"], "{word}");
}
