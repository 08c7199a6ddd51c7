//! `fanfare trace`, with the command itself on a running service.

use serde_json::{Value, json};

use crate::support::{Gateway, SCHEMES, eventually, message, next_on, notification, within};
use fanfare::catalog::Lane;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_ended_session_held_is_traced_to_its_end() {
    for scheme in SCHEMES {
        let gateway = Gateway::start().await;
        let peer = gateway.live(scheme, "ann", "d1").await;
        gateway.publish("notification.message.new.ann", &message("n1")).await;
        let mut lane = peer.lane(Lane::Normal.into()).await;
        next_on(&mut lane).await;
        gateway.settled().await;

        drop((peer, lane));
        eventually("it is delivered again", async || gateway.count("OUTCOMES").await == 1).await;

        let told = trace(&gateway, &["n1", "--user", "ann", "--json"]).await;
        let told: Value = serde_json::from_str(&told).unwrap();
        let record = &told["records"][0];
        for (field, wanted) in [
            ("outcome", json!("offline_pushed")),
            ("reason", json!("no_session")),
            ("rerouted", json!(true)),
            ("users", json!(["ann"])),
            ("notification_type", json!("message.new")),
            ("node", json!("test")),
        ] {
            assert_eq!(record[field], wanted, "{scheme}: {field}");
        }
        assert_eq!(told["inbox"].as_array().map(Vec::len), Some(1), "{told}");
        let text = trace(&gateway, &["n1"]).await;
        assert!(text.contains("an ended session held it, then: offline_pushed (no_session) ann"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_tells_what_went_well_of_the_sample_and_why_nothing_is_known_of_the_rest() {
    let gateway = Gateway::start_with(|setup| setup.config.worker.evidence.sample = 1.0).await;
    let mut ann = gateway.client("ann", "d1").await;
    gateway.publish("notification.message.new.ann", &message("a.b")).await;
    notification(&mut ann).await;
    eventually("it is recorded", async || gateway.count("OUTCOMES").await == 1).await;

    let text = trace(&gateway, &["a.b"]).await;
    assert!(text.starts_with("a.b: message.new, stream sequence 1\n"), "{text}");
    assert!(text.contains("delivered ann [test]"), "{text}");
    assert!(
        !text.contains("sample"),
        "it is in the sample, whatever the command's own configuration says: {text}"
    );
    let text = trace(&gateway, &["nobody-knows"]).await;
    assert!(text.starts_with("nobody-knows: no record\n") && text.contains("24 hours"), "{text}");
}

/// What `fanfare trace` prints.
async fn trace(gateway: &Gateway, args: &[&str]) -> String {
    let command = tokio::process::Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["--nats", gateway.server.url(), "trace"])
        .args(args)
        .output();
    let output = within(command).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
