//! Weights on the device. A matrix is kept as bf16; what its elements have beyond that, in checkpoints of another type, is kept as two
//! more bf16 numbers each, for products of rows in f32. What an adapter adds is kept beside the matrix, which is then the same as the
//! other model's; where it does more than add, the result is kept as a matrix of its own.

use super::{
    args::Address,
    device::{Boxed, Buffer, Device, as_bytes},
    mat::{Element, pitch},
};
use crate::{
    Error, ErrorKind, Result,
    model::{LayerTensor, PairWeights},
    sync::lock,
    tensor::{Addend, Dtype, Tensor, View},
    twin::Branch,
};
use half::bf16;
use rayon::prelude::*;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, OnceLock, Weak},
};

/// Rows that are widened on the host at once.
const WIDENED_ROWS: usize = 1024;

/// A weight of the checkpoint, brought to the device when it is first used; clones are the same weight there.
#[derive(Clone)]
pub struct CudaWeight<'w> {
    pub tensor: Tensor<'w>,
    /// What is in `planes`: all of `tensor`, or all but what an adapter adds.
    matrix: Tensor<'w>,
    planes: Arc<OnceLock<Planes>>,
    update: Option<Arc<OnceLock<Update>>>,
    /// In f32: of a vector, or of a table.
    wide: Arc<OnceLock<Buffer>>,
    /// Of a key weight of the tuned model.
    key_difference: Arc<OnceLock<KeyDifference>>,
    /// It is kept from one batch to the next.
    stays: bool,
}

/// What the pre-trained model's key weight and bias differ by from the tuned model's, norms' factors included.
pub struct KeyDifference {
    pub weight: Planes,
    pub bias: Option<Buffer>,
}

/// What an adapter adds to a weight `[rows, cols]`: `b · a`.
pub struct Update {
    /// `[rank, cols]`
    pub a: Planes,
    /// `[rows, rank]`
    pub b: Planes,
    pub rank: usize,
}

/// A matrix `[rows, cols]`: bf16 numbers, and what has to be added to them.
pub struct Planes {
    pub high: Buffer,
    /// Two numbers for each element, in two planes.
    low: Option<Buffer>,
    pub rows: usize,
    /// From one row to the next, in elements.
    pub pitch: usize,
}

/// Matrices on the device that more than one weight may be, by where they lie in their file.
#[derive(Default)]
pub struct Matrices(Mutex<HashMap<Place, Weak<OnceLock<Planes>>>>);

/// What a matrix of a checkpoint is read from, and how.
#[derive(PartialEq, Eq, Hash)]
struct Place {
    bytes: (usize, usize),
    shape: (usize, usize),
    rounded_to: Dtype,
    view: Option<View>,
}

impl Place {
    /// `None` where adapters have a part in it.
    fn of(tensor: &Tensor<'_>) -> Option<Self> {
        let Tensor { stored, rows, cols, rounded_to, view, update } = *tensor;
        let bytes = (stored.bytes.as_ptr().addr(), stored.bytes.len());
        update.is_none().then_some(Self { bytes, shape: (rows, cols), rounded_to, view })
    }
}

impl Matrices {
    /// Where the planes of a matrix are, or will be.
    fn slot(&self, matrix: &Tensor<'_>) -> Arc<OnceLock<Planes>> {
        let Some(place) = Place::of(matrix) else { return Arc::default() };
        let mut slots = lock(&self.0);
        if let Some(slot) = slots.get(&place).and_then(Weak::upgrade) {
            return slot;
        }
        // Those of weights that are gone; other bytes may come to lie in their place.
        slots.retain(|_, slot| slot.strong_count() > 0);
        let slot = Arc::default();
        slots.insert(place, Arc::downgrade(&slot));
        slot
    }
}

impl Planes {
    /// A matrix of bf16 numbers, or of sums of three, that a kernel has yet to write.
    pub fn unset(device: &Arc<dyn Device>, rows: usize, cols: usize, has_low: bool) -> Result<Self> {
        Self::of(rows, cols, has_low, |bytes| Buffer::new(device, bytes))
    }

