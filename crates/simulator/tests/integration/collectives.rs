//! Collectives as flows: closed forms, the price of a symmetric group, and the bound of the wire.

use proptest::prelude::*;
use rackflow_network::{
    Algorithm, CollectiveOp, Demand, Links, Program, Protocol, Shape, collective_with,
};
use rackflow_scenario::{Catalogue, ClusterChanges, catalogue_cluster};
use rackflow_simulator::collective::{
    ExpertKernels, Experts, Group, Operation, Outcome, Task, run_flows,
};
use rackflow_topology::{Cluster, ClusterMap, Fabric, GroupSpan, Part, Routing, Seats, Wires};
use rackflow_units::{Bandwidth, Bytes, SimDuration, SimTime};

/// Nodes of the catalogue on the default fabric; one node where nothing is said.
fn cluster_of(name: &str, gpus: Option<u32>) -> Cluster {
    let changes = ClusterChanges {
        gpus,
        whole_nodes: true,
        ..ClusterChanges::default()
    };
    catalogue_cluster(name, &changes).expect("a node of the catalogue, and a fabric that holds it")
}

struct Scene {
    cluster: Cluster,
    map: ClusterMap,
    wires: Wires,
    ideal: Links,
    ranks: Vec<u32>,
}

impl Scene {
    fn on(node: &str, gpus: u32, fabric: &str) -> Self {
        let mut cluster = cluster_of(node, Some(gpus));
        cluster.fabric = Catalogue::builtin()
            .fabric(fabric)
            .expect("a fabric")
            .clone();
        Self::of(cluster, gpus)
    }

    fn of(cluster: Cluster, gpus: u32) -> Self {
        let map = ClusterMap::new(&cluster).expect("the cluster is sound");
        Self {
            wires: Wires::new(&cluster, 7).expect("the cluster is sound"),
            ideal: Links::new(&cluster, &map).without_library().without_tiers(),
            ranks: (0..gpus).collect(),
            cluster,
            map,
        }
    }

    fn span(&self) -> GroupSpan {
        self.map.span(&self.ranks)
    }

    fn lines(&self) -> (Bandwidth, Bandwidth) {
        (self.map.scale_up_link(), self.map.nic_share())
    }

    fn seats(&self) -> Seats {
        self.map.seats(&self.ranks)
    }

    fn run(&self, program: &Program) -> Outcome {
        let task = Task {
            program,
            gpus: &self.ranks,
            start: SimTime::ZERO,
            connections: 1,
        };
        run_flows(&self.wires, self.lines(), &[task])
    }

    fn stepped(&self, algorithm: Algorithm, op: CollectiveOp, bytes: u64) -> SimDuration {
        self.in_chunks(algorithm, op, bytes, 1)
    }

    fn in_chunks(
        &self,
        algorithm: Algorithm,
        op: CollectiveOp,
        bytes: u64,
        chunks: u32,
    ) -> SimDuration {
        let size = Bytes::new(bytes);
        let program = Program::stepped(
            algorithm,
            op,
            size,
            &self.span(),
            &self.ideal,
            Protocol::Simple,
            chunks,
        )
        .expect("the group is regular");
        self.run(&program).ends[0].since(SimTime::ZERO)
    }
}

/// Time of `bytes` at `rate`, rounded up to a picosecond.
fn wire(bytes: u64, rate: Bandwidth) -> SimDuration {
    rate.time_to_send(Bytes::new(bytes))
}

/// 2(n-1)/n S/B + 2(n-1) a: every step rounds up its own picosecond.
#[test]
fn a_ring_of_messages_takes_its_closed_form() {
    for (node, n, gpus) in [
        ("dgx-h100", 8_u64, 8),
        ("gb200-nvl72", 72, 72),
        ("dgx-a100", 4, 4),
    ] {
        let scene = Scene::on(node, gpus, "rail-optimized");
        let step = scene.ideal.nvlink_step(Protocol::Simple);
        let rate = scene.ideal.nvlink_rate(Protocol::Simple);
        for bytes in [n, 1_000 * n, n << 20] {
            let time = |op| scene.stepped(Algorithm::Ring, op, bytes);
            let one = wire(bytes / n, rate) + step;
            assert_eq!(time(CollectiveOp::AllReduce), one * (2 * (n - 1)));
            assert_eq!(time(CollectiveOp::AllGather), one * (n - 1));
            assert_eq!(time(CollectiveOp::ReduceScatter), one * (n - 1));
            // To the rounding of its steps, the formula of the textbook.
            let exact = 2.0
                * (n - 1) as f64
                * (bytes as f64 / n as f64 / rate.as_f64() + step.as_secs_f64());
            let error = time(CollectiveOp::AllReduce).as_secs_f64() - exact;
            assert!((0.0..=2e-12 * n as f64).contains(&error), "{error}");
        }
    }
}

