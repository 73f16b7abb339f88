//! Loops compiled for the vector instructions that the machine has.

use pulp::{Arch, NullaryFnOnce};

/// Runs `loops`, which has to be `#[inline(always)]`, compiled for the widest vector instructions there are.
///
/// `Arch::dispatch` alone calls a closure through its `FnOnce` shim, which the compiler may leave outside of the
/// function that has the vector instructions enabled; then the loops run at a fraction of their speed.
pub fn vectorize<R>(arch: Arch, loops: impl FnMut() -> R) -> R {
    arch.dispatch(Loops(loops))
}

struct Loops<F>(F);

impl<R, F: FnMut() -> R> NullaryFnOnce for Loops<F> {
    type Output = R;

    #[inline(always)]
    fn call(mut self) -> R {
        (self.0)()
    }
}
