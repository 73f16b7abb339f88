//! The job of `tuco merge`.

use super::tell;
use crate::{Result, output};
use clap::Args;
use std::{path::PathBuf, sync::atomic::AtomicBool};

/// Flags of `tuco merge`.
#[derive(Debug, Clone, Args)]
pub struct MergeOptions {
    /// The folder that was -o of the shards
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Where all rows go, in the order of the input: JSON lines, or OUT.parquet
    #[arg(short, long, value_name = "OUT.jsonl", env = "TUCO_OUTPUT")]
    pub output: PathBuf,
    /// Replace the output file
    #[arg(long)]
    pub overwrite: bool,
    /// No closing line
    #[arg(short, long, env = "TUCO_QUIET")]
    pub quiet: bool,
}

/// `tuco merge`.
///
/// # Errors
/// See [`output::merge`].
pub fn merge(options: &MergeOptions, stop: &AtomicBool) -> Result<()> {
    let found = output::merge(&options.folder, &options.output, options.overwrite, stop)?;
    if !options.quiet {
        tell(&format!("{} rows, {} of them errors, each there once", found.rows, found.errors));
    }
    Ok(())
}
