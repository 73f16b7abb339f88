//! Checkpoints as `torch.save` writes them (`pytorch_model.bin`, from PyTorch 1.6 on): a zip file with the elements as they are and
//! a pickle that says what they are. It is read without being run.

mod pickle;

use super::weights::Found;
use crate::tensor::{Dtype, Encoding};
use pickle::{StateTensor, Storage};
use std::{
    collections::HashMap,
    io::{Cursor, Read},
    ops::Range,
    rc::Rc,
};
use zip::{CompressionMethod, ZipArchive, read::ZipReadOptions, result::ZipError};

/// The longest pickle that is read: names and shapes of a million tensors.
const LONGEST_PICKLE: u64 = 64 << 20;

/// All tensors of a file.
///
/// # Errors
/// A sentence that says what was expected.
pub fn tensors(bytes: &[u8]) -> Result<Vec<Found>, String> {
    let mut archive = Archive::open(bytes)?;
    let state = pickle::state_dict(&archive.pickle()?)?;
    state.iter().map(|(name, tensor)| archive.find(name, tensor)).collect()
}

struct Archive<'b> {
    zip: ZipArchive<Cursor<&'b [u8]>>,
    /// Bytes of the file.
    length: usize,
    /// What all names in it begin with.
    prefix: String,
    /// The places of storages, by key.
    places: HashMap<Rc<str>, Range<usize>>,
}

impl<'b> Archive<'b> {
    fn open(bytes: &'b [u8]) -> Result<Self, String> {
        let zip = ZipArchive::new(Cursor::new(bytes));
        let zip = zip.map_err(|error| match bytes {
            [b'P', b'K', ..] => format!("is a zip file that is broken or not whole: {error}"),
            _ => format!("is not a valid zip file: {error}"),
        })?;
        let prefix = zip
            .file_names()
            .filter_map(Result::ok)
            .find_map(|name| name.strip_suffix("data.pkl").map(str::to_owned))
            .ok_or("is a zip file, but no checkpoint of PyTorch: it has no data.pkl")?;
        let mut archive = Self { zip, length: bytes.len(), prefix, places: HashMap::new() };
        match archive.read("byteorder", 16)? {
            Some(order) if order != b"little" => Err("has elements whose first byte is the highest".into()),
            _ => Ok(archive),
        }
    }

    fn pickle(&mut self) -> Result<Vec<u8>, String> {
        self.read("data.pkl", LONGEST_PICKLE)?.ok_or_else(|| "has no data.pkl".into())
    }

    /// A file's first bytes, at most so many, if it is there. Its checksum is not looked at: PyTorch can leave those out.
    fn read(&mut self, name: &str, most: u64) -> Result<Option<Vec<u8>>, String> {
        let unreadable = |error: &dyn std::fmt::Display| format!("has a {name} that cannot be read: {error}");
        let options = ZipReadOptions::new().ignore_crc32(true);
        let file = match self.zip.by_name_with_options(&format!("{}{name}", self.prefix), options) {
            Ok(file) => file,
            Err(ZipError::FileNotFound) => return Ok(None),
            Err(error) => return Err(unreadable(&error)),
        };
        let mut content = Vec::new();
        file.take(most).read_to_end(&mut content).map_err(|error| unreadable(&error))?;
        Ok(Some(content))
    }

    /// Where a storage's elements are, of `size` bytes each.
    fn place(&mut self, storage: &Storage, size: usize) -> Result<Range<usize>, String> {
        let name = format!("{}data/{}", self.prefix, storage.key);
        if !self.places.contains_key(&storage.key) {
            let file = self.zip.by_name(&name).map_err(|_| format!("has no {name}"))?;
            if file.compression() != CompressionMethod::Stored {
                return Err(format!("has a compressed {name}, expected it as it is"));
            }
            let end = file.data_start().and_then(|start| Some((start, start.checked_add(file.size())?)));
            let place = end.filter(|(_, end)| *end <= self.length as u64);
            let (start, end) =
                place.ok_or_else(|| format!("has a {name} that goes beyond the file's end"))?;
            self.places.insert(storage.key.clone(), start as usize..end as usize);
        }
        let place = self.places[&storage.key].clone();
        if Some(place.len()) != storage.length.checked_mul(size) {
            let (bytes, length) = (place.len(), storage.length);
            return Err(format!("has {bytes} bytes of {name}, expected {length} elements of {size} bytes"));
        }
        Ok(place)
    }

