//! Questions with a fixed set of answers, as they are published: Model-Written Evaluations (JSONL), MMLU (CSV, Parquet), and a
//! plain format of ours.

use crate::{
    Error, Result,
    paths::has_extension,
    prompt::{Content, Encoded, Encoder, Fields, RowError, RowErrorKind, Source, take_id},
};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

/// A question, ready for a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    pub token_ids: Vec<u32>,
    /// Tokens were left out.
    pub truncated: bool,
    pub answers: Vec<String>,
    /// The first token of each answer that they do not have in common; no two are the same.
    pub answer_tokens: Vec<u32>,
    /// Which answer is the labelled one.
    pub label: usize,
}

/// A row of a file: its id, and the question or what is wrong with it.
#[derive(Debug)]
pub struct Row {
    pub id: Value,
    pub question: Result<Question, RowError>,
}

/// Example questions that come before each of MMLU's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Examples {
    /// By subject, those before a question with their answers; files that tell no subject have all under the empty one.
    texts: BTreeMap<String, String>,
}

/// What a question says before it is tokenized.
struct Plain {
    content: Content,
    answers: Vec<String>,
    label: usize,
}

/// The fields that a line may have.
const EXPECTED: &str = "expected question, answer_matching_behavior and answer_not_matching_behavior (Model-Written Evaluations), \
                        or prompt or messages, with choices and label";

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

impl Examples {
    /// The first `count` rows of each subject of MMLU's dev split (CSV, Parquet, JSONL).
    pub fn read(path: &Path, count: usize) -> Result<Self> {
        let at_row = |number: usize, problem: String| {
            Error::usage(format!("{} row {}: {problem}", path.display(), number + 1))
        };
        let rows: Vec<(String, Vec<String>)> = if has_extension(path, &["csv"]) {
            csv_rows(path)?.into_iter().map(|row| (String::new(), row)).collect()
        } else {
            let mut lines = Source::open(&[path.to_owned()])?.lines();
            let mut rows = Vec::new();
            while let Some((number, fields)) = lines.next_object()? {
                let cells = fields.map_err(|error| error.message).and_then(|fields| mmlu_cells(&fields));
                rows.push(cells.map_err(|problem| at_row(number as usize - 1, problem))?);
            }
            rows
        };
        let mut subjects: BTreeMap<String, Vec<(usize, Vec<String>)>> = BTreeMap::new();
        for (number, (subject, row)) in rows.into_iter().enumerate() {
            subjects.entry(subject).or_default().push((number, row));
        }
        let few = subjects.iter().find(|(_, rows)| rows.len() < count);
        if subjects.is_empty() || few.is_some() {
            let (subject, found) = few.map_or(("", 0), |(subject, rows)| (subject.as_str(), rows.len()));
            let of = if subject.is_empty() { String::new() } else { format!(" of {subject}") };
            let name = path.display();
            return Err(Error::usage(format!("{name} has {found} rows{of}, --shots asks for {count}")));
        }
        let example = |(number, row): &(usize, Vec<String>)| {
            let answer = letter(row).map_err(|problem| at_row(*number, problem))?;
            Ok(format!("{} {}\n\n", mmlu_text(row), LETTERS[answer]))
        };
        let text = |(subject, rows): (String, Vec<(usize, Vec<String>)>)| {
            Ok((subject, rows[..count].iter().map(example).collect::<Result<String>>()?))
        };
        Ok(Self { texts: subjects.into_iter().map(text).collect::<Result<_>>()? })
    }

    /// Whether there are examples of other subjects only.
    pub fn lack(&self, subject: &str) -> bool {
        !self.texts.is_empty() && !self.texts.contains_key("") && !self.texts.contains_key(subject)
    }

    /// Whether they tell no subject, so that they go before the questions of any.
    pub fn are_of_any(&self) -> bool {
        self.texts.contains_key("")
    }

    fn of(&self, subject: &str) -> &str {
        self.texts.get(subject).or_else(|| self.texts.get("")).map_or("", String::as_str)
    }
}

