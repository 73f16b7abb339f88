//! Every operation of a backend against the operation of the same name on the reference backend: odd shapes, random numbers.

use std::sync::Arc;
use tuco::{
    backend::{
        Attended, AttentionShape, Backend, Linear, Norm, PartSums, Role, RopeOf, Rows, Sequence, Sunk,
        reference::Reference,
    },
    model::{self, Activation, Rope, RopeScaling},
    tensor::{Dtype, LowRank, Stored, Tensor},
    twin::{Branch, Twin},
};

/// Random numbers from −1 to 1, the same for every backend.
struct Numbers(u64);

impl Numbers {
    /// f32 numbers as a checkpoint has them, each but a bf16 number where `exact`.
    fn bytes(&mut self, len: usize, exact: bool) -> Vec<u8> {
        let mut next = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        let value = |v: f32| if exact { f32::from_bits(v.to_bits() & 0xffff_0000) } else { v };
        (0..len).flat_map(|_| value(next()).to_le_bytes()).collect()
    }
}

/// What matrices of weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    Bf16,
    /// They have more bits.
    Wide,
    /// Of bf16 numbers, to which an adapter adds.
    Adapted,
}

/// One backend with its results.
struct Bench<'a, B> {
    backend: &'a B,
    numbers: Numbers,
    weights: Weights,
    results: Vec<(&'static str, Vec<f64>)>,
}

