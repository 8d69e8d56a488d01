//! The best plans for a scenario: every plan bounded, only those simulated that could be among them.

use crate::race::GivenUp;
use crate::record::Record;
use crate::step::{LaidOut, simulate, simulate_laid_out};
use rackflow_plan::{
    Candidate, Expansion, GroupSlot, LeftOut, Passes, Pattern, Plan, PlanError, RankOrder, Search,
    Setup, Space, Spans, compile,
};
use rackflow_units::SimDuration;
use rayon::prelude::*;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::{Arc, Mutex, PoisonError};

/// Plans that are bounded closely at a time, those that are played through the allocator, and those that are
/// simulated. Constants, so that the same plans are simulated on any number of threads.
const BOUNDED_AT_ONCE: usize = 256;
const PLAYED_AT_ONCE: usize = 16;
const SIMULATED_AT_ONCE: usize = 8;
/// A simulation is given up for now once its step takes so many times as long as the best that is known;
/// where that was too strict, it is allowed so many times more.
const WITHIN: f64 = 1.05;
/// It is not before its step takes so many times as long as the last plan that is likely to be shown.
const BEYOND_FORESEEN: f64 = 1.01;
/// Of so many plans with the lowest bounds, those are simulated first that are expected to be fastest.
const WINDOW: usize = 64;

/// A plan that was simulated.
#[derive(Debug, Clone)]
pub struct Found {
    /// The plan; `None` for the scenario's own.
    pub candidate: Option<Candidate>,
    /// Which of its ranks are neighbours.
    pub rank_order: RankOrder,
    /// What happened.
    pub record: Record,
    /// What the same plan takes in the other order of ranks, where there is one and it was asked for.
    pub reordered: Option<Reordered>,
}

/// How long a plan takes in the order of ranks that is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reordered {
    /// It was simulated.
    Takes(SimDuration),
    /// It was not, since no more simulations were allowed.
    AtLeast(SimDuration),
}

impl Found {
    /// Wall time of the step.
    pub fn step_time(&self) -> SimDuration {
        self.record.step_time
    }
}

/// What a search found, and what it left out.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The scenario's own plan.
    pub own: Found,
    /// Whether that fits into memory; its time is that of enough memory where it does not.
    pub own_fits: bool,
    /// Whether the allocator's segments leave its tensors their place ([`Search::lacks_place`]); its time is that of just enough where they
    /// do not.
    pub own_has_place: bool,
    /// The best plans, best first. A plan in both orders of ranks is one: the better, and where they tie that
    /// in the scenario's own order.
    pub best: Vec<Found>,
    /// Plans that fit into memory, each bounded from below.
    pub bounded: u64,
    /// Of those, the ones whose every pass was followed.
    pub closely: u64,
    /// Of those, the ones that were left out since the allocator's segments leave no place for all tensors
    /// ([`Search::lacks_place`]). It is known of those that could have been among the best.
    pub without_place: u64,
    /// Plans that were simulated, to the end or until it was known that they are no better.
    pub simulated: u64,
    /// Of those, the ones that were given up on the way.
    pub given_up: u64,
    /// What is not proved, where fewer plans were simulated than it takes.
    pub unproved: Option<Unproved>,
    /// Plans that the simulator's own limits refuse.
    pub refused: u64,
    /// Of the plans that are not among those above, how many and why.
    pub left_out: LeftOut,
}

/// Plans that could be among the best, for all that is known of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unproved {
    /// How many.
    pub plans: u64,
    /// None of them takes less.
    pub at_least: SimDuration,
}

/// How far a search is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So many of so many branches are listed and bounded.
    Listed(usize, usize),
    /// So many plans are bounded closely, and so many are simulated; at most so many are left to be
    /// looked at.
    Judged {
        /// Bounded closely.
        closely: usize,
        /// Simulated.
        simulated: usize,
        /// Neither yet, and not ruled out.
        left: usize,
    },
}

