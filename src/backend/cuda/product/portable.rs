//! Products of rows in bf16 and in f32 on every GPU: `product.cu`, `twin_product.cu`.

use super::{Operand, Product, tile_columns};
use crate::{
    Result,
    backend::cuda::{
        args::{ProductArgs, ProductUpdate},
        device::{Device, Launch},
        launch::launch_tiles,
        mat::Element,
    },
};

/// [`Product::run`]
pub fn run(device: &dyn Device, product: &Product<'_>) -> Result<()> {
    let Product { epilogue, a, weights, inner, out, first, heads, group } = product;
    // From one head to the next.
    let of_head = |cols: usize| if *heads == 1 { 0 } else { (cols / heads) as i32 };
    let mut args = ProductArgs {
        a: a.address(),
        out: out.row_address(*first),
        a_pitch: a.pitch(),
        out_pitch: out.pitch(),
        m: (a.rows * group) as i32,
        n: product.cols() as i32,
        k: (a.cols / heads) as i32,
        activation: epilogue.activation(),
        parameters: epilogue.parameters(),
        group: *group as i32,
        a_head: of_head(a.cols),
        out_head: of_head(out.cols),
        ..ProductArgs::default()
    };
    for (i, (Operand { planes, update, bias }, inner)) in weights.iter().zip(inner).enumerate() {
        (args.b[i], args.b_low[i], args.bias[i]) = (planes.high.address(), planes.low(), *bias);
        (args.b_pitch, args.b_low_plane) = (planes.pitch as i64, planes.low_plane() as i64);
        if let (Some(update), Some(inner)) = (update, inner) {
            args.update[i] = ProductUpdate {
                a: inner.address(),
                b: update.b.high.address(),
                b_low: update.b.low(),
                a_pitch: inner.pitch(),
                b_pitch: update.b.pitch as i64,
                b_low_plane: update.b.low_plane() as i64,
                k: update.rank as i32,
                a_head: of_head(inner.cols),
            };
        }
    }
    match a.element {
        Element::Bf16 => bf16_product(device, product, &args),
        Element::F32 => twin_product(device, product, &args),
    }
}

/// `product.cu`: tiles of 128 rows and 256 or 128 columns, those of gated products half of each weight's.
fn bf16_product(device: &dyn Device, product: &Product<'_>, args: &ProductArgs) -> Result<()> {
    let Product { epilogue, a, weights, out, .. } = product;
    let (rows, cols) = (args.m as usize, weights.len() * args.n as usize);
    let tiles = |columns| rows.div_ceil(128) * cols.div_ceil(columns);
    let columns = tile_columns(device.multiprocessors() as usize, tiles);
    let (suffix, stages) = if columns == 128 { ("narrow_", 3) } else { ("", 4) };
    let kernel = format!("product_{suffix}{}", epilogue.kernel(out.element));
    let launch = Launch {
        grid: [tiles(columns) as u32, 1, 1],
        threads: columns as u32,
        shared_bytes: stages * (128 + columns as u32) * 32 * 2,
        floor: product.floor(a.rows),
    };
    launch_tiles(device, &kernel, launch, args)
}

/// `twin_product.cu`: tiles of 64 × 64, gated ones of 32 columns.
fn twin_product(device: &dyn Device, product: &Product<'_>, args: &ProductArgs) -> Result<()> {
    let Product { epilogue, a, weights, heads, group, .. } = product;
    let wide = args.b_low.into_iter().chain(args.update.map(|update| update.b_low)).any(|low| low != 0);
    let (prefix, stages, planes) = if wide { ("wide_", 3, 3) } else { ("", 5, 1) };
    let kernel = format!("twin_product_{prefix}{}", epilogue.name());
    let cols = 64 / weights.len() as u32;
    let grid = [(args.n as u32).div_ceil(cols), (args.m as u32).div_ceil(64), (heads / group) as u32];
    let stage_bytes = 64 * (32 + 4) * 4 + planes * 64 * (32 + 8) * 2;
    let floor = product.floor(a.rows);
    let launch = Launch { grid, threads: 128, shared_bytes: stages * stage_bytes, floor };
    launch_tiles(device, &kernel, launch, args)
}
