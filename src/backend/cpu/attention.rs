//! Ragged causal attention of the context rows: one task for each block of query rows of one key-value head.
//!
//! Every product has the shape that its own sequence gives it, so nothing depends on the rest of the batch.

use super::vector::vectorize;
use super::{
    elementwise::{softcap, softmax},
    gemm::{Left, Right, Size, gemm},
    product::Disjoint,
};
use crate::backend::{AttentionShape, Mat, Sequence};
use pulp::Arch;
use rayon::prelude::*;
use std::{cell::RefCell, ops::Range};

/// Query rows (times heads of the group) that share a pass over the keys.
const BLOCK_QUERIES: usize = 128;

/// Keys that are summed up in one product: fixed, so that the order of summation does not depend on what follows.
pub const KEY_TILE: usize = 512;

#[derive(Default)]
struct Scratch {
    /// Scaled queries of the block, heads of a row side by side: `[queries, Dh]`.
    queries: Vec<f32>,
    /// Scores, then weights: `[queries, keys]`.
    scores: Vec<f32>,
    /// `[queries, Dh]`
    outputs: Vec<f32>,
    inverse_sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

struct Task<'a> {
    sequence: &'a Sequence,
    kv_head: usize,
    /// Positions of the block's query rows.
    positions: Range<usize>,
}

/// See [`Backend::attention`](crate::backend::Backend::attention).
pub fn attention(
    arch: Arch,
    q: &mut Mat<f32>,
    k: &Mat<f32>,
    v: &Mat<f32>,
    sequences: &[Sequence],
    shape: &AttentionShape,
) {
    let block = (BLOCK_QUERIES / shape.group_size()).clamp(16, BLOCK_QUERIES);
    let tasks: Vec<_> = sequences
        .iter()
        .flat_map(|sequence| {
            let len = sequence.context.len();
            (0..shape.num_key_value_heads).flat_map(move |kv_head| {
                (0..len).step_by(block).map(move |start| Task {
                    sequence,
                    kv_head,
                    positions: start..(start + block).min(len),
                })
            })
        })
        .collect();
    let stride = q.cols;
    let queries = Disjoint::new(q.data_mut());
    tasks.into_par_iter().for_each(|task| {
        SCRATCH
            .with_borrow_mut(|scratch| block_attention(arch, &task, queries, stride, k, v, shape, scratch));
    });
}

#[allow(clippy::too_many_arguments, reason = "one call site, all of them needed")]
fn block_attention(
    arch: Arch,
    task: &Task<'_>,
    queries: Disjoint<f32>,
    stride: usize,
    k: &Mat<f32>,
    v: &Mat<f32>,
    shape: &AttentionShape,
    scratch: &mut Scratch,
) {
    let (dim, group) = (shape.head_dim, shape.group_size());
    let Range { start: first, end } = task.positions;
    // Keys before `unseen` are outside of the window of all of the block's queries.
    let unseen = shape.first_visible(first);
    let keys = end - unseen;
    let first_row = task.sequence.context.start;
    let count = task.positions.len() * group;
    // SAFETY: the heads of this group in the rows of this block belong to this task alone.
    let head_of = |query: usize| unsafe {
        let row = first_row + first + query / group;
        let head = task.kv_head * group + query % group;
        queries.slice(row * stride + head * dim..row * stride + (head + 1) * dim)
    };

    let scale = shape.scale as f32;
    scratch.queries.clear();
    for query in 0..count {
        scratch.queries.extend(head_of(query).iter().map(|value| value * scale));
    }
    scratch.scores.resize(count * keys, 0.0);
    scratch.outputs.resize(count * dim, 0.0);
    let kv_start = (first_row + unseen) * k.cols + task.kv_head * dim;
    // scores[query, key] = queries[query, ·] · k[key, ·]
    // SAFETY: the operands are rows of this sequence's keys and buffers of the sizes just given.
    unsafe {
        let left = Left { data: &scratch.queries, stride: dim };
        let right = Right { data: &k.data()[kv_start..], inner_stride: 1, col_stride: k.cols };
        let size = Size { rows: count, cols: keys, inner: dim };
        gemm(size, left, right, scratch.scores.as_mut_ptr(), keys, false);
    }
    scratch.inverse_sums.clear();
    let inverse_sums = &mut scratch.inverse_sums;
    vectorize(
        arch,
        #[inline(always)]
        || {
            for (query, row) in scratch.scores.chunks_exact_mut(keys).enumerate() {
                let position = first + query / group;
                let (row, later) = row.split_at_mut(position + 1 - unseen);
                let (earlier, seen) = row.split_at_mut(shape.first_visible(position) - unseen);
                if let Some(cap) = shape.softcap {
                    softcap(seen, cap as f32);
                }
                inverse_sums.push(softmax(seen));
                earlier.fill(0.0);
                later.fill(0.0);
            }
        },
    );
    for tile in (0..keys).step_by(KEY_TILE) {
        let tile_keys = KEY_TILE.min(keys - tile);
        // outputs[query, ·] (+)= Σ weights[query, key] v[key, ·]
        // SAFETY: as above, for the keys of this tile.
        unsafe {
            let left = Left { data: &scratch.scores[tile..], stride: keys };
            let values = &v.data()[kv_start + tile * v.cols..];
            let right = Right { data: values, inner_stride: v.cols, col_stride: 1 };
            let size = Size { rows: count, cols: dim, inner: tile_keys };
            gemm(size, left, right, scratch.outputs.as_mut_ptr(), dim, tile > 0);
        }
    }
    for (query, output) in scratch.outputs.chunks_exact(dim).enumerate() {
        let inverse_sum = scratch.inverse_sums[query];
        head_of(query).iter_mut().zip(output).for_each(|(to, value)| *to = value * inverse_sum);
    }
}
