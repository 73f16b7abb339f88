//! Matrix products with a weight of the checkpoint: widened weights are multiplied by the `gemm` crate, blocks of the
//! result are shared over the threads.
//!
//! Batch invariance: `gemm` takes other code paths for small products (dot products for up to 256 results, other
//! blocking of the inner dimension up to 64 × 64, matrix-vector products). [`multiply`] never gives it one of those:
//! it pads to [`MIN_ROWS`] rows and [`MIN_COLS`] columns, from where the blocking depends on the inner dimension alone.

use super::vector::vectorize;
use super::{
    element::{Element, Scratch},
    elementwise::{activate_gate, norm_factors},
    gemm::{Left, Right, Size, gemm},
    weight::{Panels, RUN, Weight},
};
use crate::{
    backend::{AttentionShape, Linear, Mat, Norm},
    model::Activation,
    tensor::Tensor,
    twin::Twin,
};
use pulp::Arch;
use rayon::prelude::*;
use std::ops::Range;

/// Columns of a panel of the result (the last one has half as many to one and a half times as many).
const PANEL_COLS: usize = 192;

/// Blocks that every thread should find, so that none waits long for the others at the end.
const BLOCKS_PER_THREAD: usize = 4;

/// Smallest product that `gemm` multiplies as it does large ones.
pub const MIN_ROWS: usize = 4;
pub const MIN_COLS: usize = 80;

/// What happens to what the result held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Replace,
    Add,
}

/// A pointer that threads may write disjoint parts through.
pub struct Disjoint<T>(*mut T);

// SAFETY: users of a `Disjoint` write to parts of the buffer that no other task reads or writes.
unsafe impl<T: Send> Send for Disjoint<T> {}
unsafe impl<T: Send> Sync for Disjoint<T> {}

impl<T> Clone for Disjoint<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Disjoint<T> {}

impl<T> Disjoint<T> {
    pub fn new(data: &mut [T]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// The elements `range`.
    ///
    /// # Safety
    /// `range` lies inside the buffer, and no other task touches it while the slice lives.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's duty")]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// The f64 elements that a thread has at most of a weight's panel of `inner` columns that it widens, and of what comes of it.
pub fn elements_of_panel(inner: usize) -> usize {
    // The last panel takes the rest of the columns.
    PANEL_COLS * 3 / 2 * (inner + f64::BLOCK_ROWS)
}

/// Cuts `cols` columns into panels of about [`PANEL_COLS`]; none is narrower than [`MIN_COLS`] unless it is the only one.
pub fn panels(cols: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let count = ((cols + PANEL_COLS / 2) / PANEL_COLS).max(1);
    (0..count).map(move |panel| {
        let end = if panel + 1 == count { cols } else { (panel + 1) * PANEL_COLS };
        panel * PANEL_COLS..end
    })
}

/// Splits `total` into parts of about equal length of at most `most`.
fn parts(total: usize, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let len = total.div_ceil(total.div_ceil(most).max(1)).max(1);
    (0..total).step_by(len).map(move |start| start..(start + len).min(total))
}

/// The blocks of a `[rows, cols]` result: all panels of some rows, then those of the next ones, so that the rows stay
/// in the cache. Where that makes too few for the threads, panels are halved.
fn blocks<T: Element>(rows: usize, cols: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let chunks = parts(rows, T::BLOCK_ROWS);
    let enough =
        chunks.clone().count() * panels(cols).count() >= BLOCKS_PER_THREAD * rayon::current_num_threads();
    let halved = |panel: Range<usize>| {
        let middle = panel.start + panel.len() / 2;
        let middle = if enough || panel.len() < 2 * MIN_COLS { panel.end } else { middle };
        [panel.start..middle, middle..panel.end].into_iter().filter(|part| !part.is_empty())
    };
    chunks.flat_map(|rows| panels(cols).flat_map(halved).map(move |cols| (rows.clone(), cols))).collect()
}

fn grown<T: Element>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

/// Widens the rows `cols` of a weight (columns of the result), padded with zero rows to [`MIN_COLS`].
pub fn widen_part<'s, T: Element>(
    arch: Arch,
    weight: &Tensor<'_>,
    cols: Range<usize>,
    scratch: &'s mut Vec<T>,
) -> Right<'s, T> {
    let (inner, used) = (weight.cols, cols.len() * weight.cols);
    let data = grown(scratch, cols.len().max(MIN_COLS) * inner);
    data[used..].fill(T::default());
    let block = weight.row_range(cols);
    vectorize(
        arch,
        #[inline(always)]
        || T::widen(&block, &mut data[..used]),
    );
    Right { data, inner_stride: 1, col_stride: inner }
}

