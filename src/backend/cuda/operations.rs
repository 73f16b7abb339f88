//! The operations of a layer: where things lie, for kernels to be run on.

use super::{
    Cuda,
    args::{
        Address, ContributionArgs, NormArgs, NormHeadsArgs, NormedKeyDifferenceArgs, RowsArgs,
        ScaleHeadsArgs, TraceArgs, TwinAttendArgs,
    },
    attention,
    device::{Buffer, Device, Lane, Sharing},
    embed::{CudaTable, embed},
    key_difference::key_weight_difference,
    launch::{per_row, per_warp, rows_args},
    layout::{CudaLayout, LayoutRows},
    mat::{CudaMat, Element, pitch},
    product::{self, Epilogue, Operand, head_values, product},
    rotate::rotate,
    twin_attend::TwinAttention,
    weight::{CudaWeight, vector},
};
use crate::{
    Result,
    backend::{
        Attended, AttentionShape, Backend, KernelTime, Linear, Norm, PartSums, Role, RopeOf, Rows, Sequence,
        Sunk,
    },
    metrics::{PartsL1, RunningL1},
    model::Activation,
    sync::lock,
    tensor::Tensor,
    twin::{Branch, Twin},
};
use half::bf16;
use std::sync::Arc;

/// P and F in f64, `pitch` apart, and the norms after each layer: (‖P‖₁, ‖F‖₁) of every row, in f64.
pub struct CudaSums {
    rows: usize,
    p: Option<Buffer>,
    f: Option<Buffer>,
    /// How many layers there were, and their norms, those of [`NORMS_TOGETHER`] layers in a buffer.
    layers: usize,
    norms: Vec<Buffer>,
}

/// Each reading from the device takes as long as a small kernel.
const NORMS_TOGETHER: usize = 64;

impl Cuda {
    /// One of the kernels of `elementwise.cu`, which takes `bytes` from memory or there.
    fn rowwise(&self, kernel: &str, reads: &[&CudaMat], out: &CudaMat, bytes: usize, args: RowsArgs) {
        self.run(&[out], reads, |device| per_row(device.as_ref(), kernel, out.rows, bytes, &args));
    }

    /// One of those that take rows by their numbers.
    fn indexed(&self, kernel: &str, a: &CudaMat, rows: &[usize], out: &CudaMat) {
        self.run(&[out], &[a], |device| {
            let numbers = Buffer::of(device, &rows.iter().map(|row| *row as i32).collect::<Vec<_>>())?;
            let args = RowsArgs { rows: numbers.address(), ..rows_args(a, out) };
            let kernel = format!("{kernel}_{}_{}", a.element.name(), out.element.name());
            let bytes = rows.len() * (a.row_bytes() + out.row_bytes());
            per_row(device.as_ref(), &kernel, rows.len(), bytes, &args)
        });
    }

    /// All of `mat` is about to be written.
    fn renew(&self, mat: &mut CudaMat) {
        self.attempt(|_| mat.renew(self.lanes.of(mat.lane)));
    }

    fn product(&self, epilogue: Epilogue, a: &CudaMat, linears: &[&Linear<CudaWeight<'_>>], out: &CudaMat) {
        self.run(&[out], &[a], |device| {
            let operands =
                linears.iter().map(|linear| operand(device, linear)).collect::<Result<Vec<_>>>()?;
            product(device, epilogue, a, &operands, out)
        });
    }

    fn rotate_all(&self, mats: &[&CudaMat], head_dim: usize, layout: &CudaLayout, rows: Rows, rope: RopeOf) {
        self.run(mats, &[], |device| match &layout.rows {
            Some(layout) => rotate(device.as_ref(), mats, head_dim, layout, rows, rope),
            None => Ok(()),
        });
    }

    /// `N` pairs of norms of each of `rows` rows.
    fn read_norms<const N: usize>(&self, norms: &Buffer, rows: usize) -> Vec<[RunningL1; N]> {
        let mut bytes = vec![0; rows * N * 16];
        self.attempt(|device| device.download(norms.address(), &mut bytes));
        let number = |at: usize| f64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let pair = |at: usize| RunningL1 { ptc: number(at), ftc: number(at + 8) };
        (0..rows).map(|row| std::array::from_fn(|i| pair((row * N + i) * 16))).collect()
    }
}

fn operand<'a>(device: &Arc<dyn Device>, linear: &'a Linear<CudaWeight<'_>>) -> Result<Operand<'a>> {
    let Linear { weight, bias } = linear;
    let (planes, update) = (weight.planes(device)?, weight.update(device)?);
    Ok(Operand { planes, update, bias: vector(device, bias.as_ref())? })
}

impl Backend for Cuda {
    type Mat = CudaMat;
    type Weight<'w> = CudaWeight<'w>;
    type Table<'w> = CudaTable<'w>;
    type Layout = CudaLayout;
    type Sums = CudaSums;

