//! Execution traces of MLCommons Chakra: what each rank of a run did, and what waited for what.
//!
//! The format is that of `schema/protobuf/et_def.proto` in mlcommons/chakra: one file per rank, with a
//! `GlobalMetadata` message and then one `Node` message after the other, each with its length in
//! front. [`wire`] holds these messages; [`ExecutionTrace`] is what they mean.

mod payload;
pub mod wire;

pub use payload::{Exchange, Payload, PayloadKind, TraceOp};

use rackflow_units::{Bytes, SimDuration};

/// What the ranks of a run did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ExecutionTrace {
    /// One for each file, ascending by rank.
    pub ranks: Vec<RankTrace>,
    /// Communicators that nodes refer to.
    pub groups: Vec<TraceGroup>,
    /// What collectives carry; nodes refer to it.
    pub payloads: Vec<Payload>,
    /// Accelerators on which kernels took their times, each once; none where the files do not say.
    pub recorded_on: Vec<String>,
}

/// The ranks of one communicator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceGroup {
    /// The process group's name.
    pub name: String,
    /// Its ranks, ascending.
    pub members: Vec<u32>,
}

/// What one rank did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RankTrace {
    /// Its number.
    pub rank: u32,
    /// In the order of the file.
    pub nodes: Vec<TraceNode>,
    /// Positions in `nodes`; each node owns a range.
    pub deps: Vec<u32>,
}

impl RankTrace {
    /// Positions of the nodes that must be over before `node` starts.
    pub fn deps_of(&self, node: &TraceNode) -> &[u32] {
        &self.deps[node.deps.0 as usize..node.deps.1 as usize]
    }
}

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TraceNode {
    /// Its number in the file.
    pub id: u64,
    /// Range in [`RankTrace::deps`].
    pub deps: (u32, u32),
    /// The stream that it ran on; those of one stream never run at once.
    pub stream: u32,
    /// How long it took where it was recorded.
    pub recorded: Option<SimDuration>,
    /// What it is.
    pub activity: Activity,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activity {
    /// A kernel on the accelerator: arithmetic operations, and bytes read and written.
    Kernel {
        /// Operations; 0 where the trace does not say.
        ops: f64,
        /// Bytes; 0 where the trace does not say.
        bytes: Bytes,
    },
    /// Work of the host.
    Host,
    /// A transfer from memory beyond the accelerator's own.
    Load(Bytes),
    /// A transfer to it.
    Store(Bytes),
    /// A collective, by position in [`ExecutionTrace::groups`] and [`ExecutionTrace::payloads`].
    Collective {
        /// With whom.
        group: u32,
        /// What it carries.
        payload: u32,
    },
    /// One message to a rank.
    Send {
        /// To whom.
        peer: u32,
        /// Tells messages between two ranks apart.
        tag: u32,
        /// How much.
        bytes: Bytes,
    },
    /// One message from a rank; its size is the sender's business.
    Receive {
        /// From whom.
        peer: u32,
        /// Tells messages between two ranks apart.
        tag: u32,
        /// How much, for where the sender has no trace.
        bytes: Bytes,
    },
    /// Nothing that takes time.
    Nothing,
}
