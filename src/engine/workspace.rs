//! The matrices that a layer needs besides the residual stream, allocated once.

use crate::{backend::Backend, model::ModelSpec, twin::Twin};

/// Matrices of the context rows.
pub struct ContextSpace<B: Backend> {
    /// Output of the attention norm, and afterwards of the MLP norm, `[C, D]`.
    pub normed: Twin<B::Mat>,
    /// Rotated keys, `[C, K·Dh]`.
    pub keys: Twin<B::Mat>,
    pub values: B::Mat,
    /// Queries, then outputs of the heads, `[C, H·Dh]`.
    pub heads: B::Mat,
    /// Inside of the MLP, `[C, F]`.
    pub hidden: B::Mat,
}

/// Matrices of the twin rows, one branch at a time.
pub struct TwinSpace<B: Backend> {
    /// Output of the attention norm, and afterwards of the MLP norm, `[R, D]`.
    pub normed: B::Mat,
    pub queries: B::Mat,
    pub keys: B::Mat,
    /// Mean hidden states of the heads, `[R, H·D]`.
    pub means: B::Mat,
    /// Outputs of the heads, `[R, H·Dh]`.
    pub heads: B::Mat,
    /// The stream after attention, `[R, D]`.
    pub stream: B::Mat,
    /// Inside of the MLP, `[R, F]`.
    pub hidden: B::Mat,
}

/// Everything a layer writes to besides the residual streams.
pub struct Workspace<B: Backend> {
    pub context: ContextSpace<B>,
    pub twin: TwinSpace<B>,
    /// The block's output for the twin rows, `[R, D]`.
    pub output: Twin<B::Mat>,
}

impl<B: Backend> Workspace<B> {
    pub fn new(backend: &B, spec: &ModelSpec) -> Self {
        let of_width = |cols: usize| backend.zeros(0, cols);
        let (d, f) = (spec.hidden_size, spec.intermediate_size);
        let (q, k) = (spec.query_width(), spec.key_width());
        Self {
            context: ContextSpace {
                normed: Twin::new(of_width(d), of_width(d)),
                keys: Twin::new(of_width(k), of_width(k)),
                values: of_width(k),
                heads: of_width(q),
                hidden: of_width(f),
            },
            twin: TwinSpace {
                normed: of_width(d),
                queries: of_width(q),
                keys: of_width(k),
                means: of_width(spec.num_attention_heads * d),
                heads: of_width(q),
                stream: of_width(d),
                hidden: of_width(f),
            },
            output: Twin::new(of_width(d), of_width(d)),
        }
    }

    /// Makes room for a pack.
    pub fn fit(&mut self, backend: &B, context_rows: usize, twin_rows: usize) {
        let ContextSpace { normed, keys, values, heads, hidden } = &mut self.context;
        for mat in [&mut normed.pt, &mut normed.ft, &mut keys.pt, &mut keys.ft, values, heads, hidden] {
            backend.resize(mat, context_rows);
        }
        let TwinSpace { normed, queries, keys, means, heads, stream, hidden } = &mut self.twin;
        for mat in [normed, queries, keys, means, heads, stream, hidden] {
            backend.resize(mat, twin_rows);
        }
        for mat in [&mut self.output.pt, &mut self.output.ft] {
            backend.resize(mat, twin_rows);
        }
    }
}
