//! Chakra execution traces from bytes to an [`ExecutionTrace`]: every number is checked, and what is
//! wrong is told with its file and byte.
//!
//! Files are handed over one by one, in any order; `comm_group.json` (the communicators, as ASTRA-sim
//! reads them) comes before them.

use rackflow_units::{Bytes, SimDuration};
use rackflow_workload::chakra::wire::{self, attribute, node_type};
use rackflow_workload::chakra::{
    Activity, ExecutionTrace, Payload, PayloadKind, RankTrace, TraceGroup, TraceNode, TraceOp,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What is wrong with a file of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChakraError {
    /// The file.
    pub file: String,
    /// Where in it, in bytes from its start, unpacked.
    pub offset: Option<usize>,
    /// What is wrong, and what was expected.
    pub message: String,
    /// The way out; empty for none.
    pub hint: String,
}

impl fmt::Display for ChakraError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\n  --> {}", self.message, self.file)?;
        if let Some(offset) = self.offset {
            write!(f, ": byte {offset}")?;
        }
        if !self.hint.is_empty() {
            write!(f, "\n  hint: {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for ChakraError {}

/// The name and the rank that a file's name says: `NAME.<rank>.et`, perhaps with `.gz` behind.
pub fn chakra_file(name: &str) -> Option<(&str, u32)> {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    let (prefix, rank) = name.strip_suffix(".et")?.rsplit_once('.')?;
    let digits = !rank.is_empty() && rank.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| rank.parse().ok())?
        .map(|rank| (prefix, rank))
}

/// Nothing that one node sends or reads is larger.
const MOST_BYTES: u64 = 1 << 50;
/// No node takes longer: half a year.
const MOST_MICROS: u64 = 15_000_000_000_000;
/// No rank has a higher number.
const MOST_RANKS: u32 = 10_000_000;
/// Name of the communicator of all ranks, which files leave away.
const WORLD: &str = "";

/// Reads the files of a trace.
#[derive(Debug, Default)]
pub struct ChakraReader {
    ranks: Vec<RankTrace>,
    files: Vec<String>,
    groups: Vec<TraceGroup>,
    /// Position in `groups`, by name, of those that hold for all ranks.
    named: BTreeMap<String, u32>,
    known: BTreeMap<(String, Vec<u32>), u32>,
    /// What collectives carry, before it is known how many ranks share it.
    carried: Vec<Carried>,
    numbers: BTreeMap<Carried, u32>,
    accelerators: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Carried {
    /// Which collective, how many bytes, and the communicator.
    Standard(TraceOp, u64, u32),
    /// As our own files say it.
    Own(String),
}

impl ChakraReader {
    /// No file yet.
    pub fn new() -> Self {
        let mut reader = Self::default();
        reader.group(WORLD, Vec::new());
        reader
    }

    /// Reads `comm_group.json`: names of communicators with their ranks.
    ///
    /// # Errors
    /// When it is not that.
    pub fn communicators(&mut self, file: &str, text: &str) -> Result<(), ChakraError> {
        let wrong = |message: String| ChakraError {
            file: file.to_owned(),
            offset: None,
            message,
            hint: "write {\"1\": [0, 1, 2, 3], ...}: communicators with their ranks".into(),
        };
        let groups: BTreeMap<String, Vec<u32>> = serde_json::from_str(text)
            .map_err(|error| wrong(format!("communicators cannot be read: {error}")))?;
        for (name, mut members) in groups {
            members.sort_unstable();
            members.dedup();
            if members.is_empty() || members.iter().any(|rank| *rank >= MOST_RANKS) {
                return Err(wrong(format!(
                    "communicator {name:?} has no ranks, or one above {MOST_RANKS}"
                )));
            }
            let group = self.group(&name, members);
            self.named.insert(name, group);
        }
        Ok(())
    }

    fn group(&mut self, name: &str, members: Vec<u32>) -> u32 {
        let next = self.groups.len() as u32;
        let key = (name.to_owned(), members);
        if let Some(group) = self.known.get(&key) {
            return *group;
        }
        self.groups.push(TraceGroup {
            name: key.0.clone(),
            members: key.1.clone(),
        });
        self.known.insert(key, next);
        next
    }

    /// Reads the file of one rank.
    ///
    /// # Errors
    /// At the first thing that is wrong with it.
    pub fn rank(&mut self, file: &str, rank: u32, bytes: &[u8]) -> Result<(), ChakraError> {
        if rank >= MOST_RANKS {
            let at = Place { file, offset: None };
            return Err(at.wrong(format!("rank {rank} is above {MOST_RANKS}")));
        }
        let mut reader = RankReader {
            file,
            trace: RankTrace {
                rank,
                ..RankTrace::default()
            },
            positions: BTreeMap::new(),
            deps: Vec::new(),
            named: BTreeMap::new(),
            streams: BTreeMap::new(),
            reader: self,
        };
        reader.read(bytes)?;
        let trace = reader.trace;
        self.ranks.push(trace);
        self.files.push(file.to_owned());
        Ok(())
    }

    /// The whole trace.
    ///
    /// # Errors
    /// When there is no file, or two are of one rank.
    pub fn finish(mut self, folder: &str) -> Result<ExecutionTrace, ChakraError> {
        let mut order: Vec<usize> = (0..self.ranks.len()).collect();
        order.sort_by_key(|i| self.ranks[*i].rank);
        let none = |message: String, file: &str| ChakraError {
            file: file.to_owned(),
            offset: None,
            message,
            hint: "a trace is a folder of files NAME.0.et, NAME.1.et, ... of one run".into(),
        };
        if order.is_empty() {
            return Err(none("there is no execution trace".into(), folder));
        }
        for pair in order.windows(2) {
            if self.ranks[pair[0]].rank == self.ranks[pair[1]].rank {
                let (first, second) = (&self.files[pair[0]], &self.files[pair[1]]);
                let message = format!(
                    "rank {} has a file already: {first}",
                    self.ranks[pair[0]].rank
                );
                return Err(none(message, second));
            }
        }
        let world: Vec<u32> = order.iter().map(|i| self.ranks[*i].rank).collect();
        // Of a part of a trace, the communicators may name ranks beyond.
        self.groups[0].members = world;
        let mut payloads = Vec::with_capacity(self.carried.len());
        for carried in &self.carried {
            payloads.push(match carried {
                Carried::Standard(op, size, group) => {
                    let ranks = self.groups[*group as usize].members.len() as u64;
                    Payload::of_standard(*op, *size, ranks)
                }
                Carried::Own(text) => Payload::parse(text).expect("it was read before"),
            });
        }
        let mut ranks: Vec<Option<RankTrace>> = self.ranks.into_iter().map(Some).collect();
        let in_order = order.iter().filter_map(|i| ranks[*i].take()).collect();
        Ok(ExecutionTrace {
            ranks: in_order,
            groups: self.groups,
            payloads,
            recorded_on: self.accelerators.into_iter().collect(),
        })
    }
}

/// A place in a file.
#[derive(Clone, Copy)]
struct Place<'f> {
    file: &'f str,
    offset: Option<usize>,
}

impl Place<'_> {
    fn wrong(self, message: impl Into<String>) -> ChakraError {
        ChakraError {
            file: self.file.to_owned(),
            offset: self.offset,
            message: message.into(),
            hint: String::new(),
        }
    }
}

struct RankReader<'r> {
    file: &'r str,
    trace: RankTrace,
    /// Position of each node, by its number.
    positions: BTreeMap<u64, u32>,
    /// What each node waits for, and where in the file it says so.
    deps: Vec<(Vec<u64>, usize)>,
    /// Communicators that this rank's file defines.
    named: BTreeMap<String, u32>,
    streams: BTreeMap<u64, u32>,
    reader: &'r mut ChakraReader,
}