/// Rows of activations, `inner` elements each, one after the other.
#[derive(Clone, Copy)]
struct Activations<'a, T> {
    data: &'a [T],
    rows: usize,
    inner: usize,
}

/// `out[rows, cols] (+)= activations · weights`; small products go through padded copies, so `weights` has at least
/// [`MIN_COLS`] columns.
///
/// # Safety
/// `out` is valid for `rows` rows of `cols` elements, `stride` apart, and nobody else touches them.
unsafe fn multiply<T: Element>(
    left: Activations<'_, T>,
    weights: Right<'_, T>,
    cols: usize,
    out: *mut T,
    stride: usize,
    store: Store,
    padding: (&mut Vec<T>, &mut Vec<T>),
) {
    let Activations { data, rows, inner } = left;
    if rows >= MIN_ROWS && cols >= MIN_COLS {
        let left = Left { data: &data[..rows * inner], stride: inner };
        return unsafe { gemm(Size { rows, cols, inner }, left, weights, out, stride, store == Store::Add) };
    }
    let size = Size { rows: rows.max(MIN_ROWS), cols: cols.max(MIN_COLS), inner };
    let padded = grown(padding.0, size.rows * inner);
    padded[..rows * inner].copy_from_slice(&data[..rows * inner]);
    padded[rows * inner..].fill(T::default());
    let tile = grown(padding.1, size.rows * size.cols);
    tile.fill(T::default());
    // SAFETY: the caller vouches for `out`; the tile is ours.
    unsafe {
        let row_of = |row: usize| std::slice::from_raw_parts_mut(out.add(row * stride), cols);
        if store == Store::Add {
            for row in 0..rows {
                tile[row * size.cols..][..cols].copy_from_slice(row_of(row));
            }
        }
        let left = Left { data: &*padded, stride: inner };
        gemm(size, left, weights, tile.as_mut_ptr(), size.cols, store == Store::Add);
        for row in 0..rows {
            row_of(row).copy_from_slice(&tile[row * size.cols..][..cols]);
        }
    }
}

fn left_rows<'a, T: Element>(a: &'a Mat<T>, rows: &Range<usize>) -> Activations<'a, T> {
    Activations { data: &a.data()[rows.start * a.cols..rows.end * a.cols], rows: rows.len(), inner: a.cols }
}

fn add_to<T: Element>(values: &mut [T], bias: &[T]) {
    values.iter_mut().zip(bias).for_each(|(value, bias)| *value += *bias);
}

/// `out (+)= a · Wᵀ + b`.
fn product<T: Element>(
    arch: Arch,
    a: &Mat<T>,
    weight: T::Operand<'_>,
    bias: Option<&[T]>,
    out: &mut Mat<T>,
    store: Store,
) {
    let stride = out.cols;
    let target = Disjoint::new(out.data_mut());
    blocks::<T>(a.rows, stride).into_par_iter().for_each(|(rows, cols)| {
        T::with_scratch(|scratch| {
            let weights = T::part(arch, weight, cols.clone(), &mut scratch.weights);
            let padding = (&mut scratch.rows, &mut scratch.tile);
            // SAFETY: blocks are disjoint parts of `out`.
            unsafe {
                let corner = target.0.add(rows.start * stride + cols.start);
                multiply(left_rows(a, &rows), weights, cols.len(), corner, stride, store, padding);
                let Some(bias) = bias else { return };
                for row in rows {
                    add_to(
                        target.slice(row * stride + cols.start..row * stride + cols.end),
                        &bias[cols.clone()],
                    );
                }
            }
        });
    });
}

