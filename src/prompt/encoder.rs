//! Content → token ids.

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use chrono::NaiveDate;
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::{
    row::{Content, ContentRef, RowError, RowErrorKind},
    template::ChatTemplate,
    tokenizer_files::TokenizerFiles,
};
use crate::error::{Error, Result};

/// How rows become token ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncoderOptions {
    /// A plain prompt is one user message for the chat template.
    pub apply_chat_template: bool,
    /// The first message, with role system, of conversations that have no system message of their own.
    pub system_instruction: Option<String>,
    /// A file with the chat template; `None`: the checkpoint's own.
    pub chat_template: Option<PathBuf>,
    /// What the chat template sees besides the conversation, by name.
    pub chat_template_args: Map<String, Value>,
    /// The day that the chat template's `strftime_now` tells.
    pub template_date: NaiveDate,
    /// Most tokens of a row; `None`: as many as the model's context.
    pub max_length: Option<usize>,
    pub on_overlength: Overlength,
}

/// What becomes of a row with more tokens than the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Overlength {
    /// It becomes an error row.
    #[default]
    ErrorRow,
    /// Its last tokens are kept, after the token that all texts begin with (`bos_token`).
    TruncateLeft,
    /// Its first tokens are kept.
    TruncateRight,
}

impl Overlength {
    /// As the flag has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ErrorRow => "error-row",
            Self::TruncateLeft => "truncate-left",
            Self::TruncateRight => "truncate-right",
        }
    }
}

/// The token ids of a row, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    pub token_ids: Vec<u32>,
    /// Tokens were left out, as [`Overlength`] says.
    pub truncated: bool,
}

fn no_template(path: &Path) -> String {
    format!(
        "{} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); --chat-template names a file \
         that is one, --tokenizer a directory that has one",
        path.display()
    )
}

/// What was told of rows, each once.
#[derive(Default)]
struct Told {
    double_bos: AtomicBool,
    no_system: AtomicBool,
    other_turn: AtomicBool,
    cut_turn: AtomicBool,
}

