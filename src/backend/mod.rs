//! The operations of a layer, as a trait: the engine says what is computed, a backend how.
//!
//! Letters in shapes: `C` context rows · `R` twin rows · `D` hidden_size · `H` num_attention_heads ·
//! `K` num_key_value_heads · `Dh` head_dim · `F` intermediate_size · `V` vocab_size. All matrices are row-major.
//!
//! Contract of every operation: the bits of a row of the result depend on that row of the input (for attention: on
//! the rows of its sequence) and on the model's shapes, never on how many other rows there are or on the number of
//! threads. Tests hold every backend to it.

pub mod cpu;
#[cfg(any(feature = "cuda", feature = "sim"))]
pub mod cuda;
mod mat;
pub mod reference;

use crate::{
    Result,
    metrics::{PartsL1, RunningL1},
    model::{Activation, ModelSpec, RopeTable},
    tensor::Tensor,
    twin::{Branch, Twin},
};
pub use mat::Mat;
use std::{ops::Range, sync::Arc};

/// Tokens in a batch that follow each other: which context rows of its pack and which twin rows of the batch are its
/// own. They attend to the tokens of its path and to each other; the twin rows come after the path.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Its own context rows: the last tokens of its path.
    pub context: Range<usize>,
    pub twin: Range<usize>,
    /// Where keys and values (and normed rows) of its tokens before the twin rows are, from position 0 on: parts that it
    /// may share with other sequences, then its own. Where nothing is shared or cached, this is `[context]`.
    pub path: Vec<Range<usize>>,
    /// Rotary tables of each branch, long enough for all positions of the sequence.
    pub ropes: Twin<Ropes>,
}

/// Rotary tables of a model, in the order of [`ModelSpec::ropes`](crate::model::ModelSpec).
pub type Ropes = Arc<[Arc<RopeTable>]>;

impl Sequence {
    /// A rotary table of a branch.
    pub fn rope(&self, rope: RopeOf) -> &RopeTable {
        &self.ropes.get(rope.branch)[rope.index]
    }

    /// Number of tokens on the path.
    pub fn path_len(&self) -> usize {
        self.path.iter().map(Range::len).sum()
    }

    /// The rows of the path's tokens from position `first` on.
    pub fn path_rows(&self, first: usize) -> impl Iterator<Item = usize> {
        self.path.iter().cloned().flatten().skip(first)
    }

    /// What twin row `row` sees: the path's tokens from this position on, and these twin rows.
    pub fn visible_to_twin(&self, row: usize, shape: &AttentionShape) -> (usize, Range<usize>) {
        let path = self.path_len();
        let unseen = shape.first_visible(path + row - self.twin.start);
        let in_path = unseen.min(path);
        (in_path, self.twin.start + unseen - in_path..row + 1)
    }
}

/// The two kinds of rows: the bulk, whose rounding both branches have in common, and the few that are compared, for
/// which a backend keeps more precision. As an argument beside a matrix it says which rows of the sequences are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    Context,
    Twin,
}

impl Rows {
    /// The rows of `sequence` that are meant, and the position of the first of them.
    pub fn of(self, sequence: &Sequence) -> (Range<usize>, usize) {
        match self {
            Rows::Context => (sequence.context.clone(), sequence.path_len() - sequence.context.len()),
            Rows::Twin => (sequence.twin.clone(), sequence.path_len()),
        }
    }
}

/// What a matrix holds: a backend may keep in fewer bits what only goes into products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sums that layers add to, and what is read.
    Stream,
    /// What products and attention take, and give to each other.
    Operand,
}

/// All launches of one kernel of a device, of a product with weights of one shape.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    pub kernel: String,
    /// Rows and columns of a product's weight.
    pub weight: Option<[usize; 2]>,
    pub launches: usize,
    pub seconds: f64,
    /// What no kernel could do without: operations of products, and bytes of memory.
    pub operations: f64,
    pub bytes: f64,
}

/// Which of a sequence's rotary tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeOf {
    pub branch: Branch,
    pub index: usize,
}

