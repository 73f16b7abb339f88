//! Launches of attention of context rows.

use super::{
    args::{Address, Args, AttentionArgs, HopperAttentionArgs, TensorMap},
    device::{Device, Floor, Kernels, Launch},
    launch::launch_tiles,
    layout::LayoutRows,
    mat::{CudaMat, Element},
};
use crate::{Error, Result, backend::AttentionShape};

/// Head dimensions that `attention.cu` is compiled for; others are padded to the next.
const ATTENTION_DIMS: [usize; 7] = [16, 32, 64, 80, 96, 128, 256];
/// Those that `attention_sm90.cu` is compiled for.
const HOPPER_DIMS: [usize; 5] = [64, 80, 96, 128, 256];

/// Numbers of an [`AttentionShape`] as kernels take them.
pub struct ShapeNumbers {
    pub window: i32,
    pub scale: f32,
    pub softcap: f32,
}

impl From<&AttentionShape> for ShapeNumbers {
    fn from(shape: &AttentionShape) -> Self {
        Self {
            window: shape.sliding_window.map_or(0, |window| window.min(i32::MAX as usize / 2) as i32),
            scale: shape.scale as f32,
            softcap: shape.softcap.map_or(0.0, |cap| cap as f32),
        }
    }
}

/// The head dimension of the kernel for heads of so many.
///
/// # Errors
/// A usage error where they are too wide for all of them.
pub fn kernel_dim(head_dim: usize) -> Result<usize> {
    ATTENTION_DIMS.into_iter().find(|dim| *dim >= head_dim).ok_or_else(|| {
        Error::usage(format!(
            "head_dim is {head_dim}, attention on GPUs has at most 256: --device cpu has any"
        ))
    })
}

/// How `path_rows.cuh` sees the rows of paths: in boxes of 64 rows, and of one.
pub fn path_boxes(device: &dyn Device, mat: &CudaMat) -> Result<[TensorMap; 2]> {
    Ok([device.tensor_map(&mat.in_boxes(64))?, device.tensor_map(&mat.in_boxes(1))?])
}

/// Attention of context rows among themselves, in place; `sinks` 0: none.
pub fn attention(
    device: &dyn Device,
    [q, k, v]: [&CudaMat; 3],
    rows: &LayoutRows,
    shape: &AttentionShape,
    sinks: Address,
) -> Result<()> {
    let dim = kernel_dim(shape.head_dim)?;
    let floor = Floor {
        operations: 4.0 * rows.context_pairs * (shape.num_attention_heads * shape.head_dim) as f64,
        bytes: (2 * q.bytes() + k.bytes() + v.bytes()) as f64,
        weight: None,
    };
    // The kernel for Hopper looks for the largest score before it scales them.
    let for_hopper = HOPPER_DIMS.contains(&shape.head_dim) && shape.scale > 0.0;
    if q.element == Element::Bf16 && device.kernels() == Kernels::Sm90a && for_hopper {
        return hopper_attention(device, [q, k, v], rows, shape, sinks, floor);
    }
    let ShapeNumbers { window, scale, softcap } = shape.into();
    let args = AttentionArgs {
        q: q.address(),
        k: k.address(),
        v: v.address(),
        tiles: rows.address(rows.tiles.place),
        path_rows: rows.address(rows.path_rows),
        sinks,
        q_pitch: q.pitch(),
        kv_pitch: k.pitch(),
        group: shape.group_size() as i32,
        head_dim: shape.head_dim as i32,
        window,
        scale,
        softcap,
        unused: 0,
    };
    let (kernel, shared_bytes) = match q.element {
        Element::Bf16 => {
            let keys = if dim > 128 { 32 } else { 64 };
            (format!("attention_{dim}"), (64 + 4 * keys) * (dim + 8) * 2)
        }
        Element::F32 => ("attention_f32".into(), (2 * 32 + 4) * (shape.head_dim | 1) * 4),
    };
    let grid = [rows.tiles.count as u32, shape.num_attention_heads as u32, 1];
    let launch = Launch { grid, threads: 128, shared_bytes: shared_bytes as u32, floor };
    launch_tiles(device, &kernel, launch, &args)
}

/// `attention_sm90.cu`: two heads that share a key head and 64 queries, or one head and 128, by blocks that stay.
fn hopper_attention(
    device: &dyn Device,
    [q, k, v]: [&CudaMat; 3],
    rows: &LayoutRows,
    shape: &AttentionShape,
    sinks: Address,
    floor: Floor,
) -> Result<()> {
    let (heads, tiles) =
        if shape.group_size().is_multiple_of(2) { (2, &rows.tiles) } else { (1, &rows.double_tiles) };
    if tiles.count == 0 {
        return Ok(());
    }
    let head_blocks = shape.num_attention_heads / heads;
    let ShapeNumbers { window, scale, softcap } = shape.into();
    let args = HopperAttentionArgs {
        q: device.tensor_map(&q.in_boxes(64))?,
        k: path_boxes(device, k)?,
        v: path_boxes(device, v)?,
        out: q.address(),
        tiles: rows.address(tiles.place),
        path_rows: rows.address(rows.path_rows),
        sinks,
        pitch: q.pitch(),
        heads: heads as i32,
        head_blocks: head_blocks as i32,
        tile_count: tiles.count as i32,
        group: shape.group_size() as i32,
        window,
        scale,
        softcap,
        ..HopperAttentionArgs::default()
    };
    let (boxes, keys) = (shape.head_dim.div_ceil(64), if shape.head_dim > 128 { 64 } else { 128 });
    let shared_bytes = (2 * 64 + 2 * 2 * keys) * boxes * 64 * 2 + 13 * 8;
    let blocks = (tiles.count * head_blocks).min(device.multiprocessors() as usize);
    let kernel = format!("attention_sm90_{}", shape.head_dim);
    let launch =
        Launch { grid: [blocks as u32, 1, 1], threads: 384, shared_bytes: shared_bytes as u32, floor };
    device.launch(&kernel, launch, args.as_bytes())
}
