//! Points of lanes, by which one waits for another: events of a device.

use super::{
    device::{Lane, POINTS},
    transfer::{Stream, Streams},
};
use crate::Result;

/// Events of all lanes: the points that are recorded one by one, and what joins wait for.
pub struct Points<E> {
    recorded: [[E; POINTS]; Lane::ALL.len()],
    ends: [E; Lane::ALL.len()],
}

impl<E: Copy> Points<E> {
    /// Made of events that were never recorded.
    pub fn new(mut event: impl FnMut() -> Result<E>) -> Result<Self> {
        Ok(Self { recorded: many(|| many(&mut event))?, ends: many(&mut event)? })
    }

    /// [`Device::record`](super::device::Device::record) of a lane.
    pub fn record(&self, streams: &impl Streams<Event = E>, lane: Lane, point: usize) -> Result<()> {
        streams.record(self.recorded[lane as usize][point], Stream::Lane(lane))
    }

    /// [`Device::wait`](super::device::Device::wait) of a lane.
    pub fn wait(
        &self,
        streams: &impl Streams<Event = E>,
        lane: Lane,
        other: Lane,
        point: usize,
    ) -> Result<()> {
        streams.wait(Stream::Lane(lane), self.recorded[other as usize][point])
    }

    /// [`Device::join`](super::device::Device::join) of a lane.
    pub fn join(&self, streams: &impl Streams<Event = E>, lane: Lane) -> Result<()> {
        lane.others().try_for_each(|other| {
            let end = self.ends[other as usize];
            streams.record(end, Stream::Lane(other))?;
            streams.wait(Stream::Lane(lane), end)
        })
    }
}

/// As many as are asked for.
fn many<T, const N: usize>(mut make: impl FnMut() -> Result<T>) -> Result<[T; N]> {
    let made = (0..N).map(|_| make()).collect::<Result<Vec<_>>>()?;
    Ok(made.try_into().unwrap_or_else(|_| unreachable!("N were made")))
}
