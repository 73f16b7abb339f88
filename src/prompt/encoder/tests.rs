use std::fs;

use super::*;
use crate::error::ErrorKind;

/// Words are tokens: `<s>` 0, `</s>` 1, `[user]` 2, `[system]` 3, `[assistant]` 4, `a` 5, `b` 6, `c` 7. Encoding adds `<s>`.
/// With truncation and padding set, which must have no effect.
fn tokenizer() -> Value {
    let words = ["<s>", "</s>", "[user]", "[system]", "[assistant]", "a", "b", "c"];
    let vocab: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| (word.to_string(), json!(id))).collect();
    let added = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 1, "pad_type_id": 0, "pad_token": "</s>"
        },
        "added_tokens": [added(0, "<s>"), added(1, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "</s>"}
    })
}

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %} [{{ m.role }}] {{ m.content }}{% endfor %}\
                        {% if add_generation_prompt %} [assistant]{% endif %}";

/// A checkpoint directory with these files.
fn checkpoint(files: &[(&str, String)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn complete() -> tempfile::TempDir {
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE});
    checkpoint(&[("tokenizer.json", tokenizer().to_string()), ("tokenizer_config.json", config.to_string())])
}

fn options() -> EncoderOptions {
    EncoderOptions {
        template_date: NaiveDate::from_ymd_opt(2024, 7, 26).unwrap(),
        ..EncoderOptions::default()
    }
}

fn open(dir: &tempfile::TempDir, options: EncoderOptions) -> Encoder {
    Encoder::open(dir.path(), 8, 6, options).unwrap()
}

fn ids(encoder: &Encoder, content: Content) -> Vec<u32> {
    encoder.encode(&content).unwrap().token_ids
}

fn prompt(text: &str) -> Content {
    Content::Prompt(text.to_owned())
}

fn user(text: &str) -> Content {
    Content::Messages(vec![json!({"role": "user", "content": text})])
}

#[test]
fn a_plain_prompt_gets_the_tokenizer_s_special_tokens_and_a_rendered_one_does_not() {
    let dir = complete();
    let encoder = open(&dir, options());
    assert_eq!(ids(&encoder, prompt("a b c")), [0, 5, 6, 7]);
    assert_eq!(ids(&encoder, user("a b")), [0, 2, 5, 6, 4]);
    assert_eq!(ids(&encoder, Content::TokenIds(vec![7, 0])), [7, 0]);
    let templated = open(&dir, EncoderOptions { apply_chat_template: true, ..options() });
    assert_eq!(ids(&templated, prompt("a b")), [0, 2, 5, 6, 4]);
    assert_eq!(ids(&templated, Content::TokenIds(vec![7])), [7]);
}

#[test]
fn a_template_sees_arguments_of_the_caller() {
    let template = "{{ bos_token }}{% if enable_thinking is defined and not enable_thinking %} b{% endif %}{{ ' ' ~ mode }}";
    let config = json!({"bos_token": "<s>", "chat_template": template});
    let files = [("tokenizer.json", tokenizer().to_string()), ("tokenizer_config.json", config.to_string())];
    let dir = checkpoint(&files);
    let with = |arguments: Value| {
        let chat_template_args = arguments.as_object().unwrap().clone();
        ids(&open(&dir, EncoderOptions { chat_template_args, ..options() }), user("a"))
    };
    assert_eq!(with(json!({"mode": "c"})), [0, 7]);
    assert_eq!(with(json!({"mode": "c", "enable_thinking": false})), [0, 6, 7]);
    assert_eq!(with(json!({"mode": "c", "bos_token": "a"})), [5, 7]);
}

#[test]
fn a_template_that_is_asked_for_has_to_be_there() {
    let dir = checkpoint(&[("tokenizer.json", tokenizer().to_string())]);
    let error = Encoder::open(dir.path(), 8, 6, EncoderOptions { apply_chat_template: true, ..options() });
    let error = error.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Usage);
    assert!(
        error.message.contains("--apply-chat-template") && error.message.contains("--tokenizer"),
        "{error}"
    );
    // Rows of messages say it themselves.
    let of_row = open(&dir, options()).encode(&user("a")).unwrap_err();
    assert_eq!(of_row.kind, RowErrorKind::TemplateError);
}

