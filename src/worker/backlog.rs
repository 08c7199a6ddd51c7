//! Meters what waits: the backlog of each lane's consumer in each stream, read from JetStream every 5 s.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{Consumer, pull};
use metrics::gauge;

use super::Queue;
use super::handler::Handler;

/// Fine enough for an alarm, and 0.6 requests a second and stream for the server.
const EVERY: Duration = Duration::from_secs(5);

/// Reads the backlog again and again. Never ends by itself.
pub(super) async fn watch(context: Context, queues: Vec<Queue>, handler: Arc<Handler>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        handler.totals().report();
        for (stream, lane) in queues.iter().flat_map(Queue::consumers) {
            let consumer: Result<Consumer<pull::Config>, _> =
                context.get_consumer_from_stream(lane.as_str(), stream).await;
            // A missing consumer is the source's error to report; the gauge keeps its last value.
            if let Ok(consumer) = consumer {
                let info = consumer.cached_info();
                let meters = [
                    ("fanfare_worker_backlog_messages", info.num_pending as f64),
                    ("fanfare_worker_unacked_messages", info.num_ack_pending as f64),
                ];
                for (name, count) in meters {
                    gauge!(name, "stream" => stream.to_owned(), "lane" => lane.as_str()).set(count);
                }
            }
        }
    }
}

/// Describes the metrics of this part.
pub(super) fn describe() {
    metrics::describe_gauge!(
        "fanfare_worker_backlog_messages",
        "notifications that wait to be pulled, by stream and lane"
    );
    metrics::describe_gauge!(
        "fanfare_worker_unacked_messages",
        "notifications pulled by any node and not settled, by stream and lane"
    );
}
