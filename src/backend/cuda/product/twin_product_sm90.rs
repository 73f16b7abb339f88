//! Products of rows in f32 on Hopper: `twin_product_sm90.cu`.

use super::{Operand, Product};
use crate::{
    Result,
    backend::cuda::{
        args::{Args, HopperTwinProductArgs, SplitArgs, TensorMap, UnsplitRows},
        device::{Boxed, Device, Floor, Launch},
        launch::ROW_THREADS,
        mat::{CudaMat, Element},
        weight::Planes,
    },
};
use std::{ops::Range, sync::Arc};

/// Rows of weights of a tile, which come in boxes of half as many.
const WEIGHT_ROWS: usize = 128;
/// Columns of a step: 128 bytes.
const STEP: usize = 64;
/// Products that one launch makes at most.
const TOGETHER: usize = 2;
/// How the work is divided among blocks.
struct Tile {
    name: &'static str,
    rows: usize,
    /// Steps in flight.
    stages: usize,
    /// Blocks that share the steps.
    cluster: usize,
    threads: u32,
}

const TILES: [Tile; 6] = [
    Tile { name: "8", rows: 8, stages: 4, cluster: 4, threads: 352 },
    Tile { name: "32", rows: 32, stages: 4, cluster: 4, threads: 288 },
    Tile { name: "64", rows: 64, stages: 5, cluster: 4, threads: 288 },
    Tile { name: "128", rows: 128, stages: 3, cluster: 4, threads: 384 },
    Tile { name: "halves", rows: 96, stages: 4, cluster: 2, threads: 384 },
    Tile { name: "whole", rows: 96, stages: 4, cluster: 1, threads: 384 },
];

impl Tile {
    /// What takes least time for so many rows, tiles of weights and steps.
    fn choose(device: &dyn Device, rows: usize, weight_tiles: usize, steps: usize) -> &'static Self {
        /// What a step takes at least, and what a block takes to begin and to end, both in rows.
        const MEMORY: usize = 72;
        const ENDS: usize = 512;
        let time = |tile: &&Self| {
            let blocks = tile.blocks(rows, weight_tiles);
            let turns = blocks.div_ceil(tile.at_once(device.multiprocessors() as usize));
            turns * (steps.div_ceil(tile.cluster) * tile.rows.max(MEMORY) + ENDS)
        };
        TILES.iter().min_by_key(time).expect("there are some")
    }

    /// Blocks that run at a time. Multiprocessors of a GPU come in groups that are not all of a multiple of four, and a cluster lies in one: 30
    /// of four fit on the 132 of an H200 (`cuOccupancyMaxActiveClusters`). Of blocks with few rows two fit on each, so as many as there are
    /// multiprocessors always run.
    fn at_once(&self, multiprocessors: usize) -> usize {
        if self.cluster < 4 || self.rows < 64 {
            multiprocessors
        } else {
            (multiprocessors * 10 / 11 / 4 * 4).max(4)
        }
    }

    fn blocks(&self, rows: usize, weight_tiles: usize) -> usize {
        rows.div_ceil(self.rows) * weight_tiles * self.cluster
    }

    /// Whether its blocks split the rows themselves.
    fn splits(&self) -> bool {
        self.rows == 8
    }
}

