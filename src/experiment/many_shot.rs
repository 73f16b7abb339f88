//! `tuco many-shot`: TuCo, and OutputCo, against the number of examples that come before a prompt (5.3 and 5.5 of the
//! paper).

use super::{
    batches::{self, Batching},
    interval, number,
    score::Scoring,
    task::fields_or_error,
};
use crate::{
    Error, Result,
    metrics::mean,
    output::{Axes, Folder, Report, Series, Table, curves},
    prompt::{Content, Line, RowErrorKind},
};
use serde_json::{Value, json};

/// Most shots of the default ladder.
const MOST_SHOTS: usize = 128;

/// Which rung of which ladder a prompt is.
#[derive(Debug)]
pub struct Rung {
    /// The question's place among all.
    pub question: usize,
    pub shots: usize,
}

pub type Prompt = batches::Prompt<Rung>;

/// The field of an example's answer, beside `prompt`.
pub const RESPONSE: &str = "response";

/// Without examples, and with 1, 2, 4, … of them.
pub fn default_shots(examples: usize) -> Vec<usize> {
    let doubled = std::iter::successors(Some(1), |shots| Some(shots * 2));
    [0].into_iter().chain(doubled.take_while(|shots| *shots <= examples.min(MOST_SHOTS))).collect()
}

/// The messages of an example: `messages` that end with the assistant's, or `prompt` and `response`. A system message is left out: one
/// that came with each shot would count as shots.
///
/// # Errors
/// What is missing.
pub fn example(line: Line) -> std::result::Result<Vec<Value>, String> {
    const EXPECTED: &str = "expected prompt and response, or messages that end with the assistant's";
    let response = line.other.get(RESPONSE).and_then(Value::as_str);
    match (line.content.map_err(|error| error.message)?, response) {
        (Content::Prompt(prompt), Some(response)) => Ok(vec![
            json!({ "role": "user", "content": prompt }),
            json!({ "role": "assistant", "content": response }),
        ]),
        (Content::Messages(messages), None)
            if messages.last().is_some_and(|last| last["role"] == "assistant") =>
        {
            Ok(messages.into_iter().filter(|message| message["role"] != "system").collect())
        }
        (Content::Prompt(_), None) => Err(format!("has no {RESPONSE}, {EXPECTED}")),
        _ => Err(format!("is no example, {EXPECTED}")),
    }
}

/// The conversation that asks a question after examples; its own system message stays the first.
///
/// # Errors
/// Token ids, which nothing can be put before.
pub fn conversation(examples: &[Vec<Value>], question: Content) -> std::result::Result<Content, String> {
    let question = match question {
        Content::Prompt(text) => vec![json!({ "role": "user", "content": text })],
        Content::Messages(messages) => messages,
        Content::TokenIds(_) => {
            return Err("token_ids cannot follow examples; give prompt or messages".into());
        }
    };
    let own = question.iter().position(|message| message["role"] != "system").unwrap_or(question.len());
    let (system, asked) = question.split_at(own);
    Ok(Content::Messages(system.iter().chain(examples.iter().flatten()).chain(asked).cloned().collect()))
}

/// Leaves out, from the end of a ladder that the caller did not choose, the rungs that no question's prompt fits; refuses
/// prompts that can never be scored.
///
/// # Errors
/// A usage error for a chosen number of shots that no prompt fits, and where nothing is left.
pub fn check(prompts: &mut Vec<Prompt>, shots: &mut Vec<usize>, is_chosen: bool) -> Result<()> {
    while let Some(most) = shots.last().copied() {
        let mut of_rung = prompts.iter().filter(|prompt| prompt.about.shots == most);
        let Some(failure) = of_rung.clone().find_map(|prompt| prompt.encoded.as_ref().err()) else { break };
        if of_rung.any(|prompt| prompt.encoded.is_ok()) {
            break;
        }
        let is_too_long = failure.kind == RowErrorKind::TooLong;
        if is_chosen || !is_too_long || shots.len() == 1 {
            let problem = &failure.message;
            return Err(Error::usage(format!(
                "no question can be asked after {most} shots; the first: {problem}"
            )));
        }
        shots.pop();
        prompts.retain(|prompt| prompt.about.shots != most);
    }
    if prompts.is_empty() {
        return Err(Error::usage("the inputs have no questions"));
    }
    Ok(())
}

