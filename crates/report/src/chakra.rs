//! Our plan as execution traces of MLCommons Chakra, one file per rank, so that other simulators can
//! run what we ran.
//!
//! Kernels carry the time that they took, whatever ran beside them; communications carry what they
//! move. What the schema has no word for is in attributes whose names begin with `rackflow_`; other
//! tools pass over them.

use rackflow_plan::{CommKind, GroupSlot, Peer, Plan, Stream, Task, Work};
use rackflow_simulator::Execution;
use rackflow_units::{SimDuration, SimTime};
use rackflow_workload::chakra::wire::{
    self, Attribute, GlobalMetadata, Node, Value, attribute, node_type,
};
use rackflow_workload::chakra::{Payload, PayloadKind};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;

/// A plan, what became of it, and the numbers of its communicators.
pub struct ChakraExport<'p> {
    plan: &'p Plan,
    execution: &'p Execution,
    /// Number of the first communicator of each slot of the plan.
    first_group: Vec<u32>,
}

/// Tags of messages: pipelines use one for each stream, rings one for each slot.
const FIRST_RING_TAG: i32 = 16;

impl<'p> ChakraExport<'p> {
    /// Of `plan` as it was executed.
    pub fn new(plan: &'p Plan, execution: &'p Execution) -> Self {
        // Number 0 stands for all ranks elsewhere.
        let mut next = 1;
        let first_group = plan.slots.iter().map(|slot| {
            let first = next;
            next += plan.placement.groups(*slot);
            first
        });
        let first_group = first_group.collect();
        Self {
            plan,
            execution,
            first_group,
        }
    }

    /// Ranks of the plan.
    pub fn ranks(&self) -> u32 {
        self.plan.placement.ranks()
    }

    /// `comm_group.json`: the ranks of each communicator.
    pub fn communicators(&self) -> String {
        let mut groups = serde_json::Map::new();
        let mut members = Vec::new();
        for (slot, first) in self.plan.slots.iter().zip(&self.first_group) {
            for group in 0..self.plan.placement.groups(*slot) {
                members.clear();
                self.plan.placement.members(*slot, group, &mut members);
                groups.insert((first + group).to_string(), json!(members));
            }
        }
        format!("{}\n", Json::Object(groups))
    }

    /// About how many bytes the files of these ranks have: ranks of one stage have programs alike.
    pub fn bytes_of(&self, ranks: &[u32]) -> u64 {
        let mut of_stage: BTreeMap<u32, u64> = BTreeMap::new();
        let mut bytes: u64 = 0;
        for rank in ranks {
            let class = self.execution.class_of_rank[*rank as usize] as usize;
            let stage = self.execution.classes[class].stage;
            let one = of_stage
                .entry(stage)
                .or_insert_with(|| self.rank(*rank).len() as u64);
            bytes = bytes.saturating_add(*one);
        }
        bytes
    }

    /// The file of one rank.
    ///
    /// # Panics
    /// When there is no such rank.
    pub fn rank(&self, rank: u32) -> Vec<u8> {
        let class = self.execution.class_of_rank[rank as usize] as usize;
        let executed = &self.execution.classes[class];
        let program = &self.plan.programs[executed.stage as usize];
        let mut writer = Writer::new(self, rank);
        for (index, task) in program.tasks.iter().enumerate() {
            let waits = program.waits_of(index as u32);
            let time = executed.times[index];
            writer.task(task, waits, time);
        }
        writer.bytes
    }

    fn group(&self, slot: GroupSlot, rank: u32) -> u32 {
        let known = self.plan.slots.iter().zip(&self.first_group);
        let first = known
            .filter(|(known, _)| **known == slot)
            .map(|(_, first)| *first);
        first.sum::<u32>() + self.plan.placement.group_of(slot, rank)
    }

    /// The payload of a transfer among the ranks of a communicator: who has the most tokens is last.
    fn payload(&self, transfer: usize, slot: GroupSlot, rank: u32) -> Payload {
        let transfer = &self.plan.transfers[transfer];
        let mut payload = transfer.payload;
        if transfer.kind == CommKind::Expert && self.execution.uneven {
            let mut members = Vec::new();
            let group = self.plan.placement.group_of(slot, rank);
            self.plan.placement.members(slot, group, &mut members);
            let load = |member: &u32| {
                let class = self.execution.class_of_rank[*member as usize];
                self.execution.classes[class as usize].load
            };
            payload.load = members.iter().map(load).max().unwrap_or(payload.load);
        }
        payload
    }
}

/// Writes the nodes of one rank.
struct Writer<'e, 'p> {
    export: &'e ChakraExport<'p>,
    rank: u32,
    kind: u32,
    /// What its accelerator reads of long streams [bytes/s].
    memory_rate: f64,
    bytes: Vec<u8>,
    next: u64,
    /// First and last node of each task.
    nodes: Vec<(u64, u64)>,
    /// The last task of each stream.
    last: [Option<u32>; Stream::COUNT],
    /// What the host has done last: what tasks from here on wait for.
    host: Vec<u64>,
    /// Time that the host takes to issue the task before, not written yet.
    launch: SimDuration,
    computed: SimDuration,
}

