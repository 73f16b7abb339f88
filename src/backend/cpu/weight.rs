//! A weight as the CPU backend holds it: where it lies in the mapped file and, from the first product with context rows
//! on, all of it widened and laid out as the product reads it. So one widened layer is in memory at a time. Weights for few
//! rows are never widened as a whole.

use super::{
    gemm::Right,
    product::{MIN_COLS, panels},
    vector::vectorize,
};
use crate::tensor::Tensor;
use pulp::Arch;
use rayon::prelude::*;
use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

/// A weight `[cols, inner]` (`[out, in]`) of the checkpoint.
#[derive(Debug, Clone)]
pub struct Weight<'w> {
    pub tensor: Tensor<'w>,
    /// Products read it where it lies ([`few_rows`](super::few_rows)).
    pub is_for_few_rows: bool,
    widened: Arc<OnceLock<Panels>>,
}

impl<'w> Weight<'w> {
    pub fn new(tensor: Tensor<'w>) -> Self {
        Self { tensor, is_for_few_rows: false, widened: Arc::default() }
    }

    pub fn for_few_rows(tensor: Tensor<'w>) -> Self {
        Self { is_for_few_rows: true, ..Self::new(tensor) }
    }

    /// The whole weight in f32.
    pub fn widened(&self, arch: Arch) -> &Panels {
        self.widened.get_or_init(|| {
            let Tensor { rows, cols, .. } = self.tensor;
            Panels::fill(arch, rows, cols, |col, inner, out| {
                self.tensor.widen_run(col, inner, out);
            })
        })
    }
}

/// A cache line, so that rows of panels start on one.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

const LINE: usize = 16;

/// Elements of a weight's row that are transposed together: as many rows as a cache line has elements.
pub const RUN: usize = 64;

/// A widened weight, cut into [`panels`] of columns of the result. In a panel the columns lie side by side, one row for
/// each element of `inner`, padded with zeros to whole cache lines.
#[derive(Debug)]
pub struct Panels {
    lines: Vec<Line>,
    cols: usize,
    inner: usize,
}

impl Panels {
    /// Panels of a weight whose elements `inner` for column `col` of the result `values(col, inner, out)` writes.
    pub fn fill(
        arch: Arch,
        cols: usize,
        inner: usize,
        values: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    ) -> Self {
        let lines = panels(cols).map(|panel| inner * lines_across(&panel)).sum();
        let mut lines = vec![Line([0.0; LINE]); lines];
        let mut rest = lines.as_mut_slice();
        let mut parts = Vec::new();
        for panel in panels(cols) {
            let part;
            (part, rest) = rest.split_at_mut(inner * lines_across(&panel));
            parts.push((panel, part));
        }
        parts.into_par_iter().for_each(|(panel, part)| {
            let across = lines_across(&panel);
            vectorize(
                arch,
                #[inline(always)]
                || {
                    for (line, first) in panel.clone().step_by(LINE).enumerate() {
                        let cols = first..(first + LINE).min(panel.end);
                        for start in (0..inner).step_by(RUN) {
                            let run = start..(start + RUN).min(inner);
                            let mut rows = [[0.0f32; RUN]; LINE];
                            for (row, col) in rows.iter_mut().zip(cols.clone()) {
                                values(col, run.clone(), &mut row[..run.len()]);
                            }
                            for (at, i) in run.enumerate() {
                                part[i * across + line].0 = std::array::from_fn(|row| rows[row][at]);
                            }
                        }
                    }
                },
            );
        });
        Self { lines, cols, inner }
    }

    /// The columns `cols` of the result, all of one panel.
    pub fn part(&self, cols: Range<usize>) -> Right<'_, f32> {
        let mut before = 0;
        for panel in panels(self.cols) {
            let across = lines_across(&panel);
            if cols.start < panel.end {
                assert!(panel.start <= cols.start && cols.end <= panel.end, "columns of one panel");
                // SAFETY: lines are arrays of f32 without padding.
                let data = unsafe {
                    let lines = &self.lines[before..before + self.inner * across];
                    std::slice::from_raw_parts(lines.as_ptr().cast::<f32>(), lines.len() * LINE)
                };
                let data = &data[cols.start - panel.start..];
                return Right { data, inner_stride: across * LINE, col_stride: 1 };
            }
            before += self.inner * across;
        }
        panic!("columns beyond the weight")
    }
}

/// Cache lines that a row of a panel takes.
fn lines_across(panel: &Range<usize>) -> usize {
    panel.len().max(MIN_COLS).div_ceil(LINE)
}