/// A search around `setup` that knows how full the fullest experts are.
///
/// # Errors
/// Those of [`Search::new`].
pub fn planner(setup: &Setup, space: Space) -> Result<Search, PlanError> {
    let search = Search::new(setup, space)?;
    Ok(search.with_loads(|expert| crate::fold::most_load(setup, expert)))
}

/// Where a bound of a candidate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Bound {
    /// Sums.
    Sums,
    /// Its passes, one after the other.
    Passes,
    /// The same, and what they wait for the allocator.
    Allocator,
}

/// What is known of a candidate: the best bound, its place in the listing, and which bound it is.
type Known = Reverse<(SimDuration, usize, Bound)>;

/// Finds the `keep` best plans. Those that are left out are proved to be no better: their lower
/// bound is not under the step time of the last one kept. At `most` so many plans are simulated, those
/// that promise most; where that is not enough, [`Outcome::unproved`] says what is left.
///
/// # Errors
/// Those of [`compile`], for the scenario's own plan.
pub fn search(
    search: &Search,
    setup: &Setup,
    keep: usize,
    most: Option<u64>,
    progress: impl Fn(Progress) + Sync,
) -> Result<Outcome, PlanError> {
    find(search, setup, (keep, false), most, progress)
}

/// Finds the best plan that is better than the scenario's own, if there is one: what is left out is
/// proved to be no better than the better of the two, or is [`Outcome::unproved`] as in [`search`].
///
/// # Errors
/// Those of [`compile`], for the scenario's own plan.
pub fn improve(
    search: &Search,
    setup: &Setup,
    most: Option<u64>,
    progress: impl Fn(Progress) + Sync,
) -> Result<Outcome, PlanError> {
    find(search, setup, (1, true), most, progress)
}

fn find(
    search: &Search,
    setup: &Setup,
    (keep, only_better): (usize, bool),
    most: Option<u64>,
    progress: impl Fn(Progress) + Sync,
) -> Result<Outcome, PlanError> {
    let plan = compile(setup)?;
    let mut pressures = plan.facts.stages.iter().map(|stage| stage.pressure);
    let own_fits = plan.check_memory().is_ok();
    let own_has_place = !pressures.any(|of| of.lacks_place());
    let own = Found {
        candidate: None,
        rank_order: setup.rank_order,
        record: simulate(&plan),
        reordered: None,
    };
    // What does not fit is nothing to beat.
    let own_time = if own_fits && own_has_place {
        own.step_time()
    } else {
        SimDuration::MAX
    };
    let (candidates, left_out) = list(search, &progress);
    let mut judge = Judge {
        search,
        simulator: Simulator::default(),
        keep,
        under: only_better.then_some(own_time),
        most: most.unwrap_or(u64::MAX),
        begun: 0,
        own: own_time,
        within: WITHIN,
        candidates: &candidates,
        one_plan: one_plan(&candidates),
        best: Vec::new(),
        closely: 0,
        without_place: BTreeSet::new(),
        simulated: BTreeSet::new(),
        given_up: BTreeMap::new(),
        ended: BTreeMap::new(),
        ruled_out: BTreeMap::new(),
        foreseen: SimDuration::ZERO,
        refused: BTreeSet::new(),
        habits: Habits::default(),
    };
    let known = candidates.iter().enumerate();
    let mut queue: BinaryHeap<Known> = known
        .map(|(place, candidate)| Reverse((candidate.at_least, place, Bound::Sums)))
        .collect();
    while judge.step(&mut queue) {
        progress(Progress::Judged {
            closely: judge.closely,
            simulated: judge.simulated.len(),
            left: queue
                .iter()
                .filter(|Reverse((at_least, place, _))| judge.could_win(*at_least, *place))
                .count(),
        });
    }
    if !only_better {
        judge.reorder(&mut queue);
    }
    let unproved = judge.unproved(&queue);
    let Judge {
        best,
        closely,
        without_place,
        simulated,
        given_up,
        refused,
        ..
    } = judge;
    Ok(Outcome {
        own,
        own_fits,
        own_has_place,
        best: best.into_iter().map(|(_, found)| found).collect(),
        bounded: candidates.len() as u64,
        closely: closely as u64,
        without_place: without_place.len() as u64,
        simulated: simulated.len() as u64,
        given_up: given_up.len() as u64,
        unproved,
        refused: refused.len() as u64,
        left_out,
    })
}

