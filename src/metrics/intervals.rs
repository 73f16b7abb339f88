//! How sure an AUC is, and what a threshold on the score is worth.

use super::{auc, classes::sorted, quantile};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use statrs::distribution::{ContinuousCDF, Normal};

/// 97.5 % quantile of the standard normal distribution: intervals are of 95 %.
const Z: f64 = 1.959_963_984_540_054;

/// DeLong's 95 % interval of [`auc`] (DeLong, DeLong, Clarke-Pearson 1988): normal, cut at 0 and 1. `None` where a class has
/// fewer than two scores. Of small classes, and of an AUC near 0 or 1, it is too short: see [`newcombe`].
pub fn delong(negative: &[f64], positive: &[f64]) -> Option<(f64, f64)> {
    if negative.len() < 2 || positive.len() < 2 {
        return None;
    }
    let variance =
        placements(positive, negative, |below, _| below) + placements(negative, positive, |_, above| above);
    let (center, half) = (auc(negative, positive)?, Z * variance.sqrt());
    Some(((center - half).max(0.0), (center + half).min(1.0)))
}

/// Newcombe's 95 % interval of an [`auc`] of classes of so many scores (Newcombe 2006, Statistics in Medicine 25:559, method 5): the values from which the AUC found lies no
/// further than chance, their variance being Hanley and McNeil's for exponential scores and classes of the mean size. Unlike [`delong`]'s
/// it has a width at an AUC of 0 and 1 and holds for classes of a few scores.
pub fn newcombe(found: f64, negatives: usize, positives: usize) -> (f64, f64) {
    let (m, n) = (negatives as f64, positives as f64);
    let is_near = |theta: f64| {
        let two_positives = theta / (2.0 - theta) - theta * theta;
        let two_negatives = 2.0 * theta * theta / (1.0 + theta) - theta * theta;
        let others = (m + n) / 2.0 - 1.0;
        let variance = (theta * (1.0 - theta) + others * (two_positives + two_negatives)) / (m * n);
        (found - theta).powi(2) <= Z * Z * variance
    };
    (end(found, 0.0, is_near), end(found, 1.0, is_near))
}

/// Tango's 95 % interval of a difference of two shares of the same `count` rows, of which `gained` are in the first only and `lost` in the
/// second only (Tango 1998, Statistics in Medicine 17:891): the differences from which the one found lies no further than chance. It has a
/// width where no row differs.
pub fn paired(gained: usize, lost: usize, count: usize) -> (f64, f64) {
    let (gained, lost, count) = (gained as f64, lost as f64, count as f64);
    let is_near = |difference: f64| {
        // How many are lost by chance under this difference, the likeliest share.
        let a = 2.0 * count;
        let b = (a - gained + lost) * difference - gained - lost;
        let c = -lost * difference * (1.0 - difference);
        let of_lost = ((b * b - 4.0 * a * c).max(0.0).sqrt() - b) / (2.0 * a);
        let variance = count * (2.0 * of_lost + difference * (1.0 - difference));
        (gained - lost - count * difference).powi(2) <= Z * Z * variance
    };
    let found = (gained - lost) / count;
    (end(found, -1.0, is_near), end(found, 1.0, is_near))
}

/// How far from `near`, where `is_near` holds, towards `far` it goes on to hold.
fn end(mut near: f64, mut far: f64, is_near: impl Fn(f64) -> bool) -> f64 {
    // Each step halves the distance: these are more than an f64 has digits.
    for _ in 0..64 {
        let middle = near.midpoint(far);
        if is_near(middle) { near = middle } else { far = middle }
    }
    near
}

/// The AUC of two classes within strata: how often, of all pairs of a negative and a positive of one stratum, the positive has the higher
/// score; and its 95 % interval, from [`newcombe`]'s of the strata (Zou and Donner 2008, Statistics in Medicine 27:1693). Strata without
/// one of the classes tell nothing; `None` where there are no others.
pub fn stratified(strata: &[(&[f64], &[f64])]) -> Option<(f64, (f64, f64))> {
    let (mut pairs, mut center, mut below, mut above) = (0.0, 0.0, 0.0, 0.0);
    for (negative, positive) in strata {
        let Some(own) = auc(negative, positive) else { continue };
        let (low, high) = newcombe(own, negative.len(), positive.len());
        let own_pairs = (negative.len() * positive.len()) as f64;
        pairs += own_pairs;
        center += own_pairs * own;
        below += (own_pairs * (own - low)).powi(2);
        above += (own_pairs * (high - own)).powi(2);
    }
    let share = |of: f64| of / pairs;
    (pairs > 0.0).then(|| (share(center), (share(center - below.sqrt()), share(center + above.sqrt()))))
}

/// Wilson's 95 % interval of a share of so many.
pub fn wilson(share: f64, of: f64) -> (f64, f64) {
    wilson_of(share, of, Z)
}

