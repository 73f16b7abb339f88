//! What `Pair.score` gives: columns that numpy and Arrow share without copies.

use crate::{arrow, errors::usage};
use arrow_array::{
    Array, ArrayRef, BooleanArray, FixedSizeListArray, Float64Array, ListArray, RecordBatch, StringArray,
    StructArray, UInt32Array,
    cast::AsArray,
    types::{Float64Type, UInt32Type},
};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_ipc::{reader::StreamReader, writer::StreamWriter};
use arrow_schema::{ArrowError, DataType, Field, Fields, Schema};
use numpy::{
    PyArray1, PyArray2, PyArrayMethods, PyUntypedArray,
    ndarray::{ArrayView1, ArrayView2},
};
use pyo3::{
    exceptions::{PyAttributeError, PyIndexError},
    prelude::*,
    types::{PyBytes, PyCapsule, PyDict, PyList, PyTuple},
};
use std::sync::Arc;
use tuco::{
    engine::{Score, Trace},
    metrics::{self, PartsL1, RunningL1},
    prompt::{Encoded, RowError},
};

/// What one prompt came to.
pub type Outcome = Result<Scored, RowError>;

/// A scored prompt: what was asked for.
pub struct Scored {
    tuco: f64,
    last: RunningL1,
    beta: f64,
    beta_per_layer: Vec<f64>,
    output_co: Option<f64>,
    tuco_per_token: Vec<f64>,
    n_tokens: usize,
    truncated: bool,
}

impl Scored {
    pub fn new(
        encoded: &Encoded,
        score: &Score,
        output_co: Option<f64>,
        trace: Option<&Trace>,
        asked: Asked,
    ) -> Self {
        let of_token = |layers: &Vec<PartsL1>| layers.last().map_or(f64::NAN, |l1| metrics::tuco(l1.whole));
        Self {
            tuco: score.tuco(),
            last: score.last(),
            beta: score.beta(),
            beta_per_layer: if asked.layers { metrics::beta_per_layer(&score.running) } else { Vec::new() },
            output_co,
            tuco_per_token: trace.map_or(Vec::new(), |trace| trace.tokens.iter().map(of_token).collect()),
            n_tokens: encoded.token_ids.len(),
            truncated: encoded.truncated,
        }
    }
}

/// Which columns there are besides those that always are.
#[derive(Clone, Copy)]
pub struct Asked {
    pub layers: bool,
    pub all_tokens: bool,
    pub output_co: bool,
    pub num_layers: usize,
}

/// Scores of prompts, in order: columns as numpy arrays, rows as dicts, all of it as an Arrow table.
#[pyclass(module = "tuco", frozen, sequence)]
pub struct Scores {
    batch: RecordBatch,
}

impl Scores {
    pub fn new(outcomes: &[Outcome], asked: Asked) -> Self {
        let present = NullBuffer::from_iter(outcomes.iter().map(Result::is_ok));
        let number = |of: &dyn Fn(&Scored) -> f64| -> ArrayRef {
            let values: Vec<f64> = outcomes.iter().map(|row| row.as_ref().map_or(f64::NAN, of)).collect();
            Arc::new(Float64Array::new(values.into(), Some(present.clone())))
        };
        let mut columns: Vec<(&str, ArrayRef)> = vec![
            ("tuco", number(&|row| row.tuco)),
            ("ptc_l1", number(&|row| row.last.ptc)),
            ("ftc_l1", number(&|row| row.last.ftc)),
            ("beta", number(&|row| row.beta)),
        ];
        let n_tokens = outcomes.iter().map(|row| row.as_ref().map_or(0, |row| row.n_tokens as u32));
        columns.push(("n_tokens", Arc::new(n_tokens.map(Some).collect::<UInt32Array>())));
        let truncated = outcomes.iter().map(|row| row.as_ref().is_ok_and(|row| row.truncated));
        columns.push(("truncated", Arc::new(truncated.map(Some).collect::<BooleanArray>())));
        if asked.layers {
            let beta = |row: &Outcome| match row {
                Ok(row) => row.beta_per_layer.clone(),
                Err(_) => vec![f64::NAN; asked.num_layers],
            };
            let values: Vec<f64> = outcomes.iter().flat_map(beta).collect();
            let item = Arc::new(Field::new_list_field(DataType::Float64, false));
            let values = Arc::new(Float64Array::from(values));
            let width = asked.num_layers as i32;
            let lists = FixedSizeListArray::new(item, width, values, Some(present.clone()));
            columns.push(("beta_per_layer", Arc::new(lists)));
        }
        if asked.output_co {
            columns.push(("output_co", number(&|row| row.output_co.unwrap_or(f64::NAN))));
        }
        if asked.all_tokens {
            columns.push(("tuco_per_token", Arc::new(per_token(outcomes, &present))));
        }
        columns.push(("error", Arc::new(errors(outcomes))));
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, column)| {
                let is_always_there = ["n_tokens", "truncated"].contains(name);
                Field::new(*name, column.data_type().clone(), !is_always_there)
            })
            .collect();
        let columns = columns.into_iter().map(|(_, column)| column).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns);
        Self { batch: batch.expect("columns of one length") }
    }

    pub fn error_count(&self) -> usize {
        self.column("error").map_or(0, |column| column.len() - column.null_count())
    }

    fn column(&self, name: &str) -> Option<&ArrayRef> {
        self.batch.column_by_name(name)
    }

    fn asked_column(&self, name: &str, flag: &str) -> PyResult<&ArrayRef> {
        self.column(name).ok_or_else(|| {
            PyAttributeError::new_err(format!("there is no {name}: score(…, {flag}=True) computes it"))
        })
    }

    fn numbers<'py>(slf: &Bound<'py, Self>, column: &ArrayRef) -> PyResult<Bound<'py, PyArray1<f64>>> {
        shared(slf, column.as_primitive::<Float64Type>().values())
    }
}