#[test]
fn a_template_of_its_own_file_goes_before_the_tokenizers() {
    let dir = complete();
    let given = dir.path().join("given.jinja");
    fs::write(&given, "{{ bos_token }}{% for message in messages %} {{ message.content }}{% endfor %}")
        .unwrap();
    let with =
        |chat_template: &Path| EncoderOptions { chat_template: Some(chat_template.into()), ..options() };
    assert_eq!(ids(&open(&dir, with(&given)), user("a b")), [0, 5, 6]);
    let problem = |path: &Path| Encoder::open(dir.path(), 8, 6, with(path)).err().unwrap();
    let nowhere = problem(&dir.path().join("nowhere"));
    assert_eq!(nowhere.kind, ErrorKind::Usage);
    assert!(nowhere.message.contains("--chat-template") && nowhere.message.contains("nowhere"), "{nowhere}");
    fs::write(&given, "{% for %}").unwrap();
    let broken = problem(&given);
    assert!(broken.message.contains("given.jinja"), "{broken}");
}

#[test]
fn a_system_instruction_goes_before_conversations_without_one() {
    let system_instruction = Some("c".to_owned());
    let encoder =
        open(&complete(), EncoderOptions { apply_chat_template: true, system_instruction, ..options() });
    assert_eq!(ids(&encoder, prompt("a")), [0, 3, 7, 2, 5, 4]);
    let own = json!([{"role": "system", "content": "b"}, {"role": "user", "content": "a"}]);
    assert_eq!(ids(&encoder, Content::Messages(own.as_array().unwrap().clone())), [0, 3, 6, 2, 5, 4]);
}

#[test]
fn a_template_without_a_system_role_refuses_system_instructions() {
    let refusing = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}\
                    {{ m.content }}{% endfor %}";
    let leaving_out =
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}";
    for (template, part) in [(refusing, "no system role"), (leaving_out, "leaves the system message out")] {
        let tokenizer = ("tokenizer.json", tokenizer().to_string());
        let dir = checkpoint(&[tokenizer, ("chat_template.jinja", template.to_owned())]);
        assert_eq!(ids(&open(&dir, options()), user("a")), [5]);
        let options = EncoderOptions { system_instruction: Some("b".to_owned()), ..options() };
        let error = Encoder::open(dir.path(), 8, 6, options).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Usage);
        assert!(error.message.contains(part) && error.message.contains("--system-instruction"), "{error}");
    }
}

#[test]
fn fields_that_are_null_are_not_there_for_the_template() {
    let template = "{% for m in messages %}{{ 'a' if m.tool_calls is defined }} b{% endfor %}".to_owned();
    let dir = checkpoint(&[("tokenizer.json", tokenizer().to_string()), ("chat_template.jinja", template)]);
    let messages = vec![json!({"role": "user", "content": "x", "tool_calls": null})];
    assert_eq!(ids(&open(&dir, options()), Content::Messages(messages)), [6]);
}

#[test]
fn what_is_not_as_it_seems_is_told_once() {
    let system_instruction = Some("c".to_owned());
    let encoder = open(
        &complete(),
        EncoderOptions { system_instruction, on_overlength: Overlength::TruncateLeft, ..options() },
    );
    let answered = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    for _ in 0..2 {
        ids(&encoder, prompt("a"));
        ids(&encoder, Content::Messages(answered.as_array().unwrap().clone()));
    }
    let [plain, turn] = encoder.take_warnings().try_into().unwrap();
    assert!(plain.contains("--system-instruction") && turn.contains("ends with a message of the assistant"));
}

#[test]
fn a_doubled_bos_is_told_once() {
    let encoder = open(&complete(), options());
    assert_eq!(ids(&encoder, prompt("<s> a")), [0, 0, 5]);
    assert_eq!(ids(&encoder, prompt("<s> b")), [0, 0, 6]);
    assert!(encoder.take_warnings().concat().contains("two in a row"));
    assert!(encoder.take_warnings().is_empty());
    let quiet = open(&complete(), options());
    ids(&quiet, prompt("a <s>"));
    ids(&quiet, Content::TokenIds(vec![0, 0]));
    assert!(quiet.take_warnings().is_empty());
}

#[test]
fn what_is_too_long_is_an_error_or_cut_as_asked() {
    let dir = complete();
    let encode = |on_overlength| {
        open(&dir, EncoderOptions { on_overlength, ..options() }).encode(&prompt("a b c a b c a"))
    };
    let error = encode(Overlength::ErrorRow).unwrap_err();
    assert_eq!(error.kind, RowErrorKind::TooLong);
    assert_eq!(error.message, "the prompt has 8 tokens, but the model takes at most 6");
    let cut = |token_ids: &[u32]| Ok(Encoded { token_ids: token_ids.to_vec(), truncated: true });
    // What all texts begin with stays.
    assert_eq!(encode(Overlength::TruncateLeft), cut(&[0, 7, 5, 6, 7, 5][..]));
    assert_eq!(encode(Overlength::TruncateRight), cut(&[0, 5, 6, 7, 5, 6]));
    let fits = open(&dir, options()).encode(&prompt("a b c a b")).unwrap();
    assert_eq!((fits.token_ids.len(), fits.truncated), (6, false));
}

