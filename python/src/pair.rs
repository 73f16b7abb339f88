//! The class `Pair`.

use crate::{
    completion::{self, Completion},
    errors::{Raise, row_exception, usage},
    inputs::Prompts,
    running::{Bar, run},
    scores::{Asked, Outcome, Scored, Scores},
    trace::Trace,
};
use numpy::{PyArray1, PyArrayMethods, ToPyArray};
use pyo3::{
    exceptions::{PyTypeError, PyUserWarning},
    prelude::*,
    types::PyList,
};
use std::{
    ffi::CString,
    sync::{Arc, PoisonError, RwLock},
};
use tuco::{
    Session, SessionOptions,
    engine::{Continued, Prompt, Tokens, check_alphas},
    metrics,
    model::PairWeights,
    prompt::{ContentRef, Encoded, RowError},
    session::Text,
    twin::Branch,
};

/// A pre-trained model and the model fine-tuned from it, open and ready. `tuco.Pair` adds `from_pretrained`.
#[pyclass(module = "tuco._native", frozen, subclass)]
pub struct Pair {
    /// `None` when closed.
    session: RwLock<Option<Arc<Session>>>,
}

/// Prompts that became token ids, and those that did not.
type Rows = Vec<Result<Encoded, RowError>>;

/// Of the tokens of a continuation: the logarithm of how likely each is, and whether it is the likeliest.
type Likelihoods<'py> = (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<bool>>);

impl Pair {
    fn session(&self, py: Python<'_>) -> PyResult<Arc<Session>> {
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner).clone();
        session.ok_or_else(|| usage(py, "the pair is closed"))
    }

    /// The token ids of all prompts.
    fn encoded(py: Python<'_>, session: &Session, prompts: &Bound<'_, PyAny>) -> PyResult<Rows> {
        let prompts = Prompts::read(prompts)?;
        let rows = prompts.rows();
        let good: Vec<ContentRef<'_>> = rows.iter().filter_map(|row| row.as_ref().ok()).copied().collect();
        let mut encoded = py.detach(|| session.encode(&good)).raise(py)?.into_iter();
        let rows = rows.iter().map(|row| match row {
            Ok(_) => encoded.next().expect("as many as were given"),
            Err(error) => Err(error.clone()),
        });
        Ok(rows.collect())
    }

    /// The token ids of prompts that must all be good.
    fn all_encoded(py: Python<'_>, session: &Session, prompts: &Bound<'_, PyAny>) -> PyResult<Vec<Encoded>> {
        let rows = Self::encoded(py, session, prompts)?.into_iter().enumerate();
        rows.map(|(index, row)| row.map_err(|error| row_exception(py, index, &error))).collect()
    }

    /// Tells what the library has to tell as Python warnings.
    fn warn(py: Python<'_>, session: &Session) -> PyResult<()> {
        for warning in session.take_warnings() {
            let text = CString::new(warning.replace('\0', " "))?;
            PyErr::warn(py, &py.get_type::<PyUserWarning>(), &text, 2)?;
        }
        Ok(())
    }
}

/// The exception for the first prompt that has no outcome; `others` is what the others have, which is not lost.
fn row_exception_with<'py>(
    py: Python<'py>,
    (index, error): (usize, &RowError),
    name: &str,
    others: impl IntoPyObject<'py>,
) -> PyErr {
    let exception = row_exception(py, index, error);
    match exception.value(py).setattr(name, others) {
        Ok(()) => exception,
        Err(error) => error,
    }
}

/// What all prompts have, or the exception for the first that has nothing, with what the others have: `None` in its place.
fn all_or_first_error<'py, T>(
    py: Python<'py>,
    name: &str,
    outcomes: impl Iterator<Item = Result<T, RowError>>,
) -> PyResult<Vec<T>>
where
    Vec<Option<T>>: IntoPyObject<'py>,
{
    let (mut found, mut first_error) = (Vec::new(), None);
    for (index, outcome) in outcomes.enumerate() {
        match outcome {
            Ok(of_prompt) => found.push(Some(of_prompt)),
            Err(error) => {
                first_error.get_or_insert((index, error));
                found.push(None);
            }
        }
    }
    match &first_error {
        Some((index, error)) => Err(row_exception_with(py, (*index, error), name, found)),
        None => Ok(found.into_iter().flatten().collect()),
    }
}

fn tokens(encoded: &[&[u32]]) -> u64 {
    encoded.iter().map(|ids| ids.len() as u64).sum()
}

#[pymethods]
impl Pair {
    #[new]
    fn new(py: Python<'_>, options: Vec<(String, String)>) -> PyResult<Self> {
        let options = options.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let options = SessionOptions::parse(options).raise(py)?;
        let session = py.detach(|| Session::open(&options)).raise(py)?;
        Self::warn(py, &session)?;
        Ok(Self { session: RwLock::new(Some(Arc::new(session))) })
    }

