//! The command line as users meet it.

mod adapters;
mod bench;
mod checkpoints;
mod common;
mod devices;
mod experiments;
mod generate;
mod jailbreak;
mod quantized;
mod reports;
mod scene;
mod score;
mod shards;