/// The same of one of several shares, wide enough that all of them hold together with 95 % (Bonferroni).
pub fn wilson_of_several(share: f64, of: f64, shares: usize) -> (f64, f64) {
    wilson_of(share, of, Normal::standard().inverse_cdf(1.0 - 0.025 / shares.max(1) as f64))
}

fn wilson_of(share: f64, of: f64, z: f64) -> (f64, f64) {
    let spread = z * z / of;
    let half = z * ((share * (1.0 - share) + spread / 4.0) / of).sqrt();
    let middle = share + spread / 2.0;
    (((middle - half) / (1.0 + spread)).max(0.0), ((middle + half) / (1.0 + spread)).min(1.0))
}

/// Variance of the mean share of the others that each of `own` stands right to, ties counting half. `right` takes how many
/// of the others are below a score and how many above.
fn placements(own: &[f64], others: &[f64], right: impl Fn(usize, usize) -> usize) -> f64 {
    let others = sorted(others);
    let share = |own: &f64| {
        let below = others.partition_point(|other| other < own);
        let above = others.len() - others.partition_point(|other| other <= own);
        let ties = others.len() - below - above;
        (right(below, above) as f64 + ties as f64 / 2.0) / others.len() as f64
    };
    let shares: Vec<f64> = own.iter().map(share).collect();
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    let squares: f64 = shares.iter().map(|share| (share - mean).powi(2)).sum();
    squares / (shares.len() - 1) as f64 / shares.len() as f64
}

