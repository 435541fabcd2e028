//! The gate in front of the processors: at most one forward pass per processor runs at once, and models that compete take
//! turns as [`Fair`] says.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::fair::{Fair, Flow, Turn};

/// If no pass has ended or begun for this long, those that run are long ones: one more may begin beside them, and the system
/// shares the processors among them. So a pass of a millisecond does not wait for one of a second.
const PATIENCE: Duration = Duration::from_millis(5);

/// The processors as the models of a server share them.
#[derive(Debug)]
pub struct Compute {
    state: Mutex<State>,
    /// Whether somebody waits, for a look without the lock.
    contended: AtomicBool,
}

#[derive(Debug)]
struct State {
    fair: Fair,
    /// Who waits for which turn.
    sleepers: HashMap<Turn, Arc<Condvar>>,
    /// When a pass last began or ended.
    progress: Instant,
}

impl State {
    /// Wakes who waits for a turn that has begun.
    fn begin(&mut self, turn: Turn, now: Instant) {
        self.progress = now;
        if let Some(sleeper) = self.sleepers.remove(&turn) {
            sleeper.notify_one();
        }
    }
}

impl Compute {
    /// A gate for `permits` forward passes at once.
    pub fn new(permits: usize) -> Self {
        let state = State { fair: Fair::new(permits), sleepers: HashMap::new(), progress: Instant::now() };
        Self { state: Mutex::new(state), contended: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether passes wait for others to end.
    pub(super) fn is_contended(&self) -> bool {
        self.contended.load(Relaxed)
    }

    /// Adds a competitor with a share that is relative to the others'.
    pub(super) fn join(self: &Arc<Self>, share: f64) -> Member {
        Member { compute: Arc::clone(self), flow: self.lock().fair.join(share) }
    }
}

/// A competitor, for as long as it lives.
#[derive(Debug)]
pub(super) struct Member {
    compute: Arc<Compute>,
    flow: Flow,
}

impl Member {
    /// Whether passes wait for others to end.
    pub(super) fn is_contended(&self) -> bool {
        self.compute.is_contended()
    }

    /// Blocks until a pass may begin; it ends when the permit is dropped.
    pub(super) fn enter(&self) -> Permit<'_> {
        let compute = &*self.compute;
        let mut state = compute.lock();
        let turn = state.fair.enter(self.flow);
        // Whenever a permit becomes free it is given away: if one is free now, nobody else waits.
        if state.fair.grant() == Some(turn) {
            let started = Instant::now();
            state.progress = started;
            return Permit { compute, turn, started, running: state.fair.running() };
        }
        let bell = Arc::new(Condvar::new());
        state.sleepers.insert(turn, Arc::clone(&bell));
        compute.contended.store(true, Relaxed);
        let mut wait = PATIENCE;
        while state.sleepers.contains_key(&turn) {
            state = bell.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
            let now = Instant::now();
            let idle = now.saturating_duration_since(state.progress);
            if idle >= PATIENCE
                && state.sleepers.contains_key(&turn)
                && let Some(lent) = state.fair.lend()
            {
                state.begin(lent, now);
            }
            wait = PATIENCE.saturating_sub(idle).max(PATIENCE / 4);
        }
        compute.contended.store(state.fair.is_contended(), Relaxed);
        Permit { compute, turn, started: Instant::now(), running: state.fair.running() }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.compute.lock().fair.leave(self.flow);
    }
}

/// The right to run one forward pass.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    compute: &'a Compute,
    turn: Turn,
    started: Instant,
    /// Passes that ran when this one began, itself included.
    running: usize,
}

impl Permit<'_> {
    /// Whether other passes ran when this one began.
    pub(super) fn has_company(&self) -> bool {
        self.running > 1
    }

    /// Whether there were passes for `threads` threads when this one began.
    pub(super) fn occupies(&self, threads: usize) -> bool {
        self.running >= threads
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.compute.lock();
        state.fair.end(self.turn, now.saturating_duration_since(self.started));
        state.progress = now;
        while let Some(turn) = state.fair.grant() {
            state.begin(turn, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Starts a pass of `member` on a thread; it says its name when it has begun and ends when the sender is dropped.
    fn pass(member: &Arc<Member>, name: &'static str, begun: &mpsc::SyncSender<&'static str>) -> mpsc::SyncSender<()> {
        let (end, ended) = mpsc::sync_channel::<()>(1);
        let (member, begun) = (Arc::clone(member), begun.clone());
        std::thread::spawn(move || {
            let _permit = member.enter();
            begun.send(name).unwrap();
            let _ = ended.recv();
        });
        end
    }

    /// Waits until `count` passes wait for a turn.
    fn waiting(compute: &Compute, count: usize) {
        while compute.lock().sleepers.len() != count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_short_pass_does_not_wait_for_long_ones_to_end() {
        let compute = Arc::new(Compute::new(1));
        let (long, short) = (Arc::new(compute.join(1.0)), Arc::new(compute.join(1.0)));
        let (begun, order) = mpsc::sync_channel(4);
        let first = pass(&long, "long", &begun);
        assert_eq!(order.recv(), Ok("long"));
        let second = pass(&long, "another long", &begun);
        waiting(&compute, 1);
        let third = pass(&short, "short", &begun);
        assert_eq!(order.recv(), Ok("short"), "though the only permit is taken, and another long one waited before");
        assert!(compute.is_contended());
        drop(third);
        drop(first);
        assert_eq!(order.recv(), Ok("another long"));
        drop(second);
    }

    #[test]
    fn a_free_permit_is_taken_without_waiting() {
        let compute = Arc::new(Compute::new(2));
        let member = compute.join(1.0);
        let (a, b) = (member.enter(), member.enter());
        assert!(!compute.is_contended() && !a.has_company() && b.has_company());
        assert!(!a.occupies(2) && b.occupies(2) && !b.occupies(3));
        drop(a);
        drop(b);
        drop(member.enter());
        assert!(compute.lock().sleepers.is_empty());
    }
}
