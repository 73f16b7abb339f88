//! What a run leaves behind: rows appended as they are ready, a manifest that says what made them, and progress for
//! whoever watches.

mod histogram;
mod jsonl;
mod manifest;
mod progress;

pub use histogram::histogram;
pub use jsonl::{Sink, WrittenRow};
pub use manifest::Manifest;
pub use progress::Progress;
