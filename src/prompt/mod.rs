/*!
From the user's files to token ids.

A run reads millions of prompts that other people wrote: some lines are broken, some conversations do not suit the model's chat
template, some prompts are too long. None of that may stop the run or, worse, silently change what is scored. So everything about
one line, good or bad, is a value ([`Line`]), and everything that can be wrong with it is a [`RowError`] that becomes an error row
of the output; only a failing disk or a checkpoint that cannot be used is an [`Error`](crate::Error).

```text
Source ── files, standard input: opened, hashed, counted
  └ Lines ── one line after the other, in constant memory: Line { id, label, meta, content }
      └ Encoder ── Content → token ids, with the tuned model's tokenizer and chat template
```

What the token ids are is what `transformers` makes them: the tokenizer is the same library, and the chat template is rendered by
[`ChatTemplate`], which is held to Jinja2 as `transformers` sets it up by golden tests.
*/

mod csv_lines;
mod encoder;
mod gguf;
mod ids;
mod jinja;
mod lines;
mod parse;
mod row;
mod source;
mod spill;
mod table;
mod template;
mod tokenizer_files;

pub use encoder::{Encoded, Encoder, EncoderOptions, Overlength};
pub use lines::{Fields, Lines};
pub use parse::take_id;
pub use row::{Content, ContentRef, Line, RowError, RowErrorKind};
pub use source::{Source, check_inputs};
pub use template::{ChatTemplate, SpecialTokens};
