//! Products: which kernels make them, with what arguments. Tiles are those of `kernels/*product*.cu`.

mod portable;
mod product_sm90;
mod twin_product_sm90;

use super::{
    args::Address,
    device::{Device, Floor, Kernels},
    mat::{CudaMat, Element, pitch},
    weight::{Planes, Update},
};
use crate::{
    Result,
    backend::AttentionShape,
    model::{Activation, ClampedSwiglu, Xielu},
};
use std::sync::Arc;

/// What a product does with its sums.
#[derive(Debug, Clone, Copy, PartialEq)]
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

    fn function(self) -> Option<Activation> {
        match self {
            Epilogue::Gated(activation) | Epilogue::Activated(activation) => Some(activation),
            Epilogue::Store | Epilogue::Add => None,
        }
    }

    /// The number of its activation in the kernels (`device.cuh`).
    pub fn activation(self) -> i32 {
        match self.function() {
            None | Some(Activation::Silu) => 0,
            Some(Activation::Gelu) => 1,
            Some(Activation::GeluTanh) => 2,
            Some(Activation::Relu) => 3,
            Some(Activation::Relu2) => 4,
            Some(Activation::Xielu(_)) => 5,
            Some(Activation::ClampedSwiglu(_)) => 6,
        }
    }

    /// The parameters of its activation, as kernels take them.
    pub fn parameters(self) -> [f32; 4] {
        let parameters = match self.function() {
            Some(Activation::Xielu(Xielu { alpha_p, alpha_n, beta, eps })) => [alpha_p, alpha_n, beta, eps],
            Some(Activation::ClampedSwiglu(ClampedSwiglu { alpha, limit })) => [alpha, 0.0, 0.0, limit],
            _ => [0.0; 4],
        };
        parameters.map(|parameter| parameter as f32)
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

/// `out = epilogue(a · Wᵀ + b)`
struct Product<'a> {
    epilogue: Epilogue,
    a: &'a CudaMat,
    /// Gated products have two, the gate first.
    weights: &'a [Operand<'a>],
    /// The rows through the A of their updates, which the B are multiplied with.
    inner: Vec<Option<CudaMat>>,
    out: &'a CudaMat,
    /// Where the result's rows begin in it.
    first: usize,
    /// Heads that lie behind each other in a row of each matrix, each a row of the product; 1 where rows are whole.
    heads: usize,
    /// So many of them, one behind the other, go with the same rows of the weights.
    group: usize,
}

impl<'a> Product<'a> {
    /// Of whole rows.
    fn of_rows(epilogue: Epilogue, a: &'a CudaMat, weights: &'a [Operand<'a>], out: &'a CudaMat) -> Self {
        Self { epilogue, a, weights, inner: Vec::new(), out, first: 0, heads: 1, group: 1 }
    }

    fn run(self, device: &Arc<dyn Device>) -> Result<()> {
        Self::run_all(device, vec![self])
    }

    /// One product, or some of the same whole rows that are stored.
    fn run_all(device: &Arc<dyn Device>, mut products: Vec<Self>) -> Result<()> {
        for product in &mut products {
            let through = |weight: &Operand<'_>| {
                weight.update.map(|update| product.through(device, update)).transpose()
            };
            product.inner = product.weights.iter().map(through).collect::<Result<_>>()?;
        }
        match (device.kernels(), products[0].a.element) {
            (Kernels::Sm80, _) => {
                products.iter().try_for_each(|product| portable::run(device.as_ref(), product))
            }
            (Kernels::Sm90a, Element::Bf16) => product_sm90::run(device.as_ref(), &products),
            (Kernels::Sm90a, Element::F32) => twin_product_sm90::run(device, &products),
        }
    }

    /// The rows through an adapter's A, which all heads have in common.
    fn through(&self, device: &Arc<dyn Device>, update: &Update) -> Result<CudaMat> {
        let Self { a, heads, .. } = *self;
        // Heads behind each other begin at whole 16 bytes.
        let cols = if heads == 1 { update.rank } else { heads * pitch(update.rank) };
        let mut inner = CudaMat::new(self.out.lane, a.element, cols);
        inner.resize(device, a.rows)?;
        let weights = &[Operand::of(&update.a)];
        let (epilogue, out) = (Epilogue::Store, &inner);
        Product { epilogue, a, weights, inner: Vec::new(), out, first: 0, heads, group: heads }
            .run(device)?;
        Ok(inner)
    }

    /// Columns of the result, or of each of its heads.
    fn cols(&self) -> usize {
        self.weights[0].planes.rows * self.group / self.heads
    }

    /// For so many rows: operands read once, the result written, or added to.
    fn floor(&self, rows: usize) -> Floor {
        let Self { epilogue, a, weights, out, heads, .. } = self;
        let weight_bytes: usize = weights.iter().map(Operand::bytes).sum();
        let inner: usize = weights.iter().map(|weight| a.cols / heads + weight.rank()).sum();
        let times = if *epilogue == Epilogue::Add { 2 } else { 1 };
        Floor {
            operations: 2.0 * (rows * heads * inner) as f64 * self.cols() as f64,
            bytes: (rows * (a.row_bytes() + times * out.row_bytes()) + weight_bytes) as f64,
            weight: Some([weights.iter().map(|weight| weight.planes.rows).sum(), a.cols / heads]),
        }
    }

    /// Of all that one launch makes of the same `rows` rows, read once; the weights lie one below the other.
    fn floor_of_all(products: &[Self], rows: usize) -> Floor {
        let row_bytes = (rows * products[0].a.row_bytes()) as f64;
        let floors = products.iter().map(|product| product.floor(rows));
        floors
            .reduce(|all, more| Floor {
                operations: all.operations + more.operations,
                bytes: all.bytes + more.bytes - row_bytes,
                weight: all.weight.zip(more.weight).map(|([rows, cols], [more, _])| [rows + more, cols]),
            })
            .expect("there is a product")
    }
}

/// Columns of a tile of rows in bf16, 256 or 128, whichever ends earlier when `places` tiles are made at a time; `tiles` says how many there are
/// of so many columns.
fn tile_columns(places: usize, tiles: impl Fn(usize) -> usize) -> usize {
    /// How long a tile of 128 columns takes, one of 256 taking 1.
    const NARROW_TIME: f64 = 0.58;
    let turns = |columns| tiles(columns).div_ceil(places) as f64;
    if turns(128) * NARROW_TIME < turns(256) { 128 } else { 256 }
}

/// `out = epilogue(a · Wᵀ + b)`, of rows in bf16 or in f32; gated products take two weights, the gate first.
pub fn product(
    device: &Arc<dyn Device>,
    epilogue: Epilogue,
    a: &CudaMat,
    weights: &[Operand<'_>],
    out: &CudaMat,
) -> Result<()> {
    Product::of_rows(epilogue, a, weights, out).run(device)
}

/// [`product`] of some weights with the same rows, each stored in its own place.
pub fn products(
    device: &Arc<dyn Device>,
    a: &CudaMat,
    weights: &[Operand<'_>],
    out: &[&CudaMat],
) -> Result<()> {
    let of = |(weight, out)| Product::of_rows(Epilogue::Store, a, std::slice::from_ref(weight), out);
    let products: Vec<Product<'_>> = weights.iter().zip(out.iter().copied()).map(of).collect();
    Product::run_all(device, products)
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
    let (heads, group, weights) = (shape.num_attention_heads, shape.group_size(), &[value]);
    Product { epilogue: Epilogue::Store, a: means, weights, inner: Vec::new(), out, first, heads, group }
        .run(device)
}