impl<B: Backend> Bench<'_, B> {
    fn mat(&mut self, kind: Rows, role: Role, rows: usize, cols: usize) -> B::Mat {
        let bytes = self.numbers.bytes(rows * cols, true);
        self.mat_of(&bytes, kind, role, rows, cols)
    }

    /// One to be written to: all NaN, so that what is not written shows.
    fn empty(&self, kind: Rows, role: Role, rows: usize, cols: usize) -> B::Mat {
        self.mat_of(&f32::NAN.to_le_bytes().repeat(rows * cols), kind, role, rows, cols)
    }

    fn mat_of(&self, bytes: &[u8], kind: Rows, role: Role, rows: usize, cols: usize) -> B::Mat {
        let mut mat = self.backend.zeros(kind, Role::Stream, rows, cols);
        let ids: Vec<u32> = (0..rows as u32).collect();
        let table = self.backend.table(Tensor::stored(Dtype::F32, rows, cols, bytes));
        self.backend.embed(&ids, &table, &mut mat);
        if role == Role::Stream {
            return mat;
        }
        let mut operand = self.backend.zeros(kind, role, rows, cols);
        self.backend.copy(&mat, &mut operand);
        operand
    }

    fn weight(&mut self, rows: usize, cols: usize) -> B::Weight<'static> {
        let bytes = self.numbers.bytes(rows * cols, self.weights != Weights::Wide);
        let tensor = Tensor::stored(Dtype::F32, rows, cols, bytes.leak());
        if self.weights != Weights::Adapted || rows == 1 {
            return self.backend.weight(tensor);
        }
        // Ranks that are more and less than a step of a product, and odd.
        let rank = if cols.is_multiple_of(2) { 3 } else { 70 };
        let mut factor =
            |rows, cols| Stored::new(Dtype::F32, cols, self.numbers.bytes(rows * cols, false).leak());
        let (a, b) = (factor(rank, cols), factor(rows, rank));
        let update = LowRank { a, b, b_columns: (0, 1), scale: 0.3, row_scales: None, merged_to: None };
        self.backend.weight(Tensor { update: Some(update), ..tensor })
    }

    fn linear(&mut self, out: usize, inner: usize, bias: bool) -> Linear<B::Weight<'static>> {
        Linear { weight: self.weight(out, inner), bias: bias.then(|| self.weight(1, out)) }
    }

    fn norm(&mut self, cols: usize, centered: bool) -> Norm<B::Weight<'static>> {
        let bias = centered.then(|| self.weight(1, cols));
        Norm {
            centered,
            weight: self.weight(1, cols),
            bias,
            offset: if centered { 0.0 } else { 1.0 },
            eps: 1e-5,
        }
    }

    fn keep(&mut self, name: &'static str, mat: &B::Mat) {
        self.results.push((name, self.backend.read(mat)));
        self.backend.check().unwrap();
    }

    fn products(&mut self, kind: Rows, rows: usize, d: usize, f: usize) {
        let a = self.mat(kind, Role::Operand, rows, d);
        let (w, gate, up) = (self.linear(f, d, true), self.linear(f, d, true), self.linear(f, d, false));
        let [mut out, mut last] = [(); 2].map(|()| self.empty(kind, Role::Operand, rows, f));
        self.backend.linear(&a, &w, &mut out);
        self.keep("linear", &out);
        let narrower = self.linear(f.div_ceil(3), d, true);
        let mut beside = self.empty(kind, Role::Operand, rows, f.div_ceil(3));
        self.backend.linears(&a, &mut [(&up, &mut out), (&narrower, &mut beside), (&w, &mut last)]);
        self.keep("the first of linears", &out);
        self.keep("the second of linears", &beside);
        self.keep("the third of linears", &last);
        let mut stream = self.empty(kind, Role::Stream, rows, f);
        self.backend.linear(&a, &up, &mut stream);
        self.keep("linear to a stream", &stream);
        let mut x = self.mat(kind, Role::Stream, rows, f);
        self.backend.linear_add(&a, &w, &mut x);
        self.keep("linear_add", &x);
        use Activation::*;
        let xielu = model::Xielu { alpha_p: 0.7, alpha_n: 1.1, ..model::Xielu::INITIAL };
        // As gpt-oss has it, which the wider of these products reach. With what is added here they are some four times as large, and errors
        // are shares of what is left of them.
        let limit = if self.weights == Weights::Adapted { 28.0 } else { 7.0 };
        let swiglu = model::ClampedSwiglu { alpha: 1.702, limit };
        for activation in [Silu, Gelu, GeluTanh, Relu, Relu2, Xielu(xielu), ClampedSwiglu(swiglu)] {
            // No family's gates: a square, which doubles what was rounded, and xIELU, which gated kernels do not have.
            if !matches!(activation, Relu2 | Xielu(_)) {
                self.backend.gated(&a, &gate, &up, activation, &mut out);
                self.keep("gated", &out);
            }
            // Nothing but a gate, of products that may have biases.
            if activation == ClampedSwiglu(swiglu) {
                self.backend.gated(&a, &up, &gate, activation, &mut out);
                self.keep("gated", &out);
                continue;
            }
            self.backend.activated(&a, &w, activation, &mut out);
            self.keep("activated", &out);
        }
    }

    fn rows(&mut self, kind: Rows, rows: usize, d: usize) {
        let x = self.mat(kind, Role::Stream, rows, d);
        for centered in [false, true] {
            let norm = self.norm(d, centered);
            let mut normalized = self.empty(kind, Role::Operand, rows, d);
            let mut normed = self.empty(kind, Role::Operand, rows, d);
            self.backend.norm(&x, &norm, Some(&mut normalized), &mut normed);
            self.keep("norm, normalized", &normalized);
            self.keep("norm", &normed);
            self.backend.norm(&normalized, &norm, None, &mut normed);
            self.keep("norm of an operand", &normed);
        }
        let a = self.mat(kind, Role::Operand, rows, d);
        let mut sum = self.mat(kind, Role::Stream, rows, d);
        self.backend.accumulate(&a, &mut sum);
        self.backend.scale(&mut sum, 0.3);
        self.keep("accumulate, scale", &sum);
        let picked: Vec<usize> = (0..rows).rev().step_by(2).collect();
        let mut gathered = self.empty(kind, Role::Operand, picked.len(), d);
        self.backend.gather(&a, &picked, &mut gathered);
        self.keep("gather", &gathered);
        let scattered = self.mat(kind, Role::Stream, picked.len(), d);
        let factors: Vec<f64> = (0..picked.len()).map(|i| 0.5 + i as f64).collect();
        self.backend.scatter_add(&scattered, &picked, &factors, &mut sum);
        self.keep("scatter_add", &sum);
        self.backend.blend(&x, &mut sum, 0.3);
        self.keep("blend", &sum);
        let mut partly = self.mat(kind, Role::Operand, rows, d);
        self.backend.scatter(&gathered, &picked, &mut partly);
        self.keep("scatter", &partly);
    }

    fn heads(&mut self, lengths: &[usize], shape: &AttentionShape, d: usize) {
        let AttentionShape { num_attention_heads: h, num_key_value_heads: k, head_dim: dim, .. } = *shape;
        let (sequences, context, twin) = sequences(lengths, dim);
        let layout = self.backend.layout(&sequences);
        // As of a pack with nothing but a beginning that prompts share.
        let beginnings = sequences.iter().map(|sequence| Sequence { twin: 0..0, ..sequence.clone() });
        let endless = self.backend.layout(&beginnings.collect::<Vec<_>>());
        let rope = RopeOf { branch: Branch::Ft, index: 0 };
        for (kind, rows) in [(Rows::Context, context), (Rows::Twin, twin)] {
            let mut x = self.mat(kind, Role::Operand, rows, h * dim);
            self.backend.rotate(&mut x, dim, &layout, kind, rope);
            self.keep("rotate", &x);
            let mut beside = self.mat(kind, Role::Operand, rows, k * dim);
            self.backend.rotate_both([&mut x, &mut beside], dim, &layout, kind, rope);
            self.keep("the first of rotate_both", &x);
            self.keep("the second of rotate_both", &beside);
            let norm = self.norm(dim, false);
            self.backend.norm_heads(&mut x, &norm);
            self.keep("norm_heads", &x);
        }
        let keys = self.mat(Rows::Context, Role::Operand, context, k * dim);
        let values = self.mat(Rows::Context, Role::Operand, context, k * dim);
        let sinks = self.weight(1, h);
        for (name, sinks) in [("attention", None), ("attention with sinks", Some(&sinks))] {
            let mut q = self.mat(Rows::Context, Role::Operand, context, h * dim);
            self.backend.attention(&mut q, &keys, &values, &layout, shape, sinks);
            self.keep(name, &q);
        }

        let normalized = self.mat(Rows::Context, Role::Operand, context, d);
        for centered in [false, true] {
            let norms = Twin::new(self.norm(d, centered), self.norm(d, centered));
            let linears = Twin::new(self.linear(k * dim, d, true), self.linear(k * dim, d, true));
            let mut difference = self.empty(Rows::Context, Role::Operand, context, k * dim);
            let norms = norms.as_ref().map(Some);
            self.backend.key_difference(&normalized, norms, linears.as_ref(), &mut difference);
            self.keep("key_difference", &difference);
            let twin_queries = self.mat(Rows::Twin, Role::Operand, twin, h * dim);
            let twin_keys = self.mat(Rows::Twin, Role::Operand, twin, k * dim);
            let twin_normed = self.mat(Rows::Twin, Role::Operand, twin, d);
            // A difference of about the size that the keys have.
            self.backend.scale(&mut difference, 0.1);
            let mut means = self.empty(Rows::Twin, Role::Operand, twin, h * d);
            let mut shares = self.empty(Rows::Twin, Role::Operand, twin, h);
            for (name, key_difference, layout) in [
                ("twin_attend", None, &layout),
                ("twin_attend with a difference", Some(&difference), &layout),
                ("twin_attend where no prompt ends", None, &endless),
            ] {
                let attended = Attended {
                    context_keys: &keys,
                    key_difference,
                    normalized: &normalized,
                    norm: norms.pt,
                    twin_keys: &twin_keys,
                    twin_normed: &twin_normed,
                };
                let mut sunk = Sunk { sinks: &sinks, shares: &mut shares };
                self.backend.twin_attend(
                    &twin_queries,
                    &attended,
                    layout,
                    shape,
                    &mut means,
                    Some(&mut sunk),
                );
                self.keep(name, &means);
                self.keep("shares of twin_attend", &shares);
                self.backend.twin_attend(&twin_queries, &attended, layout, shape, &mut means, None);
                self.keep(name, &means);
            }
            let value = self.linear(k * dim, d, true);
            let mut heads = self.empty(Rows::Twin, Role::Operand, twin, h * dim);
            self.backend.head_values(&means, &value, shape, 0, &mut heads);
            self.keep("head_values", &heads);
            let factors = self.mat(Rows::Twin, Role::Operand, twin.min(2), h);
            self.backend.scale_heads(&mut heads, &factors, twin - twin.min(2));
            self.keep("scale_heads", &heads);
        }
        let mut difference = self.mat(Rows::Context, Role::Operand, context, k * dim);
        let norms = Twin::new(self.norm(dim, false), self.norm(dim, false));
        self.backend.normed_key_difference(&keys, norms.as_ref(), &mut difference);
        self.keep("normed_key_difference", &difference);
    }

    fn sums(&mut self, rows: usize, d: usize) {
        let mut sums = self.backend.sums(rows, d);
        let mut x = self.mat(Rows::Twin, Role::Stream, rows, d);
        // More layers than have their norms in one buffer.
        for _ in 0..33 {
            let f_pt = self.mat(Rows::Twin, Role::Operand, rows, d);
            let f_ft = self.mat(Rows::Twin, Role::Operand, rows, d);
            self.backend.contribution(Some(&f_pt), &f_ft, &mut x, &mut sums);
            self.backend.contribution(None, &f_ft, &mut x, &mut sums);
        }
        self.keep("contribution, stream", &x);
        let norms = self.backend.norms(&sums).into_iter().flatten();
        self.results.push(("contribution, norms", norms.flat_map(|l1| [l1.ptc, l1.ftc]).collect()));

        for kind in [Rows::Twin, Rows::Context] {
            let x = self.mat(kind, Role::Stream, rows, d);
            let mut sum = || Twin::new((), ()).map(|()| self.mat(kind, Role::Stream, rows, d));
            let mut sums = PartSums { attention: sum(), mlp: sum() };
            let (after_attention, after) = (sum(), sum());
            let norms = self.backend.trace(&x, after_attention.as_ref(), after.as_ref(), &mut sums);
            let numbers = norms.iter().flat_map(|parts| [parts.attention, parts.mlp, parts.whole]);
            self.results.push(("trace, norms", numbers.flat_map(|l1| [l1.ptc, l1.ftc]).collect()));
            for part in [&sums.attention.pt, &sums.attention.ft, &sums.mlp.pt, &sums.mlp.ft] {
                self.keep("trace", part);
            }
        }
    }
}

