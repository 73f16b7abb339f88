//! What every operation means: plain loops in f64, to be read. Slow.

use super::{
    Attended, AttentionShape, Backend, Linear, Mat, Norm, PartSums, Role, RopeOf, Rows, Sequence, Sunk,
};
use crate::{
    metrics::{PartsL1, RunningL1},
    model::{Activation, ClampedSwiglu, Xielu},
    tensor::Tensor,
    twin::Twin,
};

/// The reference backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

impl Backend for Reference {
    type Mat = Mat<f64>;
    type Weight<'w> = Mat<f64>;
    type Table<'w> = Tensor<'w>;
    type Layout = Vec<Sequence>;
    type Sums = Sums;

    fn layout(&self, sequences: &[Sequence]) -> Vec<Sequence> {
        sequences.to_vec()
    }

    fn zeros(&self, _kind: Rows, _role: Role, rows: usize, cols: usize) -> Mat<f64> {
        Mat::zeros(rows, cols)
    }

    fn resize(&self, mat: &mut Mat<f64>, rows: usize) {
        mat.resize(rows);
    }

    fn read(&self, mat: &Mat<f64>) -> Vec<f64> {
        mat.data().to_vec()
    }

    fn weight<'w>(&self, tensor: Tensor<'w>) -> Mat<f64> {
        let mut mat = Mat::zeros(tensor.rows, tensor.cols);
        tensor.widen_into_f64(mat.data_mut());
        mat
    }

    fn table<'w>(&self, tensor: Tensor<'w>) -> Tensor<'w> {
        tensor
    }

    fn embed(&self, token_ids: &[u32], table: &Tensor<'_>, out: &mut Mat<f64>) {
        for (row, id) in token_ids.iter().enumerate() {
            table.widen_run_f64(*id as usize, 0..table.cols, out.row_mut(row));
        }
    }

    fn norm(
        &self,
        x: &Mat<f64>,
        norm: &Norm<Mat<f64>>,
        mut normalized: Option<&mut Mat<f64>>,
        normed: &mut Mat<f64>,
    ) {
        for row in 0..x.rows {
            let plain = unit(x.row(row), norm);
            if let Some(normalized) = &mut normalized {
                normalized.row_mut(row).copy_from_slice(&plain);
            }
            normed.row_mut(row).copy_from_slice(&scaled(&plain, Some(norm)));
        }
    }

    fn norm_heads(&self, x: &mut Mat<f64>, norm: &Norm<Mat<f64>>) {
        for part in x.data_mut().chunks_exact_mut(norm.weight.cols) {
            part.copy_from_slice(&scaled(&unit(part, norm), Some(norm)));
        }
    }

    fn linear(&self, a: &Mat<f64>, w: &Linear<Mat<f64>>, out: &mut Mat<f64>) {
        for row in 0..a.rows {
            for (col, to) in out.row_mut(row).iter_mut().enumerate() {
                *to = product(a.row(row), w, col);
            }
        }
    }

    fn linear_add(&self, a: &Mat<f64>, w: &Linear<Mat<f64>>, x: &mut Mat<f64>) {
        for row in 0..a.rows {
            for (col, to) in x.row_mut(row).iter_mut().enumerate() {
                *to += product(a.row(row), w, col);
            }
        }
    }

    fn gated(
        &self,
        a: &Mat<f64>,
        gate: &Linear<Mat<f64>>,
        up: &Linear<Mat<f64>>,
        activation: Activation,
        out: &mut Mat<f64>,
    ) {
        for row in 0..a.rows {
            for (col, to) in out.row_mut(row).iter_mut().enumerate() {
                *to = gated(activation, product(a.row(row), gate, col), product(a.row(row), up, col));
            }
        }
    }

    fn activated(&self, a: &Mat<f64>, w: &Linear<Mat<f64>>, activation: Activation, out: &mut Mat<f64>) {
        for row in 0..a.rows {
            for (col, to) in out.row_mut(row).iter_mut().enumerate() {
                *to = activate(activation, product(a.row(row), w, col));
            }
        }
    }

    fn add(&self, a: &Mat<f64>, b: &Mat<f64>, out: &mut Mat<f64>) {
        for ((to, a), b) in out.data_mut().iter_mut().zip(a.data()).zip(b.data()) {
            *to = a + b;
        }
    }

    fn copy(&self, a: &Mat<f64>, out: &mut Mat<f64>) {
        out.data_mut().copy_from_slice(a.data());
    }

    fn accumulate(&self, a: &Mat<f64>, x: &mut Mat<f64>) {
        x.data_mut().iter_mut().zip(a.data()).for_each(|(to, a)| *to += a);
    }

    fn gather(&self, a: &Mat<f64>, rows: &[usize], out: &mut Mat<f64>) {
        for (i, row) in rows.iter().enumerate() {
            out.row_mut(i).copy_from_slice(a.row(*row));
        }
    }

    fn scatter_add(&self, a: &Mat<f64>, rows: &[usize], factors: &[f64], x: &mut Mat<f64>) {
        for (i, (row, factor)) in rows.iter().zip(factors).enumerate() {
            x.row_mut(*row).iter_mut().zip(a.row(i)).for_each(|(to, a)| *to += factor * a);
        }
    }

    fn scatter(&self, a: &Mat<f64>, rows: &[usize], out: &mut Mat<f64>) {
        for (i, row) in rows.iter().enumerate() {
            out.row_mut(*row).copy_from_slice(a.row(i));
        }
    }

    fn blend(&self, pt: &Mat<f64>, ft: &mut Mat<f64>, alpha: f64) {
        for (ft, pt) in ft.data_mut().iter_mut().zip(pt.data()) {
            *ft = (1.0 - alpha) * pt + alpha * *ft;
        }
    }

    fn scale(&self, x: &mut Mat<f64>, factor: f64) {
        x.data_mut().iter_mut().for_each(|v| *v *= factor);
    }

    fn rotate(&self, x: &mut Mat<f64>, head_dim: usize, layout: &Vec<Sequence>, rows: Rows, rope: RopeOf) {
        for sequence in layout {
            let (range, first) = rows.of(sequence);
            for (offset, row) in range.enumerate() {
                let (cos, sin) = sequence.rope(rope).row(first + offset);
                for head in x.row_mut(row).chunks_exact_mut(head_dim) {
                    for i in 0..cos.len() {
                        let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
                        let (a, b) = (head[i], head[i + cos.len()]);
                        head[i] = a * c - b * s;
                        head[i + cos.len()] = b * c + a * s;
                    }
                }
            }
        }
    }

    fn attention(
        &self,
        q: &mut Mat<f64>,
        k: &Mat<f64>,
        v: &Mat<f64>,
        layout: &Vec<Sequence>,
        shape: &AttentionShape,
        sinks: Option<&Mat<f64>>,
    ) {
        let dim = shape.head_dim;
        for sequence in layout {
            let (rows, first) = Rows::Context.of(sequence);
            for (offset, row) in rows.enumerate() {
                let (unseen, position) = (shape.first_visible(first + offset), first + offset);
                let keys: Vec<usize> = sequence.path_rows(unseen).take(position + 1 - unseen).collect();
                for head in 0..shape.num_attention_heads {
                    let own = head * dim..(head + 1) * dim;
                    let shared = (head / shape.group_size()) * dim;
                    let part = |mat: &Mat<f64>, key: usize| mat.row(key)[shared..shared + dim].to_vec();
                    let query = q.row(row)[own.clone()].to_vec();
                    let scores = keys.iter().map(|key| score(dot(&query, &part(k, *key)), shape));
                    let (weights, share) = softmax(scores, sinks.map(|sinks| sinks.data()[head]));
                    let values: Vec<_> = keys.iter().map(|key| part(v, *key)).collect();
                    let mean = mean(&weights, &values, dim);
                    q.row_mut(row)[own].iter_mut().zip(mean).for_each(|(to, v)| *to = share * v);
                }
            }
        }
    }

    fn key_difference(
        &self,
        normalized: &Mat<f64>,
        norm: Twin<Option<&Norm<Mat<f64>>>>,
        key: Twin<&Linear<Mat<f64>>>,
        out: &mut Mat<f64>,
    ) {
        for row in 0..normalized.rows {
            let normed = norm.map(|norm| scaled(normalized.row(row), norm));
            for (col, to) in out.row_mut(row).iter_mut().enumerate() {
                *to = product(&normed.pt, key.pt, col) - product(&normed.ft, key.ft, col);
            }
        }
    }

    fn normed_key_difference(&self, keys: &Mat<f64>, norm: Twin<&Norm<Mat<f64>>>, difference: &mut Mat<f64>) {
        let width = norm.ft.weight.cols;
        let parts = keys.data().chunks_exact(width).zip(difference.data_mut().chunks_exact_mut(width));
        for (ft, difference) in parts {
            let pt: Vec<f64> = ft.iter().zip(&*difference).map(|(ft, d)| ft + d).collect();
            let normed =
                Twin::new(&pt[..], ft).zip(norm).map(|(keys, norm)| scaled(&unit(keys, norm), Some(norm)));
            for ((to, pt), ft) in difference.iter_mut().zip(normed.pt).zip(normed.ft) {
                *to = pt - ft;
            }
        }
    }

    fn twin_attend(
        &self,
        q: &Mat<f64>,
        attended: &Attended<'_, Mat<f64>, Mat<f64>>,
        layout: &Vec<Sequence>,
        shape: &AttentionShape,
        out: &mut Mat<f64>,
        mut sunk: Option<&mut Sunk<'_, Mat<f64>, Mat<f64>>>,
    ) {
        let (dim, hidden) = (shape.head_dim, attended.normalized.cols);
        let first = layout.first().map_or(0, |sequence| sequence.twin.start);
        let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>();
        for sequence in layout {
            for row in sequence.twin.clone() {
                let (unseen, own) = sequence.visible_to_twin(row, shape);
                let context: Vec<usize> = sequence.path_rows(unseen).collect();
                let normed: Vec<_> =
                    (context.iter().map(|i| scaled(attended.normalized.row(*i), attended.norm)))
                        .chain(own.clone().map(|i| attended.twin_normed.row(i).to_vec()))
                        .collect();
                let context_key = |i: usize| match attended.key_difference {
                    Some(difference) => sum(attended.context_keys.row(i), difference.row(i)),
                    None => attended.context_keys.row(i).to_vec(),
                };
                for head in 0..shape.num_attention_heads {
                    let query = &q.row(row)[head * dim..(head + 1) * dim];
                    let shared = (head / shape.group_size()) * dim;
                    let score = |key: &[f64]| score(dot(query, &key[shared..shared + dim]), shape);
                    let scores = (context.iter().map(|i| score(&context_key(*i))))
                        .chain(own.clone().map(|i| score(attended.twin_keys.row(i))));
                    let (weights, share) = softmax(scores, sunk.as_ref().map(|sunk| sunk.sinks.data()[head]));
                    if let Some(sunk) = &mut sunk {
                        sunk.shares.row_mut(row - first)[head] = share;
                    }
                    out.row_mut(row - first)[head * hidden..(head + 1) * hidden]
                        .copy_from_slice(&mean(&weights, &normed, hidden));
                }
            }
        }
    }

    fn head_values(
        &self,
        means: &Mat<f64>,
        value: &Linear<Mat<f64>>,
        shape: &AttentionShape,
        first: usize,
        out: &mut Mat<f64>,
    ) {
        let (dim, hidden) = (shape.head_dim, value.weight.cols);
        for row in 0..means.rows {
            for head in 0..shape.num_attention_heads {
                let own = &means.row(row)[head * hidden..(head + 1) * hidden];
                let shared = (head / shape.group_size()) * dim;
                for i in 0..dim {
                    out.row_mut(first + row)[head * dim + i] = product(own, value, shared + i);
                }
            }
        }
    }

    fn scale_heads(&self, heads: &mut Mat<f64>, factors: &Mat<f64>, first: usize) {
        let dim = heads.cols / factors.cols;
        for row in 0..factors.rows {
            for (head, factor) in heads.row_mut(first + row).chunks_exact_mut(dim).zip(factors.row(row)) {
                head.iter_mut().for_each(|v| *v *= factor);
            }
        }
    }

    fn sums(&self, rows: usize, cols: usize) -> Self::Sums {
        Sums { p: Mat::zeros(rows, cols), f: Mat::zeros(rows, cols), norms: Vec::new() }
    }

    fn contribution(
        &self,
        f_pt: Option<&Mat<f64>>,
        f_ft: &Mat<f64>,
        x: &mut Mat<f64>,
        Sums { p, f, norms }: &mut Self::Sums,
    ) {
        let l1 = |row: &[f64]| row.iter().map(|v| v.abs()).sum();
        let after = (0..x.rows)
            .map(|row| {
                for col in 0..x.cols {
                    let tuned = f_ft.row(row)[col];
                    let ptc = f_pt.map_or(tuned, |f_pt| f_pt.row(row)[col]);
                    p.row_mut(row)[col] += ptc;
                    f.row_mut(row)[col] += tuned - ptc;
                    x.row_mut(row)[col] += tuned;
                }
                RunningL1 { ptc: l1(p.row(row)), ftc: l1(f.row(row)) }
            })
            .collect();
        norms.push(after);
    }

    fn norms(&self, sums: &Sums) -> Vec<Vec<RunningL1>> {
        sums.norms.clone()
    }

    fn trace(
        &self,
        x: &Mat<f64>,
        after_attention: Twin<&Mat<f64>>,
        after: Twin<&Mat<f64>>,
        sums: &mut PartSums<Mat<f64>>,
    ) -> Vec<PartsL1> {
        let PartSums { attention, mlp } = sums;
        let row_l1 = |row: usize| {
            let mut l1 = PartsL1::default();
            for col in row * x.cols..(row + 1) * x.cols {
                let (x, at, after) =
                    (x.data()[col], after_attention.map(|m| m.data()[col]), after.map(|m| m.data()[col]));
                let own = Twin::new(at.pt - x, at.ft - at.pt);
                let rest = Twin::new(after.pt - at.pt, (after.ft - at.ft) - (after.pt - at.pt));
                let parts = [(&mut *attention, own, &mut l1.attention), (&mut *mlp, rest, &mut l1.mlp)];
                for (sums, added, l1) in parts {
                    sums.pt.data_mut()[col] += added.pt;
                    sums.ft.data_mut()[col] += added.ft;
                    l1.ptc += sums.pt.data()[col].abs();
                    l1.ftc += sums.ft.data()[col].abs();
                }
                l1.whole.ptc += (attention.pt.data()[col] + mlp.pt.data()[col]).abs();
                l1.whole.ftc += (attention.ft.data()[col] + mlp.ft.data()[col]).abs();
            }
            l1
        };
        (0..x.rows).map(row_l1).collect()
    }
}

