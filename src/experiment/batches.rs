//! How experiments that know all their prompts beforehand go through them.

use super::{
    filling::{BatchLimits, Filling, cut},
    queue::{self, Queue},
    rows::watching,
    task::{Outcome, Ready, Task, passed_on},
    worker::Worker,
};
use crate::{
    Error, Result,
    engine::Observer,
    output::{Folder, Progress},
    prompt::{Encoded, RowError},
};
use serde_json::{Map, Value};
use std::sync::atomic::{AtomicBool, Ordering};

/// Limits, progress, threads and the way to stop.
pub struct Batching<'a> {
    pub limits: BatchLimits,
    pub progress: &'a Progress,
    /// The threads of each device.
    pub pools: &'a [rayon::ThreadPool],
    /// Set from outside to stop the run.
    pub stop: &'a AtomicBool,
    /// Tells what the user should know.
    pub warn: &'a (dyn Fn(&str) + Sync),
}

/// What goes through the layers together.
pub struct Batch<T> {
    pub of: T,
    pub rows: usize,
    pub tokens: usize,
}

/// A prompt and what the experiment knows about it.
#[derive(Debug)]
pub struct Prompt<A> {
    pub id: Value,
    /// What the input says of it, for its row.
    pub label: Option<Value>,
    pub meta: Option<Value>,
    pub about: A,
    /// Its tokens, or what is wrong with it.
    pub encoded: std::result::Result<Encoded, RowError>,
}

impl Batching<'_> {
    /// Passes prompts through the tasks, one for each device. `row` makes the output's row of each outcome, after its id; rows go to
    /// `folder` as their batch is done. Those that an earlier run left there are not computed again. `count` sees all rows in their
    /// order.
    ///
    /// # Errors
    /// As [`share`](Self::share); a mismatch where the folder's rows are of other prompts.
    pub fn pass<A: Sync>(
        &self,
        tasks: &[impl Task],
        prompts: &[Prompt<A>],
        folder: &mut Folder,
        row: impl Fn(&Prompt<A>, Outcome) -> Map<String, Value>,
        mut count: impl FnMut(&Prompt<A>, &Map<String, Value>),
    ) -> Result<()> {
        let task = &tasks[0];
        let workers = Worker::of_each(tasks, self.pools);
        let mut rest = prompts;
        while let Some((prompt, later)) = rest.split_first()
            && let Some(written) = folder.next_written(&prompt.id)?
        {
            count(prompt, &written);
            let tokens = self.ready(prompt).map_or(0, |row| row.token_ids.len() + task.new_tokens());
            workers.iter().for_each(|worker| worker.note_written(&written, tokens));
            rest = later;
        }
        self.progress.resumed((prompts.len() - rest.len()) as u64);
        let token_ids = |prompt: &Prompt<A>| Some(self.ready(prompt).ok()?.token_ids.into());
        let batches = cut(rest, Filling::of_task(self.limits, task), token_ids);
        let compute = |worker: &Worker<'_, _>, batch: &&[Prompt<A>], observer: Observer<'_>| {
            let ready: Vec<Ready<'_>> = batch.iter().filter_map(|prompt| self.ready(prompt).ok()).collect();
            worker.outcomes(&ready, self.warn, observer)
        };
        self.share(
            &workers,
            batches.into_iter().map(|batch| self.batch(batch, task.new_tokens())),
            compute,
            |batch, outcomes| {
                let mut outcomes = outcomes.into_iter();
                let mut rows = Vec::with_capacity(batch.len());
                for prompt in batch {
                    let ready = self.ready(prompt);
                    let outcome = ready.and_then(|_| outcomes.next().expect("an outcome for every prompt"));
                    let mut fields = Map::from_iter([("id".to_owned(), prompt.id.clone())]);
                    fields.extend(row(prompt, outcome));
                    fields.extend(passed_on(prompt.label.clone(), prompt.meta.clone()));
                    count(prompt, &fields);
                    rows.push(Value::Object(fields));
                }
                folder.append(&rows)
            },
        )
    }

    /// Prompts as a batch, each with room for so many tokens more.
    fn batch<'p, A>(&self, prompts: &'p [Prompt<A>], new_tokens: usize) -> Batch<&'p [Prompt<A>]> {
        let ready = prompts.iter().filter_map(|prompt| self.ready(prompt).ok());
        let tokens = ready.map(|row| row.token_ids.len() + new_tokens).sum();
        Batch { of: prompts, rows: prompts.len(), tokens }
    }

    /// The prompt for the layers, or why it is not to be computed.
    fn ready<'p, A>(&self, prompt: &'p Prompt<A>) -> std::result::Result<Ready<'p>, RowError> {
        let Encoded { token_ids, truncated } = prompt.encoded.as_ref().map_err(RowError::clone)?;
        self.limits.check(token_ids.len())?;
        Ok(Ready { id: &prompt.id, token_ids, truncated: *truncated })
    }

    /// Computes batches, each by one of the workers; `take` gets what comes of them in their order. Interrupted between two layers when asked to stop.
    ///
    /// # Errors
    /// The first of `compute` and `take`.
    pub fn share<T: Send + Sync, D: Send, W: Sync>(
        &self,
        workers: &[Worker<'_, W>],
        batches: impl Iterator<Item = Batch<T>>,
        compute: impl Fn(&Worker<'_, W>, &T, Observer<'_>) -> Result<D> + Sync,
        take: impl FnMut(T, D) -> Result<()>,
    ) -> Result<()> {
        let mut sharing = Sharing { progress: self.progress, batches, take };
        queue::pass(&mut sharing, workers, |worker, (number, of), unwanted| {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::stopped());
            }
            let stops = [self.stop, unwanted];
            compute(worker, of, &watching(self.progress, *number, &stops))
        })
    }
}

/// Batches, and who takes what comes of them.
struct Sharing<'a, I, F> {
    progress: &'a Progress,
    batches: I,
    take: F,
}

impl<T: Send, D, I: Iterator<Item = Batch<T>>, F: FnMut(T, D) -> Result<()>> Queue<D> for Sharing<'_, I, F> {
    /// A batch with its number.
    type Job = (u64, T);

    fn next(&mut self) -> Result<Option<(u64, T)>> {
        let batch = self.batches.next();
        Ok(batch.map(|batch| (self.progress.batch(batch.rows as u64, batch.tokens as u64), batch.of)))
    }

    fn take(&mut self, (_, of): (u64, T), done: D) -> Result<()> {
        (self.take)(of, done)?;
        self.progress.batch_done();
        Ok(())
    }
}
