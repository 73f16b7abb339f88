//! Which sessions the calls of a thread use.

use std::{cell::Cell, ops::Deref, sync::Arc};
use tuco::Session;

thread_local! {
    static USES: Cell<u32> = const { Cell::new(0) };
}

/// A session that a call of this thread uses.
pub struct Used(Arc<Session>);

impl Used {
    pub fn begin(session: Arc<Session>) -> Self {
        USES.set(USES.get() + 1);
        Self(session)
    }

    /// Whether a call of the thread is on its way, be it of another pair.
    pub fn by_this_thread() -> bool {
        USES.get() > 0
    }
}

impl Deref for Used {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        USES.set(USES.get() - 1);
    }
}
