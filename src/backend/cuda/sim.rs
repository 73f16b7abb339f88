//! The simulator as a device: the kernels' sources compiled as C++ (`kernels/sim/`).

use super::{
    args::{Address, TensorMap},
    device::{Boxed, Device, Fill, Kernels, Lane, Launch, Mark, Sharing},
    points::Points,
    sim_work::{Grid, Order, Work},
    transfer::{Stream, Streams, Transfer},
};
use crate::{Result, sync::lock};
use std::sync::{Arc, Mutex};

/// A number that the environment may say instead of us, so that tests see a device that is too small or breaks.
struct Variable {
    name: &'static str,
    otherwise: usize,
}

/// Bytes of a device's memory.
const MEMORY: Variable = Variable { name: "TUCO_SIM_MEMORY", otherwise: 1 << 30 };
/// Launches after which a device is lost.
const LAUNCHES: Variable = Variable { name: "TUCO_SIM_LAUNCHES", otherwise: usize::MAX };

impl Variable {
    fn read(&self) -> usize {
        match std::env::var(self.name) {
            Ok(text) => {
                text.parse().unwrap_or_else(|_| panic!("{} is {text:?}, expected a number", self.name))
            }
            Err(_) => self.otherwise,
        }
    }
}

/// A simulated device. Its memory is the host's, full of NaN when it is new; only common memory is left to others.
pub struct Sim {
    kernels: Kernels,
    work: Mutex<Work>,
    common: Mutex<Transfer<Sim>>,
    points: Points<usize>,
}

/// One lane of it.
struct SimLane {
    sim: Arc<Sim>,
    lane: Lane,
    sharing: Mutex<Sharing>,
}

impl Sim {
    /// The lanes of a new one.
    pub fn open(kernels: Kernels) -> [Arc<dyn Device>; Lane::ALL.len()] {
        let mut work = Work::new(MEMORY.read(), LAUNCHES.read());
        let points = Points::new(|| Ok(work.new_event())).expect("events of the simulator are numbers");
        let sim = Arc::new(Self { kernels, work: Mutex::new(work), common: Mutex::default(), points });
        let lane = |lane| SimLane { sim: sim.clone(), lane, sharing: Mutex::default() };
        Lane::ALL.map(|it| Arc::new(lane(it)) as Arc<dyn Device>)
    }

    /// New memory; what nobody uses is given back before there is too little.
    fn fresh(&self, bytes: usize) -> Result<Address> {
        if lock(&self.work).memory().0 < bytes {
            lock(&self.common).release_unused(self)?;
            lock(&self.work).finish_lanes()?;
        }
        lock(&self.work).alloc(bytes)
    }
}

impl SimLane {
    fn ask(&self, task: Order) -> Result<()> {
        lock(&self.sim.work).ask(Stream::Lane(self.lane), task)
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // Errors have nowhere to go here.
        let _ = lock(&self.common).close(self);
    }
}

impl Device for SimLane {
    fn name(&self) -> String {
        "simulator".into()
    }

    fn architecture(&self) -> String {
        format!("sim {}", self.sim.kernels.name())
    }

    fn kernels(&self) -> Kernels {
        self.sim.kernels
    }

    fn multiprocessors(&self) -> u32 {
        // Few, so that blocks which stay have more than one tile.
        4
    }

    fn cache_bytes(&self) -> usize {
        // Little, so that hundreds of rows are more than it holds.
        448 << 10
    }

    fn tensor_map(&self, matrix: &Boxed) -> Result<TensorMap> {
        // As the driver would refuse it.
        assert!(
            matrix.rows > 0
                && matrix.cols > 0
                && (1..=256).contains(&matrix.box_rows)
                && matrix.address.is_multiple_of(16)
                && matrix.pitch_bytes().is_multiple_of(16),
            "copies by descriptor cannot see {matrix:?}"
        );
        // SimTensor of kernels/sim/hopper.h.
        let Boxed { address, element, rows, cols, box_rows, .. } = *matrix;
        let numbers =
            [rows, cols, matrix.pitch_bytes(), box_rows as usize, matrix.box_cols(), element.size()];
        let mut map = TensorMap::default();
        map.0[0] = address;
        map.0[1..7].copy_from_slice(&numbers.map(|number| number as u64));
        Ok(map)
    }

    fn alloc(&self, bytes: usize) -> Result<(Address, usize)> {
        Ok((self.sim.fresh(bytes)?, bytes))
    }

