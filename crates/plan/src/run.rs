//! Runs: pieces of a stage's program, built once and stamped for every micro-batch.

use crate::allocator::pressure::Stall;
use crate::cause::{Cause, CommKind};
use crate::compile::Stalled;
use crate::facts::{KernelFacts, KernelKind};
use crate::kernel::{self, KernelCost};
use crate::price::Prices;
use crate::program::{
    GroupSlot, SEGMENT_LEVELS, Segment, SegmentId, Stream, Transfer, TransferId, Work,
};
use crate::setup::Setup;
use rackflow_network::{CollectiveOp, Demand, ExchangeWay};
use rackflow_topology::Accelerator;
use rackflow_units::{Bytes, Precision, SimDuration};
use rackflow_workload::chakra::{Exchange, Payload, PayloadKind, TraceOp};
use rackflow_workload::{
    AttentionKernel, CudaGraphs, Direction, ExpertDispatcher, GroupLimit, Operation, SoftwareStack,
};
use std::sync::{Mutex, PoisonError};

/// What a transfer asks of the network, before it is known who its members are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Spec {
    /// A collective over the communicator; the size as nccl-tests counts it.
    Collective(CollectiveOp, Bytes),
    /// The same by a kernel on SMs that the products beside it leave to it.
    OnSmsLeft(CollectiveOp, Bytes),
    /// One broadcast from each owner after the other, so many in all (or, the other way round, as
    /// many reductions to an owner); the size of one.
    OwnersInTurn(Bytes, u64),
    /// Each member sends this much to the next one.
    RingStep(Bytes),
    /// Expert dispatch or combine: each member's tokens, once per expert they visit.
    Exchange {
        tokens: u64,
        bytes_per_token: Bytes,
        top_k: u64,
        experts: u64,
        /// DeepEP and HybridEP send a token once per visited domain.
        dispatcher: ExpertDispatcher,
        limit: Option<GroupLimit>,
        way: ExchangeWay,
        /// SMs that its kernels hold.
        sms: u32,
    },
    /// One message to a peer.
    Message(Bytes),
    /// A copy between a rank and its host's memory.
    HostCopy(Bytes),
}

impl Spec {
    /// The same in the words of traces.
    fn carries(&self) -> PayloadKind {
        let buffer = |op, bytes| PayloadKind::Buffer(op, bytes);
        match *self {
            Self::Collective(op, bytes) | Self::OnSmsLeft(op, bytes) => match op {
                CollectiveOp::AllReduce => buffer(TraceOp::AllReduce, bytes),
                CollectiveOp::AllGather => buffer(TraceOp::AllGather, bytes),
                CollectiveOp::ReduceScatter => buffer(TraceOp::ReduceScatter, bytes),
                CollectiveOp::AllToAll => buffer(TraceOp::AllToAll, bytes),
                CollectiveOp::Broadcast => buffer(TraceOp::Broadcast, bytes),
                CollectiveOp::SendRecv => PayloadKind::Message(bytes),
            },
            Self::OwnersInTurn(bytes, turns) => PayloadKind::Turns(bytes, turns),
            Self::RingStep(bytes) => PayloadKind::RingStep(bytes),
            Self::Exchange {
                tokens,
                bytes_per_token,
                top_k,
                experts,
                dispatcher,
                limit,
                way,
                sms,
            } => PayloadKind::Exchange(Exchange {
                tokens,
                bytes_per_token,
                top_k,
                experts,
                dispatcher,
                limit: limit.map(|limit| (limit.chosen, limit.groups)),
                back: way == ExchangeWay::Combine,
                sms,
            }),
            Self::Message(bytes) | Self::HostCopy(bytes) => PayloadKind::Message(bytes),
        }
    }
}

/// One future task; `deps` are indices of earlier nodes of the same run.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub work: Work,
    pub stream: Stream,
    pub deps: Vec<u32>,
    /// Also waits for whatever the run as a whole waits for.
    pub entry: bool,
    pub host_waits: bool,
}

