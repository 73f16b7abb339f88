//! Ragged causal attention of context rows: one task for each block of query rows of one key-value head.
//!
//! The bits of a row depend on its own query and on the keys and values of its path, not on how the path is cut or on
//! which of its tokens are queried together: products have a fixed inner dimension, and none is so small that the
//! library multiplies it in another way (see [`product`](super::product)).

use super::vector::vectorize;
use super::{
    element::Element,
    elementwise::softmax,
    gemm::{Left, Right, Size, gemm},
    product::{Disjoint, MIN_COLS, MIN_ROWS},
    weight::Weight,
};
use crate::backend::{AttentionShape, Mat, Rows, Sequence};
use pulp::Arch;
use rayon::prelude::*;
use std::ops::Range;

/// Query rows (times heads of the group) that share a pass over the keys.
const BLOCK_QUERIES: usize = 128;

/// Keys that are summed up in one product, from positions that are multiples of it.
const KEY_TILE: usize = 64;

/// Buffers that a thread keeps between blocks.
#[derive(Default)]
pub struct Scratch<T> {
    /// Scaled queries of the block, heads of a row side by side: `[queries, Dh]`.
    queries: Vec<T>,
    /// Keys and values of the path, `[keys, Dh]`.
    keys: Vec<T>,
    values: Vec<T>,
    /// Scores, then weights: `[queries, keys]`.
    scores: Vec<T>,
    /// `[queries, Dh]`
    outputs: Vec<T>,
    inverse_sums: Vec<T>,
}

struct QueryBlock<'a> {
    sequence: &'a Sequence,
    kv_head: usize,
    /// The block's query rows, and the position of the first of them.
    rows: Range<usize>,
    position: usize,
}

/// Query rows of a block, each with all heads of its group.
fn block_rows(group_size: usize) -> usize {
    (BLOCK_QUERIES / group_size).clamp(16, BLOCK_QUERIES)
}

/// Elements that a thread keeps for each key of a path: the key, its value and its score for all queries of a block.
pub fn elements_of_key(head_dim: usize, group_size: usize) -> usize {
    head_dim + head_dim.max(MIN_COLS) + group_size * block_rows(group_size)
}

/// See [`Backend::attention`](crate::backend::Backend::attention).
pub fn attention<T: Element>(
    arch: Arch,
    q: &mut Mat<T>,
    k: &Mat<T>,
    v: &Mat<T>,
    sequences: &[Sequence],
    shape: &AttentionShape,
    sinks: Option<&Weight<'_>>,
) {
    let sinks = sinks.map(|sinks| T::widened(&sinks.tensor));
    let block = block_rows(shape.group_size());
    let tasks: Vec<_> = sequences
        .iter()
        .flat_map(|sequence| {
            let (own, first) = Rows::Context.of(sequence);
            (0..shape.num_key_value_heads).flat_map(move |kv_head| {
                let Range { start, end } = own;
                (start..end).step_by(block).map(move |row| QueryBlock {
                    sequence,
                    kv_head,
                    rows: row..(row + block).min(end),
                    position: first + row - start,
                })
            })
        })
        .collect();
    let stride = q.cols;
    let queries = Disjoint::new(q.data_mut());
    tasks.into_par_iter().for_each(|task| {
        T::with_scratch(|scratch| {
            let sinks = sinks.as_deref();
            block_attention(arch, &task, queries, stride, k, v, shape, sinks, &mut scratch.attention);
        });
    });
}

