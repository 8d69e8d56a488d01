//! Passes in which data-parallel ranks meet: weights are gathered in the first one or in each, and
//! gradients are reduced in the last one or in each.
//!
//! What data-parallel ranks say to each other queues on a stream of its own, from pass to pass. So
//! such a pass is followed node by node, from when that stream is free. So are two passes that are
//! woven into one, in the order in which the program weaves them.

use super::pieces::least;
use crate::compile::{Chunk, Compiler, Kind};
use crate::program::{SEGMENT_LEVELS, Segment, Stream, Work};
use crate::run::{Context, Run};
use crate::schedule::Pass;
use rackflow_units::SimDuration;
use std::rc::Rc;

/// One run, or a forward and a backward one woven into one; times in picoseconds.
pub(crate) struct Strand {
    nodes: Vec<Node>,
    deps: Vec<u32>,
    windows: Vec<Window>,
    /// Of each run, what the next piece waits for.
    exits: [Vec<u32>; 2],
    /// Kernels alone, one after the other.
    pub kernels: u64,
    /// Host time to issue the kernels alone.
    pub issue: u64,
    /// Host time to issue everything.
    pub launch: u64,
    /// Data-parallel ranks meet in it.
    pub meets: bool,
    /// What it takes at least, where its kernels give SMs to the communication beside them.
    least: u64,
}

struct Node {
    time: u64,
    stream: Stream,
    entry: bool,
    /// Which run it is of.
    of: u8,
    /// End of its range in `deps`.
    deps: u32,
    /// End of its range in `windows`.
    windows: u32,
}

/// A node begins no earlier than so long after the end of an earlier one.
struct Window {
    after: u32,
    least: u64,
}

/// A strand, followed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Followed {
    /// End of the last kernel.
    pub end: u64,
    /// Of each run, when what the next piece waits for is there; zero where nothing is computed.
    pub out: [u64; 2],
    /// When the stream of data-parallel ranks is free again.
    pub data: u64,
}

impl Strand {
    /// `order` says of which run each node is: true for the first.
    fn woven(
        ctx: &Context<'_>,
        runs: [&Run; 2],
        order: impl Iterator<Item = bool>,
        load: u64,
    ) -> Self {
        let communication_launch = ctx.communication_launch().as_picos();
        let mut strand = Self {
            nodes: Vec::with_capacity(runs[0].nodes.len() + runs[1].nodes.len()),
            deps: Vec::new(),
            windows: Vec::new(),
            exits: Default::default(),
            kernels: 0,
            issue: 0,
            launch: 0,
            meets: false,
            least: 0,
        };
        let mut crowding = Crowding::default();
        let overlap = &ctx.setup.training.stack.overlap;
        let together = overlap.align_gradient_reduce
            || overlap.align_parameter_gather
            || overlap.optimizer_step_gather;
        // Where the nodes of each run are now.
        let mut places: [Vec<u32>; 2] = Default::default();
        for first in order {
            let of = usize::from(!first);
            let node = &runs[of].nodes[places[of].len()];
            let time = match node.work {
                Work::Compute(id) => {
                    let segment = &ctx.segments[id.0 as usize];
                    let time = segment.least(load);
                    strand.kernels += time;
                    strand.issue += segment.launch.as_picos();
                    strand.launch += segment.launch.as_picos();
                    crowding.computes(segment, time);
                    for dep in &node.deps {
                        crowding.waits_for(places[of][*dep as usize]);
                    }
                    time
                }
                Work::Collective(_, id) => {
                    strand.launch += communication_launch;
                    strand.meets |= node.stream == Stream::Data;
                    // What stages move together, they move at other times and in other parts.
                    let time = if together && node.stream == Stream::Data {
                        0
                    } else {
                        least(ctx, id, load)
                    };
                    let deps = node.deps.iter().map(|dep| places[of][*dep as usize]);
                    let sms = ctx.transfers[id.0 as usize].sms;
                    crowding.communicates(node.stream, sms, time, node.entry, deps);
                    time
                }
                Work::Copy(_) => {
                    strand.launch += communication_launch;
                    crowding.nothing();
                    0
                }
                Work::Send(..) | Work::Receive(..) => {
                    crowding.nothing();
                    0
                }
            };
            let deps = node.deps.iter().map(|dep| places[of][*dep as usize]);
            strand.deps.extend(deps);
            places[of].push(strand.nodes.len() as u32);
            strand.nodes.push(Node {
                time,
                stream: node.stream,
                entry: node.entry,
                of: of as u8,
                deps: strand.deps.len() as u32,
                windows: 0,
            });
        }
        for ((exits, run), places) in strand.exits.iter_mut().zip(runs).zip(&places) {
            exits.extend(run.exits.iter().map(|exit| places[*exit as usize]));
        }
        let most_held = ctx.most_held_sms();
        let mut windows = crowding.windows(most_held).into_iter().peekable();
        for (number, node) in (0..).zip(&mut strand.nodes) {
            while let Some((_, window)) = windows.next_if(|(of, _)| *of == number) {
                strand.windows.push(window);
            }
            node.windows = strand.windows.len() as u32;
        }
        strand.least = strand.kernels + crowding.extra(most_held);
        strand
    }

