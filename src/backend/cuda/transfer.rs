//! Weights on their way to a GPU while it computes: a stream of copies from pinned memory, and memory that one layer's weights
//! leave to another's.

use super::{args::Address, gpu::failed};
use crate::Result;
use cudarc::driver::{result, sys};
use rayon::prelude::*;
use std::collections::HashMap;

/// Bytes of each of the two pinned buffers: one is filled while the other is copied.
const STAGE_BYTES: usize = 32 << 20;

/// Bytes that one thread copies at a time.
const PART_BYTES: usize = 1 << 20;

/// The stream of copies. Its methods need the GPU's context to be current.
pub struct Transfer {
    stream: sys::CUstream,
    stages: [Stage; 2],
    next: usize,
    /// Memory that weights have left, by size, each with what has to be done before it is written again.
    unused: HashMap<usize, Vec<(Address, sys::CUevent)>>,
}

/// Pinned memory, and when its last copy is done.
struct Stage {
    bytes: *mut u8,
    copied: sys::CUevent,
}

// SAFETY: handles and pinned memory belong to the process, not to a thread.
unsafe impl Send for Transfer {}

fn event() -> Result<sys::CUevent> {
    result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
        .map_err(|error| failed("make an event", error))
}

impl Transfer {
    pub fn new() -> Result<Self> {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|error| failed("make a stream", error))?;
        let stage = || -> Result<Stage> {
            // SAFETY: no preconditions.
            let bytes = unsafe { result::malloc_host(STAGE_BYTES, 0) }
                .map_err(|error| failed("pin memory of the host", error))?;
            Ok(Stage { bytes: bytes.cast(), copied: event()? })
        };
        Ok(Self { stream, stages: [stage()?, stage()?], next: 0, unused: HashMap::new() })
    }

    /// Memory that weights have left.
    pub fn take(&mut self, bytes: usize) -> Result<Option<Address>> {
        let Some((address, left)) = self.unused.get_mut(&bytes).and_then(Vec::pop) else { return Ok(None) };
        // SAFETY: the event was recorded by `leave`; the driver frees it once it is passed.
        unsafe {
            result::stream::wait_event(self.stream, left, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
                .and_then(|()| result::event::destroy(left))
        }
        .map_err(|error| failed("wait for an event", error))?;
        Ok(Some(address))
    }

    /// Takes memory back that work in the stream `compute` may still read.
    pub fn leave(&mut self, address: Address, bytes: usize, compute: sys::CUstream) -> Result<()> {
        let left = event()?;
        // SAFETY: both live.
        unsafe { result::event::record(left, compute) }.map_err(|error| failed("record an event", error))?;
        self.unused.entry(bytes).or_default().push((address, left));
        Ok(())
    }

    /// Writes `bytes`, while what `compute` was asked for before goes on; what it is asked for afterwards waits.
    pub fn upload(&mut self, to: Address, bytes: &[u8], compute: sys::CUstream) -> Result<()> {
        for (index, part) in bytes.chunks(STAGE_BYTES).enumerate() {
            let Stage { bytes: staged, copied } = self.stages[self.next];
            self.next = (self.next + 1) % self.stages.len();
            // SAFETY: the event lives; it counts as passed before it is first recorded.
            unsafe { result::event::synchronize(copied) }
                .map_err(|error| failed("wait for an event", error))?;
            // SAFETY: pinned memory of STAGE_BYTES that no copy reads any more.
            let staged = unsafe { std::slice::from_raw_parts_mut(staged, part.len()) };
            staged
                .par_chunks_mut(PART_BYTES)
                .zip(part.par_chunks(PART_BYTES))
                .for_each(|(to, from)| to.copy_from_slice(from));
            let to = to + (index * STAGE_BYTES) as Address;
            // SAFETY: callers write inside their buffers; the pinned memory is left alone until the event.
            unsafe {
                result::memcpy_htod_async(to, staged, self.stream)
                    .and_then(|()| result::event::record(copied, self.stream))
                    .and_then(|()| {
                        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
                        result::stream::wait_event(compute, copied, flags)
                    })
            }
            .map_err(|error| failed("take weights", error))?;
        }
        Ok(())
    }

    /// Gives all memory that weights have left back to the driver, once everything is done.
    pub fn release_unused(&mut self) -> Result<()> {
        for (address, left) in self.unused.drain().flat_map(|(_, all)| all) {
            // SAFETY: used by nobody after the event.
            unsafe {
                result::event::synchronize(left)
                    .and_then(|()| result::event::destroy(left))
                    .and_then(|()| result::free_sync(address))
            }
            .map_err(|error| failed("free memory", error))?;
        }
        Ok(())
    }

    /// Gives back everything; the context is about to go.
    pub fn close(&mut self) {
        let _ = self.release_unused();
        // SAFETY: made by `new`; nothing runs any more.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            for Stage { bytes, copied } in &self.stages {
                let _ = result::event::destroy(*copied);
                let _ = result::free_host(bytes.cast());
            }
            let _ = result::stream::destroy(self.stream);
        }
    }
}
