//! Elements as they lie in a file, and what they are as numbers.

use super::blocks::{BlockFormat, UNIT};
use half::{bf16, f16};
use std::ops::Range;

/// Types of floating-point numbers that weights are stored in and may be rounded to.
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

/// How elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    Float(Dtype),
    /// 8 bits: 4 of exponent, 3 of mantissa, no infinity (`float8_e4m3fn`); with [`Scales`].
    Fp8,
    /// 4 bits: 2 of exponent, 1 of mantissa (`float4_e2m1fn`), two in a byte, the lower half first; with [`Scales`] of 32 elements
    /// of a row (MXFP4, OCP Microscaling Formats 1.0).
    Mxfp4,
    /// 8 bits of exponent and nothing else (`float8_e8m0fnu`): factors.
    E8m0,
    Block(BlockFormat),
}

impl From<Dtype> for Encoding {
    fn from(dtype: Dtype) -> Self {
        Encoding::Float(dtype)
    }
}

impl Encoding {
    /// The type that holds every element as it is: most quantized ones are f32 by their definition.
    pub fn dtype(self) -> Dtype {
        match self {
            Encoding::Float(dtype) => dtype,
            // A power of two times one of eight numbers.
            Encoding::Mxfp4 | Encoding::E8m0 => Dtype::Bf16,
            Encoding::Fp8 | Encoding::Block(_) => Dtype::F32,
        }
    }

    /// The name that `transformers` or ggml gives it.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Float(dtype) => dtype.name(),
            Encoding::Fp8 => "float8_e4m3fn",
            Encoding::Mxfp4 => "mxfp4",
            Encoding::E8m0 => "float8_e8m0fnu",
            Encoding::Block(format) => format.name(),
        }
    }

    /// Bytes of `elements` elements, `None` where they are no whole blocks.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        match self {
            Encoding::Float(dtype) => elements.checked_mul(dtype.size()),
            Encoding::Fp8 | Encoding::E8m0 => Some(elements),
            Encoding::Mxfp4 => elements.is_multiple_of(2).then_some(elements / 2),
            Encoding::Block(format) => elements
                .is_multiple_of(format.elements())
                .then_some(elements / format.elements())?
                .checked_mul(format.bytes()),
        }
    }
}

/// Factors of elements, one for each block of rows and columns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scales<'a> {
    pub encoding: Encoding,
    pub bytes: &'a [u8],
    /// Rows and columns of a block.
    pub block: (usize, usize),
    /// Blocks side by side.
    pub across: usize,
}

impl Scales<'_> {
    #[inline(always)]
    fn get(&self, row: usize, col: usize) -> f32 {
        let index = row / self.block.0 * self.across + col / self.block.1;
        let mut scale = [0.0];
        match self.encoding {
            Encoding::Float(dtype) => widen_float(dtype, &self.bytes[index * dtype.size()..], &mut scale),
            Encoding::E8m0 => scale[0] = power_of_two(self.bytes[index]),
            other => unreachable!("{} is no type of factors", other.name()),
        }
        scale[0]
    }

    /// Multiplies the elements `cols` of row `row`.
    #[inline(always)]
    fn apply(&self, row: usize, cols: Range<usize>, values: &mut [f32]) {
        let (mut col, mut rest) = (cols.start, values);
        while col < cols.end {
            let end = (col / self.block.1 + 1).saturating_mul(self.block.1).min(cols.end);
            let (part, after) = rest.split_at_mut(end - col);
            let scale = self.get(row, col);
            part.iter_mut().for_each(|v| *v *= scale);
            (col, rest) = (end, after);
        }
    }
}

/// Elements as they lie in a file: row-major, little-endian, of any alignment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stored<'a> {
    pub encoding: Encoding,
    pub cols: usize,
    pub bytes: &'a [u8],
    /// Factors of the elements (FP8, MXFP4).
    pub scales: Option<Scales<'a>>,
    /// llama.cpp's order of the rows of queries and keys, which the file alone has: an adapter's rows are in that of the model.
    pub paired: Option<Interleaved>,
}

/// Of every `head_dim` rows the first `rotary_dim` are stored so that those of their first half and of their second take
/// turns, as they are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Interleaved {
    pub head_dim: usize,
    pub rotary_dim: usize,
}

