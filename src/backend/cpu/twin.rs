//! The twin rows' own operations, in f64: their attention, whose result is a mean of normed hidden states, and their
//! contributions.

use super::vector::vectorize;
use super::{
    element::Element,
    elementwise::{dot, norm_factors},
    gemm::{Left, Right, Size, gemm},
    weight::Weight,
};
use crate::{
    backend::{AttentionShape, Mat, Norm, Sequence},
    metrics::RunningL1,
};
use pulp::Arch;
use rayon::prelude::*;
use std::{cell::RefCell, ops::Range};

/// Context rows that are widened to f64 at once: they stay in the cache. Fixed, so that the order of summation is.
const TILE: usize = 64;

thread_local! {
    static WIDENED: RefCell<Vec<f64>> = RefCell::default();
}

/// What the rows of a pack attend to, with each matrix's element type.
pub struct Keys<'a> {
    pub context_keys: &'a Mat<f32>,
    pub key_difference: Option<&'a Mat<f32>>,
    pub normalized: &'a Mat<f32>,
    pub twin_keys: &'a Mat<f64>,
    pub twin_normed: &'a Mat<f64>,
}

/// See [`Backend::twin_attend`](crate::backend::Backend::twin_attend).
pub fn twin_attend(
    arch: Arch,
    q: &Mat<f64>,
    keys: &Keys<'_>,
    norm: Option<&Norm<Weight<'_>>>,
    sequences: &[Sequence],
    shape: &AttentionShape,
    out: &mut Mat<f64>,
) {
    let cols = out.cols;
    let factors = norm.map(norm_factors::<f64>);
    let bias = norm.and_then(|norm| norm.bias.as_ref()).map(|bias| f64::widened(&bias.tensor));
    let rows: Vec<_> = sequences.iter().flat_map(|s| s.twin.clone().map(move |row| (s, row))).collect();
    rows.into_par_iter().zip(out.data_mut().par_chunks_exact_mut(cols)).for_each(|((sequence, row), out)| {
        let (unseen, own) = sequence.visible_to_twin(row, shape);
        let context: Vec<usize> = sequence.path_rows(unseen).collect();
        let weights = weights(arch, q.row(row), keys, &context, &own, shape);
        context_means(arch, &weights, keys.normalized, &context, shape.num_attention_heads, out);
        if let Some(factors) = &factors {
            for head in out.chunks_exact_mut(factors.len()) {
                head.iter_mut().zip(factors).for_each(|(mean, factor)| *mean *= factor);
            }
        }
        if let Some(bias) = &bias {
            let tokens = context.len() + own.len();
            for (head, weights) in out.chunks_exact_mut(bias.len()).zip(weights.chunks_exact(tokens)) {
                let share: f64 = weights[..context.len()].iter().sum();
                head.iter_mut().zip(bias).for_each(|(mean, bias)| *mean += share * bias);
            }
        }
        add_twin_rows(&weights, keys.twin_normed, context.len(), own, shape.num_attention_heads, out);
    });
}

/// Attention weights of one twin row over the context rows and twin rows that it sees: `[H, tokens]`.
fn weights(
    arch: Arch,
    query: &[f64],
    keys: &Keys<'_>,
    context_rows: &[usize],
    own_rows: &Range<usize>,
    shape: &AttentionShape,
) -> Vec<f64> {
    let dim = shape.head_dim;
    let tokens = context_rows.len() + own_rows.len();
    let mut weights = vec![0.0; shape.num_attention_heads * tokens];
    vectorize(
        arch,
        #[inline(always)]
        || {
            for (head, weights) in weights.chunks_exact_mut(tokens).enumerate() {
                let query = &query[head * dim..(head + 1) * dim];
                let shared = head / shape.group_size() * dim..head / shape.group_size() * dim + dim;
                let (context, own) = weights.split_at_mut(context_rows.len());
                for (weight, row) in context.iter_mut().zip(context_rows) {
                    *weight = dot(query, &keys.context_keys.row(*row)[shared.clone()]);
                }
                if let Some(difference) = keys.key_difference {
                    for (weight, row) in context.iter_mut().zip(context_rows) {
                        *weight += dot(query, &difference.row(*row)[shared.clone()]);
                    }
                }
                for (weight, row) in own.iter_mut().zip(own_rows.clone()) {
                    *weight = dot(query, &keys.twin_keys.row(row)[shared.clone()]);
                }
                softmax(weights, shape);
            }
        },
    );
    weights
}