/// A chunk is handed on when it has come: with C of them, each of time t and latency a, a step takes
/// max(C t, t + a), and the last C t + a. Large messages hide the latency, small ones do not.
#[test]
fn a_ring_in_chunks_takes_its_closed_form() {
    let scene = Scene::on("dgx-h100", 8, "rail-optimized");
    let a = scene.ideal.nvlink_step(Protocol::Simple);
    let rate = scene.ideal.nvlink_rate(Protocol::Simple);
    for chunks in [1_u32, 2, 8, 32] {
        for bytes in [256, 64 << 10, 1 << 20, 64 << 20, 1 << 30] {
            let t = wire(bytes / 8 / u64::from(chunks), rate);
            let all = t * u64::from(chunks);
            let step = all.max(t + a);
            for (op, steps) in [(CollectiveOp::AllReduce, 14), (CollectiveOp::AllGather, 7)] {
                let time = scene.in_chunks(Algorithm::Ring, op, bytes, chunks);
                let expected = step * (steps - 1) + all + a;
                assert_eq!(time, expected, "{bytes} bytes in {chunks}");
            }
        }
    }
}

/// S/B (n-1)/n twice and 2 log2 n steps; inside the domains first, then across on the slices.
#[test]
fn halving_and_doubling_take_their_closed_form() {
    let scene = Scene::on("dgx-h100", 64, "rail-optimized");
    let (near, far) = (
        scene.ideal.nvlink_rate(Protocol::Simple),
        scene.ideal.nic_rate(Protocol::Simple),
    );
    let bytes: u64 = 64 << 20;
    let step = |level| scene.ideal.nic_step(level, Shape::Ring, Protocol::Simple);
    let mut expected = SimDuration::ZERO;
    for halved in [2, 4, 8] {
        expected += wire(bytes / halved, near) + scene.ideal.nvlink_step(Protocol::Simple);
    }
    for halved in [2, 4, 8] {
        expected += wire(bytes / 8 / halved, far) + step(scene.map.level(0, 8));
    }
    let time = scene.stepped(
        Algorithm::RecursiveHalving,
        CollectiveOp::ReduceScatter,
        bytes,
    );
    assert_eq!(time, expected);
    let both = scene.stepped(Algorithm::RecursiveHalving, CollectiveOp::AllReduce, bytes);
    assert_eq!(both, expected * 2);
}

/// Rings inside, rings across by rail on the slices, and back.
#[test]
fn a_hierarchy_of_rings_takes_its_closed_form() {
    let scene = Scene::on("dgx-h100", 128, "rail-optimized");
    let bytes: u64 = 128 << 20;
    let near = wire(bytes / 8, scene.ideal.nvlink_rate(Protocol::Simple))
        + scene.ideal.nvlink_step(Protocol::Simple);
    let far = wire(bytes / 128, scene.ideal.nic_rate(Protocol::Simple))
        + scene
            .ideal
            .nic_step(scene.map.level(0, 8), Shape::Ring, Protocol::Simple);
    let time = scene.stepped(Algorithm::Hierarchical, CollectiveOp::AllReduce, bytes);
    assert_eq!(time, near * 14 + far * 30);
}

/// First inside, a member of the domain at a time, then across, a domain at a time.
#[test]
fn a_rail_aligned_all_to_all_takes_its_closed_form() {
    let scene = Scene::on("dgx-h100", 64, "rail-optimized");
    let bytes: u64 = 64 << 20;
    let near = wire(bytes / 8, scene.ideal.copy_rate(Protocol::Simple))
        + scene.ideal.nvlink_step(Protocol::Simple);
    let far = wire(bytes / 8, scene.ideal.nic_rate(Protocol::Simple))
        + scene
            .ideal
            .nic_step(scene.map.level(0, 8), Shape::Ring, Protocol::Simple);
    let time = scene.stepped(Algorithm::Hierarchical, CollectiveOp::AllToAll, bytes);
    assert_eq!(time, near * 7 + far * 7);
}

