//! What chosen replicas did, and when. A trace is for people: no figure of a report is made from it.

use super::live::{Live, Lives};
use super::record::Phase;
use super::replica::Replica;
use rackflow_topology::Level;
use rackflow_units::SimTime;
use rackflow_workload::Role;
use std::collections::BTreeMap;

/// What of a service is written down.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceWish {
    /// Replicas, counted over all pools.
    pub replicas: Vec<u32>,
    /// From when on.
    pub from: SimTime,
    /// Until when.
    pub until: SimTime,
    /// Slices and points of counters, at most: with the last of them the trace ends. Requests that are
    /// under way then are told to their end.
    pub most: usize,
}

/// What chosen replicas of a service did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServiceTrace {
    /// The replicas, ascending.
    pub replicas: Vec<TracedReplica>,
    /// Requests that any of them had, in the order in which they were answered.
    pub requests: Vec<TracedRequest>,
    /// Caches that moved between them and others.
    pub transfers: Vec<TracedTransfer>,
    /// When the trace was full, if it was.
    pub full_at: Option<SimTime>,
}

/// One replica.
#[derive(Debug, Clone, PartialEq)]
pub struct TracedReplica {
    /// Its number, counted over all pools.
    pub replica: u32,
    /// What it does.
    pub role: Role,
    /// Its first GPU.
    pub first_gpu: u32,
    /// Its GPUs.
    pub gpus: u32,
    /// Bytes of cache that it holds at most.
    pub kv_bytes: f64,
    /// Its steps.
    pub steps: Vec<TracedStep>,
    /// Who and what it held, from each instant on.
    pub levels: Vec<TracedLevel>,
}

/// Steps of a replica that have the same sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TracedStep {
    /// When the first began.
    pub start: SimTime,
    /// When the last ended.
    pub end: SimTime,
    /// How many.
    pub steps: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Sequences that decoded.
    pub sequences: u64,
    /// Bytes that all GPUs of the replica sent over NVLink.
    pub nvlink: f64,
    /// Bytes that they sent over NICs.
    pub nic: f64,
}

/// What a replica holds from an instant on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TracedLevel {
    /// Since when.
    pub at: SimTime,
    /// Bytes of cache in use.
    pub kv_bytes: f64,
    /// Requests that run.
    pub running: u32,
    /// Requests that wait.
    pub waiting: u32,
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct TracedRequest {
    /// Position in the order of arrival, from 0.
    pub number: u64,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// Replica that computed the prompt.
    pub prefill_replica: u32,
    /// Replica that decoded.
    pub decode_replica: u32,
    /// What it did from when to when, from its arrival on.
    pub phases: Vec<(Phase, SimTime, SimTime)>,
}

/// One cache on its way.
#[derive(Debug, Clone, PartialEq)]
pub struct TracedTransfer {
    /// Number of its request.
    pub request: u64,
    /// Replica that sends.
    pub from: u32,
    /// Replica that receives.
    pub to: u32,
    /// The tier at which they meet.
    pub level: Level,
    /// Parts that went one after the other: layers of some tokens, with their bytes.
    pub parts: Vec<TracedPart>,
}

/// One part of a cache on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TracedPart {
    /// When it was sent.
    pub start: SimTime,
    /// When it was there.
    pub end: SimTime,
    /// Bytes, of all GPUs.
    pub bytes: u64,
}

/// Phases of a request that is under way.
pub(super) type Phases = Vec<(Phase, SimTime, SimTime)>;

/// Writes down what watched replicas do.
#[derive(Debug)]
pub(super) struct Watch {
    wish: ServiceWish,
    /// Position of each replica among the watched ones.
    position: Vec<Option<usize>>,
    /// By transfer: what it has sent so far.
    moving: Vec<Option<TracedTransfer>>,
    /// By request: caches that are there, until their requests are answered.
    moved: BTreeMap<u64, TracedTransfer>,
    written: usize,
    trace: ServiceTrace,
}

impl Watch {
    /// `replicas` are all of the fleet, with the bytes of one token in their caches.
    pub fn new(wish: &ServiceWish, replicas: Vec<TracedReplica>) -> Self {
        let mut watch = Self {
            position: vec![None; replicas.len()],
            wish: wish.clone(),
            moving: Vec::new(),
            moved: BTreeMap::new(),
            written: 0,
            trace: ServiceTrace::default(),
        };
        for replica in replicas {
            if wish.replicas.contains(&replica.replica) {
                let place = &mut watch.position[replica.replica as usize];
                *place = Some(watch.trace.replicas.len());
                watch.trace.replicas.push(replica);
            }
        }
        watch
    }