impl<'e, 'p> Writer<'e, 'p> {
    fn new(export: &'e ChakraExport<'p>, rank: u32) -> Self {
        let mut bytes = Vec::new();
        let plan = export.plan;
        let kind = plan.kind_of(rank);
        let kinds = plan.setup.cluster.kinds();
        let accelerator = &kinds[kind as usize].node.accelerator;
        let metadata = GlobalMetadata {
            version: wire::VERSION.into(),
            attr: vec![Attribute {
                name: attribute::ACCELERATOR.to_owned(),
                value: Some(Value::Text(accelerator.name.clone())),
            }],
        };
        wire::append(&metadata, &mut bytes);
        Self {
            export,
            rank,
            kind,
            memory_rate: accelerator.memory_bandwidth.as_f64() * accelerator.measured.memory,
            bytes,
            next: 0,
            nodes: Vec::new(),
            last: [None; Stream::COUNT],
            host: Vec::new(),
            launch: SimDuration::ZERO,
            computed: SimDuration::ZERO,
        }
    }

    fn write(&mut self, mut node: Node) -> u64 {
        node.id = self.next;
        self.next += 1;
        wire::append(&node, &mut self.bytes);
        node.id
    }

    fn task(&mut self, task: &Task, waits: &[u32], (start, end): (SimTime, SimTime)) {
        let receives = matches!(task.work, Work::Receive(..));
        self.issue_the_one_before();
        let mut node = Node {
            start_time_micros: start.as_picos() / MICRO,
            duration_micros: rounded(end.since(start).as_picos()),
            ..Node::default()
        };
        for wait in waits {
            let (first, last) = self.nodes[*wait as usize];
            node.data_deps.extend(first..=last);
        }
        // A stream does one thing after the other; the host asks for a message early.
        if let Some(before) = self.last[task.stream as usize] {
            let (first, last) = self.nodes[before as usize];
            node.ctrl_deps.extend(first..=last);
        }
        if !receives {
            node.ctrl_deps.extend_from_slice(&self.host);
        }
        node.ctrl_deps.retain(|dep| !node.data_deps.contains(dep));
        let first = self.next;
        self.work(task, node, end.since(start));
        let last = self.next - 1;
        self.last[task.stream as usize] = Some(self.nodes.len() as u32);
        self.nodes.push((first, last));
        let plan = self.export.plan;
        self.launch = match task.work {
            Work::Compute(id) => plan.segments_on(self.kind)[id.0 as usize].launch,
            _ => plan.communication_launch_on(self.kind),
        };
        if task.host_waits {
            self.issue_the_one_before();
            self.host.extend(first..=last);
        }
    }

    /// What the host spends on the task before, where that takes time: the last one of all is not
    /// waited for.
    fn issue_the_one_before(&mut self) {
        let launch = std::mem::take(&mut self.launch);
        if launch == SimDuration::ZERO {
            return;
        }
        let mut node = Node {
            name: "launch".into(),
            r#type: node_type::COMP,
            ctrl_deps: std::mem::take(&mut self.host),
            duration_micros: rounded(launch.as_picos()),
            ..Node::default()
        };
        node.set(attribute::IS_CPU_OP, Value::Bool(true));
        node.set(attribute::DURATION_PS, Value::Uint64(launch.as_picos()));
        self.host = vec![self.write(node)];
    }

