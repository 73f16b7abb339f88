//! A pass on its way: without the interpreter's lock, while the calling thread moves the progress bar and hears Ctrl-C.

use pyo3::{exceptions::PyImportError, prelude::*, types::PyDict};
use std::{
    ops::ControlFlow,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tuco::{Result, engine::Observer, session::Call};

/// How often the calling thread looks up.
const TICK: Duration = Duration::from_millis(100);

/// A tqdm bar over tokens, or none.
pub struct Bar<'py> {
    tqdm: Option<Bound<'py, PyAny>>,
    shown: u64,
}

impl<'py> Bar<'py> {
    /// `progress`: true shows a bar, false none, `None` shows one in a terminal where tqdm is installed.
    pub fn new(py: Python<'py>, progress: Option<bool>, what: &str, tokens: u64) -> PyResult<Self> {
        if progress == Some(false) {
            return Ok(Self { tqdm: None, shown: 0 });
        }
        let tqdm = match (py.import("tqdm.auto"), progress) {
            (Ok(module), _) => module,
            (Err(error), None) if error.is_instance_of::<PyImportError>(py) => {
                return Ok(Self { tqdm: None, shown: 0 });
            }
            (Err(error), _) => return Err(error),
        };
        let options = PyDict::new(py);
        options.set_item("total", tokens)?;
        options.set_item("desc", what)?;
        options.set_item("unit", "tok")?;
        options.set_item("unit_scale", true)?;
        // `None` is tqdm's word for "in a terminal only".
        options.set_item("disable", progress.map(|_| false))?;
        Ok(Self { tqdm: Some(tqdm.getattr("tqdm")?.call((), Some(&options))?), shown: 0 })
    }

    fn show(&mut self, tokens: f64) -> PyResult<()> {
        let tokens = tokens.round() as u64;
        if let Some(tqdm) = &self.tqdm {
            tqdm.call_method1("update", (tokens.saturating_sub(self.shown),))?;
        }
        self.shown = self.shown.max(tokens);
        Ok(())
    }

    fn close(&self) -> PyResult<()> {
        self.tqdm.as_ref().map_or(Ok(()), |tqdm| tqdm.call_method0("close").map(|_| ()))
    }
}

/// Runs `work` of a call. What a signal handler raises (`KeyboardInterrupt`) stops the work and is raised here.
pub fn run<T: Send>(
    py: Python<'_>,
    call: &Call,
    mut bar: Bar<'_>,
    work: impl FnOnce(Observer<'_>) -> Result<T> + Send,
) -> PyResult<Result<T>> {
    let stop = AtomicBool::new(false);
    let tokens = Mutex::new(0.0);
    let computed = || *tokens.lock().unwrap_or_else(PoisonError::into_inner);
    let observer = |more: f64| {
        *tokens.lock().unwrap_or_else(PoisonError::into_inner) += more;
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { call.go_on() }
    };
    let outcome = watched(py, &stop, || bar.show(computed()), || work(&observer));
    if matches!(outcome, Ok(Ok(_))) {
        bar.show(computed())?;
    }
    bar.close()?;
    outcome
}

/// Runs `work` on a thread of its own. What `tick`, called now and then, or a signal handler raises sets `stop`, and is
/// raised here when the work has ended.
pub fn watched<T: Send>(
    py: Python<'_>,
    stop: &AtomicBool,
    mut tick: impl FnMut() -> PyResult<()>,
    work: impl FnOnce() -> T + Send,
) -> PyResult<T> {
    let done = (Mutex::new(false), Condvar::new());
    let mut raised = Ok(());
    let outcome = std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            // Told also when the work panics.
            let _told = Telling(&done);
            work()
        });
        while !py.detach(|| waited(&done)) {
            if let (Ok(()), Err(error)) = (&raised, py.check_signals().and_then(|()| tick())) {
                raised = Err(error);
                stop.store(true, Ordering::Relaxed);
            }
        }
        working.join()
    });
    raised?;
    Ok(outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

type Flag = (Mutex<bool>, Condvar);

struct Telling<'a>(&'a Flag);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }
}

/// Waits for the flag, but not longer than a tick; whether it is set.
fn waited((flag, told): &Flag) -> bool {
    let flag = flag.lock().unwrap_or_else(PoisonError::into_inner);
    *told.wait_timeout_while(flag, TICK, |done| !*done).unwrap_or_else(PoisonError::into_inner).0
}