    /// The same, for a weight of the checkpoint.
    fn for_weight(device: &Arc<dyn Device>, rows: usize, cols: usize, has_low: bool) -> Result<Self> {
        Self::of(rows, cols, has_low, |bytes| Buffer::common(device, bytes))
    }

    fn of(rows: usize, cols: usize, has_low: bool, buffer: impl Fn(usize) -> Result<Buffer>) -> Result<Self> {
        let pitch = pitch(cols);
        let planes = |count: usize| buffer(count * rows * pitch * 2);
        Ok(Self { high: planes(1)?, low: has_low.then(|| planes(2)).transpose()?, rows, pitch })
    }

    pub fn bytes(&self) -> usize {
        self.low_plane() * 2 * if self.low.is_some() { 3 } else { 1 }
    }

    /// The first plane's `cols` columns for copies of boxes.
    pub fn in_boxes(&self, cols: usize, box_rows: u32) -> Boxed {
        let Self { rows, pitch, .. } = *self;
        Boxed { address: self.high.address(), element: Element::Bf16, rows, cols, pitch, box_rows }
    }

    /// From one plane to the next, in elements.
    pub fn low_plane(&self) -> usize {
        self.rows * self.pitch
    }

    /// 0 where every element is a bf16 number.
    pub fn low(&self) -> Address {
        self.low.as_ref().map_or(0, Buffer::address)
    }

    /// A matrix of f32 numbers, of which `read` gives rows.
    fn split(
        device: &Arc<dyn Device>,
        rows: usize,
        cols: usize,
        read: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        let pitch = pitch(cols);
        let mut planes: [Vec<u16>; 3] = std::array::from_fn(|_| vec![0; rows * pitch]);
        let [high, middle, low] = &mut planes;
        let exact = high
            .par_chunks_exact_mut(pitch)
            .zip(middle.par_chunks_exact_mut(pitch).zip(low.par_chunks_exact_mut(pitch)))
            .enumerate()
            .map_init(
                || vec![0.0f32; cols],
                |wide, (row, (high, (middle, low)))| {
                    read(row, wide);
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
        let target = Self::for_weight(device, rows, cols, !exact)?;
        let [high, middle, low] = &planes;
        target.high.fill(0, as_bytes(high))?;
        if let Some(buffer) = &target.low {
            buffer.fill(0, as_bytes(middle))?;
            buffer.fill(target.low_plane() * 2, as_bytes(low))?;
        }
        Ok(target)
    }

    fn of_tensor(device: &Arc<dyn Device>, tensor: &Tensor<'_>) -> Result<Self> {
        let Tensor { rows, cols, .. } = *tensor;
        if let Some(bytes) = bf16_rows(tensor) {
            let planes = Self::for_weight(device, rows, cols, false)?;
            planes.high.fill(0, bytes)?;
            return Ok(planes);
        }
        Self::split(device, rows, cols, |row, wide| tensor.widen_run(row, 0..cols, wide))
    }
}

impl Update {
    fn of(device: &Arc<dyn Device>, tensor: &Tensor<'_>) -> Result<Self> {
        let Tensor { rows, cols, .. } = *tensor;
        let Addend { a, b, rank } = tensor.addend().expect("there is one where there is an update");
        let matrix = |values: &[f32], rows, cols| {
            Planes::split(device, rows, cols, |row, wide| wide.copy_from_slice(&values[row * cols..][..cols]))
        };
        Ok(Self { a: matrix(&a, rank, cols)?, b: matrix(&b, rows, rank)?, rank })
    }

    pub fn bytes(&self) -> usize {
        self.a.bytes() + self.b.bytes()
    }
}

impl<'w> CudaWeight<'w> {
    pub fn new(tensor: Tensor<'w>, matrices: &Matrices, stays: bool) -> Self {
        let matrix = without_addend(&tensor);
        let update = tensor.addend_rank().map(|_| Arc::default());
        Self {
            tensor,
            matrix,
            planes: matrices.slot(&matrix),
            update,
            wide: Arc::default(),
            key_difference: Arc::default(),
            stays,
        }
    }

    /// What was brought to the device before, or is now.
    fn get<'a, T>(&self, cell: &'a OnceLock<T>, load: impl FnOnce() -> Result<T>) -> Result<&'a T> {
        if cell.get().is_none() {
            // Another thread may have been faster: then its value stays.
            let _ = cell.set(load().map_err(|error| self.advised(error))?);
        }
        Ok(cell.get().expect("just set"))
    }

