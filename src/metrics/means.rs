//! Means, and how two quantities go together.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// The mean of values and its 95 % interval (Student's t, from the standard error). `None` of nothing; one value has no interval.
pub fn mean(values: &[f64]) -> Option<(f64, Option<(f64, f64)>)> {
    let count = values.len() as f64;
    if values.is_empty() {
        return None;
    }
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let interval = StudentsT::new(0.0, 1.0, count - 1.0).ok().map(|students_t| {
        let half = students_t.inverse_cdf(0.975) * (squares / (count - 1.0) / count).sqrt();
        (mean - half, mean + half)
    });
    Some((mean, interval))
}

/// Pearson's correlation. `None` where a quantity does not vary.
pub fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let centered = |values: &[f64]| -> Vec<f64> {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        values.iter().map(|value| value - mean).collect()
    };
    let (a, b) = (centered(a), centered(b));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = (dot(&a, &a) * dot(&b, &b)).sqrt();
    (scale > 0.0).then(|| dot(&a, &b) / scale)
}

/// Spearman's rank correlation: [`pearson`] of ranks, equal values sharing their mean rank.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    pearson(&ranks(a), &ranks(b))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut below = 0;
    for ties in order.chunk_by(|a, b| values[*a] == values[*b]) {
        ties.iter().for_each(|place| ranks[*place] = below as f64 + (ties.len() + 1) as f64 / 2.0);
        below += ties.len();
    }
    ranks
}
