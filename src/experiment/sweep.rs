//! `tuco sweep`: how accuracy moves with alpha, and what choosing alpha by cross-validation gains (5.1 of the paper).

use super::{
    batches::{self, Batch, Batching},
    questions::{Question, Row},
    worker::Worker,
};
use crate::{
    Error, Result,
    backend::Backend,
    engine::{Engine, Observer, Tokens},
    metrics::{Goal, cross_validate},
    model::PairWeights,
    output::{Axes, Folder, Report, Series, Table, curves},
};
use serde_json::{Map, Value, json};

/// The questions of one file.
pub struct Task {
    pub name: String,
    pub rows: Vec<Row>,
}

impl Task {
    fn questions(&self) -> impl Iterator<Item = &Question> {
        self.rows.iter().filter_map(|row| row.question.as_ref().ok())
    }
}

/// The numbers of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    pub alphas: Vec<f64>,
    pub folds: usize,
}

/// Checks what can be checked before anything is computed.
pub fn check(tasks: &[Task], grid: &Grid) -> Result<()> {
    if !grid.alphas.contains(&1.0) {
        return Err(Error::usage("--alphas has no 1, the tuned model, which the others are compared with"));
    }
    for task in tasks {
        let count = task.questions().count();
        if count < grid.folds {
            return Err(Error::usage(format!(
                "{} has {count} questions, fewer than {} folds",
                task.name, grid.folds
            )));
        }
    }
    Ok(())
}

/// Asks all questions under every alpha, on one engine for each device. Rows go to `folder` as they are ready.
///
/// # Returns
/// The summary.
pub fn run<B: Backend, W: PairWeights>(
    engines: &[Engine<'_, B, W>],
    tasks: &[Task],
    grid: &Grid,
    batching: &Batching<'_>,
    folder: &mut Folder,
) -> Result<Value> {
    let mut correct = vec![vec![Vec::new(); grid.alphas.len()]; tasks.len()];
    let tokens = |row: &Row| row.question.as_ref().map_or(0, |question| question.token_ids.len());
    let batches = (0..tasks.len()).flat_map(|task| {
        // A stream for each alpha is in memory.
        let batches = batches::split(&tasks[task].rows, batching, grid.alphas.len(), tokens).into_iter();
        batches.map(move |rows| Batch {
            of: (task, rows),
            rows: rows.len(),
            tokens: rows.iter().map(tokens).sum(),
        })
    });
    let compute = |worker: &Worker<'_, _>, (_, rows): &(usize, &[Row]), observer: Observer<'_>| {
        let questions: Vec<&Question> = rows.iter().filter_map(|row| row.question.as_ref().ok()).collect();
        let tokens = |question: &&Question| grid.alphas.len() * question.token_ids.len();
        let ask = |engine: &_, part: &[&Question], observer: Observer<'_>| {
            ask(engine, part, &grid.alphas, observer)
        };
        // Accuracy without the questions that a device does not hold would be another number.
        worker.in_parts(&questions, tokens, batching.warn, observer, ask)?.into_iter().collect()
    };
    batching.share(engines, batches, compute, |(task, rows), answers| {
        folder.append(&rows_of(&tasks[task].name, rows, answers, &mut correct[task]))
    })?;
    let summaries = tasks.iter().zip(&correct).map(|(task, correct)| summarize(task, grid, correct));
    let summaries: Vec<Value> = summaries.collect();
    Ok(json!({ "experiment": "sweep", "alphas": grid.alphas, "folds": grid.folds, "tasks": summaries }))
}

/// The logits of a question's answers, by alpha.
type Answers = Vec<Vec<f64>>;

fn ask<B: Backend, W: PairWeights>(
    engine: &Engine<'_, B, W>,
    questions: &[&Question],
    alphas: &[f64],
    observer: Observer<'_>,
) -> Result<Vec<Answers>> {
    let prompts: Vec<&[u32]> = questions.iter().map(|question| question.token_ids.as_slice()).collect();
    let mut tokens: Vec<u32> = questions.iter().flat_map(|question| question.answer_tokens.clone()).collect();
    tokens.sort_unstable();
    tokens.dedup();
    let logits = engine.steer(&prompts, alphas, Tokens::Of(&tokens), observer)?;
    let of_question = |(index, question): (usize, &&Question)| {
        logits.iter().map(|of_alpha| of_answers(question, &tokens, &of_alpha[index])).collect()
    };
    Ok(questions.iter().enumerate().map(of_question).collect())
}

