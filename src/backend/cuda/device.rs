//! What a device can do, whichever it is: memory, copies, launches, in lanes. Each lane does what it is asked for in this order; what lanes do
//! side by side is put in order by points and joins.

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

/// Work that is done in the order it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Context rows, and everything where nothing is done side by side.
    Context,
    /// What the context's keys differ by in the pre-trained branch.
    Keys,
    /// Twin rows in the pre-trained branch.
    Pt,
    /// Twin rows in the tuned branch, and their stream.
    Ft,
}

impl Lane {
    pub const ALL: [Lane; 4] = [Lane::Context, Lane::Keys, Lane::Pt, Lane::Ft];

    pub fn others(self) -> impl Iterator<Item = Lane> {
        Self::ALL.into_iter().filter(move |lane| *lane != self)
    }
}

/// How the lanes of a device share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// All is done in the first lane.
    #[default]
    One,
    /// Lanes work side by side, each kernel with as much as it can use: others fill what its last blocks leave idle.
    Tails,
    /// Besides, most of the context's kernels leave room on their multiprocessors for those of few twin rows.
    Room,
}

/// Points of a lane that others can wait for.
pub const POINTS: usize = 32;

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

/// One lane of a device, or of its simulator.
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

    /// Memory of `bytes` bytes, 256 bytes aligned, and how many it really has, which is what it is given back as; what it holds is
    /// undefined.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`](crate::ErrorKind) when there is not so much.
    fn alloc(&self, bytes: usize) -> Result<(Address, usize)>;

    /// Gives memory back, once everything that this lane was asked for so far is done. What other lanes still do with it is the caller's.
    fn free(&self, address: Address, bytes: usize);

    /// Memory that all lanes read, which [`Device::upload_common`] writes to: weights, and where rows lie.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    fn alloc_common(&self, bytes: usize) -> Result<(Address, usize)>;

    /// Gives memory back, once everything that all lanes were asked for so far is done.
    fn free_common(&self, address: Address, bytes: usize);

    /// Writes to common memory while what was asked for before goes on; what all lanes are asked for afterwards waits for it.
    fn upload_common(&self, to: Address, bytes: &[u8]) -> Result<()>;

    /// Writes `bytes` to the device.
    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()>;

    /// Writes `bytes` bytes, which are made part by part, before it returns, where the device takes them from.
    fn write(&self, to: Address, bytes: usize, fill: &Fill) -> Result<()>;

    /// Waits for everything that all lanes were asked for so far, then reads.
    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()>;

    /// Fills memory with zero bytes.
    fn clear(&self, at: Address, bytes: usize) -> Result<()>;

    /// Says how lanes share the device from now on.
    fn set_sharing(&self, sharing: Sharing);

    /// How they do.
    fn sharing(&self) -> Sharing;

    /// Runs the kernel of this name.
    fn launch(&self, kernel: &str, launch: Launch, args: &[u8]) -> Result<()>;

    /// Records point number `point` of this lane, of [`POINTS`]: it is passed when everything asked for so far is done.
    fn record(&self, point: usize) -> Result<()>;

    /// What this lane is asked for from now on waits for a point of another lane, as it was last recorded.
    fn wait(&self, lane: Lane, point: usize) -> Result<()>;

    /// What this lane is asked for from now on waits for everything that the others were asked for so far.
    fn join(&self) -> Result<()>;

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
    is_common: bool,
}

impl Buffer {
    pub fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Self> {
        let (address, bytes) = device.alloc(whole(bytes))?;
        Ok(Self { device: device.clone(), address, bytes, is_common: false })
    }

    /// For what all lanes read.
    pub fn common(device: &Arc<dyn Device>, bytes: usize) -> Result<Self> {
        let (address, bytes) = device.alloc_common(whole(bytes))?;
        Ok(Self { device: device.clone(), address, bytes, is_common: true })
    }

    /// Writes to it from byte `at` on.
    pub fn fill(&self, at: usize, bytes: &[u8]) -> Result<()> {
        let to = self.address + at as Address;
        if self.is_common { self.device.upload_common(to, bytes) } else { self.device.upload(to, bytes) }
    }

    /// The buffer with `values` from its beginning on.
    pub fn holding<T: Args>(self, values: &[T]) -> Result<Self> {
        if !values.is_empty() {
            self.fill(0, as_bytes(values))?;
        }
        Ok(self)
    }

    /// A common buffer that holds `values`.
    pub fn common_of<T: Args>(device: &Arc<dyn Device>, values: &[T]) -> Result<Self> {
        Self::common(device, size_of_val(values))?.holding(values)
    }

    /// A buffer of this lane that holds `values`.
    pub fn of<T: Args>(device: &Arc<dyn Device>, values: &[T]) -> Result<Self> {
        Self::new(device, size_of_val(values))?.holding(values)
    }

    pub fn address(&self) -> Address {
        self.address
    }

    /// The lane that it is of.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }
}

/// Bytes of a buffer that holds so many.
fn whole(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(256)
}

/// The bytes of plain values.
pub fn as_bytes<T: Args>(values: &[T]) -> &[u8] {
    // SAFETY: `Args` have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.is_common {
            self.device.free_common(self.address, self.bytes);
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
plain_numbers!(u8, u16, i32, u64, f32);
