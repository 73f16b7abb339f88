//! Choosing an alpha by cross-validation (experiment 5.1 of the paper).

/// What choosing alpha does to accuracy.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The alpha that each fold's other rows chose, as places in the list of alphas.
    pub alphas: Vec<usize>,
    /// Whether each row's answer was the labelled one under the alpha that the rows of the other folds chose.
    pub correct: Vec<bool>,
}

/// The share of rows whose answer was the labelled one.
pub fn accuracy(correct: &[bool]) -> f64 {
    correct.iter().filter(|correct| **correct).count() as f64 / correct.len() as f64
}

/// Which accuracy is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    Maximize,
    Minimize,
}

/// Chooses alpha for each of `folds` even folds on the rows of the others and applies it to the fold: row `i` is in fold
/// `i mod folds`. Of alphas that are equally good the one nearest to 1 is taken, of two such the smaller.
///
/// `correct[alpha][row]` says whether a row's answer was the labelled one. `None` where there are fewer rows than folds.
pub fn cross_validate(alphas: &[f64], correct: &[Vec<bool>], folds: usize, goal: Goal) -> Option<Chosen> {
    let rows = correct.first()?.len();
    if folds < 2 || rows < folds {
        return None;
    }
    let hits = |alpha: usize, is_in: &dyn Fn(usize) -> bool| {
        (0..rows).filter(|row| is_in(*row) && correct[alpha][*row]).count()
    };
    let mut order: Vec<usize> = (0..alphas.len()).collect();
    order.sort_by(|a, b| {
        let distance = |alpha: &usize| (alphas[*alpha] - 1.0).abs();
        distance(a).total_cmp(&distance(b)).then(alphas[*a].total_cmp(&alphas[*b]))
    });
    let mut chosen = Chosen { alphas: Vec::with_capacity(folds), correct: vec![false; rows] };
    for fold in 0..folds {
        let others = |alpha: usize| hits(alpha, &|row| row % folds != fold);
        // Of equals the first is taken.
        let better = |a: usize, b: usize| match goal {
            Goal::Maximize => others(b) > others(a),
            Goal::Minimize => others(b) < others(a),
        };
        let best = order.iter().copied().reduce(|a, b| if better(a, b) { b } else { a })?;
        let own = (fold..rows).step_by(folds);
        own.for_each(|row| chosen.correct[row] = correct[best][row]);
        chosen.alphas.push(best);
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_is_chosen_on_the_other_folds() {
        let alphas = [0.5, 1.0, 1.5];
        // Under 0.5 only fold 0 is right, under 1.5 all but fold 0, under 1 the rows of fold 1.
        let correct = |right: &dyn Fn(usize) -> bool| (0..10).map(right).collect::<Vec<bool>>();
        let table =
            [correct(&|row| row % 5 == 0), correct(&|row| row % 5 == 1), correct(&|row| row % 5 != 0)];
        let most = cross_validate(&alphas, &table, 5, Goal::Maximize).unwrap();
        assert_eq!((&most.alphas, accuracy(&most.correct)), (&vec![2; 5], 0.8));
        assert_eq!(most.correct, correct(&|row| row % 5 != 0));
        // Fold 0 is chosen for on rows where 0.5 is never right; fold 1 on rows where 1 is never right.
        let least = cross_validate(&alphas, &table, 5, Goal::Minimize).unwrap();
        assert_eq!((&least.alphas, accuracy(&least.correct)), (&vec![0, 1, 1, 1, 1], 0.4));
        assert_eq!(cross_validate(&alphas, &[vec![true; 4]], 5, Goal::Maximize), None);
    }

    #[test]
    fn equals_are_decided_by_the_distance_to_one() {
        let chosen =
            cross_validate(&[2.0, 0.0, 1.25, 0.75], &vec![vec![true; 5]; 4], 5, Goal::Maximize).unwrap();
        assert_eq!(chosen.alphas, [3; 5]);
    }
}