/// Nodes in issue order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Run {
    pub nodes: Vec<Node>,
    /// Communication that the next computation after this run must wait for.
    pub exits: Vec<u32>,
    /// Nodes before which ranks meet in a collective, as the play of the allocator has it: twice for each exchange of tokens, and
    /// once when a layer is through.
    pub meetings: Vec<u32>,
}

impl Run {
    /// Index of the last computation.
    fn last_compute(&self) -> Option<u32> {
        self.nodes
            .iter()
            .rposition(|n| n.stream == Stream::Compute)
            .map(|i| i as u32)
    }

    /// Appends `other`, whose entry nodes wait for the end of what is here.
    pub fn append(&mut self, other: &Self) {
        let offset = self.nodes.len() as u32;
        let last_compute = self.last_compute();
        for node in &other.nodes {
            let mut node = node.clone();
            for dep in &mut node.deps {
                *dep += offset;
            }
            if node.entry && offset > 0 {
                node.deps.extend_from_slice(&self.exits);
                // Another computation follows the last one on its stream anyway.
                if node.stream != Stream::Compute {
                    node.deps.extend(last_compute);
                }
                // Until something is computed here, what the run as a whole waits for is still due.
                node.entry = last_compute.is_none();
            }
            self.nodes.push(node);
        }
        let meetings = other.meetings.iter().map(|node| node + offset);
        self.meetings.extend(meetings);
        // A run without computation leaves the earlier exits open.
        if other.last_compute().is_some() {
            self.exits.clear();
        }
        self.exits
            .extend(other.exits.iter().map(|exit| exit + offset));
    }

    /// Appends a node that waits for exactly `deps`, beside the chain of computation.
    pub fn push_aside(&mut self, work: Work, stream: Stream, deps: Vec<u32>) -> u32 {
        self.nodes.push(Node {
            work,
            stream,
            deps,
            entry: false,
            host_waits: false,
        });
        self.nodes.len() as u32 - 1
    }

    /// Index of the last node of computation, for what must wait for all of it.
    pub fn after_compute(&self) -> Vec<u32> {
        self.last_compute().into_iter().collect()
    }
}

/// Everything that runs share while they are built.
pub(crate) struct Context<'a> {
    pub setup: &'a Setup,
    pub accelerator: &'a Accelerator,
    pub segments: Vec<Segment>,
    pub transfers: Vec<Transfer>,
    pub specs: Vec<(Spec, Option<GroupSlot>)>,
    /// What each transfer asks of the links, by span or path class.
    pub demands: Vec<Vec<Demand>>,
    prices: &'a Prices,
    /// Tensor-core FLOPs by segment, for hardware FLOPs: useful and recomputed.
    pub segment_flops: Vec<SegmentFlops>,
    options: kernel::KernelOptions,
    level_sms: [u32; SEGMENT_LEVELS],
    /// Where nothing but times is asked for: what is known of kernels.
    known: Option<&'a KnownKernels>,
}

/// What the wait for the allocator is called in traces.
const STALL: &str = "allocator";

/// What kernels take, as [`Segment::time`].
type Times = [SimDuration; SEGMENT_LEVELS];

/// Times of kernels, each found once. They belong to one accelerator and one stack.
#[derive(Debug, Default)]
pub(crate) struct KnownKernels(Mutex<Vec<(Operation, Times)>>);

impl KnownKernels {
    /// The times of `op`, found by `price` when they are asked for first.
    fn times(&self, op: &Operation, price: impl FnOnce() -> Times) -> Times {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, time)) = known.iter().find(|(of, _)| of == op) {
            return *time;
        }
        let time = price();
        known.push((op.clone(), time));
        time
    }
}

