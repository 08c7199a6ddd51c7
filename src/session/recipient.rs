//! Whom a push is for: a user, which of the user's devices, and what happens when no session serves them.

use std::sync::Arc;

use crate::catalog::Offline;
use crate::id::{DeviceId, UserId};

/// One user of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// The user.
    pub user: UserId,
    /// Which of the user's devices.
    pub devices: Devices,
    /// What happens when no session serves them.
    pub offline: Offline,
}

impl Recipient {
    /// All devices of `user`, with nothing kept for who is away.
    pub fn online(user: UserId) -> Self {
        Self { user, devices: Devices::All, offline: Offline::None }
    }
}

/// A choice of a user's devices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Devices {
    /// Every device.
    #[default]
    All,
    /// Every device but these.
    Except(Arc<[DeviceId]>),
    /// Only these.
    Only(Arc<[DeviceId]>),
}

impl Devices {
    /// True when `device` is meant.
    pub fn includes(&self, device: &DeviceId) -> bool {
        match self {
            Self::All => true,
            Self::Except(devices) => !devices.contains(device),
            Self::Only(devices) => devices.contains(device),
        }
    }
}
