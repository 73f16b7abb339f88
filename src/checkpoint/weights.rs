//! Tensors of mapped and validated files: safetensors or what `torch.save` wrote, one or many, or one GGUF file.

mod experts;

use super::{pages::MappedFiles, pytorch, quantization::Quantization, read_json};
use crate::{
    Error, Result,
    model::{Family, LayerTensor, ModelSpec},
    tensor::{Dtype, Encoding, Interleaved, Scales, Stored, Tensor},
};
use memmap2::Mmap;
use safetensors::{SafeTensorError, SafeTensors, tensor::TensorView};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

/// Where the tensors of a directory are, the first that is there: one file, or the shards that an index names.
const FILES: [(&str, &str); 2] = [
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
];

/// All tensors of a checkpoint, by name.
pub struct Weights {
    files: MappedFiles,
    tensors: BTreeMap<String, Entry>,
    /// Factors of quantized tensors, by name; no tensors of the model.
    scales: BTreeMap<String, Entry>,
    /// What elements are rounded to when read; `None` leaves them as stored.
    rounded_to: Option<Dtype>,
    /// The file holds a model of text and images, of which only the text part is here.
    is_text_part: bool,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({} tensors in {} files)", self.tensors.len(), self.files.len())
    }
}

/// A tensor of a file.
pub struct Entry {
    pub file: usize,
    /// The type's name as the file has it.
    pub type_name: String,
    /// `None`: of a type that cannot be computed with.
    pub encoding: Option<Encoding>,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
    /// See [`Stored::paired`].
    pub paired: Option<Interleaved>,
    /// The factors of quantized elements: which entry, and rows and columns of a block.
    scales: Option<(String, (usize, usize))>,
}

/// A tensor that a file's header names.
#[derive(Debug, PartialEq)]
pub struct Found {
    pub name: String,
    /// As the file has it.
    pub type_name: String,
    /// `None`: of a type that cannot be computed with.
    pub encoding: Option<Encoding>,
    pub shape: Vec<usize>,
    /// Of the file's bytes.
    pub range: Range<usize>,
}

/// Where the elements of a tensor are.
pub enum Bytes {
    Mapped(Range<usize>),
    /// A small tensor that its file has in another form.
    Own(Vec<u8>),
}

impl Entry {
    pub fn mapped(
        file: usize,
        type_name: String,
        encoding: Option<Encoding>,
        shape: Vec<usize>,
        range: Range<usize>,
    ) -> Self {
        Self { file, type_name, encoding, shape, bytes: Bytes::Mapped(range), paired: None, scales: None }
    }

    /// One of `count` equal parts that follow each other, with a shape of its own.
    ///
    /// # Panics
    /// If it is not mapped.
    pub fn part(&self, index: usize, count: usize, shape: &[usize]) -> Self {
        let Bytes::Mapped(Range { start, end }) = self.bytes else { panic!("small tensors have no parts") };
        let length = (end - start) / count;
        let range = start + index * length..start + (index + 1) * length;
        Self::mapped(self.file, self.type_name.clone(), self.encoding, shape.to_vec(), range)
    }

    /// Takes a vector of other values in the place of the file's.
    pub fn set_vector(&mut self, values: impl Iterator<Item = f32>) {
        self.encoding = Some(Encoding::Float(Dtype::F32));
        self.bytes = Bytes::Own(values.flat_map(f32::to_le_bytes).collect());
    }
}

impl Weights {
    /// Maps the files of a directory, safetensors before those of PyTorch.
    /// With `dtype`, elements are read as if they had been stored in it.
    pub fn open(dir: &Path, dtype: Option<Dtype>) -> Result<Self> {
        Ok(Self { rounded_to: dtype, ..Self::find(dir)? })
    }

    /// Whether a directory has files of a model's weights.
    pub fn are_in(dir: &Path) -> bool {
        FILES.iter().any(|(single, index)| dir.join(single).exists() || dir.join(index).exists())
    }

    fn find(dir: &Path) -> Result<Self> {
        for (single, index) in FILES.map(|(single, index)| (dir.join(single), dir.join(index))) {
            if single.exists() {
                return Self::map(&[single]);
            }
            if index.exists() {
                return Self::open_shards(dir, &index);
            }
        }
        let names = FILES.map(|(single, index)| [single, index]).concat().join(", ");
        Err(Error::usage(format!("{} has none of {names}", dir.display())))
    }

