//! Matrix products of few rows, as in decoding: the weight is read once, where it lies, a part of it that stays in the
//! cache is widened, and met by all rows before the next one.
//!
//! Batch invariance: an element of the result is a sum over vectors of the inner dimension in one order, whatever the
//! number of rows. It may round otherwise than a product of many rows ([`product`](super::product)).

use super::{
    element::Element,
    elementwise::activate_gate,
    product::{Disjoint, Store},
    weight::Weight,
};
use crate::{
    backend::{Linear, Mat},
    model::Activation,
    tensor::Tensor,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::{borrow::Cow, cell::RefCell, ops::Range};

/// Columns of the result that a task computes.
const TASK_COLS: usize = 32;

/// Columns and rows of the result whose sums are in registers together.
const TILE_COLS: usize = 4;
const TILE_ROWS: usize = 2;

/// The inner dimension is padded with zeros to whole vectors of any machine.
const PADDING: usize = 16;

thread_local! {
    static WIDENED: RefCell<Vec<f32>> = RefCell::default();
}

/// Rows whose length is a multiple of [`PADDING`].
struct Padded<'a> {
    data: Cow<'a, [f32]>,
    inner: usize,
}

impl<'a> Padded<'a> {
    fn new(a: &'a Mat<f32>) -> Self {
        let inner = a.cols.next_multiple_of(PADDING);
        if inner == a.cols {
            return Self { data: a.data().into(), inner };
        }
        let mut data = vec![0.0; a.rows * inner];
        for (row, to) in data.chunks_exact_mut(inner).enumerate() {
            to[..a.cols].copy_from_slice(a.row(row));
        }
        Self { data: data.into(), inner }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.inner..(row + 1) * self.inner]
    }
}

/// `out (+)= a · Wᵀ + b`.
pub fn linear(arch: Arch, a: &Mat<f32>, w: &Linear<Weight<'_>>, out: &mut Mat<f32>, store: Store) {
    let (weight, stride) = (w.weight.tensor, out.cols);
    assert_eq!((weight.rows, weight.cols, a.rows), (out.cols, a.cols, out.rows), "shapes of a linear");
    let bias = w.bias.as_ref().map(|bias| f32::widened(&bias.tensor));
    let left = Padded::new(a);
    let target = Disjoint::new(out.data_mut());
    in_tasks(stride, |cols| {
        multiply(arch, &left, a.rows, &weight, cols, |row, cols, values| {
            // SAFETY: tasks write disjoint columns.
            let to = unsafe { target.slice(row * stride + cols.start..row * stride + cols.end) };
            for ((to, value), col) in to.iter_mut().zip(values).zip(cols) {
                let sum = bias.as_ref().map_or(*value, |bias| value + bias[col]);
                *to = if store == Store::Add { *to + sum } else { sum };
            }
        });
    });
}

/// `out = act(a · Wgᵀ + bg) ∘ (a · Wuᵀ + bu)`.
pub fn gated(
    arch: Arch,
    a: &Mat<f32>,
    gate: &Linear<Weight<'_>>,
    up: &Linear<Weight<'_>>,
    activation: Activation,
    out: &mut Mat<f32>,
) {
    linear(arch, a, gate, out, Store::Replace);
    let mut upper = Mat::zeros(out.rows, out.cols);
    linear(arch, a, up, &mut upper, Store::Replace);
    activate_gate(arch, activation, out.data_mut(), upper.data());
}

/// Does all columns, shared over the threads.
fn in_tasks(cols: usize, task: impl Fn(Range<usize>) + Sync) {
    let starts = (0..cols).into_par_iter().step_by(TASK_COLS);
    starts.for_each(|start| task(start..(start + TASK_COLS).min(cols)));
}

/// Gives the products of all rows with the rows `cols` of a weight to `write(row, columns, products)`.
fn multiply(
    arch: Arch,
    left: &Padded<'_>,
    rows: usize,
    weight: &Tensor<'_>,
    cols: Range<usize>,
    mut write: impl FnMut(usize, Range<usize>, &[f32]),
) {
    WIDENED.with_borrow_mut(|widened| {
        let inner = left.inner;
        widened.clear();
        widened.resize(TILE_COLS * inner, 0.0);
        for start in cols.clone().step_by(TILE_COLS) {
            let some = start..(start + TILE_COLS).min(cols.end);
            for first in (0..rows).step_by(TILE_ROWS) {
                let these = first..(first + TILE_ROWS).min(rows);
                // A tile beyond the edge computes its last row or column again.
                let tile = Tile {
                    rows: std::array::from_fn(|row| left.row((first + row).min(these.end - 1))),
                    weight: (first == 0).then(|| weight.row_range(some.clone())),
                    widened,
                };
                let sums = arch.dispatch(tile);
                for (row, sums) in these.zip(sums) {
                    write(row, some.clone(), &sums[..some.len()]);
                }
            }
        }
    });
}

