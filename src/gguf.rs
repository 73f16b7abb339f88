//! The container of llama.cpp: metadata and tensors in one mapped file (`gguf.md` of ggml, versions 2 and 3). What the
//! metadata mean for weights and for text is for others to say.

use crate::{
    Error, Result,
    paths::has_extension,
    tensor::{BlockFormat, Dtype, Encoding},
};
use memmap2::Mmap;
use serde_json::{Map, Value};
use std::{
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
};

const MAGIC: &[u8] = b"GGUF";

/// More than any vocabulary: each element of a list takes many times the memory that it has in the file.
const LONGEST_LIST: usize = 1 << 22;

/// A mapped file whose tables are sound.
pub struct Gguf {
    pub path: PathBuf,
    pub bytes: Mmap,
    /// Numbers, strings, flags and lists of them, by key. 32-bit floats are the shortest decimal that means them: what was
    /// `1e-5` before it was stored is that again.
    pub metadata: Map<String, Value>,
    pub tensors: Vec<TensorInfo>,
}

/// Where and how a tensor lies.
pub struct TensorInfo {
    pub name: String,
    /// As in safetensors: the last dimension is the one whose elements follow each other.
    pub shape: Vec<usize>,
    /// `None`: of a type that cannot be read.
    pub encoding: Option<Encoding>,
    pub type_name: String,
    pub range: Range<usize>,
}

/// The GGUF file that `path` means: itself, or the only one in a directory that holds no model in another form.
///
/// # Errors
/// Where several are in the directory.
pub fn find(path: &Path) -> Result<Option<PathBuf>> {
    let is_gguf = |path: &Path| has_extension(path, &["gguf"]);
    if path.is_file() {
        return Ok(is_gguf(path).then(|| path.to_path_buf()));
    }
    if path.join("config.json").exists() || path.join("adapter_config.json").exists() {
        return Ok(None);
    }
    let entries = fs::read_dir(path).map_err(|error| Error::unreadable(path, &error))?;
    let mut found: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|p| is_gguf(p)).collect();
    found.sort();
    match &found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [first, ..] => Err(Error::usage(format!(
            "{} has {} GGUF files; name one of them, such as {}",
            path.display(),
            found.len(),
            first.display()
        ))),
    }
}

impl Gguf {
    /// Maps a file and reads its tables.
    ///
    /// # Errors
    /// A sentence that names the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::unreadable(path, &error))?;
        // SAFETY: a mapped checkpoint must not be changed while it is used; nobody rewrites checkpoints in place.
        let bytes = unsafe { Mmap::map(&file) }.map_err(|error| Error::unreadable(path, &error))?;
        let (metadata, tensors) =
            read(&bytes).map_err(|problem| Error::checkpoint(format!("{} {problem}", path.display())))?;
        let parts = metadata.get("split.count").and_then(Value::as_u64).unwrap_or(1);
        if parts > 1 {
            return Err(Error::checkpoint(format!(
                "{} is one of {parts} parts; join them: llama-gguf-split --merge {0} JOINED.gguf",
                path.display()
            )));
        }
        Ok(Self { path: path.to_path_buf(), bytes, metadata, tensors })
    }
}

type Tables = (Map<String, Value>, Vec<TensorInfo>);

fn read(bytes: &[u8]) -> Result<Tables, String> {
    if !bytes.starts_with(MAGIC) {
        return Err("is not a GGUF file: it does not begin with GGUF".into());
    }
    let mut reader = Reader { bytes, at: MAGIC.len() };
    match reader.u32()? {
        2 | 3 => {}
        version if version.swap_bytes() <= 3 => return Err("is big-endian, which cannot be read".into()),
        version => return Err(format!("is of GGUF version {version}, expected 2 or 3")),
    }
    let (tensor_count, pair_count) = (reader.u64()?, reader.u64()?);
    let mut metadata = Map::new();
    for _ in 0..pair_count {
        let key = reader.string()?;
        let kind = reader.u32()?;
        let value = reader.value(kind).map_err(|problem| format!("{problem} (at metadata {key})"))?;
        metadata.insert(key, value);
    }
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        tensors.push(reader.tensor()?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => value
            .as_u64()
            .filter(|n| n.is_power_of_two() && *n <= 1 << 20)
            .ok_or_else(|| format!("has general.alignment {value}, expected a power of two"))?
            as usize,
    };
    let start = reader.at.next_multiple_of(alignment);
    for tensor in &mut tensors {
        let within = |at: usize| start.checked_add(at).filter(|end| *end <= bytes.len());
        let (Some(begin), Some(end)) = (within(tensor.range.start), within(tensor.range.end)) else {
            return Err(format!(
                "is cut off: tensor {} ends after the file's {} bytes",
                tensor.name,
                bytes.len()
            ));
        };
        tensor.range = begin..end;
    }
    Ok((metadata, tensors))
}

