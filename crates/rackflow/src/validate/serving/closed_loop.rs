//! Requests in a loop around one step cost: continuous batching, without blocks, routing or links.

use super::predict::Refused;
use rackflow_plan::serving::{Instance, PrefillChunk, StepBatch};
use std::collections::VecDeque;

/// When requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// All wait from the start, and come as soon as one of those in flight ends.
    AtOnce,
    /// So many per second, at random.
    Poisson(f64),
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Requests in all.
    pub requests: u64,
    /// Requests in flight at most.
    pub concurrency: u64,
    /// When they come.
    pub arrivals: Arrivals,
    /// Longest prompt (mean, for Poisson arrivals).
    pub isl: u64,
    /// Longest answer (the same).
    pub osl: u64,
    /// Shortest length over longest.
    pub spread: f64,
}

/// What comes out.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Served {
    /// Output tokens per second.
    pub out_tok_s: f64,
    /// Mean time to first token [s].
    pub mean_ttft_s: f64,
    /// Mean over requests of the time per token after the first [s].
    pub mean_tpot_s: f64,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    isl: u64,
    osl: u64,
    arrival: f64,
    first: f64,
    end: f64,
}

/// A draw from [0, 1) that covers the interval evenly (the golden ratio's multiples).
fn even(index: u64, phase: f64) -> f64 {
    (index as f64 * 0.618_033_988_749_894_9 + phase).fract()
}

fn requests(load: &Load) -> Vec<Request> {
    let mut clock = 0.0;
    (0..load.requests)
        .map(|i| {
            let (low, high) = match load.arrivals {
                Arrivals::AtOnce => (load.spread, 1.0),
                Arrivals::Poisson(_) => (load.spread, 2.0 - load.spread),
            };
            let length = |longest: u64, phase: f64| {
                let share = low + (high - low) * even(i, phase);
                ((longest as f64 * share).round() as u64).max(1)
            };
            if let Arrivals::Poisson(rate) = load.arrivals {
                // A stream of its own: independent of the lengths.
                let draw = (i as f64 * 0.754_877_666_246_692_8 + 0.5).fract();
                clock += -(1.0 - draw).max(1e-9).ln() / rate;
            }
            Request {
                isl: length(load.isl, 0.0),
                osl: length(load.osl, 0.37),
                arrival: clock,
                first: 0.0,
                end: 0.0,
            }
        })
        .collect()
}

/// Sums up. The client sees tokens in bunches of `bunch`, and everything `overhead` late.
fn served(requests: &mut [Request], overhead: f64, bunch: u64) -> Served {
    for request in requests.iter_mut() {
        if request.osl > bunch && bunch > 1 {
            let per_token = (request.end - request.first) / (request.osl - 1) as f64;
            request.first += per_token * (bunch - 1) as f64;
        }
        request.first += overhead;
        request.end += overhead;
    }
    let makespan = requests.iter().map(|r| r.end).fold(0.0, f64::max);
    let tokens: u64 = requests.iter().map(|r| r.osl).sum();
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let (sum, count) = values.fold((0.0, 0.0), |(s, n), v| (s + v, n + 1.0));
        sum / f64::max(count, 1.0)
    };
    Served {
        out_tok_s: if makespan > 0.0 {
            tokens as f64 / makespan
        } else {
            0.0
        },
        mean_ttft_s: mean(&mut requests.iter().map(|r| r.first - r.arrival)),
        mean_tpot_s: mean(
            &mut requests
                .iter()
                .filter(|r| r.osl > 1)
                .map(|r| (r.end - r.first) / (r.osl - 1) as f64),
        ),
    }
}

/// Sequences that generate, by the step in which they end.
#[derive(Debug, Default)]
struct Running {
    /// Requests that end in the step at this distance.
    ends: VecDeque<Vec<u32>>,
    sequences: u64,
    context: u64,
}

