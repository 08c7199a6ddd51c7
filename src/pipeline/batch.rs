//! Stage 4: recipients in batches, one after the other, so that a fan-out to many never exists as a whole.

use crate::session::Recipient;

/// Largest batch in users: the specification's batch for one offline hand-off and for one message between nodes.
pub const BATCH_USERS_MAX: usize = 1_000;

/// Cuts `targets` into batches of at most [`BATCH_USERS_MAX`].
pub fn batches<'a>(
    targets: impl Iterator<Item = Recipient> + Send + 'a,
) -> impl Iterator<Item = Vec<Recipient>> + Send + 'a {
    let mut targets = targets.fuse();
    std::iter::from_fn(move || {
        let batch: Vec<Recipient> = targets.by_ref().take(BATCH_USERS_MAX).collect();
        (!batch.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::Offline;
    use crate::id::UserId;
    use crate::session::Devices;

    fn target(n: usize) -> Recipient {
        let user = UserId::new(&format!("u{n}")).unwrap();
        Recipient { user, devices: Devices::All, offline: Offline::None }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn batches_keep_everybody_in_order_and_within_the_bound(count in 0usize..3_500) {
            let all: Vec<Vec<Recipient>> = batches((0..count).map(target)).collect();
            prop_assert!(all.iter().all(|batch| (1..=BATCH_USERS_MAX).contains(&batch.len())));
            prop_assert_eq!(all.len(), count.div_ceil(BATCH_USERS_MAX));
            prop_assert!(all.into_iter().flatten().eq((0..count).map(target)));
        }
    }

    #[test]
    fn no_more_than_one_batch_exists_at_a_time() {
        let made = std::sync::atomic::AtomicUsize::new(0);
        let count = |_: &Recipient| {
            made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        };
        let mut given = 0;
        for batch in batches((0..100_000).map(target).inspect(count)) {
            given += batch.len();
            assert_eq!(made.load(std::sync::atomic::Ordering::Relaxed), given);
        }
        assert_eq!(given, 100_000);
    }
}