    /// What helps where there is no room for weights that stay, if fewer rows do not.
    fn advised(&self, error: Error) -> Error {
        if error.kind != ErrorKind::OutOfMemory || !self.stays {
            return error;
        }
        let message = format!("the weights do not fit: {error} (--resident off brings them layer by layer)");
        Error::new(error.kind, message)
    }

    /// As a matrix, without its [`CudaWeight::update`].
    pub fn planes(&self, device: &Arc<dyn Device>) -> Result<&Planes> {
        self.get(&self.planes, || Planes::of_tensor(device, &self.matrix))
    }

    /// What an adapter adds to the matrix.
    pub fn update(&self, device: &Arc<dyn Device>) -> Result<Option<&Update>> {
        let load = |slot| self.get(slot, || Update::of(device, &self.tensor));
        self.update.as_deref().map(load).transpose()
    }

    /// A vector's elements in f32, padded with zeros: norms and biases, which are columns of some files.
    pub fn vector(&self, device: &Arc<dyn Device>) -> Result<Address> {
        let load = || {
            let mut values = self.tensor.to_f32();
            values.resize(pitch(values.len()), 0.0);
            Buffer::common_of(device, &values)
        };
        Ok(self.get(&self.wide, load)?.address())
    }

    /// The difference, which `make` makes of weights that stay the same.
    pub fn key_difference(&self, make: impl FnOnce() -> Result<KeyDifference>) -> Result<&KeyDifference> {
        self.get(&self.key_difference, make)
    }

    /// Rows of a table, with an adapter's part: as they are stored where that is bf16, otherwise in f32.
    pub fn rows(&self, device: &Arc<dyn Device>) -> Result<(Element, Address)> {
        Ok(match bf16_rows(&self.tensor) {
            Some(_) => (Element::Bf16, self.planes(device)?.high.address()),
            None => (Element::F32, self.get(&self.wide, || wide(device, &self.tensor))?.address()),
        })
    }
}

/// The address of a vector; 0 where there is none.
pub fn vector(device: &Arc<dyn Device>, weight: Option<&CudaWeight<'_>>) -> Result<Address> {
    weight.map_or(Ok(0), |weight| weight.vector(device))
}

/// The bytes of a matrix in bf16 that lies in its file as on the device.
pub fn bf16_rows<'w>(tensor: &Tensor<'w>) -> Option<&'w [u8]> {
    tensor.as_stored(Dtype::Bf16).filter(|_| pitch(tensor.cols) == tensor.cols)
}

/// Bytes of a table on the device: [`CudaWeight::rows`].
fn table_bytes(table: &Tensor<'_>) -> usize {
    let element = if bf16_rows(table).is_some() { Element::Bf16 } else { Element::F32 };
    table.rows * pitch(table.cols) * element.size()
}

/// A table's elements in f32, each row padded with zeros.
fn wide(device: &Arc<dyn Device>, tensor: &Tensor<'_>) -> Result<Buffer> {
    let Tensor { rows, cols, .. } = *tensor;
    let buffer = Buffer::common(device, rows * pitch(cols) * 4)?;
    for first in (0..rows).step_by(WIDENED_ROWS) {
        let mut values = vec![0.0f32; WIDENED_ROWS.min(rows - first) * pitch(cols)];
        let widened = values.par_chunks_exact_mut(pitch(cols)).enumerate();
        widened.for_each(|(row, out)| tensor.widen_run(first + row, 0..cols, &mut out[..cols]));
        buffer.fill(first * pitch(cols) * 4, as_bytes(&values))?;
    }
    Ok(buffer)
}