/// Softmax of `q · k`, scaled and capped.
fn softmax(scores: &mut [f64], shape: &AttentionShape) {
    let mut scale = shape.scale;
    if let Some(cap) = shape.softcap {
        scores.iter_mut().for_each(|score| *score = cap * (*score * scale / cap).tanh());
        scale = 1.0;
    }
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = ((*score - largest) * scale).exp();
        sum += *score;
    }
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// `out[head, ·] = Σ weights[head, token] normalized[token, ·]` over the context rows.
fn context_means(
    arch: Arch,
    weights: &[f64],
    normalized: &Mat<f32>,
    context: &[usize],
    heads: usize,
    out: &mut [f64],
) {
    let (hidden, tokens) = (normalized.cols, weights.len() / heads);
    if context.is_empty() {
        out.fill(0.0);
    }
    WIDENED.with_borrow_mut(|widened| {
        widened.resize(TILE * hidden, 0.0);
        for (tile, rows) in context.chunks(TILE).enumerate() {
            vectorize(
                arch,
                #[inline(always)]
                || {
                    for (to, row) in widened.chunks_exact_mut(hidden).zip(rows) {
                        to.iter_mut().zip(normalized.row(*row)).for_each(|(to, from)| *to = f64::from(*from));
                    }
                },
            );
            // SAFETY: the operands are the tile just widened, its columns of the weights, and `out`.
            unsafe {
                let left = Left { data: &weights[tile * TILE..], stride: tokens };
                let right = Right { data: widened.as_slice(), inner_stride: hidden, col_stride: 1 };
                let size = Size { rows: heads, cols: hidden, inner: rows.len() };
                gemm(size, left, right, out.as_mut_ptr(), hidden, tile > 0);
            }
        }
    });
}

/// Adds the twin rows' part of the means, whose weights stand behind those of the context rows.
fn add_twin_rows(
    weights: &[f64],
    twin_normed: &Mat<f64>,
    context_rows: usize,
    own_rows: Range<usize>,
    heads: usize,
    out: &mut [f64],
) {
    let (hidden, tokens) = (twin_normed.cols, weights.len() / heads);
    for (own, twin_row) in own_rows.enumerate() {
        for (head, out) in out.chunks_exact_mut(hidden).enumerate() {
            let weight = weights[head * tokens + context_rows + own];
            out.iter_mut().zip(twin_normed.row(twin_row)).for_each(|(to, v)| *to += weight * v);
        }
    }
}

/// The running sums P and F of the twin rows.
#[derive(Debug)]
pub struct Sums {
    p: Mat<f64>,
    f: Mat<f64>,
    /// Of every row, after each layer.
    pub norms: Vec<Vec<RunningL1>>,
}

impl Sums {
    pub fn new(rows: usize, cols: usize) -> Self {
        Self { p: Mat::zeros(rows, cols), f: Mat::zeros(rows, cols), norms: Vec::new() }
    }

    /// See [`Backend::contribution`](crate::backend::Backend::contribution).
    pub fn contribution(&mut self, f_pt: Option<&Mat<f64>>, f_ft: &Mat<f64>, x: &mut Mat<f64>) {
        let cols = x.cols;
        let sums =
            self.p.data_mut().par_chunks_exact_mut(cols).zip(self.f.data_mut().par_chunks_exact_mut(cols));
        let norms = sums
            .zip(x.data_mut().par_chunks_exact_mut(cols))
            .enumerate()
            .map(|(row, ((p, f), x))| {
                let tuned = f_ft.row(row);
                let base = f_pt.map_or(tuned, |f_pt| f_pt.row(row));
                let mut l1 = RunningL1::default();
                for col in 0..cols {
                    p[col] += base[col];
                    f[col] += tuned[col] - base[col];
                    x[col] += tuned[col];
                    l1.ptc += p[col].abs();
                    l1.ftc += f[col].abs();
                }
                l1
            })
            .collect();
        self.norms.push(norms);
    }
}
