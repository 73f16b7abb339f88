//! One layer, written once for all modes: its weights, what twin rows do, what context rows do.

use super::workspace::{ContextSpace, TwinSpace};
use crate::{
    backend::{AttentionShape, Backend, Linear, Rows, Sequence, TwinKeys},
    model::{Activation, LayerTensor, ModelSpec, PairWeights},
    twin::{Branch, Twin},
};

/// The weights of a layer of one model, and the numbers that go with them.
pub struct Block<'w, B: Backend> {
    branch: Branch,
    attention_norm: B::Weight<'w>,
    query: Linear<B::Weight<'w>>,
    key: Linear<B::Weight<'w>>,
    value: Linear<B::Weight<'w>>,
    attention_output: Linear<B::Weight<'w>>,
    mlp_norm: B::Weight<'w>,
    gate: Linear<B::Weight<'w>>,
    up: Linear<B::Weight<'w>>,
    down: Linear<B::Weight<'w>>,
    eps: f64,
    activation: Activation,
    shape: AttentionShape,
}

/// A layer of a pair.
pub struct Layer<'w, B: Backend> {
    pub blocks: Twin<Block<'w, B>>,
    /// The last layer: nobody needs its context rows any more.
    pub is_last: bool,
    /// The whole block is the same in both models: `FTC = 0`.
    pub same_block: bool,
    /// The attention norm is the same: its output serves both branches.
    pub same_normed: bool,
    /// The keys are the same in both branches.
    pub same_keys: bool,
}

impl<'w, B: Backend> Layer<'w, B> {
    pub fn load(backend: &B, weights: &'w impl PairWeights, index: usize) -> Self {
        use LayerTensor::*;
        let spec = weights.spec();
        let shared = |tensors: &[LayerTensor]| tensors.iter().all(|t| weights.is_shared(index, *t));
        let same_normed = shared(&[AttentionNorm]) && spec.pt.rms_norm_eps == spec.ft.rms_norm_eps;
        let same_keys = same_normed && shared(&[Key, KeyBias]) && spec.pt.rope == spec.ft.rope;
        let same_block = same_keys
            && spec.ft.family.layer_tensors.iter().all(|(tensor, _)| weights.is_shared(index, *tensor));
        let blocks = Twin::new((Branch::Pt, spec.pt), (Branch::Ft, spec.ft))
            .map(|(branch, spec)| Block::load(backend, weights, branch, spec, index));
        Self { blocks, is_last: index + 1 == spec.ft.num_hidden_layers, same_block, same_normed, same_keys }
    }
}

impl<'w, B: Backend> Block<'w, B> {
    fn load(
        backend: &B,
        weights: &'w impl PairWeights,
        branch: Branch,
        spec: &ModelSpec,
        index: usize,
    ) -> Self {
        use LayerTensor::*;
        let optional = |tensor| weights.layer_tensor(branch, index, tensor).map(|t| backend.weight(t));
        let required = |tensor| optional(tensor).expect("a checked model has all its tensors");
        let linear = |weight, bias| Linear { weight: required(weight), bias: optional(bias) };
        Self {
            branch,
            attention_norm: required(AttentionNorm),
            query: linear(Query, QueryBias),
            key: linear(Key, KeyBias),
            value: linear(Value, ValueBias),
            attention_output: linear(AttentionOutput, AttentionOutputBias),
            mlp_norm: required(MlpNorm),
            gate: linear(Gate, GateBias),
            up: linear(Up, UpBias),
            down: linear(Down, DownBias),
            eps: spec.rms_norm_eps,
            activation: spec.hidden_act,
            shape: AttentionShape {
                num_attention_heads: spec.num_attention_heads,
                num_key_value_heads: spec.num_key_value_heads,
                head_dim: spec.head_dim,
                scale: spec.attention_scale(),
            },
        }
    }

    /// The attention norm of the context rows: `[C, D]` → `[C, D]`.
    pub fn context_normed(&self, backend: &B, x: &B::Mat, out: &mut B::Mat) {
        backend.norm(x, &self.attention_norm, self.eps, out);
    }

    /// Rotated keys of the context rows: `[C, D]` → `[C, K·Dh]`.
    pub fn context_keys(&self, backend: &B, normed: &B::Mat, sequences: &[Sequence], out: &mut B::Mat) {
        backend.linear(normed, &self.key, out);
        backend.rotate(out, self.shape.head_dim, sequences, Rows::Context, self.branch);
    }

    /// The block's output `f(x)` for the twin rows: `x[R, D]` → `out[R, D]`.
    ///
    /// Both branches come through here, so that what rounds alike cancels in their difference.
    #[allow(clippy::too_many_arguments, reason = "two streams, two context inputs, space and result")]
    pub fn twin_rows(
        &self,
        backend: &B,
        x: &B::Mat,
        context_normed: &B::Mat,
        context_keys: &B::Mat,
        sequences: &[Sequence],
        space: &mut TwinSpace<B>,
        out: &mut B::Mat,
    ) {
        let TwinSpace { normed, queries, keys, means, heads, stream, hidden } = space;
        backend.norm(x, &self.attention_norm, self.eps, normed);
        backend.linear(normed, &self.query, queries);
        backend.linear(normed, &self.key, keys);
        for mat in [&mut *queries, &mut *keys] {
            backend.rotate(mat, self.shape.head_dim, sequences, Rows::Twin, self.branch);
        }
        let attended = TwinKeys { context_keys, twin_keys: keys, context_normed, twin_normed: normed };
        backend.twin_attend(queries, &attended, sequences, &self.shape, means);
        backend.head_values(means, &self.value, &self.shape, heads);
        backend.linear(heads, &self.attention_output, out);
        backend.add(x, out, stream);
        backend.norm(stream, &self.mlp_norm, self.eps, normed);
        backend.gated(normed, &self.gate, &self.up, self.activation, hidden);
        backend.linear_add(hidden, &self.down, out);
    }

    /// Moves the context rows' stream `x[C, D]` through the block, given its normed rows and keys.
    pub fn context_rows(
        &self,
        backend: &B,
        x: &mut B::Mat,
        normed: &mut B::Mat,
        keys: &B::Mat,
        sequences: &[Sequence],
        space: ContextRest<'_, B>,
    ) {
        let ContextRest { values, heads, hidden } = space;
        backend.linear(normed, &self.query, heads);
        backend.rotate(heads, self.shape.head_dim, sequences, Rows::Context, self.branch);
        backend.linear(normed, &self.value, values);
        backend.attention(heads, keys, values, sequences, &self.shape);
        backend.linear_add(heads, &self.attention_output, x);
        backend.norm(x, &self.mlp_norm, self.eps, normed);
        backend.gated(normed, &self.gate, &self.up, self.activation, hidden);
        backend.linear_add(hidden, &self.down, x);
    }
}

/// The part of the context's workspace that only the context rows need.
pub struct ContextRest<'a, B: Backend> {
    pub values: &'a mut B::Mat,
    pub heads: &'a mut B::Mat,
    pub hidden: &'a mut B::Mat,
}

impl<B: Backend> ContextSpace<B> {
    /// The normed rows and the keys of both branches, and the rest.
    pub fn split(&mut self) -> (&mut Twin<B::Mat>, &mut Twin<B::Mat>, ContextRest<'_, B>) {
        let ContextSpace { normed, keys, values, heads, hidden } = self;
        (normed, keys, ContextRest { values, heads, hidden })
    }
}
