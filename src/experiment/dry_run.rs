//! What a run would do: all rows are read and tokenized, and nothing is computed.

use super::{filling::Filling, rows::Run, task::Task};
use crate::{Result, output::Done, prompt::Lines};
use serde_json::Value;
use std::fmt;

/// What a run would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub done: Done,
    /// Of all prompts, and of the longest.
    pub tokens: u64,
    pub longest: usize,
    pub batches: u64,
    /// The id of the first prompt that has tokens, these, and what they say where there is a tokenizer.
    pub first: Option<(Value, Vec<u32>, Option<String>)>,
}

/// Of a longer first prompt only as many tokens of its beginning and its end are shown.
const SHOWN: usize = 128;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done: Done { rows, errors, .. }, tokens, longest, batches, first } = self;
        writeln!(f, "| rows | errors | tokens | longest prompt | batches |\n|---:|---:|---:|---:|---:|")?;
        writeln!(f, "| {rows} | {errors} | {tokens} | {longest} | {batches} |")?;
        let Some((id, ids, text)) = first else { return Ok(()) };
        writeln!(f, "\nThe first prompt, id {id}, {} tokens:", ids.len())?;
        if let Some(text) = text {
            writeln!(f, "\n{text}")?;
        }
        match ids.len() > 2 * SHOWN {
            true => writeln!(f, "\n{:?} … {:?}", &ids[..SHOWN], &ids[ids.len() - SHOWN..]),
            false => writeln!(f, "\n{ids:?}"),
        }
    }
}

impl<T: Task> Run<'_, T> {
    /// Goes through `lines`, at most `limit` of them, as [`Run::pass`] does, and only counts.
    ///
    /// # Errors
    /// Reading, or an interruption.
    pub fn plan(&self, lines: &mut Lines, limit: u64, warn: &(dyn Fn(&str) + Sync)) -> Result<Plan> {
        let mut plan = Plan::default();
        let mut filling = Filling::of_task(self.limits, self.workers[0].task);
        while let Some(line) = self.next(lines, limit, &mut plan.done, warn)? {
            let id = line.id.clone();
            let tokens = self.encode(line, warn).tokens;
            if let (None, Ok((ids, _))) = (&plan.first, &tokens) {
                plan.first = Some((id, ids.to_vec(), self.encoder.spelled(ids)));
            }
            plan.done.rows += 1;
            plan.batches += u64::from(filling.add(tokens.as_ref().ok().map(|(ids, _)| ids)));
            let length = tokens.as_ref().map_or(0, |(ids, _)| ids.len());
            plan.tokens += length as u64;
            plan.longest = plan.longest.max(length);
            if let Err(failure) = tokens {
                plan.done.note_error(failure.message);
            }
            let batch = self.progress.batch(1, length as u64);
            self.progress.advance(batch, length as f64);
            self.progress.batch_done();
        }
        plan.batches += u64::from(plan.done.rows > 0);
        Ok(plan)
    }
}
