//! The twin rows' own attention, in f64: its result is a mean of normed hidden states.
//!
//! Twin rows whose paths begin alike go through the tiles of that beginning together. The bits of a row do not depend on
//! it: tiles begin at fixed places of the row's own path, and no product is so small that the library multiplies it in another
//! way (see [`product`](super::product)).

use super::vector::vectorize;
use super::{
    element::Element,
    elementwise::{dot, norm_factors},
    gemm::{Left, Right, Size, gemm},
    product::{MIN_COLS, MIN_ROWS},
    weight::Weight,
};
use crate::backend::{AttentionShape, Mat, Norm, Sequence};
use pulp::Arch;
use rayon::prelude::*;
use std::{cell::RefCell, ops::Range};

/// Context rows that are widened to f64 at once: they stay in the cache.
const TILE: usize = 96;
const _: () = assert!(TILE >= MIN_COLS);

/// The most twin rows that go through tiles together.
const MOST_TOGETHER: usize = 8;

/// The f64 elements that a thread has at most of context rows of `hidden_size` that it widens, and of the means of twin rows.
pub fn elements_of_tile(hidden_size: usize, num_attention_heads: usize) -> usize {
    hidden_size * (2 * TILE + MOST_TOGETHER * num_attention_heads)
}

/// The scores that it has for each key.
pub fn elements_of_twin_key(num_attention_heads: usize) -> usize {
    MOST_TOGETHER * num_attention_heads
}

/// Groups of twin rows that every thread should find.
const GROUPS_PER_THREAD: usize = 4;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Buffers that a thread keeps.
#[derive(Default)]
struct Scratch {
    /// A tile of keys or of normalized rows: `[TILE, K·Dh]` or `[TILE, D]`.
    widened: Vec<f64>,
    /// `[K, rows · group size, Dh]`
    queries: Vec<f64>,
    /// Scores of one key-value head in a tile.
    scores: Vec<f64>,
    /// Scores, then weights: `[rows · H, tokens]`.
    weights: Vec<f64>,
    /// `[rows · H, D]`
    means: Vec<f64>,
    /// What sinks leave the tokens, `[rows · H]`.
    shares: Vec<f64>,
}

/// What the rows of a pack attend to, with each matrix's element type.
pub struct Keys<'a> {
    pub context_keys: &'a Mat<f32>,
    pub key_difference: Option<&'a Mat<f32>>,
    pub normalized: &'a Mat<f32>,
    /// Of the normalized rows.
    pub norm: Option<&'a Norm<Weight<'a>>>,
    pub twin_keys: &'a Mat<f64>,
    pub twin_normed: &'a Mat<f64>,
}

/// A twin row and what it sees: context rows, twin rows.
struct TwinRow {
    row: usize,
    context: Vec<usize>,
    own: Range<usize>,
}

impl TwinRow {
    fn tokens(&self) -> usize {
        self.context.len() + self.own.len()
    }
}

/// A tile of the context rows that some of a group's rows see at the same place of their paths.
struct Tile<'a> {
    rows: Range<usize>,
    start: usize,
    context: &'a [usize],
}

