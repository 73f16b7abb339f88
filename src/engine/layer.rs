//! One layer, written once for all modes: its weights, and what twin rows and context rows do in it.

use super::{
    experts::{Expert, Experts},
    pack::Pack,
    workspace::{ContextSpace, RowSpace, TwinSpace, Workspace},
};
use crate::{
    backend::{Attended, AttentionShape, Backend, Linear, Norm, RopeOf, Rows},
    model::{Activation, LayerTensor, ModelSpec, PairWeights},
    tensor::Tensor,
    twin::{Branch, Twin},
};
use std::{collections::HashMap, ops::Range};

/// The weights of a layer of one model, and the numbers that go with them.
pub struct Block<'w, B: Backend> {
    attention_norm: Option<Norm<B::Weight<'w>>>,
    query: Linear<B::Weight<'w>>,
    key: Linear<B::Weight<'w>>,
    value: Linear<B::Weight<'w>>,
    query_norm: Option<Norm<B::Weight<'w>>>,
    key_norm: Option<Norm<B::Weight<'w>>>,
    attention_output: Linear<B::Weight<'w>>,
    attention_post_norm: Option<Norm<B::Weight<'w>>>,
    mlp_norm: Option<Norm<B::Weight<'w>>>,
    mlp: Mlp<'w, B>,
    mlp_post_norm: Option<Norm<B::Weight<'w>>>,
    parallel_residual: bool,
    residual_multiplier: f64,
    activation: Activation,
    shape: AttentionShape,
    rope: Option<RopeOf>,
}

enum Mlp<'w, B: Backend> {
    One(Expert<'w, B>),
    Experts(Experts<'w, B>),
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

/// How many rows at a time meet a layer's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    Packs,
    /// Those of decoding: one for each sequence.
    FewRows,
}

impl Meeting {
    pub fn weight<'w, B: Backend>(self, backend: &B, tensor: Tensor<'w>) -> B::Weight<'w> {
        match self {
            Meeting::Packs => backend.weight(tensor),
            Meeting::FewRows => backend.weight_for_few_rows(tensor),
        }
    }
}

/// Which rows of those whose keys are computed go on through the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onward {
    None,
    /// Chosen ones, of which [`Block::fill_queries`] makes queries.
    Some,
    All,
}

impl<'w, B: Backend> Layer<'w, B> {
    pub fn load(backend: &B, weights: &'w dyn PairWeights, index: usize, meeting: Meeting) -> Self {
        let spec = weights.spec();
        let shared = |tensors: &[LayerTensor]| tensors.iter().all(|t| weights.is_shared(index, *t));
        let rope = spec.map(|spec| spec.layers[index].rope.map(|rope| &spec.ropes[rope]));
        let same_positions = spec.pt.norm_eps == spec.ft.norm_eps && rope.pt == rope.ft;
        let same_keys = same_positions && shared(&LayerTensor::OF_KEYS);
        let same_numbers = |spec: &ModelSpec| {
            let ModelSpec { attention_scale, attn_logit_softcapping, residual_multiplier, .. } = spec;
            let window = spec.layers[index].sliding_window;
            let normalize = spec.experts.as_ref().map(|experts| experts.normalize);
            (*attention_scale, *attn_logit_softcapping, *residual_multiplier, window, normalize)
        };
        let same_block = same_keys
            && same_numbers(spec.pt) == same_numbers(spec.ft)
            && spec.ft.layer_tensors(index).all(|tensor| weights.is_shared(index, tensor));
        let mut common = HashMap::new();
        let mut weight = |branch, tensor| {
            let load =
                || weights.layer_tensor(branch, index, tensor).map(|tensor| meeting.weight(backend, tensor));
            if !weights.is_shared(index, tensor) {
                return load();
            }
            common.entry(tensor).or_insert_with(load).clone()
        };
        let blocks = Twin::new((Branch::Pt, spec.pt), (Branch::Ft, spec.ft)).map(|(branch, spec)| {
            let mut weight = |tensor| weight(branch, tensor);
            Block::new(&mut weight, branch, spec, index)
        });
        let is_last = index + 1 == spec.ft.num_hidden_layers;
        Self { blocks, is_last, same_block, same_keys, same_positions }
    }

