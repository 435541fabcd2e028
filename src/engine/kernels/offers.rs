//! Work that a thread offers to others: a closure on its stack, which those who have nothing to do call as well.
//!
//! Who offers work does it too, and takes back the places that nobody took: it never waits for a thread to begin, only for those
//! that have begun to end. So an offer costs some hundred nanoseconds, whether or not others are awake. Waking them is the caller's part.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Offers at a time: who finds no slot does its work alone. Their states fill one cache line, the only one that who looks for work reads.
const SLOTS: usize = 16;

/// The state of a slot: how many are at its work, how many more may come, whether one of them panicked, whether its owner sleeps until they
/// are done, whether it has one.
const INSIDE: u32 = 0xffff;
const PLACE: u32 = 1 << 16;
const PLACES: u32 = 0xfff << 16;
const PANICKED: u32 = 1 << 29;
const SLEEPS: u32 = 1 << 30;
const TAKEN: u32 = 1 << 31;

#[repr(align(64))]
struct States([AtomicU32; SLOTS]);

type Work = *const (dyn Fn() + Sync);

/// What threads offer each other.
pub struct Offers {
    states: States,
    works: [UnsafeCell<Option<Work>>; SLOTS],
    panics: [Mutex<Option<Box<dyn Any + Send>>>; SLOTS],
    sleep: Mutex<()>,
    ended: Condvar,
}

// SAFETY: a work is written by the owner of its slot alone, while no place of it is offered and nobody is inside, and read by who took a
// place; the state's acquire and release order the two. It points to a closure that may be called from any thread (`Sync`) and that
// lives until its owner has seen that nobody is inside.
unsafe impl Sync for Offers {}
// SAFETY: as above; nothing belongs to a thread.
unsafe impl Send for Offers {}

/// Ends an offer, also by a panic of who made it.
struct Offer<'a> {
    offers: &'a Offers,
    slot: usize,
    patience: Duration,
    slept: bool,
}

impl Offers {
    /// No offers.
    pub fn new() -> Self {
        Self {
            states: States(std::array::from_fn(|_| AtomicU32::new(0))),
            works: std::array::from_fn(|_| UnsafeCell::new(None)),
            panics: std::array::from_fn(|_| Mutex::new(None)),
            sleep: Mutex::new(()),
            ended: Condvar::new(),
        }
    }

    /// Does `work` here, and on up to `places` threads that call [`Offers::help`] meanwhile; returns when all are done. Who waits for
    /// others longer than `patience` sleeps. Whether that was so.
    ///
    /// Panics if the work did, on whichever thread.
    pub fn offer(&self, work: &(dyn Fn() + Sync), places: usize, patience: Duration) -> bool {
        let free = |state: &AtomicU32| state.compare_exchange(0, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let Some(slot) = self.states.0.iter().position(free) else {
            work();
            return false;
        };
        // SAFETY: the slot is ours and offers no place, so that nobody reads it. The pointer does not outlive the closure: `Offer` is dropped
        // before this function returns, and its end waits until nobody is inside.
        unsafe {
            *self.works[slot].get() = Some(std::mem::transmute::<*const (dyn Fn() + Sync + '_), Work>(work));
        }
        let places = u32::try_from(places).unwrap_or(u32::MAX).min(PLACES / PLACE);
        let mut offer = Offer { offers: self, slot, patience, slept: false };
        self.states.0[slot].store(TAKEN | (places * PLACE), Ordering::Release);
        work();
        let panic = offer.end();
        let slept = offer.slept;
        drop(offer);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        slept
    }

    /// Does the work of an offer, if there is one with a place left; whether there was.
    pub fn help(&self) -> bool {
        for (slot, state) in self.states.0.iter().enumerate() {
            let mut now = state.load(Ordering::Relaxed);
            while now & PLACES != 0 {
                match state.compare_exchange_weak(now, now - PLACE + 1, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => {
                        self.enter(slot);
                        return true;
                    }
                    Err(other) => now = other,
                }
            }
        }
        false
    }

    /// Does the work of a slot at which a place was taken.
    fn enter(&self, slot: usize) {
        // SAFETY: this thread is inside: the owner wrote the work before it offered the place that was taken, and neither changes it nor
        // lets the closure go before it sees nobody inside.
        let work = unsafe { &*(*self.works[slot].get()).expect("who offers places has written the work") };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            *self.panics[slot].lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            self.states.0[slot].fetch_or(PANICKED, Ordering::Relaxed);
        }
        // From here on the closure may be gone.
        if self.states.0[slot].fetch_sub(1, Ordering::AcqRel) & SLEEPS != 0 {
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.ended.notify_all();
        }
    }
}

impl Offer<'_> {
    /// Takes back the places that are left and waits for who is inside. What one of them panicked with.
    fn end(&mut self) -> Option<Box<dyn Any + Send>> {
        let state = &self.offers.states.0[self.slot];
        let inside = || state.load(Ordering::Acquire) & INSIDE != 0;
        if state.fetch_and(!PLACES, Ordering::AcqRel) & (INSIDE | PANICKED) == 0 {
            return None;
        }
        let start = Instant::now();
        while inside() && start.elapsed() < self.patience {
            std::hint::spin_loop();
        }
        if inside() {
            self.slept = true;
            state.fetch_or(SLEEPS, Ordering::AcqRel);
            let mut sleep = self.offers.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            while inside() {
                sleep = self.offers.ended.wait(sleep).unwrap_or_else(PoisonError::into_inner);
            }
        }
        self.offers.panics[self.slot].lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        // Nothing is left to do if the work ended without a panic; else the others' is dropped for the owner's.
        drop(self.end());
        self.offers.states.0[self.slot].store(0, Ordering::Release);
    }
}

impl Default for Offers {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use super::*;