    fn find(&mut self, name: &str, tensor: &StateTensor) -> Result<Found, String> {
        let StateTensor { storage, offset, shape, strides } = tensor;
        let broken = |problem: String| format!("has tensor {name} of shape {shape:?} {problem}");
        let (encoding, size) = match &*storage.class {
            "FloatStorage" => (Some(Dtype::F32), 4),
            "HalfStorage" => (Some(Dtype::F16), 2),
            "BFloat16Storage" => (Some(Dtype::Bf16), 2),
            "LongStorage" | "DoubleStorage" => (None, 8),
            "IntStorage" => (None, 4),
            "ShortStorage" => (None, 2),
            "CharStorage" | "ByteStorage" | "BoolStorage" => (None, 1),
            other => return Err(broken(format!("and of type {other}, which is not known"))),
        };
        if encoding.is_some() && !follow_each_other(shape, strides) {
            return Err(broken(format!("with strides {strides:?}, expected its elements row by row")));
        }
        let place = self.place(storage, size)?;
        let length = shape.iter().try_fold(size, |bytes, n| bytes.checked_mul(*n));
        let start = offset.checked_mul(size).and_then(|offset| offset.checked_add(place.start));
        let range = start.zip(length).and_then(|(start, length)| Some(start..start.checked_add(length)?));
        match range.filter(|range| range.end <= place.end) {
            Some(range) => Ok(Found {
                name: name.to_owned(),
                type_name: storage.class.to_string(),
                encoding: encoding.map(Encoding::from),
                shape: shape.clone(),
                range,
            }),
            None => Err(broken(format!("from element {offset} on of {}", storage.length))),
        }
    }
}

/// Whether elements lie row by row.
fn follow_each_other(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    let mut pairs = shape.iter().zip(strides).rev();
    shape.len() == strides.len()
        && pairs.all(|(count, stride)| {
            let follows = *count == 1 || *stride == expected;
            expected = expected.saturating_mul(*count);
            follows
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, rc::Rc};

    fn golden() -> Vec<u8> {
        fs::read("tests/golden/pytorch/base/pytorch_model.bin").unwrap()
    }

    #[test]
    fn tensors_that_share_elements_lie_in_one_place() {
        let found = tensors(&golden()).unwrap();
        let of = |name: &str| found.iter().find(|found| found.name == name).unwrap();
        let (embedding, head) = (of("model.embed_tokens.weight"), of("lm_head.weight"));
        assert_eq!((&embedding.range, &embedding.shape[..]), (&head.range, &[67, 32][..]));
        assert_eq!((&*head.type_name, head.encoding), ("HalfStorage", Some(Dtype::F16.into())));
        // PyTorch puts elements at whole 64 bytes.
        assert!(found.iter().all(|found| found.range.start.is_multiple_of(64)));
    }

    #[test]
    fn any_bytes_are_tensors_or_an_error() {
        let bytes = golden();
        let mut archive = Archive::open(&bytes).unwrap();
        let pickle = archive.pickle().unwrap();
        let mut read = |pickle: &[u8]| {
            let state = pickle::state_dict(pickle)?;
            state.iter().map(|(name, tensor)| archive.find(name, tensor)).collect::<Result<Vec<_>, _>>()
        };
        for end in 0..pickle.len() {
            assert!(read(&pickle[..end]).is_err(), "{end} bytes");
        }
        for at in 0..pickle.len() {
            for bits in [1, 0x10, 0x80, 0xff] {
                let mut changed = pickle.clone();
                changed[at] ^= bits;
                for found in read(&changed).into_iter().flatten() {
                    assert!(found.range.end <= bytes.len(), "{found:?}");
                }
            }
        }
        for end in (0..bytes.len()).step_by(97) {
            assert!(tensors(&bytes[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn a_size_that_lies_is_an_error() {
        let mut bytes = golden();
        // Sizes of the first storage in the archive's directory, whose name ends its entry.
        let directory = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
        let name = |at: usize| bytes[at..].starts_with(b"pytorch_model/data/0");
        let at = (directory..bytes.len()).find(|at| name(*at)).unwrap() - 46;
        for field in [20, 24] {
            bytes[at + field..at + field + 4].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        }
        assert!(tensors(&bytes).unwrap_err().contains("beyond the file's end"));
    }

    #[test]
    fn elements_have_to_lie_row_by_row_within_their_storage() {
        let bytes = golden();
        let mut archive = Archive::open(&bytes).unwrap();
        let state = pickle::state_dict(&archive.pickle().unwrap()).unwrap();
        let (name, embedding) = state.iter().find(|(_, tensor)| tensor.shape == [67, 32]).unwrap();
        let mut problem = |change: fn(&mut StateTensor)| {
            let mut tensor = (**embedding).clone();
            change(&mut tensor);
            archive.find(name, &tensor).unwrap_err()
        };
        assert!(problem(|tensor| tensor.strides = vec![1, 67]).contains("row by row"));
        assert!(problem(|tensor| tensor.offset = 1).contains("from element 1 on of 2144"));
        assert!(problem(|tensor| tensor.shape[0] = usize::MAX).contains("of 2144"));
        let storage = |class: &str, key: &str, length| {
            Rc::new(Storage { class: class.into(), key: key.into(), length })
        };
        let mut with = |storage| archive.find(name, &StateTensor { storage, ..(**embedding).clone() });
        assert!(with(storage("HalfStorage", "0", 7)).unwrap_err().contains("expected 7 elements of 2 bytes"));
        assert!(with(storage("HalfStorage", "nowhere", 7)).unwrap_err().contains("data/nowhere"));
        assert!(with(storage("ComplexStorage", "0", 7)).unwrap_err().contains("ComplexStorage"));
    }
}