/// S/g over the NIC once up and once down at once, however many nodes; (g+1)/g S over NVLink; one
/// way to the top of the tree and back. Without NVLink switches that reduce, 2 (g-1)/g S over NVLink.
#[test]
fn a_reduction_in_the_fabric_takes_its_closed_form() {
    for (node, nodes) in [("dgx-h100", 2_u32), ("dgx-h100", 48), ("dgx-a100", 48)] {
        let scene = Scene::on(node, 8 * nodes, "rail-optimized-sharp");
        let links = &scene.ideal;
        let (span, op) = (scene.span(), CollectiveOp::AllReduce);
        let bytes: u64 = 1 << 30;
        let demand = collective_with(
            Algorithm::InNetwork,
            None,
            op,
            Bytes::new(bytes),
            &span,
            links,
        )
        .expect("the switches reduce");
        let nic = wire(bytes / 8, links.nic_rate(Protocol::Simple));
        let lead = links.nic_step(span.level, Shape::Tree, Protocol::Simple);
        assert_eq!(demand.nic, nic);
        let reduces = scene.cluster.node.scale_up.in_switch_reduction;
        let steps = if reduces { 0 } else { 2 };
        let lead = lead + links.nvlink_step(Protocol::Simple) * steps;
        let near = if reduces {
            assert_eq!(demand.wire_bytes_nvlink, Bytes::new(bytes / 8 * 9));
            demand.nvlink
        } else {
            wire(bytes / 8 * 14, links.nvlink_rate(Protocol::Simple))
        };
        assert_eq!(demand.duration(), lead + nic.max(near));
        let program = program(op, Bytes::new(bytes), &scene, links, &demand).expect("regular");
        let time = scene.run(&program).ends[0].since(SimTime::ZERO);
        let error = time.as_picos().abs_diff(demand.duration().as_picos());
        assert!(error <= 8, "{nodes} nodes: {error} ps");
    }
}

/// A leaf sends what its members add up to, once: where leaves are oversubscribed a reduction in
/// the fabric does not notice, and a tree of hosts does.
#[test]
fn a_reduction_in_the_fabric_spares_its_upper_tiers() {
    let mut cluster = cluster_of("dgx-h100", Some(512));
    cluster.fabric = Catalogue::builtin()
        .fabric("roce-oversubscribed")
        .expect("a fabric")
        .clone();
    *cluster.fabric.reduces_mut().expect("a tree") = true;
    let wires = Wires::new(&cluster, 3).expect("sound");
    let group = Group::new(&cluster, 512).expect("sound");
    let op = Operation::Collective(CollectiveOp::AllReduce);
    let time = |algorithm| {
        let size = Bytes::new(1 << 30);
        let run = group.simulate(&wires, op, size, Some(algorithm), None);
        let carried = run.expect("regular");
        assert!(carried.time >= carried.bound);
        carried.time.as_secs_f64()
    };
    let (in_network, tree) = (time(Algorithm::InNetwork), time(Algorithm::InSwitchTree));
    assert!(tree > 2.0 * in_network, "{tree} s and {in_network} s");
}

/// What PXN hands over stays on its leaf: rails that are oversubscribed above it do not slow an
/// all-to-all, and do where everyone uses its own NIC.
#[test]
fn messages_by_rail_stay_on_their_leaf() {
    let mut cluster = cluster_of("dgx-h100", Some(256));
    let Fabric::RailOptimized(fabric) = &mut cluster.fabric else {
        panic!("rails")
    };
    fabric.leaf_oversubscription = 4.0;
    let wires = Wires::new(&cluster, 3).expect("sound");
    let group = Group::new(&cluster, 256).expect("sound");
    let op = Operation::Collective(CollectiveOp::AllToAll);
    let size = Bytes::new(1 << 30);
    for simulated in [false, true] {
        let time = |algorithm| {
            let run = if simulated {
                group.simulate(&wires, op, size, Some(algorithm), None).ok()
            } else {
                group.measure(op, size, Some(algorithm), None)
            };
            run.expect("it serves").time.as_secs_f64()
        };
        let (rail, own) = (time(Algorithm::Pxn), time(Algorithm::Direct));
        assert!(
            own > 2.0 * rail,
            "{own} s and {rail} s, simulated: {simulated}"
        );
    }
    let chosen = group.measure(op, size, None, None).expect("it serves");
    assert_eq!(chosen.algorithm, Algorithm::Pxn);
}

/// Two ranks of a mesh or a torus have one link, however many others the chip has.
#[test]
fn a_message_has_one_link() {
    for (node, link) in [("mi300x-8", 64e9), ("tpu-v5p-slice-64", 90e9)] {
        let cluster = cluster_of(node, None);
        let wires = Wires::new(&cluster, 3).expect("sound");
        let group = Group::new(&cluster, cluster.gpus).expect("sound");
        let op = Operation::Collective(CollectiveOp::SendRecv);
        let size = Bytes::new(1 << 30);
        let price = group.measure(op, size, None, None).expect("it serves");
        let flows = group
            .simulate(&wires, op, size, None, None)
            .expect("it is laid out");
        for row in [price, flows] {
            assert!(row.algorithm_bandwidth < link, "{row:?}");
            assert!(row.algorithm_bandwidth > 0.5 * link, "{row:?}");
        }
    }
}