#[allow(clippy::too_many_arguments, reason = "one call site, all of them needed")]
fn block_attention<T: Element>(
    arch: Arch,
    task: &QueryBlock<'_>,
    queries: Disjoint<T>,
    stride: usize,
    k: &Mat<T>,
    v: &Mat<T>,
    shape: &AttentionShape,
    sinks: Option<&[T]>,
    scratch: &mut Scratch<T>,
) {
    let (dim, group) = (shape.head_dim, shape.group_size());
    let count = task.rows.len() * group;
    // Keys before `unseen` are outside of the window of all of the block's queries.
    let unseen = shape.first_visible(task.position) / KEY_TILE * KEY_TILE;
    let keys = task.position + task.rows.len() - unseen;
    // Shapes that the library multiplies as it does large ones; what is added are zeros.
    let padded_rows = count.max(MIN_ROWS);
    let padded_keys = keys.next_multiple_of(KEY_TILE).max(MIN_COLS.next_multiple_of(KEY_TILE));
    let padded_dim = dim.max(MIN_COLS);
    // SAFETY: the heads of this group in the rows of this block belong to this task alone.
    let head_of = |query: usize| unsafe {
        let row = task.rows.start + query / group;
        let head = task.kv_head * group + query % group;
        queries.slice(row * stride + head * dim..row * stride + (head + 1) * dim)
    };

    let (scale, zero) = (T::of(shape.scale), T::default());
    scratch.queries.clear();
    for query in 0..count {
        scratch.queries.extend(head_of(query).iter().map(|value| *value * scale));
    }
    scratch.queries.resize(padded_rows * dim, zero);
    let shared = task.kv_head * dim..(task.kv_head + 1) * dim;
    scratch.keys.clear();
    scratch.values.clear();
    for row in task.sequence.path_rows(unseen).take(keys) {
        scratch.keys.extend_from_slice(&k.row(row)[shared.clone()]);
        scratch.values.extend_from_slice(&v.row(row)[shared.clone()]);
        scratch.values.resize(scratch.values.len() + padded_dim - dim, zero);
    }
    scratch.keys.resize(padded_keys * dim, zero);
    scratch.values.resize(padded_keys * padded_dim, zero);
    scratch.scores.resize(padded_rows * padded_keys, zero);
    scratch.outputs.resize(padded_rows * padded_dim, zero);
    // scores[query, key] = queries[query, ·] · keys[key, ·]
    // SAFETY: the operands are buffers of the sizes just given.
    unsafe {
        let left = Left { data: &scratch.queries, stride: dim };
        let right = Right { data: &scratch.keys, inner_stride: 1, col_stride: dim };
        let size = Size { rows: padded_rows, cols: padded_keys, inner: dim };
        gemm(size, left, right, scratch.scores.as_mut_ptr(), padded_keys, false);
    }
    scratch.inverse_sums.clear();
    let inverse_sums = &mut scratch.inverse_sums;
    vectorize(
        arch,
        #[inline(always)]
        || {
            for (query, row) in scratch.scores.chunks_exact_mut(padded_keys).take(count).enumerate() {
                let position = task.position + query / group;
                let (row, later) = row.split_at_mut(position + 1 - unseen);
                let (earlier, seen) = row.split_at_mut(shape.first_visible(position) - unseen);
                if let Some(cap) = shape.softcap {
                    T::softcap(seen, cap);
                }
                let sink = sinks.map(|sinks| sinks[task.kv_head * group + query % group]);
                inverse_sums.push(softmax(seen, sink));
                earlier.fill(zero);
                later.fill(zero);
            }
        },
    );
    for tile in (0..keys).step_by(KEY_TILE) {
        // outputs[query, ·] (+)= Σ weights[query, key] values[key, ·]
        // SAFETY: as above, for the keys of this tile.
        unsafe {
            let left = Left { data: &scratch.scores[tile..], stride: padded_keys };
            let values = &scratch.values[tile * padded_dim..];
            let right = Right { data: values, inner_stride: padded_dim, col_stride: 1 };
            let size = Size { rows: padded_rows, cols: padded_dim, inner: KEY_TILE };
            gemm(size, left, right, scratch.outputs.as_mut_ptr(), padded_dim, tile > 0);
        }
    }
    for (query, output) in scratch.outputs.chunks_exact(padded_dim).take(count).enumerate() {
        let inverse_sum = scratch.inverse_sums[query];
        head_of(query).iter_mut().zip(output).for_each(|(to, value)| *to = *value * inverse_sum);
    }
}
