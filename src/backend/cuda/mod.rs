//! The CUDA backend: kernels of our own (`kernels/`) behind the operations of a layer, on a GPU or on its simulator.
//!
//! Context rows are f32 where layers add to them and bf16 where they go into products (f32 in small models); twin rows are f32,
//! and products take each of their elements as a sum of three bf16 numbers. What the pre-trained branch needs of the context comes as a difference
//! from the tuned one's, so rounding of the context is common to both branches.

mod args;
mod attention;
mod device;
mod embed;
#[cfg(feature = "cuda")]
mod gpu;
mod key_difference;
mod lanes;
mod launch;
mod layout;
mod mat;
mod operations;
mod points;
mod pool;
mod product;
mod profile;
mod rotate;
#[cfg(feature = "sim")]
mod sim;
#[cfg(feature = "sim")]
mod sim_work;
mod transfer;
mod twin_attend;
mod weight;

use crate::{Error, Result, model::PairWeights, sync::lock};
pub use attention::kernel_dim;
pub use device::Kernels;
use device::{Device, Lane};
use lanes::Lanes;
use layout::RopeCache;
use mat::{CudaMat, Element};
use profile::Profiled;
use std::sync::{Arc, Mutex};
use weight::Matrices;

/// What context rows are rounded to where they go into products. Their rounding is common to both branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextPrecision {
    /// One product of bf16 numbers: fast.
    Bfloat16,
    /// f32, multiplied as sums of three bf16 numbers: three products or more.
    Float32,
}

impl ContextPrecision {
    /// What a model of this `hidden_size` needs: the rounding of bf16 averages out over thousands of numbers, not over hundreds.
    pub fn for_model(hidden_size: usize) -> Self {
        if hidden_size < 1024 { Self::Float32 } else { Self::Bfloat16 }
    }

    fn element(self) -> Element {
        match self {
            Self::Bfloat16 => Element::Bf16,
            Self::Float32 => Element::F32,
        }
    }
}

/// The CUDA backend on one device.
pub struct Cuda {
    lanes: Lanes,
    /// What context rows are in products.
    context: Element,
    resident: bool,
    /// Where the time of every kernel is taken.
    profile: Option<Arc<Profiled>>,
    ropes: RopeCache,
    matrices: Matrices,
    failure: Mutex<Option<Error>>,
}

impl Cuda {
    /// On the simulator.
    #[cfg(feature = "sim")]
    pub fn simulated(context: ContextPrecision, kernels: Kernels) -> Self {
        Self::on(sim::Sim::open(kernels), context)
    }

    /// On GPU `ordinal` of those that the driver shows, with the newest kernels that it runs or with others.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind): no driver, no such GPU, one that is too old or does not run these kernels.
    #[cfg(feature = "cuda")]
    pub fn open(ordinal: usize, context: ContextPrecision, kernels: Option<Kernels>) -> Result<Self> {
        Ok(Self::on(gpu::open(ordinal, kernels)?, context))
    }

    fn on(lanes: [Arc<dyn Device>; Lane::ALL.len()], context: ContextPrecision) -> Self {
        let context = context.element();
        let (ropes, matrices, failure) = Default::default();
        let lanes = Lanes::new(lanes);
        Self { lanes, context, resident: false, profile: None, ropes, matrices, failure }
    }

    /// Takes the time of every kernel from now on; a little slower, and one kernel after the other.
    pub fn profiled(mut self) -> Self {
        let profile = Arc::new(Profiled::new(self.device().clone()));
        self.lanes.replace(Lane::Context, profile.clone());
        self.profile = Some(profile);
        self
    }

    /// What is not of one lane: what all read, and questions about the device.
    fn device(&self) -> &Arc<dyn Device> {
        self.lanes.of(Lane::Context)
    }

    /// Whether weights stay on the device from one batch to the next; otherwise each layer's are brought there when it is
    /// computed.
    pub fn with_resident_weights(self, resident: bool) -> Self {
        Self { resident, ..self }
    }

    /// What decides about the bits of results: the kind of device, and what context rows are.
    pub fn numerics(&self) -> String {
        format!("{}, context rows in {}", self.device().architecture(), self.context.name())
    }

    /// Bytes of device memory that weights take at most where they stay: the layers of both models, what their key weights differ by, and the
    /// embeddings.
    pub fn resident_bytes(weights: &dyn PairWeights, context: ContextPrecision) -> usize {
        weight::resident_bytes(weights, context.element())
    }

    /// Free device memory and all of it, in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind)
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.device().memory()
    }

    /// Does something unless something failed before; keeps the first failure for [`Backend::check`].
    fn attempt<T>(&self, work: impl FnOnce(&Arc<dyn Device>) -> Result<T>) -> Option<T> {
        let failure = || lock(&self.failure);
        if failure().is_some() {
            return None;
        }
        // Which of several it was.
        let of_this = |error: Error| Error::new(error.kind, format!("{}: {error}", self.device().name()));
        work(self.device()).map_err(|error| *failure() = Some(of_this(error))).ok()
    }

    /// The same in the lane of `out`, for what writes all of these matrices and reads those.
    fn run<T>(
        &self,
        out: &[&CudaMat],
        reads: &[&CudaMat],
        work: impl FnOnce(&Arc<dyn Device>) -> Result<T>,
    ) -> Option<T> {
        self.attempt(|_| self.lanes.run(out, reads, work))
    }
}

impl std::fmt::Display for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let weights = if self.resident { "weights resident" } else { "weights brought layer by layer" };
        write!(f, "{}, context rows in {}, {weights}", self.device().name(), self.context.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_for_models_whose_rounding_averages_out() {
        assert_eq!(ContextPrecision::for_model(1023), ContextPrecision::Float32);
        assert_eq!(ContextPrecision::for_model(1024), ContextPrecision::Bfloat16);
    }
}