/// Candidates that divide the ranks alike are laid out once.
#[derive(Default)]
pub struct Simulator {
    known: Mutex<Vec<LaidOutAlike>>,
}

/// Communicators, flows, and where they are.
type LaidOutAlike = (Arc<Spans>, Flown, Arc<LaidOut>);

/// What says where the flows of a plan run, beside its communicators.
type Flown = (Vec<GroupSlot>, Option<Vec<(GroupSlot, usize, Pattern)>>);

impl Simulator {
    /// Simulates one step of a plan that [`Search::plan`] made: what [`simulate`] does, and cheaper
    /// where another one divides the ranks alike.
    pub fn simulate(&self, plan: &Plan) -> Record {
        let record = simulate_laid_out(plan, &self.laid_out(plan), None);
        record.expect("nothing is given up that is in no race")
    }

    /// The same, given up where the step cannot take less than `under`: `passes` are those of the plan
    /// ([`Search::passes`]).
    ///
    /// # Errors
    /// What was known when it was given up.
    pub fn simulate_under(
        &self,
        plan: &Plan,
        passes: &Passes,
        under: SimDuration,
    ) -> Result<Record, GivenUp> {
        simulate_laid_out(plan, &self.laid_out(plan), Some((passes, under)))
    }

    fn laid_out(&self, plan: &Plan) -> Arc<LaidOut> {
        let patterns = plan.on_fabric.then(|| plan.flow_patterns());
        let flown = (plan.slots.clone(), patterns);
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |(spans, of, _): &&LaidOutAlike| Arc::ptr_eq(spans, &plan.spans) && *of == flown;
        let known = lock().iter().find(same).map(|(.., laid)| laid.clone());
        known.unwrap_or_else(|| {
            let laid = Arc::new(LaidOut::of(plan));
            lock().push((plan.spans.clone(), flown, laid.clone()));
            laid
        })
    }
}

/// The best of what is simulated so far.
struct Judge<'a> {
    search: &'a Search,
    simulator: Simulator,
    keep: usize,
    /// Nothing else is kept.
    under: Option<SimDuration>,
    /// Simulations that are allowed, and those that were begun.
    most: u64,
    begun: u64,
    /// The scenario's own step time, and how many times that of the best a step may take for now.
    own: SimDuration,
    within: f64,
    candidates: &'a [Candidate],
    /// For each place in the listing the first one of the same plan, whatever its order of ranks.
    one_plan: Vec<usize>,
    /// Places in the listing, and what was found there: of each plan the better order of ranks.
    best: Vec<(usize, Found)>,
    closely: usize,
    /// Places of those whose tensors find no place beside what the allocator holds.
    without_place: BTreeSet<usize>,
    /// Places of those that were simulated, and of those, the ones that were given up, with their bounds before.
    simulated: BTreeSet<usize>,
    given_up: BTreeMap<usize, SimDuration>,
    /// What those took that were simulated to the end.
    ended: BTreeMap<usize, SimDuration>,
    /// Bounds of those that are no faster than the same plan in the other order of ranks.
    ruled_out: BTreeMap<usize, SimDuration>,
    /// The step time of the last plan to be kept, as far as it can be foreseen.
    foreseen: SimDuration,
    /// Places of those that the simulator refuses.
    refused: BTreeSet<usize>,
    habits: Habits,
}

/// What a simulation came to.
enum Judged {
    Found(Box<Found>),
    GivenUp(GivenUp),
    Refused,
}

