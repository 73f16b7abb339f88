//! Which sessions the calls of a thread use, and whether they were cancelled.

use std::{cell::Cell, ops::Deref, sync::Arc};
use tuco::{Error, Result, Session, session::Call};

thread_local! {
    static USES: Cell<u32> = const { Cell::new(0) };
}

/// A session that a call of this thread uses.
pub struct Used {
    session: Arc<Session>,
    pub call: Call,
}

impl Used {
    pub fn begin(session: Arc<Session>) -> Self {
        USES.set(USES.get() + 1);
        Self { call: session.begin(), session }
    }

    /// # Errors
    /// When the call was cancelled.
    pub fn check(&self) -> Result<()> {
        if self.call.is_cancelled() { Err(Error::stopped()) } else { Ok(()) }
    }

    /// Whether a call of the thread is on its way, be it of another pair.
    pub fn by_this_thread() -> bool {
        USES.get() > 0
    }
}

impl Deref for Used {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        USES.set(USES.get() - 1);
    }
}