/// P, F and their norms.
pub struct Sums {
    p: Mat<f64>,
    f: Mat<f64>,
    norms: Vec<Vec<RunningL1>>,
}

/// Column `col` of `a · Wᵀ + b`.
fn product(a: &[f64], w: &Linear<Mat<f64>>, col: usize) -> f64 {
    dot(a, w.weight.row(col)) + w.bias.as_ref().map_or(0.0, |bias| bias.data()[col])
}

/// A norm without its weight and bias.
fn unit(a: &[f64], norm: &Norm<Mat<f64>>) -> Vec<f64> {
    let mean = if norm.centered { a.iter().sum::<f64>() / a.len() as f64 } else { 0.0 };
    let mean_square = a.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / a.len() as f64;
    a.iter().map(|v| (v - mean) / (mean_square + norm.eps).sqrt()).collect()
}

/// `a ∘ (weight + offset) + bias`, or `a` without a norm.
fn scaled(a: &[f64], norm: Option<&Norm<Mat<f64>>>) -> Vec<f64> {
    let Some(norm) = norm else { return a.to_vec() };
    let bias = |col: usize| norm.bias.as_ref().map_or(0.0, |bias| bias.data()[col]);
    let factors = norm.weight.data().iter().map(|weight| weight + norm.offset);
    a.iter().zip(factors).enumerate().map(|(col, (a, factor))| a * factor + bias(col)).collect()
}