const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::Ring,
    Algorithm::Hierarchical,
    Algorithm::RecursiveHalving,
    Algorithm::Tree,
    Algorithm::InSwitch,
    Algorithm::InSwitchTree,
    Algorithm::InNetwork,
    Algorithm::Direct,
    Algorithm::Pxn,
];

fn program(
    op: CollectiveOp,
    bytes: Bytes,
    scene: &Scene,
    links: &Links,
    demand: &Demand,
) -> Option<Program> {
    let group = scene.span();
    if Program::is_stepped(demand.algorithm, op) {
        let (algorithm, protocol) = (demand.algorithm, demand.protocol);
        return Program::stepped(algorithm, op, bytes, &group, links, protocol, 1);
    }
    Program::pipelined(op, &group, &scene.seats(), demand)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 9 / 8, ..ProptestConfig::default() })]

    /// Folding of the network: the price of a symmetric group on a fabric that is not in its way
    /// is the simulation of every flow, to the rounding of the flows of one port.
    #[test]
    fn a_price_is_the_simulation_of_its_flows(
        node in prop::sample::select(&["dgx-h100", "hgx-h800", "dgx-a100", "dgx-b200", "gb200-nvl72", "hgx-a100-4x100g", "mi300x-8", "tpu-v5p-slice-64"][..]),
        domains in 1_u32..6,
        op in prop::sample::select(&CollectiveOp::ALL[..]),
        algorithm in prop::sample::select(&ALGORITHMS[..]),
        protocol in prop::sample::select(&Protocol::ALL[..]),
        bytes in 0_u64..(1 << 30),
        library in any::<bool>(),
        halved in any::<bool>(),
    ) {
        let per_domain = cluster_of(node, None).node.scale_up.domain;
        let mut cluster = cluster_of(node, Some(per_domain * domains));
        match &mut cluster.fabric {
            Fabric::RailOptimized(f) => (f.load_balance, f.in_network_reduction) = (1.0, true),
            other => panic!("{other:?}"),
        }
        let mut scene = Scene::of(cluster, per_domain * domains);
        // Every other one of a domain, the same in all.
        if halved && node != "tpu-v5p-slice-64" { scene.ranks.retain(|rank| (rank % per_domain).is_multiple_of(2)); }
        // Pairs on a torus are priced by its cuts, which are not laid out evenly.
        let by_pairs = matches!(algorithm, Algorithm::Direct | Algorithm::Pxn | Algorithm::InNetwork);
        prop_assume!(!by_pairs || (scene.ranks.len() < 100 && node != "tpu-v5p-slice-64"));
        // Steps to chips that are no neighbours meet on the way.
        prop_assume!(node != "tpu-v5p-slice-64" || !Program::is_stepped(algorithm, op));
        let mut links = Links::new(&scene.cluster, &scene.map).without_tiers();
        if !library {
            links = links.without_library();
        }
        let (span, size) = (scene.span(), Bytes::new(bytes));
        let Some(demand) = collective_with(algorithm, Some(protocol), op, size, &span, &links) else {
            return Ok(());
        };
        let Some(program) = program(op, size, &scene, &links, &demand) else { return Ok(()) };
        let outcome = scene.run(&program);
        let (time, price) = (outcome.ends[0].as_picos(), demand.duration().as_picos());
        // A picosecond per flow of a port or step, and a byte where a buffer does not divide.
        let rounding = if Program::is_stepped(algorithm, op) {
            let byte = wire(2, links.nic_rate(protocol)).as_picos();
            (20 + u64::from(span.ranks)) * (byte + 1)
        } else if scene.seats().switched() {
            span.ranks.into()
        } else {
            // One link of several has its part of the port's rate in millionths.
            u64::from(span.ranks) + price / 400_000
        };
        prop_assert!(time.abs_diff(price) <= rounding, "{time} and {price} ps: {demand:?}");
    }

    /// Never faster than the busiest link: on any fabric, hashed or sprayed, oversubscribed or not.
    #[test]
    fn never_faster_than_the_busiest_link(
        node in prop::sample::select(&["dgx-h100", "hgx-h800", "dgx-a100", "gb200-nvl72", "mi300x-8", "tpu-v5p-slice-64", "hgx-a100-4x100g"][..]),
        fabric in prop::sample::select(&[
            "ib-two-tier", "rail-optimized", "rail-optimized-sharp", "roce-oversubscribed", "ib-three-tier",
            "deepseek-mpft", "rail-only", "rail-only-two-tier", "dragonfly-plus",
        ][..]),
        nodes in 1_u32..9,
        small_switches in any::<bool>(),
        hashed in any::<bool>(),
        operation in 0_usize..8,
        algorithm in prop::option::of(prop::sample::select(&ALGORITHMS[..])),
        kernels in prop::sample::select(&[ExpertKernels::Normal, ExpertKernels::LowLatency, ExpertKernels::OneSided][..]),
        bytes in 1_u64..(1 << 32),
        seed in any::<u64>(),
        chosen in prop::collection::vec(any::<bool>(), 144),
        scattered in any::<bool>(),
        sms in prop::option::of(1_u32..40),
    ) {
        let per_node = cluster_of(node, None).node.gpus;
        let nodes = nodes.min(144 / per_node);
        let mut cluster = cluster_of(node, Some(per_node * nodes));
        cluster.fabric = Catalogue::builtin().fabric(fabric).expect("a fabric").clone();
        let routing = if hashed { Routing::Ecmp } else { Routing::Adaptive };
        // Small switches give few nodes several leaves and pods.
        let radix = |radix: &mut u32| if small_switches { *radix = 16 };
        match &mut cluster.fabric {
            Fabric::FatTree(f) => { f.routing = routing; radix(&mut f.radix); }
            Fabric::RailOptimized(f) => { f.routing = routing; radix(&mut f.radix); }
            Fabric::MultiPlaneFatTree(f) => { f.routing = routing; radix(&mut f.radix); }
            Fabric::RailOnly(f) => { f.routing = routing; radix(&mut f.radix); }
            Fabric::DragonflyPlus(f) => {
                f.routing = routing;
                if small_switches {
                    (f.radix, f.leaves_per_group) = (16, Some(4));
                }
            }
        }
        if seed & 1 == 1 && let Some(reduces) = cluster.fabric.reduces_mut() {
            *reduces = true;
        }
        // Some do not fit: eight planes of four NICs, or too many NICs for small switches.
        let Ok(wires) = Wires::new(&cluster, seed) else { return Ok(()) };
        let all = 0..per_node * nodes;
        let mut gpus: Vec<u32> = all.filter(|gpu| !scattered || chosen[*gpu as usize]).collect();
        if gpus.is_empty() { gpus.push(0); }
        let group = Group::on(&cluster, gpus).expect("sound").with_sms(sms);
        let experts = Experts { experts: 256, top_k: 8, bytes_per_token: Bytes::new(7168), max_domains: Some(4), kernels };
        let operation = match CollectiveOp::ALL.get(operation) {
            Some(op) => Operation::Collective(*op),
            None if operation == 6 => Operation::Dispatch(experts),
            None => Operation::Combine(experts),
        };
        let size = Bytes::new(bytes);
        let Some(price) = group.measure(operation, size, algorithm, None) else {
            prop_assert!(algorithm.is_some(), "the library serves all");
            return Ok(());
        };
        prop_assert!(price.time >= price.bound, "{price:?}");
        let flows = group.simulate(&wires, operation, size, algorithm, None);
        let flows = flows.map_err(|why| TestCaseError::fail(why.to_string()))?;
        prop_assert!(flows.time >= flows.bound, "{flows:?}");
        // Counting is no later than flows, which may meet unevenly on the way.
        let counted = group.simulate_counted(&wires, operation, size, algorithm);
        let counted = counted.map_err(|why| TestCaseError::fail(why.to_string()))?;
        let rounding = 1_000 + flows.time.as_picos() / 1_000_000;
        prop_assert!(counted.time >= counted.bound, "{counted:?}");
        prop_assert!(counted.time.as_picos() <= flows.time.as_picos() + rounding, "{counted:?} {flows:?}");
    }

    /// Any placement: what the busiest rank is priced at is what the flows of all come to. On fabrics that
    /// are not in the way uneven domains meet at a receiver now and then, and no flow is faster than its
    /// price.
    #[test]
    fn flows_of_uneven_groups_come_to_their_price(
        node in prop::sample::select(&["dgx-h100", "hgx-h800", "dgx-a100", "dgx-b200", "hgx-a100-4x100g", "mi300x-8"][..]),
        op in prop::sample::select(&CollectiveOp::ALL[..]),
        algorithm in prop::sample::select(&ALGORITHMS[..]),
        bytes in (1_u64 << 20)..(1 << 30),
        members in prop::collection::vec(1_u32..=8, 1..7),
    ) {
        let mut cluster = cluster_of(node, Some(8 * members.len() as u32));
        cluster.fabric = Catalogue::builtin().fabric("ib-two-tier").expect("a fabric").clone();
        let Fabric::FatTree(tree) = &mut cluster.fabric else { panic!("a fat tree") };
        (tree.load_balance, tree.in_network_reduction) = (1.0, true);
        let mut scene = Scene::of(cluster, 8 * members.len() as u32);
        scene.ranks.retain(|rank| rank % 8 < members[*rank as usize / 8]);
        let links = Links::new(&scene.cluster, &scene.map).without_tiers();
        let (span, size) = (scene.span(), Bytes::new(bytes));
        let Some(demand) = collective_with(algorithm, None, op, size, &span, &links) else {
            return Ok(());
        };
        let Some(program) = program(op, size, &scene, &links, &demand) else { return Ok(()) };
        let time = scene.run(&program).ends[0].as_picos() as f64;
        let ratio = time / demand.duration().as_picos() as f64;
        // A price on a mesh has the bytes of the fullest domain on the links of the emptiest, and one of
        // a tree has the emptiest domain inside both trees.
        let tree = matches!(algorithm, Algorithm::Tree | Algorithm::InSwitchTree);
        let exact = scene.seats().switched() && !tree;
        let least = if exact { 1.0 - 1e-5 } else { 0.5 };
        // Where two domains share a third's port unevenly, the last flow has it alone for a while; and no
        // flow is held up by more than the loads of its two ports together.
        prop_assert!((least..2.0).contains(&ratio), "{ratio}: {demand:?}");
    }

    /// Counting an exchange link by link comes to the simulation of its flows: to the rounding where
    /// flows of one kind meet, and no later than it where two kinds do.
    #[test]
    fn an_exchange_is_counted_as_its_flows_are_simulated(
        node in prop::sample::select(&["dgx-h100", "dgx-a100", "gb200-nvl72"][..]),
        nodes in 1_u32..7,
        hashed in any::<bool>(),
        connections in 1_u32..4,
        narrow in any::<bool>(),
        tokens in any::<bool>(),
        bytes in 1_u64..(1 << 30),
        seed in any::<u64>(),
    ) {
        let per_node = cluster_of(node, None).node.gpus;
        let nodes = nodes.min(144 / per_node);
        let mut cluster = cluster_of(node, Some(per_node * nodes));
        cluster.fabric = Catalogue::builtin().fabric("ib-two-tier").expect("a fabric").clone();
        let Fabric::FatTree(tree) = &mut cluster.fabric else { panic!("a fat tree") };
        tree.radix = 16;
        if hashed { tree.routing = Routing::Ecmp; }
        if narrow { tree.leaf_oversubscription = 3.0; }
        let Ok(wires) = Wires::new(&cluster, seed) else { return Ok(()) };
        let group = Group::new(&cluster, per_node * nodes).expect("sound").with_connections(connections);
        let operation = if tokens {
            Operation::Dispatch(Experts {
                experts: 256, top_k: 8, bytes_per_token: Bytes::new(7168), max_domains: None,
                kernels: ExpertKernels::Normal,
            })
        } else {
            Operation::Collective(CollectiveOp::AllToAll)
        };
        let size = Bytes::new(bytes);
        let flows = group.simulate(&wires, operation, size, None, None).expect("it is laid out");
        let counted = group.simulate_counted(&wires, operation, size, None).expect("it is counted");
        let (flows, counted) = (flows.time.as_picos(), counted.time.as_picos());
        // A picosecond for each flow of a link, which spines have many of.
        let rounding = 4 * u64::from(group.ranks() * connections) + flows / 20_000_000;
        prop_assert!(flows.abs_diff(counted) <= rounding, "{flows} and {counted} ps");
    }

    /// Any part of a torus: the same ring and the same pairs as flows, no faster than the wire and within
    /// what the price leaves out.
    #[test]
    fn parts_of_a_torus_have_flows(
        chosen in prop::collection::vec(any::<bool>(), 64),
        boxed in prop::option::of((1_u32..=4, 1_u32..=4, 1_u32..=4)),
        op in prop::sample::select(&CollectiveOp::ALL[..]),
        algorithm in prop::option::of(prop::sample::select(&ALGORITHMS[..])),
        bytes in (1_u64 << 20)..(1 << 30),
    ) {
        let cluster = cluster_of("tpu-v5p-slice-64", None);
        let wires = Wires::new(&cluster, 3).expect("sound");
        let inside = |gpu: &u32| match boxed {
            Some((x, y, z)) => gpu % 4 < x && gpu / 4 % 4 < y && gpu / 16 < z,
            None => chosen[*gpu as usize],
        };
        let gpus: Vec<u32> = (0..64).filter(inside).collect();
        prop_assume!(gpus.len() > 1);
        let group = Group::on(&cluster, gpus).expect("sound");
        let operation = Operation::Collective(op);
        let size = Bytes::new(bytes);
        let Some(price) = group.measure(operation, size, algorithm, None) else { return Ok(()) };
        let flows = group.simulate(&wires, operation, size, algorithm, None).expect("it is laid out");
        prop_assert!(flows.time >= flows.bound, "{flows:?}");
        let ratio = flows.time.as_secs_f64() / price.time.as_secs_f64();
        // A box has the rings of its price; pairs and steps meet on links that it does not count.
        if boxed.is_some() && matches!(price.algorithm, Algorithm::Ring | Algorithm::Hierarchical) {
            prop_assert!((0.999..1.001).contains(&ratio), "{ratio}: {price:?}");
        }
        prop_assert!((0.3..8.0).contains(&ratio), "{ratio}: {price:?}");
    }
}

