//! The matrices that a layer needs besides the residual streams, allocated once.

use super::{pack::Pack, plan::Lineage};
use crate::{
    backend::{Backend, Role, Rows},
    model::{LayerTensor, ModelSpec},
    twin::{Branch, Twin},
};

/// Matrices of context rows, those of one pack, in one branch.
pub struct ContextSpace<M> {
    pub rows: RowSpace<M>,
    /// Keys before their norm; without columns where keys have none.
    pub raw_keys: M,
    /// Rotated keys, `[C, K·Dh]`.
    pub keys: M,
    /// `[C, K·Dh]`
    pub values: M,
}

/// What rows of any kind need besides keys and values; `R` is how many there are.
pub struct RowSpace<M> {
    /// Of context rows the normalized hidden states before attention, without the norm's weight; then, and of twin rows, room for what
    /// is not yet added to the stream. `[R, D]`.
    pub normalized: M,
    /// Output of the attention norm, and afterwards of the MLP norm, `[R, D]`.
    pub normed: M,
    /// Queries of context rows, then outputs of the heads, `[R, H·Dh]`.
    pub heads: M,
    /// Inside of the MLP, `[R, F]`.
    pub hidden: M,
    pub experts: Option<ExpertSpace<M>>,
    /// `R`.
    pub count: usize,
}

/// Matrices of the twin rows in one branch.
pub struct TwinSpace<M> {
    pub rows: RowSpace<M>,
    pub queries: M,
    pub keys: M,
    /// Mean hidden states of the heads, for the rows of one pack, `[rows, H·D]`.
    pub means: M,
    /// Which share of their attention goes to tokens, not to sinks, for the same rows, `[rows, H]`.
    pub shares: M,
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
    pub shared: Option<SharedSpace<M>>,
}

/// Matrices of all rows for the expert that each goes through.
pub struct SharedSpace<M> {
    /// What tells how much of it they get, `[rows, 1]`.
    pub shares: M,
    /// Its inside.
    pub hidden: M,
}

/// Everything a layer writes to besides the residual streams.
pub struct Workspace<M> {
    pub context: ContextSpace<M>,
    /// What a pack's rotated keys in the pre-trained model differ by from those in the tuned model, `[C, K·Dh]`.
    pub key_difference: M,
    pub twin: Twin<TwinSpace<M>>,
    pub heritage: Heritage<M>,
}

/// What a pack's attention reads of rows that earlier packs computed.
pub struct Heritage<M> {
    pub keys: Twin<Inherited<M>>,
    pub normalized: Twin<Inherited<M>>,
    pub key_difference: Inherited<M>,
    pub values: Inherited<M>,
}

impl<M> Heritage<M> {
    /// Passes on what a branch prepared of a pack's context: keys and normalized rows.
    pub fn pass_on<B: Backend<Mat = M>>(
        &mut self,
        backend: &B,
        branch: Branch,
        space: &mut ContextSpace<M>,
        lineage: &Lineage,
    ) {
        self.keys.get_mut(branch).pass_on(backend, &mut space.keys, lineage);
        self.normalized.get_mut(branch).pass_on(backend, &mut space.rows.normalized, lineage);
    }
}

/// One matrix on its way from pack to pack.
pub struct Inherited<M> {
    /// The rows that the next pack inherits.
    rows: M,
    joined: M,
}

impl<M> Inherited<M> {
    fn new<B: Backend<Mat = M>>(backend: &B, branch: Branch, cols: usize) -> Self {
        let mat = || backend.zeros_of_branch(branch, Rows::Context, Role::Operand, 0, cols);
        Self { rows: mat(), joined: mat() }
    }

    /// Puts the inherited rows before a pack's own in `mat`, and keeps what the next pack inherits of both.
    pub fn pass_on<B: Backend<Mat = M>>(&mut self, backend: &B, mat: &mut M, lineage: &Lineage) {
        let Lineage { inherited, own, bequeathed } = lineage;
        if *inherited > 0 {
            backend.resize(&mut self.joined, inherited + own);
            backend.scatter(&self.rows, &(0..*inherited).collect::<Vec<_>>(), &mut self.joined);
            backend.scatter(mat, &(*inherited..inherited + own).collect::<Vec<_>>(), &mut self.joined);
            std::mem::swap(mat, &mut self.joined);
        }
        if !bequeathed.is_empty() {
            backend.resize(&mut self.rows, bequeathed.len());
            backend.gather(mat, bequeathed, &mut self.rows);
        }
    }
}

