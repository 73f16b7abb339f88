//! The two element types of the CPU backend: f32 for context rows, f64 for twin rows.

use super::{
    attention,
    elementwise::{softcap, vector_exp},
    gemm::Right,
    product::widen_part,
    weight::{Panels, Weight},
};
use crate::tensor::Tensor;
use pulp::Arch;
use std::{cell::RefCell, ops::Range};

/// Buffers that a thread keeps between blocks of a product.
#[derive(Default)]
pub struct Scratch<T> {
    pub weights: Vec<T>,
    pub rows: Vec<T>,
    pub tile: Vec<T>,
    pub second_tile: Vec<T>,
    pub attention: attention::Scratch<T>,
}

thread_local! {
    static SCRATCH_F32: RefCell<Scratch<f32>> = RefCell::default();
    static SCRATCH_F64: RefCell<Scratch<f64>> = RefCell::default();
}

/// A floating-point type that rows are computed in.
pub trait Element:
    Copy
    + Default
    + Send
    + Sync
    + PartialOrd
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + 'static
{
    const ONE: Self;

    /// Most rows of a block of a product.
    const BLOCK_ROWS: usize;

    /// Rounds to the type.
    fn of(value: f64) -> Self;

    /// Exact.
    fn wide(self) -> f64;

    /// `e^x`, as exact as the type is for.
    fn exp(self) -> Self;

    /// `cap · tanh(s / cap)` of every score.
    fn softcap(scores: &mut [Self], cap: f64);

    /// Widens a weight into the front of `out`.
    fn widen(tensor: &Tensor<'_>, out: &mut [Self]);

    /// All elements of a weight.
    fn widened(tensor: &Tensor<'_>) -> Vec<Self> {
        let mut out = vec![Self::default(); tensor.rows * tensor.cols];
        Self::widen(tensor, &mut out);
        out
    }

    /// A weight, ready to be multiplied by.
    type Operand<'a>: Copy + Sync;

    /// Gets a weight ready.
    fn operand<'a>(arch: Arch, weight: &'a Weight<'_>) -> Self::Operand<'a>;

    /// The columns `cols` of a product's right operand: of one of the [`panels`](super::product::panels), and padded to
    /// at least [`MIN_COLS`](super::product::MIN_COLS).
    fn part<'s, 'a: 's>(
        arch: Arch,
        operand: Self::Operand<'a>,
        cols: Range<usize>,
        scratch: &'s mut Vec<Self>,
    ) -> Right<'s, Self>;

    /// Lends this thread's buffers. Not to be nested.
    fn with_scratch<R>(work: impl FnOnce(&mut Scratch<Self>) -> R) -> R;
}

impl Element for f32 {
    const ONE: Self = 1.0;

    /// A block's rows stay in a core's own cache while they meet one panel of the weight after the other.
    const BLOCK_ROWS: usize = 384;

    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn exp(self) -> Self {
        vector_exp(self)
    }

    #[inline(always)]
    fn softcap(scores: &mut [f32], cap: f64) {
        softcap(scores, cap as f32);
    }

    #[inline(always)]
    fn widen(tensor: &Tensor<'_>, out: &mut [f32]) {
        tensor.widen_into(out);
    }

    type Operand<'a> = &'a Panels;

    fn operand<'a>(arch: Arch, weight: &'a Weight<'_>) -> &'a Panels {
        weight.widened(arch)
    }

    fn part<'s, 'a: 's>(
        _: Arch,
        operand: &'a Panels,
        cols: Range<usize>,
        _: &'s mut Vec<f32>,
    ) -> Right<'s, f32> {
        operand.part(cols)
    }

    fn with_scratch<R>(work: impl FnOnce(&mut Scratch<f32>) -> R) -> R {
        SCRATCH_F32.with_borrow_mut(work)
    }
}

impl Element for f64 {
    const ONE: Self = 1.0;

    /// Every block widens its part of the weight anew: many rows spread that cost.
    const BLOCK_ROWS: usize = 1024;

    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }

    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }

    fn softcap(scores: &mut [f64], cap: f64) {
        scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
    }

    #[inline(always)]
    fn widen(tensor: &Tensor<'_>, out: &mut [f64]) {
        tensor.widen_into_f64(out);
    }

    /// Twin rows are few: a weight is widened part by part, as it is needed.
    type Operand<'a> = Tensor<'a>;

    fn operand<'a>(_: Arch, weight: &'a Weight<'_>) -> Tensor<'a> {
        weight.tensor
    }

    fn part<'s, 'a: 's>(
        arch: Arch,
        operand: Tensor<'a>,
        cols: Range<usize>,
        scratch: &'s mut Vec<f64>,
    ) -> Right<'s, f64> {
        widen_part(arch, &operand, cols, scratch)
    }

    fn with_scratch<R>(work: impl FnOnce(&mut Scratch<f64>) -> R) -> R {
        SCRATCH_F64.with_borrow_mut(work)
    }
}
