//! Follows the bucket `control` and applies what it says to the sessions of this node.
//!
//! One task, which [`Follower`] owns and ends. It reads the whole bucket, then every write; after an error, and after a
//! reconnect, it starts over and checks all sessions, since nobody knows what was missed.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{self, Context};
use metrics::{counter, describe_counter};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::{Ban, Change, Control, Notice, Revocation};
use crate::catalog::Catalog;
use crate::clock::Now;
use crate::id::UserId;
use crate::nats::watch::{self, Write};
use crate::nats::{CONTROL, Watch, WatchError};
use crate::session::Registry;

/// Wait before the bucket is followed again after an error.
const RETRY: Duration = Duration::from_secs(1);

/// How often the task looks whether the connection is another one.
const LOOK: Duration = Duration::from_secs(1);

/// Why the bucket cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ControlError(#[from] WatchError);

/// The task that follows the bucket. Ends when dropped.
#[derive(Debug)]
pub struct Follower {
    task: JoinSet<()>,
}

impl Follower {
    /// Resolves when the task has ended, which is a bug: bans would be enforced no more.
    pub async fn failed(&mut self) {
        self.task.join_next().await;
    }
}

/// Reads the bucket, and follows it from then on. Fails when it cannot be read: a node that does not know who is banned
/// must not serve.
pub async fn start(
    client: Client,
    catalog: Arc<Catalog>,
    registry: Arc<Registry>,
) -> Result<(Arc<Control>, Follower), ControlError> {
    describe_counter!(
        "fanfare_control_read_total",
        "readings of the whole bucket control, at start and after gaps in the connection to NATS"
    );
    describe_counter!("fanfare_control_errors_total", "errors while following the bucket control");
    let control = Arc::new(Control::default());
    let node = Node { context: jetstream::new(client), catalog, registry, control: control.clone() };
    let writes = node.read().await?;
    let mut task = JoinSet::new();
    task.spawn(node.run(writes));
    Ok((control, Follower { task }))
}

struct Node {
    context: Context,
    catalog: Arc<Catalog>,
    registry: Arc<Registry>,
    control: Arc<Control>,
}

impl Node {
    async fn run(self, mut writes: Watch) {
        loop {
            let error = self.follow(&mut writes).await;
            if let Some(error) = error {
                counter!("fanfare_control_errors_total").increment(1);
                tracing::warn!(%error, "following bans and logouts failed and is tried again");
                tokio::time::sleep(RETRY).await;
            }
            writes = loop {
                match self.read().await {
                    Ok(writes) => break writes,
                    Err(error) => {
                        counter!("fanfare_control_errors_total").increment(1);
                        tracing::error!(%error, "bans and logouts are not seen by this node until it can read them");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            };
        }
    }

    /// Reads every key, and checks every session by them.
    async fn read(&self) -> Result<Watch, WatchError> {
        let mut writes = Watch::open(&self.context, CONTROL).await?;
        let mut changes = Vec::new();
        while let Some(write) = writes.read().await? {
            changes.extend(parse(&write, &self.catalog));
        }
        self.control.replace(&changes);
        counter!("fanfare_control_read_total").increment(1);
        let now = Now::read();
        self.registry.each(|session| self.control.enforce(session, now));
        for notice in self.control.notices(now.unix_ms) {
            self.registry.broadcast(&notice);
        }
        Ok(writes)
    }

    /// Applies writes until there may be a gap: an error, another connection, or writes that do not come.
    async fn follow(&self, writes: &mut Watch) -> Option<WatchError> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lost = pin!(writes.lost(Arc::default()));
        loop {
            tokio::select! {
                write = writes.next() => match write {
                    Ok(write) => if let Some(change) = parse(&write, &self.catalog) {
                        self.apply(change);
                    },
                    Err(error) => return Some(error),
                },
                error = &mut lost => return Some(error),
                _ = look.tick() => if !writes.is_connected() {
                    return None;
                },
            }
        }
    }

    fn apply(&self, change: Change) {
        self.control.apply(change.clone());
        match change {
            Change::Ban(user, Some(_)) | Change::Revoked(user, Some(_)) => {
                let now = Now::read();
                for session in self.registry.of_user(&user) {
                    self.control.enforce(&session, now);
                }
            }
            // Sessions that had the announcement know its id and are not shown it again.
            Change::Notice(_, Some(note)) => self.registry.broadcast(&note),
            Change::Ban(..) | Change::Revoked(..) | Change::Notice(..) | Change::Unread(_) => {}
        }
    }
}

/// What a write of the bucket says; `None` for what is no key of ours.
fn parse(write: &Write, catalog: &Catalog) -> Option<Change> {
    let (kind, id) = write.key.split_once('.')?;
    let body = match &write.change {
        watch::Change::Put(body) => &**body,
        watch::Change::Deleted | watch::Change::Expired => &[],
    };
    let gone = body.is_empty();
    let change = match kind {
        "ban" => Change::Ban(UserId::new(id).ok()?, serde_json::from_slice::<Ban>(body).ok()),
        "revoked" => Change::Revoked(UserId::new(id).ok()?, serde_json::from_slice::<Revocation>(body).ok()),
        "notice" => {
            let notice = serde_json::from_slice::<Notice>(body).ok();
            Change::Notice(id.into(), notice.and_then(|notice| notice.notification(catalog)).map(Arc::new))
        }
        _ => return None,
    };
    let unread = matches!(change, Change::Ban(_, None) | Change::Revoked(_, None) | Change::Notice(_, None));
    if unread && !gone {
        // Another version wrote it, or a person: what is known stays, and somebody has to look.
        counter!("fanfare_control_errors_total").increment(1);
        tracing::error!(key = %format_args!("{kind}.{id}"), "a key of bucket {CONTROL} cannot be read and is passed over");
        return match change {
            Change::Ban(user, _) | Change::Revoked(user, _) => Some(Change::Unread(user)),
            Change::Notice(..) | Change::Unread(_) => None,
        };
    }
    Some(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_others_are_passed_over() {
        let catalog = Catalog::built_in().unwrap();
        let parse = |key: &str, body: &'static str| {
            let change =
                if body.is_empty() { watch::Change::Deleted } else { watch::Change::Put(body.into()) };
            parse(&Write { key: key.to_owned(), sequence: 1, stored_ms: 1, change }, &catalog)
        };
        assert!(matches!(parse("ban.u", r#"{"v":1}"#), Some(Change::Ban(_, Some(_)))));
        assert!(matches!(parse("ban.u", ""), Some(Change::Ban(_, None))));
        assert!(matches!(parse("revoked.u", r#"{"others_ms":5}"#), Some(Change::Revoked(_, Some(_)))));
        let notice = r#"{"v":1,"until_ms":9,"notification_id":"n","notification_type":"admin.maintenance",
            "timestamp":1,"published_at_ms":1,"priority":"high","payload":{"a":1}}"#;
        let Some(Change::Notice(_, Some(note))) = parse("notice.m", notice) else { panic!("not read") };
        assert_eq!((&*note.id, note.expires_at_ms), ("n", 9));
        assert!(matches!(parse("ban.u", "{"), Some(Change::Unread(_))));
        for (key, body) in [("notice.m", "{"), ("other.u", "{}"), ("ban", "{}")] {
            assert!(parse(key, body).is_none(), "{key}");
        }
    }
}