#[test]
fn a_conversation_that_loses_its_end_is_told_once() {
    let dir = complete();
    let warnings = |on_overlength, content: &Content| {
        let encoder = open(&dir, EncoderOptions { on_overlength, ..options() });
        assert!(encoder.encode(content).unwrap().truncated && encoder.encode(content).unwrap().truncated);
        encoder.take_warnings()
    };
    let conversation = user("a b c a b c a");
    let told = warnings(Overlength::TruncateRight, &conversation);
    assert!(told.len() == 1 && told[0].contains("cut on the right"), "{told:?}");
    assert!(warnings(Overlength::TruncateLeft, &conversation).is_empty());
    assert!(warnings(Overlength::TruncateRight, &prompt("a b c a b c a")).is_empty());
}

#[test]
fn what_is_cut_leaves_room_for_what_follows() {
    let dir = complete();
    let before = |max_length, on_overlength, following| {
        let encoder = open(&dir, EncoderOptions { max_length, on_overlength, ..options() });
        encoder.encode_before(ContentRef::TokenIds(&[2, 3, 4, 5]), following)
    };
    let cut = |token_ids: &[u32]| Ok(Encoded { token_ids: token_ids.to_vec(), truncated: true });
    let whole = Ok(Encoded { token_ids: vec![2, 3, 4, 5], truncated: false });
    assert_eq!(before(None, Overlength::TruncateLeft, 2), whole);
    assert_eq!(before(None, Overlength::TruncateLeft, 3), cut(&[3, 4, 5]));
    assert_eq!(before(None, Overlength::TruncateRight, 5), cut(&[2]));
    // What follows is no part of the longest prompt.
    assert_eq!(before(Some(3), Overlength::TruncateRight, 2), cut(&[2, 3, 4]));
    // A completion may end where the context does.
    assert_eq!(before(None, Overlength::ErrorRow, 5), whole);
    let error = before(None, Overlength::TruncateLeft, 6).unwrap_err();
    assert_eq!(error.kind, RowErrorKind::TooLong);
    assert!(error.message.contains("6 tokens are to follow it"), "{}", error.message);
}

#[test]
fn ids_without_an_embedding_are_named() {
    let error = open(&complete(), options()).encode(&Content::TokenIds(vec![1, 7, 8, 9])).unwrap_err();
    assert_eq!(error.kind, RowErrorKind::TokenOutOfRange);
    assert_eq!(error.message, "token 2 has id 8, but the model's vocabulary has 8 (0 to 7)");
}

#[test]
fn a_prompt_without_tokens_is_empty() {
    let mut tokenizer = tokenizer();
    tokenizer["post_processor"] = Value::Null;
    let dir =
        checkpoint(&[("tokenizer.json", tokenizer.to_string()), ("chat_template.jinja", "  ".to_owned())]);
    let encoder = open(&dir, options());
    for content in [prompt("  "), user("a"), Content::TokenIds(vec![])] {
        assert_eq!(encoder.encode(&content).unwrap_err().kind, RowErrorKind::EmptyPrompt);
    }
}

#[test]
fn without_a_tokenizer_only_token_ids_are_scored() {
    let dir = checkpoint(&[]);
    let encoder = open(&dir, options());
    assert_eq!(ids(&encoder, Content::TokenIds(vec![7])), [7]);
    let error = encoder.encode(&prompt("a")).unwrap_err();
    assert_eq!(error.kind, RowErrorKind::NoTokenizer);
    assert!(error.message.contains(&dir.path().display().to_string()), "{error}");
    let fingerprint = encoder.fingerprint();
    for field in ["tokenizer_sha256", "chat_template_sha256", "template_date"] {
        assert!(fingerprint[field].is_null(), "{fingerprint}");
    }

    let error =
        open(&checkpoint(&[("tokenizer.model", String::new())]), options()).encode(&prompt("a")).unwrap_err();
    assert!(
        error.message.contains("tokenizer.model") && error.message.contains("save_pretrained"),
        "{error}"
    );
}

