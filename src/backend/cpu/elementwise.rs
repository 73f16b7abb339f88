//! What is done element by element or row by row: norm, activation, rotation, exponentials, running sums.
//!
//! Loops are written so that the compiler can make vector code of them inside [`Arch::dispatch`]; sums have a fixed
//! number of lanes, so their bits do not depend on the vector width. `mul_add` is one instruction there.

use super::element::Element;
use super::{vector::vectorize, weight::Weight};
use crate::{
    backend::{Mat, Norm, RopeOf, Rows, Sequence},
    model::{Activation, ClampedSwiglu, Xielu},
    twin::Twin,
};
use pulp::Arch;
use rayon::prelude::*;

/// Rows that make a task.
const TASK_ROWS: usize = 32;

/// Partial sums of a reduction.
const LANES: usize = 16;

/// `e^x` to within 3 units in the last place, for vector code; below -87.3 it stays at 1.2e-38.
#[inline(always)]
pub fn vector_exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: n · LN_2_HIGH is exact for all n that occur.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.7);
    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    // Taylor's series; |r| ≤ ln 2 / 2, so the first term left out is below 6e-9.
    const TERMS: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let series = TERMS.iter().fold(1.0 / 5040.0, |sum: f32, term| sum.mul_add(r, *term));
    // 2^n in two steps: n = 128 is no exponent of a float.
    let half = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32 >> 1;
    let rest = (shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32) - half;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    series * power(half) * power(rest)
}

#[inline(always)]
fn sigmoid<T: Element>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

/// `values = act(values)`.
pub fn activate<T: Element>(arch: Arch, activation: Activation, values: &mut [T]) {
    match activation {
        Activation::Silu => vectorize(
            arch,
            #[inline(always)]
            || values.iter_mut().for_each(|v| *v = *v * sigmoid(*v)),
        ),
        Activation::GeluTanh => vectorize(
            arch,
            #[inline(always)]
            || {
                // (1 + tanh y) / 2 = sigmoid(2 y)
                let (factor, cubic) = (T::of(2.0 * (2.0 / std::f64::consts::PI).sqrt()), T::of(0.044715));
                for v in values.iter_mut() {
                    let x = *v;
                    *v = x * sigmoid(factor * (x + cubic * x * x * x));
                }
            },
        ),
        // A NaN stays one.
        Activation::Relu => vectorize(
            arch,
            #[inline(always)]
            || values.iter_mut().for_each(|v| *v = if *v < T::default() { T::default() } else { *v }),
        ),
        Activation::Relu2 => vectorize(
            arch,
            #[inline(always)]
            || values.iter_mut().for_each(|v| *v = if *v < T::default() { T::default() } else { *v * *v }),
        ),
        Activation::Xielu(Xielu { alpha_p, alpha_n, beta, eps }) => {
            for v in values {
                let x = v.wide();
                let curve = if x > 0.0 { alpha_p * x * x } else { alpha_n * (libm::expm1(x.min(eps)) - x) };
                *v = T::of(curve + beta * x);
            }
        }
        Activation::ClampedSwiglu(ClampedSwiglu { alpha, limit }) => vectorize(
            arch,
            #[inline(always)]
            || {
                let (alpha, limit) = (T::of(alpha), T::of(limit));
                for v in values.iter_mut() {
                    let x = if *v > limit { limit } else { *v };
                    *v = x * sigmoid(alpha * x);
                }
            },
        ),
        Activation::Gelu => {
            for v in values {
                let x = v.wide();
                *v = T::of(x * (0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))));
            }
        }
    }
}

