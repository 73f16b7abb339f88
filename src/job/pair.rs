//! The pair that the flags name.

use super::{MemoryOptions, PairOptions};
use crate::{
    Error, Result,
    checkpoint::{self, Pair, Side},
    tensor::Dtype,
    twin::Twin,
};
use std::path::{Path, PathBuf};

/// Opens the pair that the flags name.
pub fn open_pair(options: &PairOptions, memory: MemoryOptions) -> Result<Pair> {
    Pair::open_sides(&sides(options)?, memory.reading(options.reading()))
}

/// What results say of the pair that they are of.
pub struct AboutPair {
    /// Where the models lie, and their adapters.
    pub models: Twin<String>,
    pub adapters: Twin<Option<String>>,
    /// What the weights are read as.
    pub dtypes: Twin<&'static str>,
}

impl AboutPair {
    pub fn new(pair: &Pair, options: &PairOptions) -> Self {
        let checkpoints = pair.checkpoints.as_ref();
        let shown = |path: &Path| path.display().to_string();
        let chosen = options.dtype.dtype();
        Self {
            models: checkpoints.map(|checkpoint| shown(&checkpoint.path)),
            adapters: checkpoints
                .map(|checkpoint| checkpoint.adapter.as_ref().map(|adapter| shown(&adapter.dir))),
            dtypes: checkpoints.map(|checkpoint| chosen.map_or(checkpoint.encoding().name(), Dtype::name)),
        }
    }
}

/// The two models that the flags name, with their adapters.
fn sides(options: &PairOptions) -> Result<Twin<Side>> {
    let resolve = |flag: &str, name: &Option<String>, revision: &Option<String>| {
        name.as_ref().map(|name| checkpoint::resolve(flag, name, revision.as_deref())).transpose()
    };
    let unused = [
        ("--base", options.base.is_none() && options.adapter.is_none(), &options.base_revision),
        ("--tuned", options.tuned.is_none(), &options.tuned_revision),
        ("--adapter", options.adapter.is_none(), &options.adapter_revision),
        ("--base-adapter", options.base_adapter.is_none(), &options.base_adapter_revision),
    ];
    if let Some((flag, ..)) =
        unused.iter().find(|(_, is_missing, revision)| *is_missing && revision.is_some())
    {
        return Err(Error::usage(format!("{flag}-revision is given, but no {flag}")));
    }
    if options.merge_adapter && options.adapter.is_none() && options.base_adapter.is_none() {
        return Err(Error::usage(
            "--merge-adapter: there is no adapter (--adapter, --base-adapter) to merge",
        ));
    }
    let adapters = Twin::new(
        resolve("--base-adapter", &options.base_adapter, &options.base_adapter_revision)?,
        resolve("--adapter", &options.adapter, &options.adapter_revision)?,
    );
    let base = match (resolve("--base", &options.base, &options.base_revision)?, &adapters.ft) {
        (Some(base), _) => base,
        (None, Some(adapter)) => base_of_adapter(adapter, options.base_revision.as_deref())?,
        (None, None) => return Err(Error::usage("--base is missing")),
    };
    let tuned = match (resolve("--tuned", &options.tuned, &options.tuned_revision)?, &adapters.ft) {
        (Some(tuned), _) => tuned,
        (None, Some(_)) => base.clone(),
        (None, None) => return Err(Error::usage("--tuned is missing, and there is no --adapter")),
    };
    Ok(Twin::new(Side { model: base, adapter: adapters.pt }, Side { model: tuned, adapter: adapters.ft }))
}

/// The model that an adapter names as its base, at the adapter's revision of it or at another.
fn base_of_adapter(adapter: &Path, other_revision: Option<&str>) -> Result<PathBuf> {
    let config = adapter.join("adapter_config.json");
    let base = checkpoint::TrainedOn::read(adapter)?.ok_or_else(|| {
        Error::usage(format!("--base is missing, and {} has no base_model_name_or_path", config.display()))
    })?;
    // What lies in a directory has no revisions, whatever the adapter says.
    let is_path = Path::new(&base.name).exists();
    if is_path && other_revision.is_some() {
        return Err(Error::usage(format!(
            "--base-revision is given, but {} (of {}) is no Hub id",
            base.name,
            config.display()
        )));
    }
    let flag = format!("--base is missing, and base_model_name_or_path of {}:", config.display());
    checkpoint::resolve(&flag, &base.name, other_revision.or(base.revision.as_deref().filter(|_| !is_path)))
}
