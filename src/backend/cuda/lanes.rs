//! What is done side by side. Work of twin rows waits for the context's only where it reads that, and the other way round: in the lane of what it
//! writes an operation waits for the last to write what it reads, and for those in other lanes that still read what it writes.

use super::{
    device::{Device, Lane, POINTS, Sharing},
    mat::CudaMat,
};
use crate::{Result, sync::lock};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// With so many context rows or fewer most of their kernels leave room for those of twin rows, which take about as long.
const ROOM_ROWS: usize = 1024;

impl Sharing {
    /// What suits a batch of so many context rows. Where layers' weights come and go, lanes in different layers keep the next from coming: with few
    /// rows the time is that of bringing weights anyway.
    pub fn of_context(rows: usize, has_resident_weights: bool) -> Self {
        if rows <= ROOM_ROWS {
            Sharing::Room
        } else if has_resident_weights {
            Sharing::Tails
        } else {
            Sharing::One
        }
    }
}

/// The lanes of a device, and how far each has come.
pub struct Lanes {
    devices: [Arc<dyn Device>; Lane::ALL.len()],
    order: Mutex<Order>,
}

/// Operations are counted in each lane, from 1 on.
#[derive(Default)]
struct Order {
    lanes: [Progress; Lane::ALL.len()],
}

#[derive(Default)]
struct Progress {
    /// Asked for so far.
    operations: u64,
    /// The operation after which each of the last points was recorded.
    recorded: VecDeque<u64>,
    /// The place of the next point in the device's.
    next_point: usize,
    /// Up to which operation of each lane this one has waited.
    waited: [u64; Lane::ALL.len()],
}

/// Who used a matrix last, as numbers of operations; 0 is nobody.
#[derive(Debug, Default)]
pub struct Uses {
    /// In its own lane.
    written: AtomicU64,
    /// In each of the others.
    read: [AtomicU64; Lane::ALL.len()],
}

impl Uses {
    /// Whether other lanes may still read it.
    pub fn read_elsewhere(&self) -> bool {
        self.read.iter().any(|read| read.load(Relaxed) > 0)
    }
}

impl Lanes {
    pub fn new(devices: [Arc<dyn Device>; Lane::ALL.len()]) -> Self {
        Self { devices, order: Mutex::default() }
    }

    /// Where memory of a lane comes from.
    pub fn of(&self, lane: Lane) -> &Arc<dyn Device> {
        &self.devices[lane as usize]
    }

    /// Does something for a lane with what no other uses.
    pub fn run_in<T>(&self, lane: Lane, work: impl FnOnce(&Arc<dyn Device>) -> Result<T>) -> Result<T> {
        // Held until it is asked for: lanes are not put together or apart meanwhile.
        let _order = self.order();
        work(self.of(if self.is_apart() { lane } else { Lane::Context }))
    }

    /// Puts another device into the place of a lane's.
    pub fn replace(&mut self, lane: Lane, device: Arc<dyn Device>) {
        self.devices[lane as usize] = device;
    }

    /// Whether lanes work side by side; otherwise all is done in the first. Changed by who holds the order.
    fn is_apart(&self) -> bool {
        self.of(Lane::Context).sharing() != Sharing::One
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        lock(&self.order)
    }

    /// How lanes share the device from now on.
    pub fn share(&self, sharing: Sharing) -> Result<()> {
        let mut order = self.order();
        let put_together_or_apart = self.is_apart() != (sharing != Sharing::One);
        if put_together_or_apart {
            self.devices.iter().try_for_each(|device| device.join())?;
            let operations = order.lanes.each_ref().map(|lane| lane.operations);
            order.lanes.iter_mut().for_each(|lane| lane.waited = operations);
        }
        self.devices.iter().for_each(|device| device.set_sharing(sharing));
        Ok(())
    }

    /// Does something that writes `out`, all of one lane, and reads `reads`.
    pub fn run<T>(
        &self,
        out: &[&CudaMat],
        reads: &[&CudaMat],
        work: impl FnOnce(&Arc<dyn Device>) -> Result<T>,
    ) -> Result<T> {
        let lane = out[0].lane;
        let foreign = || reads.iter().filter(|mat| mat.lane != lane);
        let mut order = self.order();
        if !self.is_apart() {
            return work(self.of(Lane::Context));
        }
        for mat in foreign() {
            order.wait(&self.devices, lane, mat.lane, mat.uses().written.load(Relaxed))?;
        }
        for mat in out {
            assert_eq!(mat.lane, lane, "an operation writes in one lane");
            for other in lane.others() {
                let last = mat.uses().read[other as usize].swap(0, Relaxed);
                order.wait(&self.devices, lane, other, last)?;
            }
        }
        let done = work(self.of(lane))?;
        let progress = &mut order.lanes[lane as usize];
        progress.operations += 1;
        let operation = progress.operations;
        out.iter().for_each(|mat| mat.uses().written.store(operation, Relaxed));
        foreign().for_each(|mat| mat.uses().read[lane as usize].store(operation, Relaxed));
        if foreign().next().is_some() {
            // So that who waits for it need not wait for what follows.
            order.record(&self.devices, lane)?;
        }
        Ok(done)
    }
}

impl Order {
    /// What `lane` is asked for from now on waits for an operation of another.
    fn wait(&mut self, devices: &[Arc<dyn Device>], lane: Lane, other: Lane, operation: u64) -> Result<()> {
        if self.lanes[lane as usize].waited[other as usize] >= operation {
            return Ok(());
        }
        let is_passed_after = |recorded: &u64| *recorded >= operation;
        if !self.lanes[other as usize].recorded.back().is_some_and(is_passed_after) {
            self.record(devices, other)?;
        }
        // The first point after the operation.
        let Progress { recorded, next_point, .. } = &self.lanes[other as usize];
        let at = recorded.partition_point(|recorded| !is_passed_after(recorded));
        let (point, reached) = ((next_point + POINTS - (recorded.len() - at)) % POINTS, recorded[at]);
        devices[lane as usize].wait(other, point)?;
        self.lanes[lane as usize].waited[other as usize] = reached;
        Ok(())
    }

    fn record(&mut self, devices: &[Arc<dyn Device>], lane: Lane) -> Result<()> {
        let Progress { operations, recorded, next_point, .. } = &mut self.lanes[lane as usize];
        devices[lane as usize].record(*next_point)?;
        *next_point = (*next_point + 1) % POINTS;
        recorded.push_back(*operations);
        if recorded.len() > POINTS {
            recorded.pop_front();
        }
        Ok(())
    }
}
