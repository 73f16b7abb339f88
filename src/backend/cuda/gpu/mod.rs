//! A GPU as a device, through the driver's library, which is loaded when it is asked for: the same program starts where
//! there is none.

mod context;
mod lane;

use super::{
    args::Address,
    device::{Device, Kernels, Lane},
    points::Points,
    pool::Pool,
    transfer::{Stream, Streams, Transfer},
};
use crate::{Error, ErrorKind, Result, sync::lock};
use context::{Context, Entered};
use cudarc::driver::{DriverError, result, sys};
use lane::GpuLane;
use std::{
    collections::HashMap,
    ffi::c_void,
    sync::{Arc, Mutex},
};

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// The oldest GPUs that kernels are compiled for.
const OLDEST: (i32, i32) = (8, 0);
/// The oldest driver that loads what this version of nvcc makes, as it numbers itself.
const OLDEST_DRIVER: i32 = 13_000;
/// The one that runs kernels for sm_90a.
const HOPPER: (i32, i32) = (9, 0);

/// One GPU, a stream of work on it for each lane and one of copies.
struct Gpu {
    ordinal: usize,
    name: String,
    capability: (i32, i32),
    kernels: Kernels,
    multiprocessors: u32,
    cache_bytes: usize,
    device: sys::CUdevice,
    context: Context,
    lanes: [sys::CUstream; Lane::ALL.len()],
    copies: sys::CUstream,
    points: Points<Event>,
    functions: Mutex<HashMap<String, Function>>,
    marks: Mutex<Vec<Event>>,
    /// Memory that nobody uses, by the lane that left it, which can use it again at once.
    unused: [Mutex<Pool<Address>>; Lane::ALL.len()],
    common: Mutex<Transfer<Gpu>>,
}

#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

#[derive(Clone, Copy)]
pub struct Event(sys::CUevent);

// SAFETY: handles of the driver may be used from any thread that has entered the context, as every method does.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Send for Gpu {}
// SAFETY: as above; what changes lies behind mutexes.
unsafe impl Sync for Gpu {}

pub fn failed(what: &str, error: DriverError) -> Error {
    let kind = match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        _ => ErrorKind::Device,
    };
    Error::new(kind, format!("the GPU cannot {what}: {}", said(error)))
}

/// What the driver says of an error, and its name.
fn said(error: DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{text} ({:?})", error.0)
}

/// How many GPUs the driver shows (`CUDA_VISIBLE_DEVICES`).
///
/// # Errors
/// [`ErrorKind::Device`]: there is no driver, or none of its GPUs can be seen.
pub fn count() -> Result<usize> {
    let none = |why: String| Error::new(ErrorKind::Device, why);
    // SAFETY: only looks for the library; cudarc would panic without it.
    if !unsafe { sys::is_culib_present() } {
        return Err(none("there is no NVIDIA driver (libcuda.so.1) on this machine".into()));
    }
    let visible = match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(devices) => format!(" (CUDA_VISIBLE_DEVICES is {devices:?})"),
        Err(_) => String::new(),
    };
    match result::init().and_then(|()| result::device::get_count()) {
        // That is how a driver starts where it may show none.
        Ok(0) | Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => {
            Err(none(format!("the NVIDIA driver shows no GPU{visible}")))
        }
        Ok(count) => Ok(count as usize),
        Err(error) => Err(none(format!("the NVIDIA driver does not start{visible}: {}", said(error)))),
    }
}

/// # Errors
/// [`ErrorKind::Device`] for a driver that does not load what the kernels were compiled to.
fn check_driver() -> Result<()> {
    let mut version = 0;
    // SAFETY: writes to what is passed.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|error| failed("tell its driver", error))?;
    if version >= OLDEST_DRIVER {
        return Ok(());
    }
    let named = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    let message = format!(
        "the NVIDIA driver is for CUDA {}; the kernels need one for CUDA {} (580) or newer",
        named(version),
        named(OLDEST_DRIVER)
    );
    Err(Error::new(ErrorKind::Device, message))
}

