//! What a session held when it ended: somebody else's to deliver.

use std::sync::Arc;

use super::Recipient;
use crate::protocol::Notification;

/// A notification that a session took and whose client never acked it.
#[derive(Debug, Clone)]
pub struct Undelivered {
    /// The notification.
    pub note: Arc<Notification>,
    /// Whom it was for.
    pub recipient: Recipient,
}
