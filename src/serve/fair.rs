//! Whose forward pass runs next when models compete for the processors: a pure state machine.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996) over permits: every pass has a start tag, the virtual time at which
//! its model would begin it if each had the processors in proportion to its share; the least tag goes first. A model that was
//! idle starts at the present virtual time: it gets no credit for what it did not use.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// One competitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Flow(u64);

/// A pass that waits or runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Turn(u64);

#[derive(Debug)]
struct Competitor {
    share: f64,
    /// Virtual time, in seconds, at which its last pass ends; estimated for passes that run.
    finish: f64,
    /// Seconds of its last pass: what the next is expected to take.
    expected: f64,
    running: usize,
}

/// Permits, who has one and who waits for one.
#[derive(Debug)]
pub(super) struct Fair {
    permits: usize,
    /// Virtual time: the start tag of the pass that was begun last.
    now: f64,
    last_number: u64,
    flows: HashMap<Flow, Competitor>,
    waiting: BTreeMap<Turn, Flow>,
    /// With the seconds that each was expected to take.
    running: HashMap<Turn, (Flow, f64)>,
}

impl Fair {
    /// A gate for `permits` passes at once.
    pub(super) fn new(permits: usize) -> Self {
        let (flows, waiting, running) = (HashMap::new(), BTreeMap::new(), HashMap::new());
        Self { permits: permits.max(1), now: 0.0, last_number: 0, flows, waiting, running }
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Adds a competitor with a share that is relative to the others'.
    pub(super) fn join(&mut self, share: f64) -> Flow {
        let flow = Flow(self.number());
        self.flows.insert(flow, Competitor { share, finish: 0.0, expected: 0.0, running: 0 });
        flow
    }

    /// Removes a competitor, whose turns have ended.
    pub(super) fn leave(&mut self, flow: Flow) {
        self.waiting.retain(|_, waiting| *waiting != flow);
        self.flows.remove(&flow);
    }

    /// Whether somebody waits.
    pub(super) fn is_contended(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Asks for a turn; [`Fair::grant`] says when it begins.
    pub(super) fn enter(&mut self, flow: Flow) -> Turn {
        let turn = Turn(self.number());
        self.waiting.insert(turn, flow);
        turn
    }

    /// How many turns have begun and not ended.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Begins the turn that is next, if a permit is free.
    pub(super) fn grant(&mut self) -> Option<Turn> {
        if self.running.len() < self.permits { self.begin(|_| true) } else { None }
    }

    /// Begins a turn beyond the number of permits, of a competitor that has nothing running: for when those that run take
    /// long, so that a short pass need not wait for their end.
    pub(super) fn lend(&mut self) -> Option<Turn> {
        self.begin(|flow| flow.running == 0)
    }

    /// Begins the turn of the least start tag among the competitors that may; of equal ones the one that came first.
    fn begin(&mut self, may: impl Fn(&Competitor) -> bool) -> Option<Turn> {
        let mut next: Option<(f64, Turn, Flow)> = None;
        for (&turn, &flow) in &self.waiting {
            let Some(competitor) = self.flows.get(&flow).filter(|competitor| may(competitor)) else { continue };
            let start = competitor.finish.max(self.now);
            if next.is_none_or(|(least, ..)| start < least) {
                next = Some((start, turn, flow));
            }
        }
        let (start, turn, flow) = next?;
        self.waiting.remove(&turn);
        let competitor = self.flows.get_mut(&flow)?;
        competitor.finish = start + competitor.expected / competitor.share;
        competitor.running += 1;
        self.running.insert(turn, (flow, competitor.expected));
        self.now = start;
        Some(turn)
    }

    /// Ends a turn that has begun and took `time`.
    pub(super) fn end(&mut self, turn: Turn, time: Duration) {
        let Some((flow, expected)) = self.running.remove(&turn) else { return };
        let Some(competitor) = self.flows.get_mut(&flow) else { return };
        let took = time.as_secs_f64();
        competitor.running -= 1;
        competitor.finish += (took - expected) / competitor.share;
        competitor.expected = took;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    /// Runs competitors `(share, pass)` that always want a turn on one permit for `total`; returns each one's time.
    fn compete(competitors: &[(f64, Duration)], total: Duration) -> Vec<Duration> {
        let mut fair = Fair::new(1);
        let flows: Vec<Flow> = competitors.iter().map(|&(share, _)| fair.join(share)).collect();
        let mut turns: Vec<Turn> = flows.iter().map(|&flow| fair.enter(flow)).collect();
        let mut had = vec![Duration::ZERO; flows.len()];
        while had.iter().sum::<Duration>() < total {
            let turn = fair.grant().expect("somebody waits and the permit is free");
            let who = turns.iter().position(|&waiting| waiting == turn).unwrap();
            assert_eq!(fair.grant(), None, "one permit");
            fair.end(turn, competitors[who].1);
            had[who] += competitors[who].1;
            turns[who] = fair.enter(flows[who]);
        }
        had
    }

    #[test]
    fn equal_shares_get_equal_time_however_long_their_passes_are() {
        let had = compete(&[(1.0, 50 * MS), (1.0, MS), (1.0, 7 * MS)], 6000 * MS);
        for time in &had {
            assert!(time.abs_diff(2000 * MS) <= 100 * MS, "{had:?}");
        }
    }

    #[test]
    fn a_share_is_relative_to_the_others() {
        let had = compete(&[(3.0, 5 * MS), (1.0, 5 * MS)], 4000 * MS);
        assert!(had[0].abs_diff(3000 * MS) <= 20 * MS, "{had:?}");
    }

    #[test]
    fn who_was_idle_gets_no_credit_for_it() {
        let mut fair = Fair::new(1);
        let (busy, idle) = (fair.join(1.0), fair.join(1.0));
        for _ in 0..100 {
            fair.enter(busy);
            let turn = fair.grant().unwrap();
            fair.end(turn, MS);
        }
        let mut order = Vec::new();
        let mut waiting = vec![(fair.enter(busy), 'b'), (fair.enter(idle), 'i')];
        for _ in 0..6 {
            let turn = fair.grant().unwrap();
            let who = waiting.iter().position(|known| known.0 == turn).unwrap();
            let (_, name) = waiting.remove(who);
            order.push(name);
            fair.end(turn, MS);
            let flow = if name == 'b' { busy } else { idle };
            waiting.push((fair.enter(flow), name));
        }
        let of_idle = order.iter().filter(|&&name| name == 'i').count();
        assert!((3..=4).contains(&of_idle), "{order:?}");
    }

    #[test]
    fn a_permit_is_lent_only_to_who_has_nothing_running() {
        let mut fair = Fair::new(1);
        let (long, short) = (fair.join(1.0), fair.join(1.0));
        let first = fair.enter(long);
        assert_eq!(fair.grant(), Some(first));
        fair.enter(long);
        assert_eq!((fair.grant(), fair.lend()), (None, None));
        let other = fair.enter(short);
        assert_eq!(fair.lend(), Some(other));
        fair.end(first, MS);
        assert_eq!(fair.grant(), None, "what was lent counts");
        fair.end(other, MS);
        assert!(fair.grant().is_some());
    }

    proptest! {
        /// No competitor starves: while two want turns all the time, what they had per share differs by at most one longest
        /// pass of each.
        #[test]
        fn nobody_starves(competitors in prop::collection::vec((1..5_u32, 1..40_u32), 2..6)) {
            let competitors: Vec<(f64, Duration)> = competitors.iter().map(|&(share, ms)| (f64::from(share), ms * MS)).collect();
            let had = compete(&competitors, 5000 * MS);
            let per_share: Vec<f64> = had.iter().zip(&competitors).map(|(time, (share, _))| time.as_secs_f64() / share).collect();
            for (a, &(share_a, pass_a)) in per_share.iter().zip(&competitors) {
                for (b, &(share_b, pass_b)) in per_share.iter().zip(&competitors) {
                    let bound = pass_a.as_secs_f64() / share_a + pass_b.as_secs_f64() / share_b + 1e-9;
                    prop_assert!((a - b).abs() <= bound, "{:?} {:?}", competitors, had);
                }
            }
        }
    }
}
