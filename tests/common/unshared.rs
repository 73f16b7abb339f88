//! A pair of equal models that is not known to be one.

use tuco::{
    checkpoint::Pair,
    model::{LayerTensor, ModelSpec, PairWeights},
    tensor::Tensor,
    twin::{Branch, Twin},
};

/// The tuned model's weights on both sides, but not known to be equal, so that nothing is skipped.
pub struct Unshared<'a>(pub &'a Pair);

impl PairWeights for Unshared<'_> {
    fn spec(&self) -> Twin<&ModelSpec> {
        let spec = self.0.spec().ft;
        Twin::new(spec, spec)
    }

    fn embedding(&self) -> Tensor<'_> {
        self.0.embedding()
    }

    fn position_embedding(&self) -> Option<Tensor<'_>> {
        self.0.position_embedding()
    }

    fn layer_tensor(&self, _: Branch, layer: usize, tensor: LayerTensor) -> Option<Tensor<'_>> {
        self.0.layer_tensor(Branch::Ft, layer, tensor)
    }

    fn is_shared(&self, _: usize, _: LayerTensor) -> bool {
        false
    }
}