/// The matrix that is kept of a tensor; what an adapter adds is kept beside it.
fn without_addend<'w>(tensor: &Tensor<'w>) -> Tensor<'w> {
    if tensor.addend_rank().is_some() { Tensor { update: None, ..*tensor } } else { *tensor }
}

/// Planes of the weight that the context's keys differ by, for context rows of this type.
pub fn key_difference_planes(context: Element) -> usize {
    match context {
        Element::Bf16 => 1,
        Element::F32 => 3,
    }
}

/// Bytes of device memory that the layers of both models, what their key weights differ by, and the embeddings take at most.
pub fn resident_bytes(weights: &dyn PairWeights, context: Element) -> usize {
    let spec = weights.spec();
    let mut places = HashSet::new();
    let mut bytes_of = |branch: Branch, layer, tensor| {
        let Some(tensor) = weights.layer_tensor(branch, layer, tensor) else { return 0 };
        let matrix = without_addend(&tensor);
        let is_new = Place::of(&matrix).is_none_or(|place| places.insert(place));
        let is_bf16 = matrix.update.is_none() && matrix.rounded_to == Dtype::Bf16;
        let planes = if is_bf16 { 1 } else { 3 };
        let elements = if is_new { planes * tensor.rows * pitch(tensor.cols) } else { 0 };
        2 * (elements + 3 * tensor.addend_rank().unwrap_or(0) * (tensor.rows + tensor.cols))
    };
    let tensors = spec.ft.all_layer_tensors();
    let both = tensors.flat_map(|(layer, tensor)| {
        let branches: &[Branch] =
            if weights.is_shared(layer, tensor) { &[Branch::Ft] } else { &Branch::BOTH };
        branches.iter().map(move |branch| (*branch, layer, tensor))
    });
    let layers: usize = both.map(|(branch, layer, tensor)| bytes_of(branch, layer, tensor)).sum();
    let differences = (0..spec.ft.num_hidden_layers).map(|layer| {
        let has_same = LayerTensor::OF_KEYS.iter().all(|tensor| weights.is_shared(layer, *tensor));
        let key = weights.layer_tensor(Branch::Ft, layer, LayerTensor::Key).filter(|_| !has_same);
        key.map_or(0, |key| 2 * key_difference_planes(context) * key.rows * pitch(key.cols))
    });
    let layers = layers + differences.sum::<usize>();
    let tables = [weights.embedding()].into_iter().chain(weights.position_embedding());
    layers + tables.map(|table| table_bytes(&table)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{LowRank, Stored};

    #[test]
    fn an_adapter_and_its_model_have_one_matrix() {
        let bytes = vec![0; 12 * 4];
        let base = Tensor::stored(Dtype::F32, 3, 4, &bytes);
        let (a, b) = (Stored::new(Dtype::F32, 4, &bytes[..32]), Stored::new(Dtype::F32, 2, &bytes[..24]));
        let update = LowRank { a, b, b_columns: (0, 1), scale: 1.0, row_scales: None, merged_to: None };
        let sum = Tensor { update: Some(update), ..base };
        let merged = LowRank { merged_to: Some(Dtype::Bf16), ..update };
        let merged = Tensor { update: Some(merged), ..base };
        let matrices = Matrices::default();
        let weight = |tensor| CudaWeight::new(tensor, &matrices, true);
        let planes = weight(base).planes;
        assert!(Arc::ptr_eq(&planes, &weight(sum).planes));
        for other in [merged, base.row_range(1..3), Tensor { rounded_to: Dtype::Bf16, ..base }] {
            assert!(!Arc::ptr_eq(&planes, &weight(other).planes), "{other:?}");
        }
        assert!(weight(base).update.is_none() && weight(merged).update.is_none());
        assert!(weight(sum).update.is_some());
    }
}