    /// Gives back memory, threads and device. Passes that other threads have begun end first.
    fn close(&self, py: Python<'_>) {
        let session = self.session.write().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(session));
    }

    #[getter]
    fn closed(&self) -> bool {
        self.session.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) {
        self.close(py);
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err("a Pair cannot be pickled: open it in the process that uses it"))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let Ok(session) = self.session(py) else { return "<tuco.Pair, closed>".into() };
        let paths = session.pair().checkpoints.as_ref().map(|checkpoint| checkpoint.path.display());
        format!("<tuco.Pair of {} and {} on {}>", paths.pt, paths.ft, session.device())
    }

    /// What computes: `cpu`, `reference`, or a GPU.
    #[getter]
    fn device(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.session(py)?.device().to_owned())
    }

    #[getter]
    fn vocab_size(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.session(py)?.spec().vocab_size)
    }

    #[getter]
    fn hidden_size(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.session(py)?.spec().hidden_size)
    }

    #[getter]
    fn num_hidden_layers(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.session(py)?.spec().num_hidden_layers)
    }

    /// The most tokens that a prompt may have.
    #[getter]
    fn max_length(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.session(py)?.encoder().max_length())
    }

    /// The tokens that end a completion at alpha 1.
    #[getter]
    fn stop_token_ids(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        self.session(py)?.pair().stop_tokens(1.0).raise(py)
    }

    /// Differences between the two models that are allowed, a sentence each.
    #[getter]
    fn notices(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        Ok(self.session(py)?.pair().notices.clone())
    }

    /// The token ids of each prompt, uint32, as the other methods make them.
    fn encode<'py>(&self, py: Python<'py>, prompts: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        let session = self.session(py)?;
        let encoded = Self::all_encoded(py, &session, prompts)?;
        Self::warn(py, &session)?;
        PyList::new(py, encoded.iter().map(|encoded| encoded.token_ids.to_pyarray(py)))
    }

    /// The token ids of text in the middle of other text: no special tokens are added.
    fn encode_text<'py>(&self, py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let session = self.session(py)?;
        if text.is_empty() {
            return Ok(PyArray1::from_vec(py, Vec::new()));
        }
        let ids = session.encoder().continuation(text);
        Ok(PyArray1::from_vec(py, ids.map_err(|error| usage(py, &error.message))?))
    }

    /// What token ids say together.
    #[pyo3(signature = (token_ids, skip_special_tokens=false))]
    fn decode(
        &self,
        py: Python<'_>,
        token_ids: &Bound<'_, PyAny>,
        skip_special_tokens: bool,
    ) -> PyResult<String> {
        let session = self.session(py)?;
        let ids = Prompts::ids(token_ids)?;
        let encoder = session.encoder();
        let text = if skip_special_tokens { encoder.text_of_all(&ids) } else { encoder.spelled(&ids) };
        text.ok_or_else(|| usage(py, "the tuned model has no tokenizer that can be read"))
    }

    /// The text that the chat template makes of a conversation.
    #[pyo3(signature = (messages, add_generation_prompt=true))]
    fn apply_chat_template(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        add_generation_prompt: bool,
    ) -> PyResult<String> {
        let session = self.session(py)?;
        let prompts = Prompts::read(messages)?;
        match prompts.rows().as_slice() {
            [Ok(ContentRef::Messages(messages))] => session
                .encoder()
                .render(messages, add_generation_prompt)
                .map_err(|error| row_exception(py, 0, &error)),
            [Err(error)] => Err(row_exception(py, 0, error)),
            _ => {
                Err(PyTypeError::new_err("expected one conversation: a list of dicts with role and content"))
            }
        }
    }

    /// TuCo of every prompt.
    #[pyo3(signature = (prompts, layers=false, all_tokens=false, *, output_co=false, errors="raise", progress=None))]
    #[allow(clippy::too_many_arguments)]
    fn score(
        &self,
        py: Python<'_>,
        prompts: &Bound<'_, PyAny>,
        layers: bool,
        all_tokens: bool,
        output_co: bool,
        errors: &str,
        progress: Option<bool>,
    ) -> PyResult<Scores> {
        let raises = match errors {
            "raise" => true,
            "rows" => false,
            other => return Err(usage(py, &format!("errors is {other:?}, expected \"raise\" or \"rows\""))),
        };
        let session = self.session(py)?;
        let rows = Self::encoded(py, &session, prompts)?;
        if let Some((index, error)) =
            rows.iter().enumerate().find_map(|(i, row)| Some((i, row.as_ref().err()?)))
            && raises
        {
            return Err(row_exception(py, index, error));
        }
        let good: Vec<&[u32]> = rows.iter().flatten().map(|encoded| encoded.token_ids.as_slice()).collect();
        let passes = 1 + u64::from(output_co) + u64::from(all_tokens);
        let bar = Bar::new(py, progress, "score", passes * tokens(&good))?;
        let passed = run(py, bar, |observer| {
            let scores = session.score(&good, observer)?;
            let base = output_co.then(|| session.last_hidden(Branch::Pt, &good, observer)).transpose()?;
            let traces = all_tokens.then(|| session.trace(&good, observer)).transpose()?;
            Ok((scores, base, traces))
        })?;
        let (scores, base, traces) = passed.raise(py)?;
        Self::warn(py, &session)?;
        let mut scores = scores.into_iter();
        let mut base = base.into_iter().flatten();
        let mut traces = traces.into_iter().flatten();
        let mut scored = |encoded: Encoded| -> Outcome {
            // Of each the next, whatever the others are.
            let (score, base, trace) = (scores.next(), base.next(), traces.next());
            let score = score.expect("an outcome for every prompt")?;
            let output_co = base.transpose()?.map(|base| metrics::output_co(&base, &score.last_hidden));
            Ok(Scored { score, encoded, output_co, trace: trace.transpose()? })
        };
        let outcomes: Vec<Outcome> = rows.into_iter().map(|row| row.and_then(&mut scored)).collect();
        let num_layers = session.spec().num_hidden_layers;
        let scores = Scores::new(&outcomes, Asked { layers, all_tokens, output_co, num_layers });
        match scores.first_error() {
            Some((index, error)) if raises => {
                let (index, error) = (*index, error.clone());
                Err(row_exception_with(py, (index, &error), "scores", scores))
            }
            _ => Ok(scores),
        }
    }

    /// Logits of the token after each prompt.
    #[pyo3(signature = (prompts, alpha=None, *, tokens=None, progress=None))]
    fn logits<'py>(
        &self,
        py: Python<'py>,
        prompts: &Bound<'py, PyAny>,
        alpha: Option<&Bound<'py, PyAny>>,
        tokens: Option<&Bound<'py, PyAny>>,
        progress: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (alphas, is_one) = match alpha {
            None => (vec![1.0], true),
            Some(alpha) => match alpha.extract::<f64>() {
                Ok(alpha) => (vec![alpha], true),
                Err(_) => (
                    alpha.extract::<Vec<f64>>().map_err(|_| {
                        PyTypeError::new_err("alpha must be a number from 0 on, or a list of such")
                    })?,
                    false,
                ),
            },
        };
        check_alphas(&alphas).raise(py)?;
        let chosen = tokens.map(Prompts::ids).transpose()?;
        let session = self.session(py)?;
        let encoded = Self::all_encoded(py, &session, prompts)?;
        let ids: Vec<&[u32]> = encoded.iter().map(|encoded| encoded.token_ids.as_slice()).collect();
        let bar = Bar::new(py, progress, "logits", self::tokens(&ids))?;
        let asked = chosen.as_deref().map_or(Tokens::All, Tokens::Of);
        let logits = run(py, bar, |observer| session.logits(&ids, &alphas, asked, observer))?.raise(py)?;
        Self::warn(py, &session)?;
        let flat = PyArray1::from_vec(py, logits.values);
        let [_, prompts, width] = logits.shape;
        let shaped = match is_one {
            true => flat.reshape([prompts, width])?.into_any(),
            false => flat.reshape(logits.shape)?.into_any(),
        };
        match logits.errors.first() {
            Some((index, error)) => Err(row_exception_with(py, (*index, error), "logits", shaped)),
            None => Ok(shaped),
        }
    }

    /// How likely what follows each prompt is, token by token.
    #[pyo3(signature = (prompts, continuations, alpha=1.0, *, progress=None))]
    fn likelihoods<'py>(
        &self,
        py: Python<'py>,
        prompts: &Bound<'py, PyAny>,
        continuations: Vec<Bound<'py, PyAny>>,
        alpha: f64,
        progress: Option<bool>,
    ) -> PyResult<Vec<Likelihoods<'py>>> {
        let session = self.session(py)?;
        let encoded = Self::all_encoded(py, &session, prompts)?;
        if encoded.len() != continuations.len() {
            return Err(PyTypeError::new_err(format!(
                "continuations has {} items, expected one for each of {} prompts",
                continuations.len(),
                encoded.len()
            )));
        }
        let whole = |(encoded, continuation): (&Encoded, &Bound<'_, PyAny>)| -> PyResult<Vec<u32>> {
            let more = match continuation.extract::<String>() {
                Ok(text) if text.is_empty() => Vec::new(),
                Ok(text) => {
                    session.encoder().continuation(&text).map_err(|error| usage(py, &error.message))?
                }
                Err(_) => Prompts::ids(continuation)?,
            };
            Ok([encoded.token_ids.as_slice(), &more].concat())
        };
        let wholes: Vec<Vec<u32>> = encoded.iter().zip(&continuations).map(whole).collect::<PyResult<_>>()?;
        let texts: Vec<Continued<'_>> = wholes
            .iter()
            .zip(&encoded)
            .map(|(token_ids, encoded)| Continued { token_ids, n_prompt: encoded.token_ids.len() })
            .collect();
        let passing: Vec<&[u32]> = texts.iter().map(Continued::passing).collect();
        let bar = Bar::new(py, progress, "likelihoods", tokens(&passing))?;
        let found = run(py, bar, |observer| session.likelihoods(&texts, alpha, observer))?.raise(py)?;
        Self::warn(py, &session)?;
        let arrays = |of: Vec<tuco::engine::Likelihood>| {
            let values = of.iter().map(|token| token.log_likelihood);
            let greedy = of.iter().map(|token| token.is_greedy);
            (PyArray1::from_iter(py, values), PyArray1::from_iter(py, greedy))
        };
        all_or_first_error(py, "likelihoods", found.into_iter().map(|outcome| outcome.map(arrays)))
    }

    /// What follows each prompt.
    #[pyo3(signature = (
        prompts, alpha=1.0, *, max_new_tokens=128, temperature=0.0, top_p=1.0, top_k=None, n=1, seed=0, stop=None,
        ignore_eos=false, tuco=false, ids=None, progress=None
    ))]
    #[allow(clippy::too_many_arguments)]
    fn generate(
        &self,
        py: Python<'_>,
        prompts: &Bound<'_, PyAny>,
        alpha: f64,
        max_new_tokens: i64,
        temperature: f64,
        top_p: f64,
        top_k: Option<i64>,
        n: i64,
        seed: u64,
        stop: Option<&Bound<'_, PyAny>>,
        ignore_eos: bool,
        tuco: bool,
        ids: Option<Vec<Bound<'_, PyAny>>>,
        progress: Option<bool>,
    ) -> PyResult<Vec<Vec<Completion>>> {
        let asked = completion::Asked {
            alpha,
            max_new_tokens,
            temperature,
            top_p,
            top_k,
            n,
            seed,
            stop,
            ignore_eos,
            tuco,
        };
        let session = self.session(py)?;
        let completing = asked.completing(py, &session)?;
        let encoded = Self::all_encoded(py, &session, prompts)?;
        let ids = completion::ids(ids, encoded.len())?;
        let prompts: Vec<Prompt<'_>> = encoded
            .iter()
            .zip(&ids)
            .map(|(encoded, id)| Prompt { token_ids: &encoded.token_ids, seed: completing.seed_of(id) })
            .collect();
        let tokens = prompts.iter().map(|prompt| (prompt.token_ids.len() + completing.new_tokens()) as u64);
        let bar = Bar::new(py, progress, "generate", tokens.sum())?;
        let completions =
            run(py, bar, |observer| session.generate(&prompts, &completing, observer))?.raise(py)?;
        Self::warn(py, &session)?;
        let made = |of: Vec<Text>| of.into_iter().map(|text| Completion::new(py, text)).collect();
        all_or_first_error(py, "completions", completions.into_iter().map(|outcome| outcome.map(made)))
    }

    /// The contributions of every layer to every token of a prompt, and of the response that follows it.
    #[pyo3(signature = (prompt, response=None))]
    fn trace(&self, py: Python<'_>, prompt: &Bound<'_, PyAny>, response: Option<&str>) -> PyResult<Trace> {
        let session = self.session(py)?;
        let mut encoded = Self::all_encoded(py, &session, prompt)?;
        if encoded.len() != 1 {
            let count = encoded.len();
            return Err(PyTypeError::new_err(format!("trace takes one prompt, found {count}")));
        }
        let mut ids = encoded.remove(0).token_ids;
        let n_prompt = ids.len();
        if let Some(response) = response {
            let more = session.encoder().continuation(response);
            ids.extend(more.map_err(|error| usage(py, &format!("response: {}", error.message)))?);
        }
        let (trace, says) = run(py, Bar::new(py, Some(false), "trace", 0)?, |observer| {
            let trace = session.trace(&[&ids], observer)?.remove(0)?;
            let says = match session.pair().head() {
                Ok(_) => Some(session.logits_of_parts(&trace.split)?),
                Err(_) => None,
            };
            Ok((trace, says))
        })?
        .raise(py)?;
        Self::warn(py, &session)?;
        let texts = ids.iter().map(|id| session.encoder().text_of(*id)).collect();
        Ok(Trace::new(py, &ids, n_prompt, texts, &trace, says))
    }
}