/// `gate = act(gate) ∘ up`, or what [`ClampedSwiglu`] makes of both.
pub fn activate_gate<T: Element>(arch: Arch, activation: Activation, gate: &mut [T], up: &[T]) {
    activate(arch, activation, gate);
    if let Activation::ClampedSwiglu(ClampedSwiglu { limit, .. }) = activation {
        let (least, most) = (T::of(-limit), T::of(limit));
        return vectorize(
            arch,
            #[inline(always)]
            || {
                for (gate, up) in gate.iter_mut().zip(up) {
                    let up = if *up > most { most } else { *up };
                    let up = if up < least { least } else { up };
                    *gate = *gate * (up + T::ONE);
                }
            },
        );
    }
    vectorize(
        arch,
        #[inline(always)]
        || gate.iter_mut().zip(up).for_each(|(gate, up)| *gate = *gate * *up),
    );
}

/// Applies an activation to a whole matrix.
pub fn activate_all<T: Element>(arch: Arch, activation: Activation, x: &mut Mat<T>) {
    let size = TASK_ROWS * x.cols;
    x.data_mut().par_chunks_mut(size).for_each(|values| activate(arch, activation, values));
}

/// The factors `weight + offset` of a norm.
pub fn norm_factors<T: Element>(norm: &Norm<Weight<'_>>) -> Vec<T> {
    let mut factors = T::widened(&norm.weight.tensor);
    if norm.offset != 0.0 {
        factors.iter_mut().for_each(|factor| *factor += T::of(norm.offset));
    }
    factors
}

/// See [`Backend::norm`](crate::backend::Backend::norm).
pub fn norm<T: Element>(
    arch: Arch,
    x: &Mat<T>,
    norm: &Norm<Weight<'_>>,
    normalized: Option<&mut Mat<T>>,
    normed: &mut Mat<T>,
) {
    let (cols, size) = (x.cols, TASK_ROWS * x.cols);
    let factors = norm_factors::<T>(norm);
    let bias = norm.bias.as_ref().map(|bias| T::widened(&bias.tensor));
    let mut kept = normalized.map(|mat| mat.data_mut().chunks_mut(size));
    let tasks: Vec<_> = (x.data().chunks(size).zip(normed.data_mut().chunks_mut(size)))
        .map(|(x, normed)| (x, normed, kept.as_mut().and_then(Iterator::next)))
        .collect();
    tasks.into_par_iter().for_each(|(x, normed, mut normalized)| {
        vectorize(
            arch,
            #[inline(always)]
            || {
                for (row, (x, normed)) in x.chunks_exact(cols).zip(normed.chunks_exact_mut(cols)).enumerate()
                {
                    unit(x, norm, normed);
                    if let Some(normalized) = &mut normalized {
                        normalized[row * cols..(row + 1) * cols].copy_from_slice(normed);
                    }
                    normed.iter_mut().zip(&factors).for_each(|(to, w)| *to = *w * *to);
                    if let Some(bias) = &bias {
                        normed.iter_mut().zip(bias).for_each(|(to, bias)| *to += *bias);
                    }
                }
            },
        );
    });
}

/// A norm without its weight and bias.
#[inline(always)]
fn unit<T: Element>(x: &[T], norm: &Norm<Weight<'_>>, out: &mut [T]) {
    if !norm.centered {
        let scale = T::of(1.0 / (mean_square(x) + norm.eps).sqrt());
        out.iter_mut().zip(x).for_each(|(to, v)| *to = *v * scale);
        return;
    }
    let mean = sum(x) / x.len() as f64;
    out.iter_mut().zip(x).for_each(|(to, v)| *to = T::of(v.wide() - mean));
    let scale = T::of(1.0 / (mean_square(out) + norm.eps).sqrt());
    out.iter_mut().for_each(|v| *v = *v * scale);
}

/// See [`Backend::norm_heads`](crate::backend::Backend::norm_heads).
pub fn norm_heads<T: Element>(arch: Arch, x: &mut Mat<T>, norm: &Norm<Weight<'_>>) {
    let size = TASK_ROWS * x.cols;
    let factors = norm_factors::<T>(norm);
    x.data_mut().par_chunks_mut(size).for_each(|rows| {
        vectorize(
            arch,
            #[inline(always)]
            || {
                for part in rows.chunks_exact_mut(factors.len()) {
                    let scale = T::of(1.0 / (mean_square(part) + norm.eps).sqrt());
                    part.iter_mut().zip(&factors).for_each(|(v, w)| *v = *w * (*v * scale));
                }
            },
        );
    });
}

