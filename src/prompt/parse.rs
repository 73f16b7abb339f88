//! One line of JSONL → the fields of a row.

use serde_json::{Map, Value};

use super::row::{Content, RowError, RowErrorKind};

/// What a JSON line says, before its id is compared with the others'.
#[derive(Debug)]
pub(super) struct Row {
    pub id: Option<Value>,
    pub label: Option<Value>,
    pub meta: Option<Value>,
    pub content: Result<Content, RowError>,
    /// The fields that mean nothing here, in the order of the line.
    pub other: Map<String, Value>,
}

/// The fields a row may have, for the message about one that it may not.
pub(super) const KNOWN_FIELDS: &str =
    "id (or custom_id), prompt, messages, token_ids (or prompt_token_ids), label, meta";

impl Row {
    /// A row of which nothing is known but its error.
    pub fn bad(error: RowError) -> Self {
        Self { id: None, label: None, meta: None, content: Err(error), other: Map::new() }
    }

    /// Reads one line without its line ending. Never fails as a whole: what is wrong is the row's content.
    ///
    /// JSON nested deeper than 128 is refused (by `serde_json`), so no row can exhaust the stack here or later.
    /// `prompt_field` is what the field `prompt` is called.
    pub fn parse(line: &str, prompt_field: Option<&str>) -> Self {
        let called = |mut fields: Map<String, Value>| {
            if let Some(name) = prompt_field {
                // Another text is not what was asked for.
                let prompt = take_given(&mut fields, name);
                fields.shift_remove("prompt");
                fields.extend(prompt.map(|prompt| ("prompt".to_owned(), prompt)));
            }
            Self::from_fields(fields, prompt_field.unwrap_or("prompt"))
        };
        fields_of(line).map_or_else(Self::bad, called)
    }

    /// A line of a text file.
    pub fn prompt(line: &str) -> Self {
        Self {
            id: None,
            label: None,
            meta: None,
            content: Ok(Content::Prompt(line.to_owned())),
            other: Map::new(),
        }
    }

    fn from_fields(mut fields: Map<String, Value>, prompt_field: &str) -> Self {
        let id = take_id(&mut fields);
        unwrap_body(&mut fields);
        let [label, meta] = ["label", "meta"].map(|name| take_given(&mut fields, name));
        let content = take_content(&mut fields, prompt_field);
        match id {
            Ok(id) => Self { id, label, meta, content, other: fields },
            Err(error) => Self { id: None, label, meta, content: Err(error), other: fields },
        }
    }
}

/// The fields of a JSON object.
pub(super) fn fields_of(line: &str) -> Result<Map<String, Value>, RowError> {
    match serde_json::from_str(line) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => {
            let hint = if other.is_array() { ARRAY_HINT } else { "" };
            Err(RowError::invalid(format!("expected a JSON object, found {}{hint}", kind_of(&other))))
        }
        Err(error) => Err(not_json(line, &error)),
    }
}

/// The id of a row, if it has one: `id` or `custom_id`.
///
/// # Errors
/// Where it is neither a string nor an integer, or both are given.
pub fn take_id(fields: &mut Map<String, Value>) -> Result<Option<Value>, RowError> {
    match take(fields, "id", "custom_id")? {
        None => Ok(None),
        Some((_, id)) if id.is_string() || id.is_i64() || id.is_u64() => Ok(Some(id)),
        Some((name, other)) => Err(RowError::invalid(format!(
            "{name} must be a string or an integer, found {}",
            kind_of(&other)
        ))),
    }
}

/// Lines of OpenAI's batches have `prompt` or `messages` inside of `body`.
fn unwrap_body(fields: &mut Map<String, Value>) {
    if ["prompt", "messages", "token_ids", "prompt_token_ids"].iter().any(|name| fields.contains_key(*name)) {
        return;
    }
    let Some(Value::Object(body)) = fields.get_mut("body") else { return };
    let content: Vec<_> = ["prompt", "messages"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), body.shift_remove(name)?)))
        .collect();
    if !content.is_empty() {
        // How another program was to ask for it.
        ["body", "method", "url"].iter().for_each(|name| drop(fields.shift_remove(*name)));
        fields.extend(content);
    }
}

const ARRAY_HINT: &str = " (is this one JSON array? `jq -c '.[]'` makes lines of it)";

fn not_json(line: &str, error: &serde_json::Error) -> RowError {
    // The error's own position is in this line, so its "line 1" would only mislead.
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    let hint = if line.trim_start().starts_with('[') { ARRAY_HINT } else { "" };
    let message = format!("not valid JSON at column {}: {reason}{hint}", error.column());
    RowError::new(RowErrorKind::InvalidJson, message)
}