impl Interleaved {
    /// Heads that are rotated whole.
    pub fn whole(head_dim: usize) -> Self {
        Self { head_dim, rotary_dim: head_dim }
    }

    /// Where a row is stored.
    #[inline(always)]
    pub fn stored_row(&self, row: usize) -> usize {
        let (in_head, half) = (row % self.head_dim, self.rotary_dim / 2);
        if in_head < self.rotary_dim { row - in_head + in_head % half * 2 + in_head / half } else { row }
    }
}

/// Bytes that are looked at, or compared, before they may leave memory.
const LOOKED_AT: usize = 4 << 20;

impl<'a> Stored<'a> {
    /// Elements without more to them.
    pub fn new(encoding: impl Into<Encoding>, cols: usize, bytes: &'a [u8]) -> Self {
        Self { encoding: encoding.into(), cols, bytes, scales: None, paired: None }
    }

    /// Whether all is the same, to the bit. `seen` hears of bytes that were looked at.
    pub fn is_same(&self, other: &Stored<'_>, seen: impl Fn(&[u8])) -> bool {
        let unread = |stored: &Stored<'a>| Stored { bytes: &[], ..*stored };
        let parts = self.bytes.chunks(LOOKED_AT).zip(other.bytes.chunks(LOOKED_AT));
        let same_part = |(own, others): (&[u8], &[u8])| {
            let is_same = own == others;
            seen(own);
            seen(others);
            is_same
        };
        unread(self) == Stored { bytes: &[], ..*other }
            && self.bytes.len() == other.bytes.len()
            && (std::ptr::eq(self.bytes, other.bytes) || parts.into_iter().all(same_part))
    }

    /// Whether a range of rows is a range of bytes and nothing else.
    pub fn is_plain(&self) -> bool {
        self.scales.is_none() && self.paired.is_none()
    }

    /// The bytes of some rows, in the order of the file.
    fn rows(&self, rows: Range<usize>) -> &'a [u8] {
        let row_bytes = self.encoding.bytes(self.cols).expect("rows are whole blocks");
        &self.bytes[rows.start * row_bytes..rows.end * row_bytes]
    }

    /// The rows `range` of a [plain](Stored::is_plain) matrix.
    pub fn row_range(&self, range: Range<usize>) -> Self {
        Self { bytes: self.rows(range), ..*self }
    }

    /// The elements `cols` of row `row`, exactly: quantized ones are f32 by their definition.
    #[inline(always)]
    pub fn widen_run(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        let in_file = self.paired.map_or(row, |paired| paired.stored_row(row));
        match self.encoding {
            Encoding::Float(dtype) => {
                let (start, size) = (in_file * self.cols, dtype.size());
                widen_float(dtype, &self.bytes[(start + cols.start) * size..(start + cols.end) * size], out);
            }
            Encoding::Fp8 => {
                let start = in_file * self.cols;
                widen_fp8(&self.bytes[start + cols.start..start + cols.end], out);
            }
            Encoding::Mxfp4 => widen_fp4(&self.bytes[in_file * self.cols / 2..], cols.clone(), out),
            Encoding::E8m0 => {
                let start = in_file * self.cols;
                let elements = &self.bytes[start + cols.start..start + cols.end];
                out.iter_mut().zip(elements).for_each(|(to, byte)| *to = power_of_two(*byte));
            }
            Encoding::Block(format) => {
                widen_blocks(format, self.rows(in_file..in_file + 1), cols.clone(), out)
            }
        }
        if let Some(scales) = &self.scales {
            scales.apply(row, cols, out);
        }
    }

    /// Index of an element that is NaN or infinite, or of the first of those that are it together. `seen` hears of bytes that
    /// were looked at.
    pub fn first_non_finite(&self, seen: impl Fn(&[u8])) -> Option<usize> {
        let (unit, elements) = match self.encoding {
            Encoding::Float(dtype) => (dtype.size(), 1),
            Encoding::Fp8 | Encoding::E8m0 => (1, 1),
            Encoding::Mxfp4 => (1, 2),
            Encoding::Block(format) => (format.bytes(), format.elements()),
        };
        let units = LOOKED_AT / unit;
        let own = self.bytes.chunks(units * unit).enumerate().find_map(|(part, bytes)| {
            let found = match self.encoding {
                Encoding::Float(dtype) => first_non_finite(dtype, bytes),
                Encoding::Fp8 => bytes.iter().position(|byte| byte & 0x7f == 0x7f),
                Encoding::Mxfp4 => None,
                Encoding::E8m0 => first_too_large(bytes),
                Encoding::Block(format) => {
                    bytes.chunks_exact(unit).position(|block| !format.is_finite(block))
                }
            };
            seen(bytes);
            found.map(|found| (part * units + found) * elements)
        });
        own.or_else(|| {
            let scales = self.scales?;
            let index = match scales.encoding {
                Encoding::Float(dtype) => first_non_finite(dtype, scales.bytes),
                _ => first_too_large(scales.bytes),
            }?;
            Some(index / scales.across * scales.block.0 * self.cols + index % scales.across * scales.block.1)
        })
    }
}

