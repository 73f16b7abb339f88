//! The job of `tuco inspect`.

use super::{MemoryOptions, PairOptions, open_pair};
use crate::{Result, experiment::inspect::report, output};

/// `tuco inspect`: prints what the pair is.
pub fn inspect(options: &PairOptions) -> Result<()> {
    output::print(&report(&open_pair(options, MemoryOptions::default())?))
}