    /// `None` where data-parallel ranks do not meet.
    fn meeting(ctx: &Context<'_>, run: &Run, load: u64) -> Option<Self> {
        let meets = run.nodes.iter().any(|node| node.stream == Stream::Data);
        let all = run.nodes.iter().map(|_| true);
        meets.then(|| Self::woven(ctx, [run, &Run::default()], all, load))
    }

    /// Follows it where each run begins at its start, and the stream of data-parallel ranks is free at
    /// `data`. `ends` is scratch.
    pub fn follow(&self, starts: [u64; 2], data: u64, ends: &mut Vec<u64>) -> Followed {
        ends.clear();
        let mut free = [0; Stream::COUNT];
        free[Stream::Data as usize] = data;
        let mut computed = [0; 2];
        let mut first = 0;
        let mut first_window = 0;
        for node in &self.nodes {
            let deps = &self.deps[first..node.deps as usize];
            first = node.deps as usize;
            let waited = deps.iter().map(|dep| ends[*dep as usize]).max();
            let windows = &self.windows[first_window..node.windows as usize];
            first_window = node.windows as usize;
            let beside = windows.iter().map(|w| ends[w.after as usize] + w.least);
            let waited = waited.max(beside.max());
            let mut from = if node.stream == Stream::Data && !node.entry {
                // What waits for nothing may have begun long before.
                0
            } else {
                starts[usize::from(node.of)]
            };
            if node.entry {
                from = from.max(free[Stream::Compute as usize]);
            }
            let free = &mut free[node.stream as usize];
            *free = waited.unwrap_or(0).max(from).max(*free) + node.time;
            if node.stream == Stream::Compute {
                computed[usize::from(node.of)] = *free;
            }
            ends.push(*free);
        }
        let mut out = computed;
        for (out, exits) in out.iter_mut().zip(&self.exits) {
            if *out > 0 {
                let exits = exits.iter().map(|exit| ends[*exit as usize]);
                *out = exits.max().unwrap_or(0).max(*out);
            }
        }
        let begins = starts[0].min(starts[1]);
        Followed {
            end: computed[0].max(computed[1]).max(begins + self.least),
            out,
            data: free[Stream::Data as usize],
        }
    }
}

/// What kernels lose to the communication beside them that holds SMs.
///
/// While such a communication runs, kernels run as if without those SMs, or not at all, which costs
/// more. All that a kernel waits for has run since the first one began. So a strand takes no less
/// than its kernels, and what those lose that would lose least if they ran beside all of that.
///
/// The same holds between any two of its kernels, for what began after the first of them and what the
/// second waits for: all of that ran while no kernels ran but those between them. Such windows add up
/// with the waiting between them, which the whole strand does not know.
#[derive(Default)]
struct Crowding {
    kernels: Vec<Kernel>,
    /// Communications of each stream, in order.
    streams: [Vec<Beside>; Stream::COUNT],
    /// Kernels that wait for a communication: which kernel, on which stream, how many of it are over then.
    waits: Vec<(u32, usize, usize)>,
    /// Of each node, its stream, its place there, and the last kernel that has ended when it begins; of a
    /// kernel itself.
    nodes: Vec<(usize, usize, Option<u32>)>,
}

struct Kernel {
    node: u32,
    /// Alone.
    time: u64,
    /// At each level of [`Segment::time`], what 2^20 picoseconds become.
    at: [u64; SEGMENT_LEVELS],
}

struct Beside {
    sms: u32,
    time: u64,
    /// The last kernel that has ended when it begins.
    after: Option<u32>,
}

/// Of the ratios in [`Crowding`]: this is 1.
const UNSTRETCHED: u64 = 1 << 20;
/// Windows hold so many communications, and at most so many kernels.
const WINDOWS: [usize; 8] = [1, 2, 3, 4, 5, 6, 8, 12];
const MOST_KERNELS: usize = 48;

impl Crowding {
    fn computes(&mut self, segment: &Segment, time: u64) {
        let alone = segment.time[0].as_picos().max(1);
        // Rounded down.
        let stretched = |at: SimDuration| {
            let ratio = u128::from(at.as_picos()) * u128::from(UNSTRETCHED) / u128::from(alone);
            ratio as u64
        };
        let number = self.kernels.len();
        self.kernels.push(Kernel {
            node: self.nodes.len() as u32,
            time,
            at: segment.time.map(stretched),
        });
        self.nodes
            .push((Stream::Compute as usize, number, Some(number as u32)));
    }

