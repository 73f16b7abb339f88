//! Calls that others stop.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// How often calls were cancelled.
#[derive(Debug, Clone, Default)]
pub struct Cancels(Arc<AtomicU64>);

/// A call that has begun, see [`Session::begin`](super::Session::begin).
#[derive(Debug)]
pub struct Call {
    cancels: Cancels,
    before: u64,
}

impl Cancels {
    pub fn cancel(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn begin(&self) -> Call {
        Call { before: self.count(), cancels: self.clone() }
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Call {
    /// Whether [`Session::cancel`](super::Session::cancel) was called since it began.
    pub fn is_cancelled(&self) -> bool {
        self.cancels.count() != self.before
    }

    /// What an observer answers: break when the call is cancelled.
    pub fn go_on(&self) -> ControlFlow<()> {
        if self.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