/// Reads the first `limit` questions of a file. Without `examples` MMLU is asked without shots.
///
/// # Returns
/// The questions of each subject, where the file tells subjects, in the order in which these come first; else all under the empty one.
///
/// # Errors
/// Where the file cannot be read, or no row of it is a question: the first row's problem.
pub fn read(
    path: &Path,
    limit: usize,
    examples: &Examples,
    encoder: &Encoder,
) -> Result<Vec<(String, Vec<Row>)>> {
    let mut subjects: Vec<(String, Vec<Row>)> = Vec::new();
    let mut last = String::new();
    let mut add = |number: u64, id: Value, subject: Option<String>, plain: Result<Plain, RowError>| {
        let question = plain.and_then(|plain| ready(plain, encoder));
        let place = format_args!("{}:{number}", path.display());
        let row = Row { id, question: question.map_err(|error| error.at(place)) };
        // One that cannot be read is of the subject of those before it.
        last = subject.unwrap_or_else(|| std::mem::take(&mut last));
        match subjects.iter_mut().find(|(name, _)| *name == last) {
            Some((_, rows)) => rows.push(row),
            None => subjects.push((last.clone(), vec![row])),
        }
    };
    if has_extension(path, &["csv"]) {
        let subject = subject_of(path);
        let introduction = introduction(&subject, examples);
        for (number, row) in csv_rows(path)?.into_iter().take(limit).enumerate() {
            let number = number as u64 + 1;
            add(number, number.into(), None, mmlu(&row, &introduction).map_err(RowError::invalid));
        }
    } else {
        let as_chat = encoder.applies_chat_template();
        // Where each id was used first.
        let mut ids: HashMap<String, u64> = HashMap::new();
        let mut lines = Source::open(&[path.to_owned()])?.lines();
        for _ in 0..limit {
            let Some((number, fields)) = lines.next_object()? else { break };
            let (id, subject, plain) = json_row(number, fields, as_chat, examples);
            let earlier = *ids.entry(id.to_string()).or_insert(number);
            let once = if earlier == number {
                Ok(())
            } else {
                Err(RowError::used_before(&id, format_args!("{}:{earlier}", path.display())))
            };
            add(number, id, subject, once.and(plain));
        }
    }
    let rows = || subjects.iter().flat_map(|(_, rows)| rows);
    let Some(first) = rows().next() else {
        return Err(Error::usage(format!("{} has no rows", path.display())));
    };
    match &first.question {
        Err(problem) if rows().all(|row| row.question.is_err()) => Err(Error::usage(format!(
            "{} has no question that can be asked; the first: {}",
            path.display(),
            problem.message
        ))),
        _ => Ok(subjects),
    }
}

/// The id of a line, its subject if it tells one, and its question.
fn json_row(
    number: u64,
    fields: Fields,
    as_chat: bool,
    examples: &Examples,
) -> (Value, Option<String>, Result<Plain, RowError>) {
    let mut fields = match fields {
        Ok(fields) => fields,
        Err(error) => return (number.into(), None, Err(error)),
    };
    let id = match take_id(&mut fields) {
        Ok(id) => id.unwrap_or(number.into()),
        Err(error) => return (number.into(), None, Err(error)),
    };
    let mut of_subject = None;
    let plain = if fields.contains_key("answer_matching_behavior") {
        model_written(&fields, as_chat)
    } else if fields.contains_key("question") && fields.contains_key("answer") {
        of_subject = fields.get("subject").and_then(Value::as_str).map(str::to_owned);
        mmlu_cells(&fields).and_then(|(subject, row)| mmlu(&row, &introduction(&subject, examples)))
    } else if fields.contains_key("choices") {
        own_format(&fields)
    } else {
        let found: Vec<&str> = fields.keys().map(String::as_str).collect();
        Err(format!("has the columns {}; {EXPECTED}", found.join(", ")))
    };
    (id, of_subject, plain.map_err(RowError::invalid))
}

/// As `lm-eval` asks them where there is no chat template.
fn model_written(fields: &Map<String, Value>, as_chat: bool) -> std::result::Result<Plain, String> {
    let text = |name: &str| {
        fields.get(name).and_then(Value::as_str).ok_or_else(|| format!("{name} is no string; {EXPECTED}"))
    };
    let question = text("question")?;
    let answers = [text("answer_matching_behavior")?, text("answer_not_matching_behavior")?];
    // The same order in all rows, whichever is the labelled one.
    let mut sorted: Vec<&str> = answers.to_vec();
    sorted.sort();
    let label = usize::from(sorted[0] != answers[0]);
    let (prompt, answers) = if as_chat {
        (question.to_owned(), sorted.iter().map(|answer| answer.trim().to_owned()).collect())
    } else {
        (format!("Human: {question}\n\nAssistant:"), sorted.into_iter().map(str::to_owned).collect())
    };
    Ok(Plain { content: Content::Prompt(prompt), answers, label })
}

