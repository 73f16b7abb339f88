//! A template's source, rewritten where minijinja reads it differently from Jinja2.
//!
//! - Line endings become `\n`, as Jinja2's lexer makes them.
//! - `{% generation %}…{% endgeneration %}`, an extension of `transformers`, becomes `{% with %}…{% endwith %}`: both only open a
//!   scope. The tags keep their whitespace control.
//! - String literals are written out so that minijinja's escapes mean what Python's did; neighbours are joined, as in Python.
//! - The line break after `{% raw %}` is kept.
//! - `'…' % value` becomes a call of the filter [`PERCENT`].
//!
//! Lines stay where they are, so that error messages name the right one. A source that cannot be scanned is left as it is from
//! there on: the compiler says what is wrong with it.

use std::{borrow::Cow, fmt::Write};

/// The filter that `%` after a string literal becomes.
pub(super) const PERCENT: &str = "_percent";

/// See the module.
pub(in super::super) fn rewrite(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len() + 64);
    let mut rest = source.as_str();
    while let Some(start) = find_tag(rest) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let (tag, length) = tag(rest).unwrap_or((Cow::Borrowed(rest), rest.len()));
        out.push_str(&tag);
        rest = &rest[length..];
    }
    out + rest
}

/// Where the next `{{`, `{%` or `{#` begins.
fn find_tag(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#'))
}

/// The tag at the start of `text`, rewritten, and its length in `text`. `None`: it has no end.
fn tag(text: &str) -> Option<(Cow<'_, str>, usize)> {
    let end = match text.as_bytes()[1] {
        b'#' => {
            let length = 2 + text[2..].find("#}")? + 2;
            return Some((Cow::Borrowed(&text[..length]), length));
        }
        b'%' => "%}",
        _ => "}}",
    };
    if let Some((start, length)) = raw_block(text) {
        // Unlike other tags, `{% raw %}` keeps the line break after it.
        let keep = if text[..start].ends_with("-%}") { "" } else { "+" };
        return Some((
            Cow::Owned(format!("{}{keep}{}", &text[..start - 2], &text[start - 2..length])),
            length,
        ));
    }
    let (tokens, length) = tokens(text, end)?;
    let mut out = text[..2].to_owned();
    let tokens = if end == "%}" { rename_generation(tokens) } else { tokens };
    for token in percent_to_filter(join_strings(tokens)) {
        out.push_str(&token.text);
    }
    out.push_str(end);
    Some((Cow::Owned(out), length))
}

/// The lengths of `{% raw %}` and of `{% raw %}…{% endraw %}` at the start of `text`, whose inside is not Jinja.
fn raw_block(text: &str) -> Option<(usize, usize)> {
    let start = bare_tag(text, "raw")?;
    let mut length = start;
    loop {
        length += text[length..].find("{%")?;
        match bare_tag(&text[length..], "endraw") {
            Some(end) => return Some((start, length + end)),
            None => length += 2,
        }
    }
}

/// The length of `{% name %}` at the start of `text`, with any whitespace control.
fn bare_tag(text: &str, name: &str) -> Option<usize> {
    let sign = |text: &str| text.strip_prefix(['-', '+']).map_or(text.len(), str::len);
    let inside = text.strip_prefix("{%")?;
    let inside = inside[inside.len() - sign(inside)..].trim_start().strip_prefix(name)?.trim_start();
    let after = inside[inside.len() - sign(inside)..].strip_prefix("%}")?;
    Some(text.len() - after.len())
}

/// A piece of a tag's inside, as far as rewriting has to tell pieces apart.
#[derive(Debug, Clone, PartialEq)]
struct Token<'s> {
    kind: Kind,
    text: Cow<'s, str>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Space,
    /// A string literal, already as minijinja reads it, in double quotes.
    Text,
    /// A name or a number.
    Word,
    Open,
    Close,
    Operator,
}

/// The inside of the tag at the start of `text`, and the length of the whole tag up to and with `end`.
fn tokens<'s>(text: &'s str, end: &str) -> Option<(Vec<Token<'s>>, usize)> {
    let mut tokens = Vec::new();
    let mut open = 0usize;
    let mut at = 2;
    loop {
        let rest = &text[at..];
        // Inside of brackets `}}` closes two of them, and `%}` is an operator and a bracket.
        if open == 0 && rest.starts_with(end) {
            return Some((tokens, at + end.len()));
        }
        let first = rest.chars().next()?;
        let (kind, length) = match first {
            c if c.is_whitespace() => (Kind::Space, length_of(rest, char::is_whitespace)),
            '\'' | '"' => {
                let (literal, length) = literal(rest)?;
                tokens.push(Token { kind: Kind::Text, text: Cow::Owned(literal) });
                at += length;
                continue;
            }
            c if c == '_' || c.is_alphanumeric() => {
                (Kind::Word, length_of(rest, |c| c == '_' || c.is_alphanumeric()))
            }
            '(' | '[' | '{' => {
                open += 1;
                (Kind::Open, 1)
            }
            ')' | ']' | '}' => {
                open = open.saturating_sub(1);
                (Kind::Close, 1)
            }
            c => (Kind::Operator, c.len_utf8()),
        };
        tokens.push(Token { kind, text: Cow::Borrowed(&rest[..length]) });
        at += length;
    }
}