    fn overlaps(&self, start: SimTime, end: SimTime) -> bool {
        start < self.wish.until && end >= self.wish.from
    }

    /// Counts what is written; at the limit the trace ends.
    fn count(&mut self, written: usize, now: SimTime) {
        self.written += written;
        if self.written >= self.wish.most && self.trace.full_at.is_none() && now < self.wish.until {
            self.trace.full_at = Some(now);
            self.wish.until = now;
        }
    }

    /// Whether a step that began then and ends now is of the trace.
    pub fn wants_step(&self, replica: u32, start: SimTime, now: SimTime) -> bool {
        self.position[replica as usize].is_some() && self.overlaps(start, now)
    }

    pub fn step(&mut self, replica: u32, step: TracedStep) {
        if let Some(at) = self.position[replica as usize] {
            self.trace.replicas[at].steps.push(step);
            self.count(2, step.end);
        }
    }

    /// What a replica holds now.
    pub fn level(&mut self, index: u32, replica: &Replica, bytes_per_token: f64, now: SimTime) {
        let Some(at) = self.position[index as usize] else {
            return;
        };
        if !self.overlaps(now, now) {
            return;
        }
        let tokens = replica.blocks.used() * u64::from(replica.config.block_size);
        let waiting = replica.waiting.len() + replica.unseen.len() + replica.incoming.len();
        let level = TracedLevel {
            at: now,
            kv_bytes: tokens as f64 * bytes_per_token,
            running: replica.running.len() as u32,
            waiting: waiting as u32,
        };
        let levels = &mut self.trace.replicas[at].levels;
        match levels.last_mut() {
            Some(last) if last.at == now => *last = level,
            Some(last) if TracedLevel { at: now, ..*last } == level => {}
            _ => {
                levels.push(level);
                self.count(3, now);
            }
        }
    }

    /// A part of a cache is sent.
    pub fn sent(&mut self, transfer: u32, whole: TracedTransfer, now: SimTime, bytes: u64) {
        let place = transfer as usize;
        if self.moving.len() <= place {
            self.moving.resize(place + 1, None);
        }
        let watched = [whole.from, whole.to].map(|end| self.position[end as usize].is_some());
        if watched == [false, false] {
            return;
        }
        let moving = self.moving[place].get_or_insert(whole);
        moving.parts.push(TracedPart {
            start: now,
            end: SimTime::MAX,
            bytes,
        });
    }

    /// The part of a cache that was sent last is there.
    pub fn came(&mut self, transfer: u32, now: SimTime) {
        let moving = self.moving.get_mut(transfer as usize);
        if let Some(Some(moving)) = moving
            && let Some(last) = moving.parts.last_mut()
        {
            last.end = now;
        }
    }

    /// All of a cache is there.
    pub fn arrived(&mut self, transfer: u32) {
        let moving = self.moving.get_mut(transfer as usize);
        if let Some(moved) = moving.and_then(Option::take) {
            self.moved.insert(moved.request, moved);
        }
    }

    /// A request is answered, or the run ends before it is.
    pub fn request(&mut self, live: &Live, now: SimTime) {
        let ends = [live.prefill_replica, live.decode_replica];
        let watched = ends
            .iter()
            .any(|end| self.position[*end as usize].is_some());
        // However many wait when the trace is full, it is bounded.
        let room = self.written < self.wish.most.saturating_mul(2);
        let moved = self.moved.remove(&live.number);
        if !watched || !room || !self.overlaps(live.arrival, now) {
            return;
        }
        let phases = live.phases(now);
        let parts = moved.as_ref().map_or(0, |moved| 2 + moved.parts.len());
        self.count(2 * (phases.len() + parts + 1), now);
        self.trace.transfers.extend(moved);
        self.trace.requests.push(TracedRequest {
            number: live.number,
            input_tokens: live.input,
            output_tokens: live.generated,
            prefill_replica: live.prefill_replica,
            decode_replica: live.decode_replica,
            phases,
        });
    }

    /// The run is over; some requests may not be answered, and some caches be on their way.
    pub fn finish(mut self, lives: &Lives, now: SimTime) -> ServiceTrace {
        let moving = std::mem::take(&mut self.moving);
        self.moved.extend(
            moving
                .into_iter()
                .flatten()
                .map(|moving| (moving.request, moving)),
        );
        for live in lives.iter() {
            self.request(live, now);
        }
        self.trace
    }
}