    fn check(&self) -> Result<()> {
        let failure = lock(&self.failure).take();
        failure.map_or(Ok(()), Err)
    }

    fn kernel_times(&self) -> Result<Vec<KernelTime>> {
        self.profile.as_ref().map_or(Ok(Vec::new()), |profile| profile.take())
    }

    fn keeps_weights(&self) -> bool {
        self.resident
    }

    fn pack_room(&self) -> (usize, usize) {
        // A sixteenth of the memory: tens of thousands of tokens of a large model, beside which its weights have room.
        (self.attempt(|device| device.memory()).map_or(0, |(_, all)| all / 16), 65536)
    }

    fn layout(&self, sequences: &[Sequence]) -> CudaLayout {
        CudaLayout { rows: self.attempt(|device| LayoutRows::new(device, &self.ropes, sequences)) }
    }

    fn zeros(&self, kind: Rows, role: Role, rows: usize, cols: usize) -> CudaMat {
        self.zeros_of_branch(Branch::Ft, kind, role, rows, cols)
    }

    fn zeros_of_branch(&self, branch: Branch, kind: Rows, role: Role, rows: usize, cols: usize) -> CudaMat {
        let element = match (kind, role) {
            (Rows::Context, Role::Operand) => self.context,
            _ => Element::F32,
        };
        let lane = match (branch, kind) {
            (Branch::Ft, Rows::Context) => Lane::Context,
            (Branch::Pt, Rows::Context) => Lane::Keys,
            (Branch::Pt, Rows::Twin) => Lane::Pt,
            (Branch::Ft, Rows::Twin) => Lane::Ft,
        };
        let mut mat = CudaMat::new(lane, element, cols);
        self.resize(&mut mat, rows);
        self.run(&[&mat], &[], |device| device.clear(mat.address(), mat.bytes()));
        mat
    }

    fn expect_context(&self, rows: Option<usize>) {
        // Times of kernels are those of each alone.
        let rows = rows.filter(|_| self.profile.is_none());
        let sharing = rows.map_or(Sharing::One, |rows| Sharing::of_context(rows, self.resident));
        self.attempt(|_| self.lanes.share(sharing));
    }

    fn resize(&self, mat: &mut CudaMat, rows: usize) {
        self.attempt(|_| mat.resize(self.lanes.of(mat.lane), rows));
    }

