//! Declarations of a live account: planned again, they say that nothing is to be done.

use serde_json::json;

use super::{api, catalog, fanfare};
use crate::support::NatsServer;

#[tokio::test]
async fn what_was_imported_is_what_is_there() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    fanfare::provision::apply_all(&client, &catalog(), super::Env::DEV).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("imported");
    let target = target.to_str().unwrap();

    let (code, text) = fanfare(&server, &["provision", "import", target]);

    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("18 files in"), "{text}");
    let (code, text) = fanfare(&server, &["provision", "plan", "--dir", target]);
    assert_eq!((code, text.trim()), (Some(0), "nothing to do (18 unchanged)"));
    let queue = std::fs::read_to_string(format!("{target}/streams/NOTIFICATIONS.toml")).unwrap();
    for line in ["max_age = \"24h\"", "max_bytes = \"1GiB\"", "retention = \"workqueue\""] {
        assert!(queue.contains(line), "{line}: {queue}");
    }
    assert!(!queue.contains("max_msgs") && !queue.contains("_nats."), "{queue}");

    // A change that is made by hand afterwards is seen through these files.
    let mut config = super::config_of(&client, "STREAM.INFO.INBOX").await;
    config["max_msgs_per_subject"] = json!(300);
    api(&client, "STREAM.UPDATE.INBOX", &config).await;
    let (code, text) = fanfare(&server, &["provision", "drift", "--dir", target]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("max_msgs_per_subject: 300 -> 200"), "{text}");

    let (code, text) = fanfare(&server, &["provision", "import", target]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("there is something in it"), "{text}");
}