    fn open_shards(dir: &Path, index: &Path) -> Result<Self> {
        let json = read_json(index)?;
        let broken = |problem: String| Error::checkpoint(format!("{}: {problem}", index.display()));
        let map = json.get("weight_map").and_then(|map| map.as_object());
        let map = map.ok_or_else(|| broken("has no object weight_map".into()))?;
        let mut names = BTreeSet::new();
        for (tensor, shard) in map {
            let shard =
                shard.as_str().ok_or_else(|| broken(format!("weight_map.{tensor} is not a file name")))?;
            let plain = Path::new(shard).file_name().is_some_and(|name| name == shard);
            if !plain || !dir.join(shard).exists() {
                return Err(broken(format!("tensor {tensor} is in {shard}, which is not in the directory")));
            }
            names.insert(shard);
        }
        let shards: Vec<_> = names.into_iter().map(|name| dir.join(name)).collect();
        let weights = Self::map(&shards)?;
        for (tensor, shard) in map {
            let found = weights.tensors.get(tensor).map(|entry| weights.files.path(entry.file));
            if found
                .is_none_or(|path| path.file_name().is_none_or(|name| name != shard.as_str().unwrap_or("")))
            {
                return Err(broken(format!("tensor {tensor} is not in {shard}")));
            }
        }
        Ok(weights)
    }

    /// Tensors that were found in mapped files.
    pub fn of_files(
        files: Vec<(PathBuf, Mmap)>,
        tensors: BTreeMap<String, Entry>,
        rounded_to: Option<Dtype>,
    ) -> Self {
        let files = MappedFiles::new(files);
        Self { files, tensors, scales: BTreeMap::new(), rounded_to, is_text_part: false }
    }

    /// Maps and validates files of safetensors or of PyTorch.
    pub fn map(paths: &[PathBuf]) -> Result<Self> {
        let mut weights = Self::of_files(Vec::new(), BTreeMap::new(), None);
        for path in paths {
            let file = File::open(path).map_err(|error| Error::unreadable(path, &error))?;
            // SAFETY: a mapped checkpoint must not be changed while it is used; nobody rewrites checkpoints in place.
            let map = unsafe { Mmap::map(&file) }.map_err(|error| Error::unreadable(path, &error))?;
            weights.add(path, &map)?;
            weights.files.push(path.clone(), map);
        }
        Ok(weights)
    }

    /// Validates a file's header and takes its tensors in.
    fn add(&mut self, path: &Path, bytes: &[u8]) -> Result<()> {
        let broken = |problem: String| Error::checkpoint(format!("{} {problem}", path.display()));
        let file = self.files.len();
        let found = if is_pytorch(path) {
            pytorch::tensors(bytes)
        } else {
            safetensors(bytes).map_err(|error| format!("is not a valid safetensors file: {error}"))
        };
        let found = found.map_err(|problem| format!("{problem}{}", hint(path, bytes)));
        for Found { name, type_name, encoding, shape, range } in found.map_err(broken)? {
            let entry = Entry::mapped(file, type_name, encoding, shape, range);
            if let Some(other) = self.tensors.insert(name.clone(), entry) {
                return Err(broken(if other.file == file {
                    format!("has tensor {name} twice")
                } else {
                    let first = self.files.path(other.file).display();
                    format!("has tensor {name}, which {first} has already")
                }));
            }
        }
        Ok(())
    }

    /// Keeps the tensors of the text model that is a part of this one, under the names that it has on its own.
    pub fn keep_text_part(&mut self) {
        self.is_text_part = true;
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = tensors.filter_map(|(name, entry)| Some((text_name(&name)?, entry))).collect();
    }

    /// Where a model was saved without its head, or the head put beside it, names lack the first part that they have in the whole.
    pub fn add_prefix_of(&mut self, spec: &ModelSpec) {
        let Family { embedding, head, head_bias, .. } = *spec.family;
        let Some((prefix, rest)) = embedding.split_once('.') else { return };
        if !self.tensors.contains_key(embedding) && self.tensors.contains_key(rest) {
            let is_of_head =
                |name: &str| name == head || Some(name) == head_bias || spec.is_of_another_head(name);
            let whole = |name: String| if is_of_head(&name) { name } else { format!("{prefix}.{name}") };
            let tensors = std::mem::take(&mut self.tensors).into_iter();
            self.tensors = tensors.map(|(name, entry)| (whole(name), entry)).collect();
        }
    }

