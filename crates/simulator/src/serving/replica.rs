//! One replica: who waits, who runs, who has which blocks, and what the next step holds.
//!
//! Each scheduler is the engine's of that name, reduced to what decides who runs when. The source
//! is named at each.

use super::blocks::{self, Blocks, Keeps};
use super::cost::Work;
use super::live::{Live, Lives};
use super::record::Phase;
use rackflow_engine::EventId;
use rackflow_plan::serving::{PrefillChunk, StepCost};
use rackflow_units::{SimDuration, SimTime};
use rackflow_workload::{Decoder, EngineConfig, Preemption, Scheduler};
use std::collections::VecDeque;

/// Steps under way.
#[derive(Debug)]
pub(super) struct Run {
    pub start: SimTime,
    /// Steps, all of the same sequences.
    pub steps: u64,
    /// Sequences that decode, and tokens in their caches at the first step.
    pub decode: (u64, u64),
    /// The cost of the one step; `None` where the table has it.
    pub cost: Option<StepCost>,
    /// Copies between HBM and host before the step.
    pub stall: SimDuration,
    /// What a slow GPU adds to the step.
    pub slow: SimDuration,
    pub end: Option<EventId>,
    /// Its traffic is a flow of the network.
    pub flow: bool,
}

/// One replica of the model.
#[derive(Debug)]
pub(super) struct Replica {
    pub pool: usize,
    /// Its first GPU.
    pub gpu: u32,
    pub config: EngineConfig,
    decoder: Decoder,
    pub blocks: Blocks,
    /// By priority, then by arrival; what was pushed out is first in its class.
    pub waiting: VecDeque<u32>,
    /// At the door: the engine has not looked since they came.
    pub unseen: VecDeque<u32>,
    /// Steps of decoding since it looked.
    since_look: u64,
    /// In the order of admission.
    pub running: Vec<u32>,
    /// Requests with room reserved whose cache has not arrived.
    pub reserved: u32,
    /// Requests that wait for room, on a decode replica.
    pub incoming: VecDeque<u32>,
    /// The step under way, or about to begin.
    pub chunks: Vec<PrefillChunk>,
    pub prefilling: Vec<(u32, u64)>,
    pub decoding: Vec<u32>,
    /// Prompt tokens that each attention group may still compute in the step.
    room: Vec<u64>,
    pub run: Option<Run>,
    pub decide: bool,
    /// Somebody was pushed out for this step.
    preempted: bool,
    /// Prompts are held back in this step.
    holds: bool,
    /// Steps for which they have been, since one was last admitted.
    held_back: u64,
    /// Decode steps since SGLang's ratio was set back.
    calm: u64,
    stall: SimDuration,
    swap_time_per_token: f64,
    // Load, for routing.
    pub requests: u64,
    pub tokens: u64,
    /// Prompt tokens to compute.
    pub backlog: u64,
    // What was done.
    pub prefill: Work,
    pub decode: Work,
    pub prefill_tokens: u64,
    pub decode_tokens: u64,
    pub decode_sequences: u64,
    pub kv_token_steps: u128,
    pub kv_peak: u64,
    pub preemptions: u64,
    /// Peak and requests pushed out when the measured window closed.
    closed: Option<(u64, u64)>,
}

/// SGLang's defaults: part of the answers to come that is kept free, at first and after many quiet
/// steps (`--schedule-conservativeness 1`; `SGLANG_INIT_NEW_TOKEN_RATIO` and its companions).
const RATIO_FIRST: f64 = 0.7;
const RATIO_LEAST: f64 = 0.7 * 0.14;
const RATIO_STEPS: f64 = 600.0;
/// Tokens of one answer that SGLang counts at most (`CLIP_MAX_NEW_TOKENS`).
const CLIP_NEW_TOKENS: u64 = 4096;

