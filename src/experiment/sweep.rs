//! `tuco sweep`: how accuracy moves with alpha, and what choosing alpha by cross-validation gains (5.1 of the paper).

use super::{
    batches::{Batch, Batching},
    filling::{Filling, cut},
    numbers,
    questions::{Question, Row},
    worker::Worker,
};
use crate::{
    Error, ErrorKind, Result,
    engine::{AnyEngine, Observer, Tokens},
    metrics::{Goal, accuracy, cross_validate, paired, wilson},
    output::{Axes, Folder, Report, Series, Table, curves},
    prompt::RowError,
};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// The questions of one file, or of one subject of it.
#[derive(Debug)]
pub struct Questions {
    pub name: String,
    pub rows: Vec<Row>,
}

impl Questions {
    /// Those that can be asked.
    pub fn asked(&self) -> impl Iterator<Item = &Question> {
        self.rows.iter().filter_map(|row| row.question.as_ref().ok())
    }
}

/// The numbers of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    pub alphas: Vec<f64>,
    pub folds: usize,
}

/// Checks what can be checked before anything is computed. Leaves out tasks of too few questions where there are others, which is what it
/// gives a sentence about each.
pub fn check(tasks: &mut Vec<Questions>, grid: &Grid) -> Result<Vec<String>> {
    if !grid.alphas.contains(&1.0) {
        return Err(Error::usage("--alphas has no 1, the tuned model, which the others are compared with"));
    }
    // Too many errors are no small task.
    let broken = |task: &Questions| {
        let errors: Vec<&RowError> = task.rows.iter().filter_map(|row| row.question.as_ref().err()).collect();
        let count = task.asked().count();
        let is_broken = count < grid.folds && errors.len() > count && task.rows.len() >= grid.folds;
        errors.first().filter(|_| is_broken).map(|first| {
            format!(
                "{}: {} of {} rows are errors, which leaves fewer questions than {} folds; the first: {}",
                task.name,
                errors.len(),
                task.rows.len(),
                grid.folds,
                first.message
            )
        })
    };
    if let Some(problem) = tasks.iter().find_map(broken) {
        return Err(Error::new(ErrorKind::BadRows, problem));
    }
    let problem = |task: &Questions| {
        let count = task.asked().count();
        let few = || format!("{} has {count} questions, fewer than {} folds", task.name, grid.folds);
        (count < grid.folds).then(few)
    };
    let problems: Vec<String> = tasks.iter().filter_map(problem).collect();
    match problems.first() {
        Some(first) if problems.len() == tasks.len() => Err(Error::usage(first)),
        _ => {
            tasks.retain(|task| problem(task).is_none());
            Ok(problems.iter().map(|problem| format!("{problem}: it is left out")).collect())
        }
    }
}

/// The most tokens that a batch of these questions asks for.
pub fn most_answers(tasks: &[Questions]) -> usize {
    let tokens = |task: &Questions| {
        let all = task.asked().flat_map(|question| question.answer_tokens.iter());
        all.collect::<HashSet<&u32>>().len()
    };
    tasks.iter().map(tokens).max().unwrap_or(0)
}

