//! SHA-256, in hexadecimal (of files the same that the Hugging Face Hub shows) and as numbers.

use sha2::{Digest, Sha256};
use std::{
    fmt::{self, Debug, Write},
    io::{self, Read},
};

/// Of bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Of what `Debug` shows of a value.
pub fn sha256_of_debug(value: &dyn Debug) -> String {
    struct Hashing(Sha256);
    impl Write for Hashing {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.update(text);
            Ok(())
        }
    }
    let mut hashing = Hashing(Sha256::new());
    write!(hashing, "{value:?}").expect("hashing does not fail");
    hex(&hashing.0.finalize())
}

/// The first eight bytes of the SHA-256, most significant first: a number that is the same everywhere.
pub fn number(bytes: &[u8]) -> u64 {
    let digest = Sha256::digest(bytes);
    u64::from_be_bytes(std::array::from_fn(|i| digest[i]))
}

/// Of all that a reader gives; `seen` sees the bytes pass.
pub fn sha256_of(mut reader: impl Read, mut seen: impl FnMut(&[u8])) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hasher.finalize())),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..read]);
        seen(&buffer[..read]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
