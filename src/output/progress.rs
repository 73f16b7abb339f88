//! How far a run is: a bar on a terminal, a plain line now and then elsewhere (bars wreck the logs of clusters).

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    collections::VecDeque,
    io::IsTerminal,
    sync::Mutex,
    time::{Duration, Instant},
};

const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Progress on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
    start: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rows: u64,
    /// Rows that were there before this run.
    resumed: u64,
    total: u64,
    tokens: f64,
    /// Batches on their way, the oldest first.
    batches: VecDeque<Batch>,
    /// Batches that are on the disk.
    batches_done: u64,
    told: Option<Instant>,
}

/// A batch on its way.
struct Batch {
    rows: u64,
    tokens: f64,
    /// Those of them that have been computed.
    computed: f64,
}

impl Batch {
    /// Rows, as far as they are computed.
    fn rows_done(&self) -> f64 {
        if self.tokens > 0.0 { self.rows as f64 * self.computed / self.tokens } else { 0.0 }
    }
}

impl Progress {
    /// Progress over `total` rows; with `quiet` nothing is shown.
    pub fn new(total: u64, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} prompts · {msg}")
                .expect("a valid template");
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8))
                .with_style(style)
        });
        let told = (bar.is_none() && !quiet).then(Instant::now);
        Self { bar, start: Instant::now(), state: Mutex::new(State { total, told, ..State::default() }) }
    }

    /// Rows that need not be computed again.
    pub fn resumed(&self, rows: u64) {
        let mut state = self.state();
        state.resumed = rows;
        state.rows = rows;
    }

    /// A batch is on its way, whose number it gives; it may turn out to have fewer tokens.
    pub fn batch(&self, rows: u64, tokens: u64) -> u64 {
        let mut state = self.state();
        state.batches.push_back(Batch { rows, tokens: tokens as f64, computed: 0.0 });
        state.batches_done + state.batches.len() as u64 - 1
    }

    /// So many more tokens of a batch have been computed.
    pub fn advance(&self, batch: u64, tokens: f64) {
        let mut state = self.state();
        let place = batch.checked_sub(state.batches_done);
        if let Some(batch) = place.and_then(|place| state.batches.get_mut(place as usize)) {
            batch.computed += tokens;
        }
        drop(state);
        self.show();
    }

    /// The oldest batch is on the disk.
    pub fn batch_done(&self) {
        let mut state = self.state();
        if let Some(batch) = state.batches.pop_front() {
            state.rows += batch.rows;
            state.tokens += batch.computed;
            state.batches_done += 1;
        }
        drop(state);
        self.show();
    }

    /// Ends the display and returns a closing line.
    pub fn finish(&self) -> String {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let state = self.state();
        let (rows, seconds) = (state.rows - state.resumed, self.start.elapsed().as_secs_f64());
        let before = match state.resumed {
            0 => String::new(),
            resumed => format!(" ({resumed} were there already)"),
        };
        let rate = state.tokens / seconds.max(1e-9);
        format!("{rows} prompts, {:.0} tokens in {seconds:.1} s ({rate:.0} tokens/s){before}", state.tokens)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn show(&self) {
        let mut state = self.state();
        let rows = state.rows as f64 + state.batches.iter().map(Batch::rows_done).sum::<f64>();
        let computed: f64 = state.batches.iter().map(|batch| batch.computed).sum();
        let elapsed = self.start.elapsed().as_secs_f64();
        let fresh = rows - state.resumed as f64;
        let left = match state.total as f64 - rows {
            left if left <= 0.0 || fresh <= 0.0 => String::new(),
            left => format!(", {} left", human_time(elapsed * left / fresh)),
        };
        let message = format!("{:.0} tokens/s{left}", (state.tokens + computed) / elapsed.max(1e-9));
        match (&self.bar, state.told) {
            (Some(bar), _) => {
                bar.set_position(rows as u64);
                bar.set_message(message);
            }
            (None, Some(told)) if told.elapsed() >= PLAIN_EVERY => {
                state.told = Some(Instant::now());
                super::tell(&format!("{rows:.0}/{} prompts, {message}", state.total));
            }
            _ => {}
        }
    }
}

fn human_time(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_for_people() {
        assert_eq!(human_time(7.4), "7 s");
        assert_eq!(human_time(61.0), "1 min 01 s");
        assert_eq!(human_time(7322.0), "2 h 02 min");
    }

    #[test]
    fn the_closing_line_counts_what_this_run_did() {
        let progress = Progress::new(10, true);
        progress.resumed(4);
        let (first, second) = (progress.batch(4, 40), progress.batch(2, 20));
        progress.advance(second, 20.0);
        progress.advance(first, 40.0);
        progress.batch_done();
        assert_eq!(progress.state().rows, 8);
        progress.batch_done();
        let line = progress.finish();
        assert!(
            line.starts_with("6 prompts, 60 tokens in ") && line.ends_with("(4 were there already)"),
            "{line}"
        );
    }
}
