//! What a device can do, whichever it is: memory, copies, launches, all in the order they are asked for.

use super::{
    args::{Address, Args, TensorMap},
    mat::Element,
};
use crate::Result;
use std::sync::Arc;

/// How many threads run a kernel, and for what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Launch {
    pub grid: [u32; 3],
    /// Of a block: what the kernel was compiled for.
    pub threads: u32,
    pub shared_bytes: u32,
    pub floor: Floor,
}

/// What no kernel for a problem can do without, by which its time is judged, and what its row in a table of times is told by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Floor {
    /// Multiplications and additions of products, each counted, as if each took one.
    pub operations: f64,
    /// What is read and written of device memory, each byte once.
    pub bytes: f64,
    /// Rows and columns of a product's weight.
    pub weight: Option<[usize; 2]>,
}

impl Floor {
    pub fn of_bytes(bytes: usize) -> Self {
        Self { bytes: bytes as f64, ..Self::default() }
    }
}

/// Which of the kernels compiled into this program a device runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Those for every GPU from compute capability 8.0 on.
    Sm80,
    /// Those that only Hopper runs (`kernels/*_sm90.cu`), and for the rest the others.
    Sm90a,
}

impl Kernels {
    /// The target that they are compiled for.
    pub fn name(self) -> &'static str {
        match self {
            Kernels::Sm80 => "sm_80",
            Kernels::Sm90a => "sm_90a",
        }
    }
}

/// A matrix in device memory, of which copies take boxes of `box_rows` rows of 128 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Boxed {
    pub address: Address,
    pub element: Element,
    pub rows: usize,
    pub cols: usize,
    /// From one row to the next, in elements.
    pub pitch: usize,
    pub box_rows: u32,
}

impl Boxed {
    /// Columns of a box.
    pub fn box_cols(&self) -> usize {
        128 / self.element.size()
    }

    pub fn pitch_bytes(&self) -> usize {
        self.pitch * self.element.size()
    }
}

/// Makes a part of some bytes, from this one on; several parts at a time.
pub type Fill<'a> = dyn Fn(usize, &mut [u8]) + Sync + 'a;

/// A device, or its simulator.
pub trait Device: Send + Sync {
    /// For people: what it is.
    fn name(&self) -> String;

    /// Devices of one architecture give the same bits.
    fn architecture(&self) -> String;

    /// Which kernels it runs.
    fn kernels(&self) -> Kernels;

    /// How many blocks of a kernel that fills a multiprocessor run at a time.
    fn multiprocessors(&self) -> u32;

    /// Of the cache that all multiprocessors share.
    fn cache_bytes(&self) -> usize;

    /// What kernels for Hopper need to copy boxes of a matrix.
    fn tensor_map(&self, matrix: &Boxed) -> Result<TensorMap>;

    /// Memory of `bytes` bytes, 256 bytes aligned; what it holds is undefined.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`](crate::ErrorKind) when there is not so much.
    fn alloc(&self, bytes: usize) -> Result<Address>;

    /// Gives memory back, once everything asked for so far is done.
    fn free(&self, address: Address, bytes: usize);

    /// Memory for weights, which [`Device::upload_weight`] writes to.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    fn alloc_weight(&self, bytes: usize) -> Result<Address>;

    /// As [`Device::free`].
    fn free_weight(&self, address: Address, bytes: usize);

    /// Writes weights while what was asked for before goes on; what is asked for afterwards waits for them.
    fn upload_weight(&self, to: Address, bytes: &[u8]) -> Result<()>;

    /// Writes `bytes` to the device.
    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()>;

    /// Writes `bytes` bytes, which are made part by part, before it returns, where the device takes them from.
    fn write(&self, to: Address, bytes: usize, fill: &Fill) -> Result<()>;

    /// Waits for everything asked for so far, then reads.
    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()>;

    /// Fills memory with zero bytes.
    fn clear(&self, at: Address, bytes: usize) -> Result<()>;

    /// Runs the kernel of this name.
    fn launch(&self, kernel: &str, launch: Launch, args: &[u8]) -> Result<()>;

    /// Takes the time when everything asked for so far is done, and what follows has not begun.
    fn mark(&self) -> Result<Mark>;

    /// Seconds between two marks, once they have been passed.
    fn between(&self, start: Mark, end: Mark) -> Result<f64>;

    /// Device memory in bytes: what is free, and all.
    fn memory(&self) -> Result<(usize, usize)>;
}

/// A point in the order of a device's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(pub usize);

/// Memory of a device, given back when it is dropped.
pub struct Buffer {
    device: Arc<dyn Device>,
    address: Address,
    bytes: usize,
    is_weight: bool,
}

impl Buffer {
    pub fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Self> {
        let bytes = bytes.max(1).next_multiple_of(256);
        Ok(Self { device: device.clone(), address: device.alloc(bytes)?, bytes, is_weight: false })
    }

    /// For weights, which [`Buffer::fill`] writes.
    pub fn for_weight(device: &Arc<dyn Device>, bytes: usize) -> Result<Self> {
        let bytes = bytes.max(1).next_multiple_of(256);
        Ok(Self { device: device.clone(), address: device.alloc_weight(bytes)?, bytes, is_weight: true })
    }

    /// Writes a weight, from byte `at` on.
    pub fn fill(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.device.upload_weight(self.address + at as Address, bytes)
    }

    /// A buffer that holds `values`.
    pub fn of<T: Args>(device: &Arc<dyn Device>, values: &[T]) -> Result<Self> {
        let buffer = Self::new(device, size_of_val(values))?;
        if !values.is_empty() {
            device.upload(buffer.address, as_bytes(values))?;
        }
        Ok(buffer)
    }

    pub fn address(&self) -> Address {
        self.address
    }
}

/// The bytes of plain values.
pub fn as_bytes<T: Args>(values: &[T]) -> &[u8] {
    // SAFETY: `Args` have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.is_weight {
            self.device.free_weight(self.address, self.bytes);
        } else {
            self.device.free(self.address, self.bytes);
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:#x}", self.bytes, self.address)
    }
}

macro_rules! plain_numbers {
    ($($type:ty),*) => {
        // SAFETY: numbers have no padding.
        $(unsafe impl Args for $type {})*
    };
}
plain_numbers!(u16, i32, u64, f32);
