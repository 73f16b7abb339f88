//! What `Pair.generate` takes and gives.

use crate::{
    errors::{Raise, usage},
    inputs::{check_count, is_int, items_of},
};
use numpy::{PyArray1, ToPyArray};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyString, PyTuple},
};
use serde_json::{Value, json};
use tuco::{
    Session,
    engine::{Generation, Sampling},
    session::{Completing, Text},
};

/// What follows a prompt.
#[pyclass(module = "tuco", frozen, get_all)]
pub struct Completion {
    /// Without special tokens and stop text; `None` without a tokenizer.
    text: Option<String>,
    /// uint32, with the token that ended it.
    token_ids: Py<PyArray1<u32>>,
    /// `stop` or `length`.
    finish_reason: String,
    /// The stop text that ended it.
    stop: Option<String>,
    /// TuCo of the hidden state that each token was chosen from; `None` if not asked for.
    tuco: Option<Py<PyArray1<f64>>>,
    /// Tokens of the prompt.
    n_prompt: usize,
    /// Tokens of the prompt were left out.
    truncated: bool,
}

#[pymethods]
impl Completion {
    #[new]
    #[pyo3(signature = (text, token_ids, finish_reason, stop, tuco, n_prompt, truncated))]
    fn new(
        text: Option<String>,
        token_ids: Py<PyArray1<u32>>,
        finish_reason: String,
        stop: Option<String>,
        tuco: Option<Py<PyArray1<f64>>>,
        n_prompt: usize,
        truncated: bool,
    ) -> Self {
        Self { text, token_ids, finish_reason, stop, tuco, n_prompt, truncated }
    }

    /// What it is made of again in another process.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        fields_of(
            slf.as_any(),
            &["text", "token_ids", "finish_reason", "stop", "tuco", "n_prompt", "truncated"],
        )
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let text = self.text.as_ref().map(|text| PyString::new(py, text).repr()).transpose()?;
        let text = text.map_or_else(|| "without text".to_owned(), |text| text.to_string());
        Ok(format!("<tuco.Completion {text}, {}>", self.finish_reason))
    }
}

impl Completion {
    pub fn of(py: Python<'_>, text: Text, n_prompt: usize, truncated: bool) -> Self {
        let finish_reason = text.finish_reason().to_owned();
        let Text { text, stop, completion } = text;
        let tuco = (!completion.tuco.is_empty()).then(|| completion.tuco.to_pyarray(py).unbind());
        let token_ids = completion.token_ids.to_pyarray(py).unbind();
        Self { text, token_ids, finish_reason, stop, tuco, n_prompt, truncated }
    }
}

/// What `__reduce__` says of an object that its class makes of its fields.
pub fn fields_of<'py>(object: &Bound<'py, PyAny>, names: &[&str]) -> PyResult<Bound<'py, PyTuple>> {
    let fields = names.iter().map(|name| object.getattr(*name)).collect::<PyResult<Vec<_>>>()?;
    (object.get_type(), PyTuple::new(object.py(), fields)?).into_pyobject(object.py())
}

/// The arguments of `Pair.generate` besides the prompts.
pub struct Asked<'a, 'py> {
    pub alpha: f64,
    pub max_new_tokens: i64,
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: Option<i64>,
    pub n: i64,
    pub seed: u64,
    pub stop: Option<&'a Bound<'py, PyAny>>,
    pub ignore_eos: bool,
    pub tuco: bool,
}

impl Asked<'_, '_> {
    /// What the library is asked for.
    pub fn completing(&self, py: Python<'_>, session: &Session) -> PyResult<Completing> {
        let count = |name: &str, value: i64| {
            let wrong = || usage(py, &format!("{name} is {value}, expected a number from 1 on"));
            usize::try_from(value).ok().filter(|value| *value > 0).ok_or_else(wrong)
        };
        let top_k = self.top_k.map(|top_k| count("top_k", top_k)).transpose()?;
        let generation = Generation {
            alpha: self.alpha,
            max_new_tokens: count("max_new_tokens", self.max_new_tokens)?,
            samples: count("n", self.n)?,
            sampling: Sampling::new(self.temperature, top_k, self.top_p).raise(py)?,
            stop_tokens: Vec::new(),
            tuco: self.tuco,
        };
        let mut completing = Completing { generation, stop: self.stop_texts()?, seed: self.seed };
        completing.check(session.encoder()).raise(py)?;
        if !self.ignore_eos {
            completing.generation.stop_tokens = session.pair().stop_tokens(self.alpha).raise(py)?;
        }
        Ok(completing)
    }

    fn stop_texts(&self) -> PyResult<Vec<String>> {
        let Some(stop) = self.stop else { return Ok(Vec::new()) };
        if let Ok(text) = stop.extract::<String>() {
            return Ok(vec![text]);
        }
        stop.extract().map_err(|_| PyTypeError::new_err("stop must be text or a list of texts"))
    }
}

/// What random choices depend on besides the seed: as given, or the numbers from 1 on, as lines of a file are numbered.
pub fn ids(given: Option<&Bound<'_, PyAny>>, prompts: usize) -> PyResult<Vec<Value>> {
    let Some(given) = given else { return Ok((1..=prompts).map(Value::from).collect()) };
    let given = items_of(given, "ids", "texts or integers")?;
    check_count("ids", given.len(), prompts)?;
    let id_of = |(index, id): (usize, Bound<'_, PyAny>)| {
        if let Ok(text) = id.extract::<String>() {
            return Ok(json!(text));
        }
        if !is_int(&id) {
            return Err(PyTypeError::new_err(format!("ids[{index}] is {id}, expected text or an integer")));
        }
        // As in rows of files: integers that 64 bits hold, signed or not.
        id.extract::<i64>().map(Value::from).or_else(|_| id.extract::<u64>().map(Value::from)).map_err(|_| {
            PyValueError::new_err(format!("ids[{index}] is {id}, expected an integer of 64 bits"))
        })
    };
    given.into_iter().enumerate().map(id_of).collect()
}
