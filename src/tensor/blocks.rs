//! The block formats of ggml (`.gguf` files): a few integers share a scale, and often a smallest value. What an element is
//! is defined in f32, as ggml computes it (`dequantize_row_*` of ggml-quants.c).

use half::f16;

/// Elements that are decoded together; a block holds one or more such units.
pub const UNIT: usize = 32;

/// How a block of elements is stored. `d`, `m`: f16 scale and offset, `q`: the integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 32 elements: `d`, 4-bit `q`; `d (q − 8)`.
    Q4_0,
    /// 32 elements: `d`, `m`, 4-bit `q`; `d q + m`.
    Q4_1,
    /// 32 elements: `d`, the fifth bits of `q`, the lower four; `d (q − 16)`.
    Q5_0,
    /// 32 elements: `d`, `m`, the fifth bits of `q`, the lower four; `d q + m`.
    Q5_1,
    /// 32 elements: `d`, 8-bit `q`; `d q`.
    Q8_0,
    /// 256 elements: `d`, `m`, 6-bit scales `s` and offsets `t` of each 32 elements, 4-bit `q`; `d s q − m t`.
    Q4K,
    /// The same with the fifth bits of `q` before the lower four.
    Q5K,
    /// 256 elements: lower four and upper two bits of `q`, 8-bit scales `s` of each 16 elements, `d`; `d s (q − 32)`.
    Q6K,
}

impl BlockFormat {
    /// Elements of a block.
    pub fn elements(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 2 + 2 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4K => 2 + 2 + 12 + 128,
            Self::Q5K => 2 + 2 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Whether all numbers that scale a block are finite.
    pub fn is_finite(self, block: &[u8]) -> bool {
        let all_finite = |offsets: &[usize]| offsets.iter().all(|at| f16_at(block, *at).is_finite());
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => all_finite(&[0]),
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => all_finite(&[0, 2]),
            Self::Q6K => all_finite(&[208]),
        }
    }

    /// The 32 elements of unit `unit` of a block.
    #[inline(always)]
    pub fn widen_unit(self, block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        let half = |at: usize| f16_at(block, at).to_f32();
        match self {
            Self::Q4_0 => {
                let (d, q) = (half(0), nibbles(&block[2..18]));
                *out = q.map(|q| d * (f32::from(q) - 8.0));
            }
            Self::Q4_1 => {
                let (d, m, q) = (half(0), half(2), nibbles(&block[4..20]));
                *out = q.map(|q| d * f32::from(q) + m);
            }
            Self::Q5_0 => {
                let (d, q) = (half(0), with_fifth_bits(nibbles(&block[6..22]), &block[2..6]));
                *out = q.map(|q| d * (f32::from(q) - 16.0));
            }
            Self::Q5_1 => {
                let (d, m) = (half(0), half(2));
                let q = with_fifth_bits(nibbles(&block[8..24]), &block[4..8]);
                *out = q.map(|q| d * f32::from(q) + m);
            }
            Self::Q8_0 => {
                let (d, q) = (half(0), &block[2..34]);
                *out = std::array::from_fn(|i| d * f32::from(q[i] as i8));
            }
            Self::Q4K => {
                let (s, t) = scale_and_offset(&block[4..16], unit);
                let (scale, offset) = (half(0) * f32::from(s), half(2) * f32::from(t));
                let (q, shift) = (&block[16 + 32 * (unit / 2)..], 4 * (unit % 2));
                *out = std::array::from_fn(|i| scale * f32::from(q[i] >> shift & 15) - offset);
            }
            Self::Q5K => {
                let (s, t) = scale_and_offset(&block[4..16], unit);
                let (scale, offset) = (half(0) * f32::from(s), half(2) * f32::from(t));
                let (fifth, q, shift) = (&block[16..48], &block[48 + 32 * (unit / 2)..], 4 * (unit % 2));
                let value = |i: usize| q[i] >> shift & 15 | (fifth[i] >> unit & 1) << 4;
                *out = std::array::from_fn(|i| scale * f32::from(value(i)) - offset);
            }
            Self::Q6K => {
                // Units 0 to 3 share 64 bytes of lower and 32 of upper bits, units 4 to 7 the next ones.
                let (part, quarter) = (unit / 4, unit % 4);
                let lower = &block[64 * part + 32 * (quarter % 2)..][..32];
                let upper = &block[128 + 32 * part..][..32];
                let scales = &block[192 + 2 * unit..][..2];
                let (d, lower_shift, upper_shift) = (half(208), 4 * (quarter / 2), 2 * quarter);
                *out = std::array::from_fn(|i| {
                    let q = lower[i] >> lower_shift & 15 | (upper[i] >> upper_shift & 3) << 4;
                    d * f32::from(scales[i / 16] as i8) * (f32::from(q) - 32.0)
                });
            }
        }
    }
}

#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// The lower halves of 16 bytes, then the upper ones.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; UNIT] {
    std::array::from_fn(|i| bytes[i % 16] >> (4 * (i / 16)) & 15)
}

#[inline(always)]
fn with_fifth_bits(q: [u8; UNIT], bits: &[u8]) -> [u8; UNIT] {
    std::array::from_fn(|i| q[i] | (bits[i / 8] >> (i % 8) & 1) << 4)
}

/// The 6-bit scale and offset of a unit. Those of units 0 to 3 are the lower six bits of a byte each; those of units 4 to 7
/// have their lower four bits in the last bytes and their upper two in what is left of the first.
#[inline(always)]
fn scale_and_offset(packed: &[u8], unit: usize) -> (u8, u8) {
    match unit {
        0..4 => (packed[unit] & 63, packed[unit + 4] & 63),
        _ => {
            let (low, scale_high, offset_high) = (packed[unit + 4], packed[unit - 4] >> 6, packed[unit] >> 6);
            (low & 15 | scale_high << 4, low >> 4 | offset_high << 4)
        }
    }
}
