//! How sure an AUC is, and what a threshold on the score is worth.

use super::{auc, quantile};

/// 97.5 % quantile of the standard normal distribution: intervals are of 95 %.
pub(super) const Z: f64 = 1.959_963_984_540_054;

/// DeLong's 95 % interval of [`auc`] (DeLong, DeLong, Clarke-Pearson 1988): normal, cut at 0 and 1. `None` where a class has
/// fewer than two scores.
pub fn delong(negative: &[f64], positive: &[f64]) -> Option<(f64, f64)> {
    if negative.len() < 2 || positive.len() < 2 {
        return None;
    }
    let center = auc(negative, positive)?;
    let variance = placements(positive, negative, |own, other| own > other)
        + placements(negative, positive, |own, other| own < other);
    let half = Z * variance.sqrt();
    Some(((center - half).max(0.0), (center + half).min(1.0)))
}

/// Variance of the mean share of the others that each of `own` stands right to, ties counting half.
fn placements(own: &[f64], others: &[f64], wins: impl Fn(f64, f64) -> bool) -> f64 {
    let share = |own: &f64| {
        let count = |other: &f64| if own == other { 0.5 } else { f64::from(u8::from(wins(*own, *other))) };
        others.iter().map(count).sum::<f64>() / others.len() as f64
    };
    let shares: Vec<f64> = own.iter().map(share).collect();
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    let squares: f64 = shares.iter().map(|share| (share - mean).powi(2)).sum();
    squares / (shares.len() - 1) as f64 / shares.len() as f64
}

/// The 2.5 % and 97.5 % quantiles of the AUC over `resamples` random samples with replacement, of each class for itself. The
/// same seed gives the same interval. `None` where a class is empty.
pub fn bootstrap(negative: &[f64], positive: &[f64], resamples: usize, seed: u64) -> Option<(f64, f64)> {
    let mut random = Random::new(seed);
    let mut draw = |from: &[f64]| from.iter().map(|_| from[random.below(from.len())]).collect::<Vec<f64>>();
    let aucs: Option<Vec<f64>> = (0..resamples).map(|_| auc(&draw(negative), &draw(positive))).collect();
    let aucs = aucs?;
    Some((quantile(&aucs, 0.025)?, quantile(&aucs, 0.975)?))
}

/// The largest share of `positive` above a threshold that at most `fpr` of `negative` are above. `None` where a class is
/// empty.
pub fn tpr_at_fpr(negative: &[f64], positive: &[f64], fpr: f64) -> Option<f64> {
    if negative.is_empty() || positive.is_empty() {
        return None;
    }
    let above = |scores: &[f64], threshold: f64| {
        scores.iter().filter(|score| **score >= threshold).count() as f64 / scores.len() as f64
    };
    let allowed = positive.iter().filter(|threshold| above(negative, **threshold) <= fpr);
    Some(allowed.map(|threshold| above(positive, *threshold)).fold(0.0, f64::max))
}

/// Random numbers that are the same on every machine (SplitMix64, Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to but not 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From 0 up to but not `end`.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }
}