/// Templates that know of text alone would print a list.
#[test]
fn parts_of_text_are_text() {
    let part = |text: &str| json!({"type": "text", "text": text});
    let asked = |content: Value| Content::Messages(vec![json!({"role": "user", "content": content})]);
    let encoder = open(&complete(), options());
    assert_eq!(ids(&encoder, asked(json!([part("a"), part("b")]))), ids(&encoder, asked("a\nb".into())));
    let image = asked(json!([part("a"), {"type": "image_url", "image_url": {"url": "x"}}]));
    let error = encoder.encode(&image).unwrap_err();
    assert_eq!(error.kind, RowErrorKind::InvalidRow);
    assert!(error.message.contains("messages[0].content[1] is of type \"image_url\""), "{}", error.message);
    // One that goes through the parts gets them.
    let template =
        "{% for m in messages %}{% for part in m.content %} {{ part.text }} c{% endfor %}{% endfor %}";
    let dir = checkpoint(&[
        ("tokenizer.json", tokenizer().to_string()),
        ("chat_template.jinja", template.to_owned()),
        ("tokenizer_config.json", "{}".to_owned()),
    ]);
    assert_eq!(ids(&open(&dir, options()), asked(json!([part("a"), part("b")]))), [5, 7, 6, 7]);
}

#[test]
fn without_a_template_messages_say_what_is_missing() {
    let encoder = open(&checkpoint(&[("tokenizer.json", tokenizer().to_string())]), options());
    assert_eq!(ids(&encoder, prompt("a")), [0, 5]);
    let error = encoder.encode(&user("a")).unwrap_err();
    assert_eq!(error.kind, RowErrorKind::TemplateError);
    assert!(error.message.contains("chat_template.jinja"), "{error}");
}

#[test]
fn the_template_comes_from_the_first_place_that_has_one() {
    let list =
        json!({"chat_template": [{"name": "rag", "template": "a"}, {"name": "default", "template": "b"}]})
            .to_string();
    let jinja = ("chat_template.jinja", "c".to_owned());
    let config = ("tokenizer_config.json", list);
    let json = ("chat_template.json", json!({"chat_template": "a"}).to_string());
    let tokenizer = ("tokenizer.json", tokenizer().to_string());
    let id = |files: &[(&str, String)]| ids(&open(&checkpoint(files), options()), user("x"))[0];
    assert_eq!(id(&[tokenizer.clone(), json.clone(), config.clone(), jinja]), 7);
    assert_eq!(id(&[tokenizer.clone(), json.clone(), config]), 6);
    assert_eq!(id(&[tokenizer, json]), 5);
}

#[test]
fn the_template_s_own_refusal_is_the_row_s_error() {
    let template = "{{ raise_exception('roles must alternate') }}{{ strftime_now('%Y') }}".to_owned();
    let dir = checkpoint(&[("tokenizer.json", tokenizer().to_string()), ("chat_template.jinja", template)]);
    let encoder = open(&dir, options());
    let error = encoder.encode(&user("a")).unwrap_err();
    assert_eq!(error.kind, RowErrorKind::TemplateError);
    assert_eq!(error.message, "the chat template refuses these messages: roles must alternate");
    assert_eq!(encoder.fingerprint()["template_date"], "2024-07-26");
}

#[test]
fn tokens_that_only_the_configuration_declares_are_tokens() {
    let flags = json!({"content": "a", "lstrip": true, "rstrip": false, "normalized": false, "single_word": false, "special": true});
    let config = json!({"bos_token": "<s>", "added_tokens_decoder": {"5": flags}, "additional_special_tokens": ["bc"]});
    let dir = checkpoint(&[
        ("tokenizer.json", tokenizer().to_string()),
        ("tokenizer_config.json", config.to_string()),
    ]);
    let encoder = Encoder::open(dir.path(), 100, 6, options()).unwrap();
    assert_eq!(ids(&encoder, prompt("b abc")), [0, 6, 5, 8]);
    let map = json!({"additional_special_tokens": ["bc"]}).to_string();
    let dir = checkpoint(&[("tokenizer.json", tokenizer().to_string()), ("special_tokens_map.json", map)]);
    assert_eq!(ids(&Encoder::open(dir.path(), 100, 6, options()).unwrap(), prompt("b abc")), [0, 6, 5, 8]);
    // Without the declaration they are parts of unknown words.
    assert_eq!(ids(&open(&complete(), options()), prompt("b abc")), [0, 6, 1]);
}

#[test]
fn broken_files_of_the_checkpoint_are_named() {
    let legacy = json!({"bos_token": {"content": "<s>"}}).to_string();
    for (name, text, part) in [
        ("tokenizer.json", "{}", "not a tokenizer"),
        ("tokenizer_config.json", "[1]", "not a JSON object"),
        ("special_tokens_map.json", "{", "not a JSON object"),
        ("chat_template.json", "", "not a JSON object"),
    ] {
        let dir = checkpoint(&[("special_tokens_map.json", legacy.clone()), (name, text.to_owned())]);
        let error = Encoder::open(dir.path(), 8, 6, options()).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Checkpoint, "{name}");
        assert!(error.message.contains(part) && error.message.contains(name), "{error}");
    }
    let dir = checkpoint(&[]);
    fs::write(dir.path().join("chat_template.jinja"), b"\xff").unwrap();
    assert!(Encoder::open(dir.path(), 8, 6, options()).err().unwrap().message.contains("not UTF-8"));
}

