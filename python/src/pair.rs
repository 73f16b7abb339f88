//! The class `Pair`.

use crate::{
    completion::{self, Completion},
    continuations::{continuation_of, fits, of_continuation},
    errors::{Raise, row_exception, usage},
    inputs::{Prompts, Row, check_count, items_of},
    outcomes::{Errors, first_error, joined, row_exception_with},
    running::{Bar, run},
    scores::{Asked, Outcome, Scores},
    scoring::{parts, score_part},
    trace::Trace,
    used::Used,
    warnings::{warn_at, warn_of_cut},
};
use numpy::{PyArray1, PyArrayMethods, ToPyArray};
use pyo3::{exceptions::PyTypeError, prelude::*, types::PyList};
use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tuco::{
    Session, SessionOptions,
    engine::{Continued, Prompt, Tokens, check_alphas},
    model::PairWeights,
    prompt::{ContentRef, Encoded, RowError, RowErrorKind},
    session::{Logits, Text},
};

/// A pre-trained model and the model fine-tuned from it, open and ready. `tuco.Pair` adds `from_pretrained`.
#[pyclass(module = "tuco._native", frozen, subclass)]
pub struct Pair {
    /// `None` when closed.
    session: RwLock<Option<Arc<Session>>>,
}

/// Prompts between which Ctrl-C is heard.
const ENCODED_AT_ONCE: usize = 512;

/// Prompts that became token ids, and those that did not.
type Rows = Vec<Result<Encoded, RowError>>;

/// Of the tokens of a continuation: the logarithm of how likely each is, and whether it is the likeliest.
type Likelihoods<'py> = (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<bool>>);

impl Pair {
    fn session(&self, py: Python<'_>) -> PyResult<Used> {
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner).clone();
        session.map(Used::begin).ok_or_else(|| usage(py, "the pair is closed"))
    }

    /// The token ids of all prompts, which so many tokens are to follow as `following` says of each. What there is to tell of them is
    /// told before anything is computed.
    fn encoded(
        py: Python<'_>,
        session: &Used,
        prompts: &Bound<'_, PyAny>,
        following: &(dyn Fn(usize) -> usize + Sync),
    ) -> PyResult<Rows> {
        Self::rows_encoded(py, session, &Prompts::read(prompts)?.rows(), following)
    }

    /// As [`Pair::encoded`], of prompts that have been read.
    fn rows_encoded(
        py: Python<'_>,
        session: &Used,
        rows: &[Row<'_>],
        following: &(dyn Fn(usize) -> usize + Sync),
    ) -> PyResult<Rows> {
        let good: Vec<(usize, ContentRef<'_>)> =
            rows.iter().enumerate().filter_map(|(index, row)| Some((index, *row.as_ref().ok()?))).collect();
        let mut encoded = Vec::with_capacity(good.len());
        for some in good.chunks(ENCODED_AT_ONCE) {
            let contents: Vec<ContentRef<'_>> = some.iter().map(|(_, content)| *content).collect();
            let following = |place: usize| following(some[place].0);
            encoded.extend(py.detach(|| session.encode_before(&contents, &following)).raise(py)?);
            py.check_signals()?;
            session.check().raise(py)?;
        }
        Self::warn(py, session)?;
        let mut encoded = encoded.into_iter();
        let rows = rows.iter().map(|row| match row {
            Ok(_) => encoded.next().expect("as many as were given"),
            Err(error) => Err(error.clone()),
        });
        Ok(rows.collect())
    }

    /// The token ids of prompts that must all be good.
    fn all_encoded(
        py: Python<'_>,
        session: &Used,
        prompts: &Bound<'_, PyAny>,
        following: usize,
    ) -> PyResult<Vec<Encoded>> {
        let rows = Self::encoded(py, session, prompts, &|_| following)?.into_iter().enumerate();
        rows.map(|(index, row)| row.map_err(|error| row_exception(py, index, &error))).collect()
    }

    /// Tells what the library has to tell as Python warnings of the code that called.
    fn warn(py: Python<'_>, session: &Session) -> PyResult<()> {
        warn_at(py, session, 1)
    }
}

fn ids_of<'a>(encoded: impl Iterator<Item = &'a Encoded>) -> impl Iterator<Item = &'a [u32]> {
    encoded.map(|encoded| encoded.token_ids.as_slice())
}