/// Asks all questions under every alpha, on one engine for each device. Rows go to `folder` as they are ready.
///
/// # Returns
/// The summary.
///
/// # Errors
/// As [`Batching::share`]; [`ErrorKind::NotFinite`] where the logits of so many questions of every task overflow that fewer than the folds
/// are left. Such a task is left out where there are others.
pub fn run(
    engines: &[&dyn AnyEngine],
    tasks: &[Questions],
    grid: &Grid,
    batching: &Batching<'_>,
    folder: &mut Folder,
) -> Result<Value> {
    for task in tasks {
        // Accuracy without the questions that memory does not hold would be another number.
        for (row, question) in task.rows.iter().filter_map(|row| Some((row, row.question.as_ref().ok()?))) {
            let fits = batching.limits.check(question.token_ids.len());
            fits.map_err(|error| too_large(task, &row.id, &error.message))?;
        }
    }
    let mut correct = vec![vec![Vec::new(); grid.alphas.len()]; tasks.len()];
    let workers = Worker::of_each(engines, batching.pools);
    let left = count_written(tasks, folder, &workers, &mut correct)?;
    batching
        .progress
        .resumed(tasks.iter().zip(&left).map(|(task, left)| (task.rows.len() - left.len()) as u64).sum());
    let batches = (0..tasks.len()).flat_map(|task| {
        // A stream for each alpha is in memory.
        let filling = Filling::new(batching.limits, engines[0].row_count(), 0, grid.alphas.len());
        let batches =
            cut(left[task], filling, |row| Some(row.question.as_ref().ok()?.token_ids.as_slice().into()));
        batches.into_iter().map(move |rows| Batch {
            of: (task, rows),
            rows: rows.len(),
            tokens: rows.iter().map(tokens_of).sum(),
        })
    });
    let compute = |worker: &Worker<'_, _>, (task, rows): &(usize, &[Row]), observer: Observer<'_>| {
        let asked = || rows.iter().filter_map(|row| Some((&row.id, row.question.as_ref().ok()?)));
        let questions: Vec<&Question> = asked().map(|(_, question)| question).collect();
        let tokens = |question: &&Question| grid.alphas.len() * question.token_ids.len();
        let ask = |engine: &&dyn AnyEngine, part: &[&Question], observer: Observer<'_>| {
            ask(*engine, part, &grid.alphas, observer)
        };
        let answers = worker.in_parts(&questions, tokens, batching.warn, observer, ask)?;
        let of_question = |(answers, (id, _)): (Result<Answers>, (&Value, _))| {
            answers.map_err(|error| too_large(&tasks[*task], id, &error.message))
        };
        answers.into_iter().zip(asked()).map(of_question).collect()
    };
    batching.share(&workers, batches, compute, |(task, rows), answers| {
        let written = rows_of(&tasks[task].name, rows, &grid.alphas, answers);
        rows.iter().zip(&written).for_each(|(row, written)| count(row, written, &mut correct[task]));
        folder.append(&written)
    })?;
    let (mut summaries, mut failure) = (Vec::new(), None);
    for (task, correct) in tasks.iter().zip(&correct) {
        match summarize(task, grid, correct) {
            Ok(summary) => summaries.push(summary),
            Err(error) => {
                (batching.warn)(&format!("{error}: it is left out"));
                failure = Some(error);
            }
        }
    }
    if let (true, Some(error)) = (summaries.is_empty(), failure) {
        return Err(error);
    }
    let mean = mean_of_tasks(&summaries);
    Ok(json!({
        "experiment": "sweep",
        "alphas": grid.alphas,
        "folds": grid.folds,
        "tasks": summaries,
        "mean": mean,
    }))
}

fn too_large(task: &Questions, id: &Value, error: &str) -> Error {
    let name = &task.name;
    Error::usage(format!("{name} row {id}: {error}; fewer --alphas or a smaller --max-length would do"))
}

/// The logits of a question's answers, by alpha.
type Answers = Vec<Vec<f64>>;

fn ask(
    engine: &dyn AnyEngine,
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

fn tokens_of(row: &Row) -> usize {
    row.question.as_ref().map_or(0, |question| question.token_ids.len())
}

/// Counts the rows that an earlier run wrote.
///
/// # Returns
/// The rows of each task that are left.
fn count_written<'t>(
    tasks: &'t [Questions],
    folder: &mut Folder,
    workers: &[Worker<'_, &dyn AnyEngine>],
    correct: &mut [Vec<Vec<bool>>],
) -> Result<Vec<&'t [Row]>> {
    let mut left: Vec<&[Row]> = tasks.iter().map(|task| task.rows.as_slice()).collect();
    for (left, correct) in left.iter_mut().zip(correct) {
        while let Some((row, later)) = left.split_first()
            && let Some(written) = folder.next_written(&row.id)?
        {
            let tokens = correct.len() * tokens_of(row);
            workers.iter().for_each(|worker| worker.note_written(&written, tokens));
            count(row, &written.into(), correct);
            *left = later;
        }
    }
    Ok(left)
}

