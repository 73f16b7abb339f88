//! A template's source, rewritten where minijinja reads it differently from Jinja2.
//!
//! - Line endings become `\n`, as Jinja2's lexer makes them.
//! - `{% generation %}…{% endgeneration %}`, an extension of `transformers`, becomes `{% with %}…{% endwith %}`: both only open a
//!   scope. The tags keep their whitespace control.
//! - String literals are written out so that minijinja's escapes mean what Python's did; neighbours are joined, as in Python.
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
    if let Some(length) = raw_block(text) {
        return Some((Cow::Borrowed(&text[..length]), length));
    }
    let (tokens, length) = tokens(text, end)?;
    let mut out = text[..2].to_owned();
    for token in percent_to_filter(join_strings(rename_generation(tokens))) {
        out.push_str(&token.text);
    }
    out.push_str(end);
    Some((Cow::Owned(out), length))
}

/// The length of `{% raw %}…{% endraw %}` at the start of `text`, whose inside is not Jinja.
fn raw_block(text: &str) -> Option<usize> {
    let mut length = bare_tag(text, "raw")?;
    loop {
        length += text[length..].find("{%")?;
        match bare_tag(&text[length..], "endraw") {
            Some(end) => return Some(length + end),
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
mod tests {
    use super::rewrite;

    #[test]
    fn what_jinja_reads_alike_stays_as_it_is() {
        for source in [
            "",
            "plain { text } with { % no tags",
            "{{ a[\"b\"] | c(d=1) }}{% if x -%} y {%- endif +%}",
            "{# '{% generation %} #}{% raw %}{{ 'a' 'b' }}{% generation %}{%- endraw -%}",
            "{{ {\"a\": {\"b\": \"}}\"}} }} text }} %}",
            "{{ a % b }}",
        ] {
            assert_eq!(rewrite(source), source);
        }
    }

    #[test]
    fn generation_tags_become_scopes_with_the_same_whitespace_control() {
        assert_eq!(
            rewrite("{% generation %}a{%endgeneration%}{%-  generation -%}b{%+ endgeneration\n+%}"),
            "{% with %}a{%endwith%}{%-  with -%}b{%+ endwith\n+%}"
        );
        assert_eq!(
            rewrite("{% set generation = 1 %}{{ generation }}"),
            "{% set generation = 1 %}{{ generation }}"
        );
    }

    #[test]
    fn line_endings_are_line_feeds() {
        assert_eq!(rewrite("a\r\nb\rc\n{{ 'x\r\n' }}"), "a\nb\nc\n{{ \"x\n\" }}");
    }

    #[test]
    fn string_literals_mean_what_they_mean_in_python() {
        assert_eq!(rewrite(r#"{{ 'it\'s "x"' }}"#), r#"{{ "it's \"x\"" }}"#);
        assert_eq!(rewrite(r"{{ '\n\t\\\x41\u00e9' }}"), r#"{{ "\n\t\\\x41\u00e9" }}"#);
        assert_eq!(rewrite(r"{{ '\/\d' }}"), r#"{{ "\\/\\d" }}"#);
        assert_eq!(rewrite(r"{{ '\U0001F680\7\101x' }}"), r#"{{ "🚀\u0007\u0041x" }}"#);
        assert_eq!(rewrite("{{ 'a' \"b\"\n'c' }}"), "{{ \"abc\" \n }}");
    }

    #[test]
    fn percent_formats_what_follows_it() {
        assert_eq!(
            rewrite("{{ '%s' % x.y[0](1) | upper ~ z }}"),
            "{{ \"%s\" |_percent( x.y[0](1) | upper) ~ z }}"
        );
        assert_eq!(rewrite("{{ '%s %d' % (a, -1) }}"), "{{ \"%s %d\" |_percent( (a, -1)) }}");
        assert_eq!(rewrite("{{ '%s' % -1 + 2 }}"), "{{ \"%s\" |_percent( -1) + 2 }}");
        assert_eq!(rewrite("{{ '%s' % ('%d' % 1) }}"), "{{ \"%s\" |_percent( (\"%d\" |_percent( 1))) }}");
        assert_eq!(rewrite("{% if '%s' % x %}"), "{% if \"%s\" |_percent( x) %}");
    }

    #[test]
    fn unfinished_sources_are_left_to_the_compiler() {
        for source in ["{{ 'a", "{% if", "{# a", "{% raw %}{{", "{{ '\\", "{{ (((", "{"] {
            assert_eq!(rewrite(source), source);
        }
    }
}