/// `out (+)= a · Wᵀ + b`.
pub fn linear<T: Element>(arch: Arch, a: &Mat<T>, w: &Linear<Weight<'_>>, out: &mut Mat<T>, store: Store) {
    let weight = &w.weight.tensor;
    assert_eq!((weight.rows, weight.cols, a.rows), (out.cols, a.cols, out.rows), "shapes of a linear");
    let bias = w.bias.as_ref().map(|bias| T::widened(&bias.tensor));
    product(arch, a, T::operand(arch, &w.weight), bias.as_deref(), out, store);
}

/// `out = a · (W_pt ∘ g_pt − W_ft ∘ g_ft)ᵀ + b_pt − b_ft`, g being the norms' factors, the difference of the weights taken in f64.
pub fn key_difference(
    arch: Arch,
    a: &Mat<f32>,
    norm: Twin<Option<&Norm<Weight<'_>>>>,
    key: Twin<&Linear<Weight<'_>>>,
    out: &mut Mat<f32>,
) {
    let factors = norm.map(|norm| norm.map_or(vec![1.0; a.cols], norm_factors::<f64>));
    let weight = key.map(|key| &key.weight.tensor);
    let difference = Panels::fill(
        arch,
        out.cols,
        a.cols,
        #[inline(always)]
        |col, inner, out| {
            let mut wide = Twin::new([0.0f64; RUN], [0.0f64; RUN]);
            weight.pt.widen_run_f64(col, inner.clone(), &mut wide.pt[..inner.len()]);
            weight.ft.widen_run_f64(col, inner.clone(), &mut wide.ft[..inner.len()]);
            for ((to, i), (pt, ft)) in out.iter_mut().zip(inner).zip(wide.pt.iter().zip(&wide.ft)) {
                *to = (pt * factors.pt[i] - ft * factors.ft[i]) as f32;
            }
        },
    );
    let bias = norm.zip(key).map(|(norm, key)| bias_of_keys(norm, key));
    let bias: Option<Vec<f32>> = match (bias.pt, bias.ft) {
        (Some(pt), Some(ft)) => Some(pt.iter().zip(&ft).map(|(pt, ft)| (pt - ft) as f32).collect()),
        _ => None,
    };
    product(arch, a, &difference, bias.as_deref(), out, Store::Replace);
}

/// What keys have whatever the row is: their own bias and the product of the weight with the norm's.
fn bias_of_keys(norm: Option<&Norm<Weight<'_>>>, key: &Linear<Weight<'_>>) -> Option<Vec<f64>> {
    let own = key.bias.as_ref().map(|bias| f64::widened(&bias.tensor));
    let Some(bias) = norm.and_then(|norm| norm.bias.as_ref()) else { return own };
    let (bias, weight) = (f64::widened(&bias.tensor), &key.weight.tensor);
    let product = |row: usize| {
        let mut wide = vec![0.0; weight.cols];
        weight.widen_run_f64(row, 0..weight.cols, &mut wide);
        wide.iter().zip(&bias).map(|(weight, bias)| weight * bias).sum::<f64>()
    };
    let own = own.unwrap_or(vec![0.0; weight.rows]);
    Some((0..weight.rows).into_par_iter().map(product).zip(own).map(|(product, own)| product + own).collect())
}

