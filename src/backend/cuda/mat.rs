//! Matrices on the device.

use super::{
    args::Address,
    device::{Boxed, Buffer, Device, Lane},
    lanes::Uses,
};
use crate::Result;
use std::sync::Arc;

/// What an element is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    F32,
    Bf16,
}

impl Element {
    pub fn size(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
        }
    }

    /// As in the names of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::Bf16 => "bf16",
        }
    }
}

/// From one row to the next, in elements: whole 16 bytes for all types.
pub fn pitch(cols: usize) -> usize {
    cols.next_multiple_of(8)
}

/// A row-major matrix in device memory. Shrinking keeps the memory.
#[derive(Debug)]
pub struct CudaMat {
    /// Where it is written.
    pub lane: Lane,
    pub element: Element,
    pub rows: usize,
    pub cols: usize,
    space: Space,
    /// Where it lay before other lanes were left to read it there.
    spare: Space,
}

/// Memory of a matrix, and who uses it.
#[derive(Debug, Default)]
struct Space {
    /// `None` while it has no rows, and after a failure.
    buffer: Option<Buffer>,
    /// In rows.
    capacity: usize,
    uses: Uses,
}

impl Space {
    fn fit(&mut self, device: &Arc<dyn Device>, rows: usize, row_bytes: usize) -> Result<()> {
        if rows > self.capacity {
            self.release();
            self.buffer = Some(Buffer::new(device, rows * row_bytes)?);
            self.capacity = rows;
        }
        Ok(())
    }

    /// Gives the memory back.
    fn release(&mut self) {
        if let Some(buffer) = self.buffer.take()
            && self.uses.read_elsewhere()
        {
            // After a failure nothing runs any more.
            let _ = buffer.device().join();
        }
        self.capacity = 0;
    }
}

impl CudaMat {
    pub fn new(lane: Lane, element: Element, cols: usize) -> Self {
        let (space, spare) = Default::default();
        Self { lane, element, rows: 0, cols, space, spare }
    }

    /// Sets the number of rows; elements are undefined afterwards. Who writes it next waits for who still reads it.
    pub fn resize(&mut self, device: &Arc<dyn Device>, rows: usize) -> Result<()> {
        self.rows = rows;
        self.space.fit(device, rows, self.row_bytes())
    }

    /// Before all of it is written anew: goes to other memory where other lanes may still read this.
    pub fn renew(&mut self, device: &Arc<dyn Device>) -> Result<()> {
        if !self.space.uses.read_elsewhere() {
            return Ok(());
        }
        std::mem::swap(&mut self.space, &mut self.spare);
        self.space.fit(device, self.rows, self.row_bytes())
    }

    /// Who used it last.
    pub fn uses(&self) -> &Uses {
        &self.space.uses
    }

    pub fn pitch(&self) -> i64 {
        pitch(self.cols) as i64
    }

    pub fn row_bytes(&self) -> usize {
        pitch(self.cols) * self.element.size()
    }

    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    pub fn address(&self) -> Address {
        self.space.buffer.as_ref().map_or(0, Buffer::address)
    }

    /// As copies of boxes of `box_rows` rows see it.
    pub fn in_boxes(&self, box_rows: u32) -> Boxed {
        let pitch = self.pitch() as usize;
        let Self { element, rows, cols, .. } = *self;
        Boxed { address: self.address(), element, rows, cols, pitch, box_rows }
    }

    /// Where row `row` starts.
    pub fn row_address(&self, row: usize) -> Address {
        self.address() + (row * self.row_bytes()) as Address
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.release();
    }
}
