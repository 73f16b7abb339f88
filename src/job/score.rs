//! The job of `tuco score`.

use super::{
    Caller, PrefixSharing, RowsOptions,
    rows::{RowsJob, What},
};
use crate::{Result, experiment::score::Columns, output::Done};
use clap::Args;

/// Flags of `tuco score`.
#[derive(Debug, Clone, Args)]
pub struct ScoreOptions {
    /// Add beta_per_layer: the contribution after each layer
    #[arg(long, env = "TUCO_LAYERS")]
    pub layers: bool,
    /// Add output_co: how far the two models' own outputs are apart (a second pass)
    #[arg(long, env = "TUCO_OUTPUT_CO")]
    pub output_co: bool,
    /// Compute the beginning that prompts have in common once; auto: on (results do not depend on it)
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "on|off|auto",
        env = "TUCO_PREFIX_SHARING"
    )]
    pub prefix_sharing: PrefixSharing,
    #[command(flatten)]
    pub common: RowsOptions,
}

/// `tuco score`.
///
/// # Errors
/// Flags, pair, prompts or output that can't be used; [`ErrorKind::BadRows`](crate::error::ErrorKind::BadRows) when more rows failed
/// than `--fail-on-error` allows.
pub fn score(options: ScoreOptions, caller: Caller<'_>) -> Result<Done> {
    let columns = Columns { layers: options.layers, output_co: options.output_co };
    let prefix_sharing = options.prefix_sharing != PrefixSharing::Off;
    RowsJob::prepare(options.common, caller, |_, _| Ok(What::Score { columns, prefix_sharing }))?.run()
}
