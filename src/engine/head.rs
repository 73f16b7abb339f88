//! From the last hidden states to logits: the tuned model's final norm and unembedding.

use super::layer::Meeting;
use crate::{
    backend::{Backend, Linear, Norm, Role, Rows},
    model::{self, PairWeights},
    tensor::{Dtype, Tensor},
};

/// Logits that callers with many rows have in memory at once.
pub const LOGITS_AT_ONCE: usize = 16 << 20;

/// Which logits are asked for.
#[derive(Debug, Clone, Copy)]
pub enum Tokens<'a> {
    /// Those of the whole vocabulary.
    All,
    /// Those of these tokens, in this order.
    Of(&'a [u32]),
}

/// Final norm and unembedding.
pub struct Head<'w, B: Backend> {
    norm: Norm<B::Weight<'w>>,
    unembedding: Linear<B::Weight<'w>>,
    table: Tensor<'w>,
    /// Of each token's logit, where the model has some.
    bias: Vec<f64>,
    norm_weight: Tensor<'w>,
    weights: &'w dyn PairWeights,
}

impl<'w, B: Backend> Head<'w, B> {
    pub fn load(backend: &B, weights: &'w dyn PairWeights, head: model::Head<'w>, meeting: Meeting) -> Self {
        let spec = weights.spec().ft;
        let widened = |bias: Tensor<'_>| {
            let mut wide = vec![0.0; bias.cols];
            bias.widen_run_f64(0, 0..bias.cols, &mut wide);
            wide
        };
        Self {
            bias: head.bias.map_or(Vec::new(), widened),
            norm: Norm::of(spec, backend.weight(head.norm), head.norm_bias.map(|bias| backend.weight(bias))),
            unembedding: Linear { weight: meeting.weight(backend, head.unembedding), bias: None },
            table: head.unembedding,
            norm_weight: head.norm,
            weights,
        }
    }

    /// The logits of hidden states `x[rows, D]`, in f64, a list for each row. Few tokens are taken one by one: the
    /// unembedding is by far the largest weight.
    pub fn logits(&self, backend: &B, x: &B::Mat, rows: usize, tokens: Tokens<'_>) -> Vec<Vec<f64>> {
        let spec = self.weights.spec().ft;
        let mut normed = backend.zeros(Rows::Context, Role::Operand, rows, spec.hidden_size);
        backend.norm(x, &self.norm, None, &mut normed);
        let products: Vec<Vec<f64>> = match tokens {
            Tokens::All => {
                let mut logits = backend.zeros(Rows::Context, Role::Stream, rows, self.table.rows);
                backend.linear(&normed, &self.unembedding, &mut logits);
                backend.read(&logits).chunks_exact(self.table.rows).map(<[f64]>::to_vec).collect()
            }
            Tokens::Of(tokens) => {
                let mut directions = vec![0.0; tokens.len() * self.table.cols];
                for (token, out) in tokens.iter().zip(directions.chunks_exact_mut(self.table.cols)) {
                    self.table.widen_run_f64(*token as usize, 0..self.table.cols, out);
                }
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
                let hidden = backend.read(&normed);
                let of_row = |row: &[f64]| {
                    directions.chunks_exact(row.len()).map(|direction| dot(row, direction)).collect()
                };
                hidden.chunks_exact(spec.hidden_size).map(of_row).collect()
            }
        };
        self.weights.let_go(&self.table);
        let bias = |index: usize| {
            let token = match tokens {
                Tokens::All => index,
                Tokens::Of(tokens) => tokens[index] as usize,
            };
            self.bias.get(token).copied().unwrap_or(0.0)
        };
        let finish = |(index, product): (usize, f64)| {
            let scaled = (product + bias(index)) / spec.logits_scaling;
            spec.final_logit_softcapping.map_or(scaled, |cap| cap * (scaled / cap).tanh())
        };
        products.into_iter().map(|row| row.into_iter().enumerate().map(finish).collect()).collect()
    }

    /// The products of the unembedding with parts of a hidden state, normed with the scale that the whole state has: a list
    /// over the vocabulary for each part.
    pub fn logits_of_parts<const N: usize>(
        &self,
        backend: &B,
        hidden: &[f64],
        parts: [&[f64]; N],
    ) -> [Vec<f64>; N] {
        let mean = |part: &[f64]| {
            if self.norm.centered { part.iter().sum::<f64>() / part.len() as f64 } else { 0.0 }
        };
        let center = mean(hidden);
        let variance = hidden.iter().map(|v| (v - center).powi(2)).sum::<f64>() / hidden.len() as f64;
        let scale = 1.0 / (variance + self.norm.eps).sqrt();
        let mut factors = vec![0.0; hidden.len()];
        self.norm_weight.widen_run_f64(0, 0..hidden.len(), &mut factors);
        let mut bytes = Vec::with_capacity(N * hidden.len() * 4);
        for part in parts {
            let center = mean(part);
            for (v, factor) in part.iter().zip(&factors) {
                bytes.extend((((v - center) * scale * (factor + self.norm.offset)) as f32).to_le_bytes());
            }
        }
        let rows: Vec<u32> = (0..N as u32).collect();
        let table = backend.table(Tensor::stored(Dtype::F32, N, hidden.len(), &bytes));
        let mat = |role| backend.zeros(Rows::Context, role, N, hidden.len());
        let (mut stream, mut normed) = (mat(Role::Stream), mat(Role::Operand));
        backend.embed(&rows, &table, &mut stream);
        backend.copy(&stream, &mut normed);
        let mut logits = backend.zeros(Rows::Context, Role::Stream, N, self.table.rows);
        backend.linear(&normed, &self.unembedding, &mut logits);
        let logits = backend.read(&logits);
        self.weights.let_go(&self.table);
        std::array::from_fn(|part| logits[part * self.table.rows..(part + 1) * self.table.rows].to_vec())
    }
}
