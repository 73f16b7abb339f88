//! Rows of the embedding on their way to where layers add to them. Where weights stay on the device, the table does too; otherwise its rows
//! are gathered on the host, since a large vocabulary's table takes much memory and few of its rows are needed.

use super::{
    args::RowsArgs,
    device::{Buffer, Device, as_bytes},
    launch::{per_row, rows_args},
    mat::{CudaMat, Element, pitch},
    weight::{CudaWeight, bf16_rows},
};
use crate::{Result, tensor::Tensor};
use std::sync::Arc;

/// Rows in bf16 that are brought together.
const TOGETHER: usize = 4096;

/// A table of embeddings.
pub struct CudaTable<'w> {
    pub tensor: Tensor<'w>,
    /// The same on the device, brought there with the first rows that are asked for; `None`: it stays on the host.
    pub kept: Option<CudaWeight<'w>>,
}

/// `out[i] = table[token_ids[i]]`
pub fn embed(
    device: &Arc<dyn Device>,
    token_ids: &[u32],
    table: &CudaTable<'_>,
    out: &CudaMat,
) -> Result<()> {
    let CudaTable { tensor, kept } = table;
    assert_eq!((out.element, out.cols), (Element::F32, tensor.cols), "a stream of the table's rows");
    assert!(token_ids.iter().all(|id| (*id as usize) < tensor.rows), "ids of the table's rows");
    match (kept, bf16_rows(tensor)) {
        (Some(kept), _) => look_up(device, token_ids, kept, out),
        (None, Some(stored)) => bring_bf16(device, token_ids, stored, out),
        (None, None) => bring(device, token_ids, tensor, out),
    }
}

/// Of a table on the device.
fn look_up(device: &Arc<dyn Device>, token_ids: &[u32], table: &CudaWeight<'_>, out: &CudaMat) -> Result<()> {
    let (element, a) = table.rows(device)?;
    let rows = Buffer::of(device, &token_ids.iter().map(|id| *id as i32).collect::<Vec<_>>())?;
    let args = RowsArgs {
        a,
        rows: rows.address(),
        out: out.address(),
        a_pitch: pitch(out.cols) as i64,
        out_pitch: out.pitch(),
        cols: out.cols as i32,
        ..RowsArgs::default()
    };
    let kernel = format!("gather_{}_f32", element.name());
    let bytes = token_ids.len() * (pitch(out.cols) * element.size() + out.row_bytes());
    per_row(device.as_ref(), &kernel, token_ids.len(), bytes, &args)
}

/// Of a table on the host, whose rows are widened there.
fn bring(device: &Arc<dyn Device>, token_ids: &[u32], table: &Tensor<'_>, out: &CudaMat) -> Result<()> {
    let row_bytes = out.row_bytes();
    device.write(out.address(), token_ids.len() * row_bytes, &|from, part| {
        let mut row = vec![0.0f32; row_bytes / 4];
        for_rows(from, part, row_bytes, |index, within, part| {
            table.widen_run(token_ids[index] as usize, 0..table.cols, &mut row);
            part.copy_from_slice(&as_bytes(&row)[within..within + part.len()]);
        });
    })
}

/// Of a table in bf16 on the host, whose rows are widened on the device.
fn bring_bf16(device: &Arc<dyn Device>, token_ids: &[u32], table: &[u8], out: &CudaMat) -> Result<()> {
    let row_bytes = out.cols * 2;
    let mut some = CudaMat::new(out.lane, Element::Bf16, out.cols);
    for (index, token_ids) in token_ids.chunks(TOGETHER).enumerate() {
        some.resize(device, token_ids.len())?;
        device.write(some.address(), some.bytes(), &|from, part| {
            for_rows(from, part, row_bytes, |index, within, part| {
                let at = token_ids[index] as usize * row_bytes + within;
                part.copy_from_slice(&table[at..at + part.len()]);
            });
        })?;
        let args = RowsArgs { out: out.row_address(index * TOGETHER), ..rows_args(&some, out) };
        per_row(device.as_ref(), "copy_bf16_f32", some.rows, some.bytes() * 3, &args)?;
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