/// [`Product::run`], of several products of the same rows.
pub fn run(device: &Arc<dyn Device>, products: &[Product<'_>]) -> Result<()> {
    let Product { a, heads, group, .. } = products[0];
    let steps = (a.cols / heads).div_ceil(STEP);
    // As many go through all weights together as the cache has room for when they are split.
    let in_cache = device.cache_bytes() / (3 * a.row_bytes() / 2);
    let together = (in_cache / 128).max(1) * 128;
    for first in (0..a.rows).step_by(together) {
        let rows = first..a.rows.min(first + together);
        let mut planes = None;
        for products in products.chunks(TOGETHER) {
            let weight_tiles = weight_tiles(products) * (heads / group);
            let tile = Tile::choose(device.as_ref(), rows.len() * group, weight_tiles, steps);
            if !tile.splits() && planes.is_none() {
                planes = Some(products[0].split(device, a, a.cols / heads, &rows)?);
            }
            multiply(device, products, tile, planes.as_ref(), &rows)?;
        }
    }
    Ok(())
}

/// Tiles of weights of products that one launch makes.
fn weight_tiles(products: &[Product<'_>]) -> usize {
    products.iter().map(|product| (product.weights.len() * product.cols()).div_ceil(WEIGHT_ROWS)).sum()
}

impl Product<'_> {
    /// Some rows, or `cols` of each of their heads, as sums of three bf16 numbers: three planes, one below the other, of each group's heads.
    fn split(
        &self,
        device: &Arc<dyn Device>,
        mat: &CudaMat,
        cols: usize,
        rows: &Range<usize>,
    ) -> Result<CudaMat> {
        /// Columns of a block.
        const COLS: usize = ROW_THREADS as usize * 4;
        let mut planes = CudaMat::new(self.out.lane, Element::Bf16, cols);
        planes.resize(device, 3 * rows.len() * self.heads)?;
        let args = SplitArgs {
            a: mat.row_address(rows.start),
            out: planes.address(),
            a_pitch: mat.pitch(),
            out_pitch: planes.pitch(),
            cols: cols as i32,
            heads: self.heads as i32,
            group: self.group as i32,
            a_head: (mat.cols / self.heads) as i32,
        };
        let launch = Launch {
            grid: [(rows.len() * self.heads) as u32, cols.div_ceil(COLS) as u32, 1],
            threads: ROW_THREADS,
            shared_bytes: 0,
            floor: Floor::of_bytes(rows.len() * mat.row_bytes() + planes.bytes()),
        };
        device.launch("split_f32", launch, args.as_bytes())?;
        Ok(planes)
    }
}

/// Products of the same rows, by one launch; `planes` are the rows where the tile's blocks do not split them.
fn multiply(
    device: &Arc<dyn Device>,
    products: &[Product<'_>],
    tile: &Tile,
    planes: Option<&CudaMat>,
    rows: &Range<usize>,
) -> Result<()> {
    let Product { epilogue, a, out, heads, group, .. } = products[0];
    let (groups, m, k) = (heads / group, rows.len() * group, a.cols / heads);
    let boxes = |planes: &CudaMat| device.tensor_map(&planes.in_boxes(tile.rows as u32));
    let unsplit = |mat: &CudaMat| UnsplitRows {
        from: mat.row_address(rows.start),
        pitch: mat.pitch(),
        head: (mat.cols / heads) as i64,
    };
    let mut args = HopperTwinProductArgs {
        a: if tile.splits() { TensorMap::default() } else { boxes(planes.expect("they were split"))? },
        rows: unsplit(a),
        m: m as i32,
        k: k as i32,
        activation: epilogue.activation(),
        parameters: epilogue.parameters(),
        group: group as i32,
        out_head: (out.cols / heads) as i32,
        ..HopperTwinProductArgs::default()
    };
    for (i, product) in products.iter().enumerate() {
        args.out[i] = product.out.row_address(product.first + rows.start);
        args.out_pitch[i] = product.out.pitch();
    }
    let weights = products.iter().flat_map(|product| {
        product.weights.iter().zip(&product.inner).map(move |(weight, inner)| (product, weight, inner))
    });
    // Until all is asked for.
    let mut split = Vec::new();
    for (i, (product, Operand { planes, update, bias }, inner)) in weights.enumerate() {
        (args.b[i], args.b_low[i], args.planes[i]) = weight_maps(device.as_ref(), planes, k)?;
        args.n[i] = product.cols() as i32;
        args.weight_rows[i] = planes.rows as i32;
        args.bias[i] = *bias;
        if let (Some(update), Some(inner)) = (update, inner) {
            args.update_rows[i] = unsplit(inner);
            if !tile.splits() {
                let inner = product.split(device, inner, update.rank, rows)?;
                args.update_a[i] = boxes(&inner)?;
                split.push(inner);
            }
            (args.update_b[i], args.update_b_low[i], args.update_planes[i]) =
                weight_maps(device.as_ref(), &update.b, update.rank)?;
            args.update_k[i] = update.rank as i32;
        }
    }
    let stage_bytes = (3 * tile.rows + WEIGHT_ROWS) * STEP * 2;
    let launch = Launch {
        grid: [tile.blocks(m, weight_tiles(products)) as u32, groups as u32, 1],
        threads: tile.threads,
        shared_bytes: (tile.stages * (stage_bytes + 2 * 8)) as u32,
        floor: Product::floor_of_all(products, rows.len()),
    };
    let kernel = format!("twin_product_sm90_{}_{}", tile.name, epilogue.name());
    device.launch(&kernel, launch, args.as_bytes())
}

/// Of a weight with `cols` columns: its first plane, the other two where it has them, and how many that are.
fn weight_maps(device: &dyn Device, planes: &Planes, cols: usize) -> Result<(TensorMap, TensorMap, i32)> {
    let high = planes.in_boxes(cols, WEIGHT_ROWS as u32 / 2);
    let low = match planes.low() {
        0 => return Ok((device.tensor_map(&high)?, TensorMap::default(), 1)),
        address => Boxed { address, rows: 2 * planes.rows, ..high },
    };
    Ok((device.tensor_map(&high)?, device.tensor_map(&low)?, 3))
}
