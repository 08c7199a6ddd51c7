//! The value of `revoked.{user}`: which logins of a user have ended. Pure.
//!
//! For each device there is a time, and tokens that were issued up to it are over: one time for the devices that are
//! named, another for all others. Every revocation raises the times of the devices it concerns and lowers none, so
//! revocations may come in any order and any number of times, and a later, narrower one never brings back what an
//! earlier, wider one ended. Tokens say their time in whole seconds: one that was issued in the second of the
//! revocation counts as older.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::DeviceId;
use crate::session::Devices;

/// Devices that a user's key may name. Beyond it the one with the lowest time is counted among the others, and both get
/// the higher time: rather one logout too many than one too few. 64 names of 128 bytes stay below 10 kB.
const NAMED_MAX: usize = 64;

/// The ended logins of one user. Times are Unix milliseconds; 0 ends nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// Tokens of the devices that are not named, issued up to this time, are over.
    others_ms: u64,
    /// The same for each device that is named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    devices: BTreeMap<DeviceId, u64>,
    /// The notification that tells the user of the latest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification_id: Option<Arc<str>>,
}

impl Revocation {
    /// True when a token that was issued at `issued_ms` is over on `device`.
    pub fn ends(&self, device: &DeviceId, issued_ms: u64) -> bool {
        let until = self.until_ms(device);
        until > 0 && issued_ms <= until
    }

    /// Ends the tokens of `devices` that were issued up to `not_before_ms`.
    pub fn revoke(&mut self, devices: &Devices, not_before_ms: u64) {
        match devices {
            Devices::All => self.revoke_but(&[], not_before_ms),
            Devices::Except(spared) => self.revoke_but(spared, not_before_ms),
            Devices::Only(concerned) => {
                for device in concerned.iter() {
                    let until = self.until_ms(device).max(not_before_ms);
                    self.devices.insert(device.clone(), until);
                }
            }
        }
        self.tidy();
    }

    /// Forgets times that no token reaches any more, because none lives longer than `life`.
    pub fn forget(&mut self, now_ms: u64, life: Duration) {
        let oldest = now_ms.saturating_sub(life.as_millis() as u64);
        let forget = |until: u64| if until < oldest { 0 } else { until };
        self.others_ms = forget(self.others_ms);
        for until in self.devices.values_mut() {
            *until = forget(*until);
        }
        self.tidy();
    }

    fn until_ms(&self, device: &DeviceId) -> u64 {
        self.devices.get(device).copied().unwrap_or(self.others_ms)
    }

    fn revoke_but(&mut self, spared: &[DeviceId], not_before_ms: u64) {
        for (device, until) in &mut self.devices {
            if !spared.contains(device) {
                *until = (*until).max(not_before_ms);
            }
        }
        for device in spared {
            self.devices.entry(device.clone()).or_insert(self.others_ms);
        }
        self.others_ms = self.others_ms.max(not_before_ms);
    }

    fn tidy(&mut self) {
        self.devices.retain(|_, until| *until != self.others_ms);
        while self.devices.len() > NAMED_MAX {
            let lowest =
                self.devices.iter().min_by_key(|(_, until)| **until).map(|(device, _)| device.clone());
            let Some(until) = lowest.and_then(|device| self.devices.remove(&device)) else { return };
            self.others_ms = self.others_ms.max(until);
            let others_ms = self.others_ms;
            self.devices.retain(|_, until| *until != others_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn device(n: u8) -> DeviceId {
        DeviceId::new(&format!("d{n}")).unwrap()
    }

    fn rules() -> impl Strategy<Value = Vec<(Devices, u64)>> {
        let some =
            || prop::collection::vec((0u8..5).prop_map(device), 0..4).prop_map(Arc::<[DeviceId]>::from);
        let devices =
            prop_oneof![Just(Devices::All), some().prop_map(Devices::Except), some().prop_map(Devices::Only)];
        prop::collection::vec((devices, 1u64..20), 0..8)
    }

    fn all(rules: &[(Devices, u64)]) -> Revocation {
        let mut revocation = Revocation::default();
        for (devices, at) in rules {
            revocation.revoke(devices, *at);
        }
        revocation
    }

    proptest! {
        /// A token is over exactly when one of the revocations ends it, whatever their order.
        #[test]
        fn together_they_end_what_any_of_them_ends(
            (rules, shuffled) in rules().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        ) {
            let together = all(&rules);
            prop_assert_eq!(&together, &all(&shuffled));
            for n in 0..6 {
                for issued in 0..21 {
                    let any = rules.iter().any(|(devices, at)| devices.includes(&device(n)) && issued <= *at);
                    prop_assert_eq!(together.ends(&device(n), issued), any, "d{} issued {}", n, issued);
                }
            }
        }
    }

    #[test]
    fn a_later_narrow_one_does_not_bring_back_what_a_wide_one_ended() {
        let revocation = all(&[
            (Devices::Except([device(1)].into()), 10),
            (Devices::Only([device(2)].into()), 20),
            (Devices::Except([device(3)].into()), 15),
        ]);
        assert!(revocation.ends(&device(3), 10), "the second one spares it, the first one did not");
        assert!(!revocation.ends(&device(3), 11));
        assert!(revocation.ends(&device(1), 15) && revocation.ends(&device(2), 20));
        assert!(revocation.ends(&device(4), 15) && !revocation.ends(&device(4), 16));
    }

    #[test]
    fn beyond_the_bound_more_is_ended_and_never_less() {
        let mut revocation = Revocation::default();
        for n in 0..200u8 {
            revocation.revoke(&Devices::Only([device(n)].into()), u64::from(n) + 1);
        }
        assert_eq!(revocation.devices.len(), NAMED_MAX);
        assert!((0..200u8).all(|n| revocation.ends(&device(n), u64::from(n) + 1)));
    }

    #[test]
    fn what_no_token_reaches_any_more_is_forgotten() {
        let mut revocation = all(&[(Devices::All, 10), (Devices::Only([device(1)].into()), 2_000)]);
        revocation.forget(2_500, Duration::from_secs(1));
        assert!(!revocation.ends(&device(2), 5) && revocation.ends(&device(1), 5));
        revocation.forget(9_000, Duration::from_secs(1));
        assert_eq!(revocation, Revocation::default());
    }
}
