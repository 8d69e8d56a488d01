//! How fast collectives are simulated, and in how much memory.
//!
//! `cargo bench -p rackflow-simulator --bench collectives` first prints a table of processor
//! seconds and peak memory, every line from a process of its own, then lets criterion repeat the
//! smaller cases. `-- --table` stops after the table.

use criterion::{Criterion, criterion_group};
use rackflow_network::{Algorithm, CollectiveOp, Links, Program, Protocol, collective_with};
use rackflow_scenario::{Catalogue, ClusterChanges, catalogue_cluster};
use rackflow_simulator::collective::{Group, Operation, Outcome, Task, run_flows};
use rackflow_topology::{Cluster, ClusterMap, Fabric, Routing, Wires};
use rackflow_units::{Bytes, SimTime};
use std::hint::black_box;
use std::process::Command;

const SIZE: Bytes = Bytes::new(1 << 30);

/// One node of the catalogue.
fn node(name: &str) -> Cluster {
    catalogue_cluster(name, &ClusterChanges::default()).expect("a node of the catalogue")
}

/// Domains of 64 on a fabric that is not in the way, as a 64 x n product of switches.
fn product(gpus: u32) -> Cluster {
    let mut cluster = node("gb200-nvl72");
    cluster.node.gpus = 64.min(gpus);
    cluster.node.scale_up.domain = 64.min(gpus);
    cluster.node.nic.count = 64.min(gpus);
    cluster.node.rack.gpus = 64.min(gpus);
    cluster.gpus = gpus;
    cluster.fabric = Catalogue::builtin()
        .fabric("rail-optimized-xdr")
        .expect("a fabric")
        .clone();
    cluster
}

/// Eight-GPU nodes on a three-tier fat tree.
fn fat_tree(gpus: u32, routing: Routing) -> Cluster {
    let mut cluster = node("dgx-h100");
    cluster.gpus = gpus;
    cluster.fabric = Catalogue::builtin()
        .fabric("ib-three-tier")
        .expect("a fabric")
        .clone();
    if let Fabric::FatTree(tree) = &mut cluster.fabric {
        tree.routing = routing;
        // 65,536 end points fit radix 64; twice as many need the next size.
        tree.radix = if gpus > 65_536 { 128 } else { 64 };
    }
    cluster
}

fn run(cluster: &Cluster, algorithm: Algorithm, pipelined: bool) -> Outcome {
    let map = ClusterMap::new(cluster).expect("the cluster is sound");
    let wires = Wires::new(cluster, 1).expect("the cluster is sound");
    let gpus: Vec<u32> = (0..cluster.gpus).collect();
    let span = map.span(&gpus);
    let links = Links::new(cluster, &map).without_tiers();
    let (op, protocol) = (CollectiveOp::AllReduce, Protocol::Simple);
    let program = if pipelined {
        let demand = collective_with(algorithm, Some(protocol), op, SIZE, &span, &links);
        Program::pipelined(op, &span, &map.seats(&gpus), &demand.expect("it serves"))
    } else {
        Program::stepped(algorithm, op, SIZE, &span, &links, protocol, 1)
    };
    let program = program.expect("the group is regular");
    let task = Task {
        program: &program,
        gpus: &gpus,
        start: SimTime::ZERO,
        connections: 1,
    };
    let lines = (cluster.node.scale_up.bandwidth, map.nic_share());
    run_flows(&wires, lines, &[task])
}

/// Name, and what it runs: (GPUs, flows, events, simulated ms).
fn case(name: &str) -> Option<(u32, u64, u64, f64)> {
    let (kind, gpus) = name.split_once(' ')?;
    let gpus: u32 = gpus.parse().ok()?;
    let outcome = match kind {
        "messages" => run(&product(gpus), Algorithm::Hierarchical, false),
        "halving" => run(
            &fat_tree(gpus, Routing::Adaptive),
            Algorithm::RecursiveHalving,
            false,
        ),
        "hashed" => run(
            &fat_tree(gpus, Routing::Ecmp),
            Algorithm::InSwitchTree,
            true,
        ),
        "tree" => run(
            &fat_tree(gpus, Routing::Adaptive),
            Algorithm::InSwitchTree,
            true,
        ),
        "folded" => {
            let group = Group::new(&fat_tree(gpus, Routing::Adaptive), gpus).expect("sound");
            let op = Operation::Collective(CollectiveOp::AllReduce);
            let row = group
                .measure(op, SIZE, None, None)
                .expect("the library serves it");
            return Some((gpus, 0, 0, row.time.as_secs_f64() * 1e3));
        }
        _ => return None,
    };
    let end = outcome.ends[0].as_secs_f64() * 1e3;
    Some((gpus, outcome.flows, outcome.events, end))
}

/// Processor seconds and peak resident megabytes of this process so far.
fn used() -> (f64, f64) {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let stat = read("/proc/self/stat");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    let ticks: f64 = [11, 12]
        .iter()
        .filter_map(|i| fields.get(*i)?.parse::<f64>().ok())
        .sum();
    let status = read("/proc/self/status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kb: f64 = peak
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0);
    (ticks / 100.0, kb / 1e3)
}

fn table(names: &[String]) {
    println!("1 GiB all-reduce, every flow simulated unless folded");
    println!(
        "{:<18} {:>10} {:>9} {:>8} {:>9} {:>12}",
        "case", "flows", "events", "CPU s", "peak MB", "simulated ms"
    );
    for name in names {
        let child = Command::new(std::env::current_exe().expect("this program has a path"))
            .arg("--case")
            .arg(name)
            .output()
            .expect("a child process starts");
        print!("{}", String::from_utf8_lossy(&child.stdout));
    }
}

fn curve(kind: &str, from: u32, to: u32) -> impl Iterator<Item = String> {
    (from..=to).map(move |power| format!("{kind} {}", 1_u32 << power))
}

fn small(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("all-reduce, 1 GiB");
    group.sample_size(10);
    for name in [
        "messages 1024",
        "halving 4096",
        "hashed 2048",
        "folded 65536",
    ] {
        group.bench_function(name, |bench| bench.iter(|| black_box(case(name))));
    }
    group.finish();
}

criterion_group!(benches, small);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--case") {
        let name = args.get(at + 1).map_or("", String::as_str);
        let (_, flows, events, ms) = case(name).expect("a known case");
        let (cpu, peak) = used();
        println!("{name:<18} {flows:>10} {events:>9} {cpu:>8.2} {peak:>9.0} {ms:>12.3}");
        return;
    }
    let names: Vec<String> = [
        "messages 8192",
        "messages 16384",
        "folded 65536",
        "folded 131072",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(curve("halving", 6, 17))
    .chain(curve("tree", 6, 17))
    .chain(curve("hashed", 6, 16))
    .collect();
    let wanted = args.iter().skip(1).find(|arg| !arg.starts_with('-'));
    let names: Vec<String> = names
        .into_iter()
        .filter(|name| wanted.is_none_or(|wanted| name.contains(wanted.as_str())))
        .collect();
    table(&names);
    if !args.iter().any(|arg| arg == "--table") {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
}