    /// The last kernel waits for a node.
    fn waits_for(&mut self, node: u32) {
        let (stream, place, _) = self.nodes[node as usize];
        if stream != Stream::Compute as usize && place < self.streams[stream].len() {
            let kernel = self.kernels.len() as u32 - 1;
            self.waits.push((kernel, stream, place + 1));
        }
    }

    fn communicates(
        &mut self,
        stream: Stream,
        sms: u32,
        time: u64,
        entry: bool,
        deps: impl Iterator<Item = u32>,
    ) {
        // What data-parallel ranks say to each other may have begun long before.
        if stream == Stream::Data {
            self.nothing();
            return;
        }
        let of_stream = &mut self.streams[stream as usize];
        let mut after = deps.filter_map(|dep| self.nodes[dep as usize].2).max();
        if entry {
            after = after.max((self.kernels.len() as u32).checked_sub(1));
        }
        // A stream works in its order.
        after = after.max(of_stream.last().and_then(|before| before.after));
        self.nodes.push((stream as usize, of_stream.len(), after));
        of_stream.push(Beside { sms, time, after });
    }

    /// A node that holds nothing, and of which nothing is known.
    fn nothing(&mut self) {
        self.nodes.push((Stream::Data as usize, 0, None));
    }

    /// Time of communications that hold SMs, and the level of [`Segment::time`] beside them.
    fn held(beside: &[Beside], most_held: u32) -> Option<(u64, usize)> {
        let holding = || beside.iter().filter(|one| one.sms > 0 && one.time > 0);
        let sms = holding().map(|one| one.sms).min()?;
        let top = SEGMENT_LEVELS as u32 - 1;
        let level = (sms * top).div_ceil(most_held.max(1)).min(top);
        let time = holding().map(|one| one.time).sum();
        Some((time, level as usize))
    }

    /// What all kernels take longer, beside the stream that costs them most.
    fn extra(&self, most_held: u32) -> u64 {
        let mut most = 0;
        for (number, stream) in self.streams.iter().enumerate() {
            let waits = self.waits.iter().filter(|(_, of, _)| *of == number);
            let over = waits.map(|(.., over)| *over).max().unwrap_or(0);
            if let Some((time, level)) = Self::held(&stream[..over], most_held) {
                most = most.max(lost(&self.kernels, level, time));
            }
        }
        most
    }

    /// Windows, each with the node that it ends at, in their order.
    fn windows(&self, most_held: u32) -> Vec<(u32, Window)> {
        let mut found = Vec::new();
        let mut known = [0; Stream::COUNT];
        for (kernel, stream, over) in &self.waits {
            // A later kernel that waits for what is over adds nothing.
            if known[*stream] >= *over {
                continue;
            }
            known[*stream] = *over;
            for count in WINDOWS {
                let Some(first) = over.checked_sub(count) else {
                    break;
                };
                let beside = &self.streams[*stream][first..*over];
                let Some(after) = beside[0].after else {
                    break;
                };
                let between =
                    &self.kernels[after as usize + 1..(*kernel as usize).max(after as usize + 1)];
                if between.len() > MOST_KERNELS {
                    break;
                }
                let lost = Self::held(beside, most_held)
                    .map_or(0, |(time, level)| lost(between, level, time));
                if lost > 0 {
                    let alone: u64 = between.iter().map(|kernel| kernel.time).sum();
                    let window = Window {
                        after: self.kernels[after as usize].node,
                        least: alone + lost,
                    };
                    found.push((self.kernels[*kernel as usize].node, window));
                }
            }
        }
        found
    }
}

/// What these kernels lose at a level at least if communication ran beside them for so long: if those ran beside
/// it that lose least.
fn lost(kernels: &[Kernel], level: usize, mut beside: u64) -> u64 {
    let scale = |time: u64, by: u64, over: u64| {
        (u128::from(time) * u128::from(by) / u128::from(over)) as u64
    };
    let mut by_loss: Vec<(u64, u64)> = kernels
        .iter()
        .map(|kernel| (kernel.at[level].max(UNSTRETCHED), kernel.time))
        .collect();
    by_loss.sort_unstable();
    let mut lost = 0;
    for (ratio, alone) in by_loss {
        let stretched = scale(alone, ratio, UNSTRETCHED);
        if stretched >= beside {
            return lost + scale(beside, ratio - UNSTRETCHED, ratio);
        }
        beside -= stretched;
        lost += stretched - alone;
    }
    lost
}

