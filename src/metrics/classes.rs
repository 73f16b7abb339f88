//! Comparing two classes of scores.

/// Area under the ROC curve: the chance that a score of `positive` is above one of `negative`, ties counting half.
/// `None` where a class is empty.
pub fn auc(negative: &[f64], positive: &[f64]) -> Option<f64> {
    if negative.is_empty() || positive.is_empty() {
        return None;
    }
    let mut all: Vec<(f64, bool)> = negative.iter().map(|score| (*score, false)).collect();
    all.extend(positive.iter().map(|score| (*score, true)));
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Mann and Whitney's count, ties sharing the mean rank.
    let (mut wins, mut below) = (0.0, 0.0);
    for ties in all.chunk_by(|a, b| a.0 == b.0) {
        let positives = ties.iter().filter(|(_, positive)| *positive).count() as f64;
        let negatives = ties.len() as f64 - positives;
        wins += positives * (below + negatives / 2.0);
        below += negatives;
    }
    Some(wins / (negative.len() * positive.len()) as f64)
}

/// The `q`-quantile of values, with linear interpolation (numpy's default). `None` of nothing.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let sorted = sorted(values);
    let position = q * (sorted.len().checked_sub(1)? as f64);
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    Some(sorted[low] + (sorted[high] - sorted[low]) * (position - low as f64))
}

pub(super) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auc_counts_ties_half() {
        assert_eq!(auc(&[0.0, 1.0], &[2.0, 3.0]), Some(1.0));
        assert_eq!(auc(&[2.0, 3.0], &[0.0, 1.0]), Some(0.0));
        assert_eq!(auc(&[1.0, 1.0], &[1.0]), Some(0.5));
        // sklearn.metrics.roc_auc_score([0, 0, 0, 1, 1, 1], [.1, .4, .35, .35, .8, .4]) == 7/9
        let value = auc(&[0.1, 0.4, 0.35], &[0.35, 0.8, 0.4]).unwrap();
        assert!((value - 7.0 / 9.0).abs() < 1e-12, "{value}");
        assert_eq!(auc(&[], &[1.0]), None);
    }

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[4.0, 1.0, 2.0, 3.0], 0.5), Some(2.5));
        assert_eq!(quantile(&[7.0], 0.9), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
