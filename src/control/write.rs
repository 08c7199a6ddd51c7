//! Writes the keys of the bucket `control`: read, merge, update with the expected revision, repeat on conflict.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;

use super::{Ban, Notice, Revocation};
use crate::id::UserId;
use crate::nats::{Bucket, CONTROL, KvError, Update};
use crate::session::Devices;

/// Writes to the bucket.
#[derive(Debug, Clone)]
pub struct Writer {
    bucket: Bucket,
}

impl Writer {
    /// Opens the bucket.
    pub async fn open(context: Context) -> Result<Self, KvError> {
        Ok(Self { bucket: Bucket::open(context, CONTROL).await? })
    }

    /// Bans a user, or lifts the ban; false when the bucket has a newer word on it.
    pub async fn ban(&self, user: &UserId, ban: &Ban, now_ms: u64) -> Result<bool, KvError> {
        self.bucket
            .update(&format!("ban.{user}"), |known| {
                let known = known.and_then(|known| serde_json::from_slice::<Ban>(known).ok());
                if known.is_some_and(|known| known.v >= ban.v) {
                    return Update::Keep(false);
                }
                let value = serde_json::to_vec(ban).expect("numbers and a text are JSON");
                Update::Put { value, ttl: ban.ttl(now_ms), then: true }
            })
            .await
    }

    /// Ends the user's tokens on `devices` that were issued up to `not_before_ms`, beside those that are over already.
    /// `life` is the longest a token lives; the key is kept as long.
    pub async fn revoke(
        &self,
        user: &UserId,
        devices: &Devices,
        not_before_ms: u64,
        notification_id: &Arc<str>,
        (life, now_ms): (Duration, u64),
    ) -> Result<(), KvError> {
        self.bucket
            .update(&format!("revoked.{user}"), |known| {
                let known = known.and_then(|known| serde_json::from_slice(known).ok());
                let known: Revocation = known.unwrap_or_default();
                let mut new = known.clone();
                new.revoke(devices, not_before_ms);
                if new == known {
                    return Update::Keep(());
                }
                new.forget(now_ms, life);
                new.notification_id = Some(notification_id.clone());
                let value = serde_json::to_vec(&new).expect("ids and numbers are JSON");
                Update::Put { value, ttl: Some(life), then: () }
            })
            .await
    }

    /// Shows a notice under `id` until its end.
    pub async fn notice(&self, id: &str, notice: &Notice, now_ms: u64) -> Result<(), KvError> {
        self.bucket
            .update(&format!("notice.{id}"), |known| {
                let known = known.and_then(|known| serde_json::from_slice::<Notice>(known).ok());
                if notice.until_ms <= now_ms || known.is_some_and(|known| known.v >= notice.v) {
                    return Update::Keep(());
                }
                let value = serde_json::to_vec(notice).expect("ids, numbers and a JSON payload are JSON");
                Update::Put { value, ttl: Some(Duration::from_millis(notice.until_ms - now_ms)), then: () }
            })
            .await
    }

    /// Everybody who is banned now, in the order of their ids.
    pub async fn bans(&self, now_ms: u64) -> Result<Vec<(UserId, Ban)>, KvError> {
        let mut bans = Vec::new();
        for key in self.bucket.keys().await? {
            let Some(user) = key.strip_prefix("ban.").and_then(|user| UserId::new(user).ok()) else {
                continue;
            };
            let value = self.bucket.get(&key).await?;
            let ban = value.and_then(|value| serde_json::from_slice::<Ban>(&value).ok());
            bans.extend(ban.filter(|ban| ban.holds(now_ms)).map(|ban| (user, ban)));
        }
        bans.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(bans)
    }
}
