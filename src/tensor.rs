//! A weight tensor as it lies in a mapped file: element type, shape, bytes. Nothing is copied.

use half::{bf16, f16};

/// Element types of weights that can be computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    /// Bytes an element takes.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// The name that `transformers` gives it (`torch_dtype`, `dtype`).
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        }
    }
}

/// A borrowed tensor, row-major, little-endian, of any alignment.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    pub dtype: Dtype,
    /// Rows and columns; a vector is one row.
    pub rows: usize,
    pub cols: usize,
    pub bytes: &'a [u8],
    /// The type that elements are rounded to when they are read, as if the checkpoint had been stored in it.
    pub rounded_to: Dtype,
}

impl<'a> Tensor<'a> {
    /// The rows `range`, as a tensor of their own.
    pub fn row_range(&self, range: std::ops::Range<usize>) -> Tensor<'a> {
        let row_bytes = self.cols * self.dtype.size();
        let bytes = &self.bytes[range.start * row_bytes..range.end * row_bytes];
        Tensor { rows: range.len(), bytes, ..*self }
    }

    /// The elements `range`, as one row.
    #[inline(always)]
    pub fn element_range(&self, range: std::ops::Range<usize>) -> Tensor<'a> {
        let size = self.dtype.size();
        Tensor {
            rows: 1,
            cols: range.len(),
            bytes: &self.bytes[range.start * size..range.end * size],
            ..*self
        }
    }

    /// Widens all elements to f32 into the front of `out`, exactly but for [`Tensor::rounded_to`].
    #[inline(always)]
    pub fn widen_into(&self, out: &mut [f32]) {
        self.widen_stored_into(out);
        if self.rounded_to != self.dtype {
            match self.rounded_to {
                Dtype::F32 => {}
                Dtype::F16 => out.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
                Dtype::Bf16 => out.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
            }
        }
    }

    #[inline(always)]
    fn widen_stored_into(&self, out: &mut [f32]) {
        match self.dtype {
            Dtype::F32 => {
                for (to, from) in out.iter_mut().zip(self.bytes.as_chunks::<4>().0) {
                    *to = f32::from_le_bytes(*from);
                }
            }
            Dtype::Bf16 => {
                for (to, from) in out.iter_mut().zip(self.bytes.as_chunks::<2>().0) {
                    *to = f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16);
                }
            }
            Dtype::F16 => {
                for (to, from) in out.iter_mut().zip(self.bytes.as_chunks::<2>().0) {
                    *to = f16::from_le_bytes(*from).to_f32();
                }
            }
        }
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.widen_into(&mut out);
        out
    }

    /// Index of the first NaN or infinity.
    pub fn first_non_finite(&self) -> Option<usize> {
        // An all-ones exponent is how all three types write NaN and infinity.
        match self.dtype {
            Dtype::F32 => self
                .bytes
                .as_chunks::<4>()
                .0
                .iter()
                .position(|b| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000),
            Dtype::Bf16 => first_with_exponent(self.bytes, bf16::INFINITY.to_bits()),
            Dtype::F16 => first_with_exponent(self.bytes, f16::INFINITY.to_bits()),
        }
    }
}

/// First 16-bit element all of whose exponent bits (those of `mask`) are set. Blocks are tested whole, without early
/// exit inside, so that the loop runs at memory speed.
fn first_with_exponent(bytes: &[u8], mask: u16) -> Option<usize> {
    const BLOCK: usize = 4096;
    let hit = |element: &[u8; 2]| u16::from_le_bytes(*element) & mask == mask;
    bytes.as_chunks::<2>().0.chunks(BLOCK).enumerate().find_map(|(index, block)| {
        block
            .iter()
            .fold(false, |any, element| any | hit(element))
            .then(|| index * BLOCK + block.iter().position(hit).expect("the block has a hit"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: Dtype, bytes: &[u8]) -> Tensor<'_> {
        Tensor { dtype, rows: 1, cols: bytes.len() / dtype.size(), bytes, rounded_to: dtype }
    }

    #[test]
    fn widening_is_exact_for_every_dtype() {
        let values = [0.0f32, -1.5, 3.25, 65504.0, 6.1035156e-5];
        let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let f16s: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let bf16s: Vec<u8> = values[..3].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(tensor(Dtype::F32, &f32s).to_f32(), values);
        assert_eq!(tensor(Dtype::F16, &f16s).to_f32(), values);
        assert_eq!(tensor(Dtype::Bf16, &bf16s).to_f32(), values[..3]);
    }

    #[test]
    fn a_tensor_reads_as_if_it_had_been_stored_in_another_dtype() {
        let bytes: Vec<u8> = [1.001f32, -3.3].iter().flat_map(|v| v.to_le_bytes()).collect();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let rounded = Tensor { rounded_to: dtype, ..tensor(Dtype::F32, &bytes) }.to_f32();
            let expected = |v: f32| match dtype {
                Dtype::F32 => v,
                Dtype::F16 => f16::from_f32(v).to_f32(),
                Dtype::Bf16 => bf16::from_f32(v).to_f32(),
            };
            assert_eq!(rounded, [expected(1.001), expected(-3.3)]);
        }
    }

    #[test]
    fn non_finite_elements_are_found_where_they_are() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0f32; 9000];
            values[8500] = bad;
            let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let f16s: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
            let bf16s: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
            assert_eq!(tensor(Dtype::F32, &f32s).first_non_finite(), Some(8500));
            assert_eq!(tensor(Dtype::F16, &f16s).first_non_finite(), Some(8500));
            assert_eq!(tensor(Dtype::Bf16, &bf16s).first_non_finite(), Some(8500));
        }
        let largest: Vec<u8> = f16::MAX.to_le_bytes().into();
        assert_eq!(tensor(Dtype::F16, &largest).first_non_finite(), None);
    }
}
