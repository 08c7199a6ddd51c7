//! When a recipient is tried again: three times, after 0.1, 0.4 and 1.6 s, each spread by a quarter.
//!
//! The worker that pulled the message owns the retry; nobody below it repeats anything.

use std::time::Duration;

/// Waits before the second, third and fourth try. Together 2.1 s, well below the ack timeout of any row.
const WAITS_MS: [u64; 3] = [100, 400, 1_600];

/// The waits, each multiplied by 0.75 to 1.25. `random` gives numbers from 0 up to 1.
pub fn waits(mut random: impl FnMut() -> f64) -> impl Iterator<Item = Duration> {
    WAITS_MS.into_iter().map(move |ms| Duration::from_millis(ms).mul_f64(0.75 + random() * 0.5))
}

/// Wait before a message comes again whose writes JetStream refused: doubles with each delivery from 2 s up to 5
/// minutes, so that the 14 deliveries after which a message is given up last for 33 minutes.
pub fn refused_write_delay(deliveries: u64, random: f64) -> Duration {
    Duration::from_secs((1 << deliveries.min(9)).min(300)).mul_f64(0.75 + random * 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_fourfold_and_are_spread() {
        let low: Vec<_> = waits(|| 0.0).map(|wait| wait.as_millis()).collect();
        let high: Vec<_> = waits(|| 1.0).map(|wait| wait.as_millis()).collect();
        assert_eq!((low, high), (vec![75, 300, 1_200], vec![125, 500, 2_000]));
    }

    #[test]
    fn refused_writes_wait_longer_each_time() {
        let delays: Vec<_> = [1, 2, 5, 9, 20].map(|n| refused_write_delay(n, 0.5).as_secs()).into();
        assert_eq!(delays, [2, 4, 32, 300, 300]);
    }
}
