//! What a device's memory turns out to hold: batches that are too large for it go on in parts.

use crate::{Error, ErrorKind, Result, engine::Observer, sync::lock};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// What is known about one device and one kind of pass. Tokens are those that prompts would have alone, shared beginnings counted each time.
#[derive(Debug)]
pub struct Holding {
    /// No more tokens are tried at once.
    most: AtomicUsize,
    /// Those of the longest prompt that has fitted.
    longest: AtomicUsize,
    /// A prompt did not fit alone.
    failed: AtomicBool,
    /// Something has fitted some device of the run.
    fitted: Arc<AtomicBool>,
}

impl Default for Holding {
    fn default() -> Self {
        Self::of_run(Arc::default())
    }
}

/// Passes some of the prompts, and tells who listens of their tokens.
pub type Pass<'a, R, T> = dyn Fn(&[R], Observer<'_>) -> Result<Vec<T>> + 'a;

impl Holding {
    /// Of one of the devices of a run, which share `fitted`.
    pub fn of_run(fitted: Arc<AtomicBool>) -> Self {
        Self { most: usize::MAX.into(), longest: 0.into(), failed: false.into(), fitted }
    }

    /// A prompt that needs room for so many tokens has fitted.
    pub fn note_fitted(&self, tokens: usize) {
        self.longest.fetch_max(tokens, Ordering::Relaxed);
        self.fitted.store(true, Ordering::Relaxed);
    }