/// An all-to-all of more ranks than flows are kept for: 8,192 ranks are 67 million pairs.
#[test]
fn an_exchange_of_many_ranks_is_counted() {
    let cluster = cluster_of("dgx-h100", Some(2_048));
    let wires = Wires::new(&cluster, 3).expect("sound");
    let group = Group::new(&cluster, 2_048).expect("sound");
    let op = Operation::Collective(CollectiveOp::AllToAll);
    let sizes = [Bytes::new(1 << 20), Bytes::new(1 << 30)];
    let rows = group
        .simulate_all(&wires, op, &sizes, None, None)
        .expect("counted");
    for (row, size) in rows.iter().zip(sizes) {
        let price = group.measure(op, size, None, None).expect("it serves");
        let ratio = row.time.as_secs_f64() / price.time.as_secs_f64();
        assert!((0.95..1.05).contains(&ratio), "{ratio}");
        assert!(row.time >= row.bound);
    }
}

/// More connections spread a pair's bytes over more hashed paths, so that fewer meet.
#[test]
fn more_connections_collide_less() {
    let mut cluster = cluster_of("dgx-h100", Some(512));
    cluster.fabric = Catalogue::builtin()
        .fabric("ib-two-tier")
        .expect("a fabric")
        .clone();
    let Fabric::FatTree(tree) = &mut cluster.fabric else {
        panic!("a fat tree")
    };
    tree.routing = Routing::Ecmp;
    let op = Operation::Collective(CollectiveOp::AllReduce);
    let time = |connections| {
        let runs = (0..4).map(|seed| {
            let wires = Wires::new(&cluster, seed).expect("sound");
            let group = Group::new(&cluster, 512)
                .expect("sound")
                .with_connections(connections);
            let run = group.simulate(&wires, op, Bytes::new(1 << 30), Some(Algorithm::Ring), None);
            run.expect("a ring").time.as_secs_f64()
        });
        runs.sum::<f64>()
    };
    let (one, two, sixteen) = (time(1), time(2), time(16));
    assert!(
        one > 1.1 * two && two > 1.1 * sixteen,
        "{one} {two} {sixteen}"
    );
}