impl Running {
    fn add(&mut self, index: u32, request: &Request) {
        let steps = (request.osl - 1) as usize;
        if steps == 0 {
            return;
        }
        if self.ends.len() < steps {
            self.ends.resize_with(steps, Vec::new);
        }
        self.ends[steps - 1].push(index);
        self.sequences += 1;
        self.context += request.isl + 1;
    }

    /// Steps until the next sequence ends, at most `most`.
    fn until_next(&self, most: usize) -> u64 {
        let quiet = self.ends.iter().take(most).take_while(|e| e.is_empty());
        (quiet.count() + 1).min(most) as u64
    }

    /// Every sequence has `steps` tokens more, none of which was the last but for those of the last
    /// step; those that end in it are returned.
    fn advance(&mut self, steps: u64, requests: &[Request]) -> Vec<u32> {
        self.context += self.sequences * steps;
        self.ends.drain(..(steps as usize - 1).min(self.ends.len()));
        let ended = self.ends.pop_front().unwrap_or_default();
        for index in &ended {
            let request = &requests[*index as usize];
            self.sequences -= 1;
            self.context -= request.isl + request.osl;
        }
        ended
    }
}

/// One engine.
struct Engine<'a> {
    instance: &'a Instance,
    waiting: VecDeque<u32>,
    /// Prompts under way, with the tokens computed so far.
    reading: VecDeque<(u32, u64)>,
    running: Running,
    /// Tokens of cache that are promised, and how many there are.
    promised: u64,
    capacity: u64,
    chunks: Vec<PrefillChunk>,
    /// Steps since the queue was looked at.
    since_poll: u64,
    /// No request comes on its own: only the end of another brings one.
    closed: bool,
}

/// Most steps of generation that are priced at once, at the context of their middle.
const STRIDE: usize = 16;

impl<'a> Engine<'a> {
    fn new(instance: &'a Instance, closed: bool) -> Self {
        Self {
            instance,
            waiting: VecDeque::new(),
            reading: VecDeque::new(),
            running: Running::default(),
            promised: 0,
            capacity: instance.kv_capacity_tokens(),
            chunks: Vec::new(),
            since_poll: 0,
            closed,
        }
    }

    fn busy(&self) -> bool {
        self.running.sequences > 0 || !self.reading.is_empty() || !self.waiting.is_empty()
    }

    /// Takes up waiting requests while the cache and the limit on sequences allow.
    fn admit(&mut self, requests: &[Request]) {
        let deployment = self.instance.deployment();
        let most = deployment.stack.limits.max_sequences * u64::from(deployment.parallelism.data);
        while let Some(&index) = self.waiting.front() {
            let request = &requests[index as usize];
            let needs = request.isl + request.osl;
            let active = self.running.sequences + self.reading.len() as u64;
            if active >= most || (active > 0 && self.promised + needs > self.capacity) {
                break;
            }
            self.promised += needs;
            self.waiting.pop_front();
            self.reading.push_back((index, 0));
        }
    }