    /// Norms of a family whose norms have no weights multiply with ones.
    ///
    /// # Errors
    /// Names a norm that has weights.
    pub fn add_norms(&mut self, spec: &ModelSpec) -> Result<()> {
        let of_layer = |layer| {
            let norms = [LayerTensor::AttentionNorm, LayerTensor::MlpNorm];
            norms.into_iter().filter_map(move |norm| spec.family.layer_tensor_name(layer, norm))
        };
        let names = (0..spec.num_hidden_layers).flat_map(of_layer);
        for name in names.chain([spec.family.final_norm.to_owned()]) {
            let mut ones = Entry::mapped(0, "F32".into(), None, vec![spec.hidden_size], 0..0);
            ones.set_vector(std::iter::repeat_n(1.0, spec.hidden_size));
            if let Some(found) = self.tensors.insert(name.clone(), ones) {
                let (file, family) = (self.files.path(found.file).display(), spec.family.model_type);
                return Err(Error::checkpoint(format!(
                    "{file} has tensor {name}, but norms of {family} have no weights"
                )));
            }
        }
        Ok(())
    }

    /// The name here of what another file calls `name`, if it is part of what is here.
    pub fn own_name(&self, name: &str) -> Option<String> {
        if self.is_text_part { text_name(name) } else { Some(name.to_owned()) }
    }

    /// Finds the factors of FP8 tensors, which lie beside them as tensors of their own.
    ///
    /// # Errors
    /// Names the tensor that has none, or factors of another shape than `quantization` says.
    pub fn find_scales(&mut self, quantization: &Quantization) -> Result<()> {
        let names: Vec<String> = self.tensors.keys().cloned().collect();
        for name in &names {
            let entry = &self.tensors[name];
            if !matches!(entry.encoding, Some(Encoding::Fp8)) {
                continue;
            }
            let broken = |problem: String| {
                let file = self.files.path(entry.file).display();
                Error::checkpoint(format!("{file}: tensor {name} is {}{problem}", entry.type_name))
            };
            let scales_names = quantization.scales_of(name);
            let found = scales_names.iter().find_map(|scales| Some((scales, self.tensors.get(scales)?)));
            let (scales_name, scales) = found.ok_or_else(|| {
                broken(format!(" without factors: there is no {}", scales_names.join(" or ")))
            })?;
            let block = quantization.block_of(&entry.shape, &scales.shape).map_err(|expected| {
                broken(format!(", and {scales_name} has shape {:?}, expected {expected}", scales.shape))
            })?;
            if !matches!(scales.encoding, Some(Encoding::Float(_))) {
                let type_name = &scales.type_name;
                return Err(broken(format!(", and {scales_name} is {type_name}, expected F32, F16 or BF16")));
            }
            let scales_name = scales_name.clone();
            self.tensors.get_mut(name).expect("it is one of them").scales = Some((scales_name, block));
        }
        for name in names.into_iter().filter(|name| quantization.is_part_of_a_weight(name)) {
            let entry = self.tensors.remove(&name).expect("it is one of them");
            self.scales.insert(name, entry);
        }
        Ok(())
    }

