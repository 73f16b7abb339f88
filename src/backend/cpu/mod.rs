//! The fast CPU backend: matrix products of the `gemm` crate with widened weights, work shared among the threads of the
//! rayon pool it is called in.
//!
//! Context rows are f32; their rounding is common to both branches. Twin rows, a few in a hundred, are f64: what
//! fine-tuning adds is a small difference of their results, and f32 would drown light fine-tunes.

mod attention;
mod element;
mod elementwise;
mod few_rows;
mod gemm;
mod product;
mod sums;
mod trace;
mod twin;
mod vector;
mod weight;

use super::{
    Attended, AttentionShape, Backend, Linear, Mat, Norm, PartSums, Role, RopeOf, Rows, Sequence, Sunk,
};
use crate::{
    metrics::{PartsL1, RunningL1},
    model::Activation,
    tensor::Tensor,
    twin::Twin,
};
pub use attention::elements_of_key;
use element::Element;
use product::Store;
pub use product::elements_of_panel;
use pulp::Arch;
pub use twin::{elements_of_tile, elements_of_twin_key};
use weight::Weight;

/// The fast CPU backend.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    /// The widest vector instructions of this machine.
    arch: Arch,
}

impl Cpu {
    pub fn new() -> Self {
        gemm::leave_operands_in_place();
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

/// A matrix of the backend: context rows or twin rows.
#[derive(Debug, Clone)]
pub enum CpuMat {
    Context(Mat<f32>),
    Twin(Mat<f64>),
}

impl CpuMat {
    fn context(&self) -> &Mat<f32> {
        match self {
            CpuMat::Context(mat) => mat,
            CpuMat::Twin(_) => panic!("twin rows where context rows belong"),
        }
    }

    fn context_mut(&mut self) -> &mut Mat<f32> {
        match self {
            CpuMat::Context(mat) => mat,
            CpuMat::Twin(_) => panic!("twin rows where context rows belong"),
        }
    }

    fn twin(&self) -> &Mat<f64> {
        match self {
            CpuMat::Twin(mat) => mat,
            CpuMat::Context(_) => panic!("context rows where twin rows belong"),
        }
    }

    fn twin_mut(&mut self) -> &mut Mat<f64> {
        match self {
            CpuMat::Twin(mat) => mat,
            CpuMat::Context(_) => panic!("context rows where twin rows belong"),
        }
    }
}

/// Runs the same generic operation on matrices of context rows or of twin rows; the last one is written.
macro_rules! same_kind {
    (($($input:ident),*) -> $out:ident, $run:expr) => {
        match $out {
            CpuMat::Context($out) => {
                $(let $input = $input.context();)*
                $run
            }
            CpuMat::Twin($out) => {
                $(let $input = $input.twin();)*
                $run
            }
        }
    };
}

impl Cpu {
    fn product(&self, a: &CpuMat, w: &Linear<Weight<'_>>, out: &mut CpuMat, store: Store) {
        match out {
            CpuMat::Context(out) if w.weight.is_for_few_rows => {
                few_rows::linear(self.arch, a.context(), w, out, store);
            }
            out => same_kind!((a) -> out, product::linear(self.arch, a, w, out, store)),
        }
    }
}

impl Backend for Cpu {
    type Mat = CpuMat;
    type Weight<'w> = Weight<'w>;
    type Table<'w> = Tensor<'w>;
    type Layout = Vec<Sequence>;
    type Sums = sums::Sums;

    fn layout(&self, sequences: &[Sequence]) -> Vec<Sequence> {
        sequences.to_vec()
    }

    fn zeros(&self, kind: Rows, _role: Role, rows: usize, cols: usize) -> CpuMat {
        match kind {
            Rows::Context => CpuMat::Context(Mat::zeros(rows, cols)),
            Rows::Twin => CpuMat::Twin(Mat::zeros(rows, cols)),
        }
    }

    fn resize(&self, mat: &mut CpuMat, rows: usize) {
        same_kind!(() -> mat, mat.resize(rows));
    }

    fn read(&self, mat: &CpuMat) -> Vec<f64> {
        match mat {
            CpuMat::Context(mat) => mat.data().iter().map(|v| f64::from(*v)).collect(),
            CpuMat::Twin(mat) => mat.data().to_vec(),
        }
    }

    fn weight<'w>(&self, tensor: Tensor<'w>) -> Weight<'w> {
        Weight::new(tensor)
    }