/// Reads one thing after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let taken = self.bytes[self.at..].get(..count);
        let taken = taken.ok_or_else(|| format!("is cut off in its tables, at byte {}", self.at))?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many as asked for"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A length, which the rest of the file bounds.
    fn length(&mut self) -> Result<usize, String> {
        let length = self.u64()?;
        let rest = self.bytes.len() - self.at;
        usize::try_from(length)
            .ok()
            .filter(|length| *length <= rest)
            .ok_or_else(|| format!("has a length of {length} where {rest} bytes are left"))
    }

    fn string(&mut self) -> Result<String, String> {
        let length = self.length()?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        const ARRAY: u32 = 9;
        if kind != ARRAY {
            return self.scalar(kind);
        }
        let (kind, length) = (self.u32()?, self.length()?);
        if kind == ARRAY {
            return Err("has a list of lists".into());
        }
        if length > LONGEST_LIST {
            return Err(format!("has a list of {length}, expected at most {LONGEST_LIST}"));
        }
        (0..length).map(|_| self.scalar(kind)).collect()
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array()?).into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            6 => {
                let value = f32::from_le_bytes(self.array()?);
                value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
            }
            7 => (self.array::<1>()? != [0]).into(),
            8 => self.string()?.into(),
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            12 => f64::from_le_bytes(self.array()?).into(),
            other => return Err(format!("has a value of unknown kind {other}")),
        })
    }

    /// A tensor, its range counted from where the tensors begin.
    fn tensor(&mut self) -> Result<TensorInfo, String> {
        let name = self.string()?;
        let dimensions = self.u32()?;
        if !(1..=4).contains(&dimensions) {
            return Err(format!("has tensor {name} of {dimensions} dimensions, expected 1 to 4"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(
                usize::try_from(self.u64()?).map_err(|_| format!("has tensor {name}, which is too large"))?,
            );
        }
        shape.reverse();
        let (encoding, type_name) = type_of(self.u32()?);
        let offset = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        let length = match encoding {
            None => 0,
            Some(encoding) => {
                let rows = shape.iter().rev().skip(1).try_fold(1usize, |all, n| all.checked_mul(*n));
                let row = encoding.bytes(shape[shape.len() - 1]);
                rows.zip(row).and_then(|(rows, row)| rows.checked_mul(row)).ok_or_else(|| {
                    format!(
                        "has tensor {name} of shape {shape:?}, whose rows are no whole {type_name} blocks"
                    )
                })?
            }
        };
        let end =
            offset.checked_add(length).ok_or_else(|| format!("has tensor {name}, which is too large"))?;
        Ok(TensorInfo { name, shape, encoding, type_name, range: offset..end })
    }
}

/// `ggml_type` → how elements are stored, if that can be read, and its name.
fn type_of(number: u32) -> (Option<Encoding>, String) {
    let encoding = match number {
        0 => Some(Dtype::F32.into()),
        1 => Some(Dtype::F16.into()),
        30 => Some(Dtype::Bf16.into()),
        2 => Some(Encoding::Block(BlockFormat::Q4_0)),
        3 => Some(Encoding::Block(BlockFormat::Q4_1)),
        6 => Some(Encoding::Block(BlockFormat::Q5_0)),
        7 => Some(Encoding::Block(BlockFormat::Q5_1)),
        8 => Some(Encoding::Block(BlockFormat::Q8_0)),
        12 => Some(Encoding::Block(BlockFormat::Q4K)),
        13 => Some(Encoding::Block(BlockFormat::Q5K)),
        14 => Some(Encoding::Block(BlockFormat::Q6K)),
        _ => None,
    };
    let unread = [
        (10, "Q2_K"),
        (11, "Q3_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
    ];
    let name = match encoding {
        Some(encoding) => encoding.name().to_owned(),
        None => unread
            .iter()
            .find(|(other, _)| *other == number)
            .map_or_else(|| format!("ggml type {number}"), |(_, name)| (*name).to_owned()),
    };
    (encoding, name)
}