/// How far above their bounds plans of one kind are. Only the order in which plans are simulated
/// depends on it: the sooner good ones are found, the sooner others are given up.
#[derive(Default)]
struct Habits(BTreeMap<(u8, u32, u32, bool), (f64, f64)>);

impl Habits {
    fn kind(candidate: &Candidate) -> (u8, u32, u32, bool) {
        let plan = &candidate.parallelism;
        let interleaved = plan.virtual_pipeline > 1;
        let schedule = candidate.schedule as u8;
        (schedule, plan.tensor, plan.context, interleaved)
    }

    fn note(&mut self, candidate: &Candidate, ratio: f64) {
        let (sum, count) = self.0.entry(Self::kind(candidate)).or_default();
        *sum += ratio;
        *count += 1.0;
    }

    /// The step time that is expected; of a kind that is not known, as of the mean.
    fn expected(&self, candidate: &Candidate, bound: SimDuration) -> SimDuration {
        let known = self.0.get(&Self::kind(candidate)).copied();
        let (sum, count) = known.unwrap_or_else(|| {
            let all = self.0.values();
            all.fold((0.0, 0.0), |(sum, count), (s, c)| (sum + s, count + c))
        });
        let ratio = if count > 0.0 { sum / count } else { 1.0 };
        SimDuration::from_picos((bound.as_picos() as f64 * ratio) as u64)
    }
}

