//! Latencies counted in buckets of 1.6 %: small whatever is counted, and exact enough for percentiles.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets between a power of two and the next, as a power of two.
const BITS: u32 = 6;

/// Microseconds are counted up to 2^36, which is 19 hours.
const POWERS: u32 = 36 - BITS;

/// Counts of latencies.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; ((POWERS + 1) << BITS) as usize], total: 0, max: 0 }
    }
}

/// The percentiles that are reported, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// How many were counted.
    pub count: u64,
    /// Half are below it.
    pub p50: f64,
    /// 95 of 100 are below it.
    pub p95: f64,
    /// 99 of 100 are below it.
    pub p99: f64,
    /// 999 of 1,000 are below it.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let last = self.counts.len() - 1;
        self.counts[bucket(us).min(last)] += 1;
        self.total += 1;
        self.max = self.max.max(us);
    }

    /// The value in microseconds that a share of all does not exceed: the upper end of its bucket.
    fn quantile(&self, share: f64) -> u64 {
        let wanted = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        at.map_or(0, |at| upper(at).min(self.max))
    }

    /// What is reported.
    pub fn percentiles(&self) -> Percentiles {
        let ms = |share| self.quantile(share) as f64 / 1_000.0;
        Percentiles {
            count: self.total,
            p50: ms(0.5),
            p95: ms(0.95),
            p99: ms(0.99),
            p999: ms(0.999),
            max: self.max as f64 / 1_000.0,
        }
    }
}

/// Values below 2^BITS have a bucket each, and each later doubling has 2^BITS of them.
fn bucket(us: u64) -> usize {
    let power = us.max(1).ilog2().saturating_sub(BITS);
    if us >> BITS == 0 {
        return us as usize;
    }
    let within = (us >> power) - (1 << BITS);
    (((u64::from(power) + 1) << BITS) + within) as usize
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let (power, within) = (bucket as u64 >> BITS, bucket as u64 & ((1 << BITS) - 1));
    match power {
        0 => within,
        power => (((1 << BITS) + within + 1) << (power - 1)) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for us in 0..100_000 {
            let at = bucket(us);
            assert!(upper(at) >= us, "{us}");
            assert!(at == 0 || upper(at - 1) < us, "{us}");
        }
        assert!(upper(bucket(1_000_000)) < 1_016_000);
    }

    #[test]
    fn percentiles_are_those_of_what_was_counted() {
        let mut histogram = Histogram::default();
        for ms in 1..=1_000 {
            histogram.record(Duration::from_millis(ms));
        }
        let found = histogram.percentiles();
        for (found, right) in
            [(found.p50, 500.0), (found.p95, 950.0), (found.p99, 990.0), (found.p999, 999.0)]
        {
            assert!((found / right - 1.0_f64).abs() < 0.016, "{found} for {right}");
        }
        assert_eq!((found.count, found.max), (1_000, 1_000.0));
    }

    #[test]
    fn nothing_counted_and_more_than_the_longest_are_no_trouble() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentiles(), Percentiles::default());
        histogram.record(Duration::from_secs(1_000_000_000));
        assert_eq!(histogram.percentiles().count, 1);
    }
}