/// The lanes of GPU `ordinal` of those that the driver shows.
///
/// # Errors
/// See [`count`]; [`ErrorKind::Usage`] for a number beyond it and for kernels that the GPU does not run;
/// [`ErrorKind::Device`] for a GPU or driver that is too old.
pub fn open(ordinal: usize, kernels: Option<Kernels>) -> Result<[Arc<dyn Device>; Lane::ALL.len()]> {
    let gpu = Arc::new(Gpu::open(ordinal, kernels)?);
    Ok(Lane::ALL.map(|lane| Arc::new(GpuLane::new(gpu.clone(), lane)) as Arc<dyn Device>))
}

impl Gpu {
    fn open(ordinal: usize, kernels: Option<Kernels>) -> Result<Self> {
        let count = count()?;
        check_driver()?;
        if ordinal >= count {
            let message = format!("--device cuda:{ordinal}: the driver shows {count} GPUs, from cuda:0");
            return Err(Error::usage(message));
        }
        let device = result::device::get(ordinal as i32).map_err(|error| failed("be opened", error))?;
        let name = result::device::get_name(device).map_err(|error| failed("tell its name", error))?;
        let attribute = |attribute| {
            // SAFETY: a device of this driver.
            unsafe { result::device::get_attribute(device, attribute) }
                .map_err(|error| failed("tell what it is", error))
        };
        use sys::CUdevice_attribute_enum as Attribute;
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < OLDEST {
            let (major, minor) = capability;
            return Err(Error::new(
                ErrorKind::Device,
                format!(
                    "cuda:{ordinal}, {name}, has compute capability {major}.{minor}; 8.0 (Ampere) is the least"
                ),
            ));
        }
        let newest = if capability == HOPPER { Kernels::Sm90a } else { Kernels::Sm80 };
        let kernels = kernels.unwrap_or(newest);
        if kernels == Kernels::Sm90a && newest != kernels {
            let (major, minor) = capability;
            return Err(Error::usage(format!(
                "cuda:{ordinal}, {name}, does not run the kernels for sm_90a: its compute capability is {major}.{minor}, not 9.0"
            )));
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        let cache_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize;
        let mut context = Context::new(device)?;
        // Blocks of the context's products come first where there is room for one: they are the larger ones.
        let lanes = [context.first_stream()?, context.first_stream()?, context.stream()?, context.stream()?];
        let copies = context.stream()?;
        let points = Points::new(|| context.event(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING))?;
        for (image, is_for_hopper) in FATBINS {
            if !is_for_hopper || kernels == Kernels::Sm90a {
                context.load(image)?;
            }
        }
        let (functions, marks, unused, common) = Default::default();
        Ok(Self {
            ordinal,
            name,
            capability,
            kernels,
            multiprocessors,
            cache_bytes,
            device,
            context,
            lanes,
            copies,
            points,
            functions,
            marks,
            unused,
            common,
        })
    }

    /// Makes the GPU this thread's own for what follows.
    fn enter(&self) -> Result<Entered> {
        self.context.enter()
    }

    fn stream(&self, stream: Stream) -> sys::CUstream {
        match stream {
            Stream::Lane(lane) => self.lanes[lane as usize],
            Stream::Copies => self.copies,
        }
    }

    /// Waits for all lanes.
    fn synchronize(&self) -> Result<()> {
        self.lanes.iter().try_for_each(|stream| {
            // SAFETY: streams live as long as `self`.
            unsafe { result::stream::synchronize(*stream) }.map_err(|error| failed("finish its work", error))
        })
    }

    fn function(&self, kernel: &str) -> Result<Function> {
        let mut functions = lock(&self.functions);
        if let Some(function) = functions.get(kernel) {
            return Ok(*function);
        }
        let Function(function) = self.context.function(kernel)?;
        use sys::CUfunction_attribute_enum as Attribute;
        let set = |attribute, value| {
            // SAFETY: a function of a loaded module.
            unsafe { result::function::set_function_attribute(function, attribute, value) }
                .map_err(|error| failed("give a kernel its shared memory", error))
        };
        set(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most_shared_bytes(self.device)?)?;
        // As many blocks as stay have to find room at a time.
        if kernel.contains("_sm90") {
            set(Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100)?;
        }
        functions.insert(kernel.into(), Function(function));
        Ok(Function(function))
    }

    /// Memory from the driver.
    fn fresh(&self, bytes: usize) -> Result<Address> {
        let _entered = self.enter()?;
        // SAFETY: no preconditions.
        let alloc = || unsafe { result::malloc_sync(bytes) };
        self.making_room(|| {
            alloc().map_err(|error| failed(&format!("allocate {} MiB", bytes.div_ceil(1 << 20)), error))
        })
    }

    /// Does what may find too little memory: then once more, when all that is unused was given back.
    fn making_room<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        work().or_else(|error| match error.kind {
            ErrorKind::OutOfMemory => {
                self.release_unused()?;
                work()
            }
            _ => Err(error),
        })
    }