/// The rows of a batch; `correct` gets for every alpha whether each question was answered as it is labelled.
fn rows_of(task: &str, batch: &[Row], answers: Vec<Answers>, correct: &mut [Vec<bool>]) -> Vec<Value> {
    let mut answers = answers.into_iter();
    let mut rows = Vec::with_capacity(batch.len());
    for Row { id, question } in batch {
        let mut row = Map::new();
        row.insert("id".into(), id.clone());
        row.insert("task".into(), task.into());
        match question {
            Err(problem) => {
                row.insert("error".into(), json!({ "type": "invalid_row", "message": problem }));
            }
            Ok(question) => {
                let of_alpha = answers.next().expect("logits for every question");
                let chosen: Vec<Option<usize>> =
                    of_alpha.iter().map(|logits| strictly_largest(logits)).collect();
                for (correct, chosen) in correct.iter_mut().zip(&chosen) {
                    correct.push(*chosen == Some(question.label));
                }
                let chosen = chosen.iter().map(|chosen| chosen.map(|index| &question.answers[index]));
                row.insert("label".into(), json!(question.answers[question.label]));
                row.insert("chosen".into(), json!(chosen.collect::<Vec<_>>()));
                row.insert("answers".into(), json!(question.answers));
                row.insert("logits".into(), json!(of_alpha));
                row.insert("n_tokens".into(), question.token_ids.len().into());
            }
        }
        rows.push(Value::Object(row));
    }
    rows
}

/// The logits of a question's answers, of those of all `tokens`, which are sorted.
fn of_answers(question: &Question, tokens: &[u32], logits: &[f64]) -> Vec<f64> {
    let logit = |token: &u32| logits[tokens.binary_search(token).expect("one of the tokens")];
    question.answer_tokens.iter().map(logit).collect()
}

/// The place of the largest value, if it is the only such.
fn strictly_largest(values: &[f64]) -> Option<usize> {
    let best = (0..values.len()).max_by(|a, b| values[*a].total_cmp(&values[*b]))?;
    (0..values.len()).all(|other| other == best || values[other] < values[best]).then_some(best)
}

fn share(correct: &[bool]) -> f64 {
    correct.iter().filter(|correct| **correct).count() as f64 / correct.len() as f64
}

fn summarize(task: &Task, grid: &Grid, correct: &[Vec<bool>]) -> Value {
    let accuracy: Vec<f64> = correct.iter().map(|correct| share(correct)).collect();
    let tuned = grid.alphas.iter().position(|alpha| *alpha == 1.0).map_or(f64::NAN, |place| accuracy[place]);
    let chosen = |goal| {
        let chosen = cross_validate(&grid.alphas, correct, grid.folds, goal).expect("checked before");
        let alphas: Vec<f64> = chosen.alphas.iter().map(|place| grid.alphas[*place]).collect();
        json!({ "acc_cv": chosen.accuracy, "delta_cv": chosen.accuracy - tuned, "alphas": alphas })
    };
    let errors = task.rows.iter().filter(|row| row.question.is_err()).count();
    json!({
        "name": task.name,
        "rows": task.rows.len(),
        "errors": errors,
        "accuracy": accuracy,
        "maximize": chosen(Goal::Maximize),
        "minimize": chosen(Goal::Minimize),
    })
}

/// Tables and plots of a summary; `None` where it lacks something.
pub fn report(summary: &Value) -> Option<Report> {
    let numbers =
        |value: &Value| -> Option<Vec<f64>> { value.as_array()?.iter().map(Value::as_f64).collect() };
    let (alphas, tasks) = (numbers(&summary["alphas"])?, summary["tasks"].as_array()?);
    let name = |task: &Value| task["name"].as_str().unwrap_or_default().to_owned();
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    let mut head = vec!["accuracy, %".to_owned()];
    head.extend(alphas.iter().map(f64::to_string));
    let mut accuracy =
        Table { caption: "Accuracy by alpha (1 is the tuned model)".into(), head, rows: Vec::new() };
    let head = ["", "rows", "Acc_CV max", "Δ_CV", "Acc_CV min", "Δ_CV"].map(str::to_owned).to_vec();
    let caption =
        format!("Alpha chosen by {}-fold cross-validation, in % and points", summary["folds"].as_u64()?);
    let mut chosen = Table { caption, head, rows: Vec::new() };
    let mut series = Vec::new();
    for task in tasks {
        let values = numbers(&task["accuracy"])?;
        let mut row = vec![name(task)];
        row.extend(values.iter().map(|share| percent(*share)));
        accuracy.rows.push(row);
        let mut row = vec![name(task), (task["rows"].as_u64()? - task["errors"].as_u64()?).to_string()];
        for goal in ["maximize", "minimize"] {
            row.push(percent(task[goal]["acc_cv"].as_f64()?));
            row.push(format!("{:+.2}", 100.0 * task[goal]["delta_cv"].as_f64()?));
        }
        chosen.rows.push(row);
        let mut points: Vec<(f64, f64)> = alphas.iter().copied().zip(values).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        series.push(Series::new(name(task), points));
    }
    let plot = curves(&Axes { x: "alpha", y: "accuracy" }, &series);
    Some(Report {
        title: "Accuracy under FTC scaling (sweep)".into(),
        notes: super::about(summary),
        tables: vec![accuracy, chosen],
        plots: plot.map(|svg| ("Accuracy against alpha".to_owned(), svg)).into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_choose_nothing() {
        assert_eq!(strictly_largest(&[1.0, 3.0, 2.0]), Some(1));
        assert_eq!(strictly_largest(&[3.0, 3.0, 2.0]), None);
        assert_eq!(strictly_largest(&[]), None);
    }
}
