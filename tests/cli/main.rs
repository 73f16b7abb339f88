//! The command line as users meet it.

mod checkpoints;
mod common;
mod reports;
mod score;
