//! Meters what waits: the backlog of each lane's consumer, read from JetStream every 5 s.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{Consumer, pull};
use metrics::gauge;

use super::handler::Handler;
use crate::catalog::Lane;
use crate::nats::NOTIFICATIONS;

/// Fine enough for an alarm, and 0.6 requests a second for the server.
const EVERY: Duration = Duration::from_secs(5);

/// Reads the backlog again and again. Never ends by itself.
pub(super) async fn watch(context: Context, handler: Arc<Handler>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        handler.totals().report();
        for lane in Lane::ALL {
            let consumer: Result<Consumer<pull::Config>, _> =
                context.get_consumer_from_stream(lane.as_str(), NOTIFICATIONS).await;
            // A missing consumer is the source's error to report; the gauge keeps its last value.
            if let Ok(consumer) = consumer {
                let info = consumer.cached_info();
                gauge!("fanfare_worker_backlog_messages", "lane" => lane.as_str())
                    .set(info.num_pending as f64);
                gauge!("fanfare_worker_unacked_messages", "lane" => lane.as_str())
                    .set(info.num_ack_pending as f64);
            }
        }
    }
}

/// Describes the metrics of this part.
pub(super) fn describe() {
    metrics::describe_gauge!(
        "fanfare_worker_backlog_messages",
        "notifications that wait to be pulled, by lane"
    );
    metrics::describe_gauge!(
        "fanfare_worker_unacked_messages",
        "notifications pulled by any node and not settled, by lane"
    );
}