/// Few SMs hold a collective back, more than its links need do nothing.
#[test]
fn sms_hold_a_collective_back() {
    let size = Bytes::new(1 << 30);
    let op = Operation::Collective(CollectiveOp::AllReduce);
    let busbw = |sms| {
        let group = Group::new(&cluster_of("dgx-h100", None), 8)
            .expect("sound")
            .with_sms(sms);
        group
            .measure(op, size, Some(Algorithm::Ring), None)
            .expect("a ring")
            .bus_bandwidth
            / 1e9
    };
    // NCCL's tuner gives a channel of Hopper 36.7 GB/s.
    assert!((4.0 * 36.7 * 0.98..4.0 * 36.7).contains(&busbw(Some(4))));
    assert_eq!(busbw(Some(32)), busbw(None));
    let experts = |kernels| Experts {
        experts: 256,
        top_k: 8,
        bytes_per_token: Bytes::new(14_336),
        max_domains: None,
        kernels,
    };
    let combine = |sms| {
        let group = Group::new(&cluster_of("dgx-b200", None), 8)
            .expect("sound")
            .with_sms(Some(sms));
        let op = Operation::Combine(experts(ExpertKernels::Normal));
        group
            .measure(op, Bytes::new(16_384 * 14_336), None, None)
            .expect("it serves")
            .time
            .as_secs_f64()
            * 1e6
    };
    // DeepEP on 8 B200, 16,384 tokens: 4,976 us with 12 SMs, 2,634 with 24 (AIConfigurator).
    assert!((combine(12) / 4_976.0).ln().abs() < 0.1, "{}", combine(12));
    assert!((combine(24) / 2_634.0).ln().abs() < 0.1, "{}", combine(24));
}

