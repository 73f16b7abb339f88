//! The command line as users meet it.

mod adapters;
mod bench;
mod checkpoints;
mod common;
mod demo;
mod devices;
mod experiments;
mod full_disk;
mod generate;
mod jailbreak;
mod memory;
mod prompts;
mod quantized;
mod reports;
mod resume;
mod scene;
mod score;
mod shards;
mod signals;

#[cfg(target_os = "linux")]
#[path = "../../benches/common/mod.rs"]
mod random_pair;
