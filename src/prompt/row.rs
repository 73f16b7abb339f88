//! One line of input as a value, and what can be wrong with it.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::error::{Error, ErrorKind};

/// What a row asks to be scored.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Text that is encoded as it is, or as one user message under [`EncoderOptions`](super::EncoderOptions).
    Prompt(String),
    /// A conversation: objects with a string `role`, kept whole for the chat template.
    Messages(Vec<Value>),
    /// Token ids that are scored as they are: no tokenizer, no special tokens.
    TokenIds(Vec<u32>),
}

/// [`Content`] that lies elsewhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ContentRef<'a> {
    Prompt(&'a str),
    Messages(&'a [Value]),
    TokenIds(&'a [u32]),
}

impl Content {
    pub fn as_ref(&self) -> ContentRef<'_> {
        match self {
            Self::Prompt(text) => ContentRef::Prompt(text),
            Self::Messages(messages) => ContentRef::Messages(messages),
            Self::TokenIds(ids) => ContentRef::TokenIds(ids),
        }
    }
}

/// One line of input, good or bad: what the output needs in both cases.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// 1-based, over all inputs together; blank lines count.
    pub number: u64,
    /// `file:line`
    pub place: String,
    /// A string or an integer as given, else `number`.
    pub id: Value,
    /// Any JSON, handed through to the output.
    pub label: Option<Value>,
    /// Any JSON, handed through to the output.
    pub meta: Option<Value>,
    /// Fields that no row has a use for, in the order of the line.
    pub other: Map<String, Value>,
    pub content: Result<Content, RowError>,
}

impl Line {
    /// The field of this name: of the row, or else of its `meta`. Null counts as absent.
    pub fn field(&self, name: &str) -> Option<&Value> {
        let of_row = match name {
            "label" => self.label.as_ref(),
            "meta" => self.meta.as_ref(),
            _ => self.other.get(name),
        };
        let of_row = of_row.filter(|value| !value.is_null());
        of_row.or_else(|| self.meta.as_ref()?.get(name).filter(|value| !value.is_null()))
    }

    /// The names that [`Line::field`] knows.
    pub fn field_names(&self) -> Vec<&str> {
        let own = [("label", &self.label), ("meta", &self.meta)];
        let own = own.into_iter().filter_map(|(name, value)| value.as_ref().map(|_| name));
        let of_meta = self.meta.as_ref().and_then(Value::as_object).into_iter().flatten();
        own.chain(self.other.keys().chain(of_meta.map(|(name, _)| name)).map(String::as_str)).collect()
    }
}

/// Why a row cannot be scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowError {
    pub kind: RowErrorKind,
    /// For people: names what is wrong and where, and what was expected.
    pub message: String,
}

/// The stable name of a row's error, for programs that read the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowErrorKind {
    /// The line is not JSON.
    InvalidJson,
    /// The line is not UTF-8.
    InvalidUtf8,
    /// The line is JSON but not a row: wrong types, or none or several of `prompt`, `messages` and `token_ids`.
    InvalidRow,
    /// An earlier line has the same id.
    DuplicateId,
    /// There is nothing to score.
    EmptyPrompt,
    /// The chat template is missing, or does not take these messages.
    TemplateError,
    /// The tokenizer failed on this text.
    TokenizerError,
    /// The row is text and the checkpoint has no tokenizer.
    NoTokenizer,
    /// A token id that the model has no embedding for.
    TokenOutOfRange,
    /// More tokens than the model takes.
    TooLong,
    /// More tokens than there is memory for.
    OutOfMemory,
    /// The hidden state overflowed.
    NotFinite,
}

impl RowErrorKind {
    /// The name in the output's `error.type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::InvalidRow => "invalid_row",
            Self::DuplicateId => "duplicate_id",
            Self::EmptyPrompt => "empty_prompt",
            Self::TemplateError => "template_error",
            Self::TokenizerError => "tokenizer_error",
            Self::NoTokenizer => "no_tokenizer",
            Self::TokenOutOfRange => "token_out_of_range",
            Self::TooLong => "too_long",
            Self::OutOfMemory => "out_of_memory",
            Self::NotFinite => "not_finite",
        }
    }
}

impl RowError {
    pub fn new(kind: RowErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// A number that is none.
    pub fn not_finite(message: impl Into<String>) -> Self {
        Self::new(RowErrorKind::NotFinite, message)
    }

    /// Logits that overflowed; `which` says of what or where.
    pub fn not_finite_logits(which: impl fmt::Display) -> Self {
        Self::not_finite(format!(
            "the logits {which} are not numbers: the hidden state overflowed; the weights are finite but too large"
        ))
    }

    /// Too large for the device's memory.
    pub fn out_of_memory(message: impl Into<String>) -> Self {
        Self::new(RowErrorKind::OutOfMemory, message)
    }

    /// No row that can be read.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(RowErrorKind::InvalidRow, message)
    }

    /// A row with the id of the one at `place`.
    pub fn used_before(id: &Value, place: impl fmt::Display) -> Self {
        Self::new(RowErrorKind::DuplicateId, format!("id {id} was used before, at {place}"))
    }

    /// The field `error` of an output row.
    pub fn to_json(&self) -> Value {
        json!({ "type": self.kind.as_str(), "message": self.message })
    }

    /// The same error, said to be at `place`.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

impl From<RowError> for Error {
    fn from(error: RowError) -> Self {
        let kind = match error.kind {
            RowErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
            RowErrorKind::NotFinite => ErrorKind::NotFinite,
            _ => ErrorKind::Usage,
        };
        Error::new(kind, error.message)
    }
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.as_str(), self.message)
    }
}

impl std::error::Error for RowError {}