/// See [`Backend::normed_key_difference`](crate::backend::Backend::normed_key_difference). All in f64, so that the
/// difference has no rounding but its own.
pub fn normed_key_difference(
    arch: Arch,
    keys: &Mat<f32>,
    norm: Twin<&Norm<Weight<'_>>>,
    difference: &mut Mat<f32>,
) {
    let size = TASK_ROWS * keys.cols;
    let factors = norm.map(norm_factors::<f64>);
    let width = factors.ft.len();
    let parts = keys.data().par_chunks(size).zip(difference.data_mut().par_chunks_mut(size));
    parts.for_each(|(keys, difference)| {
        let mut pt = vec![0.0f64; width];
        vectorize(
            arch,
            #[inline(always)]
            || {
                for (ft, difference) in keys.chunks_exact(width).zip(difference.chunks_exact_mut(width)) {
                    for ((pt, ft), d) in pt.iter_mut().zip(ft).zip(&*difference) {
                        *pt = f64::from(*ft) + f64::from(*d);
                    }
                    let pt_scale = 1.0 / (mean_square(&pt) + norm.pt.eps).sqrt();
                    let ft_scale = 1.0 / (mean_square(ft) + norm.ft.eps).sqrt();
                    for (i, to) in difference.iter_mut().enumerate() {
                        let pt = pt[i] * pt_scale * factors.pt[i];
                        *to = (pt - f64::from(ft[i]) * ft_scale * factors.ft[i]) as f32;
                    }
                }
            },
        );
    });
}

/// `x += a`.
pub fn accumulate<T: Element>(a: &Mat<T>, x: &mut Mat<T>) {
    let size = TASK_ROWS * a.cols;
    x.data_mut().par_chunks_mut(size).zip(a.data().par_chunks(size)).for_each(|(x, a)| {
        x.iter_mut().zip(a).for_each(|(to, a)| *to += *a);
    });
}

/// `out[i] = a[rows[i]]`.
pub fn gather<T: Element>(a: &Mat<T>, rows: &[usize], out: &mut Mat<T>) {
    let cols = a.cols;
    out.data_mut().par_chunks_exact_mut(cols).zip(rows).for_each(|(to, row)| to.copy_from_slice(a.row(*row)));
}

/// `x[rows[i]] += factors[i] · a[i]`.
pub fn scatter_add<T: Element>(a: &Mat<T>, rows: &[usize], factors: &[f64], x: &mut Mat<T>) {
    for (i, (row, factor)) in rows.iter().zip(factors).enumerate() {
        let factor = T::of(*factor);
        x.row_mut(*row).iter_mut().zip(a.row(i)).for_each(|(to, a)| *to += factor * *a);
    }
}

/// `out = a`.
pub fn copy<T: Element>(a: &Mat<T>, out: &mut Mat<T>) {
    assert_eq!(out.data().len(), a.data().len(), "matrices of different sizes");
    let size = (TASK_ROWS * a.cols).max(1);
    let parts = out.data_mut().par_chunks_mut(size).zip(a.data().par_chunks(size));
    parts.for_each(|(out, a)| out.copy_from_slice(a));
}

/// `out[rows[i]] = a[i]`.
pub fn scatter<T: Element>(a: &Mat<T>, rows: &[usize], out: &mut Mat<T>) {
    for (i, row) in rows.iter().enumerate() {
        out.row_mut(*row).copy_from_slice(a.row(i));
    }
}

/// `ft = (1 − alpha) pt + alpha ft`.
pub fn blend<T: Element>(arch: Arch, pt: &Mat<T>, ft: &mut Mat<T>, alpha: f64) {
    let (size, alpha, rest) = (TASK_ROWS * pt.cols, T::of(alpha), T::of(1.0 - alpha));
    ft.data_mut().par_chunks_mut(size).zip(pt.data().par_chunks(size)).for_each(|(ft, pt)| {
        vectorize(
            arch,
            #[inline(always)]
            || ft.iter_mut().zip(pt).for_each(|(ft, pt)| *ft = rest * *pt + alpha * *ft),
        );
    });
}

