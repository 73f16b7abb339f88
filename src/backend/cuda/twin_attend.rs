//! Launches of twin rows' attention.

use super::{
    args::{HopperKeyScoreArgs, HopperTwinMeanArgs, TwinAttendArgs},
    attention::{ShapeNumbers, path_boxes},
    device::{Boxed, Buffer, Device, Floor, Kernels, Launch, Sharing},
    launch::{SUM_BYTES, launch_tiles},
    layout::{LayoutRows, PIECE_TOKENS},
    mat::{CudaMat, Element},
};
use crate::{Result, backend::AttentionShape};
use std::sync::Arc;

/// Heads of a piece of `twin_attend.cuh`, and rows of its tokens' p: three numbers for each head.
const PIECE_HEADS: usize = 32;
const PIECE_ROWS: usize = 3 * PIECE_HEADS;
/// Tokens of a step of `twin_mean.cu`.
const MEAN_STEP: usize = 32;
/// Of shared memory that every GPU gives a block.
const MOST_SHARED_BYTES: usize = 96 << 10;

/// Attention of the twin rows of a layout, and what it takes of the context.
pub struct TwinAttention<'a> {
    pub keys: &'a CudaMat,
    pub difference: Option<&'a CudaMat>,
    pub normalized: &'a CudaMat,
    pub rows: &'a LayoutRows,
    pub shape: &'a AttentionShape,
}

