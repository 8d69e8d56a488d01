//! `rackflow collective`: the table that nccl-tests would print, for clusters that need not exist.

use crate::args::{Fidelity, Format};
use crate::failure::Failure;
use crate::files;
use crate::input;
use clap::{Args, ValueEnum};
use rackflow_report::{CollectiveReport, CollectiveTable};
use rackflow_scenario::{Catalogue, ClusterChanges};
use rackflow_simulator::collective::{
    Algorithm, CONNECTIONS, CollectiveOp, ExpertKernels, Experts, Group, HOST_LAUNCH, Measurement,
    NoFlows, Operation, Protocol, TIMED_LAUNCH,
};
use rackflow_topology::{Cluster, Wires};
use rackflow_units::{Bytes, counted};
use std::path::{Path, PathBuf};

/// What to measure, where and how.
#[derive(Debug, Args)]
pub struct CollectiveArgs {
    /// The operation
    #[arg(value_enum)]
    pub operation: OperationName,
    /// A node or rack of the catalogue (`rackflow list nodes`), a YAML file with a `cluster:`, a
    /// topology of NCCL (XML) or an InfraGraph; give it more than once to compare
    #[arg(long, value_name = "NAME|FILE", required = true)]
    pub cluster: Vec<String>,
    /// Ranks: the first N GPUs, filling node after node [default: the cluster of the file, or one
    /// node]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub gpus: Option<u32>,
    /// Ranks on these GPUs, as in 0-7,16,20-30/2 (every second one from 20 to 30), in place of the first
    /// N; --gpus then is the size of the cluster [default: just as many whole nodes as they need]
    #[arg(long, value_name = "LIST", value_parser = ranks)]
    pub ranks: Option<Ranks>,
    /// A fabric of the catalogue in place of the cluster's own (`rackflow list fabrics`)
    #[arg(long, value_name = "NAME")]
    pub fabric: Option<String>,
    /// The accelerator of a topology of NCCL or an InfraGraph that leaves it open
    #[arg(long, value_name = "NAME")]
    pub accelerator: Option<String>,
    /// Buffer sizes: one, a list, or a range that doubles; K, M, G and T are powers of 1,024
    #[arg(long, value_name = "SIZES", default_value = "8K..8G", value_parser = sizes)]
    pub sizes: Sizes,
    /// Use this algorithm [default: the one that the library would choose at each size]
    #[arg(long, value_enum)]
    pub algorithm: Option<AlgorithmName>,
    /// Use this protocol [default: as above]
    #[arg(long, value_enum)]
    pub protocol: Option<ProtocolName>,
    /// Price symmetric ranks once (folded), or simulate every flow on the links of the cluster, its
    /// tiers and hashed paths (full)
    #[arg(long, value_enum, default_value = "folded")]
    pub fidelity: Fidelity,
    /// Simulate the textbook's algorithm message by message, every message of a ring in N chunks that
    /// are handed on as they come: a ring inside one domain, a hierarchy of rings over several
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub chunks: Option<u32>,
    /// With --fidelity full or --chunks: what hashed paths are drawn from
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// With --fidelity full or --chunks, where paths are hashed: connections between two NICs, each on a
    /// path of its own (channels times queue pairs)
    #[arg(long, value_name = "N", default_value_t = CONNECTIONS, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub connections: u32,
    /// SMs that the kernels hold, one for each channel (NCCL_MAX_CTAS, DeepEP's num_sms) [default: as many
    /// as the links can use; 24 for dispatch and combine]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub sms: Option<u32>,
    /// How calls are started: ahead of the GPU, by the host one behind the other, or each timed on its own
    #[arg(long, value_enum, default_value = "ahead")]
    pub launch: LaunchName,
    /// How the result is written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Also write collective.txt, .json, .svg and .png into this folder
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// dispatch, combine: experts of the layer, spread evenly over the ranks
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub experts: u64,
    /// dispatch, combine: experts that a token chooses
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub top_k: u64,
    /// dispatch, combine: elements of a token; 1 byte each and their scales on the way out, 2 bytes
    /// each on the way back
    #[arg(long, value_name = "N", default_value_t = 7168, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub hidden: u64,
    /// dispatch, combine: straight to every expert, for latency, in place of once to each domain
    #[arg(long)]
    pub low_latency: bool,
    /// dispatch, combine: NVLink domains that one token may visit [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_domains: Option<u32>,
}