fn length_of(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

/// The string literal at the start of `text` as minijinja reads it, and its length in `text`.
///
/// The escapes are Python's (`unicode-escape`): `\a`, `\v`, `\U…`, octal and line ends are not minijinja's, and what is no escape
/// (`\/`, `\d`) keeps its backslash.
fn literal(text: &str) -> Option<(String, usize)> {
    let quote = text.chars().next()?;
    let mut out = String::from('"');
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => {
                out.push('"');
                return Some((out, at + 1));
            }
            '"' => out.push_str("\\\""),
            '\\' => match chars.next()?.1 {
                '\n' => {}
                '\'' => out.push('\''),
                c @ ('\\' | '"' | 'n' | 'r' | 't' | 'b' | 'f' | 'x' | 'u') => out.extend(['\\', c]),
                'a' => out.push('\u{7}'),
                'v' => out.push('\u{b}'),
                'U' => {
                    let digits: String = chars.by_ref().take(8).map(|(_, c)| c).collect();
                    out.push(char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?);
                }
                c @ '0'..='7' => {
                    let mut code = c.to_digit(8)?;
                    for _ in 0..2 {
                        let Some(digit) = chars.peek().and_then(|(_, c)| c.to_digit(8)) else { break };
                        code = code * 8 + digit;
                        chars.next();
                    }
                    let _ = write!(out, "\\u{code:04x}");
                }
                c => out.extend(['\\', '\\', c]),
            },
            c => out.push(c),
        }
    }
    None
}

fn rename_generation(mut tokens: Vec<Token<'_>>) -> Vec<Token<'_>> {
    let is_alone = tokens.iter().filter(|token| token.kind == Kind::Word).count() == 1;
    for token in tokens.iter_mut().filter(|token| is_alone && token.kind == Kind::Word) {
        match token.text.as_ref() {
            "generation" => token.text = Cow::Borrowed("with"),
            "endgeneration" => token.text = Cow::Borrowed("endwith"),
            _ => {}
        }
    }
    tokens
}

/// `'a' 'b'` → `'ab'`, with the space between them after it.
fn join_strings(tokens: Vec<Token<'_>>) -> Vec<Token<'_>> {
    let mut out: Vec<Token<'_>> = Vec::with_capacity(tokens.len());
    for token in tokens {
        let before = out.iter().rposition(|token| token.kind != Kind::Space);
        match before.map(|before| &mut out[before]) {
            Some(before) if token.kind == Kind::Text && before.kind == Kind::Text => {
                let joined = before.text.to_mut();
                joined.pop();
                joined.push_str(&token.text[1..]);
            }
            _ => out.push(token),
        }
    }
    out
}

/// `'…' % operand` → `'…' |_percent(operand)`.
fn percent_to_filter(mut tokens: Vec<Token<'_>>) -> Vec<Token<'_>> {
    let mut at = 0;
    while at < tokens.len() {
        let is_percent = tokens[at].kind == Kind::Operator && tokens[at].text == "%";
        let before = tokens[..at].iter().rfind(|token| token.kind != Kind::Space);
        if is_percent && before.is_some_and(|token| token.kind == Kind::Text) {
            let end = operand_end(&tokens, at + 1);
            tokens[at].text = Cow::Owned(format!("|{PERCENT}("));
            tokens.insert(end, Token { kind: Kind::Close, text: Cow::Borrowed(")") });
        }
        at += 1;
    }
    tokens
}

/// Where the operand that begins at `start` ends: a sign, a value, and what binds closer than `%`: attributes, items, calls, filters.
fn operand_end(tokens: &[Token<'_>], start: usize) -> usize {
    let mut end = start;
    let mut wants_value = true;
    for (at, token) in tokens.iter().enumerate().skip(start) {
        if at < end {
            continue;
        }
        match (token.kind, token.text.as_ref()) {
            (Kind::Space, _) => {}
            (Kind::Operator, "-" | "+") if wants_value => {}
            (Kind::Operator, "." | "|") if !wants_value => wants_value = true,
            (Kind::Open, "(" | "[") if !wants_value => end = closing(tokens, at),
            (Kind::Open, _) if wants_value => {
                end = closing(tokens, at);
                wants_value = false;
            }
            (Kind::Word | Kind::Text, _) if wants_value => {
                end = at + 1;
                wants_value = false;
            }
            _ => break,
        }
    }
    end
}

/// The index after the bracket that closes the one at `open`.
fn closing(tokens: &[Token<'_>], open: usize) -> usize {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests;
