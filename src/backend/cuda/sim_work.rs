//! What a simulated device was asked for and has not done yet. Like a GPU it need not do anything before somebody waits for
//! it: kernels run as late as they may. So do copies from pinned memory, but one of four is done at once, with those before it, as
//! far as they need not wait. Lanes take turns of changing length. So a wait that is missing on either side shows.

use super::{args::Address, device::Lane, transfer::Stream};
use crate::{Error, ErrorKind, Result};
use std::{
    collections::{HashMap, VecDeque},
    ffi::{CString, c_char, c_int, c_void},
    time::Instant,
};

/// One copy of so many is done at once. More than there are pinned buffers, so that one that is written too soon shows.
const COPIES_A_TURN: usize = 4;

#[repr(C)]
pub struct Grid {
    pub blocks: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
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

pub enum Order {
    /// Writes what was read when it was asked for.
    Write {
        to: Address,
        bytes: Vec<u8>,
    },
    /// Reads pinned memory when it is done.
    Copy {
        to: Address,
        from: *const u8,
        bytes: usize,
    },
    Clear {
        at: Address,
        bytes: usize,
    },
    Launch {
        kernel: String,
        grid: Grid,
        args: Vec<u8>,
    },
    Free(Address),
    /// Takes the time.
    Mark(usize),
    Record(Moment),
    /// Until it is passed.
    Wait(Moment),
}

/// One of the times that an event was recorded.
#[derive(Clone, Copy)]
pub struct Moment {
    event: usize,
    time: usize,
}

/// The stream that an event was recorded in, and whether that was passed.
struct Recorded {
    stream: Stream,
    passed: bool,
}

pub struct Work {
    device: *mut c_void,
    /// Bytes that it has.
    capacity: usize,
    used: HashMap<Address, usize>,
    /// Launches until it is lost.
    launches_left: usize,
    /// Of the lanes, and of copies.
    queues: [VecDeque<Order>; Lane::ALL.len() + 1],
    /// Each time that each event was recorded.
    events: Vec<Vec<Recorded>>,
    marks: Vec<Option<Instant>>,
    /// How many copies were asked for.
    copies_asked: usize,
    /// What the next lane and the length of its turn are taken from.
    turns: u32,
}

// SAFETY: the device and pinned memory belong to the process; one thread at a time uses them.
unsafe impl Send for Work {}

impl Work {
    /// A device of so many bytes that is lost after so many launches.
    pub fn new(capacity: usize, launches_left: usize) -> Self {
        let (used, queues, events, marks) = Default::default();
        // SAFETY: no preconditions.
        let device = unsafe { sim_open() };
        Self { device, capacity, used, launches_left, queues, events, marks, copies_asked: 0, turns: 1 }
    }

    /// What is free, and all.
    pub fn memory(&self) -> (usize, usize) {
        (self.capacity - self.used.values().sum::<usize>(), self.capacity)
    }

    pub fn alloc(&mut self, bytes: usize) -> Result<Address> {
        let (free, _) = self.memory();
        if bytes > free {
            let message = format!("cannot allocate {bytes} bytes, {free} are free");
            return Err(Error::new(ErrorKind::OutOfMemory, message));
        }
        // SAFETY: the device is open.
        let address = (unsafe { sim_alloc(self.device, bytes) }) as Address;
        self.used.insert(address, bytes);
        Ok(address)
    }

    fn queue(&mut self, stream: Stream) -> &mut VecDeque<Order> {
        match stream {
            Stream::Lane(lane) => &mut self.queues[lane as usize],
            Stream::Copies => &mut self.queues[Lane::ALL.len()],
        }
    }

    /// Asks for something.
    pub fn ask(&mut self, stream: Stream, task: Order) -> Result<()> {
        let is_copy = matches!(task, Order::Copy { .. });
        self.queue(stream).push_back(task);
        if is_copy {
            self.copies_asked += 1;
            if self.copies_asked.is_multiple_of(COPIES_A_TURN) {
                return self.finish(stream);
            }
        }
        Ok(())
    }

    /// Does all that a stream was asked for.
    pub fn finish(&mut self, stream: Stream) -> Result<()> {
        while !self.queue(stream).is_empty() {
            self.step(stream)?;
        }
        Ok(())
    }

