//! Launches of rotary embedding.

use super::{
    args::{Args, RotateArgs},
    device::{Device, Floor, Launch},
    layout::{LayoutRows, Rotation},
    mat::CudaMat,
};
use crate::{
    Result,
    backend::{RopeOf, Rows},
};

/// Turns one matrix, or two with the same rows.
pub fn rotate(
    device: &dyn Device,
    mats: &[&CudaMat],
    head_dim: usize,
    layout: &LayoutRows,
    rows: Rows,
    rope: RopeOf,
) -> Result<()> {
    if mats[0].rows == 0 {
        return Ok(());
    }
    let Rotation { sequence, position, tables, half } = layout.rotation(rows, rope);
    let mut args = RotateArgs {
        sequence,
        position,
        tables,
        head_dim: head_dim as i32,
        half: half as i32,
        ..RotateArgs::default()
    };
    for (i, mat) in mats.iter().enumerate() {
        args.x[i] = mat.address();
        args.pitch[i] = mat.pitch();
        args.heads[i] = (mat.cols / head_dim) as i32;
    }
    let floor = Floor::of_bytes(2 * mats.iter().map(|mat| mat.bytes()).sum::<usize>());
    let grid = [mats[0].rows as u32, mats.len() as u32, 1];
    let launch = Launch { grid, threads: 64, shared_bytes: 0, floor };
    device.launch(&format!("rotate_{}", mats[0].element.name()), launch, args.as_bytes())
}
