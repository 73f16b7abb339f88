//! Jinja as chat templates know it: minijinja made to agree with Jinja2 in `transformers`.
//!
//! The model for everything here is `_cached_compile_jinja_template` of `transformers.utils.chat_template_utils` (5.23): an
//! `ImmutableSandboxedEnvironment` of Jinja2 3.1 with `trim_blocks`, `lstrip_blocks` and loop controls. Where minijinja differs, the
//! source is rewritten ([`mod@rewrite`]), or a filter, test or method replaced ([`filters`], [`json`], [`methods`], [`python`]).
//!
//! What still differs, all of it rare in chat templates:
//! - Python fails, and minijinja goes on, where None is looped over, where values of different kinds are compared by `<`, and where
//!   `tojson` is given an iterator.
//! - The default of a macro's argument cannot be another argument, and replaces an argument that is given but undefined.
//! - `~` writes floats of 1e16 and more, and unprintable characters inside of lists, in Rust's way.
//! - Not there, so that a template that uses them fails: `format % value` where the format is no literal, a sign `+`, `varargs` and
//!   `kwargs`, `cycler`, `joiner`, `lipsum`, names outside of ASCII, and the filters `center`, `filesizeformat`, `pprint` of Python's
//!   kind, `random`, `striptags`, `truncate`, `urlencode`, `wordcount`, `wordwrap`, `xmlattr`.

mod filters;
mod json;
mod methods;
mod python;
mod rewrite;

use std::{error::Error as _, fmt, fmt::Write};

use chrono::{NaiveDate, NaiveTime};
use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig};

pub(super) use rewrite::rewrite;

/// An environment without templates in which `strftime_now` tells `date`.
pub(super) fn environment(date: NaiveDate) -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the delimiters are the default ones"));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    filters::add_to(&mut environment);
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

/// Python's `strftime` for midnight of `date`, in no time zone.
fn strftime(date: NaiveDate, format: &str) -> Result<String, Error> {
    // chrono has other ideas of these three: nanoseconds, and an error where there is no time zone.
    let mut pattern = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, (c == '%').then(|| chars.next()).flatten()) {
            (_, Some('f')) => pattern.push_str("000000"),
            (_, Some('z' | 'Z')) => {}
            (c, next) => pattern.extend([c].into_iter().chain(next)),
        }
    }
    let mut text = String::new();
    write!(text, "{}", date.and_time(NaiveTime::MIN).format(&pattern)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now cannot format {format:?}"))
    })?;
    Ok(text)
}