impl<M> ExpertSpace<M> {
    fn new<B: Backend<Mat = M>>(backend: &B, spec: &ModelSpec, branch: Branch, kind: Rows) -> Option<Self> {
        let rows = |role, cols| backend.zeros_of_branch(branch, kind, role, 0, cols);
        spec.experts.as_ref().map(|experts| ExpertSpace {
            logits: rows(Role::Stream, experts.count),
            chosen: rows(Role::Operand, spec.hidden_size),
            hidden: rows(Role::Operand, experts.intermediate_size),
            shared: experts
                .shared_intermediate_size
                .map(|size| SharedSpace { shares: rows(Role::Stream, 1), hidden: rows(Role::Operand, size) }),
            output: rows(Role::Stream, spec.hidden_size),
        })
    }
}

impl<M> RowSpace<M> {
    pub fn new<B: Backend<Mat = M>>(
        backend: &B,
        spec: &ModelSpec,
        branch: Branch,
        kind: Rows,
        count: usize,
    ) -> Self {
        let rows = |cols: usize| backend.zeros_of_branch(branch, kind, Role::Operand, count, cols);
        Self {
            normalized: rows(spec.hidden_size),
            normed: rows(spec.hidden_size),
            heads: rows(spec.query_width()),
            hidden: rows(spec.intermediate_size),
            experts: ExpertSpace::new(backend, spec, branch, kind),
            count,
        }
    }

    /// Makes room for so many rows.
    pub fn fit<B: Backend<Mat = M>>(&mut self, backend: &B, rows: usize) {
        self.count = rows;
        let Self { normalized, normed, heads, hidden, .. } = self;
        for mat in [normalized, normed, heads, hidden] {
            backend.resize(mat, rows);
        }
    }
}

impl<M> ContextSpace<M> {
    pub fn new<B: Backend<Mat = M>>(backend: &B, spec: &ModelSpec, kind: Rows) -> Self {
        let context = |cols: usize| backend.zeros(kind, Role::Operand, 0, cols);
        let k = spec.key_width();
        Self {
            rows: RowSpace::new(backend, spec, Branch::Ft, kind, 0),
            raw_keys: context(if LayerTensor::KeyNorm.shape(spec, 0).is_some() { k } else { 0 }),
            keys: context(k),
            values: context(k),
        }
    }

    /// Makes room for so many rows.
    pub fn fit<B: Backend<Mat = M>>(&mut self, backend: &B, rows: usize) {
        let Self { rows: row_space, raw_keys, keys, values } = self;
        row_space.fit(backend, rows);
        for mat in [raw_keys, keys, values] {
            backend.resize(mat, rows);
        }
    }
}

impl<M> Workspace<M> {
    /// Room for `twin_rows` twin rows and no context rows yet.
    pub fn new<B: Backend<Mat = M>>(backend: &B, spec: &ModelSpec, twin_rows: usize) -> Self {
        let (d, k) = (spec.hidden_size, spec.key_width());
        let inherited = |cols: usize| Inherited::new(backend, Branch::Ft, cols);
        let twin_space = |branch| {
            let twin = |rows, cols| backend.zeros_of_branch(branch, Rows::Twin, Role::Operand, rows, cols);
            TwinSpace {
                rows: RowSpace::new(backend, spec, branch, Rows::Twin, twin_rows),
                queries: twin(twin_rows, spec.query_width()),
                keys: twin(twin_rows, k),
                means: twin(0, spec.num_attention_heads * d),
                shares: twin(0, spec.num_attention_heads),
                output: twin(twin_rows, d),
            }
        };
        Self {
            context: ContextSpace::new(backend, spec, Rows::Context),
            key_difference: backend.zeros_of_branch(Branch::Pt, Rows::Context, Role::Operand, 0, k),
            twin: Twin::new(twin_space(Branch::Pt), twin_space(Branch::Ft)),
            heritage: Heritage {
                keys: Twin::new(inherited(k), inherited(k)),
                normalized: Twin::new(inherited(d), inherited(d)),
                key_difference: Inherited::new(backend, Branch::Pt, k),
                values: inherited(k),
            },
        }
    }

    /// Makes room for a pack's context rows.
    pub fn fit<B: Backend<Mat = M>>(&mut self, backend: &B, pack: &Pack<B>) {
        self.context.fit(backend, pack.lineage.own);
    }
}