    /// One step at `now`; returns when it ends. Requests that end in it are pushed to `ended`.
    fn step(&mut self, now: f64, requests: &mut [Request], ended: &mut Vec<u32>) -> f64 {
        let limits = self.instance.deployment().stack.limits;
        self.since_poll += 1;
        if self.since_poll >= limits.poll_interval || self.running.sequences == 0 {
            self.admit(requests);
            self.since_poll = 0;
        }
        let deployment = self.instance.deployment();
        let groups = u64::from(deployment.parallelism.data);
        let whole_steps = !limits.chunked_prefill && !self.reading.is_empty();
        let decoding = if whole_steps {
            0
        } else {
            self.running.sequences
        };
        let mut budget = (limits.max_batched_tokens * groups)
            .saturating_sub(decoding)
            .max(1);
        self.chunks.clear();
        // Prompts of one attention group share its limit; a prompt is read by one group.
        let mut readers = groups;
        for (index, done) in &mut self.reading {
            let left = requests[*index as usize].isl - *done;
            let take = if limits.chunked_prefill {
                left.min(budget).min(limits.max_batched_tokens)
            } else if left > budget && !self.chunks.is_empty() {
                0
            } else {
                left
            };
            if take == 0 || readers == 0 {
                break;
            }
            self.chunks.push(PrefillChunk {
                new_tokens: take,
                cached_tokens: *done,
            });
            *done += take;
            budget = budget.saturating_sub(take);
            if take < left {
                readers -= 1;
            }
        }
        // With nothing to read and nothing that could be taken up, steps differ in their context only.
        let steps = if self.chunks.is_empty() && self.closed {
            let most = if self.waiting.is_empty() {
                STRIDE
            } else {
                STRIDE.min(
                    (limits.poll_interval - self.since_poll.min(limits.poll_interval - 1)) as usize,
                )
            };
            self.running.until_next(most)
        } else {
            1
        };
        let cost = self.instance.step(&StepBatch {
            prefill: &self.chunks,
            decode_sequences: decoding,
            decode_context_tokens: if whole_steps {
                0
            } else {
                self.running.context + self.running.sequences * (steps - 1) / 2
            },
            tokens_per_sequence: 1,
        });
        self.since_poll += steps - 1;
        let end = now + cost.time.as_secs_f64() * steps as f64;
        if !whole_steps {
            for index in self.running.advance(steps, requests) {
                let request = &mut requests[index as usize];
                request.end = end;
                self.promised -= request.isl + request.osl;
                ended.push(index);
            }
        }
        if !self.chunks.is_empty() {
            let mut reading = std::mem::take(&mut self.reading);
            reading.retain(|(index, done)| {
                let request = &mut requests[*index as usize];
                if *done < request.isl {
                    return true;
                }
                request.first = end;
                if request.osl <= 1 {
                    request.end = end;
                    self.promised -= request.isl + request.osl;
                    ended.push(*index);
                }
                self.running.add(*index, request);
                false
            });
            self.reading = reading;
        }
        end
    }
}

fn too_small(instance: &Instance, load: &Load) -> Result<(), Refused> {
    let capacity = instance.kv_capacity_tokens();
    let longest = load.isl + load.osl;
    if capacity < longest {
        return Err((
            "the cache does not hold one request",
            format!("{capacity} tokens of {longest}"),
        ));
    }
    Ok(())
}

/// Serves `load` on one engine that reads and generates.
pub fn aggregated(instance: &Instance, load: &Load) -> Result<Served, Refused> {
    too_small(instance, load)?;
    let mut requests = requests(load);
    let stack = &instance.deployment().stack;
    let overhead = stack.request_overhead.as_secs_f64();
    let bunch = stack.limits.stream_interval;
    let mut engine = Engine::new(instance, load.arrivals == Arrivals::AtOnce);
    let count = requests.len() as u32;
    let (mut next, mut in_flight, mut now) = (0, 0, 0.0);
    let mut ended = Vec::new();
    loop {
        while next < count && in_flight < load.concurrency {
            let request = &mut requests[next as usize];
            match load.arrivals {
                Arrivals::AtOnce => request.arrival = now,
                Arrivals::Poisson(_) if request.arrival > now && engine.busy() => break,
                Arrivals::Poisson(_) => now = request.arrival.max(now),
            }
            engine.waiting.push_back(next);
            next += 1;
            in_flight += 1;
        }
        if !engine.busy() {
            break;
        }
        ended.clear();
        now = engine.step(now, &mut requests, &mut ended);
        in_flight -= ended.len() as u64;
    }
    Ok(served(&mut requests, overhead, bunch))
}

