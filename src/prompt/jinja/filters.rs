//! Filters and tests in which minijinja differs from Jinja2 without saying so.

use minijinja::{
    Environment, Error, ErrorKind, State, Value, filters,
    value::{Kwargs, ValueKind},
};

use super::{json, methods, python, rewrite};

/// Puts Jinja2's behaviour in the place of minijinja's.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", python::str);
    environment.add_filter("trim", trim);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_filter(rewrite::PERCENT, python::percent);
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", is_sequence);
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

fn trim(text: &Value, chars: Option<&str>) -> String {
    methods::strip(&python::str(text), chars, true, true).to_owned()
}

/// What is no number is the default, not an error.
fn int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    options: Kwargs,
) -> Result<Value, Error> {
    let value = number_or_text(value)?;
    let default = default.or(options.get("default")?).unwrap_or_else(|| 0.into());
    filters::int(state, &value, Some(default), base, options)
}

/// What is no number is the default, not an error.
fn float(state: &State, value: &Value, default: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let value = number_or_text(value)?;
    let default = default.or(options.get("default")?).unwrap_or_else(|| 0.0.into());
    filters::float(state, &value, Some(default), options)
}

/// Python reads numbers with white space around them, and Jinja2 fails on undefined values.
fn number_or_text(value: &Value) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => Ok(Value::from(methods::strip(text, None, true, true))),
        None if value.is_undefined() => Err(Error::from(ErrorKind::UndefinedError)),
        None => Ok(value.clone()),
    }
}

/// `markupsafe.escape`.
fn escape(value: &Value) -> Value {
    let text = python::str(value);
    if value.is_safe() {
        return value.clone();
    }
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Value::from_safe_string(escaped.replace('\'', "&#39;").replace('"', "&#34;"))
}

/// Python's `len` and `[…]` do for mappings and strings too.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
}
