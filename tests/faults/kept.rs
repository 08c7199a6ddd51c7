//! Reads what the gateway kept: hand-offs, inbox records and dead letters.

use std::collections::HashSet;

use async_nats::jetstream::Context;
use serde_json::Value;

use crate::account::Found;

/// Reads the three streams into `found`.
pub(crate) async fn read(context: &Context, found: &mut Found) -> anyhow::Result<()> {
    each(context, "OFFLINE_PUSH", |_, record| {
        for user in record["users"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            found.handed_off.insert((user.to_owned(), id(&record)));
        }
    })
    .await?;
    each(context, "INBOX", |subject, record| {
        let user = subject.trim_start_matches("inbox.").to_owned();
        found.inboxed.insert((user, id(&record)));
    })
    .await?;
    let mut dead = HashSet::new();
    each(context, "NOTIFICATIONS_DLQ", |_, record| {
        dead.insert(id(&record));
    })
    .await?;
    found.dead = dead;
    Ok(())
}

fn id(record: &Value) -> String {
    record["notification_id"].as_str().unwrap_or_default().to_owned()
}

/// Gives every message of a stream, as JSON. Nothing is consumed.
async fn each(context: &Context, stream: &str, mut act: impl FnMut(&str, Value)) -> anyhow::Result<()> {
    let stream = context.get_stream(stream).await?;
    let state = stream.cached_info().state.clone();
    if state.messages == 0 {
        return Ok(());
    }
    for seq in state.first_sequence..=state.last_sequence {
        // What was deleted in between leaves a gap.
        if let Ok(message) = stream.get_raw_message(seq).await {
            act(&message.subject, serde_json::from_slice(&message.payload).unwrap_or_default());
        }
    }
    Ok(())
}
