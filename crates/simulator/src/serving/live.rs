//! Requests that are not answered yet.

use super::luck::Luck;
use super::record::Phase;
use super::trace::Phases;
use rackflow_units::{SimDuration, SimTime};
use rackflow_workload::Segment;

/// One request between arrival and answer.
#[derive(Debug)]
pub(super) struct Live {
    pub number: u64,
    pub arrival: SimTime,
    pub input: u32,
    pub output: u32,
    pub priority: u32,
    pub session: Option<u64>,
    pub prefix: Vec<Segment>,
    /// Names of the whole blocks of the shareable beginning of the prompt.
    pub chain: Vec<u64>,
    /// Blocks of `chain` that it uses, from the first.
    pub named: u64,
    /// Blocks of its own.
    pub private: u64,
    /// Blocks of `chain` that lower tiers have brought.
    pub fetched: u64,
    /// What waits on a decode replica while the prompt is computed elsewhere.
    pub room: Room,
    /// Tokens that must be in the cache before it decodes.
    pub target: u64,
    /// Tokens in the cache.
    pub computed: u64,
    /// Tokens of the answer.
    pub generated: u32,
    /// Denoising steps done of the current block, or of all.
    pub denoised: u32,
    pub first_at: Option<SimTime>,
    pub first_tokens: u32,
    pub cached: u64,
    pub loaded: u64,
    pub preemptions: u32,
    /// Its cache waits in host memory.
    pub swapped: bool,
    /// Complete, and only padding of a static batch.
    pub padding: bool,
    pub prefill_replica: u32,
    pub decode_replica: u32,
    /// Loads that are under way.
    pub loads: u32,
    /// Which guesses are accepted.
    pub luck: Option<Luck>,
    pub measured: bool,
    phase: Phase,
    since: SimTime,
    pub spent: [SimDuration; Phase::COUNT],
    /// Of a run that is traced: what it did when.
    pub traced: Option<Box<Phases>>,
}

impl Live {
    pub fn new(number: u64, now: SimTime, request: rackflow_workload::Request) -> Self {
        Self {
            number,
            arrival: now,
            input: request.input_tokens,
            output: request.output_tokens,
            priority: request.priority,
            session: request.session,
            prefix: request.prefix,
            chain: Vec::new(),
            named: 0,
            private: 0,
            fetched: 0,
            room: Room::default(),
            target: u64::from(request.input_tokens),
            computed: 0,
            generated: 0,
            denoised: 0,
            first_at: None,
            first_tokens: 0,
            cached: 0,
            loaded: 0,
            preemptions: 0,
            swapped: false,
            padding: false,
            prefill_replica: 0,
            decode_replica: 0,
            loads: 0,
            luck: None,
            measured: false,
            phase: Phase::Queued,
            since: now,
            spent: [SimDuration::ZERO; Phase::COUNT],
            traced: None,
        }
    }

    /// From now on it does this.
    pub fn enter(&mut self, phase: Phase, now: SimTime) {
        self.spent[self.phase as usize] += now.since(self.since);
        if let Some(phases) = &mut self.traced {
            phases.push((self.phase, self.since, now));
        }
        self.since = now;
        self.phase = phase;
    }

    /// Of a run that is traced: what it did when, up to now; neighbours that are alike are one, and
    /// what took no time is left out.
    pub fn phases(&self, now: SimTime) -> Phases {
        let told = self.traced.iter().flat_map(|phases| phases.iter().copied());
        let mut phases = Phases::new();
        for (phase, start, end) in told.chain([(self.phase, self.since, now)]) {
            match phases.last_mut() {
                Some((last, _, until)) if *last == phase && *until == start => *until = end,
                _ if start == end => {}
                _ => phases.push((phase, start, end)),
            }
        }
        phases
    }

    pub fn held(&self) -> u64 {
        self.named + self.private
    }

    /// Prompt tokens that are not computed yet.
    pub fn rest(&self) -> u64 {
        self.target.saturating_sub(self.computed)
    }

    pub fn decodes(&self) -> bool {
        self.computed >= self.target
    }

    /// Tokens of the whole request.
    pub fn all_tokens(&self) -> u64 {
        u64::from(self.input) + u64::from(self.output)
    }
}

/// Blocks on the decode side before the cache is there.
#[derive(Debug, Clone, Default)]
pub(super) struct Room {
    /// Names of the whole blocks of the prompt, as that replica counts blocks.
    pub chain: Vec<u64>,
    /// Blocks of `chain` that were there, from the first.
    pub named: u64,
    /// Blocks of its own.
    pub private: u64,
    /// Tokens that need not come.
    pub tokens: u64,
}

/// Live requests by a number that is used again.
#[derive(Debug, Default)]
pub(super) struct Lives {
    slots: Vec<Option<Live>>,
    free: Vec<u32>,
}

impl Lives {
    pub fn insert(&mut self, live: Live) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(live);
                slot
            }
            None => {
                self.slots.push(Some(live));
                (self.slots.len() - 1) as u32
            }
        }
    }

    pub fn remove(&mut self, id: u32) -> Live {
        self.free.push(id);
        self.slots[id as usize].take().expect("the request is live")
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Live> {
        self.slots.iter().flatten()
    }
}

impl std::ops::Index<u32> for Lives {
    type Output = Live;
    fn index(&self, id: u32) -> &Live {
        self.slots[id as usize]
            .as_ref()
            .expect("the request is live")
    }
}

impl std::ops::IndexMut<u32> for Lives {
    fn index_mut(&mut self, id: u32) -> &mut Live {
        self.slots[id as usize]
            .as_mut()
            .expect("the request is live")
    }
}