    fn work(&mut self, task: &Task, mut node: Node, took: SimDuration) {
        let plan = self.export.plan;
        node.set(attribute::IS_CPU_OP, Value::Bool(false));
        match task.work {
            Work::Compute(id) => {
                let segment = &plan.segments_on(self.kind)[id.0 as usize];
                node.name = format!("{}, micro-batch {}", segment.label, task.micro_batch);
                node.r#type = node_type::COMP;
                // So that whole microseconds sum up right.
                let before = rounded(self.computed.as_picos());
                self.computed += took;
                node.duration_micros = rounded(self.computed.as_picos()) - before;
                let bytes = (segment.memory_time.as_secs_f64() * self.memory_rate) as u64;
                node.set(attribute::NUM_OPS, Value::Int64(segment.flops as i64));
                node.set(attribute::TENSOR_SIZE, Value::Uint64(bytes.max(1)));
                // What takes no time would be taken for unknown.
                let picos = took.as_picos().max(1);
                node.set(attribute::DURATION_PS, Value::Uint64(picos));
                self.write(node);
            }
            Work::Collective(slot, id) => {
                let transfer = id.0 as usize;
                node.name = format!(
                    "{}, micro-batch {}",
                    plan.transfers[transfer].label, task.micro_batch
                );
                match self.export.payload(transfer, slot, self.rank) {
                    Payload {
                        kind: PayloadKind::RingStep(bytes),
                        ..
                    } => self.ring_step(node, slot, bytes.get()),
                    payload => self.collective(node, slot, payload),
                }
            }
            Work::Copy(id) => {
                let transfer = &plan.transfers[id.0 as usize];
                node.name = format!("{}, micro-batch {}", transfer.label, task.micro_batch);
                node.r#type = if task.stream == Stream::Offload {
                    node_type::MEM_STORE
                } else {
                    node_type::MEM_LOAD
                };
                if let PayloadKind::Message(bytes) = transfer.payload.kind {
                    node.set(attribute::TENSOR_SIZE, Value::Uint64(bytes.get().max(1)));
                }
                node.set(attribute::DURATION_PS, Value::Uint64(took.as_picos()));
                self.write(node);
            }
            Work::Send(peer, id) => {
                node.r#type = node_type::COMM_SEND;
                let to = self.peer(peer);
                self.message(node, id.0 as usize, [self.rank, to], tag(task.stream));
            }
            Work::Receive(peer, id) => {
                node.r#type = node_type::COMM_RECV;
                let from = self.peer(peer);
                self.message(node, id.0 as usize, [from, self.rank], tag(task.stream));
            }
        }
    }

    fn peer(&self, peer: Peer) -> u32 {
        let stages = self.export.plan.setup.training.parallelism.pipeline;
        let by = match peer {
            Peer::Next => 1,
            Peer::Previous => stages - 1,
        };
        self.export.plan.placement.shifted(self.rank, by)
    }

    fn collective(&mut self, mut node: Node, slot: GroupSlot, payload: Payload) {
        let ranks = self.export.plan.placement.group_size(slot);
        let (op, bytes) = payload.standard(ranks.into());
        node.r#type = node_type::COMM_COLL;
        let group = self.export.group(slot, self.rank);
        node.set(attribute::COMM_TYPE, Value::Int64(op.number() as i64));
        node.set(attribute::COMM_SIZE, Value::Int64(bytes as i64));
        node.set(attribute::PG_NAME, Value::Text(group.to_string()));
        node.set(attribute::PAYLOAD, Value::Text(payload.to_string()));
        self.write(node);
    }

    /// A send to the next rank of the ring and a receive from the one before.
    fn ring_step(&mut self, node: Node, slot: GroupSlot, bytes: u64) {
        let placement = &self.export.plan.placement;
        let mut members = Vec::new();
        placement.members(slot, placement.group_of(slot, self.rank), &mut members);
        let count = members.len();
        let at = members.iter().position(|member| *member == self.rank);
        let at = at.expect("a rank is in its own communicator");
        let (next, before) = (members[(at + 1) % count], members[(at + count - 1) % count]);
        let tag = FIRST_RING_TAG + slot as i32;
        for (kind, ends) in [
            (node_type::COMM_SEND, [self.rank, next]),
            (node_type::COMM_RECV, [before, self.rank]),
        ] {
            let node = Node {
                r#type: kind,
                ..node.clone()
            };
            self.write_message(node, bytes, ends, tag);
        }
    }

    fn message(&mut self, mut node: Node, transfer: usize, ends: [u32; 2], tag: i32) {
        let transfer = &self.export.plan.transfers[transfer];
        node.name = transfer.label.into();
        let bytes = match transfer.payload.kind {
            PayloadKind::Message(bytes) => bytes.get(),
            other => unreachable!("{other:?} is no message"),
        };
        self.write_message(node, bytes, ends, tag);
    }

    fn write_message(&mut self, mut node: Node, bytes: u64, [from, to]: [u32; 2], tag: i32) {
        node.set(attribute::COMM_SRC, Value::Int32(from as i32));
        node.set(attribute::COMM_DST, Value::Int32(to as i32));
        node.set(attribute::COMM_TAG, Value::Int32(tag));
        node.set(attribute::COMM_SIZE, Value::Int64(bytes as i64));
        self.write(node);
    }
}

/// Both ends of a message have one tag.
fn tag(stream: Stream) -> i32 {
    match stream {
        Stream::SendActivation | Stream::ReceiveActivation => 1,
        Stream::SendGradient | Stream::ReceiveGradient => 2,
        Stream::SendActivationReverse | Stream::ReceiveActivationReverse => 3,
        Stream::SendGradientReverse | Stream::ReceiveGradientReverse => 4,
        Stream::Compute
        | Stream::Tensor
        | Stream::Expert
        | Stream::Data
        | Stream::Offload
        | Stream::Reload => 0,
    }
}

/// Picoseconds of a microsecond.
const MICRO: u64 = 1_000_000;

/// Picoseconds in whole microseconds, to the nearest.
fn rounded(picos: u64) -> u64 {
    (picos + MICRO / 2) / MICRO
}