#[inline(always)]
fn widen_float(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            for (to, from) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *to = f32::from_le_bytes(*from);
            }
        }
        Dtype::Bf16 => {
            for (to, from) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *to = f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16);
            }
        }
        Dtype::F16 => {
            for (to, from) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *to = f16::from_le_bytes(*from).to_f32();
            }
        }
    }
}

/// NaN is refused when a checkpoint is opened, and means nothing here.
#[inline(always)]
fn widen_fp8(bytes: &[u8], out: &mut [f32]) {
    // Exponent and mantissa are put at the places that they have in an f32, whose exponents begin 120 below.
    let bias = f32::from_bits((127 + 120) << 23);
    for (to, from) in out.iter_mut().zip(bytes) {
        let magnitude = f32::from_bits(u32::from(from & 0x7f) << 20) * bias;
        *to = f32::from_bits(magnitude.to_bits() | u32::from(from & 0x80) << 24);
    }
}

/// Of elements of 4 bits those of `cols`.
#[inline(always)]
fn widen_fp4(row: &[u8], cols: Range<usize>, out: &mut [f32]) {
    const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    for (to, col) in out.iter_mut().zip(cols) {
        let bits = row[col / 2] >> (col % 2 * 4) & 15;
        let magnitude = MAGNITUDES[usize::from(bits & 7)];
        *to = if bits < 8 { magnitude } else { -magnitude };
    }
}

/// `2^(exponent − 127)`; 255, which is no number, is refused when a checkpoint is opened.
#[inline(always)]
fn power_of_two(exponent: u8) -> f32 {
    // The smallest is below all normal numbers.
    f32::from_bits(if exponent == 0 { 1 << 22 } else { u32::from(exponent) << 23 })
}

/// The first factor that is no number, or with which elements of 4 bits, 6 at most, are beyond what an f32 holds.
fn first_too_large(exponents: &[u8]) -> Option<usize> {
    exponents.iter().position(|exponent| *exponent > 252)
}

/// The elements `cols` of a row of blocks.
#[inline(always)]
fn widen_blocks(format: BlockFormat, row: &[u8], cols: Range<usize>, out: &mut [f32]) {
    let units = format.elements() / UNIT;
    let (mut col, mut rest) = (cols.start, &mut out[..cols.len()]);
    while col < cols.end {
        let (unit, skipped) = (col / UNIT, col % UNIT);
        let block = &row[unit / units * format.bytes()..][..format.bytes()];
        let count = (UNIT - skipped).min(cols.end - col);
        let (part, after) = rest.split_at_mut(count);
        if let Ok(whole) = <&mut [f32; UNIT]>::try_from(&mut *part) {
            format.widen_unit(block, unit % units, whole);
        } else {
            let mut whole = [0.0; UNIT];
            format.widen_unit(block, unit % units, &mut whole);
            part.copy_from_slice(&whole[skipped..skipped + count]);
        }
        (col, rest) = (col + count, after);
    }
}

/// Rounds values to what `dtype` can hold.
#[inline(always)]
pub fn round(dtype: Dtype, values: &mut [f32]) {
    match dtype {
        Dtype::F32 => {}
        Dtype::F16 => values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
        Dtype::Bf16 => values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
    }
}

/// An all-ones exponent is how all three types write NaN and infinity.
fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    match dtype {
        Dtype::F32 => {
            bytes.as_chunks::<4>().0.iter().position(|b| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000)
        }
        Dtype::Bf16 => first_with_exponent(bytes, bf16::INFINITY.to_bits()),
        Dtype::F16 => first_with_exponent(bytes, f16::INFINITY.to_bits()),
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