/// Hashed paths collide: the same rings take longer than on sprayed ones, and as long as the bound
/// of their busiest link says.
#[test]
fn hashed_paths_collide() {
    let time = |routing| {
        let mut cluster = cluster_of("dgx-h100", Some(512));
        cluster.fabric = Catalogue::builtin()
            .fabric("ib-two-tier")
            .expect("a fabric")
            .clone();
        let Fabric::FatTree(tree) = &mut cluster.fabric else {
            panic!("a fat tree")
        };
        tree.routing = routing;
        let wires = Wires::new(&cluster, 3).expect("sound");
        let group = Group::new(&cluster, 512).expect("sound");
        let op = Operation::Collective(CollectiveOp::AllReduce);
        group
            .simulate(&wires, op, Bytes::new(1 << 30), Some(Algorithm::Ring), None)
            .expect("regular")
            .time
            .as_secs_f64()
    };
    let (sprayed, hashed) = (time(Routing::Adaptive), time(Routing::Ecmp));
    assert!(
        hashed > 1.5 * sprayed,
        "{hashed} s hashed, {sprayed} s sprayed"
    );
}

/// Two jobs whose rings cross the same oversubscribed leaves take longer together than alone.
#[test]
fn two_jobs_share_the_tiers() {
    let scene = Scene::on("dgx-h100", 512, "roce-oversubscribed");
    let half: Vec<u32> = (0..512).filter(|gpu| gpu / 8 % 2 == 0).collect();
    let other: Vec<u32> = (0..512).filter(|gpu| gpu / 8 % 2 == 1).collect();
    let links = Links::new(&scene.cluster, &scene.map).without_tiers();
    let program = |gpus: &[u32]| {
        let span = scene.map.span(gpus);
        let op = CollectiveOp::AllReduce;
        let demand = collective_with(
            Algorithm::Ring,
            Some(Protocol::Simple),
            op,
            Bytes::new(1 << 30),
            &span,
            &links,
        );
        let seats = scene.map.seats(gpus);
        Program::pipelined(op, &span, &seats, &demand.expect("a ring")).expect("a ring")
    };
    let (a, b) = (program(&half), program(&other));
    let task = |program, gpus| Task {
        program,
        gpus,
        start: SimTime::ZERO,
        connections: 1,
    };
    let alone = run_flows(&scene.wires, scene.lines(), &[task(&a, &half)]).ends[0];
    let both = run_flows(
        &scene.wires,
        scene.lines(),
        &[task(&a, &half), task(&b, &other)],
    )
    .ends[0];
    assert!(both >= alone, "{both} together, {alone} alone");
}

