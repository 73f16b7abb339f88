//! The job of `tuco score`.

use super::{
    RowsOptions,
    rows::{RowsJob, What},
};
use crate::{
    Result,
    experiment::{rows::Summary, score::Columns},
};
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
    #[command(flatten)]
    pub common: RowsOptions,
}

/// `tuco score`.
///
/// # Errors
/// See [`RowsJob`].
pub fn score(options: ScoreOptions) -> Result<Summary> {
    let columns = Columns { layers: options.layers, output_co: options.output_co };
    RowsJob::prepare(options.common, |_, _| Ok(What::Score(columns)))?.run()
}