impl RankReader<'_> {
    fn at(&self, offset: usize) -> Place<'_> {
        Place {
            file: self.file,
            offset: Some(offset),
        }
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), ChakraError> {
        let (metadata, mut next) = self.message(bytes, 0, "GlobalMetadata", wire::metadata)?;
        if let Some(name) = metadata.accelerator() {
            // It is printed: names of ours are short and plain.
            let name = name.chars().filter(|c| !c.is_control()).take(80);
            self.reader.accelerators.insert(name.collect());
        }
        while next < bytes.len() {
            let start = next;
            let (node, end) = self.message(bytes, start, "Node", wire::node)?;
            self.node(&node, start)?;
            next = end;
        }
        self.connect()
    }

    /// The message at `start`, with its length in front, and where it ends.
    fn message<M>(
        &self,
        bytes: &[u8],
        start: usize,
        what: &str,
        decode: impl Fn(&[u8]) -> Result<M, String>,
    ) -> Result<(M, usize), ChakraError> {
        let rest = &bytes[start..];
        let Some((length, head)) = wire::varint(rest) else {
            let found = if rest.is_empty() {
                "the file ends"
            } else {
                "that is none"
            };
            return Err(self.at(start).wrong(format!(
                "the length of a {what} message is expected, and {found}"
            )));
        };
        let left = (rest.len() - head) as u64;
        if length > left {
            return Err(self.at(start).wrong(format!(
                "a {what} message of {length} bytes is expected, and {left} are left: the file is cut \
                 off, or no Chakra trace"
            )));
        }
        let body = &rest[head..head + length as usize];
        let message = decode(body).map_err(|error| {
            self.at(start + head)
                .wrong(format!("a {what} message is expected: {error}"))
        })?;
        Ok((message, start + head + length as usize))
    }

    fn node(&mut self, node: &wire::Node, offset: usize) -> Result<(), ChakraError> {
        let position = self.trace.nodes.len() as u32;
        if self.positions.insert(node.id, position).is_some() {
            return Err(self
                .at(offset)
                .wrong(format!("node {} is there already", node.id)));
        }
        let activity = self.activity(node, offset)?;
        let kernel = matches!(activity, Activity::Kernel { .. });
        let stream = node.value(attribute::STREAM).and_then(wire::Value::whole);
        let streams = self.streams.len() as u32;
        let stream = if kernel {
            *self.streams.entry(stream.unwrap_or(0)).or_insert(streams)
        } else {
            0
        };
        let recorded = self.recorded(node, offset)?;
        self.trace.nodes.push(TraceNode {
            id: node.id,
            deps: (0, 0),
            stream,
            recorded,
            activity,
        });
        let mut deps: Vec<u64> = node
            .ctrl_deps
            .iter()
            .chain(&node.data_deps)
            .copied()
            .collect();
        deps.sort_unstable();
        deps.dedup();
        self.deps.push((deps, offset));
        Ok(())
    }

    fn recorded(
        &self,
        node: &wire::Node,
        offset: usize,
    ) -> Result<Option<SimDuration>, ChakraError> {
        let exact = self.whole(node, attribute::DURATION_PS, offset)?;
        // Ours are whole microseconds that sum up right; who wrote others there meant those.
        let agrees = |picos: u64| (picos / 1_000_000).abs_diff(node.duration_micros) <= 1;
        let picos = match exact {
            Some(picos) if agrees(picos) => picos,
            _ if node.duration_micros <= MOST_MICROS => node.duration_micros * 1_000_000,
            _ => u64::MAX,
        };
        if picos / 1_000_000 > MOST_MICROS {
            return Err(self.at(offset).wrong(format!(
                "node {} takes more than half a year, which no operation does",
                node.id
            )));
        }
        Ok((picos > 0).then(|| SimDuration::from_picos(picos)))
    }

    /// An attribute that must be a whole number where it is there.
    fn whole(
        &self,
        node: &wire::Node,
        name: &str,
        offset: usize,
    ) -> Result<Option<u64>, ChakraError> {
        let Some(value) = node.value(name) else {
            return Ok(None);
        };
        let number = value.whole().ok_or_else(|| {
            self.at(offset).wrong(format!(
                "`{name}` of node {} must be a whole number of 0 or more",
                node.id
            ))
        });
        number.map(Some)
    }

    /// An attribute that must be there.
    fn needed(&self, node: &wire::Node, name: &str, offset: usize) -> Result<u64, ChakraError> {
        self.whole(node, name, offset)?.ok_or_else(|| {
            self.at(offset).wrong(format!(
                "node {} ({}) needs the attribute `{name}`, and it is not there",
                node.id,
                shown(&node.name)
            ))
        })
    }

    fn bytes(&self, node: &wire::Node, name: &str, offset: usize) -> Result<Bytes, ChakraError> {
        let bytes = self.whole(node, name, offset)?.unwrap_or(0);
        if bytes > MOST_BYTES {
            return Err(self.at(offset).wrong(format!(
                "`{name}` of node {} is {bytes}, which is absurdly large",
                node.id
            )));
        }
        Ok(Bytes::new(bytes))
    }

    fn activity(&mut self, node: &wire::Node, offset: usize) -> Result<Activity, ChakraError> {
        let on_host = matches!(
            node.value(attribute::IS_CPU_OP)
                .and_then(wire::Value::whole),
            Some(1..)
        );
        Ok(match node.r#type {
            node_type::COMP
            | node_type::COMM_SEND
            | node_type::COMM_RECV
            | node_type::COMM_COLL
                if on_host =>
            {
                Activity::Host
            }
            node_type::COMP => Activity::Kernel {
                ops: self.whole(node, attribute::NUM_OPS, offset)?.unwrap_or(0) as f64,
                bytes: self.bytes(node, attribute::TENSOR_SIZE, offset)?,
            },
            node_type::MEM_LOAD => {
                Activity::Load(self.bytes(node, attribute::TENSOR_SIZE, offset)?)
            }
            node_type::MEM_STORE => {
                Activity::Store(self.bytes(node, attribute::TENSOR_SIZE, offset)?)
            }
            node_type::COMM_COLL => self.collective(node, offset)?,
            node_type::COMM_SEND => Activity::Send {
                peer: self.peer(node, attribute::COMM_DST, offset)?,
                tag: self.tag(node, offset)?,
                bytes: self.bytes(node, attribute::COMM_SIZE, offset)?,
            },
            node_type::COMM_RECV => Activity::Receive {
                peer: self.peer(node, attribute::COMM_SRC, offset)?,
                tag: self.tag(node, offset)?,
                bytes: self.bytes(node, attribute::COMM_SIZE, offset)?,
            },
            node_type::METADATA => {
                self.process_groups(node);
                Activity::Nothing
            }
            // Storage and checkpoint nodes of newer schemas take the time that was recorded.
            _ if node.duration_micros > 0 => Activity::Host,
            _ => Activity::Nothing,
        })
    }

    fn peer(&self, node: &wire::Node, name: &str, offset: usize) -> Result<u32, ChakraError> {
        let peer = self.needed(node, name, offset)?;
        match u32::try_from(peer) {
            Ok(peer) if peer < MOST_RANKS && peer != self.trace.rank => Ok(peer),
            _ => Err(self.at(offset).wrong(format!(
                "`{name}` of node {} is {peer}, and must be another rank",
                node.id
            ))),
        }
    }

    fn tag(&self, node: &wire::Node, offset: usize) -> Result<u32, ChakraError> {
        let tag = self.whole(node, attribute::COMM_TAG, offset)?.unwrap_or(0);
        // Tags need only differ.
        Ok((tag ^ (tag >> 32)) as u32)
    }

    fn collective(&mut self, node: &wire::Node, offset: usize) -> Result<Activity, ChakraError> {
        let group = self.communicator(node, offset)?;
        let members = &self.reader.groups[group as usize].members;
        if group > 0 && !members.contains(&self.trace.rank) {
            return Err(self.at(offset).wrong(format!(
                "node {} is a collective of communicator {:?}, which rank {} is not in",
                node.id, self.reader.groups[group as usize].name, self.trace.rank
            )));
        }
        let carried = match node.value(attribute::PAYLOAD) {
            Some(wire::Value::Text(text)) => {
                let payload = Payload::parse(text).map_err(|word| {
                    self.at(offset).wrong(format!(
                        "`{}` of node {} is not understood at {word:?}",
                        attribute::PAYLOAD,
                        node.id
                    ))
                })?;
                self.sound(node, &payload, offset)?;
                Carried::Own(text.clone())
            }
            _ => {
                let number = self.needed(node, attribute::COMM_TYPE, offset)?;
                let Some(op) = TraceOp::of_number(number) else {
                    return Err(self.at(offset).wrong(format!(
                        "`comm_type` of node {} is {number}, and 0 to 9 are known (0 all-reduce, 2 \
                         all-gather, 6 all-to-all, 7 reduce-scatter)",
                        node.id
                    )));
                };
                // A barrier carries nothing; any other that does not say how much would be free.
                if op != TraceOp::Barrier {
                    self.needed(node, attribute::COMM_SIZE, offset)?;
                }
                let size = self.bytes(node, attribute::COMM_SIZE, offset)?;
                Carried::Standard(op, size.get(), group)
            }
        };
        let next = self.reader.carried.len() as u32;
        let payload = *self.reader.numbers.entry(carried.clone()).or_insert(next);
        if payload == next {
            self.reader.carried.push(carried);
        }
        Ok(Activity::Collective { group, payload })
    }

    /// Holds what our own attribute says against what anything can be.
    fn sound(
        &self,
        node: &wire::Node,
        payload: &Payload,
        offset: usize,
    ) -> Result<(), ChakraError> {
        const MOST_FACTOR: u64 = 1 << 10;
        let sent = match payload.kind {
            PayloadKind::Buffer(_, bytes)
            | PayloadKind::RingStep(bytes)
            | PayloadKind::Message(bytes) => bytes.get(),
            PayloadKind::Turns(bytes, turns) => bytes.get().saturating_mul(turns),
            PayloadKind::Exchange(exchange) => exchange.bytes(),
        };
        let most = [
            (sent, MOST_BYTES),
            (payload.slowdown >> 10, MOST_FACTOR),
            (payload.load >> 16, u64::from(MOST_RANKS)),
            (payload.overhead.as_picos() / 1_000_000, MOST_MICROS),
        ];
        if most.iter().all(|(value, most)| value <= most) {
            return Ok(());
        }
        Err(self.at(offset).wrong(format!(
            "`{}` of node {} is absurdly large",
            attribute::PAYLOAD,
            node.id
        )))
    }

    /// The communicator that a collective names: the whole world where it names none.
    fn communicator(&self, node: &wire::Node, offset: usize) -> Result<u32, ChakraError> {
        let name = match node.value(attribute::PG_NAME) {
            None => return Ok(0),
            Some(wire::Value::Text(name)) => name.trim().to_owned(),
            Some(other) => match other.whole() {
                Some(number) => number.to_string(),
                None => String::new(),
            },
        };
        let known = self
            .reader
            .named
            .get(&name)
            .or_else(|| self.named.get(&name));
        match known {
            Some(group) => Ok(*group),
            None if name.is_empty() || name == "0" => Ok(0),
            None => Err(ChakraError {
                hint: "write comm_group.json beside the traces: {\"1\": [0, 1, 2, 3], ...}".into(),
                ..self.at(offset).wrong(format!(
                    "node {} is a collective of communicator {}, and nothing says which ranks it has",
                    node.id,
                    shown(&name)
                ))
            }),
        }
    }

    /// The communicators that PyTorch writes into the first node: a list of objects with `pg_name`
    /// and `ranks` inside other text. What cannot be read is missed only where a collective needs it.
    fn process_groups(&mut self, node: &wire::Node) {
        #[derive(serde::Deserialize)]
        struct Group {
            pg_name: String,
            #[serde(default)]
            ranks: Vec<u32>,
        }
        let values = node.inputs.as_ref().map_or("", |inputs| &inputs.values);
        let (Some(start), Some(end)) = (values.find("[{"), values.rfind("}]")) else {
            return;
        };
        if end < start {
            return;
        }
        let text = values[start..end + 2].replace("\\\"", "\"");
        let groups: Vec<Group> = serde_json::from_str(&text).unwrap_or_default();
        for mut group in groups {
            group.ranks.retain(|rank| *rank < MOST_RANKS);
            group.ranks.sort_unstable();
            group.ranks.dedup();
            let index = if group.ranks.is_empty() {
                0
            } else {
                self.reader.group(&group.pg_name, group.ranks)
            };
            self.named.insert(group.pg_name, index);
        }
    }

    /// Turns numbers of nodes into positions.
    fn connect(&mut self) -> Result<(), ChakraError> {
        for (position, (deps, offset)) in std::mem::take(&mut self.deps).iter().enumerate() {
            let start = self.trace.deps.len() as u32;
            for id in deps {
                let Some(at) = self.positions.get(id) else {
                    let node = self.trace.nodes[position].id;
                    return Err(self.at(*offset).wrong(format!(
                        "node {node} waits for node {id}, which the file does not have"
                    )));
                };
                self.trace.deps.push(*at);
            }
            self.trace.nodes[position].deps = (start, self.trace.deps.len() as u32);
        }
        Ok(())
    }
}

