//! One lane of a GPU as a device.

use super::{
    super::{
        args::{Address, TensorMap},
        device::{Boxed, Device, Fill, Kernels, Lane, Launch, Mark, Sharing},
        mat::Element,
        transfer::{Stream, Streams},
    },
    Function, Gpu, failed, lock,
};
use crate::Result;
use cudarc::driver::{result, sys};
use std::{
    ffi::c_void,
    ptr::null_mut,
    sync::{Arc, Mutex},
};

/// Bytes of pageable memory that the driver copies before a copy of them returns ("API synchronization behavior").
const STAGED_BY_DRIVER: usize = 64 << 10;

pub struct GpuLane {
    gpu: Arc<Gpu>,
    lane: Lane,
    sharing: Mutex<Sharing>,
}

impl GpuLane {
    pub fn new(gpu: Arc<Gpu>, lane: Lane) -> Self {
        Self { gpu, lane, sharing: Mutex::default() }
    }

    fn stream(&self) -> sys::CUstream {
        self.gpu.stream(Stream::Lane(self.lane))
    }
}

impl Device for GpuLane {
    fn name(&self) -> String {
        format!("cuda:{} ({})", self.gpu.ordinal, self.gpu.name)
    }

    fn architecture(&self) -> String {
        let (major, minor) = self.gpu.capability;
        format!("cuda sm_{major}{minor}, kernels for {}", self.gpu.kernels.name())
    }

    fn kernels(&self) -> Kernels {
        self.gpu.kernels
    }

    fn multiprocessors(&self) -> u32 {
        self.gpu.multiprocessors
    }

    fn cache_bytes(&self) -> usize {
        self.gpu.cache_bytes
    }

    fn tensor_map(&self, matrix: &Boxed) -> Result<TensorMap> {
        use sys::{
            CUtensorMapDataType_enum as Type, CUtensorMapFloatOOBfill_enum as Fill,
            CUtensorMapInterleave_enum as Interleave, CUtensorMapL2promotion_enum as Promotion,
            CUtensorMapSwizzle_enum as Swizzle,
        };
        let element = match matrix.element {
            Element::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            Element::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let _entered = self.gpu.enter()?;
        let mut map = TensorMap::default();
        // SAFETY: all arrays are as long as the two dimensions need; `TensorMap` has the size and the alignment of the driver's.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                std::ptr::from_mut(&mut map).cast(),
                element,
                2,
                matrix.address as *mut c_void,
                [matrix.cols as u64, matrix.rows as u64].as_ptr(),
                [matrix.pitch_bytes() as u64].as_ptr(),
                [matrix.box_cols() as u32, matrix.box_rows].as_ptr(),
                [1u32, 1].as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|error| failed("take a description of a matrix", error))?;
        Ok(map)
    }

    fn alloc(&self, bytes: usize) -> Result<(Address, usize)> {
        let left = lock(&self.gpu.unused[self.lane as usize]).take(bytes);
        left.map_or_else(|| Ok((self.gpu.fresh(bytes)?, bytes)), Ok)
    }

    fn free(&self, address: Address, bytes: usize) {
        lock(&self.gpu.unused[self.lane as usize]).leave(address, bytes);
    }

    fn alloc_common(&self, bytes: usize) -> Result<(Address, usize)> {
        let left = lock(&self.gpu.common).take(&*self.gpu, bytes)?;
        left.map_or_else(|| Ok((self.gpu.fresh(bytes)?, bytes)), Ok)
    }

    fn free_common(&self, address: Address, bytes: usize) {
        // Memory that cannot be left to others is given back with the context.
        let _ = lock(&self.gpu.common).leave(&*self.gpu, address, bytes);
    }

    fn upload_common(&self, to: Address, bytes: &[u8]) -> Result<()> {
        lock(&self.gpu.common).upload(&*self.gpu, to, bytes)
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        if bytes.len() > STAGED_BY_DRIVER {
            return self
                .write(to, bytes.len(), &|at, part| part.copy_from_slice(&bytes[at..at + part.len()]));
        }
        let _entered = self.gpu.enter()?;
        // SAFETY: callers write inside their buffers. The driver has read so few bytes when the call returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream()) }
            .map_err(|error| failed("take data", error))
    }

