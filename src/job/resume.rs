//! What a run must have in common with the one that it goes on with.

use super::{AboutPair, Caller, Device, PairOptions, PromptOptions};
use crate::{
    Error, ErrorKind, Result,
    backend::cpu::Cpu,
    checkpoint::Pair,
    output::{self, Manifest},
    prompt::Encoder,
};
use chrono::NaiveDate;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What rows of every kind depend on, whatever is asked of the pair.
pub struct Origin<'a> {
    pub caller: Caller<'a>,
    pub pair: &'a Pair,
    pub pair_options: &'a PairOptions,
    pub prompts: &'a PromptOptions,
    pub device: &'a str,
    pub encoder: &'a Encoder,
}

impl Origin<'_> {
    /// The manifest of a run whose rows depend on `what` besides, and of which `about` is good to know.
    ///
    /// # Errors
    /// Where a file of the two models cannot be read: all are hashed. [`ErrorKind::Interrupted`] when that is stopped.
    pub fn manifest(&self, what: Value, about: Value) -> Result<Manifest> {
        let models = self.pair.fingerprints(self.caller.stop)?.map(|files| {
            let entries = files.into_iter().map(|(name, hash)| (name, Value::from(hash)));
            Value::Object(entries.collect())
        });
        let AboutPair { models: dirs, adapters, dtypes } = AboutPair::new(self.pair, self.pair_options);
        let fingerprint = json!({
            "tuco_version": env!("CARGO_PKG_VERSION"),
            "device": self.device,
            "dtype": { "base": dtypes.pt, "tuned": dtypes.ft },
            "base": models.pt,
            "tuned": models.ft,
            "merge_adapter": self.pair_options.merge_adapter,
            "apply_chat_template": self.prompts.apply_chat_template,
            "system_instruction": self.prompts.system_instruction,
            "chat_template_args": self.prompts.chat_template_args.as_ref().map(|arguments| &arguments.0),
            "max_length": self.prompts.max_length,
            "on_overlength": self.prompts.on_overlength.name(),
        });
        let usual = json!({
            "command": self.caller.command,
            "base_dir": dirs.pt,
            "tuned_dir": dirs.ft,
            "base_adapter_dir": adapters.pt,
            "adapter_dir": adapters.ft,
            INSTRUCTION_SET: Cpu::new().instruction_set(),
            "notices": self.pair.notices,
        });
        let fingerprint = united([fingerprint, self.encoder.fingerprint(), what]);
        Ok(Manifest::new(fingerprint, united([usual, about])))
    }
}

/// One object of all their fields.
fn united<const N: usize>(objects: [Value; N]) -> Value {
    let fields = |object: Value| match object {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    Value::Object(objects.into_iter().flat_map(fields).collect())
}

/// An output that is to go on, if it has rows.
pub fn begun(output: &Path, overwrite: bool) -> Option<&Path> {
    (!overwrite && output::has_rows(output)).then_some(output)
}

/// Outputs that are to go on, with the manifests of the runs that began them.
pub struct Earlier(Vec<(PathBuf, Manifest)>);

/// What manifests call the vector instructions of the machine.
const INSTRUCTION_SET: &str = "instruction_set";

impl Earlier {
    /// Whether rows without a manifest, or with something else in its place, are gone on with is decided where the output is opened.
    ///
    /// # Errors
    /// Where a manifest cannot be read.
    pub fn read<'a>(outputs: impl IntoIterator<Item = &'a Path>) -> Result<Self> {
        let mut begun = Vec::new();
        for output in outputs {
            match Manifest::find(output) {
                Ok(found) => begun.extend(found.map(|(manifest, _)| (output.to_path_buf(), manifest))),
                Err(error) if error.kind == ErrorKind::Mismatch => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self(begun))
    }

    /// The day that chat templates see: as told, or that of the first that has one, or today.
    pub fn template_date(&self, prompts: &PromptOptions) -> NaiveDate {
        let date = |(_, manifest): &(_, Manifest)| manifest.field("template_date")?.as_str()?.parse().ok();
        prompts.date(self.0.iter().find_map(date))
    }

    /// What the user should know where one was begun on a CPU of another kind, which rounds otherwise.
    pub fn other_machine(&self, manifest: &Manifest) -> Option<String> {
        let other = |(output, before): &(PathBuf, Manifest)| {
            let (before, now) = other_instructions(before, manifest)?;
            Some(format!(
                "the rows in {} were begun with {before} instructions, this machine has {now}: the rows to come may differ in their last \
                 digits from those that it would have written",
                output.display()
            ))
        };
        self.0.iter().find_map(other)
    }

    /// What `--device auto` finds may come and go, unlike what else a run continues with.
    ///
    /// # Errors
    /// Where one was begun on another device and is the same otherwise.
    pub fn check_device(&self, device: &Device, manifest: &Manifest) -> Result<()> {
        match device {
            Device::Auto => {
                self.0.iter().try_for_each(|(output, before)| check_found(output, before, manifest))
            }
            _ => Ok(()),
        }
    }
}

/// The vector instructions of two runs on CPUs, where they differ.
fn other_instructions<'m>(one: &'m Manifest, other: &'m Manifest) -> Option<(&'m str, &'m str)> {
    let [one, other] = [one, other].map(|manifest| {
        let is_cpu = manifest.field("device").and_then(Value::as_str) == Some("cpu");
        manifest.told(INSTRUCTION_SET).and_then(Value::as_str).filter(|_| is_cpu)
    });
    one.zip(other).filter(|(one, other)| one != other)
}

fn check_found(output: &Path, earlier: &Manifest, manifest: &Manifest) -> Result<()> {
    const FIELD: &str = "device";
    let devices = [earlier, manifest].map(|of| of.field(FIELD).and_then(Value::as_str));
    match devices {
        [Some(before), Some(now)] if before != now => {
            let [earlier, manifest] = [earlier, manifest].map(|manifest| manifest.clone().without(FIELD));
            if earlier.difference(&manifest).is_some() {
                return Ok(());
            }
            let message = format!(
                "the rows in {} are of {before}, but --device auto finds {now}: the same command goes on where there is the former",
                output.display()
            );
            Err(Error::new(ErrorKind::Device, message))
        }
        _ => Ok(()),
    }
}

/// Says what is safe in `output` and what to do after an interruption.
pub fn how_to_go_on(output: &Path, overwrite: bool, error: Error) -> Error {
    let path = output.display();
    let goes_on =
        if overwrite { "the same command without --overwrite goes on" } else { "the same command goes on" };
    let message = match error.kind {
        ErrorKind::Interrupted => format!("stopped; the rows in {path} are complete, {goes_on}"),
        ErrorKind::Device | ErrorKind::OutOfMemory => {
            format!("{error}; the rows in {path} are complete, {goes_on}")
        }
        ErrorKind::Io => format!("{error}; what was written before is kept, {goes_on}"),
        _ => return error,
    };
    Error::new(error.kind, message)
}