/// How calls are started, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LaunchName {
    /// In a CUDA graph, or far enough ahead of the GPU to cost nothing.
    Ahead,
    /// From the host, one behind the other: never under 42 us.
    Host,
    /// From the host, each timed on its own between two events, as a benchmark in PyTorch does: 22 us more.
    Each,
}

/// An operation, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OperationName {
    /// Everyone ends with the sum.
    AllReduce,
    /// Everyone ends with everyone's part.
    AllGather,
    /// Everyone ends with its part of the sum.
    ReduceScatter,
    /// Everyone ends with the first rank's data.
    Broadcast,
    /// Everyone sends a part to everyone.
    #[value(alias = "alltoall")]
    AllToAll,
    /// One message between the two farthest ranks.
    #[value(alias = "sendrecv", alias = "send/recv")]
    SendRecv,
    /// Tokens to their experts.
    Dispatch,
    /// Results of the experts back to their tokens.
    Combine,
}

/// An algorithm, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AlgorithmName {
    /// One ring through all ranks.
    Ring,
    /// Chains inside the domains, a double binary tree across.
    Tree,
    /// Inside the domains, across by rail, inside again.
    Hierarchical,
    /// Half as much to ever nearer ranks, and back; for numbers of ranks that are powers of two.
    RecursiveHalving,
    /// The scale-up switches reduce in flight (NVLS); a tree carries the sums across domains.
    InSwitch,
    /// The switches of the fabric reduce too (SHARP); a fabric says `in_network_reduction: true`.
    #[value(alias = "sharp")]
    InNetwork,
    /// Every pair for itself, over its own NIC.
    Direct,
    /// Over NVLink to the neighbour on the receiver's rail, and over its NIC.
    Pxn,
    /// dispatch, combine: once to each domain, forwarded there.
    Relayed,
}

/// A protocol, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProtocolName {
    /// A flag beside every four bytes.
    Ll,
    /// A flag in every 128 bytes.
    Ll128,
    /// Whole chunks, then a flag.
    Simple,
}

/// Buffer sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes(Vec<u64>);

/// More lines than anyone reads.
const MOST_SIZES: usize = 10_000;

/// GPUs that carry ranks, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks(Vec<u32>);

/// More ranks than any cluster has GPUs.
const MOST_RANKS: usize = 10_000_000;

/// `0-7,16,20-30/2`.
fn ranks(text: &str) -> Result<Ranks, String> {
    let wrong = |part: &str| {
        format!(
            "`{part}` is no GPU and no range; write 5, 0-7 or 0-63/8, several with commas between"
        )
    };
    let mut all = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (range, step) = part.split_once('/').unwrap_or((part, "1"));
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong(part));
        let (from, to, step) = (number(from)?, number(to)?, number(step)?);
        if from > to || step == 0 {
            return Err(wrong(part));
        }
        let count = (to - from) as usize / step as usize + 1;
        if all.len() + count > MOST_RANKS {
            return Err(format!("`{text}` names more than {MOST_RANKS} GPUs"));
        }
        all.extend((from..=to).step_by(step as usize));
    }
    all.sort_unstable();
    if let Some(twice) = all.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("`{text}` names GPU {} twice", twice[0]));
    }
    Ok(Ranks(all))
}