    /// How rows go on from this layer: all but from the last.
    pub fn onward(&self, from_last: Onward) -> Onward {
        if self.is_last { from_last } else { Onward::All }
    }

    /// What both branches computed; where the blocks are the same, only the tuned model's was.
    pub fn both<'m, M>(&self, computed: &'m Twin<M>) -> Twin<&'m M> {
        let Twin { pt, ft } = computed;
        Twin::new(if self.same_block { ft } else { pt }, ft)
    }

    /// Attention of one pack's twin rows in both branches (only the tuned one where the blocks are the same), and all
    /// that it needs of the context: afterwards the workspace holds the tuned model's normed rows, and keys of the
    /// pack's whole lineage.
    pub fn attend_both(&self, backend: &B, pack: &Pack<B>, workspace: &mut Workspace<B::Mat>) {
        let Workspace { context: space, twin, heritage } = workspace;
        let (Twin { pt, ft }, lineage) = (&self.blocks, &pack.lineage);
        if !self.same_block && !self.same_positions {
            // Other angles or another epsilon: the pre-trained branch gets a context of its own.
            pt.prepare_context(backend, pack.view(), space, Onward::None);
            heritage.pass_on(backend, Branch::Pt, space, lineage);
            pt.attend(backend, pack.view(), space, None, &mut twin.pt);
            space.fit(backend, lineage.own);
        }
        ft.prepare_context(backend, pack.view(), space, self.onward(Onward::None));
        let by_difference = !self.same_block && self.same_positions && !self.same_keys;
        if by_difference {
            let norms = Twin::new(pt.attention_norm.as_ref(), ft.attention_norm.as_ref());
            let difference = &mut space.key_difference;
            backend.key_difference(&space.rows.normalized, norms, Twin::new(&pt.key, &ft.key), difference);
            if let (Some(pt), Some(ft)) = (&pt.key_norm, &ft.key_norm) {
                backend.normed_key_difference(&space.raw_keys, Twin::new(pt, ft), difference);
            }
            pt.rotate(backend, difference, &pack.layout, Rows::Context);
            heritage.key_difference.pass_on(backend, difference, lineage);
        }
        heritage.pass_on(backend, Branch::Ft, space, lineage);
        ft.attend(backend, pack.view(), space, None, &mut twin.ft);
        if !self.same_block && self.same_positions {
            let difference = by_difference.then_some(&space.key_difference);
            pt.attend(backend, pack.view(), space, difference, &mut twin.pt);
        }
    }
}

/// A pack as a layer sees it.
pub struct PackView<'a, B: Backend> {
    pub layout: &'a B::Layout,
    /// Residual stream of the context rows, `[C, D]`.
    pub context: &'a B::Mat,
    /// The pack's twin rows.
    pub twin_rows: &'a Range<usize>,
}

impl<B: Backend> Clone for PackView<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for PackView<'_, B> {}