    fn weight_for_few_rows<'w>(&self, tensor: Tensor<'w>) -> Weight<'w> {
        Weight::for_few_rows(tensor)
    }

    fn table<'w>(&self, tensor: Tensor<'w>) -> Tensor<'w> {
        tensor
    }

    fn embed(&self, token_ids: &[u32], table: &Tensor<'_>, out: &mut CpuMat) {
        let rows = token_ids.iter().map(|id| table.row_range(*id as usize..*id as usize + 1));
        same_kind!(() -> out, {
            for (row, embedding) in rows.enumerate() {
                Element::widen(&embedding, out.row_mut(row));
            }
        });
    }

    fn norm(
        &self,
        x: &CpuMat,
        norm: &Norm<Weight<'_>>,
        normalized: Option<&mut CpuMat>,
        normed: &mut CpuMat,
    ) {
        match (x, normed) {
            (CpuMat::Context(x), CpuMat::Context(normed)) => {
                let normalized = normalized.map(CpuMat::context_mut);
                elementwise::norm(self.arch, x, norm, normalized, normed);
            }
            (x, normed) => {
                let normalized = normalized.map(CpuMat::twin_mut);
                elementwise::norm(self.arch, x.twin(), norm, normalized, normed.twin_mut());
            }
        }
    }

    fn norm_heads(&self, x: &mut CpuMat, norm: &Norm<Weight<'_>>) {
        same_kind!(() -> x, elementwise::norm_heads(self.arch, x, norm));
    }

    fn linear(&self, a: &CpuMat, w: &Linear<Weight<'_>>, out: &mut CpuMat) {
        self.product(a, w, out, Store::Replace);
    }

    fn linear_add(&self, a: &CpuMat, w: &Linear<Weight<'_>>, x: &mut CpuMat) {
        self.product(a, w, x, Store::Add);
    }

    fn gated(
        &self,
        a: &CpuMat,
        gate: &Linear<Weight<'_>>,
        up: &Linear<Weight<'_>>,
        activation: Activation,
        out: &mut CpuMat,
    ) {
        match out {
            CpuMat::Context(out) if up.weight.is_for_few_rows => {
                few_rows::gated(self.arch, a.context(), gate, up, activation, out);
            }
            out => same_kind!((a) -> out, product::gated(self.arch, a, gate, up, activation, out)),
        }
    }

    fn activated(&self, a: &CpuMat, w: &Linear<Weight<'_>>, activation: Activation, out: &mut CpuMat) {
        self.product(a, w, out, Store::Replace);
        same_kind!(() -> out, elementwise::activate_all(self.arch, activation, out));
    }

    fn add(&self, a: &CpuMat, b: &CpuMat, out: &mut CpuMat) {
        same_kind!((a, b) -> out, elementwise::add(self.arch, a, b, out));
    }

    fn copy(&self, a: &CpuMat, out: &mut CpuMat) {
        same_kind!((a) -> out, elementwise::copy(a, out));
    }

    fn accumulate(&self, a: &CpuMat, x: &mut CpuMat) {
        same_kind!((a) -> x, elementwise::accumulate(a, x));
    }

    fn gather(&self, a: &CpuMat, rows: &[usize], out: &mut CpuMat) {
        same_kind!((a) -> out, elementwise::gather(a, rows, out));
    }

    fn scatter_add(&self, a: &CpuMat, rows: &[usize], factors: &[f64], x: &mut CpuMat) {
        same_kind!((a) -> x, elementwise::scatter_add(a, rows, factors, x));
    }

    fn scatter(&self, a: &CpuMat, rows: &[usize], out: &mut CpuMat) {
        same_kind!((a) -> out, elementwise::scatter(a, rows, out));
    }

    fn blend(&self, pt: &CpuMat, ft: &mut CpuMat, alpha: f64) {
        same_kind!((pt) -> ft, elementwise::blend(self.arch, pt, ft, alpha));
    }

    fn scale(&self, x: &mut CpuMat, factor: f64) {
        same_kind!(() -> x, elementwise::scale(x, factor));
    }

    fn rotate(&self, x: &mut CpuMat, head_dim: usize, layout: &Vec<Sequence>, rows: Rows, rope: RopeOf) {
        same_kind!(() -> x, elementwise::rotate(self.arch, x, head_dim, layout, rows, rope));
    }

    fn attention(
        &self,
        q: &mut CpuMat,
        k: &CpuMat,
        v: &CpuMat,
        layout: &Vec<Sequence>,
        shape: &AttentionShape,
        sinks: Option<&Weight<'_>>,
    ) {
        same_kind!((k, v) -> q, attention::attention(self.arch, q, k, v, layout, shape, sinks));
    }

    fn key_difference(
        &self,
        normalized: &CpuMat,
        norm: Twin<Option<&Norm<Weight<'_>>>>,
        key: Twin<&Linear<Weight<'_>>>,
        out: &mut CpuMat,
    ) {
        product::key_difference(self.arch, normalized.context(), norm, key, out.context_mut());
    }

    fn normed_key_difference(&self, keys: &CpuMat, norm: Twin<&Norm<Weight<'_>>>, difference: &mut CpuMat) {
        elementwise::normed_key_difference(self.arch, keys.context(), norm, difference.context_mut());
    }

    fn twin_attend(
        &self,
        q: &CpuMat,
        attended: &Attended<'_, CpuMat, Weight<'_>>,
        layout: &Vec<Sequence>,
        shape: &AttentionShape,
        out: &mut CpuMat,
        sunk: Option<&mut Sunk<'_, CpuMat, Weight<'_>>>,
    ) {
        let keys = twin::Keys {
            context_keys: attended.context_keys.context(),
            key_difference: attended.key_difference.map(CpuMat::context),
            normalized: attended.normalized.context(),
            norm: attended.norm,
            twin_keys: attended.twin_keys.twin(),
            twin_normed: attended.twin_normed.twin(),
        };
        let out = out.twin_mut();
        let sunk = sunk.map(|sunk| (sunk.sinks, sunk.shares.twin_mut()));
        twin::twin_attend(self.arch, q.twin(), &keys, layout, shape, out, sunk);
    }

    fn head_values(
        &self,
        means: &CpuMat,
        value: &Linear<Weight<'_>>,
        shape: &AttentionShape,
        first: usize,
        out: &mut CpuMat,
    ) {
        product::head_values(self.arch, means.twin(), value, shape, first, out.twin_mut());
    }

    fn scale_heads(&self, heads: &mut CpuMat, factors: &CpuMat, first: usize) {
        elementwise::scale_heads(heads.twin_mut(), factors.twin(), first);
    }

    fn sums(&self, rows: usize, cols: usize) -> Self::Sums {
        sums::Sums::new(rows, cols)
    }

    fn contribution(&self, f_pt: Option<&CpuMat>, f_ft: &CpuMat, x: &mut CpuMat, sums: &mut Self::Sums) {
        sums.contribution(f_pt.map(CpuMat::twin), f_ft.twin(), x.twin_mut());
    }

    fn norms(&self, sums: &Self::Sums) -> Vec<Vec<RunningL1>> {
        sums.norms.clone()
    }

    fn trace(
        &self,
        x: &CpuMat,
        after_attention: Twin<&CpuMat>,
        after: Twin<&CpuMat>,
        sums: &mut PartSums<CpuMat>,
    ) -> Vec<PartsL1> {
        let PartSums { attention, mlp } = sums;
        let sums = [&mut attention.pt, &mut attention.ft, &mut mlp.pt, &mut mlp.ft];
        let streams = [x, after_attention.pt, after_attention.ft, after.pt, after.ft];
        match x {
            CpuMat::Context(_) => {
                trace::trace(self.arch, streams.map(CpuMat::context), sums.map(CpuMat::context_mut))
            }
            CpuMat::Twin(_) => trace::trace(self.arch, streams.map(CpuMat::twin), sums.map(CpuMat::twin_mut)),
        }
    }
}
