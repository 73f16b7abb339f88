//! The chat template: messages → text.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use minijinja::{Environment, context};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    jinja,
    row::{RowError, RowErrorKind},
    source::hex,
};
use crate::error::{Error, Result};

/// The tokenizer's named tokens, as a template sees them: `bos_token` → `<s>`.
pub type SpecialTokens = BTreeMap<String, String>;

/// A compiled chat template.
///
/// Renders what `transformers.utils.chat_template_utils.render_jinja_template` does (5.23).
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: SpecialTokens,
    source_sha256: String,
    uses_date: bool,
}

/// The template's name in its environment, which no other shares.
const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles `source`. `date` is what `strftime_now` tells, at midnight: a score must not depend on the day it is made.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) where the source is not a template, with the line.
    pub fn new(source: &str, special_tokens: &SpecialTokens, date: NaiveDate) -> Result<Self> {
        let mut environment = jinja::environment(date);
        environment.add_template_owned(NAME, jinja::rewrite(source)).map_err(|error| {
            Error::checkpoint(format!("the chat template cannot be compiled: {}", jinja::describe(&error)))
        })?;
        Ok(Self {
            environment,
            special_tokens: special_tokens.clone(),
            source_sha256: hex(&Sha256::digest(source.as_bytes())),
            uses_date: source.contains("strftime_now"),
        })
    }

    /// The text for `messages`, objects with a `role`. `tools` are JSON schemas of functions.
    ///
    /// # Errors
    /// [`RowErrorKind::TemplateError`] with the template's own words where it calls `raise_exception`.
    pub fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String, RowError> {
        let messages: Vec<Value> = messages.iter().map(with_reasoning).collect();
        let variables = context! {
            messages => jinja::value(&Value::Array(messages)),
            tools => tools.map(jinja::value),
            documents => (),
            add_generation_prompt,
            ..minijinja::Value::from_pairs(self.special_tokens.clone())
        };
        let template = self.environment.get_template(NAME).expect("added when compiled");
        template.render(variables).map_err(|error| {
            let message = match jinja::raised(&error) {
                Some(message) => format!("the chat template refuses these messages: {message}"),
                None => format!("the chat template fails on these messages: {}", jinja::describe(&error)),
            };
            RowError::new(RowErrorKind::TemplateError, message)
        })
    }

    /// SHA-256 of the template's source, in hexadecimal.
    pub fn source_sha256(&self) -> &str {
        &self.source_sha256
    }

    /// Whether the text may depend on the date.
    pub fn uses_date(&self) -> bool {
        self.uses_date
    }
}

/// The names under which a message may give its reasoning, the one that templates read first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message that gives its reasoning under any name gives it as `reasoning_content` and `thinking` too: the names that templates
/// read (`_alias_reasoning_fields` of `transformers.utils.chat_template_utils`).
fn with_reasoning(message: &Value) -> Value {
    let Value::Object(fields) = message else { return message.clone() };
    let Some(reasoning) =
        REASONING.iter().filter_map(|name| fields.get(*name)).find(|value| !value.is_null())
    else {
        return message.clone();
    };
    let mut all = Map::new();
    all.insert("thinking".to_owned(), reasoning.clone());
    all.extend(fields.clone());
    all.insert("reasoning_content".to_owned(), reasoning.clone());
    Value::Object(all)
}