/// See [`Backend::twin_attend`](crate::backend::Backend::twin_attend).
pub fn twin_attend(
    arch: Arch,
    q: &Mat<f64>,
    keys: &Keys<'_>,
    sequences: &[Sequence],
    shape: &AttentionShape,
    out: &mut Mat<f64>,
    sunk: Option<(&Weight<'_>, &mut Mat<f64>)>,
) {
    let cols = out.cols;
    let (sinks, mut shares) = sunk.unzip();
    let sinks = sinks.map(|sinks| f64::widened(&sinks.tensor));
    let factors = keys.norm.map(norm_factors::<f64>);
    let bias = keys.norm.and_then(|norm| norm.bias.as_ref()).map(|bias| f64::widened(&bias.tensor));
    let rows: Vec<_> = sequences.iter().flat_map(|s| s.twin.clone().map(move |row| (s, row))).collect();
    let groups = GROUPS_PER_THREAD * rayon::current_num_threads();
    // Fewer heads than a product has rows: each twin row's are padded for themselves.
    let most = if shape.num_attention_heads < MIN_ROWS { 1 } else { MOST_TOGETHER };
    let together = rows.len().div_ceil(groups).clamp(1, most);
    let of_group = together * shape.num_attention_heads;
    let mut shares = shares.as_mut().map(|shares| shares.data_mut().chunks_mut(of_group));
    let tasks: Vec<_> = (rows.chunks(together).zip(out.data_mut().chunks_mut(together * cols)))
        .map(|(rows, out)| (rows, out, shares.as_mut().and_then(Iterator::next)))
        .collect();
    tasks.into_par_iter().for_each(|(rows, out, shares)| {
        let row = |(sequence, row): &(&Sequence, usize)| {
            let (unseen, own) = sequence.visible_to_twin(*row, shape);
            TwinRow { row: *row, context: sequence.path_rows(unseen).collect(), own }
        };
        let rows: Vec<TwinRow> = rows.iter().map(row).collect();
        SCRATCH.with_borrow_mut(|scratch| {
            attend_together(arch, q, keys, &rows, shape, sinks.as_deref(), scratch);
            if let Some(shares) = shares {
                shares.copy_from_slice(&scratch.shares);
            }
            finish(keys, factors.as_deref(), bias.as_deref(), &rows, shape, scratch, out);
        });
    });
}

/// Weights of a group of twin rows, and their means over the context rows.
fn attend_together(
    arch: Arch,
    q: &Mat<f64>,
    keys: &Keys<'_>,
    rows: &[TwinRow],
    shape: &AttentionShape,
    sinks: Option<&[f64]>,
    scratch: &mut Scratch,
) {
    let heads = shape.num_attention_heads;
    let stride = rows.iter().map(TwinRow::tokens).max().unwrap_or(0).next_multiple_of(TILE);
    let Scratch { widened, queries, scores, weights, means, shares } = scratch;
    let products = (rows.len() * heads).max(MIN_ROWS);
    weights.clear();
    weights.resize(products * stride, 0.0);
    let mut packed = 0..0;
    let tiles = tiles(rows);
    for tile in &tiles {
        if packed != tile.rows {
            packed = tile.rows.clone();
            pack_queries(q, &rows[packed.clone()], shape, queries);
        }
        score_tile(arch, keys, tile, shape, queries, widened, scores, &mut weights[tile.start..], stride);
    }
    shares.clear();
    for (row, weights) in rows.iter().zip(weights.chunks_exact_mut(heads * stride)) {
        for (head, weights) in weights.chunks_exact_mut(stride).enumerate() {
            let query = &q.row(row.row)[head * shape.head_dim..(head + 1) * shape.head_dim];
            let (weights, unused) = weights.split_at_mut(row.tokens());
            own_scores(arch, query, keys, row, head / shape.group_size(), weights);
            shares.push(softmax(weights, shape, sinks.map(|sinks| sinks[head])));
            unused.fill(0.0);
        }
    }
    let padded = keys.normalized.cols.max(MIN_COLS);
    means.clear();
    means.resize(products * padded, 0.0);
    for tile in &tiles {
        let first = tile.rows.start * heads;
        add_tile(
            arch,
            keys.normalized,
            tile,
            heads,
            &weights[first * stride..],
            stride,
            widened,
            &mut means[first * padded..],
        );
    }
}

/// All tiles of a group of rows, those of a row in the order of its path: first the whole tiles of the beginning that all
/// have in common, then each row's own.
fn tiles(rows: &[TwinRow]) -> Vec<Tile<'_>> {
    let Some((first, others)) = rows.split_first() else { return Vec::new() };
    let alike =
        |other: &TwinRow| first.context.iter().zip(&other.context).take_while(|(a, b)| a == b).count();
    let shared = others.iter().map(alike).min().unwrap_or(0) / TILE * TILE;
    let own = rows.iter().enumerate().flat_map(|(row, of)| cut(row..row + 1, shared, &of.context[shared..]));
    cut(0..rows.len(), 0, &first.context[..shared]).chain(own).collect()
}

/// The tiles of some rows' context, whose first token is number `first` of their paths.
fn cut(rows: Range<usize>, first: usize, context: &[usize]) -> impl Iterator<Item = Tile<'_>> {
    let tile = move |(tile, context)| Tile { rows: rows.clone(), start: first + tile * TILE, context };
    context.chunks(TILE).enumerate().map(tile)
}

/// Queries by key-value head, then by row, those that share the head side by side; padded with zeros.
fn pack_queries(q: &Mat<f64>, rows: &[TwinRow], shape: &AttentionShape, queries: &mut Vec<f64>) {
    let width = shape.group_size() * shape.head_dim;
    queries.clear();
    for kv_head in 0..shape.num_key_value_heads {
        for row in rows {
            queries.extend_from_slice(&q.row(row.row)[kv_head * width..(kv_head + 1) * width]);
        }
        queries.resize((kv_head + 1) * padded_queries(rows.len(), shape) * shape.head_dim, 0.0);
    }
}

/// Queries of a key-value head.
fn padded_queries(rows: usize, shape: &AttentionShape) -> usize {
    (rows * shape.group_size()).max(MIN_ROWS)
}

