//! Launches of attention, of context rows and of twin rows.

use super::{
    args::{Args, AttentionArgs, HopperAttentionArgs, TwinAttendArgs},
    device::{Buffer, Device, Floor, Kernels, Launch},
    launch::{SUM_BYTES, launch_tiles},
    layout::{LayoutRows, TOKEN_STEP},
    mat::{CudaMat, Element},
};
use crate::{Error, ErrorKind, Result, backend::AttentionShape};
use std::sync::Arc;

/// Head dimensions that `attention.cu` is compiled for; others are padded to the next.
const ATTENTION_DIMS: [usize; 7] = [16, 32, 64, 80, 96, 128, 256];
/// Those that `attention_sm90.cu` is compiled for.
const HOPPER_DIMS: [usize; 5] = [64, 80, 96, 128, 256];

/// Columns and heads of a block of `twin_mean.cu`.
const MEAN_COLUMNS: usize = 256;
const NARROW_MEAN_COLUMNS: usize = 64;
const MEAN_HEADS: usize = 32;

/// Numbers of an [`AttentionShape`] as kernels take them.
struct ShapeNumbers {
    window: i32,
    scale: f32,
    softcap: f32,
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

/// Attention of context rows among themselves, in place.
pub fn attention(
    device: &dyn Device,
    q: &CudaMat,
    k: &CudaMat,
    v: &CudaMat,
    rows: &LayoutRows,
    shape: &AttentionShape,
) -> Result<()> {
    let Some(dim) = ATTENTION_DIMS.into_iter().find(|dim| *dim >= shape.head_dim) else {
        let message = format!("head_dim is {}, attention on GPUs has at most 256", shape.head_dim);
        return Err(Error::new(ErrorKind::Usage, message));
    };
    let floor = Floor {
        operations: 4.0 * rows.context_pairs * (shape.num_attention_heads * shape.head_dim) as f64,
        bytes: (2 * q.bytes() + k.bytes() + v.bytes()) as f64,
        weight: None,
    };
    // The kernel for Hopper looks for the largest score before it scales them.
    let for_hopper = HOPPER_DIMS.contains(&shape.head_dim) && shape.scale > 0.0;
    if q.element == Element::Bf16 && device.kernels() == Kernels::Sm90a && for_hopper {
        return hopper_attention(device, q, k, v, rows, shape, floor);
    }
    let ShapeNumbers { window, scale, softcap } = shape.into();
    let args = AttentionArgs {
        q: q.address(),
        k: k.address(),
        v: v.address(),
        tiles: rows.address(rows.tiles.place),
        path_rows: rows.address(rows.path_rows),
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
    q: &CudaMat,
    k: &CudaMat,
    v: &CudaMat,
    rows: &LayoutRows,
    shape: &AttentionShape,
    floor: Floor,
) -> Result<()> {
    let (heads, tiles) =
        if shape.group_size().is_multiple_of(2) { (2, &rows.tiles) } else { (1, &rows.double_tiles) };
    if tiles.count == 0 {
        return Ok(());
    }
    let head_blocks = shape.num_attention_heads / heads;
    let ShapeNumbers { window, scale, softcap } = shape.into();
    let boxes = |mat: &CudaMat, rows| device.tensor_map(&mat.in_boxes(rows));
    let args = HopperAttentionArgs {
        q: boxes(q, 64)?,
        k: [boxes(k, 64)?, boxes(k, 1)?],
        v: [boxes(v, 64)?, boxes(v, 1)?],
        out: q.address(),
        tiles: rows.address(tiles.place),
        path_rows: rows.address(rows.path_rows),
        pitch: q.pitch(),
        heads: heads as i32,
        head_blocks: head_blocks as i32,
        tile_count: tiles.count as i32,
        group: shape.group_size() as i32,
        window,
        scale,
        softcap,
        unused: 0,
    };
    let (boxes, keys) = (shape.head_dim.div_ceil(64), if shape.head_dim > 128 { 64 } else { 128 });
    let shared_bytes = (2 * 64 + 2 * 2 * keys) * boxes * 64 * 2 + 13 * 8;
    let blocks = (tiles.count * head_blocks).min(device.multiprocessors() as usize);
    let kernel = format!("attention_sm90_{}", shape.head_dim);
    let launch =
        Launch { grid: [blocks as u32, 1, 1], threads: 384, shared_bytes: shared_bytes as u32, floor };
    device.launch(&kernel, launch, args.as_bytes())
}

/// How keys are scored.
struct Scoring {
    kernel: String,
    /// Of a block.
    tokens: usize,
    shared_bytes: usize,
    /// Threads that share a key.
    lanes: usize,
}

impl Scoring {
    /// Of so many rows that see up to `tokens` tokens.
    fn of(device: &dyn Device, context: Element, shape: &AttentionShape, rows: usize, tokens: usize) -> Self {
        /// Of shared memory that every GPU gives a block.
        const MOST: usize = 96 << 10;
        let (group, dim) = (shape.group_size(), shape.head_dim);
        // `key_score.cu`: three planes of padded queries.
        let shared_bytes = 3 * group.next_multiple_of(8) * (dim.next_multiple_of(64) + 32) * 2;
        if context == Element::Bf16 && dim.is_multiple_of(8) && shared_bytes <= MOST {
            // Up to four times 64 tokens, where there are blocks enough for all multiprocessors then.
            let blocks = rows * shape.num_key_value_heads * tokens.div_ceil(64);
            let times = (blocks / (4 * device.multiprocessors() as usize)).clamp(1, 4);
            return Self { kernel: "key_score_bf16".into(), tokens: 64 * times, shared_bytes, lanes: 1 };
        }
        // `twin_scores.cu`: as many lanes for a key as it has eights of dimensions, which share four tokens.
        let lanes = dim.div_ceil(8).next_power_of_two().max(4);
        let kernel = if context == Element::F32 { "key_score_f32" } else { "key_score_any_bf16" };
        Self { kernel: kernel.into(), tokens: 128 / lanes * 4, shared_bytes: group * lanes * 8 * 4, lanes }
    }
}

/// Attention of the twin rows of a layout over context rows of this type; `args` says where all but what is named here
/// lies.
pub fn twin_attend(
    device: &Arc<dyn Device>,
    context: Element,
    rows: &LayoutRows,
    shape: &AttentionShape,
    args: TwinAttendArgs,
) -> Result<()> {
    let heads = shape.num_attention_heads;
    let scores = Buffer::new(device, rows.score_tokens * heads * 4)?;
    let weight_plane = rows.score_tokens * heads;
    let weights = Buffer::new(device, 3 * weight_plane * 2)?;
    let context_share = Buffer::new(device, rows.twin_count * heads * 4)?;
    let scoring = Scoring::of(device.as_ref(), context, shape, rows.twin_count, rows.most_tokens);
    let ShapeNumbers { window, scale, softcap } = shape.into();
    let args = TwinAttendArgs {
        rows: rows.address(rows.twin_rows),
        path_rows: rows.address(rows.path_rows),
        scores: scores.address(),
        weights: weights.address(),
        weight_plane: weight_plane as i64,
        context_share: context_share.address(),
        heads: heads as i32,
        group: shape.group_size() as i32,
        head_dim: shape.head_dim as i32,
        window,
        score_blocks: rows.most_tokens.div_ceil(scoring.tokens) as i32,
        score_tokens: scoring.tokens as i32,
        lane_bits: scoring.lanes.ilog2() as i32,
        scale,
        softcap,
        ..args
    };
    let twin_rows = rows.twin_count as u32;
    let run = |kernel: &str, grid, threads, shared_bytes, bytes| {
        let launch = Launch { grid, threads, shared_bytes, floor: Floor::of_bytes(bytes) };
        launch_tiles(device.as_ref(), kernel, launch, &args)
    };
    let score_bytes = rows.all_tokens * heads * 4;
    let key_bytes = rows.all_tokens * shape.num_key_value_heads * shape.head_dim * context.size();
    let differences = if args.difference == 0 { 0 } else { key_bytes };
    run(
        &scoring.kernel,
        [twin_rows * args.score_blocks as u32 * shape.num_key_value_heads as u32, 1, 1],
        128,
        scoring.shared_bytes as u32,
        key_bytes + differences + score_bytes,
    )?;
    let weight_bytes = rows.all_tokens * heads * 3 * 2;
    run("twin_softmax", [twin_rows, heads as u32, 1], 128, SUM_BYTES, score_bytes + weight_bytes)?;
    let hidden = args.hidden as usize;
    let blocks =
        |columns| [twin_rows * hidden.div_ceil(columns) as u32, heads.div_ceil(MEAN_HEADS) as u32, 1];
    // Few rows leave most of the device idle.
    let is_narrow = blocks(MEAN_COLUMNS).iter().product::<u32>() * 2 <= device.multiprocessors();
    let (columns, threads, times, suffix) =
        if is_narrow { (NARROW_MEAN_COLUMNS, 64, 2, "narrow_") } else { (MEAN_COLUMNS, 128, 1, "") };
    let stages = times * if context == Element::F32 { 2 } else { 3 };
    let stage_bytes = TOKEN_STEP * (columns + 8) * context.size() + 3 * MEAN_HEADS * (TOKEN_STEP + 8) * 2;
    let mean_bytes = rows.twin_count * heads * hidden * 4;
    let bytes = rows.all_tokens * hidden * context.size() + weight_bytes + mean_bytes;
    let kernel = format!("twin_mean_{suffix}{}", context.name());
    run(&kernel, blocks(columns), threads, (stages * stage_bytes) as u32, bytes)
}