/// Some rows of both operands.
struct Tile<'a, 'w> {
    rows: [&'a [f32]; TILE_ROWS],
    /// To be widened first.
    weight: Option<Tensor<'w>>,
    widened: &'a mut [f32],
}

impl WithSimd for Tile<'_, '_> {
    type Output = [[f32; TILE_COLS]; TILE_ROWS];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let Self { rows, weight, widened } = self;
        let inner = rows[0].len();
        if let Some(weight) = weight {
            for (col, to) in widened.chunks_exact_mut(inner).take(weight.rows).enumerate() {
                f32::widen(&weight.row_range(col..col + 1), &mut to[..weight.cols]);
            }
        }
        // Loops, not closures: what is called is compiled without the vector instructions.
        let vectors = inner / S::F32_LANES;
        let (mut a, mut w) = ([&[][..]; TILE_ROWS], [&[][..]; TILE_COLS]);
        for (a, row) in a.iter_mut().zip(rows) {
            *a = &S::as_simd_f32s(row).0[..vectors];
        }
        for (w, col) in w.iter_mut().zip(widened.chunks_exact(inner)) {
            *w = &S::as_simd_f32s(col).0[..vectors];
        }
        let mut sums = [[simd.splat_f32s(0.0); TILE_COLS]; TILE_ROWS];
        for at in 0..vectors {
            for (sums, a) in sums.iter_mut().zip(&a) {
                for (sum, w) in sums.iter_mut().zip(&w) {
                    *sum = simd.mul_add_f32s(a[at], w[at], *sum);
                }
            }
        }
        let mut out = [[0.0; TILE_COLS]; TILE_ROWS];
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = simd.reduce_sum_f32s(sum);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    fn values(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729 + i * i % 613) % 2001) as f32 / 1000.0 - 1.0).collect()
    }

    fn mat(rows: usize, cols: usize, values: &[f32]) -> Mat<f32> {
        let mut mat = Mat::zeros(rows, cols);
        mat.data_mut().copy_from_slice(&values[..rows * cols]);
        mat
    }

    #[test]
    fn products_are_right_and_rows_have_the_same_bits_among_any_number() {
        const MOST: usize = 19;
        for (cols, inner) in [(1, 1), (8, 40), (64, 576), (67, 33), (192, 1536)] {
            let (a, weights) = (values(MOST * inner, 1), values(cols * inner, 2));
            let bytes: Vec<u8> = weights.iter().flat_map(|v| v.to_le_bytes()).collect();
            let weight = || Weight::for_few_rows(Tensor::stored(Dtype::F32, cols, inner, &bytes));
            let bias = || Weight::new(Tensor::stored(Dtype::F32, 1, cols, &bytes[..4 * cols]));
            let w = Linear { weight: weight(), bias: (inner > 1).then(bias) };
            let product = |rows: usize, store| {
                let mut out = mat(rows, cols, &values(rows * cols, 3));
                linear(Arch::new(), &mat(rows, inner, &a), &w, &mut out, store);
                out
            };
            let all = product(MOST, Store::Replace);
            for row in 0..MOST {
                for col in 0..cols {
                    let pair = |i: usize| f64::from(a[row * inner + i]) * f64::from(weights[col * inner + i]);
                    let bias = if inner > 1 { f64::from(weights[col]) } else { 0.0 };
                    let exact: f64 = (0..inner).map(pair).sum::<f64>() + bias;
                    assert!((f64::from(all.row(row)[col]) - exact).abs() < 1e-6 * inner as f64);
                }
            }
            let added = product(MOST, Store::Add);
            let sums = added.data().iter().zip(values(MOST * cols, 3)).zip(all.data());
            assert!(sums.into_iter().all(|((added, before), product)| *added == before + product));
            for rows in 1..MOST {
                assert!(product(rows, Store::Replace).data() == &all.data()[..rows * cols]);
            }
        }
    }
}
