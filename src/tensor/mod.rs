//! A weight tensor as it lies in a mapped file: how its elements are stored, shape, and what an adapter adds to it. Nothing
//! is copied.

mod blocks;
mod stored;

pub use blocks::BlockFormat;
pub use stored::{Dtype, Encoding, Interleaved, Scales, Stored};

use std::ops::Range;
use stored::round;

/// What a low-rank adapter makes of a weight: `row_scales ∘ (W + scale · B · A)` (LoRA, DoRA).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LowRank<'a> {
    /// `[rank, cols]`
    pub a: Stored<'a>,
    /// `[rows, rank]`, among others.
    pub b: Stored<'a>,
    /// The first of its columns, and from each to the next.
    pub b_columns: (usize, usize),
    pub scale: f64,
    /// One for each row; `None`: all 1.
    pub row_scales: Option<&'a [f64]>,
    /// The type that the result is rounded to, as if it had been merged and stored.
    pub merged_to: Option<Dtype>,
}

/// A borrowed weight. It is read widened, to f32 or f64.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tensor<'a> {
    pub stored: Stored<'a>,
    /// Rows and columns; a vector is one row.
    pub rows: usize,
    pub cols: usize,
    /// The type that stored elements are rounded to when they are read, as if the checkpoint had been stored in it.
    pub rounded_to: Dtype,
    /// An adapter's part of it.
    pub update: Option<LowRank<'a>>,
    /// Which part of what is stored this is; `None`: all of it, row by row.
    pub view: Option<View>,
}

/// A part of a stored matrix: groups of rows that do not follow each other, or columns as rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct View {
    /// The stored row of row 0.
    pub first: usize,
    /// Rows that follow each other, and from the first of them to the next such group.
    pub group: usize,
    pub stride: usize,
    /// Rows before the first of this tensor.
    pub skipped: usize,
    /// What is a row here is a column of what is stored.
    pub transposed: bool,
    /// Rows of heads that are stored in another order.
    pub interleaved: Option<Interleaved>,
}

impl View {
    /// All, row by row.
    pub const WHOLE: Self =
        Self { first: 0, group: usize::MAX, stride: 0, skipped: 0, transposed: false, interleaved: None };

    fn stored_row(&self, row: usize) -> usize {
        let row = row + self.skipped;
        let row = self.interleaved.map_or(row, |interleaved| interleaved.stored_row(row));
        self.first + row / self.group * self.stride + row % self.group
    }
}

/// Elements of a row that are widened at once: they stay in registers and the nearest cache.
const RUN: usize = 256;

impl<'a> Tensor<'a> {
    /// Elements as they are stored.
    pub fn stored(encoding: impl Into<Encoding>, rows: usize, cols: usize, bytes: &'a [u8]) -> Self {
        let stored = Stored::new(encoding, cols, bytes);
        Self { stored, rows, cols, rounded_to: stored.encoding.dtype(), update: None, view: None }
    }

