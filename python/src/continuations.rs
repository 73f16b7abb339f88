//! What follows prompts.

use crate::inputs::{Prompts, text_of};
use pyo3::{prelude::*, types::PyString};
use tuco::{
    Session,
    engine::Continued,
    prompt::{RowError, RowErrorKind},
};

/// The tokens of what follows a prompt.
pub fn continuation_of(
    session: &Session,
    index: usize,
    given: &Bound<'_, PyAny>,
) -> PyResult<Result<Vec<u32>, RowError>> {
    let Ok(text) = given.cast::<PyString>() else {
        return Prompts::ids(given, &format!("continuations[{index}]"));
    };
    Ok(text_of(text).and_then(|text| match text.is_empty() {
        true => Ok(Vec::new()),
        false => session.encoder().continuation(&text),
    }))
}

pub fn of_continuation(error: RowError) -> RowError {
    RowError { message: format!("its continuation: {}", error.message), ..error }
}

/// Whether a prompt and what follows it, all but its last token, pass the model.
pub fn fits(session: &Session, whole: &[u32], n_prompt: usize) -> Result<(), RowError> {
    let (passing, most) =
        (Continued { token_ids: whole, n_prompt }.passing().len(), session.spec().context_length);
    if passing > most {
        let message = format!("{} tokens with the prompt, expected at most {}", whole.len(), most + 1);
        return Err(RowError::new(RowErrorKind::TooLong, message));
    }
    session.encoder().check_range(&whole[n_prompt..])
}
