//! What is done element by element or row by row: norm, activation, rotation, exponentials, running sums.
//!
//! Loops are written so that the compiler can make vector code of them inside [`Arch::dispatch`]; sums have a fixed
//! number of lanes, so their bits do not depend on the vector width.

use crate::{
    backend::{Mat, Rows, RunningL1, Sequence},
    model::Activation,
    twin::Branch,
};
use pulp::Arch;
use rayon::prelude::*;

/// Rows that make a task.
const TASK_ROWS: usize = 32;

/// Partial sums of a reduction.
const LANES: usize = 16;

/// `e^x` to within 2 units in the last place, for vector code; below -87.3 it stays at 1.2e-38.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: n · LN_2_HIGH is exact for all n that occur.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.7);
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    // Taylor's series; |r| ≤ ln 2 / 2, so the first term left out is below 6e-9.
    let tail = r * (1.0 / 720.0 + r * (1.0 / 5040.0));
    let series = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + tail)))));
    // 2^n in two steps: n = 128 is no exponent of a float.
    let half = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32 >> 1;
    let rest = (shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32) - half;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    series * power(half) * power(rest)
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `gate = act(gate) ∘ up`.
pub fn activate(arch: Arch, activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => arch.dispatch(|| {
            for (gate, up) in gate.iter_mut().zip(up) {
                *gate = *gate * sigmoid(*gate) * up;
            }
        }),
        Activation::GeluTanh => arch.dispatch(|| {
            // (1 + tanh y) / 2 = sigmoid(2 y)
            const TWICE_ROOT_2_OVER_PI: f32 = 1.595_769;
            for (gate, up) in gate.iter_mut().zip(up) {
                let x = *gate;
                *gate = x * sigmoid(TWICE_ROOT_2_OVER_PI * (x + 0.044715 * x * x * x)) * up;
            }
        }),
        Activation::Gelu => {
            for (gate, up) in gate.iter_mut().zip(up) {
                let x = f64::from(*gate);
                let cdf = 0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2));
                *gate = (x * cdf) as f32 * up;
            }
        }
    }
}

/// RMSNorm of every row, its mean square in f64.
pub fn norm(arch: Arch, x: &Mat<f32>, weight: &[f32], eps: f64, out: &mut Mat<f32>) {
    let cols = x.cols;
    out.data_mut().par_chunks_mut(TASK_ROWS * cols).zip(x.data().par_chunks(TASK_ROWS * cols)).for_each(
        |(out, x)| {
            arch.dispatch(|| {
                for (out, x) in out.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
                    let scale = (1.0 / (mean_square(x) + eps).sqrt()) as f32;
                    for ((to, v), w) in out.iter_mut().zip(x).zip(weight) {
                        *to = w * (v * scale);
                    }
                }
            });
        },
    );
}

#[inline(always)]
fn mean_square(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for (lane, v) in lanes.iter_mut().zip(block) {
            *lane += f64::from(*v) * f64::from(*v);
        }
    }
    let rest: f64 = rest.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    (lanes.iter().sum::<f64>() + rest) / x.len() as f64
}

#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((a_blocks, a_rest), (b_blocks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

/// Replaces scores by their unnormalized softmax `e^(s - max)` and returns one over their sum.
#[inline(always)]
pub fn softmax(scores: &mut [f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = scores.as_chunks::<LANES>();
    for block in blocks {
        for (lane, s) in lanes.iter_mut().zip(block) {
            *lane = if *s > *lane { *s } else { *lane };
        }
    }
    let largest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0f32; LANES];
    let (blocks, rest) = scores.as_chunks_mut::<LANES>();
    for block in blocks {
        for (sum, s) in sums.iter_mut().zip(block) {
            *s = exp(*s - largest);
            *sum += *s;
        }
    }
    let mut sum: f32 = 0.0;
    for s in rest {
        *s = exp(*s - largest);
        sum += *s;
    }
    1.0 / (sums.iter().sum::<f32>() + sum)
}

/// Rotates every head of every row: dimension `i` with dimension `i + Dh/2` (`rotate_half` of `transformers`).
pub fn rotate(
    arch: Arch,
    x: &mut Mat<f32>,
    head_dim: usize,
    sequences: &[Sequence],
    rows: Rows,
    branch: Branch,
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
            parts.push((part, sequence.rope(branch), position));
            (data, left, position) = (rest, left - count, position + count);
        }
    }
    parts.into_par_iter().for_each(|(part, table, first)| {
        arch.dispatch(|| {
            for (offset, row) in part.chunks_exact_mut(cols).enumerate() {
                let (cos, sin) = table.row(first + offset);
                for head in row.chunks_exact_mut(head_dim) {
                    let (low, high) = head.split_at_mut(cos.len());
                    for (((low, high), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                        (*low, *high) = (*low * c - *high * s, *high * c + *low * s);
                    }
                }
            }
        });
    });
}

/// The running sums P and F of the twin rows, in f64: they cost nothing and add up without rounding of their own.
#[derive(Debug)]
pub struct Sums {
    cols: usize,
    p: Vec<f64>,
    f: Vec<f64>,
}

impl Sums {
    pub fn new(rows: usize, cols: usize) -> Self {
        Self { cols, p: vec![0.0; rows * cols], f: vec![0.0; rows * cols] }
    }

    /// See [`Backend::contribution`](crate::backend::Backend::contribution).
    pub fn contribution(
        &mut self,
        f_pt: Option<&Mat<f32>>,
        f_ft: &Mat<f32>,
        x: &mut Mat<f32>,
    ) -> Vec<RunningL1> {
        let cols = self.cols;
        let rows = self.p.par_chunks_exact_mut(cols).zip(self.f.par_chunks_exact_mut(cols));
        rows.zip(x.data_mut().par_chunks_exact_mut(cols))
            .enumerate()
            .map(|(row, ((p, f), x))| {
                let tuned = f_ft.row(row);
                let base = f_pt.map_or(tuned, |f_pt| f_pt.row(row));
                let mut l1 = RunningL1::default();
                for col in 0..cols {
                    let ptc = f64::from(base[col]);
                    p[col] += ptc;
                    f[col] += f64::from(tuned[col]) - ptc;
                    x[col] += tuned[col];
                    l1.ptc += p[col].abs();
                    l1.ftc += f[col].abs();
                }
                l1
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_three_ulps() {
        for i in -8_700..=8_800 {
            let x = i as f32 / 100.0 + 0.003;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 3.0 * f64::from(f32::EPSILON), "exp({x}): relative error {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn softmax_of_any_length_sums_to_one() {
        for len in 1..70 {
            let mut scores: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
            let inverse_sum = softmax(&mut scores);
            let total: f32 = scores.iter().map(|s| s * inverse_sum).sum();
            assert!((total - 1.0).abs() < 1e-6);
        }
    }
}
