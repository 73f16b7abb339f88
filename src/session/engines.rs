//! A pair with the engine that borrows it, whichever backend computes.

use crate::{checkpoint::Pair, engine, job::Computer};
use self_cell::self_cell;

/// What an engine borrows.
pub struct Loaded {
    pub pair: Pair,
    pub computer: Computer,
}

type AnyEngine<'a> = Box<dyn engine::AnyEngine + 'a>;

self_cell!(
    /// The engine lives as long as what it borrows, so that a device keeps its weights from call to call.
    pub struct Engines {
        owner: Loaded,

        #[not_covariant]
        dependent: AnyEngine,
    }
);

/// Makes the engine of a pair.
pub fn start(loaded: Loaded) -> Engines {
    Engines::new(loaded, |Loaded { pair, computer }| computer.engine(pair))
}
