//! What the layers contributed to the twin rows, in f64.

use crate::{backend::Mat, metrics::RunningL1};
use rayon::prelude::*;

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