/// `x = factor · x`.
pub fn scale<T: Element>(x: &mut Mat<T>, factor: f64) {
    let (size, factor) = (TASK_ROWS * x.cols, T::of(factor));
    x.data_mut().par_chunks_mut(size).for_each(|x| x.iter_mut().for_each(|v| *v = *v * factor));
}

/// See [`Backend::scale_heads`](crate::backend::Backend::scale_heads).
pub fn scale_heads<T: Element>(heads: &mut Mat<T>, factors: &Mat<T>, first: usize) {
    let (cols, dim) = (heads.cols, heads.cols / factors.cols);
    let rows = heads.data_mut()[first * cols..].par_chunks_exact_mut(cols);
    rows.zip(factors.data().par_chunks_exact(factors.cols)).for_each(|(heads, factors)| {
        for (head, factor) in heads.chunks_exact_mut(dim).zip(factors) {
            head.iter_mut().for_each(|v| *v = *v * *factor);
        }
    });
}

/// `out = a + b`.
pub fn add<T: Element>(arch: Arch, a: &Mat<T>, b: &Mat<T>, out: &mut Mat<T>) {
    let size = TASK_ROWS * a.cols;
    let operands = a.data().par_chunks(size).zip(b.data().par_chunks(size));
    out.data_mut().par_chunks_mut(size).zip(operands).for_each(|(out, (a, b))| {
        vectorize(
            arch,
            #[inline(always)]
            || {
                for ((to, a), b) in out.iter_mut().zip(a).zip(b) {
                    *to = *a + *b;
                }
            },
        );
    });
}

#[inline(always)]
fn sum<T: Element>(x: &[T]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, v)| *lane += v.wide());
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|v| v.wide()).sum::<f64>()
}

#[inline(always)]
fn mean_square<T: Element>(x: &[T]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for (lane, v) in lanes.iter_mut().zip(block) {
            *lane = v.wide().mul_add(v.wide(), *lane);
        }
    }
    let rest: f64 = rest.iter().map(|v| v.wide() * v.wide()).sum();
    (lanes.iter().sum::<f64>() + rest) / x.len() as f64
}