    fn write(&self, to: Address, bytes: usize, fill: &Fill) -> Result<()> {
        lock(&self.gpu.common).write(&*self.gpu, Stream::Lane(self.lane), to, bytes, fill)
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        let _entered = self.gpu.enter()?;
        self.gpu.synchronize()?;
        // SAFETY: callers read inside their buffers; `bytes` outlives the copy, which is waited for.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream()) }
            .and_then(|()| unsafe { result::stream::synchronize(self.stream()) })
            .map_err(|error| failed("give data", error))
    }

    fn clear(&self, at: Address, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _entered = self.gpu.enter()?;
        // SAFETY: callers write inside their buffers.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream()) }
            .map_err(|error| failed("clear memory", error))
    }

    fn set_sharing(&self, sharing: Sharing) {
        *lock(&self.sharing) = sharing;
    }

    fn sharing(&self) -> Sharing {
        *lock(&self.sharing)
    }

    fn launch(&self, kernel: &str, launch: Launch, args: &[u8]) -> Result<()> {
        let _entered = self.gpu.enter()?;
        let [x, y, z] = launch.grid;
        let mut params = [args.as_ptr().cast_mut().cast::<c_void>()];
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: Default::default(), value };
        use sys::CUlaunchAttributeID as Id;
        let mut attribute = match self.sharing() {
            Sharing::Room => {
                // A multiprocessor divides its memory anew only when it is idle: all kernels agree, so that blocks of several find room.
                let value = sys::CUlaunchAttributeValue { sharedMemCarveout: 100 };
                Some(attribute(Id::CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, value))
            }
            Sharing::One if self.gpu.kernels == Kernels::Sm90a => {
                // Blocks start while those of the kernel before end, for which kernels wait themselves (kernels/ptx.cuh). Beside other lanes
                // they would wait in those lanes' room.
                let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
                Some(attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value))
            }
            Sharing::One | Sharing::Tails => None,
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream(),
            numAttrs: attribute.is_some().into(),
            attrs: attribute.as_mut().map_or(null_mut(), std::ptr::from_mut),
        };
        // The driver may take memory for a kernel when it is first run.
        self.gpu.making_room(|| {
            let Function(function) = self.gpu.function(kernel)?;
            // SAFETY: the kernel takes one struct, of which `args` are the bytes; addresses in it are of live buffers, whose
            // memory is only used again by work behind this in the stream.
            unsafe { sys::cuLaunchKernelEx(&raw const config, function, params.as_mut_ptr(), null_mut()) }
                .result()
                .map_err(|error| failed(&format!("run kernel {kernel}"), error))
        })
    }

    fn record(&self, point: usize) -> Result<()> {
        self.gpu.points.record(&*self.gpu, self.lane, point)
    }

    fn wait(&self, lane: Lane, point: usize) -> Result<()> {
        self.gpu.points.wait(&*self.gpu, self.lane, lane, point)
    }

    fn join(&self) -> Result<()> {
        self.gpu.points.join(&*self.gpu, self.lane)
    }

    fn mark(&self) -> Result<Mark> {
        let _entered = self.gpu.enter()?;
        let event = self.gpu.context.event(sys::CUevent_flags::CU_EVENT_DEFAULT)?;
        self.gpu.record(event, Stream::Lane(self.lane))?;
        let mut marks = lock(&self.gpu.marks);
        marks.push(event);
        Ok(Mark(marks.len() - 1))
    }

    fn between(&self, Mark(start): Mark, Mark(end): Mark) -> Result<f64> {
        let _entered = self.gpu.enter()?;
        self.gpu.synchronize()?;
        let marks = lock(&self.gpu.marks);
        // SAFETY: both were recorded in this context.
        unsafe { result::event::elapsed(marks[start].0, marks[end].0) }
            .map(|milliseconds| f64::from(milliseconds) / 1e3)
            .map_err(|error| failed("tell a time", error))
    }

    fn memory(&self) -> Result<(usize, usize)> {
        let _entered = self.gpu.enter()?;
        result::mem_get_info().map_err(|error| failed("tell its memory", error))
    }
}
