//! Whatever the bytes of an input or a chat template are, reading them ends in rows and errors, never in a panic.

use std::fs;

use proptest::prelude::*;
use tuco::prompt::{ChatTemplate, Encoder, Lines, Source, SpecialTokens};

/// Bytes that are often a row, or nearly one.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let pieces = [
        "\n",
        "\r\n",
        "\u{feff}",
        " ",
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\\",
        "\\u00e9",
        "\"prompt\":",
        "\"messages\":",
        "\"token_ids\":",
        "\"id\":",
        "null",
        "1",
        "-1",
        "1.5",
        "1e999",
        "\"a\"",
        "{\"role\":\"user\"}",
        "{\"prompt\":\"a\"}\n",
    ];
    let piece = prop_oneof![
        4 => prop::sample::select(pieces.map(|piece| piece.as_bytes().to_vec()).to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..4),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// Text that is often a template, or nearly one.
fn template() -> impl Strategy<Value = String> {
    let pieces = [
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "{%-",
        "-%}",
        "\n",
        "\r",
        " ",
        "'",
        "\"",
        "\\",
        "\\x",
        "\\U0001F680",
        "%",
        "'%s'",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        ".",
        "|",
        "~",
        "+",
        "-",
        "*",
        "1",
        "x",
        "messages",
        "if ",
        "endif",
        "for m in messages",
        "endfor",
        "raw",
        "endraw",
        "generation",
        "endgeneration",
        "set x = ",
        "macro x()",
        "endmacro",
        "break",
        "with",
        "endwith",
        "é",
        "{% generation %}",
        "{% endgeneration %}",
        "{{ messages[0].content }}",
        "upper",
        "tojson",
        "split",
        "()",
    ];
    prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_lines_as_many_as_counted(bytes in input(), is_text in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(if is_text { "a.txt" } else { "a.jsonl" });
        fs::write(&path, &bytes).unwrap();
        let source = match Source::open(&[path]) {
            Ok(source) => source,
            // One array in the place of lines.
            Err(error) => {
                prop_assert!(error.message.contains("is one JSON array") && bytes.contains(&b'['), "{}", error);
                return Ok(());
            }
        };
        let lines: Result<Vec<_>, _> = source.lines().collect();
        let lines = lines.unwrap();
        prop_assert_eq!(source.count_lines().unwrap(), lines.len() as u64);
        prop_assert!(lines.windows(2).all(|pair| pair[0].number < pair[1].number));
        prop_assert!(lines.iter().all(|line| line.id.is_string() || line.id.is_i64() || line.id.is_u64()));
    }

    #[test]
    fn any_text_is_a_template_or_an_error(source in template()) {
        if let Ok(template) = ChatTemplate::new(&source, &SpecialTokens::new(), chrono::NaiveDate::MIN) {
            let _ = template.render(&[serde_json::json!({"role": "user", "content": "a"})], None, true);
        }
    }
}

#[test]
fn readers_and_encoders_can_go_to_other_threads() {
    fn is_send<T: Send>() {}
    fn is_sync<T: Send + Sync>() {}
    is_send::<Lines>();
    is_sync::<Source>();
    is_sync::<Encoder>();
    is_sync::<ChatTemplate>();
}