impl Replica {
    pub fn new(
        pool: usize,
        gpu: u32,
        (config, groups): (EngineConfig, u32),
        decoder: Decoder,
        kv_tokens: u64,
        keeps: Keeps,
        swap_time_per_token: f64,
    ) -> Self {
        let total = kv_tokens / u64::from(config.block_size);
        Self {
            pool,
            gpu,
            config,
            decoder,
            blocks: Blocks::new(total, config.prefix_caching, keeps),
            waiting: VecDeque::new(),
            unseen: VecDeque::new(),
            since_look: 0,
            running: Vec::new(),
            reserved: 0,
            incoming: VecDeque::new(),
            chunks: Vec::new(),
            prefilling: Vec::new(),
            decoding: Vec::new(),
            room: vec![0; groups.max(1) as usize],
            run: None,
            decide: false,
            preempted: false,
            holds: false,
            held_back: 0,
            calm: 0,
            stall: SimDuration::ZERO,
            swap_time_per_token,
            requests: 0,
            tokens: 0,
            backlog: 0,
            prefill: Work::default(),
            decode: Work::default(),
            prefill_tokens: 0,
            decode_tokens: 0,
            decode_sequences: 0,
            kv_token_steps: 0,
            kv_peak: 0,
            preemptions: 0,
            closed: None,
        }
    }

    fn block(&self) -> u64 {
        u64::from(self.config.block_size)
    }

    fn blocks_for(&self, tokens: u64) -> u64 {
        tokens.div_ceil(self.block())
    }

    /// The whole answer's blocks are taken at admission.
    fn reserves(&self) -> bool {
        matches!(
            self.config.scheduler,
            Scheduler::TensorrtLlm | Scheduler::Orca | Scheduler::Static
        ) || matches!(self.decoder, Decoder::FullDiffusion { .. })
    }

    fn chunked(&self) -> bool {
        self.config.chunked_prefill
            && !matches!(self.config.scheduler, Scheduler::Orca | Scheduler::Static)
    }

