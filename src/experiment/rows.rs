//! A row of output for every row of input, in order, whatever happens on the way: what `tuco score` and `tuco generate`
//! have in common.

use super::{
    filling::{BatchLimits, Filling},
    queue::{self, Queue},
    task::{Outcome, Ready, Task, fields_or_error, passed_on},
    worker::Worker,
};
use crate::{
    Error, ErrorKind, Result,
    output::{Done, LINE, Progress, Shard, Sink},
    prompt::{Encoder, Line, Lines, RowError},
};
use serde_json::{Map, Value};
use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Hears how the work at a batch goes on, and stops it when one of `stops` is set.
pub fn watching<'a>(
    progress: &'a Progress,
    batch: u64,
    stops: &'a [&AtomicBool],
) -> impl Fn(f64) -> ControlFlow<()> + Sync + 'a {
    move |tokens| {
        progress.advance(batch, tokens);
        unless_stopped(stops)
    }
}

/// Goes on unless one of `stops` is set.
pub fn unless_stopped(stops: &[&AtomicBool]) -> ControlFlow<()> {
    let stop = stops.iter().any(|stop| stop.load(Ordering::Relaxed));
    if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// A run: where rows come from and go to.
pub struct Run<'a, T> {
    /// They share the batches; results do not depend on which of them computes what. At least one.
    pub workers: Vec<Worker<'a, T>>,
    pub encoder: &'a Encoder,
    pub limits: BatchLimits,
    /// The rows that are this run's; `None`: all.
    pub shard: Option<Shard>,
    pub progress: &'a Progress,
    /// Set from outside to stop the run.
    pub stop: &'a AtomicBool,
}

/// A row on its way: what the output repeats of the input, and its tokens if it has any.
pub(super) struct Pending {
    line: u64,
    id: Value,
    label: Option<Value>,
    meta: Option<Value>,
    pub tokens: std::result::Result<(Arc<[u32]>, bool), RowError>,
}

impl Pending {
    fn ready(&self) -> Option<Ready<'_>> {
        let (token_ids, truncated) = self.tokens.as_ref().ok()?;
        Some(Ready { id: &self.id, token_ids, truncated: *truncated })
    }
}

impl<T: Task> Run<'_, T> {
    /// Passes `lines` through the workers into `sink`, but at most `limit` rows, those of other shards included. Rows that an
    /// earlier run wrote are checked off.
    ///
    /// # Errors
    /// Reading, writing, an output that does not belong to this input, or an interruption: rows that are complete by
    /// then are in the sink.
    pub fn pass(
        &self,
        lines: &mut Lines,
        limit: u64,
        sink: &mut Sink,
        warn: &(dyn Fn(&str) + Sync),
    ) -> Result<Done> {
        let mut passing = Passing {
            run: self,
            lines,
            limit,
            sink,
            warn,
            filling: Filling::of_task(self.limits, self.workers[0].task),
            rest: Vec::new(),
            resuming: true,
            summary: Done::default(),
        };
        queue::pass(&mut passing, &self.workers, |worker, batch: &Batch, unwanted| {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::stopped());
            }
            let stops = [self.stop, unwanted];
            let observer = watching(self.progress, batch.number, &stops);
            let rows: Vec<Ready<'_>> = batch.rows.iter().filter_map(Pending::ready).collect();
            worker.outcomes(&rows, warn, &observer)
        })?;
        let Passing { summary, .. } = passing;
        match sink.next_written()? {
            None => Ok(summary),
            Some(extra) => Err(Error::mismatch(format!(
                "the output has a row with id {} beyond the last row of the input; --overwrite starts again",
                extra["id"]
            ))),
        }
    }

    /// The next row that is this run's, counted with those of other shards before it; at most `limit` are read.
    ///
    /// # Errors
    /// Reading, or an interruption.
    pub(super) fn next(
        &self,
        lines: &mut Lines,
        limit: u64,
        read: &mut Done,
        warn: &(dyn Fn(&str) + Sync),
    ) -> Result<Option<Line>> {
        while read.rows_of_all < limit {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::stopped());
            }
            let Some(line) = lines.next().transpose()? else { break };
            read.rows_of_all += 1;
            lines.take_warnings().iter().for_each(|warning| warn(warning));
            if self.shard.is_none_or(|shard| shard.holds(&line.id)) {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    pub(super) fn encode(&self, line: Line, warn: &(dyn Fn(&str) + Sync)) -> Pending {
        let encoded = line.content.and_then(|content| {
            let encoded = self.encoder.encode_before(content.as_ref(), self.workers[0].task.following());
            encoded.map_err(|error| error.at(&line.place))
        });
        self.encoder.take_warnings().iter().for_each(|warning| warn(warning));
        let tokens = encoded.and_then(|encoded| {
            self.limits.check(encoded.token_ids.len())?;
            Ok((encoded.token_ids.into(), encoded.truncated))
        });
        Pending { line: line.number, id: line.id, label: line.label, meta: line.meta, tokens }
    }
}