/// The numbers of a prompt.
#[derive(Clone, Copy)]
struct Numbers {
    tuco: f64,
    output_co: Option<f64>,
    tokens: f64,
    truncated: bool,
}

/// Scores all prompts, which are ordered by question, on one task for each device. Rows go to `folder` as they are ready.
///
/// # Returns
/// The summary.
///
/// # Errors
/// As [`Batching::pass`].
pub fn run(
    scoring: &[Scoring<'_>],
    prompts: &[Prompt],
    shots: &[usize],
    batching: &Batching<'_>,
    folder: &mut Folder,
) -> Result<Value> {
    let questions = prompts.iter().map(|prompt| prompt.about.question + 1).max().unwrap_or(0);
    let mut table: Vec<Vec<Option<Numbers>>> = vec![vec![None; questions]; shots.len()];
    let row = |prompt: &Prompt, outcome| {
        let shots = ("shots".to_owned(), json!(prompt.about.shots));
        [shots].into_iter().chain(fields_or_error(outcome)).collect()
    };
    batching.pass(scoring, prompts, folder, row, |prompt, row| {
        let Rung { question, shots: own } = prompt.about;
        let number = |name: &str| row.get(name).and_then(Value::as_f64);
        if let (Some(rung), Some(tuco), Some(tokens)) =
            (shots.iter().position(|shots| *shots == own), number("tuco"), number("n_tokens"))
        {
            let (output_co, truncated) = (number("output_co"), row.contains_key("truncated"));
            table[rung][question] = Some(Numbers { tuco, output_co, tokens, truncated });
        }
    })?;
    Ok(json!({
        "experiment": "many-shot",
        "questions": questions,
        "rows": prompts.len(),
        "errors": prompts.len() - table.iter().flatten().flatten().count(),
        "rungs": shots.iter().zip(&table).map(|(shots, rung)| describe(*shots, rung, &table[0])).collect::<Vec<_>>(),
    }))
}

/// Means of a rung, and of what changed since the first one with the same questions.
fn describe(shots: usize, rung: &[Option<Numbers>], first: &[Option<Numbers>]) -> Value {
    let of = |number: &dyn Fn(&Numbers) -> Option<f64>| -> Value {
        let values: Vec<f64> = rung.iter().flatten().filter_map(number).collect();
        let both = rung.iter().zip(first).filter_map(|(now, then)| Some((now.as_ref()?, then.as_ref()?)));
        let changes: Vec<f64> = both.filter_map(|(now, then)| Some(number(now)? - number(then)?)).collect();
        let Some((center, interval)) = mean(&values) else { return Value::Null };
        let (change, change_interval) = mean(&changes).unzip();
        json!({
            "mean": center,
            "mean_95": interval,
            "change": change,
            "change_95": change_interval.flatten(),
        })
    };
    let tokens: Vec<f64> = rung.iter().flatten().map(|numbers| numbers.tokens).collect();
    json!({
        "shots": shots,
        "rows": rung.len(),
        "errors": rung.len() - tokens.len(),
        "truncated": rung.iter().flatten().filter(|numbers| numbers.truncated).count(),
        "mean_tokens": mean(&tokens).map(|(mean, _)| mean),
        "tuco": of(&|numbers| Some(numbers.tuco)),
        "output_co": of(&|numbers| numbers.output_co),
    })
}

/// Tables and plots of a summary; `None` where it lacks something.
pub fn report(summary: &Value) -> Option<Report> {
    let interval = |value: &Value| interval(value, 4);
    let rungs = summary["rungs"].as_array()?;
    let (mut tables, mut series) = (Vec::new(), Vec::new());
    // Shots double from one to the next.
    let place = |shots: f64| (1.0 + shots).log2();
    for (name, field) in [("TuCo", "tuco"), ("OutputCo", "output_co")] {
        let measured: Vec<&Value> = rungs.iter().filter(|rung| rung[field].is_object()).collect();
        if measured.is_empty() {
            continue;
        }
        let row = |rung: &&Value| {
            let found = &rung[field];
            let scored = rung["rows"].as_u64()? - rung["errors"].as_u64()?;
            Some(vec![
                rung["shots"].to_string(),
                scored.to_string(),
                format!("{:.0}", rung["mean_tokens"].as_f64()?),
                number(&found["mean"]),
                interval(&found["mean_95"]),
                number(&found["change"]),
                interval(&found["change_95"]),
            ])
        };
        tables.push(Table::new(
            format!("{name} by number of shots; the change is since the first row, question by question"),
            ["shots", "prompts", "tokens", "mean", "95 %", "change", "95 % of the change"],
            measured.iter().map(row).collect::<Option<Vec<_>>>()?,
        ));
        let points: Option<Vec<(f64, f64)>> = measured
            .iter()
            .map(|rung| Some((place(rung["shots"].as_f64()?), rung[field]["mean"].as_f64()?)))
            .collect();
        let points = points?;
        let intervals = measured.iter().zip(&points).map(|(rung, (_, y))| {
            let ends = &rung[field]["mean_95"];
            (ends[0].as_f64().unwrap_or(*y), ends[1].as_f64().unwrap_or(*y))
        });
        let intervals = intervals.collect();
        series.push(Series::new(name, points).with_intervals(intervals));
    }
    let marks =
        rungs.iter().filter_map(|rung| Some((place(rung["shots"].as_f64()?), rung["shots"].to_string())));
    let axes = Axes::new("shots", "mean").with_marks(marks).of_shares();
    let names: Vec<&str> = series.iter().map(|series| series.name.as_str()).collect();
    let caption = format!("Mean {} against the number of shots, with 95 % intervals", names.join(" and "));
    let mut notes = super::about(summary);
    let count = |name: &str| summary[name].as_u64();
    notes.push(format!(
        "{} questions, {} prompts, {} errors",
        count("questions")?,
        count("rows")?,
        count("errors")?
    ));
    if count("truncated").is_some_and(|cut| cut > 0) {
        notes.push("What was cut may be shots, so that prompts had fewer than it says.".to_owned());
    }
    Some(Report {
        title: "TuCo against the number of shots (many-shot)".into(),
        notes,
        tables,
        plots: curves(&axes, &series).map(|svg| (caption, svg)).into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ladders_double_up_to_the_examples() {
        assert_eq!(default_shots(9), [0, 1, 2, 4, 8]);
        assert_eq!(default_shots(0), [0]);
        assert_eq!(default_shots(1000).last(), Some(&128));
    }

    #[test]
    fn examples_come_between_system_message_and_question() {
        let message = |role: &str| json!({ "role": role, "content": role });
        let examples = [vec![message("user"), message("assistant")]];
        let question = Content::Messages(vec![message("system"), message("user")]);
        let Ok(Content::Messages(all)) = conversation(&examples, question) else { panic!("it is none") };
        let roles: Vec<&str> = all.iter().filter_map(|message| message["role"].as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert!(conversation(&examples, Content::TokenIds(vec![1])).is_err());
    }

    #[test]
    fn system_messages_are_no_shots() {
        let messages = ["system", "user", "assistant"].map(|role| json!({ "role": role, "content": role }));
        let content = Ok(Content::Messages(messages.to_vec()));
        let line = Line {
            number: 1,
            place: "x.jsonl:1".into(),
            id: json!(1),
            label: None,
            meta: None,
            content,
            other: serde_json::Map::new(),
        };
        assert_eq!(example(line).unwrap(), messages[1..]);
    }

    #[test]
    fn changes_are_of_the_same_questions() {
        let numbers = |tuco: f64| Some(Numbers { tuco, output_co: None, tokens: 1.0, truncated: false });
        let (first, rung) = ([numbers(0.5), numbers(0.3), None], [numbers(0.4), None, numbers(0.9)]);
        let found = describe(2, &rung, &first);
        assert!((found["tuco"]["mean"].as_f64().unwrap() - 0.65).abs() < 1e-12);
        assert!((found["tuco"]["change"].as_f64().unwrap() + 0.1).abs() < 1e-12);
        assert_eq!((&found["output_co"], &found["errors"]), (&Value::Null, &json!(1)));
    }
}
