//! Work that several workers share, each of them a job at a time; results are taken in the order of the jobs.

use crate::{Result, sync::lock};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

/// Jobs of each worker that are given out: one to compute and one to go on with, so that no worker waits for reading and
/// writing.
const GIVEN: usize = 2;

/// Where jobs come from, and where `D`, what comes of each, goes.
pub trait Queue<D> {
    type Job: Send;

    /// The next job; `None`: there is none left.
    fn next(&mut self) -> Result<Option<Self::Job>>;

    /// Takes what came of a job, in the order of the jobs.
    fn take(&mut self, job: Self::Job, done: D) -> Result<()>;
}

/// Passes all jobs through the workers. `work` is told by a flag when its result is no longer wanted.
///
/// # Errors
/// The first, in the order of the jobs, of those of `work`, and those of the queue. What came of the jobs before was taken.
pub fn pass<D: Send, Q: Queue<D>, W: Sync>(
    queue: &mut Q,
    workers: &[W],
    work: impl Fn(&W, &Q::Job, &AtomicBool) -> Result<D> + Sync,
) -> Result<()> {
    let unwanted = AtomicBool::new(false);
    if let [worker] = workers {
        while let Some(job) = queue.next()? {
            let done = work(worker, &job, &unwanted)?;
            queue.take(job, done)?;
        }
        return Ok(());
    }
    let (give, jobs) = channel();
    let (tell, results) = channel();
    let jobs = Mutex::new(jobs);
    thread::scope(|scope| {
        for worker in workers {
            let (tell, jobs, work, unwanted) = (tell.clone(), &jobs, &work, &unwanted);
            scope.spawn(move || {
                let next = || lock(jobs).recv();
                while let Ok((number, job)) = next() {
                    if unwanted.load(Ordering::Relaxed) {
                        break;
                    }
                    // Whoever takes the results would wait for that of a job that panicked.
                    let done = catch_unwind(AssertUnwindSafe(|| work(worker, &job, unwanted)));
                    if tell.send((number, job, done)).is_err() {
                        break;
                    }
                }
            });
        }
        let _unwanted = Unwanted(&unwanted);
        give_and_take(queue, (GIVEN * workers.len()) as u64, give, &results)
    })
}

/// Tells the workers that nothing more is wanted of them, however this ends.
struct Unwanted<'a>(&'a AtomicBool);

impl Drop for Unwanted<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A job by its number, and what came of it.
type Told<J, D> = (u64, J, thread::Result<Result<D>>);