fn sizes(text: &str) -> Result<Sizes, String> {
    let mut all = Vec::new();
    for part in text.split(',') {
        match part.split_once("..") {
            None => all.push(size(part)?),
            Some((from, to)) => {
                let (from, to) = (size(from)?, size(to)?);
                if from == 0 || from > to {
                    return Err(format!(
                        "`{part}` does not rise: write the smaller size first, as in 8K..8G"
                    ));
                }
                let doubled = std::iter::successors(Some(from), |size| size.checked_mul(2));
                all.extend(doubled.take_while(|size| *size <= to));
            }
        }
    }
    if all.len() > MOST_SIZES {
        return Err(format!("{} sizes are more than {MOST_SIZES}", all.len()));
    }
    Ok(Sizes(all))
}

/// `8K`, `8KiB`, `8 KiB` or `8192`: powers of 1,024, as nccl-tests reads them.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!("`{text}` is not a size; write a number of bytes with K, M, G or T, such as 64M")
    };
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let shift = match text[digits..].trim().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" | "KB" => 10,
        "M" | "MIB" | "MB" => 20,
        "G" | "GIB" | "GB" => 30,
        "T" | "TIB" | "TB" => 40,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes <= 1 << 50)
        .ok_or_else(|| format!("`{text}` is more than 1024T"))
}

/// Measures the operation and writes the table.
pub fn collective(args: &CollectiveArgs) -> Result<(), Failure> {
    let operation = operation(args)?;
    let tables = args
        .cluster
        .iter()
        .map(|name| table(args, operation, name))
        .collect::<Result<Vec<_>, Failure>>()?;
    let report = CollectiveReport {
        operation: typed(&args.operation),
        tables,
    };
    if let Some(folder) = &args.output {
        write(folder, &report)?;
    }
    files::print(&match args.format {
        Format::Table => report.to_text(),
        Format::Json => report.to_json(),
    })
}