    /// Looks for work until `over`.
    fn helper(offers: &Offers, over: &AtomicBool) {
        while !over.load(Ordering::Acquire) {
            if !offers.help() {
                std::thread::yield_now();
            }
        }
    }

    /// Calls `work` with offers that `helpers` threads look at.
    fn with_helpers(helpers: usize, work: impl FnOnce(&Offers)) {
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
            }
        }
        let (offers, over) = (Offers::new(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|| helper(&offers, &over));
            }
            let _over = Over(&over);
            work(&offers);
        });
    }

    /// Adds up 0 to `count`, a number at a time.
    fn sum(offers: &Offers, count: usize) -> usize {
        let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < count) {
                sum.fetch_add(i, Ordering::Relaxed);
            }
        };
        offers.offer(&work, 2, Duration::from_micros(10));
        sum.into_inner()
    }

    #[test]
    fn each_piece_is_done_once_however_many_offer_and_help() {
        let (owners, rounds) = if cfg!(miri) { (2, 20) } else { (SLOTS + 4, 500) };
        with_helpers(3, |offers| {
            std::thread::scope(|scope| {
                for owner in 0..owners {
                    scope.spawn(move || {
                        for round in 0..rounds {
                            let count = (owner + round) % 9;
                            assert_eq!(sum(offers, count), count * count.saturating_sub(1) / 2);
                        }
                    });
                }
            });
            assert!(!offers.help());
        });
    }

    #[test]
    fn an_offer_that_nobody_takes_is_over_when_its_owner_is_done() {
        let offers = Offers::new();
        let done = AtomicUsize::new(0);
        assert!(!offers.offer(&|| _ = done.fetch_add(1, Ordering::Relaxed), 3, Duration::MAX));
        assert_eq!(done.into_inner(), 1);
        assert!(!offers.help());
    }

    #[test]
    fn offers_within_offers_end() {
        with_helpers(2, |offers| {
            let (next, total) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let work = || {
                while next.fetch_add(1, Ordering::Relaxed) < 20 {
                    total.fetch_add(sum(offers, 5), Ordering::Relaxed);
                }
            };
            offers.offer(&work, 2, Duration::ZERO);
            assert_eq!(total.into_inner(), 200);
        });
    }

    #[test]
    fn who_waits_long_sleeps_and_is_woken() {
        with_helpers(1, |offers| {
            let (begun, owner) = (AtomicBool::new(false), std::thread::current().id());
            let work = || match std::thread::current().id() == owner {
                true => {
                    while !begun.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                }
                false => {
                    begun.store(true, Ordering::Release);
                    std::thread::sleep(Duration::from_millis(20));
                }
            };
            assert!(offers.offer(&work, 1, Duration::from_micros(1)));
        });
    }

    /// What an owner sees that is done while its helper panics, or after it.
    fn panic_of_a_helper(ended: impl Fn(&Offers) -> bool + Sync) {
        with_helpers(1, |offers| {
            let (begun, owner) = (AtomicBool::new(false), std::thread::current().id());
            let until = |seen: &dyn Fn() -> bool| {
                while !seen() {
                    std::thread::yield_now();
                }
            };
            let of_a_helper = || {
                if std::thread::current().id() != owner {
                    begun.store(true, Ordering::Release);
                    panic!("of a helper");
                }
                until(&|| begun.load(Ordering::Acquire) && ended(offers));
            };
            let of_both = || {
                if std::thread::current().id() == owner {
                    until(&|| begun.load(Ordering::Acquire) && ended(offers));
                }
                begun.store(true, Ordering::Release);
                panic!("of both");
            };
            let caught = |work: &(dyn Fn() + Sync)| {
                begun.store(false, Ordering::Relaxed);
                let panic = catch_unwind(AssertUnwindSafe(|| offers.offer(work, 1, Duration::ZERO))).unwrap_err();
                *panic.downcast_ref::<&str>().unwrap()
            };
            assert_eq!((caught(&of_a_helper), caught(&of_both)), ("of a helper", "of both"));
            assert!(offers.states.0.iter().all(|state| state.load(Ordering::Relaxed) == 0));
            assert!(offers.panics.iter().all(|panic| panic.lock().unwrap().is_none()));
            assert_eq!(sum(offers, 4), 6);
        });
    }

    #[test]
    fn a_panic_of_who_helps_is_that_of_the_owner_and_leaves_the_slots_usable() {
        panic_of_a_helper(|_| true);
    }

    #[test]
    fn a_panic_of_who_has_left_before_the_owner_is_done_is_not_lost() {
        panic_of_a_helper(|offers| offers.states.0[0].load(Ordering::Relaxed) & INSIDE == 0);
    }
}
