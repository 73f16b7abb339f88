//! `tuco score`: a TuCo for every row of input, in order, whatever happens on the way.

use crate::{
    Error, ErrorKind, Result,
    backend::Backend,
    engine::{Engine, RowCount, Score},
    metrics,
    model::PairWeights,
    output::{Progress, Sink},
    prompt::{Encoder, Line, Lines, RowError},
    twin::Branch,
};
use serde_json::{Map, Value, json};
use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// What the output rows hold besides the score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    pub layers: bool,
    pub output_co: bool,
}

/// How many prompts go through the layers together. Results do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    pub prompts: usize,
    /// Tokens, a beginning that prompts share counted once.
    pub tokens: usize,
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub rows: u64,
    /// Rows that could not be scored, those of earlier runs included.
    pub errors: u64,
    /// The message of the first of them.
    pub first_error: Option<String>,
}

/// A run: where rows come from and go to.
pub struct Run<'a, B: Backend, W> {
    pub engine: Engine<'a, B, W>,
    pub encoder: &'a Encoder,
    pub columns: Columns,
    pub limits: BatchLimits,
    pub progress: &'a Progress,
    /// Set from outside to stop the run.
    pub stop: &'a AtomicBool,
}

/// A row on its way: what the output repeats of the input, and its tokens if it has any.
struct Pending {
    id: Value,
    label: Option<Value>,
    meta: Option<Value>,
    tokens: std::result::Result<(Arc<[u32]>, bool), Failure>,
}

/// Why a row has no score: `error.type` and `error.message` of its output.
struct Failure {
    kind: &'static str,
    message: String,
}

impl From<RowError> for Failure {
    fn from(error: RowError) -> Self {
        Self { kind: error.kind.as_str(), message: error.message }
    }
}

impl<B: Backend, W: PairWeights> Run<'_, B, W> {
    /// Scores `lines` into `sink`, but at most `limit` rows; the threads of `pool` compute. Rows that an earlier run
    /// wrote are checked off.
    ///
    /// # Errors
    /// Reading, writing, an output that does not belong to this input, or an interruption: rows that are complete by
    /// then are in the sink.
    pub fn score(
        &self,
        lines: &mut Lines,
        limit: u64,
        sink: &mut Sink,
        pool: &rayon::ThreadPool,
        warn: &(dyn Fn(&str) + Sync),
    ) -> Result<Summary> {
        let mut summary = Summary::default();
        let mut batch: Vec<Pending> = Vec::new();
        let mut count = self.engine.row_count();
        let mut resuming = true;
        while summary.rows + (batch.len() as u64) < limit {
            let Some(line) = lines.next() else { break };
            let line = line?;
            lines.take_warnings().iter().for_each(|warning| warn(warning));
            if resuming {
                if let Some(written) = sink.next_written()? {
                    self.check_off(&line, &written.id)?;
                    summary.rows += 1;
                    summary.errors += u64::from(written.is_error);
                    self.progress.resumed(summary.rows);
                    continue;
                }
                resuming = false;
            }
            let pending = self.encode(line);
            self.encoder.take_warnings().iter().for_each(|warning| warn(warning));
            if !batch.is_empty() && self.is_full(&batch, &count, &pending) {
                self.flush(&mut batch, sink, pool, &mut summary, warn)?;
                count.clear();
            }
            if let Ok((ids, _)) = &pending.tokens {
                count.add(ids);
            }
            batch.push(pending);
        }
        self.flush(&mut batch, sink, pool, &mut summary, warn)?;
        match sink.next_written()? {
            None => Ok(summary),
            Some(extra) => Err(Error::mismatch(format!(
                "the output has a row with id {} beyond the last row of the input; --overwrite starts again",
                extra.id
            ))),
        }
    }

    /// Whether a batch has no room for one row more.
    fn is_full(&self, batch: &[Pending], count: &RowCount<'_>, next: &Pending) -> bool {
        batch.len() == self.limits.prompts
            || next.tokens.as_ref().is_ok_and(|(ids, _)| count.rows_with(ids) > self.limits.tokens)
    }

    fn check_off(&self, line: &Line, written: &Value) -> Result<()> {
        if line.id == *written {
            return Ok(());
        }
        Err(Error::mismatch(format!(
            "the output does not belong to this input: line {} has id {}, the output has {written} in its place; \
             --overwrite starts again",
            line.number, line.id
        )))
    }

    fn encode(&self, line: Line) -> Pending {
        let encoded = line.content.and_then(|content| self.encoder.encode(&content));
        let tokens = encoded.map(|encoded| (encoded.token_ids.into(), encoded.truncated));
        let tokens = tokens.map_err(Failure::from);
        Pending { id: line.id, label: line.label, meta: line.meta, tokens }
    }

    /// Scores a batch and appends its rows.
    fn flush(
        &self,
        batch: &mut Vec<Pending>,
        sink: &mut Sink,
        pool: &rayon::ThreadPool,
        summary: &mut Summary,
        warn: &(dyn Fn(&str) + Sync),
    ) -> Result<()> {
        let prompts: Vec<&[u32]> =
            batch.iter().filter_map(|row| row.tokens.as_ref().ok()).map(|(ids, _)| &**ids).collect();
        self.progress.batch(batch.len() as u64, prompts.iter().map(|prompt| prompt.len() as u64).sum());
        let passes = if self.columns.output_co { 2.0 } else { 1.0 };
        let observer = |tokens: f64| {
            self.progress.advance(tokens / passes);
            if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let engine = &self.engine;
        let scores = pool.install(|| in_parts(&prompts, warn, &|part| engine.score(part, &observer)))?;
        let base = |part: &[&[u32]]| engine.plain(Branch::Pt, part, &observer);
        let base_hidden = match self.columns.output_co {
            true => Some(pool.install(|| in_parts(&prompts, warn, &base))?),
            false => None,
        };
        let mut scored = scores.iter().enumerate();
        let mut rows = Vec::with_capacity(batch.len());
        for pending in batch.drain(..) {
            let outcome = pending.tokens.and_then(|(ids, truncated)| {
                let (index, score) = scored.next().expect("a score for every prompt");
                let output_co =
                    base_hidden.as_ref().map(|hidden| metrics::output_co(&hidden[index], &score.last_hidden));
                score_fields(score, ids.len(), truncated, self.columns.layers, output_co)
            });
            if let Err(error) = &outcome {
                summary.errors += 1;
                summary.first_error.get_or_insert_with(|| error.message.clone());
            }
            rows.push(output_row(pending.id, outcome, pending.label, pending.meta));
        }
        summary.rows += rows.len() as u64;
        if !sink.append(&rows)? {
            return Err(Error::new(ErrorKind::Interrupted, "the reader of standard output has gone"));
        }
        self.progress.batch_done();
        Ok(())
    }
}