/// Prompts of these lengths with two twin rows each (one where there is but one token), their context rows and twin rows.
/// Those after the first also see the first three context rows, as if they had begun alike.
fn sequences(lengths: &[usize], dim: usize) -> (Vec<Sequence>, usize, usize) {
    let rope = Rope { rope_theta: 1e4, scaling: RopeScaling::Default, rotary_dim: dim / 4 * 2 };
    let tables: Arc<[_]> = [Arc::new(rope.table(1024, 0))].into();
    let (mut context, mut twin) = (0, 0);
    let of = |length: &usize| {
        let twins = 2.min(*length);
        let own = context..context + length - twins;
        let path = if context > 3 { vec![0..3, own.clone()] } else { vec![own.clone()] };
        let sequence = Sequence {
            context: own,
            path,
            twin: twin..twin + twins,
            ropes: Twin::new(tables.clone(), tables.clone()),
        };
        (context, twin) = (sequence.context.end, sequence.twin.end);
        sequence
    };
    let sequences = lengths.iter().map(of).collect();
    (sequences, context, twin)
}

/// What is computed.
#[derive(Debug, Clone, Copy)]
pub enum Case {
    Products { rows: usize, d: usize, f: usize },
    Rows { rows: usize, d: usize },
    Heads { lengths: &'static [usize], shape: AttentionShape, d: usize },
    Sums { rows: usize, d: usize },
}

impl<B: Backend> Bench<'_, B> {
    fn run(&mut self, case: Case) {
        match case {
            Case::Products { rows, d, f } => {
                self.products(Rows::Context, rows, d, f);
                self.products(Rows::Twin, rows, d, f);
                // Where twin rows work beside them they may have other kernels.
                self.backend.expect_context(Some(rows));
                self.products(Rows::Context, rows, d, f);
                self.backend.expect_context(None);
            }
            Case::Rows { rows, d } => {
                self.rows(Rows::Context, rows, d);
                self.rows(Rows::Twin, rows, d);
            }
            Case::Heads { lengths, shape, d } => self.heads(lengths, &shape, d),
            Case::Sums { rows, d } => self.sums(rows, d),
        }
    }
}

