//! A layer of one model, written once for all modes: its weights, and what twin rows and context rows do in it.

use super::{
    experts::{Expert, Experts, Shared},
    pack::Pack,
    workspace::{ContextSpace, RowSpace, TwinSpace, Workspace},
};
use crate::{
    backend::{Attended, AttentionShape, Backend, Linear, Norm, RopeOf, Rows, Sunk},
    model::{Activation, LayerTensor, ModelSpec},
    twin::Branch,
};

/// The weights of a layer of one model, and the numbers that go with them.
pub struct Block<'w, B: Backend> {
    pub attention_norm: Option<Norm<B::Weight<'w>>>,
    query: Linear<B::Weight<'w>>,
    pub key: Linear<B::Weight<'w>>,
    value: Linear<B::Weight<'w>>,
    query_norm: Option<Norm<B::Weight<'w>>>,
    pub key_norm: Option<Norm<B::Weight<'w>>>,
    sinks: Option<B::Weight<'w>>,
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

/// Which rows of those whose keys are computed go on through the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onward {
    None,
    /// Chosen ones, of which [`Block::fill_queries`] makes queries.
    Some,
    All,
}

impl<'w, B: Backend> Block<'w, B> {
    /// The block of layer `index`, whose weights `weight` gives.
    pub fn new(
        weight: &mut dyn FnMut(LayerTensor) -> Option<B::Weight<'w>>,
        activation: Activation,
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
            optional(weight).map(|weight| Norm::of(spec, weight, bias.and_then(optional)))
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
            sinks: optional(Sinks),
            attention_output: linear(AttentionOutput, AttentionOutputBias),
            attention_post_norm: norm(AttentionPostNorm),
            mlp_norm: if spec.has_one_norm() {
                norm_of(AttentionNorm, Some(AttentionNormBias))
            } else {
                norm_of(MlpNorm, Some(MlpNormBias))
            },
            mlp: match spec.experts.as_ref().filter(|_| layer.has_experts) {
                None => Mlp::One(Expert {
                    gate: Gate.shape(spec, index).map(|_| linear(Gate, GateBias)),
                    up: linear(Up, UpBias),
                    down: linear(Down, DownBias),
                }),
                Some(experts) => Mlp::Experts(Experts {
                    router: linear(Router, RouterBias),
                    experts: (0..experts.count as u16)
                        .map(|expert| Expert {
                            gate: Some(linear(ExpertGate(expert), ExpertGateBias(expert))),
                            up: linear(ExpertUp(expert), ExpertUpBias(expert)),
                            down: linear(ExpertDown(expert), ExpertDownBias(expert)),
                        })
                        .collect(),
                    shared: experts.shared_intermediate_size.map(|_| Shared {
                        expert: Expert {
                            gate: Some(plain(SharedGate)),
                            up: plain(SharedUp),
                            down: plain(SharedDown),
                        },
                        share: plain(SharedShare),
                    }),
                    spec: experts.clone(),
                }),
            },
            mlp_post_norm: norm(MlpPostNorm),
            parallel_residual: spec.parallel_residual,
            residual_multiplier: spec.residual_multiplier,
            activation,
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
        self.sinks.iter().for_each(|sinks| backend.fetch(sinks));
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
                if let Some(shared) = &experts.shared {
                    of_expert(&shared.expert);
                    of_linear(&shared.share);
                }
            }
        }
    }

    pub fn rotate(&self, backend: &B, x: &mut B::Mat, layout: &B::Layout, rows: Rows) {
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
        let TwinSpace { rows: RowSpace { normed, .. }, queries, keys, .. } = space;
        norm_or_copy(backend, x, self.attention_norm.as_ref(), normed);
        backend.linears(normed, &mut [(&self.query, queries), (&self.key, keys)]);
        norm_heads(backend, queries, self.query_norm.as_ref());
        norm_heads(backend, keys, self.key_norm.as_ref());
        self.rotate_both(backend, [queries, keys], layout, Rows::Twin);
    }

    /// Normed rows and rotated keys of context rows `x[C, D]`; where some go on values too, where all do rotated queries too.
    pub fn prepare_context(
        &self,
        backend: &B,
        x: &B::Mat,
        layout: &B::Layout,
        space: &mut ContextSpace<B::Mat>,
        onward: Onward,
    ) {
        let RowSpace { normalized, normed, .. } = &mut space.rows;
        match &self.attention_norm {
            Some(norm) => backend.norm(x, norm, Some(normalized), normed),
            None => {
                backend.copy(x, normalized);
                backend.copy(x, normed);
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
            Onward::None | Onward::Some => self.rotate(backend, keys, layout, Rows::Context),
            Onward::All => {
                norm_heads(backend, heads, self.query_norm.as_ref());
                self.rotate_both(backend, [heads, keys], layout, Rows::Context);
            }
        }
    }

    /// Attention of a pack's twin rows: the outputs of their heads.
    pub fn attend(
        &self,
        backend: &B,
        pack: &Pack<B>,
        context: &ContextSpace<B::Mat>,
        key_difference: Option<&B::Mat>,
        twin: &mut TwinSpace<B::Mat>,
    ) {
        let TwinSpace { rows: RowSpace { normed, heads, .. }, queries, keys, means, shares, .. } = twin;
        let attended = Attended {
            context_keys: &context.keys,
            key_difference,
            normalized: &context.rows.normalized,
            norm: self.attention_norm.as_ref(),
            twin_keys: keys,
            twin_normed: normed,
        };
        let first = pack.twin_rows.start;
        backend.resize(means, pack.twin_rows.len());
        let mut sunk = self.sinks.as_ref().map(|sinks| {
            backend.resize(shares, pack.twin_rows.len());
            Sunk { sinks, shares }
        });
        backend.twin_attend(queries, &attended, &pack.layout, &self.shape, means, sunk.as_mut());
        backend.head_values(means, &self.value, &self.shape, first, heads);
        if let Some(Sunk { shares, .. }) = sunk {
            backend.scale_heads(heads, shares, first);
        }
    }

    /// After attention: the block's output `f(x)` for all twin rows `x[R, D]`.
    pub fn finish_twin(&self, backend: &B, x: &B::Mat, space: &mut TwinSpace<B::Mat>) {
        let TwinSpace { rows, output, .. } = space;
        let RowSpace { normalized: stream, normed, heads, .. } = &mut *rows;
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
        self.add_mlp(backend, rows, output);
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

    /// `out += ` what attention or MLP adds to the stream, whose last product is that of `a` and `w`.
    fn add_branch(
        &self,
        backend: &B,
        a: &B::Mat,
        w: &Linear<B::Weight<'w>>,
        post_norm: Option<&Norm<B::Weight<'w>>>,
        [product, finished]: [&mut B::Mat; 2],
        out: &mut B::Mat,
    ) {
        if self.writes_plainly(post_norm) {
            backend.linear_add(a, w, out);
        } else {
            backend.linear(a, w, product);
            self.finish_branch(backend, product, post_norm, finished);
            backend.accumulate(finished, out);
        }
    }

    /// `out += ` what the MLP, or the experts, make of rows of which `space` has the output of the MLP norm.
    fn add_mlp(&self, backend: &B, space: &mut RowSpace<B::Mat>, out: &mut B::Mat) {
        let RowSpace { normalized: spare, normed, hidden, experts: expert_space, count, .. } = space;
        match &self.mlp {
            Mlp::One(mlp) => {
                mlp.fill_hidden(backend, normed, self.activation, hidden);
                let post_norm = self.mlp_post_norm.as_ref();
                self.add_branch(backend, hidden, &mlp.down, post_norm, [spare, normed], out);
            }
            Mlp::Experts(experts) => {
                let expert_space = expert_space.as_mut().expect("made for models with experts");
                experts.add(backend, self.activation, normed, *count, expert_space, out);
            }
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
        let RowSpace { normalized: spare, normed, heads, .. } = &mut *space;
        backend.attention(heads, keys, values, layout, &self.shape, self.sinks.as_ref());
        if self.parallel_residual {
            norm_or_copy(backend, x, self.mlp_norm.as_ref(), normed);
            backend.linear_add(heads, &self.attention_output, x);
        } else {
            let post_norm = self.attention_post_norm.as_ref();
            self.add_branch(backend, heads, &self.attention_output, post_norm, [spare, normed], x);
            norm_or_copy(backend, x, self.mlp_norm.as_ref(), normed);
        }
        if let Some(kept) = after_attention {
            backend.copy(x, kept);
        }
        self.add_mlp(backend, space, x);
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