impl Judge<'_> {
    /// Looks at those that promise most; false when nothing better can be left.
    fn step(&mut self, queue: &mut BinaryHeap<Known>) -> bool {
        let mut to_bound = Vec::new();
        let mut to_play = Vec::new();
        let mut window = Vec::new();
        while to_bound.len() < BOUNDED_AT_ONCE
            && to_play.len() < PLAYED_AT_ONCE
            && window.len() < WINDOW
            && let Some(Reverse((at_least, place, bound))) = queue.peek().copied()
            && at_least < self.limit()
        {
            // What promises less is not looked at closer before it is known what promises more.
            let waits = match bound {
                Bound::Sums => false,
                Bound::Passes => !to_bound.is_empty(),
                Bound::Allocator => !to_bound.is_empty() || !to_play.is_empty(),
            };
            if waits {
                break;
            }
            queue.pop();
            if self.is_faster_reordered(at_least, place) {
                self.ruled_out.insert(place, at_least);
                continue;
            }
            match bound {
                Bound::Sums => to_bound.push(place),
                Bound::Passes => to_play.push(place),
                Bound::Allocator => window.push((at_least, place)),
            }
        }
        if !to_bound.is_empty() || !to_play.is_empty() {
            self.closely += to_bound.len();
            let bounded = to_bound.par_iter().map(|place| self.bounded(*place));
            let played = to_play.par_iter().map(|place| self.played(*place));
            let found: Vec<Result<Known, usize>> = bounded.map(Ok).chain(played).collect();
            for one in found {
                match one {
                    Ok(known) => queue.push(known),
                    Err(place) => _ = self.without_place.insert(place),
                }
            }
            queue.extend(window.into_iter().map(to_simulate));
            return true;
        }
        let allowed = self.most.saturating_sub(self.begun);
        let expected = |(at_least, place): &(SimDuration, usize)| {
            let candidate = &self.candidates[*place];
            (self.habits.expected(candidate, *at_least), *place)
        };
        window.sort_by_cached_key(expected);
        let at_once = allowed.min(SIMULATED_AT_ONCE as u64) as usize;
        let later = window.split_off(at_once.min(window.len()));
        queue.extend(later.into_iter().map(to_simulate));
        self.simulate(&window, self.limit(), queue);
        if !window.is_empty() {
            return true;
        }
        // What is left is beyond what was allowed so far, or beyond what could win.
        let mut left = queue.iter();
        let goes_on = allowed > 0
            && left.any(|Reverse((at_least, place, _))| self.could_win(*at_least, *place));
        if goes_on {
            self.within *= WITHIN;
        }
        goes_on
    }

    /// Simulates these places of the listing, beside their bounds, each until it cannot take less than
    /// `under`, and keeps the best.
    fn simulate(
        &mut self,
        places: &[(SimDuration, usize)],
        under: SimDuration,
        queue: &mut BinaryHeap<Known>,
    ) {
        self.begun += places.len() as u64;
        let mut again = Vec::new();
        let runs: Vec<Judged> = places
            .par_iter()
            .map(|(_, place)| self.run(&self.candidates[*place], under))
            .collect();
        for ((bound, place), judged) in places.iter().zip(runs) {
            let beyond = |time: SimDuration| time.as_secs_f64() / bound.as_secs_f64();
            let candidate = &self.candidates[*place];
            match judged {
                Judged::Found(found) => {
                    self.simulated.insert(*place);
                    self.given_up.remove(place);
                    self.ended.insert(*place, found.step_time());
                    self.habits.note(candidate, beyond(found.step_time()));
                    if self.under.is_none_or(|under| found.step_time() < under) {
                        self.keep(*place, *found);
                    }
                }
                Judged::GivenUp(at) => {
                    self.simulated.insert(*place);
                    self.given_up.entry(*place).or_insert(*bound);
                    again.push((at.at_least, *place));
                    // As late as it was by then, to the end.
                    let late = (beyond(at.at_least) - 1.0).max(0.0) / at.done;
                    self.habits.note(candidate, 1.0 + late);
                }
                Judged::Refused => {
                    self.refused.insert(*place);
                }
            }
        }
        self.sort();
        self.best.truncate(self.keep);
        // It may still win where it was allowed too little.
        again.retain(|(at_least, place)| self.could_win(*at_least, *place));
        queue.extend(again.into_iter().map(to_simulate));
        self.foreseen = self.foresee(queue);
    }

    /// Keeps what was found at a place, in the better order of ranks.
    fn keep(&mut self, place: usize, found: Found) {
        let plan = self.one_plan[place];
        let known = |(of, _): &&mut (usize, Found)| self.one_plan[*of] == plan;
        let Some(known) = self.best.iter_mut().find(known) else {
            self.best.push((place, found));
            return;
        };
        if (found.step_time(), place) < (known.1.step_time(), known.0) {
            *known = (place, found);
        }
    }

    /// Equal times keep the order in which plans are listed.
    fn sort(&mut self) {
        self.best
            .sort_by_key(|(place, found)| (found.step_time(), *place));
    }

    /// Says of each plan that is kept what it takes in the other order of ranks, which is simulated for that
    /// as far as simulations are allowed. It is no faster, but it may tie and be the scenario's own order.
    fn reorder(&mut self, queue: &mut BinaryHeap<Known>) {
        let places = 0..self.candidates.len();
        let other = |place: usize| {
            let plan = self.one_plan[place];
            let mut of_plan = places.clone().filter(|other| self.one_plan[*other] == plan);
            of_plan.find(|other| *other != place)
        };
        let pairs = self.best.iter().map(|(place, _)| (*place, other(*place)));
        let pairs: Vec<(usize, Option<usize>)> = pairs.collect();
        let others = pairs.iter().filter_map(|(_, other)| *other);
        let unknown = others.filter(|other| !self.ended.contains_key(other));
        let unknown: Vec<usize> = unknown.collect();
        let lacks_place = |place: &&usize| self.search.lacks_place(&self.candidates[**place]);
        let without_place = unknown.par_iter().filter(lacks_place);
        let without_place: Vec<usize> = without_place.copied().collect();
        self.without_place.extend(without_place);
        let has_place = |place: &usize| !self.without_place.contains(place);
        let unknown = unknown.into_iter().filter(has_place);
        let allowed = usize::try_from(self.most.saturating_sub(self.begun));
        let unknown: Vec<(SimDuration, usize)> = unknown
            .take(allowed.unwrap_or(usize::MAX))
            .map(|place| (self.known_bound(place, queue), place))
            .collect();
        self.simulate(&unknown, SimDuration::MAX, queue);
        for (place, other) in pairs {
            let Some(other) = other else { continue };
            let bound = self.known_bound(other, queue);
            let is_pair = |(of, _): &&mut (usize, Found)| *of == place || *of == other;
            let Some((shown, found)) = self.best.iter_mut().find(is_pair) else {
                continue;
            };
            let hidden = if *shown == place { other } else { place };
            let takes = self.ended.get(&hidden).copied().map(Reordered::Takes);
            let is_refused = self.refused.contains(&hidden) || self.without_place.contains(&hidden);
            let at_least = (!is_refused).then_some(Reordered::AtLeast(bound));
            found.reordered = takes.or(at_least);
        }
    }

    /// The best bound that is known of a place that was not simulated to the end.
    fn known_bound(&self, place: usize, queue: &BinaryHeap<Known>) -> SimDuration {
        let first = self.candidates[place].at_least;
        let queued = queue.iter().find(|Reverse((_, of, _))| *of == place);
        let queued = queued.map(|Reverse((at_least, ..))| *at_least);
        let ruled_out = self.ruled_out.get(&place).copied();
        let given_up = self.given_up.get(&place).copied();
        let known = [queued, ruled_out, given_up];
        known.into_iter().flatten().fold(first, SimDuration::max)
    }

    /// What the last plan to be kept takes if all plans are as far above their bounds as those of their kind
    /// were. A simulation that is given up under it is likely to be taken up again from its beginning, so
    /// rather a little more is allowed.
    fn foresee(&self, queue: &BinaryHeap<Known>) -> SimDuration {
        let best = self.best.iter();
        let best = best.map(|(place, found)| (self.one_plan[*place], found.step_time()));
        let mut times: Vec<(usize, SimDuration)> = best.collect();
        let closely = queue.iter().filter(|Reverse((.., of))| *of > Bound::Sums);
        times.extend(closely.map(|Reverse((at_least, place, _))| {
            let bound = self.given_up.get(place).copied().unwrap_or(*at_least);
            let expected = self.habits.expected(&self.candidates[*place], bound);
            (self.one_plan[*place], expected.max(*at_least))
        }));
        // Of each plan the better order of ranks.
        times.sort_unstable();
        times.dedup_by_key(|(plan, _)| *plan);
        let by_time = |(_, time): &(usize, SimDuration)| *time;
        match self.keep.checked_sub(1).filter(|last| *last < times.len()) {
            Some(last) => times.select_nth_unstable_by_key(last, by_time).1.1,
            None => SimDuration::ZERO,
        }
    }

    /// The closer bound of one that has none yet.
    fn bounded(&self, place: usize) -> Known {
        let candidate = &self.candidates[place];
        let bound = if self.search.may_stall(candidate) {
            Bound::Passes
        } else {
            Bound::Allocator
        };
        Reverse((self.search.bound(candidate), place, bound))
    }

    /// The closest bound of one that may wait for the allocator; its place where it leaves the tensors none.
    fn played(&self, place: usize) -> Result<Known, usize> {
        let candidate = &self.candidates[place];
        if self.search.lacks_place(candidate) {
            return Err(place);
        }
        let at_least = self.search.bound_played(candidate);
        Ok(Reverse((at_least, place, Bound::Allocator)))
    }

    fn run(&self, candidate: &Candidate, under: SimDuration) -> Judged {
        let Ok(plan) = self.search.plan(candidate) else {
            return Judged::Refused;
        };
        let passes = self.search.passes(candidate);
        let record = self.simulator.simulate_under(&plan, &passes, under);
        match record {
            Ok(record) => Judged::Found(Box::new(Found {
                candidate: Some(candidate.clone()),
                rank_order: candidate.rank_order,
                record,
                reordered: None,
            })),
            Err(at) => Judged::GivenUp(at),
        }
    }

    /// What a plan must take less than to be kept; `None` where any is.
    fn to_beat(&self) -> Option<SimDuration> {
        let worst = self.best.get(self.keep.saturating_sub(1));
        let worst = worst.map(|(_, found)| found.step_time());
        match (worst, self.under) {
            (Some(worst), Some(under)) => Some(worst.min(under)),
            (worst, under) => worst.or(under),
        }
    }

    /// What a simulation must take less than to be followed to its end for now.
    fn limit(&self) -> SimDuration {
        let best = self.best.first().map(|(_, found)| found.step_time());
        // Something is to be shown, however few simulations are allowed.
        let last_ones = self.begun.saturating_add(SIMULATED_AT_ONCE as u64) >= self.most;
        if best.is_none() && self.under.is_none() && last_ones {
            return SimDuration::MAX;
        }
        let best = best.map_or(self.own, |best| best.min(self.own));
        let times = |time: SimDuration, by: f64| {
            SimDuration::from_picos((time.as_picos() as f64 * by) as u64)
        };
        let allowed = times(best, self.within).max(times(self.foreseen, BEYOND_FORESEEN));
        self.to_beat().map_or(allowed, |under| under.min(allowed))
    }

    /// Whether a place with this bound could be among the best, or better than what is known of its plan.
    fn could_win(&self, at_least: SimDuration, place: usize) -> bool {
        self.to_beat().is_none_or(|under| at_least < under)
            && !self.is_faster_reordered(at_least, place)
    }

    /// Whether the plan of a place is among the best in the other order of ranks, and no slower than this bound.
    fn is_faster_reordered(&self, at_least: SimDuration, place: usize) -> bool {
        let plan = self.one_plan[place];
        let mut best = self.best.iter();
        best.any(|(of, found)| {
            self.one_plan[*of] == plan && *of != place && found.step_time() <= at_least
        })
    }

    /// What is left in the queue that could still be kept.
    fn unproved(&self, queue: &BinaryHeap<Known>) -> Option<Unproved> {
        let left = queue
            .iter()
            .map(|Reverse((at_least, place, _))| (*at_least, *place));
        let left = left.filter(|(at_least, place)| self.could_win(*at_least, *place));
        let plans = left.clone().count() as u64;
        left.map(|(at_least, _)| at_least)
            .min()
            .map(|at_least| Unproved { plans, at_least })
    }
}