/// `Σ a b`, in f64.
#[inline(always)]
pub fn dot<A: Element, B: Element>(a: &[A], b: &[B]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let ((a_blocks, a_rest), (b_blocks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = a.wide().mul_add(b.wide(), *lane);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a.wide() * b.wide()).sum();
    lanes.iter().sum::<f64>() + rest
}

/// `cap · tanh(s / cap)` of every score, to f32's precision for small ones too.
#[inline(always)]
pub fn softcap(scores: &mut [f32], cap: f32) {
    for score in scores {
        let y = *score / cap;
        // tanh y = 1 − 2 / (e^2y + 1) cancels for small y; there the series' first term left out is below 1e-9.
        let far = 1.0 - 2.0 / (vector_exp(2.0 * y) + 1.0);
        let square = y * y;
        const TERMS: [f32; 4] = [-17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0];
        let near = y * TERMS.iter().fold(62.0 / 2835.0, |sum: f32, term| sum.mul_add(square, *term));
        *score = cap * if square < 0.04 { near } else { far };
    }
}

/// Replaces scores by their unnormalized softmax `e^(s - max)` and returns one over their sum, and that of a sink.
#[inline(always)]
pub fn softmax<T: Element>(scores: &mut [T], sink: Option<T>) -> T {
    let mut lanes = [scores[0]; LANES];
    let (blocks, rest) = scores.as_chunks::<LANES>();
    for block in blocks {
        for (lane, s) in lanes.iter_mut().zip(block) {
            *lane = if *s > *lane { *s } else { *lane };
        }
    }
    let largest = lanes.iter().chain(rest).fold(scores[0], |a, b| if *b > a { *b } else { a });
    let mut sums = [T::default(); LANES];
    let (blocks, rest) = scores.as_chunks_mut::<LANES>();
    for block in blocks {
        for (sum, s) in sums.iter_mut().zip(block) {
            *s = (*s - largest).exp();
            *sum += *s;
        }
    }
    let mut sum = T::default();
    for s in rest {
        *s = (*s - largest).exp();
        sum += *s;
    }
    let sum = sums.iter().fold(T::default(), |sum, lane| sum + *lane) + sum;
    T::ONE / sink.map_or(sum, |sink| sum + (sink - largest).exp())
}

/// Rotates every head of every row: of as many dimensions as the table is for, `i` with the one half of them further on
/// (`rotate_half` of `transformers`).
pub fn rotate<T: Element>(
    arch: Arch,
    x: &mut Mat<T>,
    head_dim: usize,
    sequences: &[Sequence],
    rows: Rows,
    rope: RopeOf,
) {
    let cols = x.cols;
    let mut parts = Vec::new();
    let mut data = x.data_mut();
    for sequence in sequences {
        let (range, mut position) = rows.of(sequence);
        let mut left = range.len();
        while left > 0 {
            let count = left.min(TASK_ROWS);
            let (part, rest) = data.split_at_mut(count * cols);
            parts.push((part, sequence.rope(rope), position));
            (data, left, position) = (rest, left - count, position + count);
        }
    }
    parts.into_par_iter().for_each(|(part, table, first)| {
        vectorize(
            arch,
            #[inline(always)]
            || {
                for (offset, row) in part.chunks_exact_mut(cols).enumerate() {
                    let (cos, sin) = table.row(first + offset);
                    for head in row.chunks_exact_mut(head_dim) {
                        let (low, high) = head.split_at_mut(cos.len());
                        for (((low, high), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                            let (c, s) = (T::of(f64::from(*c)), T::of(f64::from(*s)));
                            (*low, *high) = (*low * c - *high * s, *high * c + *low * s);
                        }
                    }
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_three_ulps() {
        for i in -8_700..=8_800 {
            let x = i as f32 / 100.0 + 0.003;
            let exact = f64::from(x).exp();
            let error = (f64::from(vector_exp(x)) - exact).abs() / exact;
            assert!(error < 3.0 * f64::from(f32::EPSILON), "exp({x}): relative error {error:e}");
        }
        assert_eq!(vector_exp(0.0), 1.0);
        assert!(vector_exp(f32::NEG_INFINITY) < 1.3e-38);
        assert!(vector_exp(f32::NAN).is_nan());
    }

    #[test]
    fn softcap_is_exact_for_small_and_large_scores() {
        for i in -2000..=2000 {
            let score = i as f32 * 0.1 + 0.003;
            let exact = 50.0 * (f64::from(score) / 50.0).tanh();
            let mut capped = [score];
            softcap(&mut capped, 50.0);
            assert!((f64::from(capped[0]) / exact - 1.0).abs() < 1e-6, "{score}: {} {exact}", capped[0]);
        }
    }

    #[test]
    fn softmax_of_any_length_sums_to_one() {
        for len in 1..70 {
            let mut scores: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
            let mut sunk: Vec<f32> = scores.clone();
            let total =
                |scores: &[f32], inverse_sum: f32| scores.iter().map(|s| s * inverse_sum).sum::<f32>();
            let inverse_sum = softmax(&mut scores, None);
            assert!((total(&scores, inverse_sum) - 1.0).abs() < 1e-6);
            // A sink like one more score of ln 1: the smallest are about -9.
            let sum: f32 = sunk.iter().map(|s| s.exp()).sum();
            let inverse_sum = softmax(&mut sunk, Some(0.0));
            assert!((total(&sunk, inverse_sum) - sum / (sum + 1.0)).abs() < 1e-6);
            assert!(softmax(&mut [0.0f32], Some(1e4)) < 1e-37);
        }
    }
}
