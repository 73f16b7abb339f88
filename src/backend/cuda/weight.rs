//! Weights on the device. A matrix is kept as bf16; what its elements have beyond that, in checkpoints of another type and under
//! adapters, is kept as a second bf16 number each, for the products of twin rows.

use super::{
    args::Address,
    device::{Buffer, Device},
    mat::pitch,
};
use crate::{
    Result,
    tensor::{Dtype, Tensor},
};
use half::bf16;
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// A weight of the checkpoint, brought to the device when it is first used.
pub struct CudaWeight<'w> {
    pub tensor: Tensor<'w>,
    planes: OnceLock<Planes>,
    vector: OnceLock<Buffer>,
}

/// A matrix `[rows, cols]`: bf16 numbers, and what has to be added to them.
pub struct Planes {
    pub high: Buffer,
    low: Option<Buffer>,
    /// From one row to the next, in elements.
    pub pitch: usize,
}

impl Planes {
    /// A matrix of bf16 numbers that a kernel will write.
    pub fn unset(device: &Arc<dyn Device>, rows: usize, cols: usize) -> Result<Self> {
        let pitch = pitch(cols);
        Ok(Self { high: Buffer::new(device, rows * pitch * 2)?, low: None, pitch })
    }

    /// 0 where every element is a bf16 number.
    pub fn low(&self) -> Address {
        self.low.as_ref().map_or(0, Buffer::address)
    }
}

impl<'w> CudaWeight<'w> {
    pub fn new(tensor: Tensor<'w>) -> Self {
        Self { tensor, planes: OnceLock::new(), vector: OnceLock::new() }
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
            Buffer::of(device, &values)
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
        let planes = Planes::unset(device, rows, cols)?;
        device.upload(planes.high.address(), bytes)?;
        return Ok(planes);
    }
    let (mut high, mut low) = (vec![0u16; rows * pitch], vec![0u16; rows * pitch]);
    let exact = high
        .par_chunks_exact_mut(pitch)
        .zip(low.par_chunks_exact_mut(pitch))
        .enumerate()
        .map_init(
            || vec![0.0f32; cols],
            |wide, (row, (high, low))| {
                tensor.widen_run(row, 0..cols, wide);
                let mut exact = true;
                for ((value, high), low) in wide.iter().zip(high).zip(low) {
                    let rounded = bf16::from_f32(*value);
                    *high = rounded.to_bits();
                    *low = bf16::from_f32(value - rounded.to_f32()).to_bits();
                    exact &= rounded.to_f32() == *value;
                }
                exact
            },
        )
        .reduce(|| true, |a, b| a && b);
    let low = if exact { None } else { Some(Buffer::of(device, &low)?) };
    Ok(Planes { high: Buffer::of(device, &high)?, low, pitch })
}
