//! `tuco bench`: how fast a pair of a shape is scored, and what one forward pass of the same engine takes.

use super::cost::Operations;
use crate::{Result, backend::KernelTime, model::ModelSpec};
use serde_json::{Value, json};
use std::fmt::Write;

/// What the machine can do at most, measured elsewhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ceilings {
    /// Operations a second of products in bf16.
    pub operations: Option<f64>,
    /// Bytes a second that a copy reads and writes together.
    pub bytes: Option<f64>,
}

/// Prompts of the lengths in turn, `tokens` tokens or a little more, of ids below `vocabulary`.
pub fn prompts(tokens: usize, lengths: &[usize], vocabulary: usize) -> Vec<Vec<u32>> {
    let (mut prompts, mut sum) = (Vec::new(), 0);
    for (index, length) in lengths.iter().cycle().enumerate() {
        if sum >= tokens {
            break;
        }
        prompts.push((0..*length).map(|i| ((i * 7919 + index * 104_729) % vocabulary) as u32).collect());
        sum += length;
    }
    prompts
}

/// Times of one kind of run.
#[derive(Debug, Clone)]
pub struct Timing {
    pub name: &'static str,
    /// Of each repetition, in seconds.
    pub seconds: Vec<f64>,
    /// What all prompts cannot do without.
    pub operations: f64,
}

impl Timing {
    pub fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    /// The longest time less the shortest, of the median.
    fn spread(&self) -> f64 {
        let most = self.seconds.iter().copied().fold(0.0, f64::max);
        let least = self.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        (most - least) / self.median()
    }
}

/// Operations of all prompts of these lengths.
pub fn operations(spec: &ModelSpec, prompts: &[Vec<u32>]) -> Operations {
    let mut sum = Operations { pass: 0.0, score: 0.0 };
    for length in prompts.iter().map(|prompt| prompt.len() as f64) {
        let Operations { pass, score } = Operations::per_token(spec, length);
        sum.pass += length * pass;
        sum.score += length * score;
    }
    sum
}

/// Something to be timed.
pub struct Timed<'a> {
    pub name: &'static str,
    /// See [`Timing::operations`].
    pub operations: f64,
    pub run: &'a mut dyn FnMut() -> Result<()>,
}

/// Runs each of `runs` in turn, `repeat` times after one time to warm up, and takes its time.
pub fn time(repeat: usize, runs: &mut [Timed<'_>], mut clock: impl FnMut() -> f64) -> Result<Vec<Timing>> {
    let timing =
        |timed: &Timed| Timing { name: timed.name, seconds: Vec::new(), operations: timed.operations };
    let mut timings: Vec<Timing> = runs.iter().map(timing).collect();
    for repetition in 0..=repeat {
        for (timed, timing) in runs.iter_mut().zip(&mut timings) {
            let start = clock();
            (timed.run)()?;
            if repetition > 0 {
                timing.seconds.push(clock() - start);
            }
        }
    }
    Ok(timings)
}

/// A table in Markdown: speeds, and of the ceiling of products.
pub fn table(tokens: usize, timings: &[Timing], ceilings: Ceilings) -> String {
    let mut text =
        "| | ms | spread | tokens/s | TFLOP/s | of the floor |\n|---|---:|---:|---:|---:|---:|\n".to_string();
    for timing in timings {
        let median = timing.median();
        let rate = timing.operations / median;
        let share = ceilings.operations.map_or("-".into(), |most| format!("{:.3}", rate / most));
        let _ = writeln!(
            text,
            "| {} | {:.2} | {:.1} % | {:.0} | {:.2} | {share} |",
            timing.name,
            median * 1e3,
            timing.spread() * 100.0,
            tokens as f64 / median,
            rate / 1e12,
        );
    }
    text
}

/// A table of kernels, the longest first. A kernel's floor is the longer of its operations and its bytes at the ceilings.
pub fn kernel_table(kernels: &[KernelTime], ceilings: Ceilings) -> String {
    let all: f64 = kernels.iter().map(|kernel| kernel.seconds).sum();
    let mut sorted: Vec<&KernelTime> = kernels.iter().collect();
    sorted.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let mut text = "| kernel | launches | ms | of all | TFLOP/s | GB/s | of its floor |\n|---|---:|---:|---:|---:|---:|---:|\n".to_string();
    for kernel in sorted {
        let _ = writeln!(
            text,
            "| {}{} | {} | {:.2} | {:.1} % | {:.1} | {:.0} | {} |",
            kernel.kernel,
            kernel.weight.map_or(String::new(), |[rows, cols]| format!(" {rows} × {cols}")),
            kernel.launches,
            kernel.seconds * 1e3,
            kernel.seconds / all * 100.0,
            kernel.operations / kernel.seconds / 1e12,
            kernel.bytes / kernel.seconds / 1e9,
            floor_share(kernel, ceilings).map_or("-".into(), |share| format!("{share:.3}")),
        );
    }
    text
}

fn floor_share(kernel: &KernelTime, ceilings: Ceilings) -> Option<f64> {
    let (operations, bytes) = (ceilings.operations?, ceilings.bytes?);
    Some((kernel.operations / operations).max(kernel.bytes / bytes) / kernel.seconds)
}

/// The same as JSON.
pub fn summary(tokens: usize, timings: &[Timing], kernels: &[KernelTime], ceilings: Ceilings) -> Value {
    let timing = |timing: &Timing| {
        json!({
            "name": timing.name,
            "seconds": timing.seconds,
            "median_seconds": timing.median(),
            "tokens_per_second": tokens as f64 / timing.median(),
            "operations": timing.operations,
            "of_floor": ceilings.operations.map(|most| timing.operations / timing.median() / most),
        })
    };
    let kernel = |kernel: &KernelTime| {
        json!({
            "kernel": kernel.kernel,
            "weight": kernel.weight,
            "launches": kernel.launches,
            "seconds": kernel.seconds,
            "operations": kernel.operations,
            "bytes": kernel.bytes,
            "of_floor": floor_share(kernel, ceilings),
        })
    };
    json!({
        "tokens": tokens,
        "timings": timings.iter().map(timing).collect::<Vec<_>>(),
        "kernels": kernels.iter().map(kernel).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_take_turns_and_the_first_round_does_not_count() {
        let (mut now, mut a, mut b) = (0.0, 0, 0);
        let mut first = || {
            a += 1;
            Ok(())
        };
        let mut second = || {
            b += 1;
            Ok(())
        };
        let clock = || {
            now += 1.0;
            now
        };
        let mut runs = [
            Timed { name: "first", operations: 8.0, run: &mut first },
            Timed { name: "second", operations: 1.0, run: &mut second },
        ];
        let timings = time(3, &mut runs, clock).unwrap();
        assert_eq!((a, b), (4, 4));
        assert_eq!(timings[0].seconds, [1.0; 3]);
        let table = table(10, &timings, Ceilings { operations: Some(16.0), bytes: None });
        assert!(table.contains("| first | 1000.00 | 0.0 % | 10 | 0.00 | 0.500 |"), "{table}");
    }

    #[test]
    fn prompts_fill_the_tokens_in_turn() {
        let lengths: Vec<usize> = prompts(10, &[4, 1], 7).iter().map(Vec::len).collect();
        assert_eq!(lengths, [4, 1, 4, 1]);
        assert!(prompts(10, &[4, 1], 7).iter().flatten().all(|id| *id < 7));
    }
}
