//! The context of a GPU with what was made in it, which goes with it.

use super::{Event, Function, failed, lock};
use crate::{Error, ErrorKind, Result};
use cudarc::driver::{DriverError, result, sys};
use std::{ffi::CString, marker::PhantomData, ptr::null_mut, sync::Mutex};

/// The primary context of a device, which other libraries of the process share.
pub struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    streams: Vec<sys::CUstream>,
    modules: Vec<sys::CUmodule>,
    events: Mutex<Vec<Event>>,
}

/// The context is the thread's current one; dropping this gives the thread back the one before, by which other libraries may go.
#[must_use]
pub struct Entered(PhantomData<*const ()>);

impl Context {
    pub fn new(device: sys::CUdevice) -> Result<Self> {
        // SAFETY: a device of this driver; `drop` releases the context.
        let context =
            unsafe { result::primary_ctx::retain(device) }.map_err(|error| failed("be used", error))?;
        let (streams, modules, events) = Default::default();
        Ok(Self { device, context, streams, modules, events })
    }

    /// Makes the GPU this thread's own for what follows.
    pub fn enter(&self) -> Result<Entered> {
        // SAFETY: the context lives as long as `self`.
        unsafe { sys::cuCtxPushCurrent_v2(self.context) }
            .result()
            .map_err(|error| failed("be used", error))?;
        Ok(Entered(PhantomData))
    }

    pub fn stream(&mut self) -> Result<sys::CUstream> {
        self.stream_of(|_| 0)
    }

    /// A stream whose blocks go before those of others.
    pub fn first_stream(&mut self) -> Result<sys::CUstream> {
        self.stream_of(|greatest| greatest)
    }

    fn stream_of(&mut self, priority: impl Fn(i32) -> i32) -> Result<sys::CUstream> {
        let _entered = self.enter()?;
        let (mut least, mut greatest, mut stream) = (0, 0, null_mut());
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes to what is passed.
        unsafe {
            sys::cuCtxGetStreamPriorityRange(&raw mut least, &raw mut greatest).result().and_then(|()| {
                sys::cuStreamCreateWithPriority(&raw mut stream, flags, priority(greatest)).result()
            })
        }
        .map_err(|error| failed("make a stream", error))?;
        self.streams.push(stream);
        Ok(stream)
    }

    /// An event that lives as long as the context.
    pub fn event(&self, flags: sys::CUevent_flags) -> Result<Event> {
        let _entered = self.enter()?;
        let event = Event::new(flags)?;
        lock(&self.events).push(event);
        Ok(event)
    }

    /// Loads one of the fatbins of this program.
    pub fn load(&mut self, image: &'static [u8]) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: nvcc made it.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
            .map_err(|error| failed("load the kernels", error))?;
        self.modules.push(module);
        Ok(())
    }

    /// A kernel of the modules that were loaded, those loaded last first.
    pub fn function(&self, kernel: &str) -> Result<Function> {
        let _entered = self.enter()?;
        let symbol = CString::new(format!("tuco_{kernel}")).expect("names of kernels hold no zero");
        for module in self.modules.iter().rev() {
            // SAFETY: modules live as long as `self`.
            match unsafe { result::module::get_function(*module, symbol.clone()) } {
                Ok(function) => return Ok(Function(function)),
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)) => {}
                // Such as that of a kernel before.
                Err(error) => return Err(failed("find a kernel", error)),
            }
        }
        Err(Error::new(ErrorKind::Device, format!("there is no kernel {kernel} in this program")))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut context = null_mut();
        // SAFETY: writes to what is passed. It was pushed in this thread, which this cannot leave.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut context) };
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Errors have nowhere to go here, and the driver tidies up after the process.
        if let Ok(_entered) = self.enter() {
            // SAFETY: all were made in this context; nothing runs any more.
            unsafe {
                for module in self.modules.drain(..) {
                    let _ = result::module::unload(module);
                }
                for Event(event) in lock(&self.events).drain(..) {
                    let _ = result::event::destroy(event);
                }
                for stream in self.streams.drain(..) {
                    let _ = result::stream::destroy(stream);
                }
            }
        }
        // SAFETY: retained by `new`, and no longer entered.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}