/// Shapes of attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    /// Factor on `q · k` before the softmax.
    pub scale: f64,
    /// Scores `s`, scaled, become `cap · tanh(s / cap)`.
    pub softcap: Option<f64>,
    /// A token sees this many tokens up to itself; `None`: all.
    pub sliding_window: Option<usize>,
}

impl AttentionShape {
    /// The first position that a token at `position` sees.
    pub fn first_visible(&self, position: usize) -> usize {
        self.sliding_window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Query heads that share one key-value head.
    pub fn group_size(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }
}

/// A matrix product's weight `[out, in]` and its bias `[1, out]`.
#[derive(Debug, Clone)]
pub struct Linear<W> {
    pub weight: W,
    pub bias: Option<W>,
}

/// RMSNorm, `x / sqrt(mean(x²) + eps) ∘ (weight + offset)`, or LayerNorm, the same of `x − mean(x)`, plus a bias.
#[derive(Debug, Clone)]
pub struct Norm<W> {
    /// Whether the mean is taken off: LayerNorm.
    pub centered: bool,
    /// `[1, n]`
    pub weight: W,
    /// `[1, n]`
    pub bias: Option<W>,
    /// Added to the weight: 1 in families whose norms multiply with `1 + w`.
    pub offset: f64,
    pub eps: f64,
}

impl<W> Norm<W> {
    /// As the norms of this model are.
    pub fn of(spec: &ModelSpec, weight: W, bias: Option<W>) -> Self {
        Self {
            centered: spec.family.centered_norms,
            weight,
            bias,
            offset: if spec.family.norms_add_one { 1.0 } else { 0.0 },
            eps: spec.norm_eps,
        }
    }
}

/// What the twin rows of a pack attend to: the context rows before them and the twin rows up to and including
/// themselves, in one branch.
pub struct Attended<'a, M, W> {
    /// Rotated keys of the tuned model, context rows `[C, K·Dh]`.
    pub context_keys: &'a M,
    /// What has to be added to them for this branch, `[C, K·Dh]`; `None` where nothing has.
    pub key_difference: Option<&'a M>,
    /// Normalized hidden states before the norm's weight, context rows `[C, D]`.
    pub normalized: &'a M,
    /// This branch's norm before attention; `None`: normalized rows are attended to as they are.
    pub norm: Option<&'a Norm<W>>,
    /// Rotated keys and outputs of the attention norm of this branch, twin rows `[R, K·Dh]`, `[R, D]`.
    pub twin_keys: &'a M,
    pub twin_normed: &'a M,
}

/// Sinks of twin rows: a score of each head beside those of the tokens, `[1, H]`. Tokens share what is left of the softmax.
pub struct Sunk<'a, M, W> {
    pub sinks: &'a W,
    /// How much that is, of every row and head, `[rows, H]`.
    pub shares: &'a mut M,
}

/// Running sums over the layers of what attention and the MLP contributed, P and F of each: `[rows, D]`.
pub struct PartSums<M> {
    pub attention: Twin<M>,
    pub mlp: Twin<M>,
}

/// What the workspace of a pack takes at most on a CPU, in bytes, and the most of its tokens.
pub const PACK_ROOM: (usize, usize) = (208 << 20, 4096);

/// The operations of a layer.
///
/// A matrix knows whether it holds context rows or twin rows; operations of one matrix to another keep the kind.
pub trait Backend: Sync {
    /// A matrix of activations.
    type Mat: Send + Sync;
    /// A weight tensor as the backend holds it; clones are the same in memory.
    type Weight<'w>: Clone + Send + Sync;
    /// A table of embeddings as the backend holds it.
    type Table<'w>: Send + Sync;
    /// Where the rows of some sequences lie, as the backend needs to know it.
    type Layout: Send + Sync;
    /// The running sums P and F of the twin rows, `[R, D]` each, and their norms after every layer so far.
    type Sums: Send + Sync;

