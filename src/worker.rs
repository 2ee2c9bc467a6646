//! A queue with a thread that lives only while there is work: an idle connection owns no thread but its reader.
//!
//! [`Worker`] refuses to know what the work is. The disk work of a connection and group commit are both one of these.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, LockResult, Mutex, MutexGuard, PoisonError, WaitTimeoutResult};
use std::thread;
use std::time::Duration;

use crate::capacity::threads_by_maps;
use crate::config::{IDLE_THREAD, THREAD_STACK_BYTES};

/// A lock that survives a panic: one connection's panic ends that connection only.
pub(crate) trait Lock<T> {
    /// Takes the lock, poisoned or not.
    fn take(&self) -> MutexGuard<'_, T>;
}

impl<T> Lock<T> for Mutex<T> {
    fn take(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A condition variable that costs no system call to signal while nobody waits. What it is about is changed under the lock that
/// the waiting give up, so nobody begins to wait unseen.
#[derive(Default)]
pub(crate) struct Signal {
    condvar: Condvar,
    waiting: AtomicUsize,
}

impl Signal {
    pub(crate) fn new() -> Signal {
        Signal::default()
    }

    /// As [`Condvar::wait`]; the others as theirs.
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        let _counted = Counted::new(&self.waiting);
        self.condvar.wait(guard)
    }

    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        time: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let _counted = Counted::new(&self.waiting);
        self.condvar.wait_timeout(guard, time)
    }

    pub(crate) fn wait_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        is_to_wait: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>> {
        let _counted = Counted::new(&self.waiting);
        self.condvar.wait_while(guard, is_to_wait)
    }

    pub(crate) fn wait_timeout_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        time: Duration,
        is_to_wait: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let _counted = Counted::new(&self.waiting);
        self.condvar.wait_timeout_while(guard, time, is_to_wait)
    }

    pub(crate) fn notify_one(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.condvar.notify_one();
        }
    }

    pub(crate) fn notify_all(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.condvar.notify_all();
        }
    }
}

/// One of those who wait.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Counted<'a> {
        count.fetch_add(1, Ordering::SeqCst);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Starts a thread with our stack size and a name of at most 15 bytes, which is what the kernel shows.
///
/// # Errors
/// The system has no room for another, or no memory maps: a thread that starts without those takes the process with it.
pub(crate) fn spawn<F>(name: &'static str, body: F) -> io::Result<()>
where
    F: FnOnce() + Send + 'static,
{
    #[cfg(any(test, feature = "fuzzing"))]
    let Some(body) = held::hold(name, body) else {
        return Ok(());
    };
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    static MOST: LazyLock<usize> = LazyLock::new(threads_by_maps);
    let place = Place::take(&RUNNING, *MOST)?;
    let counted = move || {
        let _place = place;
        body();
    };
    thread::Builder::new().name(name.to_owned()).stack_size(THREAD_STACK_BYTES).spawn(counted).map(drop)
}

/// One of the threads that run.
struct Place(&'static AtomicUsize);

impl Place {
    fn take(running: &'static AtomicUsize, most: usize) -> io::Result<Place> {
        let place = Place(running);
        if running.fetch_add(1, Ordering::Relaxed) >= most {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "no memory maps for another thread"));
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long a thread without work stays.
pub(crate) fn idle() -> Duration {
    #[cfg(any(test, feature = "fuzzing"))]
    if held::is_on() {
        return Duration::ZERO;
    }
    IDLE_THREAD
}

/// How long a wait for the other side may be.
pub(crate) fn at_most(time: Duration) -> Duration {
    #[cfg(any(test, feature = "fuzzing"))]
    if held::is_on() {
        return Duration::from_millis(50);
    }
    time
}

/// Lets other threads go on for so long.
pub(crate) fn pause(time: Duration) {
    #[cfg(any(test, feature = "fuzzing"))]
    if held::run(0) {
        return;
    }
    thread::park_timeout(time);
}

/// One thread that is all threads, for a fuzz target: what would be a thread waits here until the target runs it, so that the
/// order is the target's, and an execution costs no thread.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod held {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    thread_local! {
        static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
    }

    /// What a thread waits for at a socket.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Wait {
        ToReceive,
        /// Perhaps with a lock held: no other thread is to be run.
        ToSend,
    }

    /// Its name and its body.
    type Thread = (&'static str, Box<dyn FnOnce()>);

    struct Held {
        threads: VecDeque<Thread>,
        meanwhile: Rc<dyn Fn(Wait)>,
    }

    /// Threads that this thread starts are held from now on. `meanwhile` is called before each wait for a socket.
    pub(crate) fn begin(meanwhile: impl Fn(Wait) + 'static) {
        HELD.set(Some(Held { threads: VecDeque::new(), meanwhile: Rc::new(meanwhile) }));
    }

    /// No longer; gives how many are left that were not run.
    pub(crate) fn end() -> usize {
        HELD.take().map_or(0, |held| held.threads.len())
    }

    pub(super) fn is_on() -> bool {
        HELD.with_borrow(Option::is_some)
    }

    pub(super) fn hold<F: FnOnce() + 'static>(name: &'static str, body: F) -> Option<F> {
        HELD.with_borrow_mut(|held| match held {
            Some(held) => {
                held.threads.push_back((name, Box::new(body)));
                None
            }
            None => Some(body),
        })
    }

    /// Runs one of them, until it is idle; `false` when there is none. One that waits for others is left for the last.
    pub(crate) fn run(choice: usize) -> bool {
        run_of(choice, |name| name != WAITS)
    }

    /// Runs one that waits for others, to be called when those have done what it waits for.
    pub(crate) fn run_waiting() -> bool {
        run_of(0, |name| name == WAITS)
    }

    /// Asks connections that are alive, and waits for their commits.
    const WAITS: &str = "settle";

    fn run_of(choice: usize, is_meant: impl Fn(&str) -> bool) -> bool {
        let next = HELD.with_borrow_mut(|held| {
            let threads = &mut held.as_mut()?.threads;
            let meant: Vec<usize> =
                threads.iter().enumerate().filter(|(_, (name, _))| is_meant(name)).map(|(at, _)| at).collect();
            threads.remove(*meant.get(choice % meant.len().max(1))?)
        });
        let Some((_, body)) = next else { return false };
        body();
        true
    }

    /// A thread is about to wait for a socket.
    pub(crate) fn meanwhile(wait: Wait) {
        let meanwhile = HELD.with_borrow(|held| held.as_ref().map(|held| Rc::clone(&held.meanwhile)));
        if let Some(meanwhile) = meanwhile {
            meanwhile(wait);
        }
    }
}

