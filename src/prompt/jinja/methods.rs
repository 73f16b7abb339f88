//! Methods of Python's strings and containers that minijinja lacks or answers differently.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Tuple, ValueKind, from_args},
};
use minijinja_contrib::pycompat;

use super::python::is_space;

/// Calls `value.method(args)`; what is not found here is looked for in minijinja's own collection.
///
/// Methods that change a value are nowhere: `transformers` forbids them too (`ImmutableSandboxedEnvironment`).
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => string(value.as_str().unwrap_or_default(), method, args),
        ValueKind::Seq => sequence(value, method, args),
        ValueKind::Map if method == "copy" => from_args::<()>(args).map(|()| Some(value.clone())),
        _ => Ok(None),
    }?;
    match own {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// `text.method(args)`. `None`: not a method of this collection.
fn string(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, method != "rstrip", method != "lstrip"))
        }
        "title" => {
            from_args::<()>(args)?;
            Value::from(title(text))
        }
        "splitlines" => {
            let (keep_ends, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep_ends = keep_ends.or(kwargs.get("keepends")?).unwrap_or(false);
            kwargs.assert_all_used()?;
            split_lines(text, keep_ends).into_iter().map(Value::from).collect()
        }
        "split" | "rsplit" => {
            let (separator, most, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = separator.or(kwargs.get("sep")?);
            let most = most.or(kwargs.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
            kwargs.assert_all_used()?;
            split(text, separator, most.unwrap_or(usize::MAX), method == "rsplit")?
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let is_first = method == "partition";
            let parts = match if is_first { text.split_once(separator) } else { text.rsplit_once(separator) }
            {
                Some((before, after)) => [before, separator, after],
                None if is_first => [text, "", ""],
                None => ["", "", text],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "index" => {
            let (part,): (&str,) = from_args(args)?;
            let at = text.find(part).ok_or_else(|| wrong("substring not found"))?;
            Value::from(text[..at].chars().count())
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn sequence(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "copy" => from_args::<()>(args).map(|()| Some(value.clone())),
        "index" => {
            let (item,): (&Value,) = from_args(args)?;
            let index = value.try_iter()?.position(|other| other == *item);
            index.map(|index| Some(Value::from(index))).ok_or_else(|| wrong("the list has no such item"))
        }
        _ => Ok(None),
    }
}

fn wrong(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// `str.strip` and its one-sided forms. `chars` is a set of characters; none given means white space.
pub(super) fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(goes) } else { text };
    if right { text.trim_end_matches(goes) } else { text }
}

/// `str.title`: unlike Jinja's filter of that name, every run of letters is a word (`they'Re`).
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase());
        } else {
            let mut upper = c.to_uppercase();
            out.extend(upper.next());
            out.extend(upper.flat_map(char::to_lowercase));
        }
        in_word = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// `str.splitlines`: at every line boundary of Unicode, `\r\n` being one.
fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(ENDS) {
        let length = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push(&rest[..if keep_ends { end + length } else { end }]);
        rest = &rest[end + length..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// `str.split` and `str.rsplit` at `separator`, else at white space, at most `most` times.
fn split(text: &str, separator: Option<&str>, most: usize, from_right: bool) -> Result<Value, Error> {
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(wrong("empty separator")),
        Some(separator) if from_right => text.rsplitn(most.saturating_add(1), separator).collect(),
        Some(separator) => text.splitn(most.saturating_add(1), separator).collect(),
        None => {
            let mut parts = Vec::new();
            let mut rest = strip(text, None, !from_right, from_right);
            while !rest.is_empty() {
                let end = match parts.len() == most {
                    true => None,
                    false if from_right => {
                        rest.char_indices().rfind(|(_, c)| is_space(*c)).map(|(at, c)| at + c.len_utf8())
                    }
                    false => rest.find(is_space),
                };
                let (part, other) = match end {
                    None => (rest, ""),
                    Some(end) if from_right => (&rest[end..], &rest[..end]),
                    Some(end) => (&rest[..end], &rest[end..]),
                };
                parts.push(part);
                rest = strip(other, None, !from_right, from_right);
            }
            parts
        }
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(text: &str, method: &str, args: &[Value]) -> String {
        super::super::python::str(&string(text, method, args).unwrap().unwrap())
    }

    #[test]
    fn strings_split_as_in_python() {
        let text = " a b\u{1f}  c ";
        assert_eq!(called(text, "split", &[]), "['a', 'b', 'c']");
        assert_eq!(called(text, "split", &[().into(), 1.into()]), "['a', 'b\\x1f  c ']");
        assert_eq!(called(text, "rsplit", &[().into(), 1.into()]), "[' a b', 'c']");
        assert_eq!(called(text, "split", &[().into(), 0.into()]), "['a b\\x1f  c ']");
        assert_eq!(called("", "split", &[]), "[]");
        assert_eq!(called("a,b,c", "split", &[",".into(), (-1).into()]), "['a', 'b', 'c']");
        assert_eq!(called("a,b,c", "rsplit", &[",".into(), 1.into()]), "['a,b', 'c']");
        assert!(string("a", "split", &["".into()]).is_err());
        assert_eq!(called("a-b-c", "partition", &["-".into()]), "('a', '-', 'b-c')");
        assert_eq!(called("a-b-c", "rpartition", &["-".into()]), "('a-b', '-', 'c')");
        assert_eq!(called("abc", "rpartition", &["-".into()]), "('', '', 'abc')");
    }

    #[test]
    fn lines_split_at_every_boundary() {
        let text = "a\r\nb\rc\u{2028}\nd";
        assert_eq!(called(text, "splitlines", &[]), "['a', 'b', 'c', '', 'd']");
        assert_eq!(called(text, "splitlines", &[true.into()]), r"['a\r\n', 'b\r', 'c\u2028', '\n', 'd']");
        assert_eq!(called("a\n", "splitlines", &[]), "['a']");
    }

    #[test]
    fn words_are_runs_of_letters() {
        assert_eq!(called("they're 3rd ßa ÉTÉ", "title", &[]), "They'Re 3Rd Ssa Été");
    }

    #[test]
    fn prefixes_and_suffixes_go_once() {
        assert_eq!(called("aab", "removeprefix", &["a".into()]), "ab");
        assert_eq!(called("abb", "removesuffix", &["b".into()]), "ab");
        assert_eq!(called("xyabyx", "strip", &["yx".into()]), "ab");
        assert_eq!(called("éab", "index", &["b".into()]), "2");
        assert!(string("a", "index", &["b".into()]).is_err());
    }
}