    /// A tensor of at most two dimensions of a type that can be computed with.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        let entry = self.tensors.get(name)?;
        let encoding = entry.encoding?;
        let (rows, cols) = match entry.shape[..] {
            [] => (1, 1),
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => return None,
        };
        let scales = match (&entry.scales, encoding) {
            (None, Encoding::Fp8 | Encoding::Mxfp4 | Encoding::E8m0) => return None,
            (None, _) => None,
            (Some((name, block)), _) => {
                let scales = self.scales.get(name)?;
                let (encoding, bytes) = (scales.encoding?, self.bytes_of(scales));
                Some(Scales { encoding, bytes, block: *block, across: cols.div_ceil(block.1) })
            }
        };
        let stored =
            Stored { scales, paired: entry.paired, ..Stored::new(encoding, cols, self.bytes_of(entry)) };
        let rounded_to = self.rounded_to.unwrap_or(encoding.dtype());
        Some(Tensor { stored, rows, cols, rounded_to, update: None, view: None })
    }

    fn bytes_of<'a>(&'a self, entry: &'a Entry) -> &'a [u8] {
        match &entry.bytes {
            Bytes::Mapped(range) => &self.files.bytes(entry.file)[range.clone()],
            Bytes::Own(bytes) => bytes,
        }
    }

    /// See [`Reading::lets_go`](super::Reading).
    pub fn letting_go(mut self, lets_go: bool) -> Self {
        self.files.lets_go = lets_go;
        self
    }

    pub fn lets_go(&self) -> bool {
        self.files.lets_go
    }

    /// Nothing of the files is needed for a while.
    pub fn let_go_all(&self) {
        self.files.let_go_all();
    }

    /// Bytes of a tensor were read and are not needed for a while.
    pub fn let_go(&self, bytes: &[u8]) {
        self.files.let_go(bytes);
    }

    /// Bytes of a tensor will be read soon.
    pub fn expect(&self, bytes: &[u8]) {
        self.files.expect(bytes);
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| &entry.shape[..])
    }

    /// Whether a tensor is of packed experts: those are `[out, in]` in all files.
    pub fn is_packed(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|entry| entry.encoding == Some(Encoding::Mxfp4))
    }

    /// The type's name as the file has it.
    pub fn type_name(&self, name: &str) -> &str {
        self.tensors.get(name).map_or("", |entry| &entry.type_name)
    }

    /// The file that holds a tensor.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn file_of(&self, name: &str) -> &Path {
        self.files.path(self.tensors[name].file)
    }

    /// All files, in order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, map)| map.len() as u64).sum()
    }
}

/// The name that a tensor of a multimodal model has in its text model: `language_model.model.layers…` (transformers 4) and
/// `model.language_model.layers…` (5) are `model.layers…`, as they are where the text model has no name of its own (Qwen).
fn text_name(name: &str) -> Option<String> {
    const OWN: [&str; 4] = ["lm_head.", "model.embed_tokens.", "model.layers.", "model.norm."];
    if let Some(rest) = name.strip_prefix("language_model.") {
        return Some(rest.to_owned());
    }
    if let Some(rest) = name.strip_prefix("model.language_model.") {
        return Some(format!("model.{rest}"));
    }
    OWN.iter().any(|own| name.starts_with(own)).then(|| name.to_owned())
}

/// Whether a file was written by `torch.save`, by its name.
fn is_pytorch(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "bin")
}

/// The tensors of a safetensors file.
fn safetensors(bytes: &[u8]) -> std::result::Result<Vec<Found>, SafeTensorError> {
    let tensors = SafeTensors::deserialize(bytes)?;
    let found = |(name, view): (&str, TensorView<'_>)| {
        let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        let encoding = match view.dtype() {
            safetensors::Dtype::F32 => Some(Dtype::F32.into()),
            safetensors::Dtype::F16 => Some(Dtype::F16.into()),
            safetensors::Dtype::BF16 => Some(Dtype::Bf16.into()),
            safetensors::Dtype::F8_E4M3 => Some(Encoding::Fp8),
            _ => None,
        };
        let (type_name, shape) = (format!("{:?}", view.dtype()), view.shape().to_vec());
        Found { name: name.to_owned(), type_name, encoding, shape, range: start..start + view.data().len() }
    };
    Ok(tensors.iter().map(found).collect())
}

/// What a file that is not what its name says may be.
fn hint(path: &Path, bytes: &[u8]) -> &'static str {
    match bytes {
        [] => " (the file is empty)",
        [b'P', b'K', ..] if !is_pytorch(path) => " (it looks like a PyTorch or zip file)",
        [0x80, 1..=5, ..] => " (it looks like a pickle: those of PyTorch before 1.6 are not read)",
        [b'G', b'G', b'U', b'F', ..] => " (it is a GGUF file)",
        _ if bytes.starts_with(b"version https://git-lfs") => {
            " (it is a Git LFS pointer: run `git lfs pull` in the model's directory)"
        }
        _ => "",
    }
}