/// Gives jobs to the workers, at most so many at a time, until there are none left or one failed.
fn give_and_take<D, Q: Queue<D>>(
    queue: &mut Q,
    at_a_time: u64,
    give: Sender<(u64, Q::Job)>,
    results: &Receiver<Told<Q::Job, D>>,
) -> Result<()> {
    let (mut given, mut taken) = (0, 0);
    // No more jobs are given out; where reading them failed, those before are still taken.
    let mut end = None;
    let mut early = BTreeMap::new();
    loop {
        while end.is_none() && given - taken < at_a_time {
            match queue.next() {
                Ok(Some(job)) => {
                    give.send((given, job)).expect("workers take jobs until there are none");
                    given += 1;
                }
                Ok(None) => end = Some(Ok(())),
                Err(error) => end = Some(Err(error)),
            }
        }
        if given == taken {
            return end.unwrap_or(Ok(()));
        }
        let (number, job, done) = results.recv().expect("workers tell of every job");
        let done = done.unwrap_or_else(|panic| resume_unwind(panic));
        if done.is_err() {
            end.get_or_insert(Ok(()));
        }
        early.insert(number, (job, done));
        while let Some((job, done)) = early.remove(&taken) {
            queue.take(job, done?)?;
            taken += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, ErrorKind};
    use std::{
        sync::atomic::AtomicUsize,
        time::{Duration, Instant},
    };

    /// The numbers from 0 on; keeps what came of them.
    struct Numbers {
        next: u64,
        end: u64,
        taken: Vec<u64>,
        /// The most that were given out at a time.
        ahead: u64,
    }

    impl Numbers {
        fn up_to(end: u64) -> Self {
            Self { next: 0, end, taken: Vec::new(), ahead: 0 }
        }
    }

    impl Queue<u64> for Numbers {
        type Job = u64;

        fn next(&mut self) -> Result<Option<u64>> {
            let job = (self.next < self.end).then_some(self.next);
            self.next += 1;
            self.ahead = self.ahead.max(self.next - self.taken.len() as u64);
            Ok(job)
        }

        fn take(&mut self, job: u64, done: u64) -> Result<()> {
            assert_eq!(done, 10 * job);
            self.taken.push(job);
            Ok(())
        }
    }

    /// Takes long for some jobs, so that later ones are done before.
    fn slowly(job: u64) -> u64 {
        thread::sleep(Duration::from_millis(if job.is_multiple_of(5) { 10 } else { 1 }));
        10 * job
    }

    #[test]
    fn results_are_taken_in_the_order_of_the_jobs() {
        for workers in 1..4 {
            let worked: Vec<Mutex<u64>> = (0..workers).map(|_| Mutex::new(0)).collect();
            // None goes on before all have begun, however late their threads start.
            let begun = AtomicUsize::new(0);
            let start = Instant::now();
            let mut numbers = Numbers::up_to(40);
            let work = |worker: &Mutex<u64>, job: &u64, _: &AtomicBool| {
                let count = &mut *worker.lock().unwrap();
                *count += 1;
                begun.fetch_add(usize::from(*count == 1), Ordering::Relaxed);
                while begun.load(Ordering::Relaxed) < workers && start.elapsed().as_secs() < 20 {
                    thread::yield_now();
                }
                Ok(slowly(*job))
            };
            pass(&mut numbers, &worked, work).unwrap();
            assert_eq!(numbers.taken, (0..40).collect::<Vec<u64>>());
            assert!(worked.iter().all(|count| *count.lock().unwrap() > 0), "{worked:?}");
            assert!(numbers.ahead <= (GIVEN * workers) as u64, "{}", numbers.ahead);
        }
        pass(&mut Numbers::up_to(0), &[(), ()], |(), job, _| Ok(*job)).unwrap();
    }

    #[test]
    fn what_comes_before_a_failure_is_taken_and_the_rest_is_stopped() {
        for workers in [&[()][..], &[(), (), ()]] {
            let mut numbers = Numbers::up_to(u64::MAX);
            let work = |(): &(), job: &u64, unwanted: &AtomicBool| match job {
                // The one before is done last.
                9 => Ok(slowly(10) / 10 * 9),
                10 => Err(Error::new(ErrorKind::Device, "lost")),
                11.. => {
                    while !unwanted.load(Ordering::Relaxed) {
                        thread::yield_now();
                    }
                    Err(Error::stopped())
                }
                job => Ok(10 * job),
            };
            assert_eq!(pass(&mut numbers, workers, work).unwrap_err().message, "lost");
            assert_eq!(numbers.taken, (0..10).collect::<Vec<u64>>());
        }
    }

    #[test]
    fn what_comes_before_a_failure_of_reading_is_taken() {
        struct Broken(Numbers);
        impl Queue<u64> for Broken {
            type Job = u64;
            fn next(&mut self) -> Result<Option<u64>> {
                if self.0.next < 7 { self.0.next() } else { Err(Error::usage("line 8")) }
            }
            fn take(&mut self, job: u64, done: u64) -> Result<()> {
                self.0.take(job, done)
            }
        }
        let mut broken = Broken(Numbers::up_to(9));
        let error = pass(&mut broken, &[(), ()], |(), job, _| Ok(slowly(*job))).unwrap_err();
        assert_eq!((error.message.as_str(), broken.0.taken.len()), ("line 8", 7));
    }

    #[test]
    #[should_panic(expected = "a bug")]
    fn a_panic_of_a_worker_is_not_waited_for() {
        let work =
            |(): &(), job: &u64, _: &AtomicBool| if *job == 3 { panic!("a bug") } else { Ok(10 * job) };
        let _ = pass(&mut Numbers::up_to(9), &[(), ()], work);
    }
}
