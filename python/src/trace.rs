//! What `Pair.trace` gives.

use crate::completion::fields_of;
use numpy::{PyArray1, PyArray2, PyUntypedArrayMethods, ToPyArray, ndarray::Array2};
use pyo3::{prelude::*, types::PyTuple};
use tuco::{
    engine::{Split, Trace as Traced},
    metrics::{PartsL1, RunningL1, tuco},
};

/// The contributions of every layer to every token of one prompt and response.
#[pyclass(module = "tuco", frozen, get_all)]
pub struct Trace {
    /// Token ids, uint32, `[tokens]`.
    token_ids: Py<PyArray1<u32>>,
    /// The text of each token; `None` without a tokenizer.
    tokens: Option<Vec<String>>,
    /// How many of the tokens are the prompt's.
    n_prompt: usize,
    /// Tokens of the prompt were left out.
    truncated: bool,
    /// TuCo of every token, `[tokens]`.
    tuco: Py<PyArray1<f64>>,
    /// The contribution after each layer, `[tokens, layers]`.
    beta_per_layer: Py<PyArray2<f64>>,
    /// That of attention alone.
    attention_per_layer: Py<PyArray2<f64>>,
    /// That of the MLPs alone.
    mlp_per_layer: Py<PyArray2<f64>>,
    /// L1 norm of the summed contributions of pre-training after each layer, `[tokens, layers]`.
    ptc_l1: Py<PyArray2<f64>>,
    /// L1 norm of the summed contributions of fine-tuning after each layer, `[tokens, layers]`.
    ftc_l1: Py<PyArray2<f64>>,
    /// What pre-training's part of the last token's final state adds to the logits, `[vocabulary]`; `None` where the model has no
    /// head that can be read.
    pt_logits: Option<Py<PyArray1<f64>>>,
    /// What fine-tuning's part adds.
    ft_logits: Option<Py<PyArray1<f64>>>,
}

#[pymethods]
impl Trace {
    #[new]
    #[pyo3(signature = (token_ids, tokens, n_prompt, truncated, tuco, beta_per_layer, attention_per_layer, mlp_per_layer, ptc_l1, ftc_l1, pt_logits, ft_logits))]
    #[allow(clippy::too_many_arguments, reason = "its fields")]
    fn new(
        token_ids: Py<PyArray1<u32>>,
        tokens: Option<Vec<String>>,
        n_prompt: usize,
        truncated: bool,
        tuco: Py<PyArray1<f64>>,
        beta_per_layer: Py<PyArray2<f64>>,
        attention_per_layer: Py<PyArray2<f64>>,
        mlp_per_layer: Py<PyArray2<f64>>,
        ptc_l1: Py<PyArray2<f64>>,
        ftc_l1: Py<PyArray2<f64>>,
        pt_logits: Option<Py<PyArray1<f64>>>,
        ft_logits: Option<Py<PyArray1<f64>>>,
    ) -> Self {
        Self {
            token_ids,
            tokens,
            n_prompt,
            truncated,
            tuco,
            beta_per_layer,
            attention_per_layer,
            mlp_per_layer,
            ptc_l1,
            ftc_l1,
            pt_logits,
            ft_logits,
        }
    }

    /// What it is made of again in another process.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        fields_of(
            slf.as_any(),
            &[
                "token_ids",
                "tokens",
                "n_prompt",
                "truncated",
                "tuco",
                "beta_per_layer",
                "attention_per_layer",
                "mlp_per_layer",
                "ptc_l1",
                "ftc_l1",
                "pt_logits",
                "ft_logits",
            ],
        )
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let shape = self.beta_per_layer.bind(py).shape();
        let (tokens, layers) = (shape[0], shape[1]);
        Ok(format!("<tuco.Trace of {tokens} tokens, {layers} layers>"))
    }
}

impl Trace {
    pub fn of(
        py: Python<'_>,
        token_ids: &[u32],
        (n_prompt, truncated): (usize, bool),
        tokens: Option<Vec<String>>,
        trace: &Traced,
        says: Option<Split>,
    ) -> Self {
        let shape = (trace.tokens.len(), trace.tokens.first().map_or(0, Vec::len));
        let table = |of: &dyn Fn(&PartsL1) -> f64| {
            let values = trace.tokens.iter().flatten().map(of).collect();
            let table = Array2::from_shape_vec(shape, values).expect("as many layers for each token");
            PyArray2::from_owned_array(py, table).unbind()
        };
        let share = |part: fn(&PartsL1) -> RunningL1| table(&|l1| tuco(part(l1)));
        let last = trace.tokens.iter().map(|layers| layers.last().map_or(f64::NAN, |l1| tuco(l1.whole)));
        let logits = |of: Vec<f64>| PyArray1::from_vec(py, of).unbind();
        let (pt_logits, ft_logits) =
            says.map_or((None, None), |says| (Some(logits(says.pt)), Some(logits(says.ft))));
        Self {
            token_ids: token_ids.to_pyarray(py).unbind(),
            tokens,
            n_prompt,
            truncated,
            tuco: PyArray1::from_iter(py, last).unbind(),
            beta_per_layer: share(|l1| l1.whole),
            attention_per_layer: share(|l1| l1.attention),
            mlp_per_layer: share(|l1| l1.mlp),
            ptc_l1: table(&|l1| l1.whole.ptc),
            ftc_l1: table(&|l1| l1.whole.ftc),
            pt_logits,
            ft_logits,
        }
    }
}