/// Rows that go through the layers together.
struct Batch {
    /// As progress counts it.
    number: u64,
    rows: Vec<Pending>,
}

/// Reads rows and makes batches of them; writes what comes of these.
struct Passing<'r, 'a, T> {
    run: &'r Run<'a, T>,
    lines: &'r mut Lines,
    limit: u64,
    sink: &'r mut Sink,
    warn: &'r (dyn Fn(&str) + Sync),
    filling: Filling<'r>,
    /// Rows of the next batch.
    rest: Vec<Pending>,
    /// Rows that are read may be there already.
    resuming: bool,
    summary: Done,
}

impl<T: Task> Queue<Vec<Outcome>> for Passing<'_, '_, T> {
    type Job = Batch;

    fn next(&mut self) -> Result<Option<Batch>> {
        while let Some(pending) = self.next_row()? {
            if self.filling.add(pending.tokens.as_ref().ok().map(|(ids, _)| ids)) {
                let full = std::mem::replace(&mut self.rest, vec![pending]);
                return Ok(Some(self.batch(full)));
            }
            self.rest.push(pending);
        }
        let rest = std::mem::take(&mut self.rest);
        Ok((!rest.is_empty()).then(|| self.batch(rest)))
    }

    /// Appends the rows of a batch.
    fn take(&mut self, batch: Batch, outcomes: Vec<Outcome>) -> Result<()> {
        let mut outcomes = outcomes.into_iter();
        let mut rows = Vec::with_capacity(batch.rows.len());
        for Pending { line, id, label, meta, tokens } in batch.rows {
            let outcome = tokens.and_then(|_| outcomes.next().expect("an outcome for every row"));
            if let Err(error) = &outcome {
                self.summary.note_error(error.message.clone());
            }
            rows.push(output_row(self.run.shard.map(|_| line), id, outcome, label, meta));
        }
        self.summary.rows += rows.len() as u64;
        if !self.sink.append(&rows)? {
            return Err(Error::new(ErrorKind::Interrupted, "the reader of standard output has gone"));
        }
        self.run.progress.batch_done();
        Ok(())
    }
}

impl<T: Task> Passing<'_, '_, T> {
    /// The next row that is this run's and not there yet.
    fn next_row(&mut self) -> Result<Option<Pending>> {
        let Self { run, lines, sink, warn, summary, .. } = self;
        while let Some(line) = run.next(lines, self.limit, summary, warn)? {
            if self.resuming {
                if let Some(written) = sink.next_written()? {
                    check_off(&line, &written["id"])?;
                    summary.rows += 1;
                    if let Some(error) = written.get("error") {
                        summary.note_error(error["message"].as_str().unwrap_or_default().to_owned());
                    }
                    let tokens = written.get("n_tokens").and_then(Value::as_u64).unwrap_or(0) as usize;
                    let tokens = tokens + run.workers[0].task.new_tokens();
                    run.workers.iter().for_each(|worker| worker.note_written(&written, tokens));
                    run.progress.resumed(summary.rows);
                    continue;
                }
                self.resuming = false;
            }
            return Ok(Some(run.encode(line, warn)));
        }
        Ok(None)
    }

    fn batch(&self, rows: Vec<Pending>) -> Batch {
        let new_tokens = self.run.workers[0].task.new_tokens();
        let tokens = |row: Ready<'_>| (row.token_ids.len() + new_tokens) as u64;
        let tokens = rows.iter().filter_map(Pending::ready).map(tokens).sum();
        Batch { number: self.run.progress.batch(rows.len() as u64, tokens), rows }
    }
}

fn check_off(line: &Line, written: &Value) -> Result<()> {
    if line.id == *written {
        return Ok(());
    }
    Err(Error::mismatch(format!(
        "the output does not belong to this input: line {} has id {}, the output has {written} in its place; \
         --overwrite starts again",
        line.number, line.id
    )))
}

/// In a shard the line's number; `id`, then the outcome, then what is passed through.
fn output_row(
    line: Option<u64>,
    id: Value,
    outcome: Outcome,
    label: Option<Value>,
    meta: Option<Value>,
) -> Value {
    let mut row = Map::new();
    row.extend(line.map(|line| (LINE.into(), line.into())));
    row.insert("id".into(), id);
    row.extend(fields_or_error(outcome));
    row.extend(passed_on(label, meta));
    Value::Object(row)
}