/// Serves `load` with prompts on `prefill` engines and generation on `decode` ones. The cache crosses
/// at `link` bytes per second and GPU, alone on its way.
pub fn disaggregated(
    prefill: &Instance,
    prefill_replicas: u32,
    decode: &Instance,
    decode_replicas: u32,
    load: &Load,
    link: f64,
) -> Result<Served, Refused> {
    too_small(decode, load)?;
    let readers = prefill_replicas.max(1);
    let writers = u64::from(decode_replicas.max(1));
    let mut requests = requests(load);
    let stack = &decode.deployment().stack;
    let overhead = stack.request_overhead.as_secs_f64();
    let bunch = stack.limits.stream_interval;
    let count = requests.len() as u32;
    let limits = &prefill.deployment().stack.limits;
    let budget = limits.max_batched_tokens * u64::from(prefill.deployment().parallelism.data);
    // When each reader is free, and requests that wait for one.
    let mut free = vec![0.0; readers as usize];
    let mut waiting: VecDeque<u32> = VecDeque::new();
    // Requests whose cache arrives at a time, in order.
    let mut arriving: Vec<(f64, u32)> = Vec::new();
    let sender = f64::from(prefill.gpus()).min(f64::from(decode.gpus()));
    let transfer = |tokens: u64| tokens as f64 * prefill.kv_bytes_per_token() / (link * sender);
    // All writers are alike: one is simulated with its share of the requests.
    let mut running = Running::default();
    let (mut next, mut now) = (0, 0.0);
    let mut in_flight: u64 = 0;
    let mut chunks: Vec<PrefillChunk> = Vec::new();
    let most = decode.deployment().stack.limits.max_sequences
        * u64::from(decode.deployment().parallelism.data)
        * writers;
    let capacity = decode.kv_capacity_tokens().saturating_mul(writers);
    loop {
        while next < count && in_flight < load.concurrency {
            requests[next as usize].arrival = now;
            waiting.push_back(next);
            next += 1;
            in_flight += 1;
        }
        // Readers that are free take what fits into one step.
        for at in &mut free {
            while *at <= now && !waiting.is_empty() {
                chunks.clear();
                let mut left = budget;
                let mut taken: Vec<u32> = Vec::new();
                while let Some(&index) = waiting.front() {
                    let isl = requests[index as usize].isl;
                    if isl > left && !taken.is_empty() {
                        break;
                    }
                    left = left.saturating_sub(isl);
                    chunks.push(PrefillChunk {
                        new_tokens: isl,
                        cached_tokens: 0,
                    });
                    taken.push(index);
                    waiting.pop_front();
                }
                *at = at.max(now)
                    + prefill
                        .step(&StepBatch::prefill(&chunks))
                        .time
                        .as_secs_f64();
                for index in taken {
                    let request = &mut requests[index as usize];
                    request.first = *at + transfer(request.isl);
                    arriving.push((request.first, index));
                }
            }
        }
        arriving.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let ready = arriving.iter().take_while(|(at, _)| *at <= now).count();
        let mut joined = 0;
        for (_, index) in &arriving[..ready] {
            let request = requests[*index as usize];
            if running.sequences > 0
                && (running.sequences >= most
                    || running.context + request.isl + request.osl > capacity)
            {
                break;
            }
            joined += 1;
            if request.osl <= 1 {
                requests[*index as usize].end = now;
                in_flight -= 1;
            }
            running.add(*index, &request);
        }
        arriving.drain(..joined);
        if running.sequences == 0 {
            // Nothing generates: on to the next event.
            let next_at = free
                .iter()
                .copied()
                .filter(|at| *at > now && !waiting.is_empty())
                .chain(arriving.iter().map(|(at, _)| *at))
                .fold(f64::INFINITY, f64::min);
            if next_at == f64::INFINITY {
                if waiting.is_empty() && next >= count {
                    break;
                }
                continue;
            }
            now = next_at.max(now);
            continue;
        }
        let share = running.sequences.div_ceil(writers);
        let context = running.context / writers;
        let cost = decode.step(&StepBatch::decode(share, context.max(1)));
        now += cost.time.as_secs_f64();
        for index in running.advance(1, &requests) {
            requests[index as usize].end = now;
            in_flight -= 1;
        }
    }
    Ok(served(&mut requests, overhead, bunch))
}
