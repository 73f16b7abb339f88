use serde_json::json;

use super::*;

/// The kind and message of a row's error.
fn error(line: &str) -> (RowErrorKind, String) {
    let error = parsed(line).content.expect_err(line);
    (error.kind, error.message)
}

fn parsed(line: &str) -> Row {
    Row::parse(line, None)
}

#[test]
fn each_kind_of_content_is_read_by_each_of_its_names() {
    let content = |line| parsed(line).content.unwrap();
    assert_eq!(content(r#"{"prompt": " "}"#), Content::Prompt(" ".into()));
    assert_eq!(content(r#"{"token_ids": [0, 4294967295]}"#), Content::TokenIds(vec![0, u32::MAX]));
    assert_eq!(content(r#"{"prompt_token_ids": [7]}"#), Content::TokenIds(vec![7]));
    let messages = json!([{"role": "user", "content": "a", "x": {"y": 1}}, {"role": "t", "content": [{"type": "image"}]}]);
    let line = json!({"messages": messages, "prompt": null, "token_ids": null}).to_string();
    assert_eq!(content(&line), Content::Messages(messages.as_array().unwrap().clone()));
}

#[test]
fn lines_of_openai_s_batches_are_rows() {
    let line = r#"{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]}}"#;
    let row = parsed(line);
    assert_eq!(row.id, Some(json!("a")));
    assert_eq!(row.content, Ok(Content::Messages(vec![json!({"role": "user", "content": "hi"})])));
    assert!(row.other.is_empty(), "there is nothing to warn of: {:?}", row.other);
    let completion = parsed(r#"{"custom_id": "b", "body": {"prompt": "p"}}"#);
    assert_eq!(completion.content, Ok(Content::Prompt("p".into())));
    let broken = parsed(r#"{"custom_id": "b", "body": {"messages": "p"}}"#).content.unwrap_err();
    assert!(broken.message.contains("messages must be an array"), "{}", broken.message);
    let row = parsed(r#"{"prompt": "mine", "body": {"prompt": "other"}}"#);
    assert_eq!(row.content, Ok(Content::Prompt("mine".into())));
}

#[test]
fn what_is_not_content_is_handed_through() {
    let row = parsed(
        r#"{"custom_id": "a", "label": null, "meta": {"z": 1, "a": [2]}, "prompt": "p", "y": 1, "x": 2}"#,
    );
    assert_eq!(row.id, Some(json!("a")));
    assert_eq!(row.label, None);
    assert_eq!(row.meta.unwrap().to_string(), r#"{"z":1,"a":[2]}"#);
    assert_eq!(row.other.keys().collect::<Vec<_>>(), ["y", "x"]);
    assert_eq!(parsed(r#"{"id": -3, "prompt": "p"}"#).id, Some(json!(-3)));
    assert_eq!(parsed(r#"{"id": null, "prompt": "p"}"#).id, None);
}

#[test]
fn broken_json_is_told_with_its_column() {
    for (line, message) in [
        (r#"{"prompt": "a""#, "not valid JSON at column 14: EOF while parsing an object"),
        (r#"{"prompt": a}"#, "not valid JSON at column 12: expected value"),
        (r#"{"prompt": "a"} x"#, "not valid JSON at column 17: trailing characters"),
        (r#"{"prompt": "\ud800"}"#, "not valid JSON at column 19: unexpected end of hex escape"),
        ("[", "not valid JSON at column 1: EOF while parsing a list (is this one JSON array?"),
    ] {
        let (kind, found) = error(line);
        assert_eq!(kind, RowErrorKind::InvalidJson);
        assert!(found.starts_with(message), "{found}");
    }
}

#[test]
fn deep_json_is_an_error_and_no_stack_overflow() {
    for line in ["[".repeat(1_000_000), r#"{"meta":"#.repeat(1_000_000)] {
        let (kind, message) = error(&line);
        assert_eq!(kind, RowErrorKind::InvalidJson);
        assert!(message.contains("recursion limit"), "{message}");
    }
}

#[test]
fn rows_of_the_wrong_shape_are_told_what_was_expected() {
    for (line, message) in [
        ("3", "expected a JSON object, found an integer"),
        ("[{}]", "expected a JSON object, found an array (is this one JSON array?"),
        ("{}", "none of prompt, messages and token_ids is given"),
        (r#"{"prompt": null}"#, "none of prompt, messages and token_ids is given"),
        (r#"{"prompt": "a", "token_ids": [1]}"#, "prompt and token_ids are given, but a row has one of"),
        (r#"{"token_ids": [1], "prompt_token_ids": [1]}"#, "both token_ids and prompt_token_ids are given"),
        (r#"{"id": 1, "custom_id": 1, "prompt": "a"}"#, "both id and custom_id are given"),
        (
            r#"{"id": 1.5, "prompt": "a"}"#,
            "id must be a string or an integer, found a number with a fraction",
        ),
        (r#"{"custom_id": [1], "prompt": "a"}"#, "custom_id must be a string or an integer, found an array"),
        (r#"{"prompt": 3}"#, "prompt must be a string, found an integer"),
        (r#"{"messages": "a"}"#, "messages must be an array, found a string"),
        (r#"{"messages": ["a"]}"#, "messages[0] must be an object with role and content, found a string"),
        (
            r#"{"messages": [{"role": "assistant", "tool_calls": []}, {"role": "user", "contents": "a"}]}"#,
            "messages[1].content must be a string or an array of parts, found nothing",
        ),
        (
            r#"{"messages": [{"role": "tool"}, {"content": "a"}]}"#,
            "messages[1].role must be a string, found nothing",
        ),
        (r#"{"messages": [{"role": 1}]}"#, "messages[0].role must be a string, found an integer"),
        (
            r#"{"messages": [{"role": "user", "content": 1}]}"#,
            "messages[0].content must be a string, null or an",
        ),
        (r#"{"token_ids": 3}"#, "token_ids must be an array, found an integer"),
        (r#"{"token_ids": [1, -1]}"#, "token_ids[1] must be an integer from 0 to 4294967295, found -1"),
        (r#"{"token_ids": [1.0]}"#, "token_ids[0] must be an integer from 0 to 4294967295, found 1.0"),
        (
            r#"{"token_ids": [4294967296]}"#,
            "token_ids[0] must be an integer from 0 to 4294967295, found 4294967296",
        ),
        (
            r#"{"prompt_token_ids": [0, [1]]}"#,
            "prompt_token_ids[1] must be an integer from 0 to 4294967295, found an array",
        ),
    ] {
        let (kind, found) = error(line);
        assert_eq!(kind, RowErrorKind::InvalidRow, "{line}");
        assert!(found.starts_with(message), "{found}");
    }
}

#[test]
fn nothing_to_score_has_its_own_kind() {
    for line in [r#"{"prompt": ""}"#, r#"{"messages": []}"#, r#"{"token_ids": []}"#] {
        assert_eq!(error(line).0, RowErrorKind::EmptyPrompt);
    }
}

#[test]
fn a_bad_row_keeps_what_is_good_in_it() {
    let row = parsed(r#"{"id": "a", "label": 1, "meta": 2, "prompt": 3}"#);
    assert_eq!((row.id, row.label, row.meta), (Some(json!("a")), Some(json!(1)), Some(json!(2))));
}

#[test]
fn the_prompt_may_be_in_another_field() {
    let row = Row::parse(r#"{"goal": "g", "prompt": "p", "target": "t"}"#, Some("goal"));
    assert_eq!(row.content, Ok(Content::Prompt("g".into())));
    assert_eq!(row.other.keys().collect::<Vec<_>>(), ["target"]);
    for other in [r#"{"prompt": "p"}"#, r#"{"goal": null, "prompt": "p"}"#] {
        let error = Row::parse(other, Some("goal")).content.unwrap_err();
        assert!(error.message.contains("none of goal"), "{}", error.message);
    }
    let conversation = Row::parse(r#"{"messages": [{"role": "user", "content": "hi"}]}"#, Some("goal"));
    assert!(conversation.content.is_ok());
}

#[test]
fn errors_name_the_field_that_was_asked_for() {
    let told = |line: &str| Row::parse(line, Some("goal")).content.unwrap_err().message;
    assert_eq!(told(r#"{"prompt": "a"}"#), "none of goal, messages and token_ids is given");
    assert_eq!(told(r#"{"goal": 5}"#), "goal must be a string, found an integer");
}
