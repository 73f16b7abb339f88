//! `tuco` runs a pair of language models at once, a pre-trained one and the model fine-tuned from it, and measures for
//! every prompt the *Tuning Contribution* (TuCo): which share of the prompt's last hidden state, from which the response begins,
//! fine-tuning wrote (Nuti, Franzmeyer, Henriques, ICML 2025, arXiv 2506.23423).
//!
//! # A session
//!
//! Programs open a pair once, as a [`Session`]. It owns weights, device, threads and tokenizer; it takes token ids, which
//! [`Session::encode`] makes of text, and any number of prompts at once.
//!
//! ```no_run
//! use tuco::{Session, SessionOptions, engine::unobserved, prompt::ContentRef};
//!
//! let session = Session::open(&SessionOptions::new("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"))?;
//! let prompts = session.encode(&[ContentRef::Prompt("Once upon a time")])?;
//! let prompts = prompts.into_iter().collect::<Result<Vec<_>, _>>()?;
//! for score in session.score(&[&prompts[0].token_ids], &unobserved)? {
//!     println!("TuCo {:.4}", score?.tuco());
//! }
//! # Ok::<(), tuco::Error>(())
//! ```
//!
//! | | |
//! |---|---|
//! | [`Session::score`] | TuCo, β, the norms of both contributions |
//! | [`Session::logits`] | what may follow a prompt, with fine-tuning multiplied by alpha |
//! | [`Session::generate`] | what follows it |
//! | [`Session::likelihoods`] | how likely a given continuation is |
//! | [`Session::trace`] | the contributions of every layer to every token |
//!
//! Whole programs are `examples/score.rs` and `examples/steer.rs`. An *observer* hears how far a call is and may stop it
//! ([`engine::Observer`]; [`engine::unobserved`] does neither). Every [`Error`] has a kind and a message for people.
//!
//! # Parts
//!
//! Each uses only those after it: [`cli`] and [`session`] → [`job`] → [`experiment`] → [`engine`] → [`backend`]; [`checkpoint`],
//! [`prompt`], [`metrics`] and [`output`] are leaves; [`model`], [`gguf`], [`tensor`], [`twin`], [`hash`] and [`error`] are what all
//! share. Below a session, an [`engine::Engine`] runs a [`checkpoint::Pair`] on a backend:
//!
//! ```no_run
//! use std::path::Path;
//! use tuco::{backend::cpu::Cpu, checkpoint::Pair, engine::{Engine, unobserved}};
//!
//! let pair = Pair::open(Path::new("Llama-3-8B"), Path::new("Llama-3-8B-Instruct"), None)?;
//! let backend = Cpu::new();
//! let scores = Engine::new(&backend, &pair).score(&[&[128000, 9906]], &unobserved)?;
//! println!("{}", scores[0].tuco());
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
mod paths;
pub mod prompt;
pub mod session;
mod sync;
pub mod tensor;
pub mod twin;

pub use error::{Error, ErrorKind, Result};
pub use session::{Logits, Session, SessionOptions};
