//! `tuco` runs a pair of language models at once, a pre-trained one and the model fine-tuned from it, and measures for
//! every prompt the *Tuning Contribution* (TuCo): which share of the response's last hidden state fine-tuning wrote
//! (Nuti, Franzmeyer, Henriques, ICML 2025, arXiv 2506.23423).
//!
//! Parts, each using only those after it: [`cli`] and [`session`] → [`job`] → [`experiment`] → [`engine`] → [`backend`]; [`checkpoint`],
//! [`prompt`], [`metrics`] and [`output`] are leaves; [`model`], [`gguf`], [`tensor`], [`twin`], [`hash`] and [`error`] are what all share.
//!
//! ```no_run
//! use std::path::Path;
//! use tuco::{backend::cpu::Cpu, checkpoint::Pair, engine::{Engine, unobserved}, metrics};
//!
//! let pair = Pair::open(Path::new("Llama-3-8B"), Path::new("Llama-3-8B-Instruct"), None)?;
//! let backend = Cpu::new();
//! let scores = Engine::new(&backend, &pair).score(&[&[128000, 9906]], &unobserved)?;
//! println!("{}", metrics::tuco(*scores[0].running.last().unwrap()));
//! # Ok::<(), tuco::Error>(())
//! ```

pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod engine;
pub mod error;
pub mod experiment;
pub mod gguf;
pub mod hash;
pub mod job;
pub mod metrics;
pub mod model;
pub mod output;
pub mod prompt;
pub mod session;
pub mod tensor;
pub mod twin;

pub use error::{Error, ErrorKind, Result};
pub use session::{Logits, Session, SessionOptions};
