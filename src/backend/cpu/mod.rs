//! The fast CPU backend: f32 activations, matrix products of the `gemm` crate, weights widened to f32 block by block
//! as they are used, work shared among the threads of the rayon pool it is called in.

mod attention;
mod elementwise;
mod product;
mod twin;

use super::{AttentionShape, Backend, Linear, Mat, Rows, RunningL1, Sequence, TwinKeys};
use crate::{model::Activation, tensor::Tensor, twin::Branch};
use pulp::Arch;

/// The fast CPU backend.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    /// The widest vector instructions of this machine.
    arch: Arch,
}

impl Cpu {
    pub fn new() -> Self {
        Self { arch: Arch::new() }
    }

    /// The instruction set in use, for reports.
    pub fn instruction_set(&self) -> String {
        format!("{:?}", self.arch).split('(').next().unwrap_or_default().to_lowercase()
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Cpu {
    type Mat = Mat<f32>;
    type Weight<'w> = Tensor<'w>;
    type Sums = elementwise::Sums;

    fn zeros(&self, rows: usize, cols: usize) -> Mat<f32> {
        Mat::zeros(rows, cols)
    }

    fn resize(&self, mat: &mut Mat<f32>, rows: usize) {
        mat.resize(rows);
    }

    fn read(&self, mat: &Mat<f32>) -> Vec<f64> {
        mat.data().iter().map(|v| f64::from(*v)).collect()
    }

    fn weight<'w>(&self, tensor: Tensor<'w>) -> Tensor<'w> {
        tensor
    }

    fn embed(&self, token_ids: &[u32], table: &Tensor<'_>, out: &mut Mat<f32>) {
        for (row, id) in token_ids.iter().enumerate() {
            table.row_range(*id as usize..*id as usize + 1).widen_into(out.row_mut(row));
        }
    }

    fn norm(&self, x: &Mat<f32>, weight: &Tensor<'_>, eps: f64, out: &mut Mat<f32>) {
        elementwise::norm(self.arch, x, &weight.to_f32(), eps, out);
    }

    fn linear(&self, a: &Mat<f32>, w: &Linear<Tensor<'_>>, out: &mut Mat<f32>) {
        product::linear(self.arch, a, w, out, product::Store::Replace);
    }

    fn linear_add(&self, a: &Mat<f32>, w: &Linear<Tensor<'_>>, x: &mut Mat<f32>) {
        product::linear(self.arch, a, w, x, product::Store::Add);
    }

    fn gated(
        &self,
        a: &Mat<f32>,
        gate: &Linear<Tensor<'_>>,
        up: &Linear<Tensor<'_>>,
        activation: Activation,
        out: &mut Mat<f32>,
    ) {
        product::gated(self.arch, a, gate, up, activation, out);
    }

    fn add(&self, a: &Mat<f32>, b: &Mat<f32>, out: &mut Mat<f32>) {
        for ((to, a), b) in out.data_mut().iter_mut().zip(a.data()).zip(b.data()) {
            *to = a + b;
        }
    }

    fn rotate(&self, x: &mut Mat<f32>, head_dim: usize, sequences: &[Sequence], rows: Rows, branch: Branch) {
        elementwise::rotate(self.arch, x, head_dim, sequences, rows, branch);
    }

    fn attention(
        &self,
        q: &mut Mat<f32>,
        k: &Mat<f32>,
        v: &Mat<f32>,
        sequences: &[Sequence],
        shape: &AttentionShape,
    ) {
        attention::attention(self.arch, q, k, v, sequences, shape);
    }

    fn twin_attend(
        &self,
        q: &Mat<f32>,
        keys: &TwinKeys<'_, Mat<f32>>,
        sequences: &[Sequence],
        shape: &AttentionShape,
        out: &mut Mat<f32>,
    ) {
        twin::twin_attend(self.arch, q, keys, sequences, shape, out);
    }

    fn head_values(
        &self,
        means: &Mat<f32>,
        value: &Linear<Tensor<'_>>,
        shape: &AttentionShape,
        out: &mut Mat<f32>,
    ) {
        product::head_values(self.arch, means, value, shape, out);
    }

    fn sums(&self, rows: usize, cols: usize) -> Self::Sums {
        elementwise::Sums::new(rows, cols)
    }

    fn contribution(
        &self,
        f_pt: Option<&Mat<f32>>,
        f_ft: &Mat<f32>,
        x: &mut Mat<f32>,
        sums: &mut Self::Sums,
    ) -> Vec<RunningL1> {
        sums.contribution(f_pt, f_ft, x)
    }
}
