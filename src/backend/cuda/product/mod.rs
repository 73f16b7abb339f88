//! Products: which kernels make them, with what arguments. Tiles are those of `kernels/*product*.cu`.

mod portable;
mod product_sm90;
mod twin_product_sm90;

use super::{
    args::Address,
    device::{Device, Floor, Kernels},
    mat::{CudaMat, Element},
    weight::{Planes, Update},
};
use crate::{Result, backend::AttentionShape, model::Activation};
use std::sync::Arc;
use twin_product_sm90::TwinProduct;

/// What a product does with its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    Store,
    Add,
    Gated(Activation),
    Activated(Activation),
}

impl Epilogue {
    /// As in the names of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Epilogue::Store => "store",
            Epilogue::Add => "add",
            Epilogue::Gated(_) => "gated",
            Epilogue::Activated(_) => "activated",
        }
    }

    /// As in the names of kernels of context rows, which write elements of this type.
    fn kernel(self, out: Element) -> String {
        match self {
            Epilogue::Store => format!("store_{}", out.name()),
            _ => self.name().into(),
        }
    }

    /// The number of its activation in the kernels (`device.cuh`).
    pub fn activation(self) -> i32 {
        match self {
            Epilogue::Gated(Activation::Silu) | Epilogue::Activated(Activation::Silu) => 0,
            Epilogue::Gated(Activation::Gelu) | Epilogue::Activated(Activation::Gelu) => 1,
            Epilogue::Gated(Activation::GeluTanh) | Epilogue::Activated(Activation::GeluTanh) => 2,
            Epilogue::Store | Epilogue::Add => 0,
        }
    }
}

/// A weight `[n, k]` of a product, what an adapter adds to it, and its bias, 0 being none.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    pub planes: &'a Planes,
    pub update: Option<&'a Update>,
    pub bias: Address,
}

impl<'a> Operand<'a> {
    /// A matrix alone.
    pub fn of(planes: &'a Planes) -> Self {
        Self { planes, update: None, bias: 0 }
    }

    pub fn bytes(&self) -> usize {
        self.planes.bytes() + self.update.map_or(0, Update::bytes)
    }

    /// The rank of its update.
    pub fn rank(&self) -> usize {
        self.update.map_or(0, |update| update.rank)
    }
}

/// `out = epilogue(a · Wᵀ + b)`, of rows in bf16 or in f32; gated products take two weights, the gate first.
pub fn product(
    device: &Arc<dyn Device>,
    epilogue: Epilogue,
    a: &CudaMat,
    weights: &[Operand<'_>],
    out: &CudaMat,
) -> Result<()> {
    // What updates multiply: the rows through the adapter's A.
    let through = |update: &Update| {
        let mut rows = CudaMat::new(a.kind, a.element, update.rank);
        rows.resize(device, a.rows)?;
        product(device, Epilogue::Store, a, &[Operand::of(&update.a)], &rows)?;
        Ok(rows)
    };
    let inner = weights.iter().map(|weight| weight.update.map(through).transpose());
    let inner = inner.collect::<Result<Vec<_>>>()?;
    match (device.kernels(), a.element) {
        (Kernels::Sm80, _) => portable::product(device.as_ref(), epilogue, a, weights, &inner, out),
        (Kernels::Sm90a, Element::Bf16) => {
            product_sm90::product(device.as_ref(), epilogue, a, weights, &inner, out)
        }
        (Kernels::Sm90a, Element::F32) => {
            let inner = &inner;
            TwinProduct { epilogue, a, weights, inner, out, first: 0, heads: 1, group: 1 }.run(device)
        }
    }
}

/// Projects each head's mean `means[rows, H·D]` with the rows of the value weight of its key-value head, into the rows
/// from `first` of `out[R, H·Dh]`.
pub fn head_values(
    device: &Arc<dyn Device>,
    means: &CudaMat,
    value: Operand<'_>,
    shape: &AttentionShape,
    first: usize,
    out: &CudaMat,
) -> Result<()> {
    match device.kernels() {
        Kernels::Sm80 => portable::head_values(device, means, value, shape, first, out),
        Kernels::Sm90a => twin_product_sm90::head_values(device, means, value, shape, first, out),
    }
}

/// Of a product: operands read once, the result written, or added to.
fn floor(epilogue: Epilogue, a: &CudaMat, weights: &[Operand<'_>], out: &CudaMat) -> Floor {
    let weight_bytes: usize = weights.iter().map(Operand::bytes).sum();
    let inner: usize = weights.iter().map(|weight| a.cols + weight.rank()).sum();
    let times = if epilogue == Epilogue::Add { 2 } else { 1 };
    Floor {
        operations: 2.0 * (a.rows * inner) as f64 * out.cols as f64,
        bytes: (a.bytes() + weight_bytes + times * out.bytes()) as f64,
    }
}
