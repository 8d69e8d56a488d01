//! Whether a step can still be faster than another one: a plan that cannot is given up on its way.
//!
//! What has happened so far on a rank with the fullest experts (of several kinds of accelerators, on the
//! one that the bound names), and on those that it sends to in the other stages, is put in place of the least that the bound of the plan knows of it. The bound of the
//! rest then says how fast the step can still be.

use crate::fold::Entity;
use rackflow_plan::{PassMark, Passes};
use rackflow_units::{SimDuration, SimTime};

/// How often it is asked, over a whole step.
const CHECKS: usize = 64;

/// What was known of a step when it was given up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GivenUp {
    /// It cannot take less.
    pub at_least: SimDuration,
    /// Passes that had ended, as a fraction of all.
    pub done: f64,
}

/// One step against a time.
pub(crate) struct Race<'p> {
    passes: &'p Passes,
    /// A step that takes as long has lost.
    under: SimDuration,
    /// Of each entity, the stage that it is watched for.
    stage_of: Vec<Option<u32>>,
    /// Of each stage, how many marks of its program are behind it.
    marks: Vec<usize>,
    /// When the kernels of the passes of each stage were done.
    ended: Vec<Vec<u64>>,
    /// Passes that have ended, and after how many it is asked again.
    done: usize,
    next_check: usize,
    between: usize,
    /// All passes.
    all: usize,
    lost: Option<GivenUp>,
}

impl<'p> Race<'p> {
    /// A step of these entities against `under`; `entity_of` says which one stands for a rank.
    pub fn new(
        passes: &'p Passes,
        under: SimDuration,
        entities: &[Entity],
        entity_of: impl Fn(u32) -> u32,
    ) -> Self {
        let stages = passes.counts().count();
        let mut stage_of = vec![None; entities.len()];
        let fullest = || {
            (0..entities.len())
                .filter(|entity| entities[*entity].stage == 0)
                .max_by_key(|entity| (entities[*entity].load, std::cmp::Reverse(*entity)))
        };
        let watched = passes.watched().map(|rank| entity_of(rank) as usize);
        let mut at = watched.or_else(fullest);
        for stage in 0..stages {
            if let Some(entity) = at {
                stage_of[entity] = Some(stage as u32);
                at = Some(entities[entity].next as usize);
            }
        }
        let all = passes.counts().sum::<usize>();
        let between = all.div_ceil(CHECKS).max(1);
        Self {
            passes,
            under,
            stage_of,
            marks: vec![0; stages],
            ended: vec![Vec::new(); stages],
            done: 0,
            next_check: between,
            between,
            all,
            lost: None,
        }
    }

    /// An entity has computed a task; `passes` are the marks of its program.
    pub fn computed(&mut self, entity: u32, task: u32, passes: &[PassMark], now: SimTime) {
        let Some(stage) = self.stage_of[entity as usize] else {
            return;
        };
        let behind = &mut self.marks[stage as usize];
        let Some(mark) = passes.get(*behind).filter(|mark| mark.tasks.1 == task) else {
            return;
        };
        *behind += 1;
        let ended = &mut self.ended[stage as usize];
        // Passes without kernels end when nobody knows.
        ended.resize(mark.place as usize, 0);
        ended.push(now.since(SimTime::ZERO).as_picos());
        self.done += 1;
        if self.done >= self.next_check {
            self.next_check = self.done + self.between;
            let at_least = self.passes.step_time(&self.ended);
            self.lost = (at_least >= self.under).then(|| GivenUp {
                at_least,
                done: self.done as f64 / self.all as f64,
            });
        }
    }

    /// Whether it cannot be faster any more.
    pub fn lost(&self) -> Option<GivenUp> {
        self.lost
    }
}
