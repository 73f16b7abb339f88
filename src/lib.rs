pub mod error;
pub mod prompt;

pub use error::{Error, ErrorKind, Result};
