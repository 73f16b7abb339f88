//! A layer of a pair: which weights and which rows its two blocks have in common.

use super::{
    block::{Block, Onward},
    pack::Pack,
    workspace::Workspace,
};
use crate::{
    backend::{Backend, Rows},
    model::{LayerTensor, ModelSpec, PairWeights},
    tensor::Tensor,
    twin::{Branch, Twin},
};
use std::collections::HashMap;

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

impl<'w, B: Backend> Layer<'w, B> {
    pub fn load(backend: &B, weights: &'w dyn PairWeights, index: usize, meeting: Meeting) -> Self {
        let spec = weights.spec();
        let shared = |tensors: &[LayerTensor]| tensors.iter().all(|t| weights.is_shared(index, *t));
        let rope = spec.map(|spec| spec.layers[index].rope.map(|rope| &spec.ropes[rope]));
        let same_positions = spec.pt.norm_eps == spec.ft.norm_eps && rope.pt == rope.ft;
        let same_keys = same_positions && shared(&LayerTensor::OF_KEYS);
        let same_numbers = |spec: &ModelSpec| {
            let ModelSpec {
                attention_scale, attn_logit_softcapping, residual_multiplier, hidden_act, ..
            } = spec;
            let window = spec.layers[index].sliding_window;
            let normalize = spec.experts.as_ref().map(|experts| experts.normalize);
            (*attention_scale, *attn_logit_softcapping, *residual_multiplier, *hidden_act, window, normalize)
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
            Block::new(&mut weight, weights.activation(branch, index), branch, spec, index)
        });
        let is_last = index + 1 == spec.ft.num_hidden_layers;
        Self { blocks, is_last, same_block, same_keys, same_positions }
    }

    /// How rows go on from this layer: all but from the last.
    pub fn onward(&self, from_last: Onward) -> Onward {
        if self.is_last { from_last } else { Onward::All }
    }

    /// Whose blocks are computed here of those that are needed; where they are the same, that of the tuned model.
    pub fn computes(&self, needed: Twin<bool>) -> Twin<bool> {
        if self.same_block { Twin::new(false, true) } else { needed }
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
        let Workspace { context: space, key_difference, twin, heritage } = workspace;
        let Twin { pt, ft } = &self.blocks;
        let Pack { context, layout, lineage, .. } = pack;
        if !self.same_block && !self.same_positions {
            // Other angles or another epsilon: the pre-trained branch gets a context of its own.
            pt.prepare_context(backend, context, layout, space, Onward::None);
            heritage.pass_on(backend, Branch::Pt, space, lineage);
            pt.attend(backend, pack, space, None, &mut twin.pt);
            space.fit(backend, lineage.own);
        }
        ft.prepare_context(backend, context, layout, space, self.onward(Onward::None));
        let by_difference = !self.same_block && self.same_positions && !self.same_keys;
        if by_difference {
            let norms = Twin::new(pt.attention_norm.as_ref(), ft.attention_norm.as_ref());
            backend.resize(key_difference, lineage.own);
            backend.key_difference(
                &space.rows.normalized,
                norms,
                Twin::new(&pt.key, &ft.key),
                key_difference,
            );
            if let (Some(pt), Some(ft)) = (&pt.key_norm, &ft.key_norm) {
                backend.normed_key_difference(&space.raw_keys, Twin::new(pt, ft), key_difference);
            }
            pt.rotate(backend, key_difference, layout, Rows::Context);
            heritage.key_difference.pass_on(backend, key_difference, lineage);
        }
        heritage.pass_on(backend, Branch::Ft, space, lineage);
        ft.attend(backend, pack, space, None, &mut twin.ft);
        if !self.same_block && self.same_positions {
            let difference = by_difference.then_some(&*key_difference);
            pt.attend(backend, pack, space, difference, &mut twin.pt);
        }
    }
}