/// `correct` gets for every alpha whether a question was answered as it is labelled, errors left out.
fn count(row: &Row, written: &Value, correct: &mut [Vec<bool>]) {
    let (Ok(question), None) = (&row.question, written.get("error")) else { return };
    let label = &question.answers[question.label];
    for (place, correct) in correct.iter_mut().enumerate() {
        correct.push(written["chosen"][place] == label.as_str());
    }
}

/// The rows of a batch.
fn rows_of(task: &str, batch: &[Row], alphas: &[f64], answers: Vec<Answers>) -> Vec<Value> {
    let mut answers = answers.into_iter();
    let mut rows = Vec::with_capacity(batch.len());
    for Row { id, question } in batch {
        let mut row = Map::new();
        row.insert("id".into(), id.clone());
        row.insert("task".into(), task.into());
        let fields = question.as_ref().map_err(RowError::clone).and_then(|question| {
            let answers = answers.next().expect("logits for every question");
            check_finite(&answers, alphas)?;
            Ok(answered(question, &answers))
        });
        match fields {
            Ok(fields) => row.extend(fields),
            Err(problem) => {
                row.insert("error".into(), problem.to_json());
            }
        }
        rows.push(Value::Object(row));
    }
    rows
}

/// # Errors
/// Where logits are not numbers: they choose no answer, not a wrong one.
fn check_finite(answers: &Answers, alphas: &[f64]) -> Result<(), RowError> {
    for (logits, alpha) in answers.iter().zip(alphas) {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(RowError::not_finite_logits(format_args!("of the answers under alpha {alpha}")));
        }
    }
    Ok(())
}

