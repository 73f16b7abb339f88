//! MLPs, and mixtures of experts in the place of one: each row goes through the few that its router likes best.

use super::workspace::{ExpertSpace, SharedSpace};
use crate::{
    backend::{Backend, Linear},
    model::{Activation, ExpertsSpec},
};

/// The router and the experts of a layer of one model.
pub struct Experts<'w, B: Backend> {
    pub router: Linear<B::Weight<'w>>,
    pub experts: Vec<Expert<'w, B>>,
    pub shared: Option<Shared<'w, B>>,
    pub spec: ExpertsSpec,
}

/// An expert that every row goes through.
pub struct Shared<'w, B: Backend> {
    pub expert: Expert<'w, B>,
    /// Whose sigmoid is how much of its output a row gets.
    pub share: Linear<B::Weight<'w>>,
}

/// An MLP; without a gate a plain one.
pub struct Expert<'w, B: Backend> {
    pub gate: Option<Linear<B::Weight<'w>>>,
    pub up: Linear<B::Weight<'w>>,
    pub down: Linear<B::Weight<'w>>,
}

impl<B: Backend> Expert<'_, B> {
    /// The MLP's inside, before its last product.
    pub fn fill_hidden(&self, backend: &B, normed: &B::Mat, activation: Activation, hidden: &mut B::Mat) {
        match &self.gate {
            Some(gate) => backend.gated(normed, gate, &self.up, activation, hidden),
            None => backend.activated(normed, &self.up, activation, hidden),
        }
    }
}

/// The rows that go through one expert, and how much of its output each gets.
#[derive(Debug, Clone, Default, PartialEq)]
struct Route {
    rows: Vec<usize>,
    shares: Vec<f64>,
}

impl<B: Backend> Experts<'_, B> {
    /// `x += Σ share · expert(normed)` for all `rows` rows, over the experts of each, in their order, the shared one last.
    pub fn add(
        &self,
        backend: &B,
        activation: Activation,
        normed: &B::Mat,
        rows: usize,
        space: &mut ExpertSpace<B::Mat>,
        x: &mut B::Mat,
    ) {
        let ExpertSpace { logits, chosen, hidden, output, shared } = space;
        backend.resize(logits, rows);
        backend.linear(normed, &self.router, logits);
        let routes = routes(&backend.read(logits), &self.spec);
        for (expert, route) in self.experts.iter().zip(routes) {
            if route.rows.is_empty() {
                continue;
            }
            for mat in [&mut *chosen, &mut *hidden, &mut *output] {
                backend.resize(mat, route.rows.len());
            }
            backend.gather(normed, &route.rows, chosen);
            expert.fill_hidden(backend, chosen, activation, hidden);
            backend.linear(hidden, &expert.down, output);
            backend.scatter_add(output, &route.rows, &route.shares, x);
        }
        if let (Some(Shared { expert, share }), Some(space)) = (&self.shared, shared) {
            let SharedSpace { shares, hidden } = space;
            for mat in [&mut *shares, &mut *hidden, &mut *output] {
                backend.resize(mat, rows);
            }
            expert.fill_hidden(backend, normed, activation, hidden);
            backend.linear(hidden, &expert.down, output);
            backend.linear(normed, share, shares);
            let shares: Vec<f64> = backend.read(shares).iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
            backend.scatter_add(output, &(0..rows).collect::<Vec<_>>(), &shares, x);
        }
    }
}

/// The route of each expert, from the router's logits `[rows, experts]`.
fn routes(logits: &[f64], spec: &ExpertsSpec) -> Vec<Route> {
    let mut routes = vec![Route::default(); spec.count];
    for (row, logits) in logits.chunks_exact(spec.count).enumerate() {
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exps: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
        let mut best: Vec<usize> = (0..spec.count).collect();
        best.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        best.truncate(spec.per_token);
        let sum: f64 =
            if spec.normalize { best.iter().map(|expert| exps[*expert]).sum() } else { exps.iter().sum() };
        for expert in best {
            routes[expert].rows.push(row);
            routes[expert].shares.push(exps[expert] / sum);
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_to_their_best_experts() {
        let spec = |normalize| ExpertsSpec {
            count: 3,
            per_token: 2,
            normalize,
            intermediate_size: 1,
            shared_intermediate_size: None,
        };
        let logits = [0.0, 2.0f64.ln(), 3.0f64.ln(), 5.0f64.ln(), 5.0f64.ln(), 5.0f64.ln()];
        let shares = |normalize| {
            let found = routes(&logits, &spec(normalize)).into_iter().map(|route| (route.rows, route.shares));
            found.map(|(rows, shares)| (rows, shares.iter().map(|s| (s * 60.0).round()).collect())).collect()
        };
        // Equal logits: the first experts.
        let normalized: Vec<(Vec<usize>, Vec<f64>)> = shares(true);
        assert_eq!(
            normalized,
            [(vec![1], vec![30.0]), (vec![0, 1], vec![24.0, 30.0]), (vec![0], vec![36.0])]
        );
        let plain: Vec<(Vec<usize>, Vec<f64>)> = shares(false);
        assert_eq!(plain, [(vec![1], vec![20.0]), (vec![0, 1], vec![20.0, 20.0]), (vec![0], vec![30.0])]);
    }
}
