//! A histogram for the terminal.

/// Rows of text: one per bin, bars of each class side by side, on a common scale.
///
/// `classes` are names and values; bins span all values.
pub fn histogram(classes: &[(&str, &[f64])], bins: usize, width: usize) -> String {
    let all = || classes.iter().flat_map(|(_, values)| values.iter().copied());
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    if !low.is_finite() || !high.is_finite() {
        return String::new();
    }
    let step = ((high - low) / bins as f64).max(f64::MIN_POSITIVE);
    let bin_of = |value: &f64| (((value - low) / step) as usize).min(bins - 1);
    let count_in = |bin: usize, values: &[f64]| values.iter().filter(|value| bin_of(value) == bin).count();
    let most = (0..bins).flat_map(|bin| classes.iter().map(move |(_, values)| (bin, values)));
    let most = most.map(|(bin, values)| count_in(bin, values)).max().unwrap_or(1).max(1);
    let bar = |count: usize| "█".repeat((count * width).div_ceil(most));
    let name_width = classes.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for bin in 0..bins {
        for (class, (name, values)) in classes.iter().enumerate() {
            let count = count_in(bin, values);
            let edge = match class {
                0 => format!("{:.4}", low + step * bin as f64),
                _ => String::new(),
            };
            let number = if count > 0 { format!(" {count}") } else { String::new() };
            text += &format!("{edge:>8} {name:>name_width$} │{}{number}\n", bar(count));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bin() {
        let text = histogram(&[("a", &[0.0, 0.1, 1.0]), ("b", &[0.5])], 2, 4);
        assert_eq!(text, "  0.0000 a │████ 2\n         b │\n  0.5000 a │██ 1\n         b │██ 1\n");
        assert_eq!(histogram(&[("a", &[])], 2, 4), "");
        assert!(histogram(&[("a", &[2.0, 2.0])], 3, 4).contains(" 2\n"));
    }
}
