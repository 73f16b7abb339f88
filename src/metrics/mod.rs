//! The paper's numbers as pure functions of what a pass gives: TuCo, β, OutputCo (arXiv 2506.23423), and what
//! summarizes them over prompts.

mod classes;
mod folds;
mod intervals;
mod means;

pub use classes::{auc, quantile};
pub use folds::{Chosen, Goal, accuracy, cross_validate};
pub use intervals::{bootstrap, delong, newcombe, paired, stratified, tpr_at_fpr, wilson, wilson_of_several};
pub use means::{mean, pearson, spearman};

/// The L1 norms of the running sums of a row after a layer: of twin rows those of sums in f64, of traces and completions in f32.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RunningL1 {
    pub ptc: f64,
    pub ftc: f64,
}

impl RunningL1 {
    /// # Errors
    /// A sentence where a norm is not finite.
    pub fn check_finite(self) -> Result<(), String> {
        let Self { ptc, ftc } = self;
        if ptc.is_finite() && ftc.is_finite() {
            return Ok(());
        }
        Err(format!(
            "the hidden state overflowed: |P| is {ptc}, |F| is {ftc}; the weights are finite but too large"
        ))
    }
}

/// The same of a layer's parts and of the whole of it: sums over the layers so far of what attention and what the MLP
/// contributed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PartsL1 {
    pub attention: RunningL1,
    pub mlp: RunningL1,
    pub whole: RunningL1,
}

/// `a / (a + b)`, and 0 where both are 0 (two equal models that do nothing).
fn share(a: f64, b: f64) -> f64 {
    if a == 0.0 { 0.0 } else { a / (a + b) }
}

/// Tuning Contribution: `‖F_L‖₁ / (‖P_L‖₁ + ‖F_L‖₁)` of the last token (Definition 4.4 there).
pub fn tuco(last: RunningL1) -> f64 {
    share(last.ftc, last.ptc)
}

/// β after each layer: [`tuco`] of the sums so far.
pub fn beta_per_layer(running: &[RunningL1]) -> Vec<f64> {
    running.iter().map(|l1| tuco(*l1)).collect()
}

/// β: the largest of [`beta_per_layer`].
pub fn beta(running: &[RunningL1]) -> f64 {
    running.iter().map(|l1| tuco(*l1)).fold(0.0, f64::max)
}

/// OutputCo: `‖x_ft − x_pt‖₁ / (‖x_pt‖₁ + ‖x_ft − x_pt‖₁)` of two final hidden states.
pub fn output_co(pt: &[f64], ft: &[f64]) -> f64 {
    let difference = pt.iter().zip(ft).map(|(pt, ft)| (ft - pt).abs()).sum();
    share(difference, pt.iter().map(|v| v.abs()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_models_that_do_nothing_have_no_contribution() {
        assert_eq!(tuco(RunningL1 { ptc: 0.0, ftc: 0.0 }), 0.0);
        assert_eq!(output_co(&[0.0], &[0.0]), 0.0);
    }

    #[test]
    fn nan_is_not_hidden() {
        assert!(tuco(RunningL1 { ptc: 1.0, ftc: f64::NAN }).is_nan());
    }
}
