//! Attention of the twin rows: weights over the tokens, then means of the normed hidden states.

use super::{
    attention::KEY_TILE,
    elementwise::{dot, softmax},
};
use crate::backend::{AttentionShape, Mat, Sequence, TwinKeys};
use pulp::Arch;
use rayon::prelude::*;

/// See [`Backend::twin_attend`](crate::backend::Backend::twin_attend).
pub fn twin_attend(
    arch: Arch,
    q: &Mat<f32>,
    keys: &TwinKeys<'_, Mat<f32>>,
    sequences: &[Sequence],
    shape: &AttentionShape,
    out: &mut Mat<f32>,
) {
    let cols = out.cols;
    let rows: Vec<_> = sequences.iter().flat_map(|s| s.twin.clone().map(move |row| (s, row))).collect();
    rows.into_par_iter().zip(out.data_mut().par_chunks_exact_mut(cols)).for_each(|((sequence, row), out)| {
        let weights = weights(arch, q.row(row), keys, sequence, row, shape);
        means(arch, &weights, keys, sequence, row, shape.num_attention_heads, out);
    });
}

/// Attention weights of one twin row over its context and over the twin rows up to itself: `[H, tokens]`.
fn weights(
    arch: Arch,
    query: &[f32],
    keys: &TwinKeys<'_, Mat<f32>>,
    sequence: &Sequence,
    row: usize,
    shape: &AttentionShape,
) -> Vec<f32> {
    let (dim, scale) = (shape.head_dim, shape.scale as f32);
    let tokens = sequence.context.len() + row + 1 - sequence.twin.start;
    let mut weights = vec![0.0; shape.num_attention_heads * tokens];
    arch.dispatch(|| {
        for (head, weights) in weights.chunks_exact_mut(tokens).enumerate() {
            let query = &query[head * dim..(head + 1) * dim];
            let shared = head / shape.group_size() * dim;
            let context = sequence.context.clone().map(|i| keys.context_keys.row(i));
            let own = (sequence.twin.start..row + 1).map(|i| keys.twin_keys.row(i));
            for (weight, key) in weights.iter_mut().zip(context.chain(own)) {
                *weight = dot(query, &key[shared..shared + dim]) * scale;
            }
            let inverse_sum = softmax(weights);
            weights.iter_mut().for_each(|weight| *weight *= inverse_sum);
        }
    });
    weights
}

/// `out[head, ·] = Σ weights[head, token] normed[token, ·]`
fn means(
    arch: Arch,
    weights: &[f32],
    keys: &TwinKeys<'_, Mat<f32>>,
    sequence: &Sequence,
    row: usize,
    heads: usize,
    out: &mut [f32],
) {
    let context = sequence.context.clone();
    let (hidden, tokens) = (keys.context_normed.cols, weights.len() / heads);
    if context.is_empty() {
        out.fill(0.0);
    }
    for tile in (0..context.len()).step_by(KEY_TILE) {
        let tile_tokens = KEY_TILE.min(context.len() - tile);
        // SAFETY: the operands are this tile's rows of the context, its columns of the weights, and `out`.
        unsafe {
            gemm::gemm(
                hidden,
                heads,
                tile_tokens,
                out.as_mut_ptr(),
                hidden as isize,
                1,
                tile > 0,
                keys.context_normed.row(context.start + tile).as_ptr(),
                hidden as isize,
                1,
                weights[tile..].as_ptr(),
                tokens as isize,
                1,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
    arch.dispatch(|| {
        for (own, twin_row) in (sequence.twin.start..row + 1).enumerate() {
            let normed = keys.twin_normed.row(twin_row);
            for (head, out) in out.chunks_exact_mut(hidden).enumerate() {
                let weight = weights[head * tokens + context.len() + own];
                out.iter_mut().zip(normed).for_each(|(to, v)| *to += weight * v);
            }
        }
    });
}