/// Two kinds side by side run at the pace of the slower one's ports, as flows too.
#[test]
fn the_slower_kind_sets_the_pace() {
    let slow = cluster_of("dgx-a100", Some(64));
    let fast = cluster_of("dgx-h100", Some(64));
    let part = |cluster: &Cluster| Part {
        node: cluster.node.clone(),
        gpus: 64,
    };
    let mixed = Cluster::of_parts(vec![part(&fast), part(&slow)], fast.fabric.clone());
    let wires = Wires::new(&mixed, 3).expect("the parts are joined");
    let op = Operation::Collective(CollectiveOp::AllReduce);
    let size = Bytes::new(1 << 30);
    let time = |cluster: &Cluster, gpus: std::ops::Range<u32>, ring| {
        let group = Group::on(cluster, gpus.collect()).expect("sound");
        let algorithm = Some(ring);
        let price = group.measure(op, size, algorithm, None).expect("it serves");
        if !cluster.is_mixed() {
            return (price.time, price.time);
        }
        let flows = group
            .simulate(&wires, op, size, algorithm, None)
            .expect("laid out");
        assert!(flows.time >= flows.bound);
        (price.time, flows.time)
    };
    let big = |cluster: &Cluster| {
        let changes = Cluster {
            gpus: 128,
            ..cluster.clone()
        };
        time(&changes, 0..128, Algorithm::Ring).0
    };
    let (price, flows) = time(&mixed, 0..128, Algorithm::Ring);
    let (slowest, fastest) = (big(&slow), big(&fast));
    assert!(price > fastest && flows > fastest);
    assert!(
        (flows.as_secs_f64() / slowest.as_secs_f64()).ln().abs() < 0.1,
        "{flows} {slowest}"
    );
    assert!(
        (flows.as_secs_f64() / price.as_secs_f64()).ln().abs() < 0.1,
        "{flows} {price}"
    );
    // A group of one kind takes what it takes alone.
    let alone = time(&fast, 0..64, Algorithm::Ring).0;
    assert_eq!(time(&mixed, 0..64, Algorithm::Ring).0, alone);
}