/// A value as the user types it.
fn typed(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

fn operation(args: &CollectiveArgs) -> Result<Operation, Failure> {
    let experts = |bytes_per_token| Experts {
        experts: args.experts,
        top_k: args.top_k,
        bytes_per_token: Bytes::new(bytes_per_token),
        max_domains: args.max_domains,
        kernels: if args.low_latency {
            ExpertKernels::LowLatency
        } else {
            ExpertKernels::Normal
        },
    };
    let operation = match args.operation {
        OperationName::AllReduce => Operation::Collective(CollectiveOp::AllReduce),
        OperationName::AllGather => Operation::Collective(CollectiveOp::AllGather),
        OperationName::ReduceScatter => Operation::Collective(CollectiveOp::ReduceScatter),
        OperationName::Broadcast => Operation::Collective(CollectiveOp::Broadcast),
        OperationName::AllToAll => Operation::Collective(CollectiveOp::AllToAll),
        OperationName::SendRecv => Operation::Collective(CollectiveOp::SendRecv),
        // fp8 with one 4-byte scale per 128 elements, and bf16.
        OperationName::Dispatch => {
            Operation::Dispatch(experts(args.hidden + 4 * args.hidden.div_ceil(128)))
        }
        OperationName::Combine => Operation::Combine(experts(2 * args.hidden)),
    };
    if matches!(operation, Operation::Dispatch(_) | Operation::Combine(_))
        && args.top_k > args.experts
    {
        return Err(Failure::input(format_args!(
            "a token cannot choose {} of {} experts",
            args.top_k, args.experts
        )));
    }
    Ok(operation)
}

fn table(
    args: &CollectiveArgs,
    operation: Operation,
    name: &str,
) -> Result<CollectiveTable, Failure> {
    let cluster = cluster(name, args)?;
    let members = match &args.ranks {
        Some(Ranks(ranks)) => ranks.clone(),
        None => (0..args.gpus.unwrap_or(cluster.gpus)).collect(),
    };
    if let Some(missing) = members.iter().find(|gpu| **gpu >= cluster.gpus) {
        return Err(Failure::Input(format!(
            "error: there is no GPU {missing}: {name} has {} here, counted from 0\n  \
             hint: `--gpus N` takes more of them",
            counted(cluster.gpus, "GPU")
        )));
    }
    let gpus = members.len() as u32;
    let group = Group::on(&cluster, members).map_err(|error| {
        Failure::input(format_args!("{name}: failed to build the cluster: {error}"))
    })?;
    let group = group.with_connections(args.connections).with_sms(args.sms);
    let protocol = args.protocol.map(|protocol| match protocol {
        ProtocolName::Ll => Protocol::Ll,
        ProtocolName::Ll128 => Protocol::Ll128,
        ProtocolName::Simple => Protocol::Simple,
    });
    let wanted = |algorithm| match algorithm {
        AlgorithmName::Ring => Algorithm::Ring,
        AlgorithmName::Tree => Algorithm::Tree,
        AlgorithmName::Hierarchical => Algorithm::Hierarchical,
        AlgorithmName::RecursiveHalving => Algorithm::RecursiveHalving,
        AlgorithmName::InSwitch if group.domains() > 1 => Algorithm::InSwitchTree,
        AlgorithmName::InSwitch => Algorithm::InSwitch,
        AlgorithmName::InNetwork => Algorithm::InNetwork,
        AlgorithmName::Direct => Algorithm::Direct,
        AlgorithmName::Pxn => Algorithm::Pxn,
        AlgorithmName::Relayed => Algorithm::Relayed,
    };
    let algorithm = args.algorithm.map(wanted);
    let wires = match (args.fidelity, args.chunks) {
        (Fidelity::Folded, None) => None,
        (Fidelity::Full, _) | (_, Some(_)) => {
            Some(Wires::new(&cluster, args.seed).map_err(|error| {
                Failure::input(format_args!("{name}: failed to build the cluster: {error}"))
            })?)
        }
    };
    let started = |row: Measurement| match args.launch {
        LaunchName::Ahead => row,
        LaunchName::Host => row.no_faster_than(HOST_LAUNCH),
        LaunchName::Each => row.after(TIMED_LAUNCH),
    };
    let refused = |why: NoFlows| match why {
        NoFlows::NotServed => not_served(args, name, gpus),
        why => Failure::Input(format!(
            "error: the flows of {} over {} of {name} cannot be simulated: {why}\n  \
             hint: --fidelity folded prices it",
            typed(&args.operation),
            counted(gpus, "GPU")
        )),
    };
    let sizes: Vec<Bytes> = args.sizes.0.iter().map(|size| Bytes::new(*size)).collect();
    let rows: Vec<Measurement> = match (&wires, args.chunks, operation) {
        (None, _, _) => sizes
            .iter()
            .map(|bytes| group.measure(operation, *bytes, algorithm, protocol))
            .collect::<Option<_>>()
            .ok_or_else(|| not_served(args, name, gpus))?,
        (Some(wires), None, _) => group
            .simulate_all(wires, operation, &sizes, algorithm, protocol)
            .map_err(refused)?,
        (Some(wires), Some(chunks), Operation::Collective(op)) => sizes
            .iter()
            .map(|bytes| group.simulate_chunks(wires, op, *bytes, algorithm, protocol, chunks))
            .collect::<Result<_, _>>()
            .map_err(refused)?,
        (Some(_), Some(_), _) => return Err(not_served(args, name, gpus)),
    };
    let rows = rows.into_iter().map(started).collect();
    Ok(CollectiveTable {
        cluster: cluster_name(name, &cluster),
        gpus,
        rows,
    })
}

/// A file is called by its stem, a node of the catalogue by its name.
fn cluster_name(typed: &str, cluster: &Cluster) -> String {
    if cluster.node.name == typed {
        return typed.to_owned();
    }
    Path::new(typed).file_stem().map_or_else(
        || typed.to_owned(),
        |stem| stem.to_string_lossy().into_owned(),
    )
}

/// What an algorithm wants of a group, where the operation has it at all.
fn wants(args: &CollectiveArgs) -> Option<&'static str> {
    use OperationName::{AllGather, AllReduce, AllToAll, ReduceScatter};
    let op = args.operation;
    let reduces = matches!(op, AllReduce | AllGather | ReduceScatter);
    Some(match args.algorithm? {
        AlgorithmName::InNetwork => {
            "the switches of its fabric must reduce (`in_network_reduction: true`), as those of \
             --fabric rail-optimized-sharp do, for an all-reduce over several NVLink domains"
        }
        AlgorithmName::RecursiveHalving if reduces => {
            "ranks are halved: every NVLink domain must hold the same power of two of them, in a \
             power of two of domains; --ranks picks them, and a hierarchical one takes any"
        }
        AlgorithmName::Hierarchical if op == AllToAll => {
            "by rail, every NVLink domain must hold as many ranks, on the same rails, in several \
             domains; --ranks picks them, and `pxn` and `direct` take any"
        }
        AlgorithmName::Hierarchical if reduces => {
            "it goes inside NVLink domains, then across: there must be several domains"
        }
        AlgorithmName::Pxn if op == AllToAll => {
            "a neighbour hands over what goes to another rail: there must be several NVLink domains, \
             with ranks on several rails"
        }
        AlgorithmName::Tree if op == AllReduce => {
            "it goes across NVLink domains: there must be several"
        }
        AlgorithmName::InSwitch if op == AllReduce => {
            "the switches of the domain must reduce (`in_switch_reduction: true`), for three ranks or \
             more; no protocol but simple"
        }
        _ => return None,
    })
}

