//! From problem to launch: which kernel, how many threads, with what arguments. Threads and tiles are those of `kernels/*.cu`.

use super::{
    args::{Address, Args, HopperProductArgs, ProductArgs, ProductUpdate},
    device::{Boxed, Device, Floor, Kernels, Launch},
    mat::{CudaMat, Element, pitch},
    twin_product::{TwinProduct, hopper_head_values},
    weight::{Planes, Update},
};
use crate::{Result, backend::AttentionShape, model::Activation};
use std::sync::Arc;

/// Threads of kernels that take one row a block, or one warp a part of a row.
pub const ROW_THREADS: u32 = 256;
/// What [`ROW_THREADS`] need to sum: one f64 a warp.
pub const SUM_BYTES: u32 = ROW_THREADS / 32 * 8;

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

/// Runs a kernel with one block a row, which reads and writes `bytes` in all.
pub fn per_row<A: Args>(
    device: &dyn Device,
    kernel: &str,
    rows: usize,
    threads: u32,
    bytes: usize,
    args: &A,
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let floor = Floor::of_bytes(bytes);
    let launch = Launch { grid: [rows as u32, 1, 1], threads, shared_bytes: SUM_BYTES, floor };
    device.launch(kernel, launch, args.as_bytes())
}

/// Runs a kernel with one warp for each of `parts` parts.
pub fn per_warp<A: Args>(
    device: &dyn Device,
    kernel: &str,
    parts: usize,
    bytes: usize,
    args: &A,
) -> Result<()> {
    per_row(device, kernel, parts.div_ceil(ROW_THREADS as usize / 32), ROW_THREADS, bytes, args)
}