/// Tensor-core FLOPs of one segment, and the kernels that they are done by.
#[derive(Debug, Clone, Default)]
pub(crate) struct SegmentFlops {
    /// Model FLOPs, attention as the mask leaves it.
    pub model: f64,
    /// FLOPs executed again: recomputation, and the scores in flash attention's backward pass.
    pub again: f64,
    /// Its kernels, once each.
    pub kernels: Vec<KernelFacts>,
}

impl<'a> Context<'a> {
    pub fn new(setup: &'a Setup, prices: &'a Prices) -> Self {
        let accelerator = &setup.cluster.node.accelerator;
        let stack = &setup.training.stack;
        let has_experts = setup.training.model.moe.is_some();
        let most = stack
            .most_held_sms(has_experts)
            .min(accelerator.sms * 2 / 3);
        let level_sms = std::array::from_fn(|level| {
            accelerator.sms - most * level as u32 / (SEGMENT_LEVELS as u32 - 1)
        });
        Self {
            setup,
            accelerator,
            segments: Vec::new(),
            transfers: Vec::new(),
            specs: Vec::new(),
            demands: Vec::new(),
            prices,
            segment_flops: Vec::new(),
            options: kernel::KernelOptions {
                attention: stack.attention,
                load: kernel::Load::Continuous,
            },
            level_sms,
            known: None,
        }
    }

    /// The same for whoever asks for times alone: nothing is said of causes and FLOPs.
    pub fn of_times(setup: &'a Setup, prices: &'a Prices, known: &'a KnownKernels) -> Self {
        Self {
            known: Some(known),
            ..Self::new(setup, prices)
        }
    }

    /// Host time to launch one communication.
    pub fn communication_launch(&self) -> SimDuration {
        match self.setup.training.stack.cuda_graphs {
            CudaGraphs::Full => SimDuration::ZERO,
            _ => on_host(self.setup.training.stack.launch, self.setup),
        }
    }

    /// SMs that communication holds at the highest segment level.
    pub fn most_held_sms(&self) -> u32 {
        self.accelerator.sms - self.level_sms[SEGMENT_LEVELS - 1]
    }

    /// Registers a communication and returns its index; equal ones are shared.
    pub fn transfer(
        &mut self,
        label: &'static str,
        kind: CommKind,
        slot: Option<GroupSlot>,
        spec: Spec,
        sms: u32,
    ) -> TransferId {
        let same = |i: &usize| {
            self.specs[*i] == (spec, slot)
                && self.transfers[*i].kind == kind
                && self.transfers[*i].sms == sms
                && self.transfers[*i].label == label
        };
        let index = (0..self.specs.len()).find(same).unwrap_or_else(|| {
            let mut demands = self.prices.demands(&spec, slot);
            let mut payload = Payload::plain(spec.carries());
            // Copies that run beside their product hold no SMs.
            let holds = matches!(spec, Spec::Collective(..) | Spec::OwnersInTurn(..)) && sms > 0;
            if holds || matches!(spec, Spec::OnSmsLeft(..)) {
                payload.slowdown = slowdown(self.setup.training.stack.collective_slowdown);
                slow_down(&mut demands, payload.slowdown);
            }
            if matches!(spec, Spec::Exchange { .. }) {
                let overhead = self.setup.training.stack.dispatch_overhead;
                payload.overhead = overhead;
                let across = demands
                    .iter_mut()
                    .filter(|demand| demand.nic > SimDuration::ZERO);
                across.for_each(|demand| demand.latency += overhead);
            }
            self.transfers.push(Transfer {
                label,
                kind,
                sms,
                memory_share: if matches!(spec, Spec::HostCopy(_)) {
                    self.prices.host_copy_memory_share()
                } else {
                    self.prices.memory_share(&demands)
                },
                payload,
            });
            self.demands.push(demands);
            self.specs.push((spec, slot));
            self.specs.len() - 1
        });
        TransferId(index as u32)
    }

