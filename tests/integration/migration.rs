//! A device that changes its network keeps its session.

use fanfare::client::Bind;

use crate::support::{Gateway, SCHEMES, message, notification, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_outlives_a_change_of_the_clients_address() {
    let gateway = Gateway::start().await;
    for scheme in SCHEMES {
        let mut config = gateway.device("ann", "phone");
        config.url = gateway.url(scheme);
        let (mut client, _) = gateway.connect(config).await;
        for change in 1..=3 {
            // The old socket is closed: what comes now came to the new address.
            gateway.endpoint.rebind(Bind::Loopback).expect("a new socket");
            let id = format!("{scheme}-{change}");
            gateway.publish("notification.message.new.ann", &message(&id)).await;
            assert_eq!(notification(&mut client).await.notification_id, id);
        }
        assert_eq!(client.stats().sessions, 1, "{scheme}: it is the same session");
        assert_eq!(within(client.close()).await.code(), Some(0), "{scheme}");
    }
}
