//! Jinja as chat templates know it: minijinja made to agree with Jinja2 in `transformers`.
//!
//! The model for everything here is `_cached_compile_jinja_template` of `transformers.utils.chat_template_utils` (5.23): an
//! `ImmutableSandboxedEnvironment` of Jinja2 3.1 with `trim_blocks`, `lstrip_blocks` and loop controls.

mod json;
mod methods;
mod python;
mod rewrite;

use std::{error::Error as _, fmt, fmt::Write};

use chrono::{NaiveDate, NaiveTime};
use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig, value::ValueKind};

pub(super) use rewrite::rewrite;

/// An environment without templates in which `strftime_now` tells `date`.
pub(super) fn environment(date: NaiveDate) -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the delimiters are the default ones"));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", python::str);
    environment.add_filter(rewrite::PERCENT, python::percent);
    environment.add_filter("trim", |text: &Value, chars: Option<&str>| {
        methods::strip(&python::str(text), chars, true, true).to_owned()
    });
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", move |format: &str| strftime(date, format));
    environment.set_formatter(|out, _, value| out.write_str(&python::str(value)).map_err(Error::from));
    environment
}

/// JSON as a template's value: numbers stay integers or floats, objects keep their order.
pub(super) fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), _, _) => Value::from(number),
            (_, Some(number), _) => Value::from(number),
            (_, _, number) => Value::from(number),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, field)| (name.as_str(), value(field))))
        }
    }
}

/// What the template told `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// The words of the template where `error` is its own `raise_exception`.
pub(super) fn raised(error: &Error) -> Option<&str> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message);
        }
        source = error.source();
    }
    None
}

/// An error of the template in one line, without the template's made-up name.
pub(super) fn describe(error: &Error) -> String {
    let mut text = error
        .detail()
        .map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    if let Some(line) = error.line() {
        let _ = write!(text, " (line {line} of the template)");
    }
    text
}

fn strftime(date: NaiveDate, format: &str) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", date.and_time(NaiveTime::MIN).format(format)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now cannot format {format:?}"))
    })?;
    Ok(text)
}