/// The 2.5 % and 97.5 % quantiles of the AUC over `resamples` random samples with replacement, of each class for itself. The
/// same seed gives the same interval. `None` where a class has fewer than two scores: all samples would be alike.
pub fn bootstrap(negative: &[f64], positive: &[f64], resamples: usize, seed: u64) -> Option<(f64, f64)> {
    if negative.len() < 2 || positive.len() < 2 {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |end: usize| ((u128::from(random.next_u64()) * end as u128) >> 64) as usize;
    // Scores are sorted once; a sample is how often it has each.
    let mut distinct = sorted(&[negative, positive].concat());
    distinct.dedup();
    let place = |score: &f64| distinct.partition_point(|other| other < score);
    let [negative, positive] =
        [negative, positive].map(|scores| scores.iter().map(place).collect::<Vec<_>>());
    let mut draw = |from: &[usize]| {
        let mut counts = vec![0u32; distinct.len()];
        from.iter().for_each(|_| counts[from[below(from.len())]] += 1);
        counts
    };
    let mut sample = || {
        let (mut wins, mut lower) = (0.0, 0.0);
        for (negatives, positives) in draw(&negative).into_iter().zip(draw(&positive)) {
            let (negatives, positives) = (f64::from(negatives), f64::from(positives));
            wins += positives * (lower + negatives / 2.0);
            lower += negatives;
        }
        wins / (negative.len() * positive.len()) as f64
    };
    let aucs: Vec<f64> = (0..resamples).map(|_| sample()).collect();
    Some((quantile(&aucs, 0.025)?, quantile(&aucs, 0.975)?))
}

/// The largest share of `positive` above a threshold that at most `fpr` of `negative` are above. `None` where a class is
/// empty.
pub fn tpr_at_fpr(negative: &[f64], positive: &[f64], fpr: f64) -> Option<f64> {
    if negative.is_empty() || positive.is_empty() {
        return None;
    }
    let (negative, positive) = (sorted(negative), sorted(positive));
    let above = |scores: &[f64], threshold: f64| {
        (scores.len() - scores.partition_point(|score| *score < threshold)) as f64 / scores.len() as f64
    };
    let allowed = positive.iter().filter(|threshold| above(&negative, **threshold) <= fpr);
    Some(allowed.map(|threshold| above(&positive, *threshold)).fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [`super::newcombe`] of two classes.
    fn newcombe(negative: &[f64], positive: &[f64]) -> Option<(f64, f64)> {
        auc(negative, positive).map(|auc| super::newcombe(auc, negative.len(), positive.len()))
    }

    /// [`placements`] by comparing every two scores.
    fn compared(own: &[f64], others: &[f64], wins: impl Fn(f64, f64) -> bool) -> f64 {
        let share = |own: &f64| {
            let count =
                |other: &f64| if own == other { 0.5 } else { f64::from(u8::from(wins(*own, *other))) };
            others.iter().map(count).sum::<f64>() / others.len() as f64
        };
        let shares: Vec<f64> = own.iter().map(share).collect();
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        let squares: f64 = shares.iter().map(|share| (share - mean).powi(2)).sum();
        squares / (shares.len() - 1) as f64 / shares.len() as f64
    }

    /// [`tpr_at_fpr`] by comparing every two scores.
    fn tpr_compared(negative: &[f64], positive: &[f64], fpr: f64) -> f64 {
        let above = |scores: &[f64], threshold: f64| {
            scores.iter().filter(|score| **score >= threshold).count() as f64 / scores.len() as f64
        };
        let allowed = positive.iter().filter(|threshold| above(negative, **threshold) <= fpr);
        allowed.map(|threshold| above(positive, *threshold)).fold(0.0, f64::max)
    }

    #[test]
    fn ranks_say_what_comparing_every_two_scores_says() {
        // Few values, so that most come often and in both classes; 0 and -0 are one of them.
        let scores = |count: usize, step: usize, least: f64| -> Vec<f64> {
            (0..count).map(|i| (i * step % 23) as f64 / 16.0 + least).chain([-0.0]).collect()
        };
        let classes = [
            scores(150, 7, -0.5),
            scores(91, 5, 0.0),
            scores(40, 3, 0.25),
            scores(1, 1, 2.0),
            scores(2, 9, -3.0),
        ];
        for negative in &classes {
            for positive in &classes {
                let won = placements(positive, negative, |below, _| below);
                assert_eq!(won, compared(positive, negative, |own, other| own > other));
                let lost = placements(negative, positive, |_, above| above);
                assert_eq!(lost, compared(negative, positive, |own, other| own < other));
                for fpr in [0.0, 0.05, 0.2, 1.0] {
                    let found = tpr_at_fpr(negative, positive, fpr);
                    assert_eq!(found, Some(tpr_compared(negative, positive, fpr)), "{fpr}");
                }
            }
        }
    }

    #[test]
    fn strata_are_compared_within_themselves() {
        // Apart as a whole, since the strata are; not within any.
        let (low, high) = ([0.1, 0.2, 0.3, 0.4], [1.1, 1.2, 1.3, 1.4]);
        let (some, many) = (&low[1..3], &low[..]);
        let (lower, higher) = ([low[0], low[3], high[1]], [low[1], low[2], high[0], high[2]]);
        assert!(auc(&lower, &higher) > Some(0.5));
        let (center, (least, most)) = stratified(&[(many, some), (&high, &high[1..3])]).unwrap();
        assert_eq!(center, 0.5);
        let (one_least, one_most) = newcombe(many, some).unwrap();
        assert!(one_least < least && most < one_most && least < 0.5 && most > 0.5);
        // One stratum is the whole; what lacks a class is left out, and one score of each tells something.
        let whole = auc(many, &high).zip(newcombe(many, &high));
        assert_eq!(stratified(&[(many, &high)]), whole);
        assert_eq!(stratified(&[(many, &high), (many, &[])]), whole);
        assert_eq!(stratified(&[(&[], &high)]), None);
        assert!(stratified(&[(&low[..1], &high), (many, &high)]) > whole);
    }

    /// Of 250 rows, of which some kinds are rare: what it should hold in 95 % of draws it holds in 93 % at least.
    #[test]
    fn differences_of_pairs_lie_in_their_intervals() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for (gain, loss) in [(0.0, 0.0), (0.01, 0.0), (0.02, 0.01), (0.2, 0.1), (0.5, 0.3)] {
            let held = (0..2000).filter(|_| {
                let (mut gained, mut lost) = (0, 0);
                for _ in 0..250 {
                    let draw = rng.next_u64() as f64 / u64::MAX as f64;
                    gained += usize::from(draw < gain);
                    lost += usize::from(draw >= 1.0 - loss && loss > 0.0);
                }
                let (low, high) = paired(gained, lost, 250);
                (low..=high).contains(&(gain - loss))
            });
            let held = held.count();
            assert!(held >= 1860, "gain {gain}, loss {loss}: {held} of 2000");
        }
        let (low, high) = paired(5, 5, 20);
        assert!((low + high).abs() < 1e-12 && high > 0.25, "{low} to {high}");
    }

    #[test]
    fn newcombe_has_a_width_where_delong_has_none() {
        let (negative, positive) = ([0.1, 0.2], [0.3, 0.4]);
        assert_eq!(delong(&negative, &positive), Some((1.0, 1.0)));
        let (low, high) = newcombe(&negative, &positive).unwrap();
        assert!((0.1..0.5).contains(&low) && high == 1.0, "{low} {high}");
        let (mirrored_low, mirrored_high) = newcombe(&positive, &negative).unwrap();
        assert!(mirrored_low == 0.0 && (mirrored_high - (1.0 - low)).abs() < 1e-15, "{mirrored_high}");
        assert!(newcombe(&negative[..1], &positive[..1]).is_some());
        assert_eq!(newcombe(&[], &positive), None);
    }

    #[test]
    fn large_classes_are_no_work() {
        // Comparing every two of them would be 10^11 steps.
        let scores = |above: f64| -> Vec<f64> { (0..300_000).map(|i| f64::from(i) * 1e-6 + above).collect() };
        let (negative, positive) = (scores(0.0), scores(1.0));
        assert_eq!(delong(&negative, &positive), Some((1.0, 1.0)));
        assert_eq!(tpr_at_fpr(&negative, &positive, 0.05), Some(1.0));
        assert_eq!(bootstrap(&negative, &positive, 20, 1), Some((1.0, 1.0)));
    }
}
