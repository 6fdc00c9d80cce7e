//! How long things took, counted in fixed steps.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The steps' upper bounds for finding out who calls, in microseconds: one netlink question takes about five, a path
/// that the keeper has to look up some hundred, and a search that runs into its deadline a hundred thousand.
pub const ATTRIBUTION_US: [u64; 11] = [10, 25, 50, 100, 250, 500, 1_000, 5_000, 10_000, 50_000, 100_000];

/// The steps' upper bounds for the service's answer, in microseconds, from a service on the same host to a long poll.
pub const UPSTREAM_US: [u64; 11] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 10_000_000];

/// Durations, counted by the step that they fall into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// The upper bounds of the steps, in microseconds, ascending; a duration that equals one is within it.
    pub bounds_us: Vec<u64>,
    /// How many durations fell into each step; the last is beyond the last bound.
    pub counts: Vec<u64>,
    /// Their sum, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// An empty one with these steps.
    #[must_use]
    pub fn new(bounds_us: &[u64]) -> Self {
        Self { bounds_us: bounds_us.to_vec(), counts: vec![0; bounds_us.len() + 1], sum_us: 0 }
    }

    /// Counts one more.
    pub fn add(&mut self, duration: Duration) {
        self.add_us(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts one more, in microseconds.
    pub fn add_us(&mut self, micros: u64) {
        let step = self.bounds_us.partition_point(|bound| *bound < micros);
        if let Some(count) = self.counts.get_mut(step) {
            *count += 1;
        }
        self.sum_us = self.sum_us.saturating_add(micros);
    }

    /// Adds what another one with the same steps has counted.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The upper bound of the step in which this share of all durations ends, in microseconds; `None` if there are none,
    /// or if it lies beyond the last bound.
    #[must_use]
    pub fn quantile_us(&self, percent: u64) -> Option<u64> {
        let wanted = (self.count() * percent).div_ceil(100);
        let mut seen = 0;
        let step = self.counts.iter().position(|count| {
            seen += count;
            wanted > 0 && seen >= wanted
        })?;
        self.bounds_us.get(step).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_falls_into_one_step() {
        let mut histogram = Histogram::new(&[10, 100]);
        for micros in [0, 10, 11, 100, 101, u64::MAX] {
            histogram.add_us(micros);
        }
        assert_eq!((histogram.counts.as_slice(), histogram.count()), (&[2, 2, 2][..], 6));
        assert_eq!(histogram.sum_us, u64::MAX, "a sum stays at its end");
    }

    #[test]
    fn quantiles_are_steps() {
        let mut histogram = Histogram::new(&[10, 100]);
        assert_eq!(histogram.quantile_us(50), None);
        for micros in [5, 5, 50, 5000] {
            histogram.add_us(micros);
        }
        assert_eq!((histogram.quantile_us(50), histogram.quantile_us(75)), (Some(10), Some(100)));
        assert_eq!(histogram.quantile_us(99), None, "beyond the last bound");
    }
}