    /// Whether all went well since it was last asked. An operation that a device could not do leaves its results
    /// undefined; those after it do nothing until this was called.
    ///
    /// # Errors
    /// The first failure of the device: [`ErrorKind::Device`](crate::ErrorKind) or
    /// [`ErrorKind::OutOfMemory`](crate::ErrorKind).
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// What kernels have taken since this was last asked, by name; none where no time is taken.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind)
    fn kernel_times(&self) -> Result<Vec<KernelTime>> {
        Ok(Vec::new())
    }

    /// Whether weights that were used once are kept for the next batch.
    fn keeps_weights(&self) -> bool {
        false
    }

    /// What the workspace of a pack may take, in bytes, and the most tokens that make products faster.
    fn pack_room(&self) -> (usize, usize) {
        PACK_ROOM
    }

    /// Takes note of where sequences lie.
    fn layout(&self, sequences: &[Sequence]) -> Self::Layout;

    /// An all-zero matrix.
    fn zeros(&self, kind: Rows, role: Role, rows: usize, cols: usize) -> Self::Mat;

    /// An all-zero matrix that only one branch needs: what the branches do for themselves a device may do side by side.
    fn zeros_of_branch(
        &self,
        _branch: Branch,
        kind: Rows,
        role: Role,
        rows: usize,
        cols: usize,
    ) -> Self::Mat {
        self.zeros(kind, role, rows, cols)
    }

    /// Hears how many context rows the batch has that comes next, as a device may do twin rows beside them; `None` once it is through the layers.
    fn expect_context(&self, _rows: Option<usize>) {}

    /// Gives `mat` a new number of rows; what it holds is undefined afterwards. Never gives memory back, so that a
    /// workspace serves packs of all sizes.
    fn resize(&self, mat: &mut Self::Mat, rows: usize);

    /// All elements, row-major.
    fn read(&self, mat: &Self::Mat) -> Vec<f64>;