/// Of a product: operands read once, the result written, or added to.
fn product_floor(epilogue: Epilogue, a: &CudaMat, weights: &[Operand<'_>], out: &CudaMat) -> Floor {
    let weight_bytes: usize = weights.iter().map(Operand::bytes).sum();
    let inner: usize = weights.iter().map(|weight| a.cols + weight.rank()).sum();
    let times = if epilogue == Epilogue::Add { 2 } else { 1 };
    Floor {
        operations: 2.0 * (a.rows * inner) as f64 * out.cols as f64,
        bytes: (a.bytes() + weight_bytes + times * out.bytes()) as f64,
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
    if device.kernels() == Kernels::Sm90a {
        return match a.element {
            Element::Bf16 => hopper_product(device.as_ref(), epilogue, a, weights, &inner, out),
            Element::F32 => {
                let inner = &inner;
                TwinProduct { epilogue, a, weights, inner, out, first: 0, heads: 1, group: 1 }.run(device)
            }
        };
    }
    let device = device.as_ref();
    let mut update = [ProductUpdate::default(); 2];
    for ((args, inner), weight) in update.iter_mut().zip(&inner).zip(weights) {
        if let (Some(inner), Some(update)) = (inner, weight.update) {
            *args = update_args(inner.address(), inner.pitch(), 0, update);
        }
    }
    let args = ProductArgs {
        a: a.address(),
        out: out.address(),
        a_pitch: a.pitch(),
        out_pitch: out.pitch(),
        m: a.rows as i32,
        n: out.cols as i32,
        k: a.cols as i32,
        group: 1,
        update,
        ..ProductArgs::default()
    };
    let args = with_weights(args, epilogue, weights);
    let floor = product_floor(epilogue, a, weights, out);
    match a.element {
        Element::Bf16 => bf16_product(device, epilogue, out.element, floor, &args),
        Element::F32 => twin_product(device, epilogue, 1, floor, &args),
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
    if device.kernels() == Kernels::Sm90a {
        return hopper_head_values(device, means, value, shape, first, out);
    }
    let heads = shape.num_attention_heads;
    let hidden = means.cols / heads;
    // Of `group` heads that share a weight `[n, hidden]`.
    let of_heads = |group: usize, n: usize, out: Address, out_pitch: i64, out_head: usize| ProductArgs {
        a: means.address(),
        out,
        a_pitch: means.pitch(),
        out_pitch,
        m: (means.rows * group) as i32,
        n: n as i32,
        k: hidden as i32,
        group: group as i32,
        a_head: hidden as i32,
        out_head: out_head as i32,
        ..ProductArgs::default()
    };
    let floor = |n: usize, bytes: usize| Floor {
        operations: 2.0 * (means.rows * n) as f64 * means.cols as f64,
        bytes: (means.bytes() + bytes + means.rows * heads * n * 4) as f64,
    };
    let mut update = [ProductUpdate::default(); 2];
    // What the update multiplies, freed once the product was asked for.
    let mut inner = CudaMat::new(means.kind, Element::F32, 0);
    if let Some(of_value) = value.update {
        let head = pitch(of_value.rank);
        inner.cols = heads * head;
        inner.resize(device, means.rows)?;
        let args = of_heads(heads, of_value.rank, inner.address(), inner.pitch(), head);
        let args = with_weights(args, Epilogue::Store, &[Operand::of(&of_value.a)]);
        let floor = floor(of_value.rank, of_value.a.bytes());
        twin_product(device.as_ref(), Epilogue::Store, 1, floor, &args)?;
        update[0] = update_args(inner.address(), inner.pitch(), head, of_value);
    }
    let (out, out_pitch) = (out.row_address(first), out.pitch());
    let args = of_heads(shape.group_size(), shape.head_dim, out, out_pitch, shape.head_dim);
    let args = ProductArgs { update, ..with_weights(args, Epilogue::Store, &[value]) };
    let floor = floor(shape.head_dim, value.bytes());
    twin_product(device.as_ref(), Epilogue::Store, shape.num_key_value_heads, floor, &args)
}

/// What an update adds: `a`, the rows through its A, `head` elements apart where they are of heads, times its B.
fn update_args(a: Address, a_pitch: i64, head: usize, update: &Update) -> ProductUpdate {
    let Update { b, rank, .. } = update;
    ProductUpdate {
        a,
        b: b.high.address(),
        b_low: b.low(),
        a_pitch,
        b_pitch: b.pitch as i64,
        b_low_plane: b.low_plane() as i64,
        k: *rank as i32,
        a_head: head as i32,
    }
}

fn with_weights(args: ProductArgs, epilogue: Epilogue, weights: &[Operand<'_>]) -> ProductArgs {
    let mut args = ProductArgs { activation: epilogue.activation(), ..args };
    for (i, Operand { planes, bias, .. }) in weights.iter().enumerate() {
        (args.b[i], args.b_low[i], args.bias[i]) = (planes.high.address(), planes.low(), *bias);
        (args.b_pitch, args.b_low_plane) = (planes.pitch as i64, planes.low_plane() as i64);
    }
    args
}

/// `product_sm90.cu`: tiles of 128 × 256, or of half as many columns, gated ones of half as many again, by pairs of blocks that stay.
fn hopper_product(
    device: &dyn Device,
    epilogue: Epilogue,
    a: &CudaMat,
    weights: &[Operand<'_>],
    inner: &[Option<CudaMat>],
    out: &CudaMat,
) -> Result<()> {
    const CLUSTER: usize = 2;
    /// How long a tile of 128 columns takes, one of 256 taking 1.
    const NARROW_TIME: f64 = 0.58;
    if a.rows == 0 {
        return Ok(());
    }
    let columns = if matches!(epilogue, Epilogue::Gated(_)) { 2 } else { 1 };
    let clusters = |tile: usize| a.rows.div_ceil(128 * CLUSTER) * (columns * out.cols).div_ceil(tile);
    let at_once = device.multiprocessors() as usize / CLUSTER;
    let turns = |tile| clusters(tile).div_ceil(at_once) as f64;
    let (tile, stages, suffix) =
        if turns(128) * NARROW_TIME < turns(256) { (128, 6, "narrow_") } else { (256, 4, "") };
    let mut args = HopperProductArgs {
        a: device.tensor_map(&a.in_boxes(128))?,
        out: device.tensor_map(&out.in_boxes(64))?,
        m: a.rows as i32,
        n: out.cols as i32,
        k: a.cols as i32,
        activation: epilogue.activation(),
        ..HopperProductArgs::default()
    };
    let weight_map = |planes: &Planes, cols: usize| {
        device.tensor_map(&Boxed {
            address: planes.high.address(),
            element: Element::Bf16,
            rows: planes.rows,
            cols,
            pitch: planes.pitch,
            box_rows: tile as u32 / 2,
        })
    };
    for (i, (Operand { planes, update, bias }, inner)) in weights.iter().zip(inner).enumerate() {
        args.b[i] = weight_map(planes, a.cols)?;
        args.bias[i] = *bias;
        if let (Some(update), Some(inner)) = (update, inner) {
            args.update_a[i] = device.tensor_map(&inner.in_boxes(128))?;
            args.update_b[i] = weight_map(&update.b, update.rank)?;
            args.update_k[i] = update.rank as i32;
        }
    }
    let kernel = format!("product_sm90_{suffix}{}", epilogue.kernel(out.element));
    let shared_bytes = stages * (128 + tile) * 64 * 2 + 2 * 2 * 64 * 128 + 2 * stages * 8;
    let launch = Launch {
        grid: [(clusters(tile).min(at_once) * CLUSTER) as u32, 1, 1],
        threads: 384,
        shared_bytes: shared_bytes as u32,
        floor: product_floor(epilogue, a, weights, out),
    };
    device.launch(&kernel, launch, args.as_bytes())
}

/// `product.cu`: tiles of 128 × 128, gated ones of 64 columns.
fn bf16_product(
    device: &dyn Device,
    epilogue: Epilogue,
    out: Element,
    floor: Floor,
    args: &ProductArgs,
) -> Result<()> {
    const STAGES: u32 = 3;
    let kernel = format!("product_{}", epilogue.kernel(out));
    let cols: u32 = if matches!(epilogue, Epilogue::Gated(_)) { 64 } else { 128 };
    let grid = [(args.n as u32).div_ceil(cols), (args.m as u32).div_ceil(128), 1];
    let stage_bytes = 2 * 128 * (32 + 8) * 2;
    let launch = Launch { grid, threads: 256, shared_bytes: STAGES * stage_bytes, floor };
    launch_tiles(device, &kernel, launch, args)
}

/// `twin_product.cu`: tiles of 64 × 64, gated ones of 32 columns.
fn twin_product(
    device: &dyn Device,
    epilogue: Epilogue,
    groups: usize,
    floor: Floor,
    args: &ProductArgs,
) -> Result<()> {
    const STAGES: u32 = 3;
    let kernel = format!("twin_product_{}", epilogue.name());
    let cols: u32 = if matches!(epilogue, Epilogue::Gated(_)) { 32 } else { 64 };
    let grid = [(args.n as u32).div_ceil(cols), (args.m as u32).div_ceil(64), groups as u32];
    let stage_bytes = 64 * (32 + 4) * 4 + 3 * 64 * (32 + 8) * 2;
    let launch = Launch { grid, threads: 128, shared_bytes: STAGES * stage_bytes, floor };
    launch_tiles(device, &kernel, launch, args)
}

/// Runs a kernel unless nothing is to be done.
pub fn launch_tiles<A: Args>(device: &dyn Device, kernel: &str, launch: Launch, args: &A) -> Result<()> {
    if launch.grid.contains(&0) { Ok(()) } else { device.launch(kernel, launch, args.as_bytes()) }
}