    /// The rows `range`, as a tensor of their own.
    pub fn row_range(&self, range: Range<usize>) -> Tensor<'a> {
        if let Some(view) = self.view.or((!self.stored.is_plain()).then_some(View::WHOLE)) {
            let view = View { skipped: view.skipped + range.start, ..view };
            return Tensor { rows: range.len(), view: Some(view), ..*self };
        }
        let stored = self.stored.row_range(range.clone());
        let update = self.update.map(|update| LowRank {
            b: update.b.row_range(range.clone()),
            row_scales: update.row_scales.map(|scales| &scales[range.clone()]),
            ..update
        });
        Tensor { rows: range.len(), stored, update, ..*self }
    }

    /// The bytes of all elements, row by row, where they are stored as they are read and in this type.
    pub fn as_stored(&self, dtype: Dtype) -> Option<&'a [u8]> {
        let is_plain = self.update.is_none() && self.view.is_none() && self.stored.is_plain();
        let is_of = self.stored.encoding == dtype.into() && self.rounded_to == dtype;
        (is_plain && is_of).then_some(self.stored.bytes)
    }

    /// An adapter's part where it does nothing but add: `W + scale · B · A`.
    fn sum(&self) -> Option<LowRank<'a>> {
        self.update.filter(|update| update.row_scales.is_none() && update.merged_to.is_none())
    }

    /// The rank of what an adapter adds, where it does nothing but add.
    pub fn addend_rank(&self) -> Option<usize> {
        self.sum().map(|update| update.rank())
    }

    /// What an adapter adds, where it does nothing but add.
    pub fn addend(&self) -> Option<Addend> {
        let update = self.sum()?;
        let rank = update.rank();
        let mut a = vec![0.0; rank * self.cols];
        let rows_of_a = a.chunks_exact_mut(self.cols.max(1)).enumerate();
        rows_of_a.for_each(|(k, row)| update.a.widen_run(k, 0..self.cols, row));
        let row_of_b = |row| self.view.map_or(row, |view| view.stored_row(row));
        let rows_of_b = (0..self.rows).map(row_of_b);
        let b = rows_of_b.flat_map(|row| (0..rank).map(move |k| update.factor(row, k) as f32)).collect();
        Some(Addend { a, b, rank })
    }

    /// Whether all elements are the same, to the bit. `seen` hears of bytes that were looked at.
    pub fn is_same(&self, other: &Tensor<'_>, seen: impl Fn(&[u8])) -> bool {
        (self.rounded_to, self.update, self.view, self.rows)
            == (other.rounded_to, other.update, other.view, other.rows)
            && self.stored.is_same(&other.stored, seen)
    }

    /// Widens the elements `cols` of row `row` to f32 into the front of `out`: exactly but for what they are
    /// [rounded to](Tensor::rounded_to), and with one rounding of an adapter's sum.
    #[inline(always)]
    pub fn widen_run(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        if self.update.is_none() {
            return self.widen_stored(row, cols, out);
        }
        let mut wide = [0.0f64; RUN];
        for (start, out) in cols.clone().step_by(RUN).zip(out.chunks_mut(RUN)) {
            let run = start..(start + RUN).min(cols.end);
            self.widen_run_f64(row, run.clone(), &mut wide[..run.len()]);
            out.iter_mut().zip(&wide[..run.len()]).for_each(|(to, from)| *to = *from as f32);
        }
    }

    /// [`Tensor::widen_run`] to f64.
    #[inline(always)]
    pub fn widen_run_f64(&self, row: usize, cols: Range<usize>, out: &mut [f64]) {
        let mut narrow = [0.0f32; RUN];
        for (start, out) in cols.clone().step_by(RUN).zip(out.chunks_mut(RUN)) {
            let run = start..(start + RUN).min(cols.end);
            let (narrow, out) = (&mut narrow[..run.len()], &mut out[..run.len()]);
            self.widen_stored(row, run.clone(), narrow);
            out.iter_mut().zip(&*narrow).for_each(|(to, from)| *to = f64::from(*from));
            if let Some(update) = &self.update {
                update.apply(self.view.map_or(row, |view| view.stored_row(row)), run, narrow, out);
            }
        }
    }

    #[inline(always)]
    fn widen_stored(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        let out = &mut out[..cols.len()];
        match self.view {
            None => self.stored.widen_run(row, cols, out),
            Some(view) if !view.transposed => self.stored.widen_run(view.stored_row(row), cols, out),
            Some(view) => {
                let col = view.stored_row(row);
                for (row, out) in cols.zip(out.as_chunks_mut::<1>().0) {
                    self.stored.widen_run(row, col..col + 1, out);
                }
            }
        }
        if self.rounded_to != self.stored.encoding.dtype() {
            round(self.rounded_to, out);
        }
    }

    /// All elements as f32, into the front of `out`.
    #[inline(always)]
    pub fn widen_into(&self, out: &mut [f32]) {
        for row in 0..self.rows {
            self.widen_run(row, 0..self.cols, &mut out[row * self.cols..(row + 1) * self.cols]);
        }
    }

    /// All elements as f64, into the front of `out`.
    #[inline(always)]
    pub fn widen_into_f64(&self, out: &mut [f64]) {
        for row in 0..self.rows {
            self.widen_run_f64(row, 0..self.cols, &mut out[row * self.cols..(row + 1) * self.cols]);
        }
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.widen_into(&mut out);
        out
    }
}