fn own_format(fields: &Map<String, Value>) -> std::result::Result<Plain, String> {
    let content = match (fields.get("prompt"), fields.get("messages")) {
        (Some(Value::String(text)), None) => Content::Prompt(text.clone()),
        (None, Some(Value::Array(messages))) => Content::Messages(messages.clone()),
        _ => return Err(format!("has not one of prompt (a string) and messages (a list); {EXPECTED}")),
    };
    let choices = fields.get("choices").and_then(Value::as_array);
    let answers: Option<Vec<String>> =
        choices.and_then(|list| list.iter().map(|choice| choice.as_str().map(str::to_owned)).collect());
    let answers =
        answers.filter(|answers| answers.len() > 1).ok_or("choices is no list of two or more strings")?;
    let label = match fields.get("label") {
        Some(Value::String(label)) => answers.iter().position(|answer| answer == label),
        Some(label) => label.as_u64().map(|index| index as usize).filter(|index| *index < answers.len()),
        None => return Err("has no label".into()),
    };
    let label = label.ok_or_else(|| {
        format!("label {} is not among the choices {answers:?}, nor the place of one", fields["label"])
    })?;
    Ok(Plain { content, answers, label })
}

fn csv_rows(path: &Path) -> Result<Vec<Vec<String>>> {
    let file = fs::File::open(path).map_err(|error| Error::unreadable(path, &error))?;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(file);
    let rows = reader.records().map(|record| {
        let record = record.map_err(|error| Error::usage(format!("{}: {error}", path.display())))?;
        Ok(record.iter().map(str::to_owned).collect())
    });
    rows.collect()
}

/// A row of MMLU as it is on the Hugging Face Hub (`cais/mmlu`: question, subject, choices, answer, a number): its subject, and the
/// cells that it has in the CSV.
fn mmlu_cells(fields: &Map<String, Value>) -> std::result::Result<(String, Vec<String>), String> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let question = text("question").ok_or("question is no string")?;
    let choices = fields.get("choices").and_then(Value::as_array);
    let choices: Option<Vec<String>> =
        choices.and_then(|list| list.iter().map(|choice| choice.as_str().map(str::to_owned)).collect());
    let choices = choices.filter(|choices| choices.len() == 4).ok_or("choices is no list of four strings")?;
    let answer = fields.get("answer").and_then(Value::as_u64).and_then(|answer| LETTERS.get(answer as usize));
    let answer = answer.ok_or("answer is no number from 0 to 3")?;
    let cells = std::iter::once(question).chain(choices).chain([(*answer).to_owned()]).collect();
    Ok((text("subject").unwrap_or_default(), cells))
}

/// `abstract_algebra_test.csv` is about abstract algebra.
fn subject_of(path: &Path) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let subject = ["_test", "_val", "_dev"].iter().find_map(|ending| stem.strip_suffix(ending));
    subject.map_or_else(|| stem.clone(), str::to_owned)
}

fn introduction(subject: &str, examples: &Examples) -> String {
    let about =
        if subject.is_empty() { String::new() } else { format!(" about {}", subject.replace('_', " ")) };
    let examples = examples.of(subject);
    format!("The following are multiple choice questions (with answers){about}.\n\n{examples}")
}

fn mmlu(row: &[String], introduction: &str) -> std::result::Result<Plain, String> {
    let label = letter(row)?;
    let prompt = format!("{introduction}{}", mmlu_text(row));
    let answers = LETTERS.iter().map(|letter| format!(" {letter}")).collect();
    Ok(Plain { content: Content::Prompt(prompt), answers, label })
}

/// The labelled answer of a row: question, four answers, letter.
fn letter(row: &[String]) -> std::result::Result<usize, String> {
    let [_, _, _, _, _, answer] = row else {
        return Err(format!("has {} columns, expected 6: question, four answers, letter", row.len()));
    };
    let place = LETTERS.iter().position(|letter| *letter == answer.trim());
    place.ok_or_else(|| format!("the answer is {answer:?}, expected A, B, C or D"))
}

