//! Values as Python prints them: what a template writes is `str(value)`.

use std::fmt::Write;

use minijinja::{
    Error, Value,
    formatting::{FormatStyle, format},
    value::ValueKind,
};

/// `str(value)`. minijinja prints containers, floats and unprintable characters in its own way.
pub(super) fn str(value: &Value) -> String {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => value.to_string(),
        _ => {
            let mut out = String::new();
            write_repr(&mut out, value);
            out
        }
    }
}

fn write_repr(out: &mut String, value: &Value) {
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => write_string(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float));
        }
        ValueKind::Seq => {
            let items: Vec<Value> = value.try_iter().into_iter().flatten().collect();
            let (open, close) = match (value.is_tuple(), items.len()) {
                (false, _) => ("[", "]"),
                (true, 1) => ("(", ",)"),
                (true, _) => ("(", ")"),
            };
            write_list(out, open, close, items, write_repr);
        }
        ValueKind::Map => {
            let keys: Vec<Value> = value.try_iter().into_iter().flatten().collect();
            write_list(out, "{", "}", keys, |out, key| {
                write_repr(out, key);
                out.push_str(": ");
                write_repr(out, &value.get_item(key).unwrap_or_default());
            });
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

fn write_list(
    out: &mut String,
    open: &str,
    close: &str,
    items: Vec<Value>,
    mut write: impl FnMut(&mut String, &Value),
) {
    out.push_str(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write(out, item);
    }
    out.push_str(close);
}

fn write_string(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// `str.isprintable`. Rust's `Debug` for strings escapes by the same rule, but for a combining character at the start.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    !format!("a{c}").escape_debug().skip(1).collect::<String>().starts_with("\\u")
}

/// `repr` of a float: the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format has an exponent");
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => {
            let plain = number.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
    }
}

/// `template % operand`: the items of a tuple are the values, anything else is one.
pub(super) fn percent(template: &str, operand: &Value) -> Result<String, Error> {
    let operands = if operand.is_tuple() { operand.try_iter()?.collect() } else { vec![operand.clone()] };
    format(FormatStyle::Printf, template, &operands)
}

/// `str.isspace`: Unicode's white space and the four ASCII separators.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (number, text) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-10, "-2.5e-10"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(number), text);
        }
    }

    #[test]
    fn containers_print_as_in_python() {
        let json = serde_json::json!([{"it's": ["a\"b", "'\"", "\n\u{a0}\u{200d}e\u{301}\u{1}🚀"]}, null, true, 1e20, {}]);
        let text = r#"[{"it's": ['a"b', '\'"', '\n\xa0\u200dé\x01🚀']}, None, True, 1e+20, {}]"#;
        assert_eq!(str(&super::super::value(&json)), text.replace('é', "e\u{301}"));
    }

    #[test]
    fn percent_takes_a_tuple_or_one_value() {
        let tuple = Value::from(minijinja::value::Tuple::from([Value::from("x"), Value::from(3)]));
        assert_eq!(percent("%s has %d", &tuple).unwrap(), "x has 3");
        assert_eq!(percent("%s!", &Value::from("x")).unwrap(), "x!");
    }
}
