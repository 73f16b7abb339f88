//! What all lanes read on its way to a device while it computes: a stream of copies from pinned memory, and memory that one layer's
//! weights leave to another's. What else is large goes through the same pinned memory.

use super::{
    args::Address,
    device::{Fill, Lane},
    pool::Pool,
};
use crate::Result;
use rayon::prelude::*;
use std::collections::VecDeque;

/// Bytes that one thread writes at a time.
const PART_BYTES: usize = 1 << 20;

/// Work that is done in the order it is asked for, after the call that asks for it has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Kernels, and what they read and write.
    Lane(Lane),
    /// What all lanes read on its way.
    Copies,
}

/// A device with its streams, and events by which one waits for another.
pub trait Streams {
    /// Counts as passed before it is first recorded.
    type Event: Copy + Send;

    /// Bytes of each of the two pinned buffers: one is filled while the other is copied.
    const STAGE_BYTES: usize;

    fn new_event(&self) -> Result<Self::Event>;

    /// What waits for it goes on waiting.
    fn drop_event(&self, event: Self::Event) -> Result<()>;

    /// The event is passed when all that the stream was asked for so far is done.
    fn record(&self, event: Self::Event, stream: Stream) -> Result<()>;

    /// What the stream is asked for from now on waits for the event as it was last recorded.
    fn wait(&self, stream: Stream, event: Self::Event) -> Result<()>;

    /// The host waits for it.
    fn finish(&self, event: Self::Event) -> Result<()>;

    /// Memory of the host that copies read.
    fn pin(&self, bytes: usize) -> Result<*mut u8>;

    /// # Safety
    /// `pinned` comes from [`Streams::pin`] of as many bytes, and no copy reads it any more.
    unsafe fn unpin(&self, pinned: *mut u8, bytes: usize) -> Result<()>;

    /// Copies in this stream.
    ///
    /// # Safety
    /// `to` is memory of the device, and `from` pinned memory that stays as it is until the copy is done.
    unsafe fn copy(&self, stream: Stream, to: Address, from: &[u8]) -> Result<()>;

    /// Memory of the device that nobody uses goes back.
    fn give_back(&self, address: Address) -> Result<()>;
}

/// Common memory, and what is on its way to it.
pub struct Transfer<S: Streams> {
    /// Two, made when they are first needed; the one that was written last comes last.
    stages: VecDeque<Stage<S::Event>>,
    /// Events that nobody waits for.
    spare: Vec<S::Event>,
    /// Memory that nobody will read any more.
    unused: Pool<Left<S::Event>>,
}

/// Memory, and what every lane has to be done with before it is written again.
struct Left<E> {
    address: Address,
    done: [E; Lane::ALL.len()],
}

/// Pinned memory, and when its last copy is done.
#[derive(Clone, Copy)]
struct Stage<E> {
    bytes: *mut u8,
    copied: E,
}

// SAFETY: pinned memory belongs to the process, not to a thread.
unsafe impl<E: Send> Send for Stage<E> {}

impl<S: Streams> Default for Transfer<S> {
    fn default() -> Self {
        Self { stages: VecDeque::new(), spare: Vec::new(), unused: Pool::default() }
    }
}

impl<S: Streams> Transfer<S> {
    /// Memory that was left, and its size.
    pub fn take(&mut self, streams: &S, bytes: usize) -> Result<Option<(Address, usize)>> {
        let Some((Left { address, done }, bytes)) = self.unused.take(bytes) else { return Ok(None) };
        done.iter().try_for_each(|event| streams.wait(Stream::Copies, *event))?;
        self.spare.extend(done);
        Ok(Some((address, bytes)))
    }

    /// Takes memory back that kernels may still read.
    pub fn leave(&mut self, streams: &S, address: Address, bytes: usize) -> Result<()> {
        self.spare_events(streams, Lane::ALL.len())?;
        let done = [(); Lane::ALL.len()].map(|()| self.spare.pop().expect("there are as many"));
        for (event, lane) in done.iter().zip(Lane::ALL) {
            streams.record(*event, Stream::Lane(lane))?;
        }
        self.unused.leave(Left { address, done }, bytes);
        Ok(())
    }

    /// Writes to common memory, while kernels that were asked for before go on; those that are asked for afterwards wait.
    pub fn upload(&mut self, streams: &S, to: Address, bytes: &[u8]) -> Result<()> {
        self.write(streams, Stream::Copies, to, bytes.len(), &|at, part| {
            part.copy_from_slice(&bytes[at..at + part.len()]);
        })
    }

    /// Writes in a stream: in a lane's own, or for all lanes, whose kernels that are asked for afterwards wait.
    pub fn write(
        &mut self,
        streams: &S,
        stream: Stream,
        to: Address,
        bytes: usize,
        fill: &Fill,
    ) -> Result<()> {
        while self.stages.len() < 2 {
            self.spare_events(streams, 1)?;
            let bytes = streams.pin(S::STAGE_BYTES)?;
            let copied = self.spare.pop().expect("there is one");
            self.stages.push_back(Stage { bytes, copied });
        }
        for start in (0..bytes).step_by(S::STAGE_BYTES) {
            self.stages.rotate_left(1);
            let Stage { bytes: staged, copied } = self.stages[1];
            streams.finish(copied)?;
            // SAFETY: pinned memory of as many bytes, which no copy reads any more.
            let staged = unsafe { std::slice::from_raw_parts_mut(staged, S::STAGE_BYTES.min(bytes - start)) };
            let parts = staged.par_chunks_mut(PART_BYTES).enumerate();
            parts.for_each(|(index, part)| fill(start + index * PART_BYTES, part));
            // SAFETY: callers write inside their buffers; the pinned memory is left alone until the event.
            unsafe { streams.copy(stream, to + start as Address, staged) }?;
            streams.record(copied, stream)?;
            if stream == Stream::Copies {
                Lane::ALL.into_iter().try_for_each(|lane| streams.wait(Stream::Lane(lane), copied))?;
            }
        }
        Ok(())
    }

    /// Makes so many events that nobody waits for, if there are fewer.
    fn spare_events(&mut self, streams: &S, count: usize) -> Result<()> {
        while self.spare.len() < count {
            self.spare.push(streams.new_event()?);
        }
        Ok(())
    }

    /// Gives all memory that was left back to the device, once it is done with it.
    pub fn release_unused(&mut self, streams: &S) -> Result<()> {
        for Left { address, done } in self.unused.drain() {
            done.iter().try_for_each(|event| streams.finish(*event))?;
            self.spare.extend(done);
            streams.give_back(address)?;
        }
        Ok(())
    }

    /// Gives back everything; the device is about to go.
    pub fn close(&mut self, streams: &S) -> Result<()> {
        self.release_unused(streams)?;
        self.spare.drain(..).try_for_each(|event| streams.drop_event(event))?;
        for Stage { bytes, copied } in self.stages.drain(..) {
            streams.finish(copied)?;
            streams.drop_event(copied)?;
            // SAFETY: pinned by `write`; its last copy is done.
            unsafe { streams.unpin(bytes, S::STAGE_BYTES) }?;
        }
        Ok(())
    }
}
