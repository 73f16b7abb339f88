//! Products of rows in bf16 and in f32 on every GPU: `product.cu`, `twin_product.cu`.

use super::{Epilogue, Operand, floor};
use crate::{
    Result,
    backend::{
        AttentionShape,
        cuda::{
            args::{Address, ProductArgs, ProductUpdate},
            device::{Device, Floor, Launch},
            launch::launch_tiles,
            mat::{CudaMat, Element, pitch},
            weight::Update,
        },
    },
};
use std::sync::Arc;

/// [`product`](super::product); `inner`: what updates multiply.
pub fn product(
    device: &dyn Device,
    epilogue: Epilogue,
    a: &CudaMat,
    weights: &[Operand<'_>],
    inner: &[Option<CudaMat>],
    out: &CudaMat,
) -> Result<()> {
    let mut update = [ProductUpdate::default(); 2];
    for ((args, inner), weight) in update.iter_mut().zip(inner).zip(weights) {
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
    let floor = floor(epilogue, a, weights, out);
    match a.element {
        Element::Bf16 => bf16_product(device, epilogue, out.element, floor, &args),
        Element::F32 => twin_product(device, epilogue, 1, floor, &args),
    }
}

/// [`head_values`](super::head_values)
pub fn head_values(
    device: &Arc<dyn Device>,
    means: &CudaMat,
    value: Operand<'_>,
    shape: &AttentionShape,
    first: usize,
    out: &CudaMat,
) -> Result<()> {
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
