//! Experts whose tensors a file keeps together, one above the other: `[experts, rows, cols]` becomes a matrix for each.

use super::{Entry, Weights};
use crate::{
    Error, Result,
    model::{LayerTensor, ModelSpec},
    tensor::Encoding,
};
use std::collections::BTreeMap;

/// Elements that share a factor in MXFP4.
const TOGETHER: usize = 32;

impl Weights {
    /// Takes apart what a layer has for all its experts, in families whose files keep it together. In MXFP4 that is two tensors,
    /// `X_blocks` of 4-bit elements (`[experts, rows, cols / 32, 16]` or `[experts, rows, cols / 2]`, U8) and `X_scales` of their factors
    /// (`[experts, rows, cols / 32]`, U8), `X` being the name that the tensor has otherwise (`transformers` integrations/mxfp4.py).
    ///
    /// # Errors
    /// Names a tensor that is not there for all experts, or of no shape or type that it may have.
    pub fn part_experts(&mut self, spec: &ModelSpec) -> Result<()> {
        let Some(experts) = spec.experts.as_ref().filter(|_| spec.family.experts_together) else {
            return Ok(());
        };
        let of_one = |name: &&String| {
            let tensor = spec.family.layer_tensor_of(name);
            tensor.is_some_and(|(_, tensor)| tensor.expert().is_some())
        };
        if let Some((name, entry)) = self.tensors.iter().find(|(name, _)| of_one(name)) {
            let family = spec.family.model_type;
            return Err(self.broken(
                entry,
                format!("has tensor {name}, but {family} has all experts of a layer in one"),
            ));
        }
        let listed = spec.family.listed_tensors().filter(|(tensor, _)| tensor.expert().is_some());
        // Of fused ones the last.
        let tensors: BTreeMap<&str, LayerTensor> =
            listed.map(|(tensor, suffix)| (*suffix, *tensor)).collect();
        for layer in 0..spec.num_hidden_layers {
            for (suffix, tensor) in &tensors {
                let whole = spec.family.name_of_all_experts(layer, suffix);
                let name_of = |expert: usize| {
                    let own = spec.family.layer_tensor_name(layer, tensor.of_expert(expert as u16));
                    own.expect("the family lists it")
                };
                self.part_matrices(&whole, experts.count, name_of)?;
                self.part_packed(&whole, experts.count, name_of)?;
            }
        }
        Ok(())
    }

    /// A tensor of numbers: `[experts, …]`.
    fn part_matrices(&mut self, whole: &str, count: usize, name_of: impl Fn(usize) -> String) -> Result<()> {
        let Some(entry) = self.tensors.remove(whole) else { return Ok(()) };
        if entry.shape.first() != Some(&count) || entry.shape.len() == 1 {
            return Err(self.unlike(whole, &entry, format!("[{count}, …]")));
        }
        for expert in 0..count {
            self.tensors.insert(name_of(expert), entry.part(expert, count, &entry.shape[1..]));
        }
        Ok(())
    }

    /// Elements of 4 bits and their factors.
    fn part_packed(&mut self, whole: &str, count: usize, name_of: impl Fn(usize) -> String) -> Result<()> {
        let [blocks_name, scales_name] = ["_blocks", "_scales"].map(|ending| format!("{whole}{ending}"));
        let (blocks, scales) = match [&blocks_name, &scales_name].map(|name| self.tensors.remove(name)) {
            [None, None] => return Ok(()),
            [Some(blocks), Some(scales)] => (blocks, scales),
            [None, Some(scales)] => {
                return Err(
                    self.broken(&scales, format!("has tensor {scales_name}, but there is no {blocks_name}"))
                );
            }
            [Some(blocks), None] => {
                return Err(
                    self.broken(&blocks, format!("has tensor {blocks_name}, but there is no {scales_name}"))
                );
            }
        };
        for (name, entry) in [(&blocks_name, &blocks), (&scales_name, &scales)] {
            // As safetensors and PyTorch call it.
            if !["U8", "ByteStorage"].contains(&&*entry.type_name) {
                return Err(
                    self.broken(entry, format!("has tensor {name} of type {}, expected U8", entry.type_name))
                );
            }
        }
        let [of, rows, across] = scales.shape[..] else {
            return Err(self.unlike(&scales_name, &scales, format!("[{count}, rows, columns / {TOGETHER}]")));
        };
        if of != count {
            return Err(self.unlike(&scales_name, &scales, format!("[{count}, {rows}, {across}]")));
        }
        let bytes_together = TOGETHER / 2;
        let cols = across.checked_mul(TOGETHER).ok_or_else(|| {
            self.broken(
                &scales,
                format!("has tensor {scales_name} of shape {:?}, too large for any model", scales.shape),
            )
        })?;
        let shapes = [vec![count, rows, across, bytes_together], vec![count, rows, cols / 2]];
        if !shapes.contains(&blocks.shape) {
            return Err(self.unlike(
                &blocks_name,
                &blocks,
                format!("{:?}, as that of {scales_name} demands", shapes[0]),
            ));
        }
        for expert in 0..count {
            let name = name_of(expert);
            let scales_name = format!("{name}_scales");
            let elements = Entry {
                encoding: Some(Encoding::Mxfp4),
                scales: Some((scales_name.clone(), (1, TOGETHER))),
                ..blocks.part(expert, count, &[rows, cols])
            };
            let factors =
                Entry { encoding: Some(Encoding::E8m0), ..scales.part(expert, count, &[rows, across]) };
            if self.tensors.insert(name, elements).is_some() {
                return Err(self
                    .broken(&blocks, format!("has tensor {whole} and {blocks_name}, expected one of them")));
            }
            self.scales.insert(scales_name, factors);
        }
        Ok(())
    }

    fn unlike(&self, name: &str, entry: &Entry, expected: String) -> Error {
        self.broken(entry, format!("has tensor {name} of shape {:?}, expected {expected}", entry.shape))
    }

    fn broken(&self, entry: &Entry, problem: String) -> Error {
        Error::checkpoint(format!("{} {problem}", self.files.path(entry.file).display()))
    }
}