/// `out = act(a · Wgᵀ + bg) ∘ (a · Wuᵀ + bu)`; neither product reaches memory beyond a block.
pub fn gated<T: Element>(
    arch: Arch,
    a: &Mat<T>,
    gate: &Linear<Weight<'_>>,
    up: &Linear<Weight<'_>>,
    activation: Activation,
    out: &mut Mat<T>,
) {
    assert_eq!(
        (up.weight.tensor.rows, up.weight.tensor.cols, a.rows),
        (out.cols, a.cols, out.rows),
        "shapes of a gated product"
    );
    let stride = out.cols;
    let biases: [Option<Vec<T>>; 2] =
        [gate, up].map(|linear| linear.bias.as_ref().map(|bias| T::widened(&bias.tensor)));
    let [gate, up] = [gate, up].map(|linear| T::operand(arch, &linear.weight));
    let target = Disjoint::new(out.data_mut());
    blocks::<T>(a.rows, stride).into_par_iter().for_each(|(rows, cols)| {
        T::with_scratch(|scratch| {
            let Scratch { weights, rows: padded, tile, second_tile, .. } = scratch;
            let (width, left) = (cols.len(), left_rows(a, &rows));
            let up_tile = grown(second_tile, rows.len() * width);
            // SAFETY: the gate goes to this block of `out`, `up` to the thread's own tile.
            unsafe {
                let corner = target.0.add(rows.start * stride + cols.start);
                let widened = T::part(arch, gate, cols.clone(), weights);
                multiply(left, widened, width, corner, stride, Store::Replace, (padded, tile));
                let widened = T::part(arch, up, cols.clone(), weights);
                multiply(left, widened, width, up_tile.as_mut_ptr(), width, Store::Replace, (padded, tile));
                for (row, up) in rows.zip(up_tile.chunks_exact_mut(width)) {
                    let gate = target.slice(row * stride + cols.start..row * stride + cols.end);
                    for (values, bias) in [&mut *gate, &mut *up].into_iter().zip(&biases) {
                        if let Some(bias) = bias {
                            add_to(values, &bias[cols.clone()]);
                        }
                    }
                    activate_gate(arch, activation, gate, up);
                }
            }
        });
    });
}