impl<'w, B: Backend> Block<'w, B> {
    /// The block of layer `index`, whose weights `weight` gives.
    fn new(
        weight: &mut dyn FnMut(LayerTensor) -> Option<B::Weight<'w>>,
        branch: Branch,
        spec: &ModelSpec,
        index: usize,
    ) -> Self {
        use LayerTensor::*;
        let weight = std::cell::RefCell::new(weight);
        let optional = |tensor| (weight.borrow_mut())(tensor);
        let required = |tensor| optional(tensor).expect("a checked model has all its tensors");
        let linear = |weight, bias| Linear { weight: required(weight), bias: optional(bias) };
        let plain = |weight| Linear { weight: required(weight), bias: None };
        let norm_of = |weight, bias: Option<LayerTensor>| {
            let offset = if spec.family.norms_add_one { 1.0 } else { 0.0 };
            optional(weight).map(|weight| Norm {
                centered: spec.family.centered_norms,
                weight,
                bias: bias.and_then(optional),
                offset,
                eps: spec.norm_eps,
            })
        };
        let norm = |weight| norm_of(weight, None);
        let layer = spec.layers[index];
        Self {
            attention_norm: norm_of(AttentionNorm, Some(AttentionNormBias)),
            query: linear(Query, QueryBias),
            key: linear(Key, KeyBias),
            value: linear(Value, ValueBias),
            query_norm: norm(QueryNorm),
            key_norm: norm(KeyNorm),
            attention_output: linear(AttentionOutput, AttentionOutputBias),
            attention_post_norm: norm(AttentionPostNorm),
            mlp_norm: norm_of(MlpNorm, Some(MlpNormBias)),
            mlp: match spec.experts.as_ref().filter(|_| layer.has_experts) {
                None => Mlp::One(Expert {
                    gate: Gate.shape(spec, index).map(|_| linear(Gate, GateBias)),
                    up: linear(Up, UpBias),
                    down: linear(Down, DownBias),
                }),
                Some(experts) => Mlp::Experts(Experts {
                    router: plain(Router),
                    experts: (0..experts.count as u16)
                        .map(|expert| Expert {
                            gate: Some(plain(ExpertGate(expert))),
                            up: plain(ExpertUp(expert)),
                            down: plain(ExpertDown(expert)),
                        })
                        .collect(),
                    spec: experts.clone(),
                }),
            },
            mlp_post_norm: norm(MlpPostNorm),
            parallel_residual: spec.parallel_residual,
            residual_multiplier: spec.residual_multiplier,
            activation: spec.hidden_act,
            shape: AttentionShape {
                num_attention_heads: spec.num_attention_heads,
                num_key_value_heads: spec.num_key_value_heads,
                head_dim: spec.head_dim,
                scale: spec.attention_scale,
                softcap: spec.attn_logit_softcapping,
                sliding_window: layer.sliding_window,
            },
            rope: layer.rope.map(|index| RopeOf { branch, index }),
        }
    }