fn results<B: Backend>(
    backend: &B,
    case: Case,
    weights: Weights,
    seed: u64,
) -> Vec<(&'static str, Vec<f64>)> {
    let mut bench = Bench { backend, numbers: Numbers(seed), weights, results: Vec::new() };
    bench.run(case);
    bench.results
}

/// Each number may be off by so many times what all together may, as a share of its own size and the root mean square: of 10⁵ numbers whose
/// errors are random, the largest is 4.5 times their root mean square; products of two rounded numbers reach 6.
const OF_ONE: f64 = 8.0;

/// The error of all numbers together, `‖out − ref‖ / ‖ref‖`, and the largest of one, see [`OF_ONE`].
fn errors(found: &[f64], expected: &[f64]) -> [f64; 2] {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let differences = || found.iter().zip(expected).map(|(found, expected)| found - expected);
    let size = norm(&mut expected.iter().copied());
    let mean = size / (expected.len().max(1) as f64).sqrt();
    let of_one =
        differences().zip(expected).map(|(difference, expected)| difference.abs() / (mean + expected.abs()));
    // NaN is larger than any.
    let largest = of_one.fold(0.0, |largest: f64, error| if error <= largest { largest } else { error });
    [norm(&mut differences()) / size, largest]
}

/// Holds every result of `cases` with every kind of weights to a tolerance, once all errors were printed and the largest were reported;
/// `backend` makes a new backend, and numbers are made from `seed`, which is not 0.
pub fn compare<B: Backend>(
    backend: impl Fn() -> B,
    cases: &[Case],
    kinds: &[Weights],
    tolerance: f64,
    seed: u64,
) {
    let mut largest = [(0.0, String::new()), (0.0, String::new())];
    let mut beyond = Vec::new();
    for (weights, case) in kinds.iter().flat_map(|weights| cases.iter().map(move |case| (*weights, *case))) {
        let found = results(&backend(), case, weights, seed);
        let expected = results(&Reference, case, weights, seed);
        for ((name, found), (_, expected)) in found.iter().zip(&expected) {
            assert_eq!(found.len(), expected.len(), "{name}");
            let [of_all, of_one] = errors(found, expected);
            let line = format!("{of_all:8.1e} {of_one:8.1e}  {name}, {weights:?} weights, {case:?}");
            println!("{line}");
            for ((most, of), error) in largest.iter_mut().zip([of_all, of_one]) {
                if error > *most {
                    (*most, *of) = (error, line.clone());
                }
            }
            // Without a difference nothing of it is rounded to bf16.
            let tolerance = if *name == "twin_attend" { F32_TOLERANCE } else { tolerance };
            // NaN is not within it.
            let within = of_all <= tolerance && of_one <= OF_ONE * tolerance;
            if !within {
                beyond.push(format!("{line}, beyond {tolerance:.1e}"));
            }
        }
    }
    println!("report: seed {seed}; of all {}; of one {}", largest[0].1, largest[1].1);
    assert!(beyond.is_empty(), "seed {seed}: {}", beyond.join("\n"));
}