/// Work of one kind, done in order by one thread that is started on demand and ends when idle.
pub(crate) struct Worker<J: Send + 'static> {
    shared: Arc<Shared<J>>,
}

struct Shared<J> {
    name: &'static str,
    queue: Mutex<Queue<J>>,
    wake: Signal,
    /// Takes what waits, up to `batch_max` jobs at a time.
    run: Box<dyn Fn(Vec<J>) + Send + Sync>,
    batch_max: usize,
}

struct Queue<J> {
    jobs: VecDeque<J>,
    has_thread: bool,
}

impl<J: Send + 'static> Worker<J> {
    /// A worker whose thread, named `name`, passes up to `batch_max` waiting jobs at a time to `run`.
    pub(crate) fn new(name: &'static str, batch_max: usize, run: impl Fn(Vec<J>) + Send + Sync + 'static) -> Worker<J> {
        let queue = Mutex::new(Queue { jobs: VecDeque::new(), has_thread: false });
        Worker { shared: Arc::new(Shared { name, queue, wake: Signal::new(), run: Box::new(run), batch_max }) }
    }

    /// Puts a job behind the others.
    ///
    /// # Errors
    /// The system can't start a thread; the job is dropped.
    pub(crate) fn push(&self, job: J) -> io::Result<()> {
        self.try_push(job).map_err(|(error, _)| error)
    }

    /// The same, or does the job at once on the calling thread when no other can be started.
    pub(crate) fn push_or_do(&self, job: J) {
        if let Err((_, job)) = self.try_push(job) {
            (self.shared.run)(vec![job]);
        }
    }

    /// The job comes back without a lock held, as its end may call out.
    fn try_push(&self, job: J) -> Result<(), (io::Error, J)> {
        let mut queue = self.shared.queue.take();
        if !queue.has_thread {
            let shared = Arc::clone(&self.shared);
            if let Err(error) = spawn(self.shared.name, move || shared.work()) {
                return Err((error, job));
            }
            queue.has_thread = true;
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.wake.notify_one();
        Ok(())
    }
}

impl<J: Send + 'static> Shared<J> {
    fn work(&self) {
        let _thread = ThreadMark(self);
        loop {
            let batch = {
                let mut queue = self.queue.take();
                if queue.jobs.is_empty() {
                    queue = self
                        .wake
                        .wait_timeout_while(queue, idle(), |queue| queue.jobs.is_empty())
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
                if queue.jobs.is_empty() {
                    queue.has_thread = false;
                    return;
                }
                let count = queue.jobs.len().min(self.batch_max);
                queue.jobs.drain(..count).collect()
            };
            (self.run)(batch);
        }
    }
}

/// Lets the next job start a new thread when this one panics; what waited then is dropped.
struct ThreadMark<'a, J>(&'a Shared<J>);

impl<J> Drop for ThreadMark<'_, J> {
    fn drop(&mut self) {
        if thread::panicking() {
            let jobs = {
                let mut queue = self.0.queue.take();
                queue.has_thread = false;
                std::mem::take(&mut queue.jobs)
            };
            // A job's end may call out, which no lock is held for.
            drop(jobs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn no_thread_starts_past_what_the_maps_are_enough_for() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        let places: Vec<Place> = (0..3).map(|_| Place::take(&RUNNING, 3).unwrap()).collect();
        assert!(Place::take(&RUNNING, 3).is_err() && Place::take(&RUNNING, 3).is_err());
        drop(places);
        assert!(Place::take(&RUNNING, 1).is_ok());
        assert_eq!(RUNNING.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn jobs_are_done_in_order_across_threads() {
        let (sender, receiver) = mpsc::channel();
        let worker = Worker::new("test", 3, move |batch: Vec<u32>| {
            assert!(batch.len() <= 3);
            batch.into_iter().for_each(|job| sender.send(job).unwrap());
        });
        (0..50).for_each(|job| worker.push(job).unwrap());
        let first: Vec<u32> = receiver.iter().take(50).collect();
        assert_eq!(first, (0..50).collect::<Vec<_>>());
        let deadline = std::time::Instant::now() + 50 * IDLE_THREAD;
        while worker.shared.queue.take().has_thread {
            assert!(std::time::Instant::now() < deadline, "the thread does not end when idle");
            thread::yield_now();
        }
        worker.push(50).unwrap();
        assert_eq!(receiver.recv().unwrap(), 50);
    }
}