    fn free(&self, address: Address, _bytes: usize) {
        // A GPU leaves memory to what the lane does later; where all is done in one lane, that is done there, and so is what used it.
        let joined = if self.sharing() == Sharing::One { self.join() } else { Ok(()) };
        // Nothing that is asked for here fails later.
        let _ = joined.and_then(|()| self.ask(Order::Free(address)));
    }

    fn alloc_common(&self, bytes: usize) -> Result<(Address, usize)> {
        let left = lock(&self.sim.common).take(&*self.sim, bytes)?;
        left.map_or_else(|| Ok((self.sim.fresh(bytes)?, bytes)), Ok)
    }

    fn free_common(&self, address: Address, bytes: usize) {
        // As above.
        let _ = lock(&self.sim.common).leave(&*self.sim, address, bytes);
    }

    fn upload_common(&self, to: Address, bytes: &[u8]) -> Result<()> {
        lock(&self.sim.common).upload(&*self.sim, to, bytes)
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        self.ask(Order::Write { to, bytes: bytes.to_vec() })
    }

    fn write(&self, to: Address, bytes: usize, fill: &Fill) -> Result<()> {
        lock(&self.sim.common).write(&*self.sim, Stream::Lane(self.lane), to, bytes, fill)
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        lock(&self.sim.work).finish_lanes()?;
        // SAFETY: callers read inside their buffers.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn clear(&self, at: Address, bytes: usize) -> Result<()> {
        self.ask(Order::Clear { at, bytes })
    }

    fn set_sharing(&self, sharing: Sharing) {
        *lock(&self.sharing) = sharing;
    }

    fn sharing(&self) -> Sharing {
        *lock(&self.sharing)
    }

    fn launch(&self, kernel: &str, launch: Launch, args: &[u8]) -> Result<()> {
        let Launch { grid: blocks, threads, shared_bytes, .. } = launch;
        let grid = Grid { blocks, threads, shared_bytes };
        self.ask(Order::Launch { kernel: kernel.into(), grid, args: args.to_vec() })
    }

    fn record(&self, point: usize) -> Result<()> {
        self.sim.points.record(&*self.sim, self.lane, point)
    }

    fn wait(&self, lane: Lane, point: usize) -> Result<()> {
        self.sim.points.wait(&*self.sim, self.lane, lane, point)
    }

    fn join(&self) -> Result<()> {
        self.sim.points.join(&*self.sim, self.lane)
    }

    fn mark(&self) -> Result<Mark> {
        lock(&self.sim.work).mark(self.lane).map(Mark)
    }

    fn between(&self, Mark(start): Mark, Mark(end): Mark) -> Result<f64> {
        let mut work = lock(&self.sim.work);
        Ok((work.time_of(end)? - work.time_of(start)?).as_secs_f64())
    }

    fn memory(&self) -> Result<(usize, usize)> {
        Ok(lock(&self.sim.work).memory())
    }
}

impl Streams for Sim {
    type Event = usize;

    // Few, so that weights of tests come in several copies.
    const STAGE_BYTES: usize = 4096;

    fn new_event(&self) -> Result<usize> {
        Ok(lock(&self.work).new_event())
    }

    fn drop_event(&self, _event: usize) -> Result<()> {
        Ok(())
    }

    fn record(&self, event: usize, stream: Stream) -> Result<()> {
        lock(&self.work).record(event, stream)
    }

    fn wait(&self, stream: Stream, event: usize) -> Result<()> {
        lock(&self.work).wait(stream, event)
    }

    fn finish(&self, event: usize) -> Result<()> {
        lock(&self.work).finish_event(event)
    }

    fn pin(&self, bytes: usize) -> Result<*mut u8> {
        Ok(Box::into_raw(vec![0xFF_u8; bytes].into_boxed_slice()).cast())
    }

    unsafe fn unpin(&self, pinned: *mut u8, bytes: usize) -> Result<()> {
        // SAFETY: `pin` made it so.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(pinned, bytes)) });
        Ok(())
    }

    unsafe fn copy(&self, stream: Stream, to: Address, from: &[u8]) -> Result<()> {
        lock(&self.work).ask(stream, Order::Copy { to, from: from.as_ptr(), bytes: from.len() })
    }

    fn give_back(&self, address: Address) -> Result<()> {
        lock(&self.work).ask(Stream::Lane(Lane::Context), Order::Free(address))
    }
}