/// Operands and results in bf16 are rounded, each by at most 2⁻⁹ of itself.
pub const BF16_TOLERANCE: f64 = 4e-3;
pub const F32_TOLERANCE: f64 = 2e-6;

pub const fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape {
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        // Of many dimensions scores are no larger than in models, since a softmax magnifies by them what keys are rounded by.
        scale: if head_dim > 64 { 0.1 } else { 0.4 },
        softcap: None,
        sliding_window: None,
    }
}

/// More steps than are in flight, of the product itself and of what an adapter adds. For rows in f32: that of bf16 rows is mostly rounding.
pub const LONG: Case = Case::Products { rows: 3, d: 1101, f: 41 };

pub const CASES: &[Case] = &[
    Case::Products { rows: 1, d: 30, f: 41 },
    Case::Products { rows: 19, d: 64, f: 200 },
    Case::Products { rows: 111, d: 99, f: 131 },
    Case::Products { rows: 300, d: 264, f: 40 },
    Case::Products { rows: 300, d: 72, f: 520 },
    Case::Products { rows: 300, d: 72, f: 400 },
    Case::Rows { rows: 1, d: 6 },
    Case::Rows { rows: 19, d: 99 },
    Case::Rows { rows: 5, d: 2304 },
    Case::Heads { lengths: &[1, 19, 2, 99], shape: shape(4, 2, 6), d: 30 },
    Case::Heads { lengths: &[70, 3], shape: shape(3, 1, 16), d: 24 },
    Case::Heads {
        lengths: &[1, 130, 33],
        shape: AttentionShape { softcap: Some(3.0), sliding_window: Some(21), ..shape(2, 2, 24) },
        d: 40,
    },
    Case::Heads { lengths: &[66], shape: shape(2, 1, 64), d: 70 },
    Case::Heads { lengths: &[200, 70], shape: shape(8, 1, 80), d: 16 },
    Case::Heads { lengths: &[200, 70], shape: shape(4, 1, 96), d: 16 },
    Case::Heads { lengths: &[67], shape: shape(35, 5, 128), d: 16 },
    Case::Heads {
        lengths: &[111],
        shape: AttentionShape { sliding_window: Some(40), ..shape(2, 1, 256) },
        d: 136,
    },
    Case::Heads { lengths: &[200, 70], shape: shape(2, 1, 64), d: 16 },
    Case::Heads {
        lengths: &[210, 40],
        shape: AttentionShape { softcap: Some(3.0), sliding_window: Some(50), ..shape(1, 1, 128) },
        d: 16,
    },
    Case::Heads { lengths: &[130, 70], shape: shape(1, 1, 256), d: 16 },
    Case::Heads { lengths: &[200, 200, 200], shape: shape(4, 4, 8), d: 16 },
    Case::Heads {
        lengths: &[70, 9, 33],
        shape: AttentionShape { sliding_window: Some(40), ..shape(35, 5, 8) },
        d: 33,
    },
    // More tiles of keys and steps of rows than are in flight.
    Case::Heads { lengths: &[70, 3, 330], shape: shape(2, 1, 8), d: 700 },
    Case::Heads { lengths: &[200, 70, 330], shape: shape(4, 4, 128), d: 16 },
    Case::Heads { lengths: &[260], shape: shape(4, 4, 256), d: 16 },
    Case::Heads { lengths: &[260], shape: shape(3, 1, 136), d: 16 },
    Case::Heads { lengths: &[150], shape: shape(18, 2, 16), d: 16 },
    Case::Heads { lengths: &[70], shape: shape(9, 1, 256), d: 16 },
    Case::Heads { lengths: &[70], shape: shape(17, 1, 256), d: 16 },
    Case::Sums { rows: 3, d: 300 },
];
