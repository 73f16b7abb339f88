//! The chat template: messages → text.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::LazyLock,
};

use chrono::NaiveDate;
use minijinja::{Environment, context};
use regex::Regex;
use serde_json::{Map, Value};

use super::{
    jinja,
    row::{RowError, RowErrorKind},
};
use crate::{
    error::{Error, Result},
    hash,
};

/// The tokenizer's named tokens, as a template sees them: `bos_token` → `<s>`.
pub type SpecialTokens = BTreeMap<String, String>;

/// A compiled chat template.
///
/// Renders what `transformers.utils.chat_template_utils.render_jinja_template` does (5.23).
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// What it sees besides the conversation: special tokens, and what the caller gives by name.
    variables: BTreeMap<String, minijinja::Value>,
    source_sha256: String,
    uses_date: bool,
    reads_parts: bool,
}

/// A loop over the content of a message.
static LOOP_OVER_CONTENT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\{%[-+]?\s*for\s[^%]*\sin\s[^%]*content").expect("a valid pattern"));

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
            variables: special_tokens.iter().map(|(name, token)| (name.clone(), token.into())).collect(),
            source_sha256: hash::sha256(source.as_bytes()),
            uses_date: source.contains("strftime_now"),
            reads_parts: LOOP_OVER_CONTENT.is_match(source),
        })
    }

    /// The same with variables more, which go before special tokens of the same names (`chat_template_kwargs` of transformers).
    pub fn with_arguments(mut self, arguments: &Map<String, Value>) -> Self {
        self.variables.extend(arguments.iter().map(|(name, value)| (name.clone(), jinja::value(value))));
        self
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
            ..minijinja::Value::from_pairs(self.variables.clone())
        };
        let template = self.environment.get_template(NAME).expect("added when compiled");
        // The template is anyone's, and minijinja 3.1 panics on at least one (`break` inside of `with`): no reason to end the run.
        let message = match catch_unwind(AssertUnwindSafe(|| template.render(variables))) {
            Ok(Ok(text)) => return Ok(text),
            Ok(Err(error)) => match jinja::raised(&error) {
                Some(message) => format!("the chat template refuses these messages: {message}"),
                None => format!("the chat template fails on these messages: {}", jinja::describe(&error)),
            },
            Err(_) => "the template engine fails on this chat template".to_owned(),
        };
        Err(RowError::new(RowErrorKind::TemplateError, message))
    }

    /// SHA-256 of the template's source, in hexadecimal.
    pub fn source_sha256(&self) -> &str {
        &self.source_sha256
    }

    /// Whether the template goes through the parts of a content that is a list. Others print such a list as it is, brackets and all.
    pub fn reads_parts(&self) -> bool {
        self.reads_parts
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::ErrorKind;

    fn template(source: &str) -> Result<ChatTemplate> {
        ChatTemplate::new(source, &SpecialTokens::new(), NaiveDate::from_ymd_opt(2024, 7, 26).unwrap())
    }

    fn render(source: &str, message: Value) -> Result<String, RowError> {
        template(source).unwrap().render(&[message], None, true)
    }

    fn user() -> Value {
        json!({"role": "user", "content": "Hi"})
    }

    #[test]
    fn a_source_that_is_no_template_is_told_with_its_line() {
        let error = template("{% if messages %}\n\n{{ messages[ }}").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Checkpoint);
        assert!(error.message.contains("line 3"), "{error}");
        assert!(template("{{ 'a' | no_such_filter }}{% no_such_tag %}").is_err());
    }

    #[test]
    fn errors_are_the_template_s_own_words_or_have_its_line() {
        let raising =
            "{% macro refuse(why) %}{{ raise_exception('no ' ~ why) }}{% endmacro %}{{ refuse('way') }}";
        let error = render(raising, user()).unwrap_err();
        assert_eq!(error.message, "the chat template refuses these messages: no way");
        let error = render("\n\n{{ messages[0].a.b }}", user()).unwrap_err();
        assert_eq!(error.kind, RowErrorKind::TemplateError);
        assert!(error.message.ends_with("(line 3 of the template)"), "{error}");
    }

    #[test]
    fn templates_that_the_engine_cannot_run_are_errors_and_no_crash() {
        for source in [
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% for m in messages %}{% with %}{% break %}{% endwith %}{% endfor %}",
        ] {
            assert_eq!(render(source, user()).unwrap_err().kind, RowErrorKind::TemplateError, "{source}");
        }
    }

    #[test]
    fn deep_messages_are_rendered() {
        let mut deep = json!("x");
        for _ in 0..120 {
            deep = json!([deep]);
        }
        let message = json!({"role": "user", "content": deep});
        let text = render(
            "{{ messages[0].content }}{{ messages[0] | tojson }}{{ messages[0] == messages[0] }}",
            message,
        );
        assert!(text.unwrap().ends_with("True"));
    }

    #[test]
    fn reasoning_is_there_under_each_name_that_templates_read() {
        let source =
            "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}|{{ messages[0].reasoning }}";
        let text = |fields: Value| render(source, fields).unwrap();
        assert_eq!(text(json!({"role": "assistant", "reasoning": "r"})), "r|r|r");
        assert_eq!(text(json!({"role": "assistant", "thinking": "t", "reasoning": "r"})), "t|t|r");
        assert_eq!(text(json!({"role": "assistant", "reasoning_content": null, "thinking": "t"})), "t|t|");
        assert_eq!(text(user()), "||");
    }

    #[test]
    fn the_date_is_the_one_given() {
        assert_eq!(
            render("{{ strftime_now('%d %b %Y %H:%M:%S.%f%z') }}", user()).unwrap(),
            "26 Jul 2024 00:00:00.000000"
        );
        assert!(render("{{ strftime_now('%Q') }}", user()).unwrap_err().message.contains("%Q"));
        assert!(template("{{ strftime_now('%d') }}").unwrap().uses_date());
        assert!(!template("{{ messages }}").unwrap().uses_date());
    }

    #[test]
    fn the_hash_is_of_the_source_as_given() {
        let hash = template("a\r\n").unwrap().source_sha256().to_owned();
        assert_eq!(hash, crate::hash::sha256(b"a\r\n"));
    }
}