    /// Waiting for the allocator. Equal ones are shared.
    pub fn stall(&mut self, stall: Stall) -> Stalled {
        // What drains keeps the device waiting; else the host is late with what comes next, whether the device has
        // work left or not. It never has where every launch waits for its kernel.
        let drains = stall.drains || self.setup.training.stack.blocking_launches;
        let (time, launch) = match drains {
            true => (stall.time, SimDuration::ZERO),
            false => (SimDuration::ZERO, stall.time),
        };
        let same = |segment: &Segment| {
            segment.label == STALL && segment.time[0] == time && segment.launch == launch
        };
        if let Some(known) = self.segments.iter().position(same) {
            return (SegmentId(known as u32), drains);
        }
        self.segments.push(Segment {
            label: STALL,
            time: [time; SEGMENT_LEVELS],
            memory_time: SimDuration::ZERO,
            launch,
            late: Cause::Allocator,
            routed: false,
            causes: vec![(Cause::Allocator, time)],
            flops: 0.0,
        });
        self.segment_flops.push(SegmentFlops::default());
        (SegmentId(self.segments.len() as u32 - 1), drains)
    }

    /// Prices a run of operations.
    fn segment(
        &mut self,
        label: &'static str,
        ops: &[(&'static str, Operation)],
        besides: SimDuration,
        routed: bool,
        recompute: bool,
    ) -> SegmentId {
        if let Some(known) = self.known {
            return self.timed_segment(known, label, ops, besides, routed);
        }
        let native = self.setup.training.recipe.gemm();
        let peak_native = self.accelerator.peak.get(native);
        // The rate by which the cost model turns bytes into time of the memory.
        let memory_rate =
            self.accelerator.memory_bandwidth.as_f64() * self.accelerator.measured.memory;
        let mut time = [SimDuration::ZERO; SEGMENT_LEVELS];
        let mut memory_time = SimDuration::ZERO;
        let stack = &self.setup.training.stack;
        let mut host = besides;
        let mut flops = SegmentFlops::default();
        let mut causes: Vec<(Cause, SimDuration)> = Vec::new();
        let mut book = |cause: Cause, span: SimDuration| {
            if span == SimDuration::ZERO {
                return;
            }
            match causes.iter_mut().find(|(c, _)| *c == cause) {
                Some((_, sum)) => *sum += span,
                None => causes.push((cause, span)),
            }
        };
        for (part, op) in ops {
            let cost = kernel::cost_with(op, self.accelerator, self.level_sms[0], self.options);
            time[0] += cost.time;
            memory_time += cost.memory_time;
            host += host_time(op, stack);
            for (level, sms) in self.level_sms.iter().enumerate().skip(1) {
                time[level] += kernel::cost_with(op, self.accelerator, *sms, self.options)
                    .time
                    .max(cost.time);
            }
            let share = model_fraction(op);
            let executed = match (op, self.options.attention) {
                // Unfused attention keeps its scores and multiplies nothing again.
                (Operation::Attention { .. }, AttentionKernel::Unfused) => {
                    op.tensor_flops() * share
                }
                _ => op.tensor_flops(),
            };
            let again_share = 1.0 - op.tensor_flops() * share / executed.max(1.0);
            let model = if recompute {
                0.0
            } else {
                op.tensor_flops() * share
            };
            flops.model += model;
            flops.again += executed - model;
            flops.kernels.push(KernelFacts {
                flops: executed,
                bytes: cost.memory_time.as_secs_f64() * memory_rate,
                seconds: cost.time.as_secs_f64(),
                ..described(op, part, recompute)
            });
            if recompute {
                book(Cause::Recomputation, cost.time);
                continue;
            }
            let KernelCost {
                useful,
                sustained,
                shape,
                memory,
                exponent,
                floor,
                ..
            } = cost;
            // What flash attention's backward pass computes again is not model FLOPs.
            let again = useful.scale((again_share.max(0.0) * 1e6).round() as u64, 1_000_000);
            let useful = useful - again;
            let at_native =
                SimDuration::from_secs_f64(model / peak_native.flops_per_sec()).min(useful);
            book(Cause::UsefulMath, at_native);
            book(Cause::WiderPrecision, useful - at_native);
            book(Cause::Recomputation, again);
            book(Cause::SustainedRate, sustained);
            book(Cause::Shape, shape);
            book(Cause::MemoryBound, memory);
            book(Cause::ExponentBound, exponent);
            book(Cause::Launch, floor);
        }
        let launch = self.issues(host, routed);
        if let Some(exposed) = self.expose(&mut time, launch) {
            book(Cause::Launch, exposed);
        }
        self.segments.push(Segment {
            label,
            time,
            memory_time,
            launch,
            late: Cause::Launch,
            routed,
            causes,
            flops: flops.model + flops.again,
        });
        self.segment_flops.push(flops);
        SegmentId(self.segments.len() as u32 - 1)
    }

    /// The times of a run of operations, and nothing else of it.
    fn timed_segment(
        &mut self,
        known: &KnownKernels,
        label: &'static str,
        ops: &[(&'static str, Operation)],
        besides: SimDuration,
        routed: bool,
    ) -> SegmentId {
        let (mut time, mut host) = ([SimDuration::ZERO; SEGMENT_LEVELS], besides);
        for (_, op) in ops {
            let times = known.times(op, || {
                let on = |sms| kernel::cost_with(op, self.accelerator, sms, self.options).time;
                let alone = on(self.level_sms[0]);
                self.level_sms.map(|sms| on(sms).max(alone))
            });
            for (sum, of_op) in time.iter_mut().zip(times) {
                *sum += of_op;
            }
            host += host_time(op, &self.setup.training.stack);
        }
        let launch = self.issues(host, routed);
        self.expose(&mut time, launch);
        self.segments.push(Segment {
            label,
            time,
            memory_time: SimDuration::ZERO,
            launch,
            late: Cause::Launch,
            routed,
            causes: Vec::new(),
            flops: 0.0,
        });
        SegmentId(self.segments.len() as u32 - 1)
    }

    /// Adds the host's time for a segment to its kernels' where each launch waits for the kernel before.
    fn expose(
        &self,
        time: &mut [SimDuration; SEGMENT_LEVELS],
        launch: SimDuration,
    ) -> Option<SimDuration> {
        if !self.setup.training.stack.blocking_launches {
            return None;
        }
        time.iter_mut().for_each(|level| *level += launch);
        Some(launch)
    }

    /// Host time to issue a segment whose kernels take `host` one by one.
    fn issues(&self, host: SimDuration, routed: bool) -> SimDuration {
        let stack = &self.setup.training.stack;
        let launch = match stack.cuda_graphs {
            CudaGraphs::None => host,
            CudaGraphs::Partial if routed => host,
            CudaGraphs::Partial => stack.launch,
            CudaGraphs::Full => SimDuration::ZERO,
        };
        on_host(launch, self.setup)
    }
}

/// What an operation is, for pictures of kernels.
fn described(op: &Operation, label: &'static str, again: bool) -> KernelFacts {
    let (kind, precision, shape, launches) = match *op {
        Operation::Gemm {
            m, n, k, precision, ..
        } => (KernelKind::Product, Some(precision), [m, n, k], 1.0),
        Operation::GroupedGemm {
            m_total,
            n,
            k,
            precision,
            ..
        } => (
            KernelKind::ExpertProduct,
            Some(precision),
            [m_total, n, k],
            1.0,
        ),
        Operation::Attention {
            query_len,
            kv_len,
            heads,
            precision,
            ..
        } => (
            KernelKind::Attention,
            Some(precision),
            [query_len, kv_len, heads],
            1.0,
        ),
        Operation::Stream { kernels, .. } => (KernelKind::Stream, None, [0; 3], f64::from(kernels)),
    };
    KernelFacts {
        label,
        kind,
        precision,
        shape,
        again,
        launches,
        flops: 0.0,
        bytes: 0.0,
        seconds: 0.0,
    }
}

/// Host time of a stack on this cluster's hosts.
pub(crate) fn on_host(time: SimDuration, setup: &Setup) -> SimDuration {
    let slowdown = setup.cluster.node.host_slowdown;
    if slowdown == 1.0 {
        return time;
    }
    SimDuration::from_secs_f64(time.as_secs_f64() * slowdown)
}

/// Share of an operation's tensor FLOPs that the model's definition counts.
fn model_fraction(op: &Operation) -> f64 {
    match *op {
        Operation::Attention {
            direction: Direction::Backward,
            head_dim_qk,
            head_dim_v,
            ..
        } => {
            let model = 2 * head_dim_qk + 2 * head_dim_v;
            model as f64 / (3 * head_dim_qk + 2 * head_dim_v) as f64
        }
        _ => 1.0,
    }
}

/// Of [`slow_down`]: this is 1.
const SLOWDOWN_ONE: u64 = 1_024;

fn slowdown(factor: f64) -> u64 {
    (factor.max(1.0) * SLOWDOWN_ONE as f64).round() as u64
}

/// The bytes of a collective inside training take `factor` 1,024ths of the time that they take alone;
/// its latency does not grow.
fn slow_down(demands: &mut [Demand], factor: u64) {
    for demand in demands {
        demand.nvlink = demand.nvlink.scale(factor, SLOWDOWN_ONE);
        demand.nic = demand.nic.scale(factor, SLOWDOWN_ONE);
    }
}

/// Launching one more kernel from inside a library call, without the framework around it
/// (cudaLaunchKernel alone takes about 2 us; typical value, unverified).
const LIBRARY_LAUNCH: SimDuration = SimDuration::from_micros(2);

/// Describing, choosing and launching one more product from inside a library call. Transformer Engine's
/// grouped products over 80 to 256 small experts take 8.7 to 9.2 us for each at least, whatever their
/// size (MooreThreads/SimuMax e691807, configs/system/b200_bf16_ceperm.json).
const EXPERT_LAUNCH: SimDuration = SimDuration::from_nanos(8_700);

/// Time that the host needs to issue the kernels of one operation.
fn host_time(op: &Operation, stack: &SoftwareStack) -> SimDuration {
    let product = |precision: Precision| stack.product_launch(precision.bits() < 16);
    match *op {
        Operation::Gemm { precision, .. } => product(precision),
        // One call that launches one product after the other, quantising each in 8 bits.
        Operation::GroupedGemm {
            groups,
            precision,
            apart,
            ..
        } => {
            let launched = if apart {
                EXPERT_LAUNCH * groups
            } else {
                SimDuration::ZERO
            };
            let quantized = if precision.bits() < 16 {
                LIBRARY_LAUNCH * groups
            } else {
                SimDuration::ZERO
            };
            product(precision) + launched + quantized
        }
        Operation::Attention { precision, .. } => product(precision) + LIBRARY_LAUNCH * 2,
        Operation::Stream { kernels, .. } => stack.launch * u64::from(kernels),
    }
}

/// Builds a [`Run`]: operations collect into a segment until communication or a wait closes it.
pub(crate) struct Builder<'c, 'a> {
    pub ctx: &'c mut Context<'a>,
    run: Run,
    /// Operations of the open segment, each with the label under which it came.
    ops: Vec<(&'static str, Operation)>,
    waits: Vec<u32>,
    label: &'static str,
    routed: bool,
    recompute: bool,
    /// Host time of the open segment besides its kernels.
    host: SimDuration,
}

impl<'c, 'a> Builder<'c, 'a> {
    pub fn new(ctx: &'c mut Context<'a>) -> Self {
        Self {
            ctx,
            run: Run::default(),
            ops: Vec::new(),
            waits: Vec::new(),
            label: "",
            routed: false,
            recompute: false,
            host: SimDuration::ZERO,
        }
    }

    /// Names the open segment, and those after it until the next call.
    pub fn label(&mut self, label: &'static str) {
        self.label = label;
    }

    /// The following operations scale with the rank's expert load (or no longer do).
    pub fn routed(&mut self, routed: bool) {
        if self.routed != routed {
            self.close();
            self.routed = routed;
        }
    }

    /// The following operations are computed a second time (or no longer are).
    pub fn recompute(&mut self, recompute: bool) {
        if self.recompute != recompute {
            self.close();
            self.recompute = recompute;
        }
    }

    /// The host spends `time` on the open segment besides launching its kernels.
    pub fn host(&mut self, time: SimDuration) {
        self.host += time;
    }

    pub fn op(&mut self, op: Operation) {
        self.ops.push((self.label, op));
    }

    pub fn extend(&mut self, ops: impl IntoIterator<Item = Operation>) {
        let label = self.label;
        self.ops.extend(ops.into_iter().map(|op| (label, op)));
    }

    /// Ends the open segment, if there is one.
    pub fn close(&mut self) -> Option<u32> {
        if self.ops.is_empty() {
            return None;
        }
        let id = self.ctx.segment(
            self.label,
            &self.ops,
            self.host,
            self.routed,
            self.recompute,
        );
        self.host = SimDuration::ZERO;
        self.ops.clear();
        let entry = self.run.last_compute().is_none();
        self.run.nodes.push(Node {
            work: Work::Compute(id),
            stream: Stream::Compute,
            deps: std::mem::take(&mut self.waits),
            entry,
            host_waits: false,
        });
        Some(self.run.nodes.len() as u32 - 1)
    }

    /// Issues a collective after everything computed so far; nothing waits for it yet.
    #[allow(
        clippy::too_many_arguments,
        reason = "one call per collective reads best on one line"
    )]
    pub fn collective(
        &mut self,
        label: &'static str,
        kind: CommKind,
        slot: GroupSlot,
        stream: Stream,
        spec: Spec,
        sms: u32,
    ) -> u32 {
        self.close();
        let id = self.ctx.transfer(label, kind, Some(slot), spec, sms);
        self.beside(Work::Collective(slot, id), stream)
    }

    /// Sends or receives a message after everything computed so far; nothing waits for it yet.
    pub fn message(
        &mut self,
        label: &'static str,
        spec: Spec,
        sms: u32,
        stream: Stream,
        work: impl FnOnce(TransferId) -> Work,
    ) -> u32 {
        self.close();
        let id = self
            .ctx
            .transfer(label, CommKind::Pipeline, None, spec, sms);
        self.beside(work(id), stream)
    }

    /// A node beside the computation, after everything computed so far.
    fn beside(&mut self, work: Work, stream: Stream) -> u32 {
        let last = self.run.last_compute();
        let mut deps: Vec<u32> = last.into_iter().collect();
        // A wait that no computation has taken up yet holds for this communication as well.
        deps.extend_from_slice(&self.waits);
        self.run.nodes.push(Node {
            work,
            stream,
            deps,
            entry: last.is_none(),
            host_waits: false,
        });
        self.run.nodes.len() as u32 - 1
    }

    /// The host waits for this node before it issues anything more.
    pub fn host_waits(&mut self, node: u32) {
        self.run.nodes[node as usize].host_waits = true;
    }

    /// Ranks meet so often after what is here.
    pub fn meet(&mut self, times: usize) {
        let open = u32::from(!self.ops.is_empty());
        let node = self.run.nodes.len() as u32 + open;
        let meetings = std::iter::repeat_n(node, times);
        self.run.meetings.extend(meetings);
    }

    /// What is computed from here on waits for `node`.
    pub fn wait(&mut self, node: u32) {
        self.close();
        self.waits.push(node);
    }

    pub fn finish(mut self) -> Run {
        self.close();
        self.run.exits = self.waits;
        self.run
    }
}