    /// Takes a weight tensor from a checkpoint.
    fn weight<'w>(&self, tensor: Tensor<'w>) -> Self::Weight<'w>;

    /// The same for products of few context rows, again and again, as in decoding: a weight that is cheap to take and to
    /// multiply a few rows with. The bits of such a product may be others than those of [`Backend::weight`]'s, but they too
    /// do not depend on how many rows there are.
    fn weight_for_few_rows<'w>(&self, tensor: Tensor<'w>) -> Self::Weight<'w> {
        self.weight(tensor)
    }

    /// Begins to bring a weight to where products read it, while what was asked for before goes on.
    fn fetch(&self, _weight: &Self::Weight<'_>) {}

    /// Takes a table from a checkpoint. Of its rows few are needed at a time, so that a backend may leave it where it is.
    fn table<'w>(&self, tensor: Tensor<'w>) -> Self::Table<'w>;

    /// `out[i] = table[token_ids[i]]`: `[V, D]` → `[len, D]`, a [stream](Role::Stream).
    fn embed(&self, token_ids: &[u32], table: &Self::Table<'_>, out: &mut Self::Mat);

    /// A [`Norm`], row by row: `normalized` is what it is before weight and bias, kept where asked for, and `normed` with
    /// them: `[rows, D]` → `[rows, D]`.
    fn norm(
        &self,
        x: &Self::Mat,
        norm: &Norm<Self::Weight<'_>>,
        normalized: Option<&mut Self::Mat>,
        normed: &mut Self::Mat,
    );

    /// An RMSNorm in place, of every `n` elements of a row for themselves, `n` being the norm's width: of each head or of
    /// all together.
    fn norm_heads(&self, x: &mut Self::Mat, norm: &Norm<Self::Weight<'_>>);

    /// `out = a · Wᵀ + b`: `[rows, in]` → `[rows, out]`.
    fn linear(&self, a: &Self::Mat, w: &Linear<Self::Weight<'_>>, out: &mut Self::Mat);

    /// Some of [`Backend::linear`] for the same rows.
    #[allow(clippy::type_complexity, reason = "pairs of a weight and where its product goes")]
    fn linears(&self, a: &Self::Mat, products: &mut [(&Linear<Self::Weight<'_>>, &mut Self::Mat)]) {
        products.iter_mut().for_each(|(w, out)| self.linear(a, w, out));
    }

    /// `x += a · Wᵀ + b`: `[rows, in]`, `[rows, out]`.
    fn linear_add(&self, a: &Self::Mat, w: &Linear<Self::Weight<'_>>, x: &mut Self::Mat);

    /// `out = act(a · Wgᵀ + bg) ∘ (a · Wuᵀ + bu)`: `[rows, D]` → `[rows, F]`.
    fn gated(
        &self,
        a: &Self::Mat,
        gate: &Linear<Self::Weight<'_>>,
        up: &Linear<Self::Weight<'_>>,
        activation: Activation,
        out: &mut Self::Mat,
    );

    /// `out = act(a · Wᵀ + b)`: `[rows, D]` → `[rows, F]`.
    fn activated(
        &self,
        a: &Self::Mat,
        w: &Linear<Self::Weight<'_>>,
        activation: Activation,
        out: &mut Self::Mat,
    );

    /// `out = a + b`, all of one shape.
    fn add(&self, a: &Self::Mat, b: &Self::Mat, out: &mut Self::Mat);

    /// `out = a`, of one shape.
    fn copy(&self, a: &Self::Mat, out: &mut Self::Mat);

    /// `x += a`, of one shape.
    fn accumulate(&self, a: &Self::Mat, x: &mut Self::Mat);

    /// `out[i] = a[rows[i]]`.
    fn gather(&self, a: &Self::Mat, rows: &[usize], out: &mut Self::Mat);

    /// `x[rows[i]] += factors[i] · a[i]`; no row comes twice.
    fn scatter_add(&self, a: &Self::Mat, rows: &[usize], factors: &[f64], x: &mut Self::Mat);

    /// `out[rows[i]] = a[i]`; no row comes twice.
    fn scatter(&self, a: &Self::Mat, rows: &[usize], out: &mut Self::Mat);

    /// `ft = (1 − alpha) pt + alpha ft`, of one shape.
    fn blend(&self, pt: &Self::Mat, ft: &mut Self::Mat, alpha: f64);

    /// `x = factor · x`.
    fn scale(&self, x: &mut Self::Mat, factor: f64);

    /// Rotates every head of `x[rows, heads·Dh]` by its row's position: of the first `n` dimensions, `n` being those that
    /// the table is for, dimension `i` with `i + n/2`. `layout` is of all sequences with rows in `x`.
    fn rotate(&self, x: &mut Self::Mat, head_dim: usize, layout: &Self::Layout, rows: Rows, rope: RopeOf);

    /// [`Backend::rotate`] of two matrices with the same rows.
    fn rotate_both(
        &self,
        [a, b]: [&mut Self::Mat; 2],
        head_dim: usize,
        layout: &Self::Layout,
        rows: Rows,
        rope: RopeOf,
    ) {
        self.rotate(a, head_dim, layout, rows, rope);
        self.rotate(b, head_dim, layout, rows, rope);
    }

    /// Causal attention of context rows to their sequence's path up to themselves, each within its window, in place:
    /// `q[C, H·Dh]` becomes the heads' outputs. `k`, `v` (`[·, K·Dh]`) hold the rows that paths name: those of the pack,
    /// or a cache. `sinks[1, H]` are scores beside those of the tokens, whose part of the softmax is lost. The bits of a row do not
    /// depend on how its path is cut, nor on how many of its tokens are in `q`.
    fn attention(
        &self,
        q: &mut Self::Mat,
        k: &Self::Mat,
        v: &Self::Mat,
        layout: &Self::Layout,
        shape: &AttentionShape,
        sinks: Option<&Self::Weight<'_>>,
    );

    /// Keys of the pre-trained model minus keys of the tuned model, before rotation: `normalized[C, D]` →
    /// `out[C, K·Dh]`, `out = normalized · (Wk_pt ∘ g_pt − Wk_ft ∘ g_ft)ᵀ + b_pt − b_ft`, g being the norms' factors (1 without a
    /// norm); norms with a bias `β` add `Wk_pt β_pt − Wk_ft β_ft`.
    ///
    /// Taken as one product with the difference of the weights, so that the rounding of the tuned model's keys is
    /// common to both branches and the difference has only its own. A key weight of the tuned model always comes with the same
    /// norms and the same other weight: backends may keep what they make of them.
    fn key_difference(
        &self,
        normalized: &Self::Mat,
        norm: Twin<Option<&Norm<Self::Weight<'_>>>>,
        key: Twin<&Linear<Self::Weight<'_>>>,
        out: &mut Self::Mat,
    );

    /// The difference of normed keys from that of keys: `d = norm_pt(k + d) − norm_ft(k)` of every `n` elements of a row,
    /// `n` being the norms' width. `k`, `d`: `[C, K·Dh]`, before rotation.
    fn normed_key_difference(
        &self,
        keys: &Self::Mat,
        norm: Twin<&Norm<Self::Weight<'_>>>,
        difference: &mut Self::Mat,
    );

    /// For every twin row of the layout's sequences and every head the softmax-weighted mean of the *normed hidden states* it
    /// attends to: `q[R, H·Dh]` → `out[rows of these sequences, H·D]`. Since `Σ p (n Wv) = (Σ p n) Wv`, values need
    /// not be projected for all tokens; [`Backend::head_values`] projects the means. The mean is that of the tokens alone: what
    /// sinks leave them is told in [`Sunk::shares`], for [`Backend::scale_heads`] to multiply the projected values with, as these have a
    /// bias.
    fn twin_attend(
        &self,
        q: &Self::Mat,
        attended: &Attended<'_, Self::Mat, Self::Weight<'_>>,
        layout: &Self::Layout,
        shape: &AttentionShape,
        out: &mut Self::Mat,
        sunk: Option<&mut Sunk<'_, Self::Mat, Self::Weight<'_>>>,
    );

    /// The value projection of [`Backend::twin_attend`]'s means, each head with its key-value head's rows of `Wv`:
    /// `[rows, H·D]` → rows `first..first + rows` of `out[R, H·Dh]`.
    fn head_values(
        &self,
        means: &Self::Mat,
        value: &Linear<Self::Weight<'_>>,
        shape: &AttentionShape,
        first: usize,
        out: &mut Self::Mat,
    );

    /// `heads[first + i, h] *= factors[i, h]`, every head of a row with its own: `factors[rows, H]`, `heads[R, H·Dh]`, twin rows.
    fn scale_heads(&self, heads: &mut Self::Mat, factors: &Self::Mat, first: usize);

    /// Running sums, all zero.
    fn sums(&self, rows: usize, cols: usize) -> Self::Sums;

    /// `P += ptc`, `F += f_ft − f_pt` and `x += f_ft`, all `[R, D]`; the sums keep the L1 norms of P and F of every row.
    /// Without `f_pt` the layer is the same in both models: `P += f_ft`, and F stays to the bit.
    fn contribution(
        &self,
        f_pt: Option<&Self::Mat>,
        f_ft: &Self::Mat,
        x: &mut Self::Mat,
        sums: &mut Self::Sums,
    );

    /// The norms of every row after each layer: as many as there were contributions, `R` each.
    fn norms(&self, sums: &Self::Sums) -> Vec<Vec<RunningL1>>;

    /// Contributions to rows with stream `x` from where the streams of both branches are after a layer's attention and
    /// after the layer, all `[rows, D]` of one kind as are the sums: adds `pt − x` and `ft − pt` after attention to its P and F, what the
    /// MLP adds to both to the MLP's, and gives the L1 norms of the sums and of their sum for every row.
    fn trace(
        &self,
        x: &Self::Mat,
        after_attention: Twin<&Self::Mat>,
        after: Twin<&Self::Mat>,
        sums: &mut PartSums<Self::Mat>,
    ) -> Vec<PartsL1>;
}