/// What waits to be simulated, or to be taken up again.
fn to_simulate((at_least, place): (SimDuration, usize)) -> Known {
    Reverse((at_least, place, Bound::Allocator))
}

/// For each place of the listing the first one of the same plan, whatever its order of ranks.
fn one_plan(candidates: &[Candidate]) -> Vec<usize> {
    let mut firsts: Vec<usize> = Vec::with_capacity(candidates.len());
    for (place, candidate) in candidates.iter().enumerate() {
        let before = candidates[..place].iter().enumerate().rev();
        let mut alike = before.take_while(|(_, other)| candidate.is_of_same_division(other));
        let other = alike.find(|(_, other)| candidate.is_reordered(other));
        firsts.push(other.map_or(place, |(other, _)| firsts[other]));
    }
    firsts
}

/// All plans that fit, in the order of the listing.
fn list(search: &Search, progress: &(impl Fn(Progress) + Sync)) -> (Vec<Candidate>, LeftOut) {
    let branches = search.branches();
    let done = std::sync::atomic::AtomicUsize::new(0);
    let expansions: Vec<Expansion> = branches
        .par_iter()
        .map(|branch| {
            let expansion = search.expand(branch);
            let done = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            progress(Progress::Listed(done, branches.len()));
            expansion
        })
        .collect();
    let mut left_out = LeftOut::default();
    let mut candidates = Vec::new();
    for expansion in expansions {
        left_out.add(&expansion.left_out);
        candidates.extend(expansion.candidates);
    }
    (candidates, left_out)
}
