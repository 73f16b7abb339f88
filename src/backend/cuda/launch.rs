//! From problem to launch: which kernel, how many threads, with what arguments. Threads and tiles are those of `kernels/*.cu`.

use super::{
    args::{Address, Args, HopperProductArgs, ProductArgs},
    device::{Boxed, Device, Floor, Kernels, Launch},
    mat::{CudaMat, Element},
    weight::Planes,
};
use crate::{Result, backend::AttentionShape, model::Activation};

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
    fn name(self) -> &'static str {
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
    fn activation(self) -> i32 {
        match self {
            Epilogue::Gated(Activation::Silu) | Epilogue::Activated(Activation::Silu) => 0,
            Epilogue::Gated(Activation::Gelu) | Epilogue::Activated(Activation::Gelu) => 1,
            Epilogue::Gated(Activation::GeluTanh) | Epilogue::Activated(Activation::GeluTanh) => 2,
            Epilogue::Store | Epilogue::Add => 0,
        }
    }
}

/// A weight `[n, k]` of a product and its bias, 0 being none.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    pub planes: &'a Planes,
    pub bias: Address,
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
    let weight_bytes: usize = weights.iter().map(|weight| weight.planes.bytes()).sum();
    let times = if epilogue == Epilogue::Add { 2 } else { 1 };
    Floor {
        operations: 2.0 * (weights.len() * a.rows * a.cols) as f64 * out.cols as f64,
        bytes: (a.bytes() + weight_bytes + times * out.bytes()) as f64,
    }
}

/// `out = epilogue(a · Wᵀ + b)`, of rows in bf16 or in f32; gated products take two weights, the gate first.
pub fn product(
    device: &dyn Device,
    epilogue: Epilogue,
    a: &CudaMat,
    weights: &[Operand<'_>],
    out: &CudaMat,
) -> Result<()> {
    if a.element == Element::Bf16 && device.kernels() == Kernels::Sm90a {
        return hopper_product(device, epilogue, a, weights, out);
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
        ..weight_args(epilogue, weights)
    };
    let floor = product_floor(epilogue, a, weights, out);
    match a.element {
        Element::Bf16 => bf16_product(device, epilogue, out.element, floor, &args),
        Element::F32 => twin_product(device, epilogue, 1, floor, &args),
    }
}

/// Projects each head's mean `means[rows, H·D]` with the rows of the value weight of its key-value head, into the rows
/// from `first` of `out[R, H·Dh]`.
pub fn head_values(
    device: &dyn Device,
    means: &CudaMat,
    value: Operand<'_>,
    shape: &AttentionShape,
    first: usize,
    out: &CudaMat,
) -> Result<()> {
    let hidden = means.cols / shape.num_attention_heads;
    let args = ProductArgs {
        a: means.address(),
        out: out.row_address(first),
        a_pitch: means.pitch(),
        out_pitch: out.pitch(),
        m: (means.rows * shape.group_size()) as i32,
        n: shape.head_dim as i32,
        k: hidden as i32,
        group: shape.group_size() as i32,
        a_head: hidden as i32,
        out_head: shape.head_dim as i32,
        ..weight_args(Epilogue::Store, &[value])
    };
    let out_bytes = means.rows * shape.num_attention_heads * shape.head_dim * 4;
    let floor = Floor {
        operations: 2.0 * (means.rows * shape.head_dim) as f64 * means.cols as f64,
        bytes: (means.bytes() + value.planes.bytes() + out_bytes) as f64,
    };
    twin_product(device, Epilogue::Store, shape.num_key_value_heads, floor, &args)
}

fn weight_args(epilogue: Epilogue, weights: &[Operand<'_>]) -> ProductArgs {
    let mut args = ProductArgs { activation: epilogue.activation(), ..ProductArgs::default() };
    for (i, Operand { planes, bias }) in weights.iter().enumerate() {
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
    for (i, Operand { planes, bias }) in weights.iter().enumerate() {
        args.b[i] = device.tensor_map(&Boxed {
            address: planes.high.address(),
            element: Element::Bf16,
            rows: out.cols,
            cols: a.cols,
            pitch: planes.pitch,
            box_rows: tile as u32 / 2,
        })?;
        args.bias[i] = *bias;
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