/// What an adapter adds to a weight: `b · a`.
#[derive(Debug, Clone, PartialEq)]
pub struct Addend {
    /// `[rank, cols]`
    pub a: Vec<f32>,
    /// `[rows, rank]`, the adapter's scale in it.
    pub b: Vec<f32>,
    pub rank: usize,
}

impl LowRank<'_> {
    fn rank(&self) -> usize {
        let (first, step) = self.b_columns;
        (self.b.cols - first).div_ceil(step)
    }

    /// What row `k` of A is multiplied with for row `row` of the weight.
    #[inline(always)]
    fn factor(&self, row: usize, k: usize) -> f64 {
        let (first, step) = self.b_columns;
        let (col, mut factor) = (first + k * step, [0.0f32]);
        self.b.widen_run(row, col..col + 1, &mut factor);
        self.scale * f64::from(factor[0])
    }

    /// Makes of the elements `cols` of row `row` what the adapter makes of them; `buffer` is as long as `out`.
    #[inline(always)]
    fn apply(&self, row: usize, cols: Range<usize>, buffer: &mut [f32], out: &mut [f64]) {
        for k in 0..self.rank() {
            let factor = self.factor(row, k);
            self.a.widen_run(k, cols.clone(), buffer);
            out.iter_mut().zip(&*buffer).for_each(|(to, a)| *to += factor * f64::from(*a));
        }
        if let Some(scales) = self.row_scales {
            out.iter_mut().for_each(|v| *v *= scales[row]);
        }
        if let Some(dtype) = self.merged_to {
            buffer.iter_mut().zip(&*out).for_each(|(to, v)| *to = *v as f32);
            round(dtype, buffer);
            out.iter_mut().zip(&*buffer).for_each(|(to, v)| *to = f64::from(*v));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    fn tensor(dtype: Dtype, bytes: &[u8]) -> Tensor<'_> {
        Tensor::stored(dtype, 1, bytes.len() / dtype.size(), bytes)
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
    fn interleaved_rows_are_read_in_halves() {
        let bytes: Vec<u8> = (0..20).flat_map(|row| (row as f32).to_le_bytes()).collect();
        // Two heads of ten rows, of which six are rotated.
        let interleaved = Some(Interleaved { head_dim: 10, rotary_dim: 6 });
        let view = Some(View { interleaved, ..View::WHOLE });
        let tensor = Tensor { view, ..Tensor::stored(Dtype::F32, 20, 1, &bytes) };
        let head = [0.0, 2.0, 4.0, 1.0, 3.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        assert_eq!(tensor.to_f32(), [head, head.map(|row| row + 10.0)].concat());
        assert_eq!(tensor.row_range(3..12).to_f32(), tensor.to_f32()[3..12]);
    }

    #[test]
    fn a_low_rank_update_is_added_in_f64_and_rounded_where_it_is_merged() {
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (rows, cols, rank) = (3, 300, 2);
        let values = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
        let (w, a, b) = (values(rows * cols, 0.7), values(rank * cols, 0.3), values(rows * rank, 1.1));
        let (w_bytes, a_bytes, b_bytes) = (bytes(&w), bytes(&a), bytes(&b));
        let stored = |cols, bytes| Stored::new(Dtype::F32, cols, bytes);
        let row_scales = [1.0, 0.5, 2.0];
        let update = LowRank {
            a: stored(cols, &a_bytes),
            b: stored(rank, &b_bytes),
            b_columns: (0, 1),
            scale: 0.25,
            row_scales: Some(&row_scales),
            merged_to: None,
        };
        let tensor = Tensor { update: Some(update), ..Tensor::stored(Dtype::F32, rows, cols, &w_bytes) };
        let mut wide = vec![0.0; rows * cols];
        tensor.widen_into_f64(&mut wide);
        let merged = Tensor { update: Some(LowRank { merged_to: Some(Dtype::Bf16), ..update }), ..tensor };
        for row in 0..rows {
            for col in 0..cols {
                let product = |k: usize| f64::from(b[row * rank + k]) * f64::from(a[k * cols + col]);
                let sum = f64::from(w[row * cols + col]) + 0.25 * (product(0) + product(1));
                let expected = row_scales[row] * sum;
                assert!((wide[row * cols + col] - expected).abs() < 1e-15);
                assert_eq!(tensor.to_f32()[row * cols + col], wide[row * cols + col] as f32);
                let rounded = bf16::from_f32(wide[row * cols + col] as f32).to_f32();
                assert_eq!(merged.to_f32()[row * cols + col], rounded);
            }
        }
        let sum = Tensor { update: Some(LowRank { row_scales: None, ..update }), ..tensor };
        let addend = sum.addend().unwrap();
        assert_eq!((sum.addend_rank(), addend.rank, &addend.a), (Some(rank), rank, &a));
        assert_eq!(addend.b, b.iter().map(|b| 0.25 * b).collect::<Vec<_>>());
        assert!(tensor.addend().is_none() && merged.addend().is_none());
        assert_eq!(tensor.row_range(1..3).to_f32(), tensor.to_f32()[cols..]);
        assert!(tensor.is_same(&tensor, |_| ()) && !tensor.is_same(&merged, |_| ()));
    }

    #[test]
    fn non_finite_elements_are_found_where_they_are() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0f32; 9000];
            values[8500] = bad;
            let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let f16s: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
            let bf16s: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
            assert_eq!(tensor(Dtype::F32, &f32s).stored.first_non_finite(|_| ()), Some(8500));
            assert_eq!(tensor(Dtype::F16, &f16s).stored.first_non_finite(|_| ()), Some(8500));
            assert_eq!(tensor(Dtype::Bf16, &bf16s).stored.first_non_finite(|_| ()), Some(8500));
        }
        let largest: Vec<u8> = f16::MAX.to_le_bytes().into();
        assert_eq!(tensor(Dtype::F16, &largest).stored.first_non_finite(|_| ()), None);
    }

    /// Pseudo-random bytes.
    fn noise(count: usize) -> Vec<u8> {
        (0..count as u32).map(|i| (i.wrapping_mul(2654435761).rotate_left(15) >> 13) as u8).collect()
    }

    const BLOCK_FORMATS: [BlockFormat; 8] = [
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q5_0,
        BlockFormat::Q5_1,
        BlockFormat::Q8_0,
        BlockFormat::Q4K,
        BlockFormat::Q5K,
        BlockFormat::Q6K,
    ];

    #[test]
    fn any_part_of_a_quantized_matrix_is_that_part_of_the_whole() {
        let (rows, cols) = (12, 512);
        let scales: Vec<u8> = (0..36).flat_map(|i| (1.0f32 + i as f32).to_le_bytes()).collect();
        let fp8 = Scales { encoding: Dtype::F32.into(), bytes: &scales, block: (4, 43), across: 12 };
        let exponents: Vec<u8> = (0..192).map(|i| 100 + i % 50).collect();
        let mxfp4 = Scales { encoding: Encoding::E8m0, bytes: &exponents, block: (1, 32), across: 16 };
        let encodings = BLOCK_FORMATS.map(|format| (Encoding::Block(format), None));
        let scaled = [(Encoding::Fp8, Some(fp8)), (Encoding::Mxfp4, Some(mxfp4))];
        for (encoding, scales) in encodings.into_iter().chain(scaled) {
            let bytes = noise(encoding.bytes(rows * cols).unwrap());
            for paired in [None, Some(Interleaved::whole(6))] {
                let stored = Stored { scales, paired, ..Stored::new(encoding, cols, &bytes) };
                let tensor = Tensor { stored, ..Tensor::stored(encoding, rows, cols, &bytes) };
                let same = |some: &[f32], others: &[f32]| {
                    some.iter().map(|v| v.to_bits()).eq(others.iter().map(|v| v.to_bits()))
                };
                let whole = tensor.to_f32();
                for (row, start, end) in [(0, 0, 1), (3, 31, 33), (7, 5, 300), (11, 256, 512), (5, 510, 512)]
                {
                    let mut part = vec![0.0; end - start];
                    tensor.widen_run(row, start..end, &mut part);
                    assert!(
                        same(&part, &whole[row * cols..][start..end]),
                        "{encoding:?} {row} {start} {end}"
                    );
                }
                let rest = tensor.row_range(2..11).row_range(3..7);
                assert!(same(&rest.to_f32(), &whole[5 * cols..9 * cols]), "{encoding:?}");
            }
        }
    }

    #[test]
    fn every_fp8_number_is_what_its_bits_say() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut found = [0.0; 256];
        Stored::new(Encoding::Fp8, 256, &bytes).widen_run(0, 0..256, &mut found);
        for (byte, found) in (0..=255u8).zip(found) {
            let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7) / 8.0);
            let magnitude = match exponent {
                0 => mantissa * 2f64.powi(-6),
                _ => (1.0 + mantissa) * 2f64.powi(exponent - 7),
            };
            let expected = if byte < 128 { magnitude } else { -magnitude };
            assert!(byte & 0x7f == 0x7f || f64::from(found) == expected, "{byte}: {found}, not {expected}");
        }
        assert_eq!(Stored::new(Encoding::Fp8, 256, &bytes).first_non_finite(|_| ()), Some(0x7f));
    }

    #[test]
    fn mxfp4_is_what_its_bits_say() {
        let bytes: Vec<u8> = (0..16).map(|i| ((2 * i) & 15) | (((2 * i + 1) & 15) << 4)).collect();
        let exponents = [0, 1, 127, 130].map(|exponent| (exponent, 2f64.powi(i32::from(exponent) - 127)));
        for (exponent, scale) in exponents {
            let scales = Scales { encoding: Encoding::E8m0, bytes: &[exponent], block: (1, 32), across: 1 };
            let mut found = [0.0; 32];
            let stored = Stored { scales: Some(scales), ..Stored::new(Encoding::Mxfp4, 32, &bytes) };
            stored.widen_run(0, 0..32, &mut found);
            for (bits, found) in (0..16u8).cycle().zip(found) {
                let (half, odd) = (i32::from(bits >> 1 & 3), f64::from(bits & 1));
                let magnitude = if half == 0 { odd / 2.0 } else { (1.0 + odd / 2.0) * 2f64.powi(half - 1) };
                let expected = if bits < 8 { magnitude } else { -magnitude };
                assert_eq!(f64::from(found), expected * scale, "{bits}");
                assert_eq!(bf16::from_f32(found).to_f32(), found);
            }
        }
    }

    #[test]
    fn scales_that_are_not_finite_are_found() {
        for format in BLOCK_FORMATS {
            let mut bytes = vec![0; 3 * format.bytes()];
            let scale = if format == BlockFormat::Q6K { 208 } else { 0 };
            bytes[format.bytes() + scale..][..2].copy_from_slice(&f16::NAN.to_le_bytes());
            let stored = Stored::new(Encoding::Block(format), 3 * format.elements(), &bytes);
            assert_eq!(stored.first_non_finite(|_| ()), Some(format.elements()), "{format:?}");
        }
        let scales = [1.0f32, f32::INFINITY].map(f32::to_le_bytes).concat();
        let fp8 = Scales { encoding: Dtype::F32.into(), bytes: &scales, block: (1, 4), across: 1 };
        let stored = Stored { scales: Some(fp8), ..Stored::new(Encoding::Fp8, 4, &[0; 8]) };
        assert_eq!(stored.first_non_finite(|_| ()), Some(4));
        for (exponent, found) in [(252, None), (253, Some(32)), (255, Some(32))] {
            let exponents = [127, exponent];
            let mxfp4 = Scales { encoding: Encoding::E8m0, bytes: &exponents, block: (1, 32), across: 1 };
            let stored = Stored { scales: Some(mxfp4), ..Stored::new(Encoding::Mxfp4, 32, &[0x77; 32]) };
            assert_eq!(stored.first_non_finite(|_| ()), found);
            let mut element = [0.0];
            stored.widen_run(1, 5..6, &mut element);
            assert_eq!(element[0].is_finite(), found.is_none());
        }
    }
}