    /// Passes all prompts, in as many parts as the device needs; what did not fit once is not tried again. `tokens` tells how many a
    /// prompt needs room for.
    ///
    /// # Returns
    /// What comes of each prompt: [`ErrorKind::OutOfMemory`] where one does not fit alone.
    ///
    /// # Errors
    /// Other failures of `pass`. [`ErrorKind::OutOfMemory`] where it is not the prompt that is too large: one as long has fitted before, or
    /// none of several has on any device.
    pub fn pass<R, T>(
        &self,
        prompts: &[R],
        tokens: impl Fn(&R) -> usize,
        warn: &(dyn Fn(&str) + Sync),
        observer: Observer<'_>,
        pass: &Pass<'_, R, T>,
    ) -> Result<Vec<Result<T>>> {
        let tokens = |prompt: &R| tokens(prompt).max(1);
        let failed_before = self.failed.load(Ordering::Relaxed);
        let mut outcomes = Vec::with_capacity(prompts.len());
        let mut rest = prompts;
        while !rest.is_empty() {
            let most = self.most.load(Ordering::Relaxed);
            let mut sum = 0;
            let fits = |prompt: &&R| {
                sum += tokens(prompt);
                sum <= most
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (part, later) = rest.split_at(count);
            let size: usize = part.iter().map(tokens).sum();
            match attempt(part, observer, pass) {
                Ok(passed) => {
                    self.note_fitted(part.iter().map(tokens).max().unwrap_or(0));
                    outcomes.extend(passed.into_iter().map(Ok));
                }
                Err(error) if error.kind != ErrorKind::OutOfMemory => return Err(error),
                Err(error) if count > 1 => {
                    if self.most.fetch_min(size / 2, Ordering::Relaxed) == usize::MAX {
                        warn(&format!(
                            "{error}; going on with as few tokens at once as it holds (--max-batch-tokens sets a limit)"
                        ));
                    }
                    continue;
                }
                Err(error) if size <= self.longest.load(Ordering::Relaxed) => return Err(error),
                Err(error) => {
                    self.failed.store(true, Ordering::Relaxed);
                    let message =
                        format!("the prompt needs room for {size} tokens and does not fit alone: {error}");
                    outcomes.push(Err(Error::new(error.kind, message)));
                }
            }
            rest = later;
        }
        let nothing_fits = !self.fitted.load(Ordering::Relaxed) && (failed_before || prompts.len() > 1);
        match outcomes.pop() {
            Some(Err(error)) if nothing_fits => Err(error),
            last => Ok(outcomes.into_iter().chain(last).collect()),
        }
    }
}

/// One attempt; takes back what the observer heard of it if it fails.
fn attempt<R, T>(part: &[R], observer: Observer<'_>, pass: &Pass<'_, R, T>) -> Result<Vec<T>> {
    let heard = Mutex::new(0.0);
    let outcome = pass(part, &|tokens| {
        *lock(&heard) += tokens;
        observer(tokens)
    });
    if outcome.is_err() {
        // Whether it wants to stop, it says again at the next part.
        let _ = observer(-heard.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::unobserved;
    use std::{cell::RefCell, ops::ControlFlow};

    /// Passes prompts of so many tokens through a device that holds `room` of them. What came of each, and the sizes of the parts that
    /// were tried.
    fn passed(holding: &Holding, room: usize, prompts: &[usize]) -> (Result<Vec<Result<usize>>>, Vec<usize>) {
        let tried = RefCell::new(Vec::new());
        let pass = |part: &[usize], _: Observer<'_>| {
            let size: usize = part.iter().sum();
            tried.borrow_mut().push(size);
            match size <= room {
                true => Ok(part.to_vec()),
                false => Err(Error::new(ErrorKind::OutOfMemory, "too much")),
            }
        };
        let outcomes = holding.pass(prompts, |tokens| *tokens, &|_| (), &unobserved, &pass);
        (outcomes, tried.into_inner())
    }

    #[test]
    fn what_did_not_fit_is_not_tried_again() {
        let holding = Holding::default();
        let prompts = [4, 1, 3, 2, 2, 4];
        let (outcomes, tried) = passed(&holding, 5, &prompts);
        assert_eq!(outcomes.unwrap().into_iter().collect::<Result<Vec<_>>>().unwrap(), prompts);
        assert_eq!(tried, [16, 8, 4, 4, 4, 4]);
        // So it is in the batches that follow.
        assert_eq!(passed(&holding, 5, &prompts).1, [4, 4, 4, 4]);
    }

    #[test]
    fn one_prompt_that_does_not_fit_is_told_apart_from_a_device_without_room() {
        let holding = Holding::default();
        let outcomes = passed(&holding, 5, &[2, 9, 3]).0.unwrap();
        let message = outcomes[1].as_ref().unwrap_err().message.as_str();
        assert_eq!(message, "the prompt needs room for 9 tokens and does not fit alone: too much");
        assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
        assert!(passed(&holding, 5, &[8, 9]).0.unwrap().iter().all(Result::is_err));
        // Less room than before, or none from the start.
        assert_eq!(passed(&holding, 1, &[2]).0.unwrap_err().kind, ErrorKind::OutOfMemory);
        assert_eq!(passed(&Holding::default(), 1, &[2, 3]).0.unwrap_err().kind, ErrorKind::OutOfMemory);
        let holding = Holding::default();
        assert!(passed(&holding, 1, &[2]).0.unwrap()[0].is_err());
        assert_eq!(passed(&holding, 1, &[3]).0.unwrap_err().kind, ErrorKind::OutOfMemory);
        // An earlier run has left something.
        let holding = Holding::default();
        holding.note_fitted(2);
        assert!(passed(&holding, 1, &[3, 4]).0.unwrap().iter().all(Result::is_err));
        assert_eq!(passed(&holding, 1, &[2]).0.unwrap_err().kind, ErrorKind::OutOfMemory);
        // Another device has held something.
        let fitted = Arc::default();
        let [one, other] = [(); 2].map(|()| Holding::of_run(Arc::clone(&fitted)));
        assert!(passed(&one, 2, &[2]).0.is_ok());
        assert!(passed(&other, 2, &[3, 4]).0.unwrap().iter().all(Result::is_err));
        // Short ones have fitted together.
        assert!(passed(&Holding::default(), 5, &[2, 2, 6]).0.unwrap()[2].is_err());
        let holding = Holding::default();
        assert!(
            passed(&holding, 9, &[3, 3, 3]).0.is_ok() && passed(&holding, 5, &[6]).0.unwrap()[0].is_err()
        );
    }

    #[test]
    fn it_is_said_once_and_attempts_that_failed_do_not_count() {
        let (holding, said, heard) = (Holding::default(), Mutex::new(Vec::new()), Mutex::new(0.0));
        let warn = |text: &str| said.lock().unwrap().push(text.to_owned());
        let observer = |tokens: f64| {
            *heard.lock().unwrap() += tokens;
            ControlFlow::Continue(())
        };
        let pass = |part: &[usize], observer: Observer<'_>| {
            let _ = observer(part.iter().sum::<usize>() as f64);
            match part.len() {
                1 => Ok(part.to_vec()),
                _ => Err(Error::new(ErrorKind::OutOfMemory, "too much")),
            }
        };
        let prompts = [5; 8];
        assert_eq!(holding.pass(&prompts, |tokens| *tokens, &warn, &observer, &pass).unwrap().len(), 8);
        assert_eq!((said.lock().unwrap().len(), *heard.lock().unwrap()), (1, 40.0));
    }
}
