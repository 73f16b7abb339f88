//! What launches have in common: kernels that go over rows, and those whose tiles may be none. Threads are those of `kernels/*.cu`.

use super::{
    args::{Args, RowsArgs},
    device::{Device, Floor, Launch},
    mat::CudaMat,
};
use crate::Result;

/// Threads of kernels that take one row a block, or one warp a part of a row.
pub const ROW_THREADS: u32 = 256;
/// What [`ROW_THREADS`] need to sum: one f64 a warp.
pub const SUM_BYTES: u32 = ROW_THREADS / 32 * 8;

/// Runs a kernel with one block a row, which reads and writes `bytes` in all.
pub fn per_row<A: Args>(
    device: &dyn Device,
    kernel: &str,
    rows: usize,
    bytes: usize,
    args: &A,
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let floor = Floor::of_bytes(bytes);
    let launch = Launch { grid: [rows as u32, 1, 1], threads: ROW_THREADS, shared_bytes: SUM_BYTES, floor };
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
    per_row(device, kernel, parts.div_ceil(ROW_THREADS as usize / 32), bytes, args)
}

/// `a` and `out` of a kernel of `elementwise.cu`.
pub fn rows_args(a: &CudaMat, out: &CudaMat) -> RowsArgs {
    assert_eq!(a.cols, out.cols, "columns of an operation on rows");
    RowsArgs {
        a: a.address(),
        out: out.address(),
        a_pitch: a.pitch(),
        out_pitch: out.pitch(),
        cols: out.cols as i32,
        ..RowsArgs::default()
    }
}

/// Runs a kernel unless nothing is to be done.
pub fn launch_tiles<A: Args>(device: &dyn Device, kernel: &str, launch: Launch, args: &A) -> Result<()> {
    if launch.grid.contains(&0) { Ok(()) } else { device.launch(kernel, launch, args.as_bytes()) }
}