/// Projects each head's mean hidden state `[rows, H·D]` with the rows of `Wv` of its key-value head, into the rows
/// from `first` of `out[R, H·Dh]`.
pub fn head_values<T: Element>(
    arch: Arch,
    means: &Mat<T>,
    value: &Linear<Weight<'_>>,
    shape: &AttentionShape,
    first: usize,
    out: &mut Mat<T>,
) {
    let (dim, hidden, group) = (shape.head_dim, value.weight.tensor.cols, shape.group_size());
    let bias = value.bias.as_ref().map(|bias| T::widened(&bias.tensor));
    let (rows, stride) = (means.rows, out.cols);
    let target = Disjoint::new(out.data_mut());
    (0..shape.num_key_value_heads).into_par_iter().for_each(|kv_head| {
        let heads = kv_head * group..(kv_head + 1) * group;
        let mut left = Vec::with_capacity(rows * group * hidden);
        for row in 0..rows {
            left.extend_from_slice(&means.row(row)[heads.start * hidden..heads.end * hidden]);
        }
        let mut projected = vec![T::default(); rows * group * dim];
        T::with_scratch(|scratch| {
            let cols = kv_head * dim..(kv_head + 1) * dim;
            let weights = widen_part(arch, &value.weight.tensor, cols, &mut scratch.weights);
            let left = Activations { data: &left, rows: rows * group, inner: hidden };
            let padding = (&mut scratch.rows, &mut scratch.tile);
            // SAFETY: `projected` is this task's own.
            unsafe { multiply(left, weights, dim, projected.as_mut_ptr(), dim, Store::Replace, padding) };
        });
        for (row, values) in projected.chunks_exact(group * dim).enumerate() {
            let start = (first + row) * stride + heads.start * dim;
            // SAFETY: the columns of this group of heads are this task's own.
            let to = unsafe { target.slice(start..start + group * dim) };
            to.copy_from_slice(values);
            if let Some(bias) = &bias {
                to.chunks_exact_mut(dim).for_each(|head| add_to(head, &bias[kv_head * dim..]));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;
    use proptest::prelude::*;

    /// Values whose sums round differently in every order.
    fn values(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn mat<T: Element>(rows: usize, cols: usize, data: &[f32]) -> Mat<T> {
        let mut mat = Mat::zeros(rows, cols);
        mat.data_mut().iter_mut().zip(data).for_each(|(to, v)| *to = T::of(f64::from(*v)));
        mat
    }

    fn linear_of<T: Element>(rows: usize, a: &[f32], weight: &[f32], cols: usize, store: Store) -> Vec<T> {
        let inner = weight.len() / cols;
        let bytes: Vec<u8> = weight.iter().flat_map(|v| v.to_le_bytes()).collect();
        let weight = Tensor::stored(Dtype::F32, cols, inner, &bytes);
        let mut out: Mat<T> = mat(rows, cols, &values(rows * cols, 3));
        let weight = Linear { weight: Weight::new(weight), bias: None };
        linear::<T>(Arch::new(), &mat(rows, inner, a), &weight, &mut out, store);
        out.data().to_vec()
    }

    fn check_rows_are_independent<T: Element + std::fmt::Debug>() {
        const MOST: usize = 530;
        for (cols, inner) in
            [(8, 40), (64, 576), (65, 64), (160, 160), (192, 1536), (200, 1000), (448, 33), (600, 2)]
        {
            let (a, weight) = (values(MOST * inner, 1), values(cols * inner, 2));
            for store in [Store::Replace, Store::Add] {
                let all = linear_of::<T>(MOST, &a, &weight, cols, store);
                for rows in (1..=80).chain([95, 96, 97, 127, 128, 129, 255, 256, 257, 511, 512, 513]) {
                    let some = linear_of::<T>(rows, &a, &weight, cols, store);
                    assert!(some == all[..rows * cols], "{rows} rows of [{cols}, {inner}] {store:?}");
                }
            }
        }
    }

    #[test]
    fn a_row_of_a_product_has_the_same_bits_among_any_number_of_rows() {
        check_rows_are_independent::<f32>();
        check_rows_are_independent::<f64>();
    }

    proptest! {
        #[test]
        fn a_product_is_right(rows in 1usize..40, cols in 1usize..300, inner in 1usize..90, seed in any::<u64>()) {
            let (a, weight) = (values(rows * inner, seed), values(cols * inner, seed ^ 1));
            let narrow = linear_of::<f32>(rows, &a, &weight, cols, Store::Replace);
            let wide = linear_of::<f64>(rows, &a, &weight, cols, Store::Replace);
            for row in 0..rows {
                for col in 0..cols {
                    let exact: f64 = (0..inner)
                        .map(|i| f64::from(a[row * inner + i]) * f64::from(weight[col * inner + i]))
                        .sum();
                    let at = row * cols + col;
                    prop_assert!((f64::from(narrow[at]) - exact).abs() < 1e-5 * (inner as f64).sqrt());
                    prop_assert!((wide[at] - exact).abs() < 1e-13 * inner as f64);
                }
            }
        }
    }

    #[test]
    fn blocks_cover_everything_once() {
        for (rows, cols) in (1..1000).zip((1..1000).rev()).chain([(20_000, 1), (1, 20_000), (5000, 4096)]) {
            let blocks = blocks::<f32>(rows, cols);
            assert_eq!(blocks.iter().map(|(rows, cols)| rows.len() * cols.len()).sum::<usize>(), rows * cols);
            let covered =
                |r, c| blocks.iter().filter(|(rows, cols)| rows.contains(&r) && cols.contains(&c)).count();
            for (row, col) in
                [(0, 0), (rows - 1, 0), (0, cols - 1), (rows / 2, cols / 2), (rows - 1, cols - 1)]
            {
                assert_eq!(covered(row, col), 1, "({row}, {col}) of {rows} × {cols}");
            }
            assert!(cols < MIN_COLS || blocks.iter().all(|(_, cols)| cols.len() >= MIN_COLS));
        }
    }
}