fn not_served(args: &CollectiveArgs, name: &str, gpus: u32) -> Failure {
    let mut way = Vec::new();
    if let Some(algorithm) = &args.algorithm {
        way.push(typed(algorithm));
    }
    if let Some(protocol) = &args.protocol {
        way.push(typed(protocol));
    }
    if args.chunks.is_some() {
        way.push("a textbook's steps in chunks".to_owned());
    }
    let operation = typed(&args.operation);
    let hint = wants(args).unwrap_or(if args.chunks.is_some() {
        "all-reduce, all-gather, reduce-scatter and all-to-all have them; leave --chunks out"
    } else {
        "leave --algorithm and --protocol out to see what the library would choose"
    });
    Failure::Input(format!(
        "error: {operation} over {} of {name} cannot run as {}\n  hint: {hint}",
        counted(gpus, "GPU"),
        way.join(" with ")
    ))
}

/// The cluster that a name stands for, with room for `gpus` ranks.
fn cluster(name: &str, args: &CollectiveArgs) -> Result<Cluster, Failure> {
    // Ranks that are named say how many GPUs a node of the catalogue must come with.
    let named = args.ranks.as_ref().and_then(|Ranks(ranks)| ranks.last());
    let catalogued = Catalogue::builtin().node(name).is_some();
    let changes = ClusterChanges {
        gpus: args
            .gpus
            .or(named.filter(|_| catalogued).map(|last| last + 1)),
        fabric: args.fabric.clone(),
        accelerator: args.accelerator.clone(),
        whole_nodes: true,
    };
    input::cluster(name, &changes)
}

/// Writes the report in every form.
fn write(folder: &Path, report: &CollectiveReport) -> Result<(), Failure> {
    let picture = report.picture();
    files::write_folder(
        folder,
        &[
            ("collective.txt", report.to_text().as_bytes()),
            ("collective.json", report.to_json().as_bytes()),
            ("collective.svg", picture.svg().as_bytes()),
            ("collective.png", &picture.png()),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_listed_in_ranges() {
        assert_eq!(
            ranks("3,0-2,20-30/5"),
            Ok(Ranks(vec![0, 1, 2, 3, 20, 25, 30]))
        );
        for wrong in ["", "a", "3-1", "0-9/0", "1,1", "-", "0-4294967295", "1-"] {
            assert!(ranks(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(sizes("8K..64K"), Ok(Sizes(vec![8192, 16384, 32768, 65536])));
        assert_eq!(sizes("1,3KiB,2 M"), Ok(Sizes(vec![1, 3072, 2 << 20])));
        for wrong in [
            "",
            "8Q",
            "-1",
            "8K..",
            "8G..8K",
            "0..8",
            "99999999T",
            "1.5M",
        ] {
            assert!(sizes(wrong).is_err(), "{wrong}");
        }
    }
}