/// What tells two woven passes from others: positions of chunks, whether the forward one is the
/// first through its chunk, and whether the backward one is the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair {
    pub forward: u32,
    pub first: bool,
    pub backward: u32,
    pub last: bool,
    /// Where its rank sits.
    pub seat: u32,
}

/// Whose node comes next in each pair.
pub(crate) type Orders = Vec<(Pair, Rc<[bool]>)>;

/// The orders in which the program of `compiler` weaves these pairs, at the prices of `ctx`.
pub(crate) fn orders_of_pairs(
    compiler: &mut Compiler<'_>,
    ctx: &mut Context<'_>,
    pairs: &[Pair],
) -> Orders {
    let mut order = |pair: &Pair| {
        let [f, b] = runs_of(compiler, ctx, pair);
        (*pair, compiler.weave(ctx, &f, &b))
    };
    pairs.iter().map(&mut order).collect()
}

/// Pairs woven in these orders.
pub(crate) fn weave_pairs<'o>(
    compiler: &mut Compiler<'_>,
    ctx: &mut Context<'_>,
    orders: impl Iterator<Item = &'o (Pair, Rc<[bool]>)>,
    load: u64,
) -> Vec<(Pair, Strand)> {
    let mut strand = |(pair, order): &(Pair, Rc<[bool]>)| {
        let [f, b] = runs_of(compiler, ctx, pair);
        (
            *pair,
            Strand::woven(ctx, [&f, &b], order.iter().copied(), load),
        )
    };
    orders.map(&mut strand).collect()
}

fn runs_of(compiler: &mut Compiler<'_>, ctx: &mut Context<'_>, pair: &Pair) -> [Rc<Run>; 2] {
    let mut run = |position: u32, kind| {
        let chunk = compiler.chunks()[position as usize].clone();
        compiler.run(ctx, &chunk, kind)
    };
    let forward = if pair.first {
        Kind::ForwardFirst
    } else {
        Kind::Forward
    };
    let backward = if pair.last {
        Kind::BackwardLast
    } else {
        Kind::Backward
    };
    [run(pair.forward, forward), run(pair.backward, backward)]
}

/// The passes through one chunk in which data-parallel ranks meet.
#[derive(Default)]
pub(crate) struct Strands {
    forward_first: Option<Strand>,
    forward: Option<Strand>,
    backward: Option<Strand>,
    backward_last: Option<Strand>,
    input: Option<Strand>,
    weight: Option<Strand>,
    weight_last: Option<Strand>,
}

impl Strands {
    /// Those of each chunk in pipeline order; empty where an equal one comes before.
    pub fn of_chunks(compiler: &mut Compiler<'_>, ctx: &mut Context<'_>, load: u64) -> Vec<Self> {
        let gathers = compiler.gathers_always();
        let apart = compiler.splits_gradients();
        let chunks = compiler.chunks().to_vec();
        let same = compiler.same().to_vec();
        let deferred = compiler.deferred_output_gradients();
        let all_deferred = compiler.defers_all_output_gradients();
        let of_chunk = |(position, chunk): (usize, &Chunk)| {
            // Of the micro-batches between, the least; the last one is known.
            let all = chunk.last && all_deferred;
            let some = chunk.last && deferred > 0;
            if same[position] as usize != position {
                return Self::default();
            }
            let mut strand = |kind, asked: bool| {
                asked.then(|| {
                    let run = compiler.run(ctx, chunk, kind);
                    Strand::meeting(ctx, &run, load)
                })?
            };
            Self {
                forward_first: strand(Kind::ForwardFirst, true),
                forward: strand(Kind::Forward, gathers),
                backward: strand(Kind::backward(false, some), gathers),
                backward_last: strand(Kind::backward(true, all), true),
                input: strand(Kind::InputGradient, gathers && apart),
                weight: strand(Kind::WeightGradient, gathers && apart),
                weight_last: strand(Kind::WeightGradientLast, apart),
            }
        };
        chunks.iter().enumerate().map(of_chunk).collect()
    }

    /// That of a forward pass.
    pub fn of_forward(&self, first: bool) -> Option<&Strand> {
        if first {
            self.forward_first.as_ref()
        } else {
            self.forward.as_ref()
        }
    }

    /// That of the backward part of a pass. `last`: it completes the gradients of its chunk.
    pub fn of_backward(&self, pass: &Pass, last: bool) -> Option<&Strand> {
        match (pass, last) {
            (Pass::InputGradient { .. }, _) => self.input.as_ref(),
            (Pass::WeightGradient { .. }, true) => self.weight_last.as_ref(),
            (Pass::WeightGradient { .. }, false) => self.weight.as_ref(),
            (_, true) => self.backward_last.as_ref(),
            (_, false) => self.backward.as_ref(),
        }
    }
}