/// TuCo of every token of every prompt, as lists.
fn per_token(outcomes: &[Outcome], present: &NullBuffer) -> ListArray {
    let of_row = |row: &'_ Outcome| row.as_ref().map_or(Vec::new(), |row| row.tuco_per_token.clone());
    let rows: Vec<Vec<f64>> = outcomes.iter().map(of_row).collect();
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(Vec::len));
    let item = Arc::new(Field::new_list_field(DataType::Float64, false));
    ListArray::new(item, offsets, Arc::new(Float64Array::from(rows.concat())), Some(present.clone()))
}

/// `error.type` and `error.message` of rows that could not be scored.
fn errors(outcomes: &[Outcome]) -> StructArray {
    let text = |of: &dyn Fn(&RowError) -> String| -> ArrayRef {
        Arc::new(outcomes.iter().map(|row| row.as_ref().err().map(of)).collect::<StringArray>())
    };
    let fields = ["type", "message"].map(|name| Field::new(name, DataType::Utf8, true));
    let columns = vec![text(&|error| error.kind.as_str().into()), text(&|error| error.message.clone())];
    let present = NullBuffer::from_iter(outcomes.iter().map(Result::is_err));
    StructArray::new(Fields::from(fields.to_vec()), columns, Some(present))
}

/// A numpy array over values that `owner` keeps; it cannot be written to.
fn shared<'py, T: numpy::Element>(
    owner: &Bound<'py, Scores>,
    values: &[T],
) -> PyResult<Bound<'py, PyArray1<T>>> {
    // SAFETY: the values are in a buffer of the owner, which is frozen and which the array keeps alive.
    let array = unsafe { PyArray1::borrow_from_array(&ArrayView1::from(values), owner.clone().into_any()) };
    read_only(array.as_untyped())?;
    Ok(array)
}

fn read_only(array: &Bound<'_, PyUntypedArray>) -> PyResult<()> {
    let options = PyDict::new(array.py());
    options.set_item("write", false)?;
    array.call_method("setflags", (), Some(&options)).map(|_| ())
}

#[pymethods]
impl Scores {
    /// Scores as a stream of Arrow's IPC format, as `__reduce__` gives them.
    #[new]
    fn read(py: Python<'_>, ipc: &[u8]) -> PyResult<Self> {
        let broken = |error: ArrowError| usage(py, &format!("no scores: {error}"));
        let batch = StreamReader::try_new(ipc, None).and_then(|mut stream| {
            stream.next().unwrap_or_else(|| Err(ArrowError::IpcError("the stream is empty".into())))
        });
        Ok(Self { batch: batch.map_err(broken)? })
    }

