//! What the ranks of one pipeline stage do in one step, as tasks on streams.

use crate::cause::{Cause, CommKind};
use rackflow_units::SimDuration;
use rackflow_workload::chakra::Payload;

/// A queue of one rank: its tasks run in order, and beside those of the other streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stream {
    /// Kernels.
    Compute,
    /// Tensor- and context-parallel collectives.
    Tensor,
    /// Expert dispatch and combine.
    Expert,
    /// Gradient and parameter collectives.
    Data,
    /// Activations to the next stage.
    SendActivation,
    /// Activations from the stage before.
    ReceiveActivation,
    /// Gradients to the stage before.
    SendGradient,
    /// Gradients from the next stage.
    ReceiveGradient,
    /// The same four, for the opposite direction of a bidirectional schedule.
    SendActivationReverse,
    /// See [`Stream::SendActivationReverse`].
    ReceiveActivationReverse,
    /// See [`Stream::SendActivationReverse`].
    SendGradientReverse,
    /// See [`Stream::SendActivationReverse`].
    ReceiveGradientReverse,
    /// Activations to the host's memory.
    Offload,
    /// Activations from the host's memory.
    Reload,
}

impl Stream {
    /// Number of streams of one rank.
    pub const COUNT: usize = 14;
}

/// A communicator that every rank is in exactly one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum GroupSlot {
    /// Tensor-parallel ranks.
    Tensor,
    /// Context-parallel ranks.
    Context,
    /// Expert-parallel ranks.
    Expert,
    /// Ranks of one expert (tensor parallelism inside an expert).
    ExpertTensor,
    /// Ranks that reduce dense gradients: data x context.
    Data,
    /// Ranks that hold the same experts.
    ExpertData,
    /// Ranks over which ZeRO shards inside [`GroupSlot::Data`], where that is a subset (HSDP).
    Shard,
    /// One rank per shard group: what remains of the gradient reduction after [`GroupSlot::Shard`].
    Replica,
}

impl GroupSlot {
    /// Number of slots.
    pub const COUNT: usize = 8;
    /// All slots.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Tensor,
        Self::Context,
        Self::Expert,
        Self::ExpertTensor,
        Self::Data,
        Self::ExpertData,
        Self::Shard,
        Self::Replica,
    ];
}

/// The rank at the other end of a send or receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Peer {
    /// The same position in the next stage; after the last comes the first.
    Next,
    /// The same position in the stage before; before the first comes the last.
    Previous,
}

/// Index into [`crate::Plan`]'s segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u32);

/// Index into [`crate::Plan`]'s transfers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransferId(pub u32);

/// What a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A run of kernels without communication between them.
    Compute(SegmentId),
    /// A collective with the ranks of one communicator.
    Collective(GroupSlot, TransferId),
    /// One message to a peer.
    Send(Peer, TransferId),
    /// One message from a peer; its size is the sender's business.
    Receive(Peer, TransferId),
    /// A copy between a rank and its host's memory, out on [`Stream::Offload`], in on
    /// [`Stream::Reload`].
    Copy(TransferId),
}

/// One entry of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// What it is.
    pub work: Work,
    /// Where it queues.
    pub stream: Stream,
    /// The host waits for this task before it issues the next one.
    pub host_waits: bool,
    /// Range in [`Program::waits`].
    pub waits: (u32, u32),
    /// Micro-batch, for traces.
    pub micro_batch: u32,
}

/// The tasks of one stage, in the order in which the host issues them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Program {
    /// Tasks in issue order.
    pub tasks: Vec<Task>,
    /// Tasks that must have finished before another starts, besides those before it on its stream.
    pub waits: Vec<u32>,
    /// Passes through chunks of the model, in issue order: for pictures and traces, not for time.
    pub passes: Vec<PassMark>,
}

/// One pass through a chunk: which tasks it is made of, and what it does to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassMark {
    /// Place in the order of the stage's passes. Those that compute nothing have no mark.
    pub place: u32,
    /// Forward or backward.
    pub kind: PassKind,
    /// Micro-batch.
    pub micro_batch: u32,
    /// Chunk of the stage.
    pub chunk: u32,
    /// First and last computation.
    pub tasks: (u32, u32),
    /// Bytes of activations that it keeps from its start on.
    pub keeps: u64,
    /// Bytes of activations that it gives back at its end.
    pub frees: u64,
}

/// What a pass does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PassKind {
    /// Forward.
    Forward,
    /// Backward, both gradients.
    Backward,
    /// Backward, only what the stage before waits for.
    InputGradient,
    /// Backward, the rest.
    WeightGradient,
    /// A forward and a backward woven into one; marked once, with the forward's micro-batch.
    Overlapped,
}

impl Program {
    /// Appends a task and returns its index.
    pub fn push(&mut self, work: Work, stream: Stream, micro_batch: u32, waits: &[u32]) -> u32 {
        let start = self.waits.len() as u32;
        self.waits.extend_from_slice(waits);
        self.tasks.push(Task {
            work,
            stream,
            host_waits: false,
            waits: (start, self.waits.len() as u32),
            micro_batch,
        });
        self.tasks.len() as u32 - 1
    }

    /// Tasks that `task` waits for.
    pub fn waits_of(&self, task: u32) -> &[u32] {
        let (start, end) = self.tasks[task as usize].waits;
        &self.waits[start as usize..end as usize]
    }
}

/// Levels of SM loss for which a segment's time is known: none, then a quarter, a half, three
/// quarters and all of the most that communication can hold at once.
pub const SEGMENT_LEVELS: usize = 5;

/// A run of kernels without communication between them, as the device executes it alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// What it is, for traces ("attention forward").
    pub label: &'static str,
    /// Duration on an otherwise idle GPU, then with communication holding SMs.
    pub time: [SimDuration; SEGMENT_LEVELS],
    /// Time during which the memory interface is busy, of `time[0]`.
    pub memory_time: SimDuration,
    /// Host time to launch its kernels; zero inside a CUDA graph.
    pub launch: SimDuration,
    /// How the time is booked for which the device waits until the host has launched the last of them.
    pub late: Cause,
    /// Scales with the rank's expert load.
    pub routed: bool,
    /// How `time[0]` is booked; sums to it.
    pub causes: Vec<(Cause, SimDuration)>,
    /// Tensor-core operations that it executes.
    pub flops: f64,
}

impl Segment {
    /// Whether the host's driver takes its time, which a slow GPU makes no longer.
    pub fn waits_for_driver(&self) -> bool {
        self.late == Cause::Allocator
    }
}

/// One kind of communication of the plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Transfer {
    /// What it is, for traces ("dispatch").
    pub label: &'static str,
    /// What it is for.
    pub kind: CommKind,
    /// SMs its kernel holds on every rank while it runs.
    pub sms: u32,
    /// Fraction of the memory bandwidth that it takes while it runs at full rate.
    pub memory_share: f64,
    /// What it carries, for traces that others read.
    pub payload: Payload,
}