    /// Gives all unused memory back to the driver.
    fn release_unused(&self) -> Result<()> {
        self.synchronize()?;
        lock(&self.common).release_unused(self)?;
        let of_lane = |unused: &Mutex<Pool<Address>>| lock(unused).drain();
        self.unused.iter().flat_map(of_lane).try_for_each(|address| self.give_back(address))
    }
}

impl Event {
    fn new(flags: sys::CUevent_flags) -> Result<Self> {
        result::event::create(flags).map(Event).map_err(|error| failed("make an event", error))
    }
}

impl Streams for Gpu {
    type Event = Event;

    const STAGE_BYTES: usize = 32 << 20;

    fn new_event(&self) -> Result<Event> {
        let _entered = self.enter()?;
        Event::new(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn drop_event(&self, Event(event): Event) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: made by `new_event`, dropped once; the driver keeps it until it is passed.
        unsafe { result::event::destroy(event) }.map_err(|error| failed("drop an event", error))
    }

    fn record(&self, Event(event): Event, stream: Stream) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: both live.
        unsafe { result::event::record(event, self.stream(stream)) }
            .map_err(|error| failed("record an event", error))
    }

    fn wait(&self, stream: Stream, Event(event): Event) -> Result<()> {
        let _entered = self.enter()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live.
        unsafe { result::stream::wait_event(self.stream(stream), event, flags) }
            .map_err(|error| failed("wait for an event", error))
    }

    fn finish(&self, Event(event): Event) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: it lives.
        unsafe { result::event::synchronize(event) }.map_err(|error| failed("wait for an event", error))
    }

    fn pin(&self, bytes: usize) -> Result<*mut u8> {
        let _entered = self.enter()?;
        // SAFETY: no preconditions.
        let pinned = unsafe { result::malloc_host(bytes, 0) };
        // Fewer rows at a time would not help the host.
        let failed = |error| Error { kind: ErrorKind::Device, ..failed("pin memory of the host", error) };
        pinned.map(<*mut c_void>::cast).map_err(failed)
    }

    unsafe fn unpin(&self, pinned: *mut u8, _bytes: usize) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the caller's.
        unsafe { result::free_host(pinned.cast()) }.map_err(|error| failed("free memory of the host", error))
    }

    unsafe fn copy(&self, stream: Stream, to: Address, from: &[u8]) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the caller's.
        unsafe { result::memcpy_htod_async(to, from, self.stream(stream)) }
            .map_err(|error| failed("take data", error))
    }

    fn give_back(&self, address: Address) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: allocated by `fresh`, used by nobody.
        unsafe { result::free_sync(address) }.map_err(|error| failed("free memory", error))
    }
}

/// What a block may have at most.
fn most_shared_bytes(device: sys::CUdevice) -> Result<i32> {
    let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    // SAFETY: a device of this driver.
    unsafe { result::device::get_attribute(device, attribute) }
        .map_err(|error| failed("tell what it is", error))
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Errors have nowhere to go here, and the driver tidies up after the process.
        let Ok(_entered) = self.enter() else { return };
        let _ = self.release_unused();
        let _ = lock(&self.common).close(self);
    }
}
