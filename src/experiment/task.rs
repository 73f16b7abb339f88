//! What is done with rows, and what comes of each.

use crate::{
    Result,
    engine::{Observer, RowCount},
    prompt::RowError,
};
use serde_json::{Map, Value};

/// What is done with each row.
pub trait Task: Sync {
    /// Counts the rows that the prompts of a batch take together.
    fn row_count(&self) -> RowCount<'_>;

    /// Tokens that come to each prompt.
    fn new_tokens(&self) -> usize {
        0
    }

    /// Most tokens that follow a prompt in the model's context.
    fn following(&self) -> usize {
        0
    }

    /// What the output has of each row, in order. The observer hears of each row's tokens as they pass.
    ///
    /// # Errors
    /// Those that end the run; what is wrong with one row is its own.
    fn compute(&self, rows: &[Ready<'_>], observer: Observer<'_>) -> Result<Vec<Outcome>>;
}

/// A row that is to be computed.
#[derive(Debug, Clone, Copy)]
pub struct Ready<'a> {
    pub id: &'a Value,
    pub token_ids: &'a [u32],
    /// Tokens were left out.
    pub truncated: bool,
}

/// The fields of a row's output, or why it has none.
pub type Outcome = std::result::Result<Map<String, Value>, RowError>;

/// The fields of an outcome, or `error`.
pub fn fields_or_error(outcome: Outcome) -> Map<String, Value> {
    let error = |error: RowError| Map::from_iter([("error".to_owned(), error.to_json())]);
    outcome.unwrap_or_else(error)
}

/// The fields of an output row that are the input's, after those of its outcome.
pub fn passed_on(label: Option<Value>, meta: Option<Value>) -> impl Iterator<Item = (String, Value)> {
    [("label", label), ("meta", meta)].into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)))
}
