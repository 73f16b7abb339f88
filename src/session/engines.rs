//! A pair with the engines that borrow it, one for each device.

use crate::{
    checkpoint::Pair,
    engine::{AnyEngine, PackLimits},
    job::Computers,
};
use self_cell::self_cell;

/// What engines borrow.
pub struct Loaded {
    pub pair: Pair,
    pub computers: Computers,
}

type OfEach<'a> = Vec<Box<dyn AnyEngine + 'a>>;

self_cell!(
    /// Engines live as long as what they borrow, so that a device keeps its weights from call to call.
    pub struct Engines {
        owner: Loaded,

        #[not_covariant]
        dependent: OfEach,
    }
);

/// Makes the engines of a pair; `limits` are those of packs, where memory is limited.
pub fn start(loaded: Loaded, limits: Option<PackLimits>) -> Engines {
    Engines::new(loaded, |Loaded { pair, computers }| computers.engines(pair, limits))
}
