//! Weights on the device. A matrix is kept as bf16; what its elements have beyond that, in checkpoints of another type and under
//! adapters, is kept as two more bf16 numbers each, for the products of twin rows.

use super::{
    args::Address,
    device::{Buffer, Device, as_bytes},
    mat::pitch,
};
use crate::{
    Result,
    tensor::{Dtype, Tensor},
};
use half::bf16;
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// A weight of the checkpoint, brought to the device when it is first used; clones are the same weight there.
#[derive(Clone)]
pub struct CudaWeight<'w> {
    pub tensor: Tensor<'w>,
    planes: Arc<OnceLock<Planes>>,
    vector: Arc<OnceLock<Buffer>>,
}

/// A matrix `[rows, cols]`: bf16 numbers, and what has to be added to them.
pub struct Planes {
    pub high: Buffer,
    /// Two numbers for each element, in two planes.
    low: Option<Buffer>,
    rows: usize,
    /// From one row to the next, in elements.
    pub pitch: usize,
}

impl Planes {
    /// A matrix of bf16 numbers, or of sums of three, that a kernel has yet to write.
    pub fn unset(device: &Arc<dyn Device>, rows: usize, cols: usize, has_low: bool) -> Result<Self> {
        Self::of(rows, cols, has_low, |bytes| Buffer::new(device, bytes))
    }

    /// The same, for a weight of the checkpoint.
    fn for_weight(device: &Arc<dyn Device>, rows: usize, cols: usize, has_low: bool) -> Result<Self> {
        Self::of(rows, cols, has_low, |bytes| Buffer::for_weight(device, bytes))
    }

    fn of(rows: usize, cols: usize, has_low: bool, buffer: impl Fn(usize) -> Result<Buffer>) -> Result<Self> {
        let pitch = pitch(cols);
        let planes = |count: usize| buffer(count * rows * pitch * 2);
        Ok(Self { high: planes(1)?, low: has_low.then(|| planes(2)).transpose()?, rows, pitch })
    }

    pub fn bytes(&self) -> usize {
        self.low_plane() * 2 * if self.low.is_some() { 3 } else { 1 }
    }

    /// From one plane to the next, in elements.
    pub fn low_plane(&self) -> usize {
        self.rows * self.pitch
    }

    /// 0 where every element is a bf16 number.
    pub fn low(&self) -> Address {
        self.low.as_ref().map_or(0, Buffer::address)
    }
}

impl<'w> CudaWeight<'w> {
    pub fn new(tensor: Tensor<'w>) -> Self {
        Self { tensor, planes: Arc::default(), vector: Arc::default() }
    }

    /// As a matrix.
    pub fn planes(&self, device: &Arc<dyn Device>) -> Result<&Planes> {
        get_or_try(&self.planes, || upload(device, &self.tensor))
    }

    /// All elements in f32, padded with zeros: norms and biases.
    pub fn vector(&self, device: &Arc<dyn Device>) -> Result<Address> {
        let load = || {
            let mut values = self.tensor.to_f32();
            values.resize(pitch(values.len()), 0.0);
            let buffer = Buffer::for_weight(device, size_of_val(values.as_slice()))?;
            buffer.fill(0, as_bytes(&values))?;
            Ok(buffer)
        };
        Ok(get_or_try(&self.vector, load)?.address())
    }
}

fn get_or_try<T>(cell: &OnceLock<T>, load: impl FnOnce() -> Result<T>) -> Result<&T> {
    if cell.get().is_none() {
        // Another thread may have been faster: then its value stays.
        let _ = cell.set(load()?);
    }
    Ok(cell.get().expect("just set"))
}

fn upload(device: &Arc<dyn Device>, tensor: &Tensor<'_>) -> Result<Planes> {
    let Tensor { rows, cols, .. } = *tensor;
    let pitch = pitch(cols);
    if let (Some(bytes), true) = (tensor.as_stored(Dtype::Bf16), pitch == cols) {
        let planes = Planes::for_weight(device, rows, cols, false)?;
        planes.high.fill(0, bytes)?;
        return Ok(planes);
    }
    let mut planes: [Vec<u16>; 3] = std::array::from_fn(|_| vec![0; rows * pitch]);
    let [high, middle, low] = &mut planes;
    let exact = high
        .par_chunks_exact_mut(pitch)
        .zip(middle.par_chunks_exact_mut(pitch).zip(low.par_chunks_exact_mut(pitch)))
        .enumerate()
        .map_init(
            || vec![0.0f32; cols],
            |wide, (row, (high, (middle, low)))| {
                tensor.widen_run(row, 0..cols, wide);
                let mut exact = true;
                for (col, value) in wide.iter().enumerate() {
                    let mut rest = *value;
                    for plane in [&mut *high, &mut *middle, &mut *low] {
                        let part = bf16::from_f32(rest);
                        plane[col] = part.to_bits();
                        rest -= part.to_f32();
                    }
                    exact &= middle[col] == 0;
                }
                exact
            },
        )
        .reduce(|| true, |a, b| a && b);
    let target = Planes::for_weight(device, rows, cols, !exact)?;
    let [high, middle, low] = &planes;
    target.high.fill(0, as_bytes(high))?;
    if let Some(buffer) = &target.low {
        buffer.fill(0, as_bytes(middle))?;
        buffer.fill(target.low_plane() * 2, as_bytes(low))?;
    }
    Ok(target)
}