/// A name from a file, as a message may show it.
fn shown(name: &str) -> String {
    let short: String = name.chars().take(40).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rackflow_workload::chakra::wire::{GlobalMetadata, Node, Value};

    fn comp(id: u64, deps: &[u64]) -> Node {
        let mut node = Node {
            id,
            name: format!("kernel {id}"),
            r#type: node_type::COMP,
            data_deps: deps.to_vec(),
            duration_micros: 5,
            ..Node::default()
        };
        node.set(attribute::IS_CPU_OP, Value::Bool(false));
        node.set(attribute::NUM_OPS, Value::Int64(1_000));
        node
    }

    fn collective(id: u64, deps: &[u64], group: Option<&str>) -> Node {
        let mut node = Node {
            id,
            r#type: node_type::COMM_COLL,
            ctrl_deps: deps.to_vec(),
            ..Node::default()
        };
        node.set(attribute::COMM_TYPE, Value::Int64(2));
        node.set(attribute::COMM_SIZE, Value::Uint64(1 << 20));
        if let Some(group) = group {
            node.set(attribute::PG_NAME, Value::Text(group.into()));
        }
        node
    }

    fn file(nodes: &[Node]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let metadata = GlobalMetadata {
            version: wire::VERSION.into(),
            attr: Vec::new(),
        };
        wire::append(&metadata, &mut bytes);
        for node in nodes {
            wire::append(node, &mut bytes);
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Result<ExecutionTrace, ChakraError> {
        let mut reader = ChakraReader::new();
        reader.rank("t.0.et", 0, bytes)?;
        reader.finish("t")
    }

    fn refusal(nodes: &[Node]) -> String {
        read(&file(nodes)).unwrap_err().to_string()
    }

    #[test]
    fn names_say_the_rank() {
        assert_eq!(chakra_file("llama.8b.12.et"), Some(("llama.8b", 12)));
        assert_eq!(chakra_file("x.3.et.gz"), Some(("x", 3)));
        for other in [
            "x.et",
            "x.a.et",
            "x.1.json",
            ".et",
            "x.99999999999.et",
            "x..et",
            "x.+1.et",
        ] {
            assert_eq!(chakra_file(other), None, "{other}");
        }
    }

    #[test]
    fn nodes_become_activities() {
        let mut reader = ChakraReader::new();
        reader
            .communicators("comm_group.json", "{\"7\": [1, 0]}")
            .expect("it is sound");
        let nodes = [
            comp(3, &[]),
            collective(9, &[3], Some("7")),
            comp(1, &[9, 3]),
        ];
        for rank in [1, 0] {
            let name = format!("t.{rank}.et");
            reader
                .rank(&name, rank, &file(&nodes))
                .expect("it is sound");
        }
        let trace = reader.finish("t").expect("it is sound");
        assert_eq!(
            trace.ranks.iter().map(|r| r.rank).collect::<Vec<_>>(),
            [0, 1]
        );
        let rank = &trace.ranks[1];
        assert_eq!(rank.deps_of(&rank.nodes[2]), [0, 1]);
        assert_eq!(rank.nodes[0].recorded, Some(SimDuration::from_micros(5)));
        let Activity::Collective { group, payload } = rank.nodes[1].activity else {
            panic!("{:?}", rank.nodes[1])
        };
        assert_eq!(trace.groups[group as usize].members, [0, 1]);
        assert_eq!(
            trace.payloads[payload as usize].to_string(),
            "all-gather bytes=2097152"
        );
    }

    #[test]
    fn picoseconds_beside_an_edited_duration_do_not_count() {
        let took = |micros: u64| {
            let mut node = comp(1, &[]);
            node.duration_micros = micros;
            node.set(attribute::DURATION_PS, Value::Uint64(5_499_999));
            let trace = read(&file(&[node])).expect("it is sound");
            trace.ranks[0].nodes[0].recorded.map(SimDuration::as_picos)
        };
        // Rounded so that they sum up right, a duration is up to a microsecond away.
        assert_eq!([5, 6].map(took), [Some(5_499_999); 2]);
        assert_eq!([10, 0].map(took), [Some(10_000_000), None]);
    }

    #[test]
    fn process_groups_of_pytorch_are_found() {
        let mut first = Node {
            id: 0,
            r#type: node_type::METADATA,
            ..Node::default()
        };
        first.inputs = Some(wire::IoInfo {
            values: "[\"[{\\\"pg_name\\\": \\\"3\\\", \\\"ranks\\\": [0, 5]}]\"]".into(),
        });
        let trace = read(&file(&[first, collective(1, &[], Some("3"))])).expect("it is sound");
        assert_eq!(trace.groups[1].members, [0, 5]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let wrong = refusal(&[comp(1, &[8])]);
        assert!(wrong.contains("waits for node 8"), "{wrong}");
        assert!(wrong.contains("t.0.et: byte 8"), "{wrong}");
        assert!(refusal(&[comp(1, &[]), comp(1, &[])]).contains("there already"));
        assert!(refusal(&[collective(1, &[], Some("4"))]).contains("comm_group.json"));
        let mut send = Node {
            id: 2,
            r#type: node_type::COMM_SEND,
            ..Node::default()
        };
        assert!(refusal(std::slice::from_ref(&send)).contains("needs the attribute `comm_dst`"));
        send.set(attribute::COMM_DST, Value::Int32(0));
        assert!(refusal(&[send]).contains("another rank"));
        let mut long = comp(1, &[]);
        long.duration_micros = u64::MAX;
        assert!(refusal(&[long]).contains("half a year"));
        let mut huge = comp(1, &[]);
        huge.set(attribute::TENSOR_SIZE, Value::Uint64(u64::MAX));
        assert!(refusal(&[huge]).contains("absurdly large"));
        let whole = file(&[comp(1, &[])]);
        let cut = read(&whole[..whole.len() - 1]).unwrap_err();
        assert!(cut.to_string().contains("cut off"), "{cut}");
        assert_eq!(cut.offset, Some(8));
        let empty = read(&[]).unwrap_err();
        assert!(empty.to_string().contains("the file ends"), "{empty}");
        let none = ChakraReader::new().finish("there").unwrap_err();
        assert!(none.to_string().contains("no execution trace"), "{none}");
    }

    proptest! {
        #[test]
        fn damaged_bytes_are_read_or_refused(
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut nodes: Vec<Node> = (1..20).map(|id| comp(id, &[id - 1])).collect();
            nodes[0].data_deps.clear();
            nodes.push(collective(50, &[3], None));
            let mut bytes = file(&nodes);
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Err(error) = read(&bytes) {
                prop_assert!(error.offset.is_none_or(|offset| offset <= bytes.len()));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }
    }
}