/// What a JSON value is, for messages.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction or out of range",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Removes a field. Null counts as absent: writers of tables fill every column of every row.
fn take_given(fields: &mut Map<String, Value>, name: &str) -> Option<Value> {
    fields.shift_remove(name).filter(|value| !value.is_null())
}

/// Removes the field `name`, which may be called `alias` too, and gives the name used.
fn take(fields: &mut Map<String, Value>, name: &'static str, alias: &'static str) -> Result<Field, RowError> {
    let by = |fields: &mut Map<String, Value>, name| take_given(fields, name).map(|value| (name, value));
    match (by(fields, name), by(fields, alias)) {
        (Some(_), Some(_)) => {
            Err(RowError::invalid(format!("both {name} and {alias} are given, which mean the same")))
        }
        (first, second) => Ok(first.or(second)),
    }
}

type Field = Option<(&'static str, Value)>;

fn take_content(fields: &mut Map<String, Value>, prompt_field: &str) -> Result<Content, RowError> {
    let given = [
        take(fields, "prompt", "prompt")?,
        take(fields, "messages", "messages")?,
        take(fields, "token_ids", "prompt_token_ids")?,
    ];
    let called = |name| if name == "prompt" { prompt_field } else { name };
    let names: Vec<&str> = given.iter().flatten().map(|(name, _)| called(*name)).collect();
    if names.len() > 1 {
        let names = names.join(" and ");
        return Err(RowError::invalid(format!(
            "{names} are given, but a row has one of {prompt_field}, messages and token_ids"
        )));
    }
    match given {
        [Some((_, prompt)), _, _] => prompt_of(prompt_field, prompt),
        [_, Some((_, messages)), _] => messages_of(messages),
        [_, _, Some((name, ids))] => token_ids_of(name, ids),
        [None, None, None] => {
            Err(RowError::invalid(format!("none of {prompt_field}, messages and token_ids is given")))
        }
    }
}

impl Content {
    /// A conversation as it stands in JSON: an array of objects, each with a string `role`.
    ///
    /// # Errors
    /// Where it is none; the message says which message and field.
    pub fn of_messages(messages: Value) -> Result<Self, RowError> {
        messages_of(messages)
    }
}

fn prompt_of(name: &str, prompt: Value) -> Result<Content, RowError> {
    match prompt {
        Value::String(text) if text.is_empty() => {
            Err(RowError::new(RowErrorKind::EmptyPrompt, format!("{name} is an empty string")))
        }
        Value::String(text) => Ok(Content::Prompt(text)),
        other => Err(RowError::invalid(format!("{name} must be a string, found {}", kind_of(&other)))),
    }
}

fn messages_of(messages: Value) -> Result<Content, RowError> {
    let Value::Array(messages) = messages else {
        return Err(RowError::invalid(format!("messages must be an array, found {}", kind_of(&messages))));
    };
    if messages.is_empty() {
        return Err(RowError::new(RowErrorKind::EmptyPrompt, "messages is an empty array"));
    }
    for (index, message) in messages.iter().enumerate() {
        let wrong = |field: &str, expected: &str, found: Option<&Value>| {
            let found = found.map_or("nothing", kind_of);
            Err(RowError::invalid(format!("messages[{index}]{field} must be {expected}, found {found}")))
        };
        let Value::Object(fields) = message else {
            return wrong("", "an object with role and content", Some(message));
        };
        let role = match fields.get("role") {
            Some(Value::String(role)) => role,
            other => return wrong(".role", "a string", other),
        };
        match fields.get("content") {
            // What an assistant or a tool says may be in other fields.
            None if ["user", "system", "developer"].contains(&role.as_str()) => {
                return wrong(".content", "a string or an array of parts", None);
            }
            None | Some(Value::Null | Value::String(_) | Value::Array(_)) => {}
            other => return wrong(".content", "a string, null or an array of parts", other),
        }
    }
    Ok(Content::Messages(messages))
}

fn token_ids_of(name: &str, ids: Value) -> Result<Content, RowError> {
    let Value::Array(ids) = ids else {
        return Err(RowError::invalid(format!("{name} must be an array, found {}", kind_of(&ids))));
    };
    if ids.is_empty() {
        return Err(RowError::new(RowErrorKind::EmptyPrompt, format!("{name} is an empty array")));
    }
    let id_of = |(index, id): (usize, &Value)| {
        id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            let found = if id.is_number() { id.to_string() } else { kind_of(id).to_owned() };
            RowError::invalid(format!(
                "{name}[{index}] must be an integer from 0 to {}, found {found}",
                u32::MAX
            ))
        })
    };
    ids.iter().enumerate().map(id_of).collect::<Result<_, _>>().map(Content::TokenIds)
}

#[cfg(test)]
mod tests;
