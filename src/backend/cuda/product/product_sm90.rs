//! Products of rows in bf16 on Hopper: `product_sm90.cu`.

use super::{Operand, Product, tile_columns};
use crate::{
    Result,
    backend::cuda::{
        args::{Args, HopperProductArgs},
        device::{Device, Launch, Sharing},
        weight::Planes,
    },
};

/// [`Product::run_all`] of whole rows, by tiles of 128 rows and 256 or 128 columns, those of gated products half of each weight's, by pairs of
/// blocks that stay.
pub fn run(device: &dyn Device, products: &[Product<'_>]) -> Result<()> {
    let Product { epilogue, a, out, .. } = products[0];
    const CLUSTER: usize = 2;
    if a.rows == 0 {
        return Ok(());
    }
    let col_tiles = |product: &Product<'_>, tile| (product.weights.len() * product.out.cols).div_ceil(tile);
    let clusters = |tile: usize| {
        a.rows.div_ceil(128 * CLUSTER)
            * products.iter().map(|product| col_tiles(product, tile)).sum::<usize>()
    };
    let at_once = device.multiprocessors() as usize / CLUSTER;
    let tile = match device.sharing() {
        // Narrow blocks leave others room; where those take more than a turn and wide ones do not, wide ones are soon gone.
        Sharing::Room if clusters(256) <= at_once && at_once < clusters(128) => 256,
        Sharing::Room => 128,
        Sharing::One | Sharing::Tails => tile_columns(at_once, clusters),
    };
    let (boxes, suffix) = if tile == 128 { (1, "narrow_") } else { (2, "") };
    let mut args = HopperProductArgs {
        a: device.tensor_map(&a.in_boxes(128))?,
        m: a.rows as i32,
        k: a.cols as i32,
        activation: epilogue.activation(),
        parameters: epilogue.parameters(),
        ..HopperProductArgs::default()
    };
    let weight_map =
        |planes: &Planes, cols: usize| device.tensor_map(&planes.in_boxes(cols, tile as u32 / 2));
    for (i, product) in products.iter().enumerate() {
        args.out[i] = device.tensor_map(&product.out.in_boxes(64))?;
        args.n[i] = product.out.cols as i32;
    }
    let weights = products.iter().flat_map(|product| product.weights.iter().zip(&product.inner));
    for (i, (Operand { planes, update, bias }, inner)) in weights.enumerate() {
        args.b[i] = weight_map(planes, a.cols)?;
        args.bias[i] = *bias;
        if let (Some(update), Some(inner)) = (update, inner) {
            args.update_a[i] = device.tensor_map(&inner.in_boxes(128))?;
            args.update_b[i] = weight_map(&update.b, update.rank)?;
            args.update_k[i] = update.rank as i32;
        }
    }
    let kernel = format!("product_sm90_{suffix}{}", epilogue.kernel(out.element));
    const STAGES: usize = 4;
    let shared_bytes = STAGES * (128 + tile) * 64 * 2 + 2 * boxes * 64 * 128 + 2 * STAGES * 8;
    let launch = Launch {
        grid: [(clusters(tile).min(at_once) * CLUSTER) as u32, 1, 1],
        threads: 384,
        shared_bytes: shared_bytes as u32,
        floor: Product::floor_of_all(products, a.rows),
    };
    device.launch(&kernel, launch, args.as_bytes())
}