    /// Does all that the lanes were asked for.
    pub fn finish_lanes(&mut self) -> Result<()> {
        while Lane::ALL.into_iter().any(|lane| !self.queue(Stream::Lane(lane)).is_empty()) {
            // As in C's manual.
            self.turns = self.turns.wrapping_mul(1_103_515_245).wrapping_add(12345);
            let (lane, length) =
                (Lane::ALL[(self.turns >> 16) as usize % Lane::ALL.len()], 1 << ((self.turns >> 20) % 8));
            for _ in 0..length {
                self.step(Stream::Lane(lane))?;
            }
        }
        Ok(())
    }

    pub fn new_event(&mut self) -> usize {
        self.events.push(Vec::new());
        self.events.len() - 1
    }

    pub fn record(&mut self, event: usize, stream: Stream) -> Result<()> {
        let time = self.events[event].len();
        self.events[event].push(Recorded { stream, passed: false });
        self.ask(stream, Order::Record(Moment { event, time }))
    }

    /// When an event was recorded last.
    fn last(&self, event: usize) -> Option<Moment> {
        self.events[event].len().checked_sub(1).map(|time| Moment { event, time })
    }

    fn recorded(&mut self, Moment { event, time }: Moment) -> &mut Recorded {
        &mut self.events[event][time]
    }

    pub fn wait(&mut self, stream: Stream, event: usize) -> Result<()> {
        self.last(event).map_or(Ok(()), |last| self.ask(stream, Order::Wait(last)))
    }

    /// Does what an event needs, in the stream that it was recorded in.
    pub fn finish_event(&mut self, event: usize) -> Result<()> {
        let Some(last) = self.last(event) else { return Ok(()) };
        while let Recorded { stream, passed: false } = *self.recorded(last) {
            self.step(stream)?;
        }
        Ok(())
    }

    pub fn mark(&mut self, lane: Lane) -> Result<usize> {
        self.marks.push(None);
        let mark = self.marks.len() - 1;
        self.ask(Stream::Lane(lane), Order::Mark(mark))?;
        Ok(mark)
    }

    /// When it was passed.
    pub fn time_of(&mut self, mark: usize) -> Result<Instant> {
        self.finish_lanes()?;
        Ok(self.marks[mark].expect("all work is done"))
    }

    /// Does the next task of a stream, or, where that has to wait, the next of the stream that it waits for.
    fn step(&mut self, stream: Stream) -> Result<()> {
        if let Some(Order::Wait(moment)) = self.queue(stream).front() {
            let moment = *moment;
            if let Recorded { stream: other, passed: false } = *self.recorded(moment) {
                assert!(other != stream, "a stream waits for itself");
                return self.step(other);
            }
        }
        match self.queue(stream).pop_front() {
            Some(task) => self.perform(task),
            None => Ok(()),
        }
    }

    fn perform(&mut self, task: Order) -> Result<()> {
        match task {
            // SAFETY: callers write inside their buffers; guards around them are checked at the next launch.
            Order::Write { to, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len());
            },
            // SAFETY: as above; `from` is pinned memory that callers leave alone.
            Order::Copy { to, from, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(from, to as *mut u8, bytes);
            },
            // SAFETY: as above.
            Order::Clear { at, bytes } => unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) },
            Order::Launch { kernel, grid, args } => return self.launch(&kernel, &grid, &args),
            Order::Free(address) => {
                self.used.remove(&address);
                // SAFETY: allocated by `alloc`; the simulator stops the program if not.
                unsafe { sim_free(self.device, address as *mut c_void) }
            }
            Order::Mark(mark) => self.marks[mark] = Some(Instant::now()),
            Order::Record(moment) => self.recorded(moment).passed = true,
            Order::Wait(_) => {}
        }
        Ok(())
    }

    fn launch(&mut self, kernel: &str, grid: &Grid, args: &[u8]) -> Result<()> {
        let lost = || Error::new(ErrorKind::Device, "the device is lost");
        self.launches_left = self.launches_left.checked_sub(1).ok_or_else(lost)?;
        let name = CString::new(kernel).expect("names of kernels hold no zero");
        // SAFETY: the simulator checks the name, the size of the arguments and the threads.
        let code = unsafe { sim_launch(self.device, name.as_ptr(), grid, args.as_ptr().cast(), args.len()) };
        let message = match code {
            0 => return Ok(()),
            1 => format!("there is no kernel {kernel}"),
            _ => format!(
                "kernel {kernel} takes other arguments than {} bytes or not {} threads",
                args.len(),
                grid.threads
            ),
        };
        Err(Error::new(ErrorKind::Device, message))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: opened by `new`, closed once.
        unsafe { sim_close(self.device) };
    }
}