impl TwinAttention<'_> {
    /// `args` says where all but the context lies.
    pub fn run(&self, device: &Arc<dyn Device>, args: TwinAttendArgs) -> Result<()> {
        let Self { keys, difference, normalized, rows, shape } = *self;
        if rows.twin_count == 0 {
            return Ok(());
        }
        let heads = shape.num_attention_heads;
        let scores = Buffer::new(device, rows.score_tokens * heads * 4)?;
        let pieces = rows.score_tokens / PIECE_TOKENS * heads.div_ceil(PIECE_HEADS);
        let weights = Buffer::new(device, pieces * PIECE_ROWS * PIECE_TOKENS * 2)?;
        let context_share = Buffer::new(device, rows.twin_count * heads * 4)?;
        let ShapeNumbers { window, scale, softcap } = shape.into();
        let args = TwinAttendArgs {
            keys: keys.address(),
            difference: difference.map_or(0, CudaMat::address),
            normalized: normalized.address(),
            key_pitch: keys.pitch(),
            difference_pitch: difference.map_or(0, CudaMat::pitch),
            normalized_pitch: normalized.pitch(),
            hidden: normalized.cols as i32,
            rows: rows.address(rows.twin_rows),
            row_count: rows.twin_count as i32,
            path_rows: rows.address(rows.path_rows),
            scores: scores.address(),
            weights: weights.address(),
            context_share: context_share.address(),
            heads: heads as i32,
            group: shape.group_size() as i32,
            head_dim: shape.head_dim as i32,
            window,
            scale,
            softcap,
            ..args
        };
        let device = device.as_ref();
        let score_bytes = rows.all_tokens * heads * 4;
        let key_bytes = rows.all_tokens * keys.cols * keys.element.size();
        let key_bytes = if difference.is_some() { 2 * key_bytes } else { key_bytes };
        self.score(device, Floor::of_bytes(key_bytes + score_bytes), &args)?;
        let weight_bytes = rows.all_tokens * heads * 3 * 2;
        let floor = Floor::of_bytes(score_bytes + weight_bytes);
        let grid = [args.row_count as u32, heads as u32, 1];
        launch_tiles(
            device,
            "twin_softmax",
            Launch { grid, threads: 128, shared_bytes: SUM_BYTES, floor },
            &args,
        )?;
        let normalized_bytes = rows.all_tokens * normalized.cols * normalized.element.size();
        let mean_bytes = rows.twin_count * heads * normalized.cols * 4;
        let weights = Boxed {
            address: weights.address(),
            element: Element::Bf16,
            rows: pieces * PIECE_ROWS,
            cols: PIECE_TOKENS,
            pitch: PIECE_TOKENS,
            box_rows: 3 * 8,
        };
        self.average(device, &weights, Floor::of_bytes(normalized_bytes + weight_bytes + mean_bytes), args)
    }

    /// Whether there are context rows as Hopper's kernels take them; without any there is nothing to bring, and the other kernels do the rest.
    fn suits_hopper(&self, device: &dyn Device) -> bool {
        self.normalized.element == Element::Bf16
            && self.normalized.rows > 0
            && device.kernels() == Kernels::Sm90a
    }

    /// Several times 64 tokens, so that there are still some four pieces of work for each of so many blocks at a time.
    fn times_64_tokens(&self, blocks: usize) -> usize {
        let tiles =
            self.rows.twin_count * self.shape.num_key_value_heads * self.rows.most_tokens.div_ceil(64);
        (tiles / (4 * blocks)).max(1)
    }

    /// `args` for pieces of work of so many tokens, and how many of them there are.
    fn score_args(&self, args: &TwinAttendArgs, tokens: usize) -> (TwinAttendArgs, usize) {
        let score_blocks = self.rows.most_tokens.div_ceil(tokens);
        let args = TwinAttendArgs { score_blocks: score_blocks as i32, score_tokens: tokens as i32, ..*args };
        (args, self.rows.twin_count * score_blocks * self.shape.num_key_value_heads)
    }

    /// `key_score` of `key_score_sm90.cu`, `key_score.cu` or `twin_scores.cu`.
    fn score(&self, device: &dyn Device, floor: Floor, args: &TwinAttendArgs) -> Result<()> {
        let (group, dim, element) = (self.shape.group_size(), self.shape.head_dim, self.keys.element);
        let multiprocessors = device.multiprocessors() as usize;
        let launch = |blocks: usize, threads, shared_bytes: usize| Launch {
            grid: [blocks as u32, 1, 1],
            threads,
            shared_bytes: shared_bytes as u32,
            floor,
        };
        let in_eights = element == Element::Bf16 && dim.is_multiple_of(8);
        // A ring of tiles, 1 KiB with its barriers, and q: of every four heads three numbers, and room for a fourth.
        let boxes = dim.div_ceil(64).next_power_of_two();
        let query_bytes = group.div_ceil(4) * boxes * 16 * 64 * 2;
        let shared_bytes = (64 << 10) + (1 << 10) + query_bytes;
        if in_eights && self.suits_hopper(device) && boxes <= 4 && query_bytes <= 32 << 10 {
            let staying = staying(multiprocessors, shared_bytes);
            let (twin, pieces) = self.score_args(args, 64 * self.times_64_tokens(staying));
            let args = HopperKeyScoreArgs {
                keys: path_boxes(device, self.keys)?,
                difference: match self.difference {
                    Some(difference) => path_boxes(device, difference)?,
                    None => Default::default(),
                },
                twin,
                ..HopperKeyScoreArgs::default()
            };
            let launch = launch(pieces.min(staying), 160, shared_bytes);
            return launch_tiles(device, &format!("key_score_sm90_{}", boxes * 64), launch, &args);
        }
        // `key_score.cu`: three planes of padded queries.
        let shared_bytes = 3 * group.next_multiple_of(8) * (dim.next_multiple_of(64) + 32) * 2;
        if in_eights && shared_bytes <= MOST_SHARED_BYTES {
            let times = self.times_64_tokens(multiprocessors).min(4);
            let (args, pieces) = self.score_args(args, 64 * times);
            return launch_tiles(device, "key_score_bf16", launch(pieces, 128, shared_bytes), &args);
        }
        // `twin_scores.cu`: as many lanes for a key as it has eights of dimensions, which share four tokens.
        let lanes = dim.div_ceil(8).next_power_of_two().max(4);
        let kernel = if element == Element::F32 { "key_score_f32" } else { "key_score_any_bf16" };
        let (args, pieces) = self.score_args(args, 128 / lanes * 4);
        let args = TwinAttendArgs { lane_bits: lanes.ilog2() as i32, ..args };
        launch_tiles(device, kernel, launch(pieces, 128, group * lanes * 8 * 4), &args)
    }

    /// `twin_mean.cu`, or `twin_mean_sm90.cu`, which takes p from `weights`.
    fn average(
        &self,
        device: &dyn Device,
        weights: &Boxed,
        floor: Floor,
        args: TwinAttendArgs,
    ) -> Result<()> {
        let (normalized, rows) = (self.normalized, self.rows.twin_count);
        let multiprocessors = device.multiprocessors() as usize;
        let head_blocks = (args.heads as usize).div_ceil(PIECE_HEADS);
        let column_blocks = |columns: usize| normalized.cols.div_ceil(columns);
        let blocks = |columns| rows * head_blocks * column_blocks(columns);
        // Few rows leave most of the device idle; beside products of context rows there is only room for narrow blocks.
        let is_narrow = device.sharing() == Sharing::Room || blocks(256) * 2 <= multiprocessors;
        let columns = if is_narrow { 64 } else { 256 };
        let suffix = if is_narrow { "_narrow" } else { "" };
        if self.suits_hopper(device) {
            let (threads, stages) = if is_narrow { (160, 3) } else { (384, 4) };
            // A stage has room for a fourth number of each of p; sums of wide blocks have a place on their way out.
            let stage_bytes = PIECE_TOKENS * (columns + 4 * PIECE_HEADS) * 2;
            let sums_bytes = if is_narrow { 0 } else { PIECE_HEADS * (columns + 8) * 4 };
            let shared_bytes = stages * (stage_bytes + 2 * 8) + sums_bytes;
            // Blocks stay: as many narrow ones as find room, wide ones two that are neighbours in columns together.
            let count = match is_narrow {
                true => blocks(64).min(staying(multiprocessors, shared_bytes)),
                false => 2 * blocks(512).min(multiprocessors / 2),
            };
            let args = HopperTwinMeanArgs {
                normalized: path_boxes(device, normalized)?,
                weights: device.tensor_map(weights)?,
                twin: args,
                ..HopperTwinMeanArgs::default()
            };
            let shared_bytes = shared_bytes as u32;
            let launch = Launch { grid: [count as u32, 1, 1], threads, shared_bytes, floor };
            return launch_tiles(device, &format!("twin_mean_sm90{suffix}_bf16"), launch, &args);
        }
        let (element, threads) = (normalized.element, if is_narrow { 64 } else { 128 });
        let stages = if element == Element::F32 { 2 } else { 3 } * if is_narrow { 2 } else { 1 };
        let stage_bytes = MEAN_STEP * (columns + 8) * element.size() + 3 * PIECE_HEADS * (MEAN_STEP + 8) * 2;
        let grid = [(rows * column_blocks(columns)) as u32, head_blocks as u32, 1];
        let launch = Launch { grid, threads, shared_bytes: (stages * stage_bytes) as u32, floor };
        launch_tiles(device, &format!("twin_mean{suffix}_{}", element.name()), launch, &args)
    }
}

/// Blocks for Hopper that stay: as many as find room at a time, each taking 1 KiB more of a multiprocessor's 228 than it asks for.
fn staying(multiprocessors: usize, shared_bytes: usize) -> usize {
    multiprocessors * ((228 << 10) / (shared_bytes + (1 << 10)))
}
