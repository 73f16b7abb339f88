//! What a simulated device was asked for and has not done yet. Like a GPU it need not do anything before somebody waits for
//! it: kernels run as late as they may. So do copies from pinned memory, but one of four is done at once, with those before it, as
//! far as they need not wait: a wait that is missing on either side shows.

use super::{args::Address, transfer::Stream};
use crate::{Error, ErrorKind, Result};
use std::{
    collections::VecDeque,
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

pub enum Task {
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
    Record(usize),
    /// Until the event was passed so many times.
    Wait {
        event: usize,
        times: usize,
    },
}

/// How many times an event was recorded and passed, and the stream that it was last recorded in.
struct Event {
    recorded: usize,
    passed: usize,
    stream: Stream,
}

pub struct Work {
    device: *mut c_void,
    compute: VecDeque<Task>,
    copies: VecDeque<Task>,
    events: Vec<Event>,
    marks: Vec<Option<Instant>>,
    /// How many copies were asked for.
    copies_asked: usize,
}

// SAFETY: the device and pinned memory belong to the process; one thread at a time uses them.
unsafe impl Send for Work {}

impl Work {
    pub fn new() -> Self {
        let (compute, copies, events, marks) = Default::default();
        // SAFETY: no preconditions.
        Self { device: unsafe { sim_open() }, compute, copies, events, marks, copies_asked: 0 }
    }

    pub fn alloc(&mut self, bytes: usize) -> Address {
        // SAFETY: the device is open.
        (unsafe { sim_alloc(self.device, bytes) }) as Address
    }

    fn queue(&mut self, stream: Stream) -> &mut VecDeque<Task> {
        match stream {
            Stream::Compute => &mut self.compute,
            Stream::Copies => &mut self.copies,
        }
    }

    /// Asks for something.
    pub fn ask(&mut self, stream: Stream, task: Task) -> Result<()> {
        let is_copy = matches!(task, Task::Copy { .. });
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

    pub fn new_event(&mut self) -> usize {
        self.events.push(Event { recorded: 0, passed: 0, stream: Stream::Compute });
        self.events.len() - 1
    }

    pub fn record(&mut self, event: usize, stream: Stream) -> Result<()> {
        let Event { recorded, stream: last, .. } = &mut self.events[event];
        (*recorded, *last) = (*recorded + 1, stream);
        self.ask(stream, Task::Record(event))
    }

    pub fn wait(&mut self, stream: Stream, event: usize) -> Result<()> {
        let times = self.events[event].recorded;
        self.ask(stream, Task::Wait { event, times })
    }

    /// Does what an event needs, in the stream that it was recorded in.
    pub fn finish_event(&mut self, event: usize) -> Result<()> {
        while self.events[event].passed < self.events[event].recorded {
            self.step(self.events[event].stream)?;
        }
        Ok(())
    }

    pub fn mark(&mut self) -> Result<usize> {
        self.marks.push(None);
        let mark = self.marks.len() - 1;
        self.ask(Stream::Compute, Task::Mark(mark))?;
        Ok(mark)
    }

    /// When it was passed.
    pub fn time_of(&mut self, mark: usize) -> Result<Instant> {
        self.finish(Stream::Compute)?;
        Ok(self.marks[mark].expect("all work is done"))
    }

    /// Does the next task of a stream, or, where that has to wait, the next of the other.
    fn step(&mut self, stream: Stream) -> Result<()> {
        let must_wait = match self.queue(stream).front() {
            Some(&Task::Wait { event, times }) => self.events[event].passed < times,
            _ => false,
        };
        if must_wait {
            let other = match stream {
                Stream::Compute => Stream::Copies,
                Stream::Copies => Stream::Compute,
            };
            assert!(!self.queue(other).is_empty(), "both streams wait for each other");
            return self.step(other);
        }
        match self.queue(stream).pop_front() {
            Some(task) => self.perform(task),
            None => Ok(()),
        }
    }

    fn perform(&mut self, task: Task) -> Result<()> {
        match task {
            // SAFETY: callers write inside their buffers; guards around them are checked at the next launch.
            Task::Write { to, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len());
            },
            // SAFETY: as above; `from` is pinned memory that callers leave alone.
            Task::Copy { to, from, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(from, to as *mut u8, bytes);
            },
            // SAFETY: as above.
            Task::Clear { at, bytes } => unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) },
            Task::Launch { kernel, grid, args } => return self.launch(&kernel, &grid, &args),
            // SAFETY: allocated by `alloc`; the simulator stops the program if not.
            Task::Free(address) => unsafe { sim_free(self.device, address as *mut c_void) },
            Task::Mark(mark) => self.marks[mark] = Some(Instant::now()),
            Task::Record(event) => self.events[event].passed += 1,
            Task::Wait { .. } => {}
        }
        Ok(())
    }

    fn launch(&self, kernel: &str, grid: &Grid, args: &[u8]) -> Result<()> {
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
