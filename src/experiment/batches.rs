//! How experiments that know all their prompts beforehand go through them.

use super::rows::{BatchLimits, Failure, Filling, Outcome, Ready, Task, in_parts, watching};
use crate::{
    Error, ErrorKind, Result,
    engine::Observer,
    output::{Folder, Progress},
    prompt::Encoded,
};
use serde_json::{Map, Value};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Limits, progress, threads and the way to stop.
pub struct Batching<'a> {
    pub limits: BatchLimits,
    pub progress: &'a Progress,
    pub pool: &'a rayon::ThreadPool,
    /// Set from outside to stop the run.
    pub stop: &'a AtomicBool,
    /// Tells what the user should know.
    pub warn: &'a (dyn Fn(&str) + Sync),
}

/// A prompt and what the experiment knows about it.
pub struct Prompt<A> {
    pub id: Value,
    pub about: A,
    /// Its tokens, or what is wrong with it.
    pub encoded: std::result::Result<Encoded, Failure>,
}

impl<A> Prompt<A> {
    fn ready(&self) -> Option<Ready<'_>> {
        let Encoded { token_ids, truncated } = self.encoded.as_ref().ok()?;
        Some(Ready { id: &self.id, token_ids, truncated: *truncated })
    }
}

impl Batching<'_> {
    /// Passes all prompts through the task. `row` makes the output's row of each outcome; rows go to `folder` as their batch
    /// is done.
    pub fn pass<A>(
        &self,
        task: &impl Task,
        prompts: &[Prompt<A>],
        folder: &mut Folder,
        mut row: impl FnMut(&Prompt<A>, Outcome) -> Map<String, Value>,
    ) -> Result<()> {
        let mut rest = prompts;
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(self.fitting(task, rest));
            rest = later;
            let ready: Vec<Ready<'_>> = batch.iter().filter_map(Prompt::ready).collect();
            let tokens = ready.iter().map(|row| row.token_ids.len() + task.new_tokens()).sum();
            let outcomes = self.compute(batch.len(), tokens, |observer| {
                in_parts(&ready, self.warn, &|part| task.compute(part, observer))
            })?;
            let mut outcomes = outcomes.into_iter();
            let mut rows = Vec::with_capacity(batch.len());
            for prompt in batch {
                let outcome = match &prompt.encoded {
                    Ok(_) => outcomes.next().expect("an outcome for every prompt"),
                    Err(failure) => Err(failure.clone()),
                };
                let mut fields = Map::from_iter([("id".to_owned(), prompt.id.clone())]);
                fields.extend(row(prompt, outcome));
                rows.push(Value::Object(fields));
            }
            folder.append(&rows)?;
            self.progress.batch_done();
        }
        Ok(())
    }

    /// How many of the first prompts go together, at least one.
    fn fitting<A>(&self, task: &impl Task, prompts: &[Prompt<A>]) -> usize {
        let mut filling = Filling::new(self.limits, task.row_count(), task.new_tokens(), 1);
        let mut fits = |prompt: &&Prompt<A>| {
            let token_ids = prompt.encoded.as_ref().ok().map(|encoded| Arc::from(&*encoded.token_ids));
            !filling.add(token_ids.as_ref())
        };
        prompts.iter().take_while(|prompt| fits(prompt)).count()
    }

    /// Computes a batch of `rows` rows with `tokens` tokens on the pool's threads. Interrupted between two layers when asked to stop.
    pub fn compute<T: Send>(
        &self,
        rows: usize,
        tokens: usize,
        work: impl FnOnce(Observer<'_>) -> Result<T> + Send,
    ) -> Result<T> {
        let batch = self.progress.batch(rows as u64, tokens as u64);
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "stopped"));
        }
        self.pool.install(|| work(&watching(self.progress, batch, &[self.stop])))
    }
}

/// Cuts rows, in order, into batches within the limits, whose tokens count `times` times.
pub fn split<'r, T>(
    rows: &'r [T],
    batching: &Batching<'_>,
    times: usize,
    tokens: impl Fn(&T) -> usize,
) -> Vec<&'r [T]> {
    let limits = batching.limits;
    let mut batches = Vec::new();
    let mut rest = rows;
    while !rest.is_empty() {
        let mut sum = 0;
        let fits = |row: &T| {
            sum += times * tokens(row);
            sum <= limits.tokens
        };
        let count = rest.iter().take(limits.prompts).map(fits).take_while(|fits| *fits).count().max(1);
        let (batch, later) = rest.split_at(count);
        batches.push(batch);
        rest = later;
    }
    batches
}
