//! The weight that the branches' keys differ by, made on the device (`key_difference.cu`).

use super::{
    args::{KeyWeightArgs, KeyWeightSide},
    device::{Buffer, Device},
    launch::per_row,
    mat::{Element, pitch},
    weight::{CudaWeight, KeyDifference, Planes, Update, key_difference_planes, vector},
};
use crate::{
    Result,
    backend::{Linear, Norm},
    tensor::Tensor,
    twin::Twin,
};
use std::sync::Arc;

/// The weight of [`Backend::key_difference`](crate::backend::Backend::key_difference), of one plane where context rows are bf16.
pub fn key_weight_difference(
    device: &Arc<dyn Device>,
    norm: Twin<Option<&Norm<CudaWeight<'_>>>>,
    key: Twin<&Linear<CudaWeight<'_>>>,
    context: Element,
) -> Result<KeyDifference> {
    let sides = norm.zip(key).try_map(|(norm, key)| key_side(device, norm, key))?;
    let Tensor { rows, cols, .. } = key.ft.weight.tensor;
    let weight = Planes::unset(device, rows, cols, key_difference_planes(context) > 1)?;
    let has_bias = [sides.pt, sides.ft].iter().any(|side| side.bias != 0 || side.norm_bias != 0);
    let bias = if has_bias { Some(Buffer::new(device, pitch(rows) * 4)?) } else { None };
    let args = KeyWeightArgs {
        side: [sides.pt, sides.ft],
        weight: weight.high.address(),
        low: weight.low(),
        bias: bias.as_ref().map_or(0, Buffer::address),
        pitch: weight.pitch as i64,
        low_plane: weight.low_plane() as i64,
        cols: cols as i32,
        unused: 0,
    };
    let bytes = key.pt.weight.planes(device)?.bytes() + key.ft.weight.planes(device)?.bytes();
    let bytes = bytes + weight.bytes();
    per_row(device.as_ref(), "key_weight_difference", rows, bytes, &args)?;
    Ok(KeyDifference { weight, bias })
}

/// One model's part of it.
fn key_side(
    device: &Arc<dyn Device>,
    norm: Option<&Norm<CudaWeight<'_>>>,
    key: &Linear<CudaWeight<'_>>,
) -> Result<KeyWeightSide> {
    let (planes, update) = (key.weight.planes(device)?, key.weight.update(device)?);
    let side = KeyWeightSide {
        weight: planes.high.address(),
        low: planes.low(),
        bias: vector(device, key.bias.as_ref())?,
        factors: vector(device, norm.map(|norm| &norm.weight))?,
        norm_bias: vector(device, norm.and_then(|norm| norm.bias.as_ref()))?,
        offset: norm.map_or(0.0, |norm| norm.offset as f32),
        ..KeyWeightSide::default()
    };
    Ok(update.map_or(side, |Update { a, b, rank }| KeyWeightSide {
        rank: *rank as i32,
        b: b.high.address(),
        b_low: b.low(),
        a: a.high.address(),
        a_low: a.low(),
        b_pitch: b.pitch as i64,
        b_low_plane: b.low_plane() as i64,
        a_low_plane: a.low_plane() as i64,
        ..side
    }))
}