    /// Blocks of the prompt's shareable beginning, but for its last token, which is always
    /// computed.
    fn shareable<'l>(&self, live: &'l Live) -> &'l [u64] {
        if !self.config.prefix_caching {
            return &[];
        }
        let most = live.target.saturating_sub(1) / self.block();
        &live.chain[..live.chain.len().min(most as usize)]
    }

    /// Tokens of the prompt in HBM, and the blocks beyond that lower tiers may have.
    pub fn cached(&self, live: &Live) -> (u64, usize) {
        let chain = self.shareable(live);
        let (hit, _) = self.blocks.hit(chain);
        (hit * self.block(), hit as usize)
    }

    /// The shareable blocks that HBM does not hold.
    pub fn missing<'l>(&self, live: &'l Live) -> &'l [u64] {
        let chain = self.shareable(live);
        let (hit, _) = self.blocks.hit(chain);
        &chain[hit as usize..]
    }

    /// Whether the request could ever run here.
    pub fn could_hold(&self, tokens: u64) -> bool {
        self.blocks_for(tokens) <= self.blocks.total()
    }

    /// Puts a request into the queue; `true` where it is now the first.
    pub fn enqueue(&mut self, id: u32, lives: &Lives, at_front: bool) -> bool {
        let key = |id: u32| lives[id].priority;
        let mine = key(id);
        let place = if at_front {
            self.waiting.partition_point(|other| key(*other) < mine)
        } else if self.waiting.back().is_none_or(|last| key(*last) <= mine) {
            self.waiting.len()
        } else {
            self.waiting.partition_point(|other| key(*other) <= mine)
        };
        self.waiting.insert(place, id);
        place == 0
    }

    /// A new request; `true` where it may change what the next step does.
    pub fn receive(&mut self, id: u32, lives: &Lives) -> bool {
        if self.config.poll_interval <= 1 || self.running.is_empty() {
            return self.enqueue(id, lives, false) || self.config.batch_wait.is_some();
        }
        self.unseen.push_back(id);
        self.unseen.len() == 1
    }

    /// Looks at the door when it is time (SGLang's `--scheduler-recv-interval`).
    fn look(&mut self, lives: &Lives) {
        let every = u64::from(self.config.poll_interval);
        if !self.running.is_empty() && self.since_look < every {
            return;
        }
        self.since_look = 0;
        while let Some(id) = self.unseen.pop_front() {
            self.enqueue(id, lives, false);
        }
    }

    /// Steps have ended: how long ago it looked, and for how long prompts were held back. A step of
    /// prompts is followed by a look.
    pub fn count_looks(&mut self, steps: u64, prompts: bool) {
        if self.holds {
            self.held_back += steps - 1;
        }
        let every = u64::from(self.config.poll_interval.max(1));
        self.since_look = if prompts {
            every
        } else {
            (self.since_look + steps - 1) % every + 1
        };
    }

    /// Names the blocks of a prompt that is computed elsewhere, as this replica counts blocks.
    pub fn name_blocks(&self, live: &mut Live) {
        if self.config.prefix_caching && live.room.chain.is_empty() {
            let mut chain = std::mem::take(&mut live.room.chain);
            blocks::chain(
                &live.prefix,
                live.input.into(),
                self.config.block_size,
                &mut chain,
            );
            live.room.chain = chain;
        }
    }

    /// Tokens of a prompt that is computed elsewhere which this replica holds already.
    pub fn holds(&self, live: &Live) -> u64 {
        self.blocks.hit(&live.room.chain).0 * self.block()
    }

    /// Room for a cache that will come from a prefill replica; what is here already is used.
    pub fn reserve(&mut self, live: &mut Live) -> bool {
        if self.running.len() as u32 + self.reserved >= self.config.max_num_seqs {
            return false;
        }
        let tokens = if self.reserves() {
            live.all_tokens()
        } else {
            u64::from(live.input) + 1
        };
        self.name_blocks(live);
        let (hit, idle) = self.blocks.hit(&live.room.chain);
        let fresh = self.blocks_for(tokens) - hit;
        if self.blocks.available() - idle < fresh {
            return false;
        }
        self.blocks.share(&live.room.chain[..hit as usize]);
        let taken = self.blocks.take(fresh);
        assert!(taken, "there was room");
        live.room.named = hit;
        live.room.private = fresh;
        live.room.tokens = hit * self.block();
        self.reserved += 1;
        self.kv_peak = self.kv_peak.max(self.blocks.used());
        true
    }

    /// The cache of a request is here: its blocks have names.
    pub fn receive_cache(&mut self, live: &mut Live) {
        self.reserved -= 1;
        let room = std::mem::take(&mut live.room);
        (live.chain, live.named, live.private) = (room.chain, room.named, room.private);
        self.publish(live);
    }

    /// Chooses what the next step does; `true` where somebody was pushed out for it. Nothing is left to
    /// do where both lists stay empty.
    pub fn plan(&mut self, lives: &mut Lives, now: SimTime) -> bool {
        self.chunks.clear();
        self.prefilling.clear();
        self.decoding.clear();
        self.preempted = false;
        self.holds = false;
        let each = self.group_budget();
        self.room.fill(each);
        self.look(lives);
        match self.config.scheduler {
            Scheduler::Vllm | Scheduler::TensorrtLlm | Scheduler::Orca => {
                self.plan_together(lives, now);
            }
            Scheduler::Sglang => self.plan_prefill_first(lives, now),
            Scheduler::Static => self.plan_static(lives, now),
        }
        self.kv_peak = self.kv_peak.max(self.blocks.used());
        self.preempted
    }

    /// Tokens that a sequence computes in one decode step.
    pub fn tokens_per_sequence(&self) -> u64 {
        match self.decoder {
            Decoder::Autoregressive => 1,
            Decoder::Speculative(guess) => 1 + u64::from(guess.draft_tokens),
            Decoder::BlockDiffusion { block, .. } => u64::from(block),
            Decoder::FullDiffusion { .. } => 0,
        }
    }

    /// vLLM v1 (`vllm/v1/core/sched/scheduler.py`, `schedule`): running requests in order, then
    /// waiting ones, out of one budget of tokens. TensorRT-LLM's in-flight batching and Orca differ
    /// in what they reserve and in chunks.
    fn plan_together(&mut self, lives: &mut Lives, now: SimTime) {
        let mut budget = u64::from(self.config.max_num_batched_tokens);
        let per_sequence = self.tokens_per_sequence().max(1);
        let mut index = 0;
        while index < self.running.len() && budget > 0 {
            let id = self.running[index];
            let rest = lives[id].rest();
            let tokens = if rest > 0 {
                rest.min(budget).min(self.next_room())
            } else {
                per_sequence.min(budget)
            };
            if tokens == 0 {
                // The group has no room: the next step goes on with it.
                index += 1;
                continue;
            }
            if !self.make_room(id, tokens, lives, now) {
                // It was pushed out itself.
                if self.has_work() {
                    break;
                }
                // Caches from elsewhere do not come in the order of requests, so that older ones may
                // stand behind it. An engine without work looks again at once.
                index = 0;
                continue;
            }
            budget -= tokens;
            if rest > 0 {
                self.push_chunk(id, tokens, lives);
            } else {
                self.push_decode(id, lives);
            }
            if self.preempted {
                // Somebody before it may be gone.
                index = self
                    .running
                    .iter()
                    .position(|other| *other == id)
                    .unwrap_or(index);
            }
            index += 1;
        }
        if !self.preempted && !self.holds_back(lives) {
            self.admit(budget, lives, now);
        }
    }

    /// Whether waiting prompts wait for more of them. Nothing but decoding is worth waiting beside.
    fn holds_back(&mut self, lives: &Lives) -> bool {
        let Some(wait) = self.config.batch_wait else {
            return false;
        };
        let enough = f64::from(self.config.max_num_batched_tokens) * wait.budget;
        let ready = || {
            let tokens = self.waiting.iter().map(|id| lives[*id].rest() as f64);
            tokens.sum::<f64>() >= enough
        };
        let alone = self.decoding.is_empty() || !self.prefilling.is_empty();
        let full = self.running.len() >= self.config.max_num_seqs as usize;
        self.holds = !(alone
            || full
            || self.waiting.is_empty()
            || self.held_back >= u64::from(wait.steps)
            || ready());
        self.held_back += u64::from(self.holds);
        self.holds
    }

    /// Tokens of a step for one attention group; a group alone is bound by the step's budget.
    fn group_budget(&self) -> u64 {
        match (self.config.scheduler, self.room.len() as u64) {
            (Scheduler::Static, _) | (_, 1) => u64::MAX,
            (_, groups) => u64::from(self.config.max_num_batched_tokens).div_ceil(groups),
        }
    }

    /// What is left for the group that computes the next chunk: chunks go to the groups in turn, as
    /// the cost of a step counts them.
    fn next_room(&self) -> u64 {
        self.room[self.chunks.len() % self.room.len()]
    }

    /// Takes waiting requests as long as tokens, places and blocks last.
    fn admit(&mut self, mut budget: u64, lives: &mut Lives, now: SimTime) {
        while budget > 0
            && self.running.len() + (self.reserved as usize) < self.config.max_num_seqs as usize
        {
            let Some(&id) = self.waiting.front() else {
                return;
            };
            if self.next_room() == 0 {
                return;
            }
            let Some(tokens) = self.try_admit(id, budget, lives, now) else {
                return;
            };
            budget = budget.saturating_sub(tokens);
        }
    }

    /// Admits the first of the queue and gives it as many tokens of the budget as it may have.
    fn try_admit(&mut self, id: u32, budget: u64, lives: &mut Lives, now: SimTime) -> Option<u64> {
        let live = &lives[id];
        if live.swapped {
            return self.swap_in(id, budget, lives, now);
        }
        let (hit, idle) = self.blocks.hit(self.shareable(live));
        let known = hit.max(live.fetched.min(self.shareable(live).len() as u64));
        let have = known * self.block();
        let rest = live.target - have;
        let full = u64::from(self.config.max_num_batched_tokens);
        let room = self.next_room();
        let tokens = if rest <= budget.min(room) {
            rest
        } else if self.chunked() {
            budget.min(room)
        } else if budget == full || budget >= rest && room == self.group_budget() {
            // A prompt longer than the budget runs alone, in its group.
            rest
        } else {
            return None;
        };
        let hold = if self.reserves() {
            live.all_tokens()
        } else {
            have + tokens
        };
        let fresh = self.blocks_for(hold) - hit;
        if self.blocks.available() - idle < fresh {
            return None;
        }
        if self.config.scheduler == Scheduler::Sglang
            && !self.sglang_has_room(live, rest, idle, lives)
        {
            return None;
        }
        self.waiting.pop_front();
        self.running.push(id);
        self.held_back = 0;
        let live = &mut lives[id];
        self.blocks.share(&live.chain[..hit as usize]);
        let taken = self.blocks.take(fresh);
        assert!(taken, "there was room");
        self.blocks.publish(&live.chain[..known as usize], hit);
        live.named = known;
        live.private = fresh - (known - hit);
        if live.preemptions == 0 {
            live.cached = hit * self.block();
            live.loaded = have - live.cached;
        }
        live.computed = have;
        self.backlog = self.backlog.saturating_sub(have);
        live.enter(Phase::Prefill, now);
        if tokens > 0 {
            self.push_chunk(id, tokens, lives);
        } else {
            self.push_decode(id, lives);
        }
        Some(tokens)
    }

    fn swap_in(&mut self, id: u32, budget: u64, lives: &mut Lives, now: SimTime) -> Option<u64> {
        let per_sequence = self.tokens_per_sequence().max(1).min(budget);
        let live = &mut lives[id];
        let need = self.blocks_for(live.computed + per_sequence);
        if !self.blocks.take(need) {
            return None;
        }
        self.waiting.pop_front();
        self.running.push(id);
        live.private = need;
        live.swapped = false;
        live.enter(Phase::Decode, now);
        self.stall += self.swap_time(live.computed);
        self.push_decode(id, lives);
        Some(per_sequence)
    }

    fn swap_time(&self, tokens: u64) -> SimDuration {
        SimDuration::from_secs_f64(tokens as f64 * self.swap_time_per_token)
    }

    /// SGLang's estimate (`managers/schedule_policy.py`, `PrefillAdder`): the prompt and its whole
    /// answer must fit beside a part of what the running ones may still write.
    fn sglang_has_room(&self, live: &Live, rest: u64, idle: u64, lives: &Lives) -> bool {
        let spent = (RATIO_FIRST - RATIO_LEAST) / RATIO_STEPS * self.calm as f64;
        let ratio = (RATIO_FIRST - spent).max(RATIO_LEAST);
        let to_come: f64 = self
            .running
            .iter()
            .map(|id| {
                let other = &lives[*id];
                let left = u64::from(other.output - other.generated).min(CLIP_NEW_TOKENS);
                other.rest() as f64 + left as f64 * ratio
            })
            .sum();
        let free = (self.blocks.available() - idle) * self.block();
        let wanted = rest + u64::from(live.output).min(CLIP_NEW_TOKENS);
        // An empty replica takes what fits.
        self.running.is_empty() || wanted as f64 + to_come <= free as f64
    }

    /// SGLang (`managers/scheduler.py`, `get_next_batch_to_run`): a batch of prefill where one can
    /// be made, else one decode step of all.
    fn plan_prefill_first(&mut self, lives: &mut Lives, now: SimTime) {
        let mut budget = u64::from(self.config.max_num_batched_tokens);
        let mut index = 0;
        while index < self.running.len() {
            let id = self.running[index];
            let rest = lives[id].rest();
            let tokens = rest.min(budget).min(self.next_room());
            if tokens > 0 {
                if !self.make_room(id, tokens, lives, now) {
                    if self.has_work() {
                        return;
                    }
                    index = 0;
                    continue;
                }
                budget -= tokens;
                self.push_chunk(id, tokens, lives);
                // Somebody before it may be gone.
                let place = self.running.iter().position(|other| *other == id);
                index = place.unwrap_or(index);
            }
            index += 1;
        }
        self.admit(budget, lives, now);
        if !self.prefilling.is_empty() {
            // What needs no prefill decodes with the next step.
            self.decoding.clear();
            return;
        }
        self.decode_all(lives, now);
    }

    fn decode_all(&mut self, lives: &mut Lives, now: SimTime) {
        self.decoding.clear();
        self.chunks.clear();
        let per_sequence = self.tokens_per_sequence().max(1);
        let mut index = 0;
        while index < self.running.len() {
            let id = self.running[index];
            if lives[id].decodes() {
                if !self.make_room(id, per_sequence, lives, now) {
                    if self.has_work() {
                        break;
                    }
                    index = 0;
                    continue;
                }
                self.push_decode(id, lives);
            }
            index += 1;
        }
    }

    fn plan_static(&mut self, lives: &mut Lives, now: SimTime) {
        if self.running.is_empty() {
            self.admit_batch(lives, now);
        }
        let mut budget = u64::from(self.config.max_num_batched_tokens);
        self.chunks.clear();
        self.prefilling.clear();
        self.decoding.clear();
        for index in 0..self.running.len() {
            let id = self.running[index];
            let rest = lives[id].rest();
            if rest > 0 && (rest <= budget || self.prefilling.is_empty()) {
                budget = budget.saturating_sub(rest);
                self.push_chunk(id, rest, lives);
            }
        }
        if self.prefilling.is_empty() {
            self.decode_all(lives, now);
        }
    }

    /// Fills a batch; its prompts are computed as the budget allows.
    fn admit_batch(&mut self, lives: &mut Lives, now: SimTime) {
        while self.running.len() < self.config.max_num_seqs as usize {
            let Some(&id) = self.waiting.front() else {
                return;
            };
            if self.try_admit(id, u64::MAX, lives, now).is_none() {
                return;
            }
        }
    }

    /// Whether the step that is planned does anything yet.
    fn has_work(&self) -> bool {
        !self.prefilling.is_empty() || !self.decoding.is_empty()
    }

    /// Blocks for `tokens` more of a running request; others are pushed out for it, the last one
    /// first. `false` where it was pushed out itself.
    fn make_room(&mut self, id: u32, tokens: u64, lives: &mut Lives, now: SimTime) -> bool {
        loop {
            let live = &mut lives[id];
            let need = self
                .blocks_for(live.computed + tokens)
                .saturating_sub(live.held());
            if live.padding {
                return true;
            }
            if self.blocks.take(need) {
                live.private += need;
                return true;
            }
            let victim = self.victim(lives);
            self.push_out(victim, lives, now);
            if victim == id {
                return false;
            }
        }
    }

    /// vLLM: the lowest priority, the latest arrival. SGLang: the fewest tokens written.
    fn victim(&self, lives: &Lives) -> u32 {
        let last = if self.config.scheduler == Scheduler::Sglang {
            self.running.iter().max_by_key(|id| {
                let live = &lives[**id];
                (live.priority, u32::MAX - live.generated, live.number)
            })
        } else {
            self.running
                .iter()
                .max_by_key(|id| (lives[**id].priority, lives[**id].number))
        };
        *last.expect("somebody runs")
    }

    fn push_out(&mut self, id: u32, lives: &mut Lives, now: SimTime) {
        self.preempted = true;
        self.calm = 0;
        self.preemptions += 1;
        self.running.retain(|other| *other != id);
        // It may have been given a part of this step already.
        if let Some(at) = self.prefilling.iter().position(|(other, _)| *other == id) {
            self.prefilling.remove(at);
            self.chunks.remove(at);
        }
        self.decoding.retain(|other| *other != id);
        let swaps = self.config.preemption == Preemption::Swap && lives[id].decodes();
        let live = &mut lives[id];
        live.preemptions += 1;
        self.blocks
            .release(&live.chain[..live.named as usize], live.private);
        live.named = 0;
        live.private = 0;
        live.fetched = 0;
        if swaps {
            live.swapped = true;
            self.stall += self.swap_time(live.computed);
        } else {
            live.target = u64::from(live.input) + u64::from(live.generated);
            self.backlog += live.computed;
            live.computed = 0;
        }
        live.enter(Phase::Preempted, now);
        self.enqueue(id, lives, true);
    }

    fn push_chunk(&mut self, id: u32, tokens: u64, lives: &Lives) {
        let group = self.chunks.len() % self.room.len();
        self.room[group] = self.room[group].saturating_sub(tokens);
        self.prefilling.push((id, tokens));
        self.chunks.push(PrefillChunk {
            new_tokens: tokens,
            cached_tokens: lives[id].computed,
        });
    }

    /// A decode step; of a diffusion model that computes everything, a chunk.
    fn push_decode(&mut self, id: u32, lives: &Lives) {
        self.decoding.push(id);
        let Decoder::FullDiffusion {
            tokens_per_step,
            refresh_every,
        } = self.decoder
        else {
            return;
        };
        let live = &lives[id];
        let all = live.all_tokens();
        let chunk = if live.denoised.is_multiple_of(refresh_every.max(1)) {
            PrefillChunk {
                new_tokens: all,
                cached_tokens: 0,
            }
        } else {
            let active = u64::from(tokens_per_step)
                .min(u64::from(live.output))
                .min(all);
            PrefillChunk {
                new_tokens: active,
                cached_tokens: all - active,
            }
        };
        self.chunks.push(chunk);
    }

    /// Steps of plain decoding that can be taken together: nobody finishes before the last, nobody
    /// can be admitted, and there are blocks for all.
    pub fn steps_together(&self, lives: &Lives) -> u64 {
        if self.preempted
            || !self.prefilling.is_empty()
            || self.decoder != Decoder::Autoregressive
            || self.config.scheduler == Scheduler::Sglang && !self.waiting.is_empty()
            || self.decoding.len() != self.running.len()
        {
            return 1;
        }
        let most = self
            .decoding
            .iter()
            .filter(|id| !lives[**id].padding)
            .map(|id| u64::from(lives[*id].output - lives[*id].generated))
            .min()
            .unwrap_or(1);
        // Who is at the door comes in with the next look, who is held back when the wait is over.
        let mut most = most;
        if !self.unseen.is_empty() {
            most = most.min(u64::from(self.config.poll_interval) - self.since_look);
        }
        if let (Some(wait), true) = (self.config.batch_wait, self.holds) {
            most = most.min(u64::from(wait.steps) - self.held_back + 1);
        }
        let fits = |steps: u64| {
            let growth: u64 = self
                .decoding
                .iter()
                .map(|id| self.growth(&lives[*id], steps))
                .sum();
            growth <= self.blocks.available()
        };
        if fits(most) {
            return most;
        }
        let (mut low, mut high) = (1, most);
        while low + 1 < high {
            let middle = low.midpoint(high);
            if fits(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Blocks that so many steps need beyond those held.
    fn growth(&self, live: &Live, steps: u64) -> u64 {
        if live.padding {
            return 0;
        }
        self.blocks_for(live.computed + steps)
            .saturating_sub(live.held())
    }

    /// Tokens in the caches of the sequences that decode.
    pub fn context(&self, lives: &Lives) -> u64 {
        self.decoding.iter().map(|id| lives[*id].computed).sum()
    }

    /// Takes the blocks of the later steps of a run.
    pub fn grow(&mut self, steps: u64, lives: &mut Lives) {
        if steps == 1 {
            return;
        }
        for &id in &self.decoding {
            let need = self.growth(&lives[id], steps);
            let taken = self.blocks.take(need);
            assert!(
                taken,
                "steps were taken together only as far as blocks last"
            );
            lives[id].private += need;
        }
        self.kv_peak = self.kv_peak.max(self.blocks.used());
    }

    pub fn count_calm(&mut self, steps: u64) {
        self.calm += steps;
    }

    /// What happens from now on is not measured.
    pub fn close_window(&mut self) {
        self.closed = Some((self.kv_peak, self.preemptions));
    }

    /// Most blocks at a time, and requests pushed out, in the measured window.
    pub fn peak_and_preemptions(&self) -> (u64, u64) {
        self.closed.unwrap_or((self.kv_peak, self.preemptions))
    }

    /// The next step waits for copies.
    pub fn wait_for(&mut self, copies: SimDuration) {
        self.stall += copies;
    }

    pub fn take_stall(&mut self) -> SimDuration {
        std::mem::take(&mut self.stall)
    }

    /// Names the blocks of the prompt that are computed.
    pub fn publish(&mut self, live: &mut Live) {
        if !self.config.prefix_caching {
            return;
        }
        let full = (live.computed / self.block()).min(live.chain.len() as u64);
        if full > live.named {
            self.blocks
                .publish(&live.chain[..full as usize], live.named);
            live.private -= full - live.named;
            live.named = full;
        }
    }

    /// Gives everything back. The answer of a session's turn is kept as the beginning of the next.
    pub fn leave(&mut self, live: &mut Live, keep_answer: bool) {
        if keep_answer
            && self.config.prefix_caching
            && let Some(last) = live.prefix.last_mut()
        {
            last.tokens = last.tokens.saturating_add(live.generated);
            let mut names = std::mem::take(&mut live.chain);
            blocks::chain(
                &live.prefix,
                live.computed,
                self.config.block_size,
                &mut names,
            );
            live.chain = names;
            self.publish(live);
        }
        self.blocks
            .release(&live.chain[..live.named as usize], live.private);
        live.named = 0;
        live.private = 0;
    }
}
