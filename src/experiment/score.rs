//! `tuco score`: a TuCo for every row of input.

use super::task::{Outcome, Ready, Task};
use crate::{
    Result,
    engine::{AnyEngine, Observer, RowCount, Score},
    metrics,
    prompt::RowError,
    twin::Branch,
};
use serde_json::{Map, json};

/// What the output rows hold besides the score.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Columns {
    pub layers: bool,
    pub output_co: bool,
}

/// Scores rows.
pub struct Scoring<'a> {
    pub engine: &'a dyn AnyEngine,
    pub columns: Columns,
}

impl<'a> Scoring<'a> {
    /// One for each device.
    pub fn of_each(engines: &[&'a dyn AnyEngine], columns: Columns) -> Vec<Self> {
        engines.iter().map(|engine| Self { engine: *engine, columns }).collect()
    }
}

impl Task for Scoring<'_> {
    fn row_count(&self) -> RowCount<'_> {
        self.engine.row_count()
    }

    fn compute(&self, rows: &[Ready<'_>], observer: Observer<'_>) -> Result<Vec<Outcome>> {
        score(self.engine, self.columns, rows, observer)
    }
}

/// Scores rows that go together.
///
/// # Errors
/// See [`Engine::score`](crate::engine::Engine::score).
pub fn score(
    engine: &dyn AnyEngine,
    columns: Columns,
    rows: &[Ready<'_>],
    observer: Observer<'_>,
) -> Result<Vec<Outcome>> {
    let Columns { layers, output_co } = columns;
    let prompts: Vec<&[u32]> = rows.iter().map(|row| row.token_ids).collect();
    let passes = if output_co { 2.0 } else { 1.0 };
    let observer = |tokens: f64| observer(tokens / passes);
    let scores = engine.score(&prompts, &observer)?;
    let base = output_co.then(|| engine.plain(Branch::Pt, &prompts, &observer)).transpose()?;
    let fields = |(index, (row, score)): (usize, (&Ready<'_>, &Score))| {
        let output_co = base.as_ref().map(|base| metrics::output_co(&base[index], &score.last_hidden));
        score_fields(score, row.token_ids.len(), row.truncated, layers, output_co)
    };
    Ok(rows.iter().zip(&scores).enumerate().map(fields).collect())
}

/// The fields of a scored row. A number that is not finite is an error, never a score.
fn score_fields(
    score: &Score,
    n_tokens: usize,
    truncated: bool,
    layers: bool,
    output_co: Option<f64>,
) -> Outcome {
    score.check_finite().map_err(RowError::not_finite)?;
    if output_co.is_some_and(|output_co| !output_co.is_finite()) {
        return Err(RowError::not_finite("the base's own hidden state overflowed"));
    }
    let last = score.last();
    let mut fields = Map::new();
    fields.insert("tuco".into(), json!(score.tuco()));
    fields.insert("ptc_l1".into(), json!(last.ptc));
    fields.insert("ftc_l1".into(), json!(last.ftc));
    fields.insert("beta".into(), json!(score.beta()));
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
