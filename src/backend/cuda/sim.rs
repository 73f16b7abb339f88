//! The simulator as a device: the kernels' sources compiled as C++ (`kernels/sim/`).

use super::{
    args::{Address, TensorMap},
    device::{Boxed, Device, Kernels, Launch, Mark},
};
use crate::{Error, ErrorKind, Result};
use std::{
    ffi::{CString, c_char, c_int, c_void},
    sync::Mutex,
    time::Instant,
};

#[repr(C)]
struct Grid {
    blocks: [u32; 3],
    threads: u32,
    shared_bytes: u32,
}

unsafe extern "C" {
    fn sim_open() -> *mut c_void;
    fn sim_close(device: *mut c_void);
    fn sim_alloc(device: *mut c_void, bytes: usize) -> *mut c_void;
    fn sim_free(device: *mut c_void, data: *mut c_void);
    fn sim_launch(
        device: *mut c_void,
        name: *const c_char,
        grid: *const Grid,
        args: *const c_void,
        bytes: usize,
    ) -> c_int;
}

/// A simulated device. Its memory is the host's, full of NaN when it is new and never used twice.
pub struct Sim {
    handle: Mutex<Handle>,
    kernels: Kernels,
    marks: Mutex<Vec<Instant>>,
}

struct Handle(*mut c_void);

// SAFETY: one thread at a time uses it, which the mutex sees to.
unsafe impl Send for Handle {}

impl Sim {
    pub fn new(kernels: Kernels) -> Self {
        // SAFETY: no preconditions.
        Self { handle: Mutex::new(Handle(unsafe { sim_open() })), kernels, marks: Mutex::default() }
    }

    fn with<T>(&self, work: impl FnOnce(*mut c_void) -> T) -> T {
        let handle = self.handle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        work(handle.0)
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // SAFETY: opened by `new`, closed once.
        self.with(|handle| unsafe { sim_close(handle) });
    }
}

impl Device for Sim {
    fn name(&self) -> String {
        "simulator".into()
    }

    fn architecture(&self) -> String {
        format!("sim {}", self.kernels.name())
    }

    fn kernels(&self) -> Kernels {
        self.kernels
    }

    fn multiprocessors(&self) -> u32 {
        // Few, so that blocks which stay have more than one tile.
        4
    }

    fn tensor_map(&self, matrix: &Boxed) -> Result<TensorMap> {
        // SimTensor of kernels/sim/hopper.h.
        let Boxed { address, element, rows, cols, box_rows, .. } = *matrix;
        let numbers =
            [rows, cols, matrix.pitch_bytes(), box_rows as usize, matrix.box_cols(), element.size()];
        let mut map = TensorMap::default();
        map.0[0] = address;
        map.0[1..7].copy_from_slice(&numbers.map(|number| number as u64));
        Ok(map)
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        // SAFETY: the handle is open.
        Ok(self.with(|handle| unsafe { sim_alloc(handle, bytes) }) as Address)
    }

    fn free(&self, address: Address, _bytes: usize) {
        // SAFETY: allocated by `alloc`; the simulator stops the program if not.
        self.with(|handle| unsafe { sim_free(handle, address as *mut c_void) });
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        // SAFETY: callers write inside their buffers; guards around them are checked at the next launch.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: callers read inside their buffers.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn clear(&self, at: Address, bytes: usize) -> Result<()> {
        // SAFETY: callers write inside their buffers.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }

    fn launch(&self, kernel: &str, launch: Launch, args: &[u8]) -> Result<()> {
        let Launch { grid: blocks, threads, shared_bytes, .. } = launch;
        let grid = Grid { blocks, threads, shared_bytes };
        let name = CString::new(kernel).expect("names of kernels hold no zero");
        // SAFETY: the simulator checks the name, the size of the arguments and the threads.
        let code = self.with(|handle| unsafe {
            sim_launch(handle, name.as_ptr(), &grid, args.as_ptr().cast(), args.len())
        });
        match code {
            0 => Ok(()),
            1 => Err(Error::new(ErrorKind::Device, format!("there is no kernel {kernel}"))),
            _ => Err(Error::new(
                ErrorKind::Device,
                format!(
                    "kernel {kernel} takes other arguments than {} bytes or not {threads} threads",
                    args.len()
                ),
            )),
        }
    }

    fn mark(&self) -> Result<Mark> {
        let mut marks = self.marks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        marks.push(Instant::now());
        Ok(Mark(marks.len() - 1))
    }

    fn between(&self, Mark(start): Mark, Mark(end): Mark) -> Result<f64> {
        let marks = self.marks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok((marks[end] - marks[start]).as_secs_f64())
    }

    fn memory(&self) -> Result<(usize, usize)> {
        Ok((1 << 30, 1 << 30))
    }
}