/// What a pass gives for each prompt.
type Pass<'a, T> = &'a dyn Fn(&[&[u32]]) -> Result<Vec<T>>;

/// Passes all prompts, or halves of them where a device's memory does not hold them together.
fn in_parts<T>(prompts: &[&[u32]], warn: &(dyn Fn(&str) + Sync), pass: Pass<'_, T>) -> Result<Vec<T>> {
    match pass(prompts) {
        Err(error) if error.kind == ErrorKind::OutOfMemory && prompts.len() > 1 => {
            warn(&format!(
                "{error}; going on with half as many prompts at once (--max-batch-tokens sets fewer)"
            ));
            let (first, second) = prompts.split_at(prompts.len() / 2);
            let mut passed = in_parts(first, warn, pass)?;
            passed.extend(in_parts(second, warn, pass)?);
            Ok(passed)
        }
        outcome => outcome,
    }
}

/// The fields of a scored row. A number that is not finite is an error, never a score.
fn score_fields(
    score: &Score,
    n_tokens: usize,
    truncated: bool,
    layers: bool,
    output_co: Option<f64>,
) -> std::result::Result<Map<String, Value>, Failure> {
    let last = score.running.last().copied().unwrap_or_default();
    let numbers = [last.ptc, last.ftc, output_co.unwrap_or(0.0)];
    if numbers.iter().any(|number| !number.is_finite()) {
        let message = format!(
            "the hidden state overflowed: |P| is {}, |F| is {}; the weights are finite but too large",
            last.ptc, last.ftc
        );
        return Err(Failure { kind: "not_finite", message });
    }
    let mut fields = Map::new();
    fields.insert("tuco".into(), json!(metrics::tuco(last)));
    fields.insert("ptc_l1".into(), json!(last.ptc));
    fields.insert("ftc_l1".into(), json!(last.ftc));
    fields.insert("beta".into(), json!(metrics::beta(&score.running)));
    fields.insert("n_tokens".into(), json!(n_tokens));
    if truncated {
        fields.insert("truncated".into(), json!(true));
    }
    if layers {
        fields.insert("beta_per_layer".into(), json!(metrics::beta_per_layer(&score.running)));
    }
    if let Some(output_co) = output_co {
        fields.insert("output_co".into(), json!(output_co));
    }
    Ok(fields)
}

/// `id`, then the score or the error, then what is passed through.
fn output_row(
    id: Value,
    outcome: std::result::Result<Map<String, Value>, Failure>,
    label: Option<Value>,
    meta: Option<Value>,
) -> Value {
    let mut row = Map::new();
    row.insert("id".into(), id);
    match outcome {
        Ok(fields) => row.extend(fields),
        Err(error) => {
            row.insert("error".into(), json!({ "type": error.kind, "message": error.message }));
        }
    }
    row.extend([("label", label), ("meta", meta)].into_iter().filter_map(|(k, v)| Some((k.into(), v?))));
    Value::Object(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_does_not_fit_is_passed_in_halves() {
        let prompts: Vec<Vec<u32>> = (0..7).map(|i| vec![i]).collect();
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let at_most = |most: usize| {
            move |part: &[&[u32]]| match part.len() <= most {
                true => Ok(part.iter().map(|prompt| prompt[0]).collect::<Vec<u32>>()),
                false => Err(Error::new(ErrorKind::OutOfMemory, "too much")),
            }
        };
        assert_eq!(in_parts(&prompts, &|_| (), &at_most(2)).unwrap(), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(in_parts(&prompts, &|_| (), &at_most(0)).unwrap_err().kind, ErrorKind::OutOfMemory);
    }
}
