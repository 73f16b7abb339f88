//! One layer, written once for all modes: its weights, and what twin rows and context rows do in it.

use super::workspace::{ContextSpace, TwinSpace};
use crate::{
    backend::{Attended, AttentionShape, Backend, Linear, Rows, Sequence},
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
    /// The keys are the same in both branches.
    pub same_keys: bool,
    /// Both branches normalize and rotate alike, so that their keys differ by their weights alone.
    same_positions: bool,
}

impl<'w, B: Backend> Layer<'w, B> {
    pub fn load(backend: &B, weights: &'w impl PairWeights, index: usize) -> Self {
        use LayerTensor::*;
        let spec = weights.spec();
        let shared = |tensors: &[LayerTensor]| tensors.iter().all(|t| weights.is_shared(index, *t));
        let same_positions = spec.pt.rms_norm_eps == spec.ft.rms_norm_eps && spec.pt.rope == spec.ft.rope;
        let same_keys = same_positions && shared(&[AttentionNorm, Key, KeyBias]);
        let same_block = same_keys
            && spec.ft.family.layer_tensors.iter().all(|(tensor, _)| weights.is_shared(index, *tensor));
        let blocks = Twin::new((Branch::Pt, spec.pt), (Branch::Ft, spec.ft))
            .map(|(branch, spec)| Block::load(backend, weights, branch, spec, index));
        let is_last = index + 1 == spec.ft.num_hidden_layers;
        Self { blocks, is_last, same_block, same_keys, same_positions }
    }

    /// Attention of one pack's twin rows in both branches (only the tuned one where the blocks are the same), and all
    /// that it needs of the context: afterwards `space` holds the tuned model's normed rows and keys.
    pub fn attend_both(
        &self,
        backend: &B,
        pack: PackView<'_, B::Mat>,
        space: &mut ContextSpace<B::Mat>,
        twin: &mut Twin<TwinSpace<B::Mat>>,
        means: &mut B::Mat,
    ) {
        let Twin { pt, ft } = &self.blocks;
        if !self.same_block && !self.same_positions {
            // Other angles or another epsilon: the pre-trained branch gets a context of its own.
            pt.prepare_context(backend, pack, space);
            pt.attend(backend, pack, space, None, &mut twin.pt, means);
        }
        ft.prepare_context(backend, pack, space);
        ft.attend(backend, pack, space, None, &mut twin.ft, means);
        if !self.same_block && self.same_positions {
            let norms = Twin::new(&pt.attention_norm, &ft.attention_norm);
            let keys = Twin::new(&pt.key, &ft.key);
            let difference = &mut space.key_difference;
            if !self.same_keys {
                backend.key_difference(&space.normalized, norms, keys, difference);
                backend.rotate(difference, pt.shape.head_dim, pack.sequences, Rows::Context, Branch::Pt);
            }
            let space = &*space;
            let difference = (!self.same_keys).then_some(&space.key_difference);
            pt.attend(backend, pack, space, difference, &mut twin.pt, means);
        }
    }
}

/// A pack as a layer sees it.
pub struct PackView<'a, M> {
    pub sequences: &'a [Sequence],
    /// Residual stream of the context rows, `[C, D]`.
    pub context: &'a M,
    /// The pack's first twin row.
    pub first_twin: usize,
}

impl<M> Clone for PackView<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for PackView<'_, M> {}

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

    /// Before attention: normed rows, queries and keys of all twin rows `x[R, D]`.
    ///
    /// Both branches come through here and through [`Block::finish_twin`], so that what rounds alike cancels.
    pub fn start_twin(&self, backend: &B, x: &B::Mat, sequences: &[Sequence], space: &mut TwinSpace<B::Mat>) {
        let TwinSpace { normed, queries, keys, .. } = space;
        backend.rms_norm(x, &self.attention_norm, self.eps, None, normed);
        backend.linear(normed, &self.query, queries);
        backend.linear(normed, &self.key, keys);
        for mat in [queries, keys] {
            backend.rotate(mat, self.shape.head_dim, sequences, Rows::Twin, self.branch);
        }
    }

    /// Normed rows and rotated keys of a pack's context rows.
    pub fn prepare_context(&self, backend: &B, pack: PackView<'_, B::Mat>, space: &mut ContextSpace<B::Mat>) {
        let ContextSpace { normalized, normed, keys, .. } = space;
        backend.rms_norm(pack.context, &self.attention_norm, self.eps, Some(normalized), normed);
        backend.linear(normed, &self.key, keys);
        backend.rotate(keys, self.shape.head_dim, pack.sequences, Rows::Context, self.branch);
    }

    /// Attention of a pack's twin rows: the outputs of their heads.
    pub fn attend(
        &self,
        backend: &B,
        pack: PackView<'_, B::Mat>,
        context: &ContextSpace<B::Mat>,
        key_difference: Option<&B::Mat>,
        twin: &mut TwinSpace<B::Mat>,
        means: &mut B::Mat,
    ) {
        let attended = Attended {
            context_keys: &context.keys,
            key_difference,
            normalized: &context.normalized,
            norm_weight: &self.attention_norm,
            twin_keys: &twin.keys,
            twin_normed: &twin.normed,
        };
        backend.twin_attend(&twin.queries, &attended, pack.sequences, &self.shape, means);
        backend.head_values(means, &self.value, &self.shape, pack.first_twin, &mut twin.heads);
    }

    /// After attention: the block's output `f(x)` for all twin rows `x[R, D]`.
    pub fn finish_twin(&self, backend: &B, x: &B::Mat, space: &mut TwinSpace<B::Mat>) {
        let TwinSpace { normed, heads, stream, hidden, output, .. } = space;
        backend.linear(heads, &self.attention_output, output);
        backend.add(x, output, stream);
        backend.rms_norm(stream, &self.mlp_norm, self.eps, None, normed);
        backend.gated(normed, &self.gate, &self.up, self.activation, hidden);
        backend.linear_add(hidden, &self.down, output);
    }

    /// Moves a pack's context rows `x[C, D]` through the block, after [`Block::prepare_context`].
    pub fn move_context(
        &self,
        backend: &B,
        x: &mut B::Mat,
        sequences: &[Sequence],
        space: &mut ContextSpace<B::Mat>,
    ) {
        let ContextSpace { normed, keys, values, heads, hidden, .. } = space;
        backend.linear(normed, &self.query, heads);
        backend.rotate(heads, self.shape.head_dim, sequences, Rows::Context, self.branch);
        backend.linear(normed, &self.value, values);
        backend.attention(heads, keys, values, sequences, &self.shape);
        backend.linear_add(heads, &self.attention_output, x);
        backend.rms_norm(x, &self.mlp_norm, self.eps, None, normed);
        backend.gated(normed, &self.gate, &self.up, self.activation, hidden);
        backend.linear_add(hidden, &self.down, x);
    }
}