    fn read(&self, mat: &CudaMat) -> Vec<f64> {
        let mut bytes = vec![0; mat.rows * mat.row_bytes()];
        self.attempt(|device| device.download(mat.address(), &mut bytes));
        let values: Vec<f64> = match mat.element {
            Element::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
            Element::Bf16 => {
                bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).into()).collect()
            }
        };
        values.chunks_exact(pitch(mat.cols)).flat_map(|row| &row[..mat.cols]).copied().collect()
    }

    fn weight<'w>(&self, tensor: Tensor<'w>) -> CudaWeight<'w> {
        CudaWeight::new(tensor, &self.matrices, self.resident)
    }

    fn fetch(&self, weight: &CudaWeight<'_>) {
        // Some vectors are columns of their files.
        self.attempt(|device| match (weight.tensor.rows, weight.tensor.cols) {
            (1, _) | (_, 1) => weight.vector(device).map(|_| ()),
            _ => weight.planes(device).and(weight.update(device)).map(|_| ()),
        });
    }

    fn table<'w>(&self, tensor: Tensor<'w>) -> CudaTable<'w> {
        CudaTable { tensor, kept: self.resident.then(|| self.weight(tensor)) }
    }

    fn embed(&self, token_ids: &[u32], table: &CudaTable<'_>, out: &mut CudaMat) {
        self.run(&[out], &[], |device| embed(device, token_ids, table, out));
    }

    fn norm(
        &self,
        x: &CudaMat,
        norm: &Norm<CudaWeight<'_>>,
        mut normalized: Option<&mut CudaMat>,
        normed: &mut CudaMat,
    ) {
        normalized.as_deref_mut().into_iter().chain([&mut *normed]).for_each(|mat| self.renew(mat));
        let out: Vec<&CudaMat> = normalized.as_deref().into_iter().chain([&*normed]).collect();
        self.run(&out, &[x], |device| {
            let args = NormArgs {
                x: x.address(),
                normalized: normalized.as_ref().map_or(0, |mat| mat.address()),
                normed: normed.address(),
                weight: norm.weight.vector(device)?,
                bias: vector(device, norm.bias.as_ref())?,
                x_pitch: x.pitch(),
                normalized_pitch: normalized.as_ref().map_or(0, |mat| mat.pitch()),
                normed_pitch: normed.pitch(),
                cols: x.cols as i32,
                centered: i32::from(norm.centered),
                offset: norm.offset as f32,
                eps: norm.eps as f32,
            };
            let kernel = format!("norm_{}_{}", x.element.name(), normed.element.name());
            let bytes = x.bytes() + normalized.as_ref().map_or(0, |mat| mat.bytes()) + normed.bytes();
            per_row(device.as_ref(), &kernel, x.rows, bytes, &args)
        });
    }

    fn norm_heads(&self, x: &mut CudaMat, norm: &Norm<CudaWeight<'_>>) {
        self.run(&[x], &[], |device| {
            let cols = norm.weight.tensor.cols;
            let parts = x.cols / cols;
            let args = NormHeadsArgs {
                x: x.address(),
                weight: norm.weight.vector(device)?,
                pitch: x.pitch(),
                cols: cols as i32,
                parts: parts as i32,
                rows: x.rows as i32,
                offset: norm.offset as f32,
                eps: norm.eps as f32,
                unused: 0,
            };
            let kernel = format!("norm_heads_{}", x.element.name());
            per_warp(device.as_ref(), &kernel, x.rows * parts, 2 * x.bytes(), &args)
        });
    }

    fn linear(&self, a: &CudaMat, w: &Linear<CudaWeight<'_>>, out: &mut CudaMat) {
        self.renew(out);
        self.product(Epilogue::Store, a, &[w], out);
    }

    fn linears(&self, a: &CudaMat, products: &mut [(&Linear<CudaWeight<'_>>, &mut CudaMat)]) {
        products.iter_mut().for_each(|(_, out)| self.renew(out));
        let out: Vec<&CudaMat> = products.iter().map(|(_, out)| &**out).collect();
        self.run(&out, &[a], |device| {
            let operands = products.iter().map(|(linear, _)| operand(device, linear));
            product::products(device, a, &operands.collect::<Result<Vec<_>>>()?, &out)
        });
    }

    fn linear_add(&self, a: &CudaMat, w: &Linear<CudaWeight<'_>>, x: &mut CudaMat) {
        self.product(Epilogue::Add, a, &[w], x);
    }

    fn gated(
        &self,
        a: &CudaMat,
        gate: &Linear<CudaWeight<'_>>,
        up: &Linear<CudaWeight<'_>>,
        activation: Activation,
        out: &mut CudaMat,
    ) {
        self.product(Epilogue::Gated(activation), a, &[gate, up], out);
    }

    fn activated(&self, a: &CudaMat, w: &Linear<CudaWeight<'_>>, activation: Activation, out: &mut CudaMat) {
        self.product(Epilogue::Activated(activation), a, &[w], out);
    }

    fn add(&self, a: &CudaMat, b: &CudaMat, out: &mut CudaMat) {
        let args = RowsArgs { b: b.address(), b_pitch: b.pitch(), ..rows_args(a, out) };
        self.rowwise("add_f32", &[a, b], out, 3 * out.bytes(), args);
    }

    fn copy(&self, a: &CudaMat, out: &mut CudaMat) {
        self.renew(out);
        let kernel = format!("copy_{}_{}", a.element.name(), out.element.name());
        self.rowwise(&kernel, &[a], out, a.bytes() + out.bytes(), rows_args(a, out));
    }

    fn accumulate(&self, a: &CudaMat, x: &mut CudaMat) {
        let bytes = a.bytes() + 2 * x.bytes();
        self.rowwise(&format!("accumulate_{}", a.element.name()), &[a], x, bytes, rows_args(a, x));
    }

    fn gather(&self, a: &CudaMat, rows: &[usize], out: &mut CudaMat) {
        self.indexed("gather", a, rows, out);
    }

    fn scatter(&self, a: &CudaMat, rows: &[usize], out: &mut CudaMat) {
        self.indexed("scatter", a, rows, out);
    }

    fn blend(&self, pt: &CudaMat, ft: &mut CudaMat, alpha: f64) {
        let args = RowsArgs { factor: alpha as f32, ..rows_args(pt, ft) };
        self.rowwise("blend_f32", &[pt], ft, 3 * ft.bytes(), args);
    }

    fn scatter_add(&self, a: &CudaMat, rows: &[usize], factors: &[f64], x: &mut CudaMat) {
        self.run(&[x], &[a], |device| {
            let count = rows.len();
            let rows = Buffer::of(device, &rows.iter().map(|row| *row as i32).collect::<Vec<_>>())?;
            let factors = Buffer::of(device, &factors.iter().map(|f| *f as f32).collect::<Vec<_>>())?;
            let args = RowsArgs { rows: rows.address(), factors: factors.address(), ..rows_args(a, x) };
            per_row(device.as_ref(), "scatter_add_f32", count, 3 * a.bytes(), &args)
        });
    }

    fn scale(&self, x: &mut CudaMat, factor: f64) {
        let args = RowsArgs { factor: factor as f32, ..rows_args(x, x) };
        self.rowwise(&format!("scale_{}", x.element.name()), &[], x, 2 * x.bytes(), args);
    }

    fn rotate(&self, x: &mut CudaMat, head_dim: usize, layout: &CudaLayout, rows: Rows, rope: RopeOf) {
        self.rotate_all(&[x], head_dim, layout, rows, rope);
    }

    fn rotate_both(
        &self,
        [a, b]: [&mut CudaMat; 2],
        head_dim: usize,
        layout: &CudaLayout,
        rows: Rows,
        rope: RopeOf,
    ) {
        self.rotate_all(&[a, b], head_dim, layout, rows, rope);
    }

    fn attention(
        &self,
        q: &mut CudaMat,
        k: &CudaMat,
        v: &CudaMat,
        layout: &CudaLayout,
        shape: &AttentionShape,
        sinks: Option<&CudaWeight<'_>>,
    ) {
        self.run(&[q], &[k, v], |device| {
            let Some(rows) = &layout.rows else { return Ok(()) };
            attention::attention(device.as_ref(), [q, k, v], rows, shape, vector(device, sinks)?)
        });
    }

    fn key_difference(
        &self,
        normalized: &CudaMat,
        norm: Twin<Option<&Norm<CudaWeight<'_>>>>,
        key: Twin<&Linear<CudaWeight<'_>>>,
        out: &mut CudaMat,
    ) {
        self.renew(out);
        self.run(&[out], &[normalized], |device| {
            let difference =
                key.ft.weight.key_difference(|| key_weight_difference(device, norm, key, self.context))?;
            let weight = Operand {
                bias: difference.bias.as_ref().map_or(0, Buffer::address),
                ..Operand::of(&difference.weight)
            };
            product(device, Epilogue::Store, normalized, &[weight], out)
        });
    }

    fn normed_key_difference(
        &self,
        keys: &CudaMat,
        norm: Twin<&Norm<CudaWeight<'_>>>,
        difference: &mut CudaMat,
    ) {
        self.run(&[difference], &[keys], |device| {
            let cols = norm.ft.weight.tensor.cols;
            let parts = keys.cols / cols;
            let args = NormedKeyDifferenceArgs {
                keys: keys.address(),
                difference: difference.address(),
                weight: [norm.pt.weight.vector(device)?, norm.ft.weight.vector(device)?],
                key_pitch: keys.pitch(),
                difference_pitch: difference.pitch(),
                offset: [norm.pt.offset as f32, norm.ft.offset as f32],
                eps: [norm.pt.eps as f32, norm.ft.eps as f32],
                cols: cols as i32,
                parts: parts as i32,
                rows: keys.rows as i32,
                unused: 0,
            };
            let kernel = format!("normed_key_difference_{}", keys.element.name());
            let bytes = keys.bytes() + 2 * difference.bytes();
            per_warp(device.as_ref(), &kernel, keys.rows * parts, bytes, &args)
        });
    }

    fn twin_attend(
        &self,
        q: &CudaMat,
        attended: &Attended<'_, CudaMat, CudaWeight<'_>>,
        layout: &CudaLayout,
        shape: &AttentionShape,
        out: &mut CudaMat,
        sunk: Option<&mut Sunk<'_, CudaMat, CudaWeight<'_>>>,
    ) {
        let Attended { context_keys, key_difference, normalized, norm, twin_keys, twin_normed } = attended;
        let reads = [q, context_keys, normalized, twin_keys, twin_normed];
        let reads: Vec<&CudaMat> = reads.into_iter().chain(*key_difference).collect();
        let sinks = sunk.as_ref().map(|sunk| sunk.sinks);
        let shares = sunk.map(|sunk| &*sunk.shares);
        let writes: Vec<&CudaMat> = [&*out].into_iter().chain(shares).collect();
        self.run(&writes, &reads, |device| {
            let Some(rows) = &layout.rows else { return Ok(()) };
            let attention =
                TwinAttention { keys: context_keys, difference: *key_difference, normalized, rows, shape };
            let args = TwinAttendArgs {
                q: q.address(),
                norm_weight: vector(device, norm.map(|norm| &norm.weight))?,
                norm_bias: vector(device, norm.and_then(|norm| norm.bias.as_ref()))?,
                norm_offset: norm.map_or(0.0, |norm| norm.offset as f32),
                twin_keys: twin_keys.address(),
                twin_normed: twin_normed.address(),
                means: out.address(),
                sinks: vector(device, sinks)?,
                shares: shares.map_or(0, CudaMat::address),
                share_pitch: shares.map_or(0, CudaMat::pitch),
                q_pitch: q.pitch(),
                twin_key_pitch: twin_keys.pitch(),
                twin_normed_pitch: twin_normed.pitch(),
                mean_pitch: out.pitch(),
                ..TwinAttendArgs::default()
            };
            attention.run(device, args)
        });
    }

    fn head_values(
        &self,
        means: &CudaMat,
        value: &Linear<CudaWeight<'_>>,
        shape: &AttentionShape,
        first: usize,
        out: &mut CudaMat,
    ) {
        self.run(&[out], &[means], |device| {
            head_values(device, means, operand(device, value)?, shape, first, out)
        });
    }

    fn scale_heads(&self, heads: &mut CudaMat, factors: &CudaMat, first: usize) {
        self.run(&[heads], &[factors], |device| {
            let args = ScaleHeadsArgs {
                heads: heads.row_address(first),
                factors: factors.address(),
                pitch: heads.pitch(),
                factor_pitch: factors.pitch(),
                count: factors.cols as i32,
                head_dim: (heads.cols / factors.cols) as i32,
            };
            let bytes = 2 * factors.rows * heads.cols * 4;
            per_row(device.as_ref(), "scale_heads_f32", factors.rows, bytes, &args)
        });
    }

    fn sums(&self, rows: usize, cols: usize) -> CudaSums {
        let bytes = rows * pitch(cols) * 8;
        let zeros = || {
            self.attempt(|_| {
                let buffer = Buffer::new(self.lanes.of(Lane::Ft), bytes)?;
                self.lanes.run_in(Lane::Ft, |device| device.clear(buffer.address(), bytes))?;
                Ok(buffer)
            })
        };
        CudaSums { rows, p: zeros(), f: zeros(), layers: 0, norms: Vec::new() }
    }

    fn contribution(&self, f_pt: Option<&CudaMat>, f_ft: &CudaMat, x: &mut CudaMat, sums: &mut CudaSums) {
        let reads: Vec<&CudaMat> = f_pt.into_iter().chain([f_ft]).collect();
        self.run(&[x], &reads, |device| {
            let (Some(p), Some(f)) = (&sums.p, &sums.f) else { return Ok(()) };
            let at = sums.layers % NORMS_TOGETHER;
            if at == 0 {
                sums.norms.push(Buffer::new(self.lanes.of(Lane::Ft), NORMS_TOGETHER * sums.rows * 16)?);
            }
            let norms = sums.norms.last().expect("made for the first of these layers");
            let args = ContributionArgs {
                f_pt: f_pt.map_or(0, CudaMat::address),
                f_ft: f_ft.address(),
                x: x.address(),
                p: p.address(),
                f: f.address(),
                norms: norms.address() + (at * sums.rows * 16) as Address,
                pitch: x.pitch(),
                cols: x.cols as i32,
                unused: 0,
            };
            // The stream twice, the sums in f64 twice each, one or two outputs.
            let bytes = x.bytes() * (2 + 2 * 2 * 2 + if f_pt.is_some() { 2 } else { 1 });
            per_row(device.as_ref(), "contribution", x.rows, bytes, &args)?;
            sums.layers += 1;
            Ok(())
        });
    }

    fn norms(&self, sums: &CudaSums) -> Vec<Vec<RunningL1>> {
        let layers = |first: usize| (sums.layers - first).min(NORMS_TOGETHER);
        let read =
            |(i, norms): (usize, &Buffer)| self.read_norms(norms, layers(i * NORMS_TOGETHER) * sums.rows);
        let norms: Vec<RunningL1> = sums.norms.iter().enumerate().flat_map(read).map(|[l1]| l1).collect();
        norms.chunks_exact(sums.rows.max(1)).map(<[_]>::to_vec).collect()
    }

    fn trace(
        &self,
        x: &CudaMat,
        after_attention: Twin<&CudaMat>,
        after: Twin<&CudaMat>,
        sums: &mut PartSums<CudaMat>,
    ) -> Vec<PartsL1> {
        let PartSums { attention, mlp } = &*sums;
        let reads = [x, after_attention.pt, after_attention.ft, after.pt, after.ft];
        let norms = self.run(&[&attention.pt, &attention.ft, &mlp.pt, &mlp.ft], &reads, |device| {
            let norms = Buffer::new(device, x.rows * 48)?;
            let both = |mats: Twin<&CudaMat>| [mats.pt.address(), mats.ft.address()];
            let args = TraceArgs {
                x: x.address(),
                after_attention: both(after_attention),
                after: both(after),
                attention: both(attention.as_ref()),
                mlp: both(mlp.as_ref()),
                norms: norms.address(),
                pitch: x.pitch(),
                cols: x.cols as i32,
                unused: 0,
            };
            // Five streams once, four sums twice.
            let bytes = x.bytes() * (5 + 4 * 2);
            per_row(device.as_ref(), "trace", x.rows, bytes, &args)?;
            Ok(norms)
        });
        let norms = norms.map_or(Vec::new(), |norms| self.read_norms(&norms, x.rows));
        norms.into_iter().map(|[attention, mlp, whole]| PartsL1 { attention, mlp, whole }).collect()
    }
}