fn tokens<'a>(prompts: impl Iterator<Item = &'a [u32]>) -> u64 {
    prompts.map(|ids| ids.len() as u64).sum()
}

/// A list of numbers, or what has one, as arrays and tensors have.
fn numbers_of(given: &Bound<'_, PyAny>) -> Option<Vec<f64>> {
    let listed = || given.call_method0("tolist").and_then(|list| list.extract());
    given.extract().or_else(|_| listed()).ok()
}

#[pymethods]
impl Pair {
    #[new]
    fn new(py: Python<'_>, options: Vec<(String, String)>) -> PyResult<Self> {
        let options = options.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let options = SessionOptions::parse(options).raise(py)?;
        let session = py.detach(|| Session::open(&options)).raise(py)?;
        // `from_pretrained` is between.
        warn_at(py, &session, 2)?;
        Ok(Self { session: RwLock::new(Some(Arc::new(session))) })
    }

    /// Gives back memory, threads and device. Passes that other threads have begun end first.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let Some(mut session) = self.session.write().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        // A call of this very thread, whose signal handler closes the pair, could not end while it waits; nor could one of a thread that
        // a fork has left behind.
        while !Used::by_this_thread() && !session.is_forked() {
            match Arc::try_unwrap(session) {
                Ok(last) => {
                    py.detach(|| drop(last));
                    break;
                }
                Err(shared) => session = shared,
            }
            py.detach(|| std::thread::sleep(Duration::from_millis(5)));
            py.check_signals()?;
        }
        Ok(())
    }

    /// Stops the calls that other threads have begun, those that wait for their turn too: they raise `CancelledError`.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.session(py)?.cancel();
        Ok(())
    }

    #[getter]
    fn closed(&self) -> bool {
        self.session.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.close(py)
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
        let encoded = Self::all_encoded(py, &session, prompts, 0)?;
        PyList::new(py, encoded.iter().map(|encoded| encoded.token_ids.to_pyarray(py)))
    }

    /// The token ids of text alone: no special tokens are added.
    fn encode_text<'py>(&self, py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let session = self.session(py)?;
        if text.is_empty() {
            return Ok(PyArray1::from_vec(py, Vec::new()));
        }
        let ids = session.encoder().bare(text);
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
        let ids = Prompts::ids(token_ids, "token_ids")?;
        let ids = ids.and_then(|ids| session.encoder().check_range(&ids).map(|()| ids));
        let ids = ids.map_err(|error| usage(py, &format!("token_ids: {}", error.message)))?;
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
    ///
    /// Args:
    ///     prompts: see `tuco.Pair`.
    ///     layers: add `beta_per_layer`, the contribution after each layer.
    ///     all_tokens: add `tuco_per_token`, TuCo of every token (about two more passes).
    ///     output_co: add `output_co`, how far the two models' own outputs are apart (another pass).
    ///     errors: "raise" raises for the first prompt that cannot be scored, before anything is computed if it can be told; "rows"
    ///         gives it NaN and an entry in `errors`.
    ///     progress: show a tqdm bar; default: in a terminal, if tqdm is installed.
    ///
    /// Raises:
    ///     PromptError: a prompt that is empty, too long, or does not suit the chat template; one that overflows, or that the device's
    ///         memory does not hold alone (its `scores` are those of the others).
    ///     TypeError, ValueError: what is no prompt.
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
        let errors = Errors::parse(py, errors)?;
        let session = self.session(py)?;
        let rows = Self::encoded(py, &session, prompts, &|_| 0)?;
        errors.check(py, &rows)?;
        let good: Vec<&Encoded> = rows.iter().flatten().collect();
        let passes = 1 + u64::from(output_co) + u64::from(all_tokens);
        let bar = Bar::new(py, progress, "score", passes * tokens(ids_of(good.iter().copied())))?;
        let num_layers = session.spec().num_hidden_layers;
        let asked = Asked { layers, all_tokens, output_co, num_layers };
        let scored = run(py, &session.call, bar, |observer| {
            let mut scored = Vec::with_capacity(good.len());
            for some in parts(&good, asked) {
                scored.extend(score_part(&session, some, asked, observer)?);
            }
            Ok(scored)
        })?;
        let scored = scored.raise(py)?;
        Self::warn(py, &session)?;
        let outcomes: Vec<Outcome> = joined(rows, scored).collect();
        let scores = Scores::new(&outcomes, asked);
        match first_error(&outcomes) {
            Some(first) if errors == Errors::Raise => Err(row_exception_with(py, first, "scores", scores)),
            _ => Ok(scores),
        }
    }

    /// Logits of the token after each prompt.
    ///
    /// Args:
    ///     prompts: see `tuco.Pair`.
    ///     alpha: the factor on the fine-tuning component of every token: 1 (the default) is the tuned model, 0 the base's blocks
    ///         between the tuned embedding and head.
    ///         A list of factors costs less than as many calls.
    ///     tokens: only the logits of these tokens, in this order.
    ///     errors: as of `score`; with "rows" a prompt that cannot be used has NaN.
    ///     progress: show a tqdm bar; default: in a terminal, if tqdm is installed.
    ///
    /// Returns:
    ///     float64, `[prompts, tokens]`; for a list of alphas `[alphas, prompts, tokens]`.
    ///
    /// Raises:
    ///     PromptError: as of `score` (its `logits` are those of the others).
    #[pyo3(signature = (prompts, alpha=None, *, tokens=None, errors="raise", progress=None))]
    fn logits<'py>(
        &self,
        py: Python<'py>,
        prompts: &Bound<'py, PyAny>,
        alpha: Option<&Bound<'py, PyAny>>,
        tokens: Option<&Bound<'py, PyAny>>,
        errors: &str,
        progress: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let errors = Errors::parse(py, errors)?;
        let (alphas, is_one) = match alpha {
            None => (vec![1.0], true),
            Some(alpha) => match alpha.extract::<f64>() {
                Ok(alpha) => (vec![alpha], true),
                Err(_) => (
                    numbers_of(alpha).ok_or_else(|| {
                        PyTypeError::new_err("alpha must be a number from 0 on, or a list of such")
                    })?,
                    false,
                ),
            },
        };
        check_alphas(&alphas).raise(py)?;
        let chosen = tokens.map(|tokens| Prompts::ids(tokens, "tokens")).transpose()?.transpose();
        let chosen = chosen.map_err(|error| usage(py, &format!("tokens: {}", error.message)))?;
        let session = self.session(py)?;
        let rows = Self::encoded(py, &session, prompts, &|_| 0)?;
        errors.check(py, &rows)?;
        warn_of_cut(py, rows.iter().flatten())?;
        let ids: Vec<&[u32]> = ids_of(rows.iter().flatten()).collect();
        let bar = Bar::new(py, progress, "logits", self::tokens(ids.iter().copied()))?;
        let asked = chosen.as_deref().map_or(Tokens::All, Tokens::Of);
        let logits = run(py, &session.call, bar, |observer| session.logits(&ids, &alphas, asked, observer))?
            .raise(py)?;
        Self::warn(py, &session)?;
        let good: Vec<usize> = (0..rows.len()).filter(|row| rows[*row].is_ok()).collect();
        let Logits { values, shape: [alphas, prompts, width], errors: failed } =
            logits.among(&good, rows.len()).raise(py)?;
        let flat = PyArray1::from_vec(py, values);
        let shaped = match is_one {
            true => flat.reshape([prompts, width])?.into_any(),
            false => flat.reshape([alphas, prompts, width])?.into_any(),
        };
        match failed.first() {
            Some((index, error)) if errors == Errors::Raise => {
                Err(row_exception_with(py, (*index, error), "logits", shaped))
            }
            _ => Ok(shaped),
        }
    }

    /// How likely what follows each prompt is, token by token.
    ///
    /// Args:
    ///     prompts: see `tuco.Pair`.
    ///     continuations: what follows each of them: text, or token ids.
    ///     alpha: the factor on the fine-tuning component of every token.
    ///     errors: as of `score`; with "rows" a prompt that cannot be used has its `PromptError` in its place.
    ///     progress: show a tqdm bar; default: in a terminal, if tqdm is installed.
    ///
    /// Returns:
    ///     for each prompt the natural logarithms of the probabilities of its continuation's tokens, and whether each is what greedy
    ///     decoding takes.
    ///
    /// Raises:
    ///     PromptError: as of `score` (its `likelihoods` are those of the others).
    #[pyo3(signature = (prompts, continuations, alpha=1.0, *, errors="raise", progress=None))]
    fn likelihoods<'py>(
        &self,
        py: Python<'py>,
        prompts: &Bound<'py, PyAny>,
        continuations: &Bound<'py, PyAny>,
        alpha: f64,
        errors: &str,
        progress: Option<bool>,
    ) -> PyResult<Bound<'py, PyList>> {
        let errors = Errors::parse(py, errors)?;
        let session = self.session(py)?;
        let continuations = items_of(continuations, "continuations", "text or token ids")?;
        let continuation = |(index, given)| continuation_of(&session, index, given);
        let continuations =
            continuations.iter().enumerate().map(continuation).collect::<PyResult<Vec<_>>>()?;
        // The last token passes no layer.
        let following = |index: usize| match continuations.get(index) {
            Some(Ok(more)) => more.len().saturating_sub(1),
            _ => 0,
        };
        let rows = Self::encoded(py, &session, prompts, &following)?;
        check_count("continuations", continuations.len(), rows.len())?;
        warn_of_cut(py, rows.iter().flatten())?;
        let whole = |(row, more): (Result<Encoded, RowError>, Result<Vec<u32>, RowError>)| {
            let encoded = row?;
            let n_prompt = encoded.token_ids.len();
            let whole = [encoded.token_ids, more.map_err(of_continuation)?].concat();
            fits(&session, &whole, n_prompt).map_err(of_continuation)?;
            Ok((whole, n_prompt))
        };
        let rows: Vec<Result<(Vec<u32>, usize), RowError>> =
            rows.into_iter().zip(continuations).map(whole).collect();
        errors.check(py, &rows)?;
        let good = rows.iter().flatten();
        let texts: Vec<Continued<'_>> =
            good.map(|(token_ids, n_prompt)| Continued { token_ids, n_prompt: *n_prompt }).collect();
        let bar = Bar::new(py, progress, "likelihoods", tokens(texts.iter().map(Continued::passing)))?;
        let found = run(py, &session.call, bar, |observer| session.likelihoods(&texts, alpha, observer))?
            .raise(py)?;
        Self::warn(py, &session)?;
        let arrays = |of: Vec<tuco::engine::Likelihood>| -> Likelihoods<'py> {
            let values = of.iter().map(|token| token.log_likelihood);
            let greedy = of.iter().map(|token| token.is_greedy);
            (PyArray1::from_iter(py, values), PyArray1::from_iter(py, greedy))
        };
        errors.list(py, "likelihoods", joined(rows, found).map(|outcome| outcome.map(arrays)))
    }

    /// What follows each prompt, a list of `n` completions for each, as `tuco generate` writes them.
    ///
    /// Args:
    ///     prompts: see `tuco.Pair`.
    ///     alpha: the factor on the fine-tuning component of every token of prompt and completion: 1 is the tuned model, 0 the
    ///         base's blocks between the tuned embedding and head.
    ///     max_new_tokens: most tokens of a completion.
    ///     temperature: divides the logits before a random choice; 0 takes the likeliest token.
    ///     top_p: choose among the fewest of the likeliest tokens whose probabilities sum up to this.
    ///     top_k: choose among so many of the likeliest tokens.
    ///     n: completions of each prompt; more than one need a temperature.
    ///     seed: another number gives other random choices.
    ///     stop: text that ends a completion and is left out of it.
    ///     ignore_eos: go on after the model's end-of-text tokens.
    ///     tuco: add the TuCo of every token.
    ///     ids: what a prompt's random choices depend on besides `seed`; default: its number in the list, from 1 on.
    ///     errors: as of `score`; with "rows" a prompt that cannot be used has its `PromptError` in its place.
    ///     progress: show a tqdm bar; default: in a terminal, if tqdm is installed.
    ///
    /// Raises:
    ///     UsageError: a number out of range, or one that has no effect at temperature 0.
    ///     PromptError: as of `score` (its `completions` are those of the others).
    #[pyo3(signature = (
        prompts, alpha=1.0, *, max_new_tokens=128, temperature=0.0, top_p=1.0, top_k=None, n=1, seed=0, stop=None,
        ignore_eos=false, tuco=false, ids=None, errors="raise", progress=None
    ))]
    #[allow(clippy::too_many_arguments)]
    fn generate<'py>(
        &self,
        py: Python<'py>,
        prompts: &Bound<'py, PyAny>,
        alpha: f64,
        max_new_tokens: i64,
        temperature: f64,
        top_p: f64,
        top_k: Option<i64>,
        n: i64,
        seed: i128,
        stop: Option<&Bound<'_, PyAny>>,
        ignore_eos: bool,
        tuco: bool,
        ids: Option<&Bound<'_, PyAny>>,
        errors: &str,
        progress: Option<bool>,
    ) -> PyResult<Bound<'py, PyList>> {
        let errors = Errors::parse(py, errors)?;
        let seed = u64::try_from(seed)
            .map_err(|_| usage(py, &format!("seed is {seed}, expected 0 to {}", u64::MAX)))?;
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
        let following = completing.generation.max_new_tokens;
        let rows = Self::encoded(py, &session, prompts, &|_| following)?;
        errors.check(py, &rows)?;
        let ids = completion::ids(ids, rows.len())?;
        let good = rows.iter().zip(&ids).filter_map(|(row, id)| Some((row.as_ref().ok()?, id)));
        let prompts: Vec<Prompt<'_>> = good
            .map(|(encoded, id)| Prompt { token_ids: &encoded.token_ids, seed: completing.seed_of(id) })
            .collect();
        let tokens = prompts.iter().map(|prompt| (prompt.token_ids.len() + completing.new_tokens()) as u64);
        let bar = Bar::new(py, progress, "generate", tokens.sum())?;
        let completions =
            run(py, &session.call, bar, |observer| session.generate(&prompts, &completing, observer))?
                .raise(py)?;
        Self::warn(py, &session)?;
        let about: Vec<(usize, bool)> = rows
            .iter()
            .map(|row| row.as_ref().map_or((0, false), |row| (row.token_ids.len(), row.truncated)))
            .collect();
        let made = |(outcome, (n_prompt, truncated)): (Result<Vec<Text>, RowError>, _)| {
            let of_prompt = outcome?.into_iter().map(|text| Completion::of(py, text, n_prompt, truncated));
            Ok(of_prompt.collect::<Vec<Completion>>())
        };
        errors.list(py, "completions", joined(rows, completions).zip(about).map(made))
    }

    /// The contributions of every layer to every token of a prompt, and of the response that follows it.
    ///
    /// Raises:
    ///     PromptError: a prompt that cannot be used, or is too long with its response.
    ///     NotFiniteError: a hidden state that overflows.
    #[pyo3(signature = (prompt, response=None))]
    fn trace(&self, py: Python<'_>, prompt: &Bound<'_, PyAny>, response: Option<&str>) -> PyResult<Trace> {
        let session = self.session(py)?;
        let prompts = Prompts::read(prompt)?;
        let rows = prompts.rows();
        let [row] = rows.as_slice() else {
            return Err(PyTypeError::new_err(format!("trace takes one prompt, found {}", rows.len())));
        };
        let content = row.as_ref().map_err(|error| row_exception(py, 0, error))?;
        let response = response.map(|response| session.encoder().reply(*content, response)).transpose();
        let response = response.map_err(|error| usage(py, &format!("response: {}", error.message)))?;
        let response = response.unwrap_or_default();
        let encoded = Self::rows_encoded(py, &session, &rows, &|_| response.len())?.remove(0);
        let Encoded { token_ids: mut ids, truncated } =
            encoded.map_err(|error| row_exception(py, 0, &error))?;
        let n_prompt = ids.len();
        ids.extend(response);
        let most = session.encoder().context_length();
        if ids.len() > most {
            let message = format!("{} tokens with the response, expected at most {most}", ids.len());
            return Err(row_exception(py, 0, &RowError::new(RowErrorKind::TooLong, message)));
        }
        let (trace, says) = run(py, &session.call, Bar::new(py, Some(false), "trace", 0)?, |observer| {
            let trace = session.trace(&[&ids], observer)?.remove(0)?;
            let says = match session.pair().head() {
                Ok(_) => Some(session.logits_of_parts(&trace.split, observer)?),
                Err(_) => None,
            };
            Ok((trace, says))
        })?
        .raise(py)?;
        Self::warn(py, &session)?;
        let texts = ids.iter().map(|id| session.encoder().text_of(*id)).collect();
        Ok(Trace::of(py, &ids, (n_prompt, truncated), texts, &trace, says))
    }
}
