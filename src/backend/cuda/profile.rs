//! A device that takes the time of every kernel.

use super::{
    args::{Address, TensorMap},
    device::{Boxed, Device, Fill, Floor, Kernels, Lane, Launch, Mark, Sharing},
};
use crate::{Result, backend::KernelTime, sync::lock};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// Passes everything on, between marks.
pub struct Profiled {
    device: Arc<dyn Device>,
    launches: Mutex<Vec<Timed>>,
}

struct Timed {
    kernel: String,
    floor: Floor,
    start: Mark,
    end: Mark,
}

impl Profiled {
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self { device, launches: Mutex::default() }
    }

    /// The times of all kernels since the last call.
    pub fn take(&self) -> Result<Vec<KernelTime>> {
        let launches = std::mem::take(&mut *lock(&self.launches));
        let mut kernels = BTreeMap::new();
        for Timed { kernel, floor, start, end } in launches {
            let time = kernels.entry((kernel.clone(), floor.weight)).or_insert_with(|| KernelTime {
                kernel,
                weight: floor.weight,
                launches: 0,
                seconds: 0.0,
                operations: 0.0,
                bytes: 0.0,
            });
            time.launches += 1;
            time.seconds += self.device.between(start, end)?;
            time.operations += floor.operations;
            time.bytes += floor.bytes;
        }
        Ok(kernels.into_values().collect())
    }
}

impl Device for Profiled {
    fn name(&self) -> String {
        self.device.name()
    }

    fn architecture(&self) -> String {
        self.device.architecture()
    }

    fn kernels(&self) -> Kernels {
        self.device.kernels()
    }

    fn multiprocessors(&self) -> u32 {
        self.device.multiprocessors()
    }

    fn cache_bytes(&self) -> usize {
        self.device.cache_bytes()
    }

    fn tensor_map(&self, matrix: &Boxed) -> Result<TensorMap> {
        self.device.tensor_map(matrix)
    }

    fn alloc(&self, bytes: usize) -> Result<(Address, usize)> {
        self.device.alloc(bytes)
    }

    fn free(&self, address: Address, bytes: usize) {
        self.device.free(address, bytes);
    }

    fn alloc_common(&self, bytes: usize) -> Result<(Address, usize)> {
        self.device.alloc_common(bytes)
    }

    fn free_common(&self, address: Address, bytes: usize) {
        self.device.free_common(address, bytes);
    }

    fn upload_common(&self, to: Address, bytes: &[u8]) -> Result<()> {
        self.device.upload_common(to, bytes)
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        self.device.upload(to, bytes)
    }

    fn write(&self, to: Address, bytes: usize, fill: &Fill) -> Result<()> {
        self.device.write(to, bytes, fill)
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        self.device.download(from, bytes)
    }

    fn clear(&self, at: Address, bytes: usize) -> Result<()> {
        self.device.clear(at, bytes)
    }

    fn set_sharing(&self, sharing: Sharing) {
        self.device.set_sharing(sharing);
    }

    fn sharing(&self) -> Sharing {
        self.device.sharing()
    }

    fn launch(&self, kernel: &str, launch: Launch, args: &[u8]) -> Result<()> {
        let start = self.device.mark()?;
        self.device.launch(kernel, launch, args)?;
        let end = self.device.mark()?;
        let timed = Timed { kernel: kernel.into(), floor: launch.floor, start, end };
        lock(&self.launches).push(timed);
        Ok(())
    }

    fn record(&self, point: usize) -> Result<()> {
        self.device.record(point)
    }

    fn wait(&self, lane: Lane, point: usize) -> Result<()> {
        self.device.wait(lane, point)
    }

    fn join(&self) -> Result<()> {
        self.device.join()
    }

    fn mark(&self) -> Result<Mark> {
        self.device.mark()
    }

    fn between(&self, start: Mark, end: Mark) -> Result<f64> {
        self.device.between(start, end)
    }

    fn memory(&self) -> Result<(usize, usize)> {
        self.device.memory()
    }
}