/// The tuned model's tokenizer and chat template. Threads may share one.
pub struct Encoder {
    /// Where they are from: a directory, or a GGUF file.
    path: PathBuf,
    /// `Err`: why there is none. That matters only to rows of text.
    tokenizer: Result<Tokenizer, String>,
    tokenizer_sha256: Option<String>,
    special_tokens_sha256: String,
    /// `Err`: why the checkpoint's template cannot be used. That matters only to the rows that need it.
    template: Option<Result<ChatTemplate>>,
    /// The id of `bos_token`, to find a doubled one.
    bos_id: Option<u32>,
    /// The end of a line, and its tokens; where the tokenizer puts a space before every text.
    line_before: Option<(&'static str, Vec<u32>)>,
    told: Told,
    warnings: Mutex<Vec<String>>,
    vocab_size: usize,
    context_length: usize,
    options: EncoderOptions,
}

impl Encoder {
    /// Reads tokenizer and chat template of a checkpoint, a directory or a GGUF file. Without a tokenizer only token ids can be
    /// encoded.
    ///
    /// `vocab_size` is the number of rows of the embedding, `context_length` the most tokens that the model takes.
    ///
    /// # Errors
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) where a file is there but broken, [`ErrorKind::Usage`](crate::ErrorKind::Usage)
    /// where it cannot be read; the file is named. Usage errors too are system instructions for a template without a system role. The
    /// checkpoint's chat template is an error where it cannot be compiled only under [`EncoderOptions::apply_chat_template`].
    pub fn open(
        path: &Path,
        vocab_size: usize,
        context_length: usize,
        options: EncoderOptions,
    ) -> Result<Self> {
        let mut files = TokenizerFiles::read(path)?;
        let given = options.chat_template.as_deref();
        if let Some(given) = given {
            let source = fs::read_to_string(given)
                .map_err(|error| Error::usage(format!("--chat-template {}: {error}", given.display())))?;
            files.template = Some(source);
        }
        let from = given.unwrap_or(path).display();
        let compile = |source: &String| {
            ChatTemplate::new(source, &files.special_tokens, options.template_date)
                .map(|template| template.with_arguments(&options.chat_template_args))
                .map_err(|error| Error::new(error.kind, format!("{from}: {error}")))
        };
        let template = files.template.as_ref().map(compile);
        if options.apply_chat_template || given.is_some() {
            match &template {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.clone()),
                None => return Err(Error::usage(format!("--apply-chat-template: {}", no_template(path)))),
            }
        }
        if let (Some(instruction), Some(Ok(template))) = (&options.system_instruction, &template) {
            check_system_role(template, instruction)
                .map_err(|problem| Error::usage(format!("--system-instruction: {from}: {problem}")))?;
        }
        let bos = files.special_tokens.get("bos_token");
        let bos_id = bos.and_then(|bos| files.tokenizer.as_ref().ok()?.token_to_id(bos));
        let line_before = files.tokenizer.as_ref().ok().and_then(line_after_a_space);
        Ok(Self {
            path: path.to_owned(),
            tokenizer: files.tokenizer,
            tokenizer_sha256: files.tokenizer_sha256,
            special_tokens_sha256: files.special_tokens_sha256,
            template,
            bos_id,
            line_before,
            told: Told::default(),
            warnings: Mutex::default(),
            vocab_size,
            context_length,
            options,
        })
    }

    /// The token ids of a row.
    ///
    /// # Errors
    /// What is wrong with this row; other rows are not affected.
    pub fn encode(&self, content: &Content) -> Result<Encoded, RowError> {
        self.encode_before(content.as_ref(), 0)
    }

    /// The token ids of a row that so many tokens are to follow: where it is cut, it leaves room for them in the context.
    ///
    /// # Errors
    /// What is wrong with this row.
    pub fn encode_before(&self, content: ContentRef<'_>, following: usize) -> Result<Encoded, RowError> {
        let conversation = self.conversation(content);
        let ids = match content {
            ContentRef::Prompt("") => return Err(empty("the prompt is an empty string")),
            ContentRef::Messages([]) => return Err(empty("the conversation has no messages")),
            ContentRef::TokenIds(ids) => Cow::Borrowed(ids),
            ContentRef::Prompt(text) if conversation.is_none() => Cow::Owned(self.encode_text(text)?),
            _ => Cow::Owned(self.encode_messages(conversation.as_deref().unwrap_or_default())?),
        };
        if ids.is_empty() {
            return Err(empty("the prompt has no tokens"));
        }
        self.check_range(&ids)?;
        let encoded = self.fit(&ids, following)?;
        if encoded.truncated
            && self.options.on_overlength == Overlength::TruncateRight
            && conversation.is_some()
        {
            self.warn_once(
                &self.told.cut_turn,
                "conversations are cut on the right, which takes what the assistant's message begins with: TuCo is that of a token in \
                 the middle (truncate-left keeps the end)",
            );
        }
        Ok(encoded)
    }

    /// The tokens of text that goes on from other text, at least one: no special tokens, and no space that is not there.
    ///
    /// # Errors
    /// Where there is no tokenizer, or the text has no tokens.
    pub fn continuation(&self, text: &str) -> Result<Vec<u32>, RowError> {
        // Tokenizers of SentencePiece (Llama 2, Mistral) put a space before a text; what goes on from another has none.
        let after = |(before, own): &(&str, Vec<u32>)| {
            let ids = self.tokenize(&format!("{before}{text}"), false)?;
            Ok(ids.strip_prefix(own.as_slice()).map(<[u32]>::to_vec))
        };
        let ids = self.line_before.as_ref().map(after).transpose()?.flatten();
        self.some_tokens(text, ids.map_or_else(|| self.tokenize(text, false), Ok)?)
    }

    /// The tokens, at least one, with which a reply to a row begins. After text it goes on as it stands; in a conversation it is the
    /// assistant's message, before which templates may put a space (Llama 2, Mistral, Vicuna).
    ///
    /// # Errors
    /// As [`Encoder::continuation`].
    pub fn reply(&self, content: ContentRef<'_>, text: &str) -> Result<Vec<u32>, RowError> {
        let space = self.conversation(content).and_then(|messages| self.space_before(text, &messages));
        self.continuation(&format!("{}{text}", space.unwrap_or_default()))
    }

    /// The white space that the template puts between its generation prompt and the assistant's message.
    fn space_before(&self, text: &str, messages: &[Value]) -> Option<String> {
        let before = self.render(messages, true).ok()?;
        let reply = json!({"role": "assistant", "content": text});
        let messages: Vec<Value> = messages.iter().cloned().chain([reply]).collect();
        let whole = self.render(&messages, false).ok()?;
        let rest = whole.strip_prefix(&before)?;
        let space = &rest[..rest.find(text)?];
        space.trim().is_empty().then(|| space.to_owned())
    }

    /// The messages of a row that goes through the chat template.
    fn conversation<'c>(&self, content: ContentRef<'c>) -> Option<Cow<'c, [Value]>> {
        match content {
            ContentRef::Messages(messages) => Some(Cow::Borrowed(messages)),
            ContentRef::Prompt(text) if self.options.apply_chat_template => {
                Some(Cow::Owned(vec![json!({"role": "user", "content": text})]))
            }
            ContentRef::Prompt(_) | ContentRef::TokenIds(_) => None,
        }
    }

    /// The tokens of a text without special tokens, at least one.
    ///
    /// # Errors
    /// As [`Encoder::continuation`].
    pub fn bare(&self, text: &str) -> Result<Vec<u32>, RowError> {
        self.some_tokens(text, self.tokenize(text, false)?)
    }

    fn some_tokens(&self, text: &str, ids: Vec<u32>) -> Result<Vec<u32>, RowError> {
        self.check_range(&ids)?;
        if ids.is_empty() {
            return Err(RowError::new(RowErrorKind::EmptyPrompt, format!("{text:?} has no tokens")));
        }
        Ok(ids)
    }

    /// The text that the chat template makes of a conversation.
    ///
    /// # Errors
    /// Where there is no template, or it does not take these messages.
    pub fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String, RowError> {
        let template = match self.template() {
            Some(Ok(template)) => template,
            Some(Err(error)) => {
                return Err(RowError::new(RowErrorKind::TemplateError, error.message.clone()));
            }
            None => {
                let message = format!("messages need a chat template: {}", no_template(&self.path));
                return Err(RowError::new(RowErrorKind::TemplateError, message));
            }
        };
        let system = self
            .options
            .system_instruction
            .as_ref()
            .filter(|_| messages.iter().all(|m| m["role"] != "system"));
        let system = system.map(|text| json!({"role": "system", "content": text}));
        let mut messages: Vec<Value> = system.iter().chain(messages).map(without_nulls).collect();
        if !template.reads_parts() {
            messages.iter_mut().enumerate().try_for_each(|(index, message)| join_parts(index, message))?;
        }
        template.render(&messages, None, add_generation_prompt)
    }

    /// What tokens say together, special ones included. `None` without a tokenizer.
    pub fn spelled(&self, tokens: &[u32]) -> Option<String> {
        self.tokenizer.as_ref().ok()?.decode(tokens, false).ok()
    }

    /// What a token says; one that is part of a character has replacement characters. `None` without a tokenizer.
    pub fn text_of(&self, token: u32) -> Option<String> {
        let tokenizer = self.tokenizer.as_ref().ok()?;
        let text = tokenizer.decode(&[token], false).ok()?;
        // Decoders of SentencePiece take a space off the beginning of what they are given.
        if !text.starts_with(' ') && tokenizer.id_to_token(token).is_some_and(|name| name.starts_with(SPACE))
        {
            return Some(format!(" {text}"));
        }
        if !text.contains(char::REPLACEMENT_CHARACTER) {
            return Some(text);
        }
        // A part of a character is shown by its bytes.
        let name = tokenizer.id_to_token(token)?;
        if let Some(byte) = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')) {
            return Some(format!("<{}>", byte.to_lowercase()));
        }
        let bytes: Option<Vec<String>> =
            name.chars().map(|c| byte_of(c).map(|byte| format!("{byte:02x}"))).collect();
        Some(bytes.map_or(name, |bytes| format!("<{}>", bytes.join(" "))))
    }

    /// What tokens say together, special ones left out. `None` without a tokenizer.
    pub fn text_of_all(&self, tokens: &[u32]) -> Option<String> {
        self.tokenizer.as_ref().ok()?.decode(tokens, true).ok()
    }

    /// Whether there is a tokenizer, which `flag` needs.
    ///
    /// # Errors
    /// A usage error that says why there is none.
    pub fn check_decodes(&self, flag: &str) -> Result<()> {
        let reason = self.tokenizer.as_ref().err();
        reason.map_or(Ok(()), |reason| Err(Error::usage(format!("{flag} needs a tokenizer: {reason}"))))
    }

    /// The most tokens that a row may have.
    pub fn max_length(&self) -> usize {
        self.options.max_length.unwrap_or(self.context_length)
    }

    /// The most tokens that a row may have with what follows it.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Whether this is a plain prompt that does not go through the chat template that there is.
    pub fn leaves_template_out(&self, content: ContentRef<'_>) -> bool {
        matches!(content, ContentRef::Prompt(_))
            && !self.options.apply_chat_template
            && matches!(self.template(), Some(Ok(_)))
    }

    /// Whether plain prompts go through the chat template.
    pub fn applies_chat_template(&self) -> bool {
        self.options.apply_chat_template
    }

    /// What the tokens of a row depend on besides the row and the options, for a manifest: the tokenizer, the chat template,
    /// and the day that it sees if it asks for one.
    pub fn fingerprint(&self) -> Value {
        let template = self.template().and_then(Result::ok);
        let uses_date = template.is_some_and(ChatTemplate::uses_date);
        json!({
            "tokenizer_sha256": self.tokenizer_sha256,
            "special_tokens_sha256": self.special_tokens_sha256,
            "chat_template_sha256": template.map(ChatTemplate::source_sha256),
            "template_date": uses_date.then(|| self.options.template_date.to_string()),
        })
    }

    fn template(&self) -> Option<Result<&ChatTemplate, &Error>> {
        self.template.as_ref().map(Result::as_ref)
    }

    /// What the user should be told about the rows encoded since the last call.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn warn_once(&self, told: &AtomicBool, warning: &str) {
        if !told.swap(true, Ordering::Relaxed) {
            self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(warning.to_owned());
        }
    }

    /// A plain prompt gets the tokenizer's special tokens.
    fn encode_text(&self, text: &str) -> Result<Vec<u32>, RowError> {
        let ids = self.tokenize(text, true)?;
        if self.options.system_instruction.is_some() {
            self.warn_once(
                &self.told.no_system,
                "--system-instruction: plain prompts have no system message (--apply-chat-template makes conversations of them)",
            );
        }
        if let (Some(bos), [first, second, ..]) = (self.bos_id, ids.as_slice())
            && bos == *first
            && bos == *second
        {
            self.warn_once(
                &self.told.double_bos,
                "a plain prompt begins with the text of bos_token, and the tokenizer adds another: two in a row. \
                 If it is a rendered chat template, give `messages` instead, or `token_ids`",
            );
        }
        Ok(ids)
    }

    /// What the template renders holds its special tokens already: the tokenizer adds none.
    fn encode_messages(&self, messages: &[Value]) -> Result<Vec<u32>, RowError> {
        if messages.last().is_some_and(|last| last["role"] == "assistant") {
            self.warn_once(
                &self.told.other_turn,
                "a conversation ends with a message of the assistant, after which the chat template begins another: TuCo is that of \
                 what comes then, not of this message (tuco trace --response)",
            );
        }
        self.tokenize(&self.render(messages, true)?, false)
    }

    fn tokenize(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, RowError> {
        let tokenizer = self.tokenizer.as_ref();
        let tokenizer =
            tokenizer.map_err(|reason| RowError::new(RowErrorKind::NoTokenizer, reason.clone()))?;
        let encoding = tokenizer.encode_fast(text, add_special_tokens).map_err(|error| {
            RowError::new(RowErrorKind::TokenizerError, format!("the tokenizer fails: {error}"))
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// # Errors
    /// Names the first id that the model's vocabulary does not have.
    pub fn check_range(&self, ids: &[u32]) -> Result<(), RowError> {
        match ids.iter().position(|&id| id as usize >= self.vocab_size) {
            None => Ok(()),
            Some(index) => {
                let message = format!(
                    "token {index} has id {}, but the model's vocabulary has {} (0 to {})",
                    ids[index],
                    self.vocab_size,
                    self.vocab_size.saturating_sub(1)
                );
                Err(RowError::new(RowErrorKind::TokenOutOfRange, message))
            }
        }
    }

    fn fit(&self, ids: &[u32], following: usize) -> Result<Encoded, RowError> {
        let length = ids.len();
        let too_long = |message: String| Err(RowError::new(RowErrorKind::TooLong, message));
        let room = self.context_length.saturating_sub(following);
        let most = match self.options.on_overlength {
            Overlength::ErrorRow => self.max_length(),
            Overlength::TruncateLeft | Overlength::TruncateRight => self.max_length().min(room),
        };
        if length <= most {
            return Ok(Encoded { token_ids: ids.to_vec(), truncated: false });
        }
        let kept = match self.options.on_overlength {
            Overlength::ErrorRow => {
                return too_long(format!(
                    "the prompt has {length} tokens, but the model takes at most {most}"
                ));
            }
            _ if most == 0 => {
                let context = self.context_length;
                return too_long(format!(
                    "the prompt cannot be cut: {following} tokens are to follow it, which leaves none of the model's {context} for it"
                ));
            }
            Overlength::TruncateLeft => {
                let first = usize::from(most > 1 && self.bos_id == Some(ids[0]));
                [&ids[..first], &ids[length - most + first..]].concat()
            }
            Overlength::TruncateRight => ids[..most].to_vec(),
        };
        Ok(Encoded { token_ids: kept, truncated: true })
    }
}

/// How SentencePiece spells a space.
const SPACE: char = '\u{2581}';

/// A line's end and its tokens, where the tokenizer puts a space before a text that has none.
fn line_after_a_space(tokenizer: &Tokenizer) -> Option<(&'static str, Vec<u32>)> {
    let ids_of = |text: &str| Some(tokenizer.encode_fast(text, false).ok()?.get_ids().to_vec());
    let first = tokenizer.id_to_token(*ids_of("a")?.first()?)?;
    if first.starts_with(SPACE) { Some(("\n", ids_of("\n")?)) } else { None }
}

/// Whether a template takes a system message: some refuse it, some leave it out.
fn check_system_role(template: &ChatTemplate, instruction: &str) -> Result<(), String> {
    let user = json!({"role": "user", "content": "Hello"});
    let system = json!({"role": "system", "content": instruction});
    // What refuses an ordinary question too is told with the rows.
    if template.render(std::slice::from_ref(&user), None, true).is_err() {
        return Ok(());
    }
    match template.render(&[system, user], None, true) {
        Err(error) => Err(format!("a system message cannot be used: {}", error.message)),
        Ok(text) if !text.contains(instruction.trim()) => {
            Err("the chat template leaves the system message out".into())
        }
        Ok(_) => Ok(()),
    }
}

/// A message without the fields that are null, as `apply_chat_template` hands it to the template (transformers 5): APIs write
/// `"tool_calls": null`, and many templates only ask whether the field is there.
fn without_nulls(message: &Value) -> Value {
    match message {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        ),
        other => other.clone(),
    }
}

/// Makes text of a content in parts, a line for each, as inference servers do for templates that know of text alone.
///
/// # Errors
/// Where a part is no text.
fn join_parts(index: usize, message: &mut Value) -> Result<(), RowError> {
    let Some(Value::Array(parts)) = message.get("content") else { return Ok(()) };
    let text_of = |(place, part): (usize, &'_ Value)| {
        let text = part.get("text").and_then(Value::as_str).filter(|_| part["type"] == "text");
        text.map(str::to_owned).ok_or_else(|| {
            let message = format!(
                "messages[{index}].content[{place}] is of type {}: the chat template takes text alone, expected \
                 {{\"type\": \"text\", \"text\": …}}",
                part["type"]
            );
            RowError::new(RowErrorKind::InvalidRow, message)
        })
    };
    let lines = parts.iter().enumerate().map(text_of).collect::<Result<Vec<String>, RowError>>()?;
    message["content"] = lines.join("\n").into();
    Ok(())
}

/// The byte that byte-level tokenizers write as `c`: those that are no visible characters of Latin-1 stand from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let is_visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let moved = || (0..=255).filter(|byte| !is_visible(byte));
    match c as u32 {
        code @ 0..=0xff => u8::try_from(code).ok().filter(is_visible),
        code => moved().nth(code as usize - 0x100),
    }
}

fn empty(message: &str) -> RowError {
    RowError::new(RowErrorKind::EmptyPrompt, message)
}

#[cfg(test)]
mod tests;