fn mmlu_text(row: &[String]) -> String {
    let answers = LETTERS.iter().zip(&row[1..5]).map(|(letter, answer)| format!("{letter}. {answer}\n"));
    format!("{}\n{}Answer:", row[0].trim(), answers.collect::<String>())
}

fn ready(plain: Plain, encoder: &Encoder) -> Result<Question, RowError> {
    let Plain { content, mut answers, label } = plain;
    if encoder.applies_chat_template() || matches!(content, Content::Messages(_)) {
        // An answer begins the assistant's message.
        answers.iter_mut().for_each(|answer| *answer = answer.trim_start().to_owned());
    }
    let of_answers = answers.iter().map(|answer| encoder.reply(content.as_ref(), answer));
    let of_answers = of_answers.collect::<Result<Vec<Vec<u32>>, RowError>>()?;
    // What all begin with, as "(A)" and "(B)" do, is said before the next token is asked for.
    let begins_alike = |place: usize| {
        let token = of_answers[0].get(place);
        token.is_some() && of_answers.iter().all(|ids| ids.get(place) == token)
    };
    let common = (0..).take_while(|place| begins_alike(*place)).count();
    let Encoded { mut token_ids, truncated } = encoder.encode_before(content.as_ref(), common)?;
    token_ids.extend(&of_answers[0][..common]);
    if token_ids.len() > encoder.context_length() {
        let message = format!(
            "the question and what its answers begin with have {} tokens, expected at most {}",
            token_ids.len(),
            encoder.context_length()
        );
        return Err(RowError::new(RowErrorKind::TooLong, message));
    }
    let mut answer_tokens: Vec<u32> = Vec::with_capacity(answers.len());
    for (answer, ids) in answers.iter().zip(&of_answers) {
        let Some(token) = ids.get(common) else {
            let other = answers.iter().find(|other| *other != answer).unwrap_or(answer);
            return Err(RowError::invalid(format!(
                "the answer {other:?} begins with all tokens of {answer:?}: the next token cannot tell them apart"
            )));
        };
        if let Some(earlier) = answer_tokens.iter().position(|other| other == token) {
            return Err(RowError::invalid(format!(
                "the answers {:?} and {answer:?} go on with the same token ({token}) where others do not: the next token cannot tell them apart",
                answers[earlier]
            )));
        }
        answer_tokens.push(*token);
    }
    Ok(Question { token_ids, truncated, answers, answer_tokens, label })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(plain: &Plain) -> &str {
        match &plain.content {
            Content::Prompt(text) => text,
            other => panic!("{other:?}"),
        }
    }

    /// The words of lm-eval (hendrycks_mmlu, 0.4).
    #[test]
    fn mmlu_is_asked_in_the_usual_words() {
        let dir = tempfile::tempdir().unwrap();
        let dev = dir.path().join("some_animals_dev.csv");
        fs::write(&dev, "First?,a,b,c,d,C\nSecond?,e,f,g,h,A\n").unwrap();
        let examples = Examples::read(&dev, 1).unwrap();
        let row = ["What is it? ", "one", "two", "three", "four", "D"].map(str::to_owned);
        let plain = mmlu(&row, &introduction("some_animals", &examples)).unwrap();
        assert_eq!(
            text(&plain),
            "The following are multiple choice questions (with answers) about some animals.\n\n\
             First?\nA. a\nB. b\nC. c\nD. d\nAnswer: C\n\n\
             What is it?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
        );
        assert_eq!((plain.answers, plain.label), ([" A", " B", " C", " D"].map(str::to_owned).to_vec(), 3));
        assert!(examples.are_of_any() && !examples.lack("some_animals"));
    }

    #[test]
    fn model_written_questions_are_asked_as_text_and_as_chat() {
        let fields = serde_json::json!({
            "question": "Is it so?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No",
        });
        let as_text = model_written(fields.as_object().unwrap(), false).unwrap();
        assert_eq!(text(&as_text), "Human: Is it so?\n\nAssistant:");
        assert_eq!((as_text.answers, as_text.label), (vec![" No".to_owned(), " Yes".to_owned()], 1));
        let as_chat = model_written(fields.as_object().unwrap(), true).unwrap();
        assert_eq!(text(&as_chat), "Is it so?");
        assert_eq!((as_chat.answers, as_chat.label), (vec!["No".to_owned(), "Yes".to_owned()], 1));
    }
}
