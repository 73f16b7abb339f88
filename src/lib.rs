pub mod backend;
pub mod checkpoint;
pub mod engine;
pub mod error;
pub mod metrics;
pub mod model;
pub mod prompt;
pub mod tensor;
pub mod twin;

pub use error::{Error, ErrorKind, Result};
