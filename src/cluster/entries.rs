//! Reads the entries of one user in the bucket `presence`, by one direct get.

use std::sync::Arc;

use async_nats::Client;
use serde_json::json;

use super::entry::{self, Entry, Told};
use super::lease::Lives;
use crate::id::{DeviceId, UserId};
use crate::nats::PRESENCE;
use crate::nats::direct_get::{self, DirectGetError};

/// What was read of a user.
#[derive(Debug, Default)]
pub struct Read {
    /// An entry a node.
    pub entries: Vec<Entry>,
    /// The last sequence of any of them, also of what is gone.
    pub last: u64,
}

/// Reads the entries of `user`. A replica may answer that is milliseconds behind.
pub async fn of_user(client: &Client, user: &UserId) -> Result<Read, DirectGetError> {
    let prefix = format!("$KV.{PRESENCE}.");
    let request = json!({ "multi_last": [format!("{prefix}{user}.*")] });
    let mut read = Read::default();
    let take = |stored: direct_get::Stored| {
        let (sequence, stored_ms) = (stored.sequence(), stored.stored_ms());
        read.last = read.last.max(sequence);
        let key = stored.subject().strip_prefix(&prefix).and_then(entry::parse);
        let sessions = serde_json::from_slice::<Vec<Told>>(stored.body());
        // What is gone has no body; what another version wrote in another way is no entry that could be compared.
        if let (Some((_, node)), Ok(sessions)) = (key, sessions) {
            read.entries.push(Entry { node, sequence, stored_ms, sessions });
        }
    };
    direct_get::many(client, &format!("KV_{PRESENCE}"), &request, take).await?;
    Ok(read)
}

/// Reads the entries of users for this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Entries {
    client: Client,
    lives: Arc<Lives>,
}

impl Entries {
    pub(super) fn new(client: Client, lives: Arc<Lives>) -> Self {
        Self { client, lives }
    }

    /// All entries of `user`, this node's own included.
    pub async fn of_user(&self, user: &UserId) -> Result<Read, DirectGetError> {
        of_user(&self.client, user).await
    }

    /// The devices with which `user` is connected to other nodes.
    pub async fn devices_elsewhere(&self, user: &UserId) -> Result<Vec<DeviceId>, DirectGetError> {
        let entries = self.of_user(user).await?.entries;
        let elsewhere = entries.into_iter().filter(|entry| !self.lives.includes(&entry.node));
        Ok(elsewhere.flat_map(|entry| entry.sessions).map(|told| told.device).collect())
    }
}