    /// Begins to bring all weights to the device.
    pub fn fetch(&self, backend: &B) {
        let norms = [
            &self.attention_norm,
            &self.query_norm,
            &self.key_norm,
            &self.attention_post_norm,
            &self.mlp_norm,
            &self.mlp_post_norm,
        ];
        let of_norm = |norm: &Norm<B::Weight<'w>>| {
            [&norm.weight].into_iter().chain(&norm.bias).for_each(|weight| backend.fetch(weight));
        };
        norms.into_iter().flatten().for_each(of_norm);
        let of_linear = |linear: &Linear<B::Weight<'w>>| {
            [&linear.weight].into_iter().chain(&linear.bias).for_each(|weight| backend.fetch(weight));
        };
        [&self.query, &self.key, &self.value, &self.attention_output].into_iter().for_each(of_linear);
        let of_expert = |expert: &Expert<'w, B>| {
            expert.gate.iter().chain([&expert.up, &expert.down]).for_each(of_linear);
        };
        match &self.mlp {
            Mlp::One(mlp) => of_expert(mlp),
            Mlp::Experts(experts) => {
                of_linear(&experts.router);
                experts.experts.iter().for_each(of_expert);
            }
        }
    }

    fn rotate(&self, backend: &B, x: &mut B::Mat, layout: &B::Layout, rows: Rows) {
        if let Some(rope) = self.rope {
            backend.rotate(x, self.shape.head_dim, layout, rows, rope);
        }
    }

    fn rotate_both(&self, backend: &B, mats: [&mut B::Mat; 2], layout: &B::Layout, rows: Rows) {
        if let Some(rope) = self.rope {
            backend.rotate_both(mats, self.shape.head_dim, layout, rows, rope);
        }
    }

    /// Before attention: normed rows, queries and keys of all twin rows `x[R, D]`.
    ///
    /// Both branches come through here and through [`Block::finish_twin`], so that what rounds alike cancels.
    pub fn start_twin(&self, backend: &B, x: &B::Mat, layout: &B::Layout, space: &mut TwinSpace<B::Mat>) {
        let TwinSpace { normed, queries, keys, .. } = space;
        norm_or_copy(backend, x, self.attention_norm.as_ref(), normed);
        backend.linears(normed, &mut [(&self.query, queries), (&self.key, keys)]);
        norm_heads(backend, queries, self.query_norm.as_ref());
        norm_heads(backend, keys, self.key_norm.as_ref());
        self.rotate_both(backend, [queries, keys], layout, Rows::Twin);
    }

    /// Normed rows and rotated keys of a pack's context rows; where some go on values too, where all do rotated queries too.
    pub fn prepare_context(
        &self,
        backend: &B,
        pack: PackView<'_, B>,
        space: &mut ContextSpace<B::Mat>,
        onward: Onward,
    ) {
        let RowSpace { normalized, normed, .. } = &mut space.rows;
        match &self.attention_norm {
            Some(norm) => backend.norm(pack.context, norm, Some(normalized), normed),
            None => {
                backend.copy(pack.context, normalized);
                backend.copy(pack.context, normed);
            }
        }
        let ContextSpace { rows: RowSpace { normed, heads, .. }, raw_keys, keys, values, .. } = space;
        match onward {
            Onward::None => backend.linear(normed, &self.key, keys),
            Onward::Some => backend.linears(normed, &mut [(&self.key, keys), (&self.value, values)]),
            Onward::All => {
                let queries = (&self.query, &mut *heads);
                backend.linears(normed, &mut [queries, (&self.key, keys), (&self.value, values)]);
            }
        }
        if let Some(norm) = &self.key_norm {
            backend.copy(keys, raw_keys);
            backend.norm_heads(keys, norm);
        }
        match onward {
            Onward::None | Onward::Some => self.rotate(backend, keys, pack.layout, Rows::Context),
            Onward::All => {
                norm_heads(backend, heads, self.query_norm.as_ref());
                self.rotate_both(backend, [heads, keys], pack.layout, Rows::Context);
            }
        }
    }

    /// Attention of a pack's twin rows: the outputs of their heads.
    pub fn attend(
        &self,
        backend: &B,
        pack: PackView<'_, B>,
        context: &ContextSpace<B::Mat>,
        key_difference: Option<&B::Mat>,
        twin: &mut TwinSpace<B::Mat>,
    ) {
        let TwinSpace { normed, queries, keys, means, heads, .. } = twin;
        let attended = Attended {
            context_keys: &context.keys,
            key_difference,
            normalized: &context.rows.normalized,
            norm: self.attention_norm.as_ref(),
            twin_keys: keys,
            twin_normed: normed,
        };
        backend.resize(means, pack.twin_rows.len());
        backend.twin_attend(queries, &attended, pack.layout, &self.shape, means);
        backend.head_values(means, &self.value, &self.shape, pack.twin_rows.start, heads);
    }

    /// After attention: the block's output `f(x)` for all `rows` twin rows `x[R, D]`.
    pub fn finish_twin(&self, backend: &B, x: &B::Mat, rows: usize, space: &mut TwinSpace<B::Mat>) {
        let TwinSpace { normed, heads, stream, hidden, experts: expert_space, output, .. } = space;
        let post_norm = self.attention_post_norm.as_ref();
        if self.writes_plainly(post_norm) {
            backend.linear(heads, &self.attention_output, output);
        } else {
            backend.linear(heads, &self.attention_output, stream);
            self.finish_branch(backend, stream, post_norm, output);
        }
        if self.parallel_residual {
            norm_or_copy(backend, x, self.mlp_norm.as_ref(), normed);
        } else {
            backend.add(x, output, stream);
            norm_or_copy(backend, stream, self.mlp_norm.as_ref(), normed);
        }
        let mlp = match &self.mlp {
            Mlp::One(mlp) => mlp,
            Mlp::Experts(experts) => {
                let expert_space = expert_space.as_mut().expect("made for models with experts");
                return experts.add(backend, self.activation, normed, rows, expert_space, output);
            }
        };
        mlp.fill_hidden(backend, normed, self.activation, hidden);
        if self.writes_plainly(self.mlp_post_norm.as_ref()) {
            backend.linear_add(hidden, &mlp.down, output);
        } else {
            backend.linear(hidden, &mlp.down, stream);
            self.finish_branch(backend, stream, self.mlp_post_norm.as_ref(), normed);
            backend.accumulate(normed, output);
        }
    }

    /// Whether attention or MLP adds its last product to the stream as it is.
    fn writes_plainly(&self, post_norm: Option<&Norm<B::Weight<'w>>>) -> bool {
        post_norm.is_none() && self.residual_multiplier == 1.0
    }

    /// What attention or MLP adds to the stream, of its last product.
    fn finish_branch(
        &self,
        backend: &B,
        product: &B::Mat,
        post_norm: Option<&Norm<B::Weight<'w>>>,
        out: &mut B::Mat,
    ) {
        norm_or_copy(backend, product, post_norm, out);
        if self.residual_multiplier != 1.0 {
            backend.scale(out, self.residual_multiplier);
        }
    }

    /// Moves a pack's context rows through the block, after its keys were passed on.
    pub fn move_pack(&self, backend: &B, pack: &mut Pack<B>, workspace: &mut Workspace<B::Mat>) {
        let Workspace { context: space, heritage, .. } = workspace;
        heritage.values.pass_on(backend, &mut space.values, &pack.lineage);
        let ContextSpace { rows, keys, values, .. } = space;
        // Inherited rows lay before those that go on.
        backend.resize(&mut rows.normalized, pack.lineage.own);
        self.move_rows(backend, &mut pack.context, &pack.layout, keys, values, rows, None);
    }

    /// Rotated queries of rows of which `space` has the output of the attention norm.
    pub fn fill_queries(&self, backend: &B, layout: &B::Layout, space: &mut RowSpace<B::Mat>) {
        let RowSpace { normed, heads, .. } = space;
        backend.linear(normed, &self.query, heads);
        norm_heads(backend, heads, self.query_norm.as_ref());
        self.rotate(backend, heads, layout, Rows::Context);
    }

    /// Moves rows `x[C, D]` through the block: `space` has their rotated queries, `keys` and `values` hold the rows that the layout's
    /// paths name. Where the stream is between attention and MLP is kept where asked for.
    #[allow(clippy::too_many_arguments, reason = "what a block reads and writes")]
    pub fn move_rows(
        &self,
        backend: &B,
        x: &mut B::Mat,
        layout: &B::Layout,
        keys: &B::Mat,
        values: &B::Mat,
        space: &mut RowSpace<B::Mat>,
        after_attention: Option<&mut B::Mat>,
    ) {
        let RowSpace { normalized, normed, heads, hidden, experts: expert_space, count } = space;
        let mut write = |a: &B::Mat, w, post_norm: Option<&_>, normed: &mut B::Mat, x: &mut B::Mat| {
            if self.writes_plainly(post_norm) {
                backend.linear_add(a, w, x);
            } else {
                backend.linear(a, w, normalized);
                self.finish_branch(backend, normalized, post_norm, normed);
                backend.accumulate(normed, x);
            }
        };
        backend.attention(heads, keys, values, layout, &self.shape);
        if self.parallel_residual {
            norm_or_copy(backend, x, self.mlp_norm.as_ref(), normed);
            backend.linear_add(heads, &self.attention_output, x);
        } else {
            write(heads, &self.attention_output, self.attention_post_norm.as_ref(), normed, x);
            norm_or_copy(backend, x, self.mlp_norm.as_ref(), normed);
        }
        if let Some(kept) = after_attention {
            backend.copy(x, kept);
        }
        match &self.mlp {
            Mlp::One(mlp) => {
                mlp.fill_hidden(backend, normed, self.activation, hidden);
                write(hidden, &mlp.down, self.mlp_post_norm.as_ref(), normed, x);
            }
            Mlp::Experts(experts) => {
                let expert_space = expert_space.as_mut().expect("made for models with experts");
                experts.add(backend, self.activation, normed, *count, expert_space, x);
            }
        }
    }
}

/// The norm of every head, where there is one.
fn norm_heads<B: Backend>(backend: &B, heads: &mut B::Mat, norm: Option<&Norm<B::Weight<'_>>>) {
    if let Some(norm) = norm {
        backend.norm_heads(heads, norm);
    }
}

/// A norm, or the rows as they are where there is none.
fn norm_or_copy<B: Backend>(backend: &B, x: &B::Mat, norm: Option<&Norm<B::Weight<'_>>>, out: &mut B::Mat) {
    match norm {
        Some(norm) => backend.norm(x, norm, None, out),
        None => backend.copy(x, out),
    }
}