#[test]
fn a_template_that_cannot_be_compiled_matters_where_it_is_needed() {
    let template = "{% if %}\n".to_owned();
    let dir = checkpoint(&[("tokenizer.json", tokenizer().to_string()), ("chat_template.jinja", template)]);
    let part = format!("{}: the chat template cannot be compiled", dir.path().display());
    let encoder = open(&dir, options());
    assert_eq!(ids(&encoder, prompt("a")), [0, 5]);
    let error = encoder.encode(&user("a")).unwrap_err();
    assert_eq!(error.kind, RowErrorKind::TemplateError);
    assert!(error.message.contains(&part), "{error}");
    let options = EncoderOptions { apply_chat_template: true, ..options() };
    assert!(Encoder::open(dir.path(), 8, 6, options).err().unwrap().message.contains(&part));
}

#[test]
fn fingerprints_are_of_what_was_read() {
    let dir = complete();
    let fingerprint = open(&dir, options()).fingerprint();
    for field in ["tokenizer_sha256", "special_tokens_sha256", "chat_template_sha256"] {
        assert_eq!(fingerprint[field].as_str().unwrap().len(), 64, "{field}");
    }
    assert!(fingerprint["template_date"].is_null());
    // Templates see these tokens.
    let path = dir.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut with = |name: &str, value: Value| {
        config[name] = value;
        fs::write(&path, config.to_string()).unwrap();
        open(&dir, options()).fingerprint()
    };
    assert_eq!(with("model_max_length", json!(7)), fingerprint);
    assert_ne!(with("bos_token", json!("b")), fingerprint);
}

/// As Llama 2's: a space before every text, and none before what is decoded.
fn sentence_piece() -> Value {
    json!({
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
            "vocab": {"<unk>": 0, "▁": 1, "A": 2, "a": 3, ":": 4, "▁A": 5, "▁a": 6, "<0x0A>": 7},
            "merges": [["▁", "A"], ["▁", "a"]],
        },
    })
}

#[test]
fn what_goes_on_has_no_space_that_is_not_there() {
    let encoder = open(&checkpoint(&[("tokenizer.json", sentence_piece().to_string())]), options());
    assert_eq!(encoder.continuation(" A"), Ok(vec![5]));
    assert_eq!(encoder.continuation("A"), Ok(vec![2]));
    assert_eq!(encoder.continuation("\nA"), Ok(vec![7, 2]));
    assert_eq!(encoder.bare("A"), Ok(vec![5]));
    assert_eq!(ids(&encoder, prompt("A: A")), [5, 4, 5]);
    let texts: Vec<Option<String>> = [5, 2, 1].into_iter().map(|token| encoder.text_of(token)).collect();
    assert_eq!(texts, [" A", "A", " "].map(|text| Some(text.to_owned())));
}

#[test]
fn a_reply_begins_as_the_template_writes_it() {
    let messages = "{% for m in messages %}{% if m.role == 'user' %}A:{{ m.content }}{% else %}SPACE{{ m.content | trim }}:{% endif %}\
                    {% endfor %}{% if add_generation_prompt %}GENERATION{% endif %}";
    let opened = |space: &str, generation: &str, apply_chat_template| {
        let template = messages.replace("SPACE", space).replace("GENERATION", generation);
        let config = json!({"chat_template": template}).to_string();
        let files = [("tokenizer.json", sentence_piece().to_string()), ("tokenizer_config.json", config)];
        open(&checkpoint(&files), EncoderOptions { apply_chat_template, ..options() })
    };
    let reply = |encoder: &Encoder, content: Content| encoder.reply(content.as_ref(), "A").unwrap();
    // As Llama 2, Mistral and Vicuna put it, and as Llama 3 does.
    assert_eq!(reply(&opened(" ", "", true), prompt("a")), [5]);
    assert_eq!(reply(&opened("", "", true), prompt("a")), [2]);
    assert_eq!(reply(&opened(" ", "", false), user("a")), [5]);
    // Text has no template, and of one that writes replies in another place than it asks for them nothing is known.
    assert_eq!(reply(&opened(" ", "", false), prompt("a")), [2]);
    assert_eq!(reply(&opened(" ", "::", true), prompt("a")), [2]);
}
