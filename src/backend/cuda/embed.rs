//! Rows of the embedding on their way to the device. They are gathered on the host: the table never takes memory there.

use super::{
    args::RowsArgs,
    device::{Device, as_bytes},
    launch::{ROW_THREADS, per_row, rows_args},
    mat::{CudaMat, Element, pitch},
};
use crate::{
    Result,
    tensor::{Dtype, Tensor},
};
use std::sync::Arc;

/// Rows in bf16 that are brought together.
const TOGETHER: usize = 4096;

/// `out[i] = table[token_ids[i]]`
pub fn embed(device: &Arc<dyn Device>, token_ids: &[u32], table: &Tensor<'_>, out: &CudaMat) -> Result<()> {
    let row_bytes = out.row_bytes();
    if let (Some(stored), true) = (table.as_stored(Dtype::Bf16), pitch(out.cols) == out.cols) {
        return embed_bf16(device, token_ids, stored, out);
    }
    device.write(out.address(), token_ids.len() * row_bytes, &|from, part| {
        let mut row = vec![0.0f32; row_bytes / 4];
        for_rows(from, part, row_bytes, |index, within, part| {
            table.widen_run(token_ids[index] as usize, 0..table.cols, &mut row);
            part.copy_from_slice(&as_bytes(&row)[within..within + part.len()]);
        });
    })
}

/// Of a table in bf16, whose rows are widened on the device.
fn embed_bf16(device: &Arc<dyn Device>, token_ids: &[u32], table: &[u8], out: &CudaMat) -> Result<()> {
    let row_bytes = out.cols * 2;
    let mut some = CudaMat::new(out.kind, Element::Bf16, out.cols);
    for (index, token_ids) in token_ids.chunks(TOGETHER).enumerate() {
        some.resize(device, token_ids.len())?;
        device.write(some.address(), some.bytes(), &|from, part| {
            for_rows(from, part, row_bytes, |index, within, part| {
                let at = token_ids[index] as usize * row_bytes + within;
                part.copy_from_slice(&table[at..at + part.len()]);
            });
        })?;
        let args = RowsArgs { out: out.row_address(index * TOGETHER), ..rows_args(&some, out) };
        per_row(device.as_ref(), "copy_bf16_f32", some.rows, ROW_THREADS, some.bytes() * 3, &args)?;
    }
    Ok(())
}

/// Calls `each(row, byte in it, bytes)` for the rows of `row_bytes` bytes that have a share in `part`, which begins at byte `from`
/// of all rows.
fn for_rows(
    mut from: usize,
    mut part: &mut [u8],
    row_bytes: usize,
    mut each: impl FnMut(usize, usize, &mut [u8]),
) {
    while !part.is_empty() {
        let within = from % row_bytes;
        let (of_row, rest) = part.split_at_mut(part.len().min(row_bytes - within));
        from += of_row.len();
        each((from - 1) / row_bytes, within, of_row);
        part = rest;
    }
}