/// What the softmax gets of `q · k`.
fn score(product: f64, shape: &AttentionShape) -> f64 {
    let scaled = product * shape.scale;
    shape.softcap.map_or(scaled, |cap| cap * (scaled / cap).tanh())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The weights of scores among themselves, and which share of all they get beside a sink.
fn softmax(scores: impl Iterator<Item = f64>, sink: Option<f64>) -> (Vec<f64>, f64) {
    let scores: Vec<f64> = scores.collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let sum: f64 = exps.iter().sum();
    let share = sink.map_or(1.0, |sink| sum / (sum + (sink - largest).exp()));
    (exps.iter().map(|e| e / sum).collect(), share)
}

fn mean(weights: &[f64], rows: &[Vec<f64>], cols: usize) -> Vec<f64> {
    let mut out = vec![0.0; cols];
    for (weight, row) in weights.iter().zip(rows) {
        for (to, v) in out.iter_mut().zip(row) {
            *to += weight * v;
        }
    }
    out
}

/// What a gate makes of its two products.
fn gated(activation: Activation, gate: f64, up: f64) -> f64 {
    match activation {
        // `clamp` keeps a NaN.
        Activation::ClampedSwiglu(ClampedSwiglu { limit, .. }) => {
            activate(activation, gate) * (up.clamp(-limit, limit) + 1.0)
        }
        _ => activate(activation, gate) * up,
    }
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        // Not `max`, which drops a NaN.
        Activation::Relu | Activation::Relu2 if x < 0.0 => 0.0,
        Activation::Relu => x,
        Activation::Relu2 => x * x,
        Activation::Xielu(Xielu { alpha_p, beta, .. }) if x > 0.0 => x * (alpha_p * x + beta),
        Activation::Xielu(Xielu { alpha_n, beta, eps, .. }) => {
            alpha_n * (libm::expm1(x.min(eps)) - x) + beta * x
        }
        Activation::ClampedSwiglu(ClampedSwiglu { alpha, limit }) => {
            let x = x.clamp(f64::NEG_INFINITY, limit);
            x / (1.0 + (-alpha * x).exp())
        }
    }
}