/// The fields of a question's row.
fn answered(question: &Question, answers: &Answers) -> Map<String, Value> {
    let chosen = answers.iter().map(|logits| strictly_largest(logits).map(|index| &question.answers[index]));
    let mut fields = Map::new();
    fields.insert("label".into(), json!(question.answers[question.label]));
    fields.insert("chosen".into(), json!(chosen.collect::<Vec<_>>()));
    fields.insert("answers".into(), json!(question.answers));
    fields.insert("logits".into(), json!(answers));
    fields.insert("n_tokens".into(), question.token_ids.len().into());
    if question.truncated {
        fields.insert("truncated".into(), true.into());
    }
    fields
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

/// # Errors
/// [`ErrorKind::NotFinite`] where fewer questions than folds have logits that are numbers.
fn summarize(task: &Questions, grid: &Grid, correct: &[Vec<bool>]) -> Result<Value> {
    let (count, answered) = (task.asked().count(), correct.first().map_or(0, Vec::len));
    if answered < grid.folds {
        let message = format!(
            "{}: {answered} of {count} questions have logits that are numbers, fewer than {} folds; the hidden states of the \
             others overflowed",
            task.name, grid.folds
        );
        return Err(Error::new(ErrorKind::NotFinite, message));
    }
    let accuracies: Vec<f64> = correct.iter().map(|correct| accuracy(correct)).collect();
    let tuned = grid.alphas.iter().position(|alpha| *alpha == 1.0).expect("checked");
    let chosen = |goal| {
        let chosen = cross_validate(&grid.alphas, correct, grid.folds, goal).expect("enough questions");
        let alphas: Vec<f64> = chosen.alphas.iter().map(|place| grid.alphas[*place]).collect();
        let both = || chosen.correct.iter().zip(&correct[tuned]);
        let gained = both().filter(|(chosen, tuned)| **chosen && !**tuned).count();
        let lost = both().filter(|(chosen, tuned)| !**chosen && **tuned).count();
        json!({
            "acc_cv": accuracy(&chosen.correct),
            "delta_cv": accuracy(&chosen.correct) - accuracies[tuned],
            "delta_cv_95": paired(gained, lost, answered),
            "alphas": alphas,
        })
    };
    Ok(json!({
        "name": task.name,
        "rows": task.rows.len(),
        "errors": task.rows.len() - answered,
        "accuracy": accuracies,
        "maximize": chosen(Goal::Maximize),
        "minimize": chosen(Goal::Minimize),
    }))
}

/// The mean over tasks, each counting as much as the others whatever its number of questions, of what is told of each.
fn mean_of_tasks(tasks: &[Value]) -> Value {
    let mean = |of: &dyn Fn(&Value) -> &Value| {
        let values: Vec<f64> = tasks.iter().filter_map(|task| of(task).as_f64()).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    let alphas = tasks.first().and_then(|task| task["accuracy"].as_array()).map_or(0, Vec::len);
    let chosen = |goal: &str| {
        let of = |number: &str| mean(&|task| &task[goal][number]);
        json!({ "acc_cv": of("acc_cv"), "delta_cv": of("delta_cv") })
    };
    json!({
        "accuracy": (0..alphas).map(|place| mean(&|task| &task["accuracy"][place])).collect::<Vec<_>>(),
        "maximize": chosen("maximize"),
        "minimize": chosen("minimize"),
    })
}

/// Tables and plots of a summary; `None` where it lacks something.
pub fn report(summary: &Value) -> Option<Report> {
    let (alphas, tasks) = (numbers(&summary["alphas"])?, summary["tasks"].as_array()?);
    let name = |task: &Value| task["name"].as_str().unwrap_or_default().to_owned();
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    let points = |share: f64| format!("{:+.2}", 100.0 * share);
    let mut head = vec!["accuracy, %".to_owned()];
    head.extend(alphas.iter().map(f64::to_string));
    let mut accuracy = Table::new("Accuracy by alpha (1 is the tuned model)", head, Vec::new());
    let head = ["", "rows", "Acc_CV max", "Δ_CV", "95 %", "Acc_CV min", "Δ_CV", "95 %"];
    let caption = format!(
        "Alpha chosen by {}-fold cross-validation, in % and points (Δ_CV with Tango's 95 % interval)",
        summary["folds"].as_u64()?
    );
    let mut chosen = Table::new(caption, head, Vec::new());
    let mut series = Vec::new();
    let mut tell = |name: String, rows: String, of: &Value| {
        let values = numbers(&of["accuracy"])?;
        let mut row = vec![name.clone()];
        row.extend(values.iter().map(|share| percent(*share)));
        accuracy.rows.push(row);
        let mut row = vec![name, rows];
        for goal in ["maximize", "minimize"] {
            row.push(percent(of[goal]["acc_cv"].as_f64()?));
            row.push(points(of[goal]["delta_cv"].as_f64()?));
            let interval = numbers(&of[goal]["delta_cv_95"]);
            row.push(match interval.as_deref() {
                Some([low, high]) => format!("{} to {}", points(*low), points(*high)),
                _ => "–".to_owned(),
            });
        }
        chosen.rows.push(row);
        Some(values)
    };
    for task in tasks {
        let rows = task["rows"].as_u64()? - task["errors"].as_u64()?;
        let values = tell(name(task), rows.to_string(), task)?;
        let mut points: Vec<(f64, f64)> = alphas.iter().copied().zip(values).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = task["rows"].as_f64()? - task["errors"].as_f64()?;
        let intervals = points.iter().map(|(_, share)| wilson(*share, count)).collect();
        series.push(Series::new(name(task), points).with_intervals(intervals));
    }
    if tasks.len() > 1 {
        tell(format!("mean of {} tasks", tasks.len()), String::new(), &summary["mean"])?;
    }
    let mut marks = alphas.clone();
    marks.sort_by(f64::total_cmp);
    let marks = marks.iter().map(|alpha| (*alpha, alpha.to_string()));
    let plot = curves(&Axes::new("alpha", "accuracy").with_marks(marks).of_shares(), &series);
    Some(Report {
        title: "Accuracy under FTC scaling (sweep)".into(),
        notes: super::about(summary),
        tables: vec![accuracy, chosen],
        plots: plot
            .map(|svg| ("Accuracy against alpha, with 95 % intervals (Wilson)".to_owned(), svg))
            .into_iter()
            .collect(),
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

    /// The table of `metrics::cross_validate`'s own test, of which alpha 1 is right in two of ten.
    #[test]
    fn what_choosing_alpha_adds_is_told_against_the_tuned_model() {
        let row = |id: u64| Row { id: id.into(), question: Err(RowError::not_finite("")) };
        let task = Questions { name: "t".into(), rows: (0..10).map(row).collect() };
        let correct = |right: &dyn Fn(usize) -> bool| (0..10).map(right).collect::<Vec<bool>>();
        let table =
            [correct(&|row| row % 5 == 0), correct(&|row| row % 5 == 1), correct(&|row| row % 5 != 0)];
        let grid = Grid { alphas: vec![0.5, 1.0, 1.5], folds: 5 };
        let found = summarize(&task, &grid, &table).unwrap();
        assert_eq!(found["accuracy"], json!([0.2, 0.2, 0.8]));
        let near = |goal: &str, field: &str, expected: f64| {
            assert!((found[goal][field].as_f64().unwrap() - expected).abs() < 1e-12, "{found}");
        };
        near("maximize", "acc_cv", 0.8);
        near("maximize", "delta_cv", 0.6);
        near("minimize", "acc_cv", 0.4);
        near("minimize", "delta_cv", 0.2);
        assert_eq!(found["minimize"]["alphas"], json!([0.5, 1.0, 1.0, 1.0, 1.0]));
    }

    /// A question whose answers have an overflow is neither right nor wrong.
    #[test]
    fn logits_that_are_no_numbers_are_errors() {
        let question = |label| Question {
            token_ids: vec![1],
            truncated: false,
            answers: vec!["Yes".into(), "No".into()],
            answer_tokens: vec![2, 3],
            label,
        };
        let row = |id: u64, label| Row { id: id.into(), question: Ok(question(label)) };
        let task = Questions { name: "t".into(), rows: vec![row(1, 0), row(2, 0), row(3, 1)] };
        let answers = vec![
            vec![vec![2.0, 1.0], vec![2.0, 1.0]],
            vec![vec![2.0, 1.0], vec![f64::NAN, 1.0]],
            vec![vec![2.0, 1.0], vec![1.0, 2.0]],
        ];
        let mut correct: Vec<Vec<bool>> = vec![Vec::new(); 2];
        let rows = rows_of("t", &task.rows, &[0.5, 1.0], answers);
        task.rows.iter().zip(&rows).for_each(|(row, written)| count(row, written, &mut correct));
        assert_eq!(correct, [[true, false], [true, true]]);
        assert!(rows[0]["error"].is_null() && rows[2]["error"].is_null());
        assert_eq!(rows[1]["error"]["type"], "not_finite");
        assert!(
            rows[1]["error"]["message"].as_str().unwrap().contains("under alpha 1 are not numbers"),
            "{}",
            rows[1]
        );
        let grid = |folds| Grid { alphas: vec![0.5, 1.0], folds };
        let summary = summarize(&task, &grid(2), &correct).unwrap();
        assert_eq!((&summary["errors"], &summary["accuracy"]), (&json!(1), &json!([0.5, 1.0])));
        let error = summarize(&task, &grid(3), &correct).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFinite);
        assert!(error.message.contains("2 of 3 questions") && error.message.contains("3 folds"), "{error}");
    }
}
