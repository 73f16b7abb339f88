//! The matrices that a layer needs besides the residual streams, allocated once.

use crate::{
    backend::{Backend, Role, Rows},
    model::{LayerTensor, ModelSpec},
    twin::Twin,
};

/// Matrices of the context rows of one pack.
pub struct ContextSpace<M> {
    /// Normalized hidden states before attention, without the norm's weight, `[C, D]`.
    pub normalized: M,
    /// Output of the tuned model's attention norm, and afterwards of its MLP norm, `[C, D]`.
    pub normed: M,
    /// Keys of the tuned model before their norm; without columns where keys have none.
    pub raw_keys: M,
    /// Rotated keys of the tuned model and what the pre-trained model's differ by, `[C, K·Dh]`.
    pub keys: M,
    pub key_difference: M,
    /// `[C, K·Dh]`
    pub values: M,
    /// Queries, then outputs of the heads, `[C, H·Dh]`.
    pub heads: M,
    /// Inside of the MLP, `[C, F]`.
    pub hidden: M,
    pub experts: Option<ExpertSpace<M>>,
}

/// Matrices of the twin rows in one branch.
pub struct TwinSpace<M> {
    /// Output of the attention norm, and afterwards of the MLP norm, `[R, D]`.
    pub normed: M,
    pub queries: M,
    pub keys: M,
    /// Outputs of the heads, `[R, H·Dh]`.
    pub heads: M,
    /// The stream after attention, `[R, D]`.
    pub stream: M,
    /// Inside of the MLP, `[R, F]`.
    pub hidden: M,
    pub experts: Option<ExpertSpace<M>>,
    /// The block's output, `[R, D]`.
    pub output: M,
}

/// Matrices of the rows that go through experts.
pub struct ExpertSpace<M> {
    /// Router logits of all rows, `[rows, experts]`.
    pub logits: M,
    /// The rows of one expert: what it gets, its inside, what it gives.
    pub chosen: M,
    pub hidden: M,
    pub output: M,
}

/// Everything a layer writes to besides the residual streams.
pub struct Workspace<M> {
    pub context: ContextSpace<M>,
    pub twin: Twin<TwinSpace<M>>,
    /// Mean hidden states of the heads, for the twin rows of one pack, `[rows, H·D]`.
    pub means: M,
}

impl<M> Workspace<M> {
    /// Room for `twin_rows` twin rows and no context rows yet.
    pub fn new<B: Backend<Mat = M>>(backend: &B, spec: &ModelSpec, twin_rows: usize) -> Self {
        let (d, f) = (spec.hidden_size, spec.intermediate_size);
        let (q, k) = (spec.query_width(), spec.key_width());
        let context = |cols: usize| backend.zeros(Rows::Context, Role::Operand, 0, cols);
        let twin = |cols: usize| backend.zeros(Rows::Twin, Role::Operand, twin_rows, cols);
        let experts = |kind: Rows| {
            spec.experts.as_ref().map(|experts| ExpertSpace {
                logits: backend.zeros(kind, Role::Stream, 0, experts.count),
                chosen: backend.zeros(kind, Role::Operand, 0, d),
                hidden: backend.zeros(kind, Role::Operand, 0, experts.intermediate_size),
                output: backend.zeros(kind, Role::Stream, 0, d),
            })
        };
        let twin_space = || TwinSpace {
            normed: twin(d),
            queries: twin(q),
            keys: twin(k),
            heads: twin(q),
            stream: twin(d),
            hidden: twin(f),
            experts: experts(Rows::Twin),
            output: twin(d),
        };
        Self {
            context: ContextSpace {
                normalized: context(d),
                normed: context(d),
                raw_keys: context(if LayerTensor::KeyNorm.shape(spec, 0).is_some() { k } else { 0 }),
                keys: context(k),
                key_difference: context(k),
                values: context(k),
                heads: context(q),
                hidden: context(f),
                experts: experts(Rows::Context),
            },
            twin: Twin::new(twin_space(), twin_space()),
            means: backend.zeros(Rows::Twin, Role::Operand, 0, spec.num_attention_heads * d),
        }
    }

    /// Makes room for a pack's context rows and the means of its twin rows.
    pub fn fit<B: Backend<Mat = M>>(&mut self, backend: &B, context_rows: usize, twin_rows: usize) {
        let ContextSpace {
            normalized, normed, raw_keys, keys, key_difference, values, heads, hidden, ..
        } = &mut self.context;
        for mat in [normalized, normed, raw_keys, keys, key_difference, values, heads, hidden] {
            backend.resize(mat, context_rows);
        }
        backend.resize(&mut self.means, twin_rows);
    }
}
