//! Calls of several threads, one after the other in the order in which they came.

use crate::{Error, Result, engine::Observer, sync::lock};
use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How often those who wait ask whether they still want to.
const TICK: Duration = Duration::from_millis(20);

/// Who is at work, and who comes next.
#[derive(Default)]
pub struct Turns {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// The first has the turn.
    waiting: VecDeque<u64>,
    next: u64,
}

/// The turn of a call, until it is dropped.
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// Waits for the calls before this one.
    ///
    /// # Errors
    /// [`Interrupted`](crate::ErrorKind::Interrupted) when the observer stops the waiting.
    pub fn take(&self, observer: Observer<'_>) -> Result<Turn<'_>> {
        let mut state = self.state();
        let own = state.next;
        state.next += 1;
        state.waiting.push_back(own);
        while state.waiting.front() != Some(&own) {
            (state, _) = self.ended.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner);
            // The observer may do anything, such as ask for a turn.
            drop(state);
            let stopped = observer(0.0).is_break();
            state = self.state();
            if stopped && state.waiting.front() != Some(&own) {
                state.waiting.retain(|call| *call != own);
                return Err(Error::stopped());
            }
        }
        Ok(Turn(self))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().waiting.pop_front();
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, engine::unobserved};
    use std::{ops::ControlFlow, thread};

    #[test]
    fn calls_come_in_their_order_and_may_give_up() {
        let turns = Turns::default();
        let order = Mutex::new(Vec::new());
        let first = turns.take(&unobserved).unwrap();
        let stopped = turns.take(&|_| ControlFlow::Break(()));
        assert_eq!(stopped.err().unwrap().kind, ErrorKind::Interrupted);
        thread::scope(|scope| {
            for number in 0..4 {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let _turn = turns.take(&unobserved).unwrap();
                    order.lock().unwrap().push(number);
                });
                while turns.state().waiting.len() < number + 2 {
                    thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
        assert!(turns.state().waiting.is_empty());
    }
}