    /// What it is made of again in another process.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let (py, batch) = (slf.py(), &slf.get().batch);
        let written = StreamWriter::try_new(Vec::new(), &batch.schema())
            .and_then(|mut stream| stream.write(batch).and_then(|()| stream.into_inner()));
        let ipc = written.map_err(|error| usage(py, &error.to_string()))?;
        (slf.get_type(), (PyBytes::new(py, &ipc),)).into_pyobject(py)
    }

    /// TuCo of each prompt, float64; NaN where a prompt could not be scored.
    #[getter]
    fn tuco<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Self::numbers(slf, slf.get().asked_column("tuco", "")?)
    }

    /// L1 norm of the summed contributions of pre-training to the last token.
    #[getter]
    fn ptc_l1<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Self::numbers(slf, slf.get().asked_column("ptc_l1", "")?)
    }

    /// L1 norm of the summed contributions of fine-tuning to the last token.
    #[getter]
    fn ftc_l1<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Self::numbers(slf, slf.get().asked_column("ftc_l1", "")?)
    }

    /// The largest contribution after any layer.
    #[getter]
    fn beta<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Self::numbers(slf, slf.get().asked_column("beta", "")?)
    }

    /// Tokens of each prompt, uint32.
    #[getter]
    fn n_tokens<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyArray1<u32>>> {
        shared(slf, slf.get().asked_column("n_tokens", "")?.as_primitive::<UInt32Type>().values())
    }

    /// Whether tokens of each prompt were left out, bool.
    #[getter]
    fn truncated<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let cut = slf.get().asked_column("truncated", "")?.as_boolean();
        Ok(PyArray1::from_iter(slf.py(), cut.iter().map(|cut| cut == Some(true))))
    }

    /// The contribution after each layer, `[prompts, layers]`.
    #[getter]
    fn beta_per_layer<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let lists = slf.get().asked_column("beta_per_layer", "layers")?.as_fixed_size_list();
        let values: &ScalarBuffer<f64> = lists.values().as_primitive::<Float64Type>().values();
        let shape = (lists.len(), lists.value_length() as usize);
        let view = ArrayView2::from_shape(shape, values.as_ref()).expect("a row for each prompt");
        // SAFETY: as in `shared`.
        let array = unsafe { PyArray2::borrow_from_array(&view, slf.clone().into_any()) };
        read_only(array.as_untyped())?;
        Ok(array)
    }

    /// OutputCo of each prompt.
    #[getter]
    fn output_co<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Self::numbers(slf, slf.get().asked_column("output_co", "output_co")?)
    }

    /// TuCo of every token, an array for each prompt.
    #[getter]
    fn tuco_per_token<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyList>> {
        let lists = slf.get().asked_column("tuco_per_token", "all_tokens")?.as_list::<i32>();
        let values = lists.values().as_primitive::<Float64Type>().values();
        let ends = lists.offsets().windows(2);
        let arrays = ends.map(|ends| shared(slf, &values[ends[0] as usize..ends[1] as usize]));
        PyList::new(slf.py(), arrays.collect::<PyResult<Vec<_>>>()?)
    }

    /// Prompts that could not be scored: index → message.
    #[getter]
    fn errors<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        let errors = self.asked_column("error", "")?.as_struct();
        let messages = errors.column(1).as_string::<i32>();
        for row in (0..errors.len()).filter(|row| errors.is_valid(*row)) {
            dict.set_item(row, messages.value(row))?;
        }
        Ok(dict)
    }

    fn __len__(&self) -> usize {
        self.batch.num_rows()
    }

    fn __iter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: a new iterator over a sequence, or null with an exception set.
        unsafe { Bound::from_owned_ptr_or_err(slf.py(), pyo3::ffi::PySeqIter_New(slf.as_ptr())) }
    }

    /// A row as a dict, with the fields that `tuco score` writes.
    fn __getitem__<'py>(&self, py: Python<'py>, index: isize) -> PyResult<Bound<'py, PyDict>> {
        let length = self.batch.num_rows();
        let row = if index < 0 { index + length as isize } else { index };
        let row = usize::try_from(row).ok().filter(|row| *row < length);
        let row = row.ok_or_else(|| PyIndexError::new_err(format!("row {index} of {length}")))?;
        let dict = PyDict::new(py);
        let errors = self.asked_column("error", "")?.as_struct();
        if errors.is_valid(row) {
            let error = PyDict::new(py);
            for (name, column) in ["type", "message"].iter().zip(errors.columns()) {
                error.set_item(name, column.as_string::<i32>().value(row))?;
            }
            dict.set_item("error", error)?;
            return Ok(dict);
        }
        for (field, column) in self.batch.schema().fields().iter().zip(self.batch.columns()) {
            let name = field.name();
            match field.data_type() {
                DataType::Float64 => dict.set_item(name, column.as_primitive::<Float64Type>().value(row))?,
                DataType::UInt32 => dict.set_item(name, column.as_primitive::<UInt32Type>().value(row))?,
                DataType::Boolean if column.as_boolean().value(row) => dict.set_item(name, true)?,
                DataType::FixedSizeList(..) => {
                    dict.set_item(name, list(&column.as_fixed_size_list().value(row)))?
                }
                DataType::List(_) => dict.set_item(name, list(&column.as_list::<i32>().value(row)))?,
                _ => {}
            }
        }
        Ok(dict)
    }

    /// A pyarrow table over the same memory.
    fn to_arrow<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("pyarrow")?.call_method1("table", (slf,))
    }

    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        // A producer may ignore what is requested.
        drop(requested_schema);
        arrow::capsules(py, &self.batch)
    }

    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        drop(requested_schema);
        arrow::stream(py, &self.batch)
    }

    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        arrow::schema(py, &self.batch)
    }

    fn __repr__(&self) -> PyResult<String> {
        let tuco = self.asked_column("tuco", "")?.as_primitive::<Float64Type>();
        let valid: Vec<f64> = tuco.iter().flatten().collect();
        let median =
            metrics::quantile(&valid, 0.5).map_or(String::new(), |q| format!(", median TuCo {q:.4}"));
        let errors = match self.error_count() {
            0 => String::new(),
            count => format!(", {count} not scored"),
        };
        Ok(format!("<tuco.Scores of {} prompts{median}{errors}>", self.batch.num_rows()))
    }
}

fn list(values: &ArrayRef) -> Vec<f64> {
    values.as_primitive::<Float64Type>().values().to_vec()
}