/// `weights[(row, head), token] = q · k` for the tokens of a tile.
#[allow(clippy::too_many_arguments, reason = "one call site, all of them needed")]
fn score_tile(
    arch: Arch,
    keys: &Keys<'_>,
    tile: &Tile<'_>,
    shape: &AttentionShape,
    queries: &[f64],
    widened: &mut Vec<f64>,
    scores: &mut Vec<f64>,
    weights: &mut [f64],
    stride: usize,
) {
    let (dim, group, width) = (shape.head_dim, shape.group_size(), keys.context_keys.cols);
    widened.resize(TILE * width, 0.0);
    vectorize(
        arch,
        #[inline(always)]
        || {
            for (to, row) in widened.chunks_exact_mut(width).zip(tile.context) {
                to.iter_mut().zip(keys.context_keys.row(*row)).for_each(|(to, key)| *to = f64::from(*key));
                if let Some(difference) = keys.key_difference {
                    to.iter_mut().zip(difference.row(*row)).for_each(|(to, d)| *to += f64::from(*d));
                }
            }
        },
    );
    let count = padded_queries(tile.rows.len(), shape);
    scores.resize(count * TILE, 0.0);
    for kv_head in 0..shape.num_key_value_heads {
        // scores[query, token] = queries[query, ·] · keys[token, ·]; of a short tile the last columns mean nothing.
        // SAFETY: the operands are buffers of the sizes just given.
        unsafe {
            let left = Left { data: &queries[kv_head * count * dim..], stride: dim };
            let right = Right { data: &widened[kv_head * dim..], inner_stride: 1, col_stride: width };
            let size = Size { rows: count, cols: TILE, inner: dim };
            gemm(size, left, right, scores.as_mut_ptr(), TILE, false);
        }
        for (query, scores) in scores.chunks_exact(TILE).take(tile.rows.len() * group).enumerate() {
            let row = tile.rows.start + query / group;
            let head = kv_head * group + query % group;
            let at = (row * shape.num_attention_heads + head) * stride;
            weights[at..at + tile.context.len()].copy_from_slice(&scores[..tile.context.len()]);
        }
    }
}

/// Scores of the twin rows that a twin row sees: the last of its weights.
fn own_scores(
    arch: Arch,
    query: &[f64],
    keys: &Keys<'_>,
    row: &TwinRow,
    kv_head: usize,
    weights: &mut [f64],
) {
    let shared = kv_head * query.len()..(kv_head + 1) * query.len();
    vectorize(
        arch,
        #[inline(always)]
        || {
            for (weight, own) in weights[row.context.len()..].iter_mut().zip(row.own.clone()) {
                *weight = dot(query, &keys.twin_keys.row(own)[shared.clone()]);
            }
        },
    );
}

/// Softmax of `q · k`, scaled and capped; which share of it a sink would leave.
fn softmax(scores: &mut [f64], shape: &AttentionShape, sink: Option<f64>) -> f64 {
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
    sink.map_or(1.0, |sink| sum / (sum + (sink - largest * scale).exp()))
}

/// `means[(row, head), ·] += Σ weights[(row, head), token] normalized[token, ·]` for the tokens of a tile.
#[allow(clippy::too_many_arguments, reason = "one call site, all of them needed")]
fn add_tile(
    arch: Arch,
    normalized: &Mat<f32>,
    tile: &Tile<'_>,
    heads: usize,
    weights: &[f64],
    stride: usize,
    widened: &mut Vec<f64>,
    means: &mut [f64],
) {
    let padded = normalized.cols.max(MIN_COLS);
    widened.resize(TILE * padded, 0.0);
    vectorize(
        arch,
        #[inline(always)]
        || {
            for (to, row) in widened.chunks_exact_mut(padded).zip(tile.context) {
                to.iter_mut().zip(normalized.row(*row)).for_each(|(to, from)| *to = f64::from(*from));
            }
        },
    );
    // SAFETY: the operands are the tile just widened, its columns of the weights, and `means`, padded as they are.
    unsafe {
        let left = Left { data: &weights[tile.start..], stride };
        let right = Right { data: widened.as_slice(), inner_stride: padded, col_stride: 1 };
        let size =
            Size { rows: (tile.rows.len() * heads).max(MIN_ROWS), cols: padded, inner: tile.context.len() };
        gemm(size, left, right, means.as_mut_ptr(), padded, tile.start > 0);
    }
}

/// The means as they are asked for: with the norm's factors and bias, and with the twin rows.
fn finish(
    keys: &Keys<'_>,
    factors: Option<&[f64]>,
    bias: Option<&[f64]>,
    rows: &[TwinRow],
    shape: &AttentionShape,
    scratch: &Scratch,
    out: &mut [f64],
) {
    let (heads, hidden) = (shape.num_attention_heads, keys.normalized.cols);
    let stride = scratch.weights.len() / (rows.len() * heads).max(MIN_ROWS);
    let means = scratch.means.chunks_exact(hidden.max(MIN_COLS));
    let heads_of_rows = rows.iter().flat_map(|row| std::iter::repeat_n(row, heads));
    let weights = scratch.weights.chunks_exact(stride);
    for (((out, mean), weights), row) in
        out.chunks_exact_mut(hidden).zip(means).zip(weights).zip(heads_of_rows)
    {
        out.copy_from_slice(&mean[..hidden]);
        let (of_context, rest) = weights.split_at(row.context.len());
        if let Some(factors) = factors {
            out.iter_mut().zip(factors).for_each(|(mean, factor)| *mean *= factor);
        }
        if let Some(bias) = bias {
            let share: f64 = of_context.iter().sum();
            out.iter_mut().zip(bias).for_each(|(mean, bias)| *mean += share * bias);
        }
        for (weight, own) in rest.iter().zip(row.own.clone()) {
            out.iter_mut().zip(keys.twin_normed.row(own)).for_each(|(to, v)| *to += weight * v);
        }
    }
}
