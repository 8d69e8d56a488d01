//! Closed forms of collectives, and the bound of the busiest link.

#[path = "../../topology/tests/common/mod.rs"]
mod common;

use common::cluster;
use proptest::prelude::*;
use rackflow_network::{
    Algorithm, CollectiveOp, Demand, ExchangeStyle, ExchangeWay, Links, Protocol, Shape,
    TokenExchange, collective, collective_by, expert_exchange, send_recv,
};
use rackflow_topology::{Cluster, ClusterMap, GroupSpan, Level};
use rackflow_units::{Bandwidth, Bytes, SimDuration};

struct Scene {
    cluster: Cluster,
    map: ClusterMap,
    links: Links,
}

impl Scene {
    fn new(node: &str, gpus: u32, fabric: &str) -> Self {
        let cluster = cluster(node, gpus, fabric);
        let map = ClusterMap::new(&cluster).expect("the cluster is sound");
        let links = Links::new(&cluster, &map);
        Self {
            cluster,
            map,
            links,
        }
    }

    /// Wires alone: no launch, no protocol, and a fabric that is never in the way.
    fn ideal(node: &str, gpus: u32) -> Self {
        let mut scene = Self::new(node, gpus, "ib-three-tier");
        scene.links = scene.links.without_library();
        scene
    }

    fn first(&self, ranks: u32) -> GroupSpan {
        self.map.span(&(0..ranks).collect::<Vec<_>>())
    }
}

/// `numerator / denominator` of `bytes` at `rate`, rounded up to a picosecond.
fn wire(bytes: u64, numerator: u64, denominator: u64, rate: Bandwidth) -> SimDuration {
    let work = u128::from(bytes) * u128::from(numerator) * 1_000_000_000_000;
    let ps = work.div_ceil(u128::from(denominator) * u128::from(rate.bytes_per_sec()));
    SimDuration::from_picos(ps as u64)
}

const SIZES: [u64; 5] = [8, 1000, 1 << 20, 999_999_937, 1 << 33];

/// 2(n-1)/n S/B + 2(n-1) a, and half of that for its two halves.
#[test]
fn a_ring_on_idle_wires() {
    let scene = Scene::ideal("dgx-h100", 8);
    let step = scene.links.nvlink_step(Protocol::Simple);
    let rate = scene.links.nvlink_rate(Protocol::Simple);
    for bytes in SIZES {
        for n in [2, 3, 5, 8] {
            let group = scene.first(n as u32);
            let ring = |op| {
                collective_by(Algorithm::Ring, op, Bytes::new(bytes), &group, &scene.links)
                    .expect("a ring serves it")
                    .duration()
            };
            let both = wire(bytes, 2 * (n - 1), n, rate) + step * (2 * (n - 1));
            assert_eq!(ring(CollectiveOp::AllReduce), both, "{bytes} over {n}");
            let half = wire(bytes, n - 1, n, rate) + step * (n - 1);
            assert_eq!(ring(CollectiveOp::AllGather), half);
            assert_eq!(ring(CollectiveOp::ReduceScatter), half);
        }
    }
}

/// A pair of a mesh has its own link of seven, and all eight GPUs have them all.
#[test]
fn a_mesh_has_a_link_per_pair() {
    let scene = Scene::ideal("mi300x-8", 8);
    let link = 64_000_000_000_f64;
    let busbw = |ranks| {
        let bytes = Bytes::new(8 << 30);
        let time = collective(
            CollectiveOp::AllReduce,
            bytes,
            &scene.first(ranks),
            &scene.links,
        );
        let factor = CollectiveOp::AllReduce.bus_factor(ranks);
        bytes.as_f64() * factor / time.duration().as_secs_f64()
    };
    for ranks in 2..=8 {
        let expected = link * f64::from(ranks - 1) * 0.72;
        assert!(
            (busbw(ranks) / expected - 1.0).abs() < 1e-3,
            "{ranks}: {}",
            busbw(ranks)
        );
    }
    let pair = send_recv(Bytes::new(8 << 30), &scene.map.path(0, 5), &scene.links);
    let rate = (8_u64 << 30) as f64 / pair.duration().as_secs_f64();
    assert!((rate / (link * 0.70) - 1.0).abs() < 1e-3, "{rate}");
}

/// Rings on a torus use the links along the axes of their group, an all-to-all is bound by the cut
/// of its longest axis, and a message has one link.
#[test]
fn a_torus_has_links_along_its_axes() {
    let scene = Scene::ideal("tpu-v5p-slice-64", 64);
    let bytes = Bytes::new(8 << 30);
    let time = |op, gpus: &[u32]| {
        let span = scene.map.span(gpus);
        collective(op, bytes, &span, &scene.links)
            .duration()
            .as_secs_f64()
    };
    let all: Vec<u32> = (0..64).collect();
    let row = &all[..4];
    let wire = |n: f64, share: f64| (n - 1.0) / n * bytes.as_f64() / (540e9 * 0.85 * share);
    let close = |found: f64, expected: f64| {
        assert!(
            (found / expected - 1.0).abs() < 1e-2,
            "{found} and {expected}"
        );
    };
    close(time(CollectiveOp::AllGather, &all), wire(64.0, 1.0));
    close(time(CollectiveOp::AllGather, row), wire(4.0, 1.0 / 3.0));
    // 64 x 4 / 8 pairs cross each of the cut links in one direction.
    let pair = bytes.as_f64() / 64.0;
    close(
        time(CollectiveOp::AllToAll, &all),
        pair * 32.0 / (90e9 * 0.85),
    );
    let far = scene.map.path(0, 42);
    assert_eq!(far.latency, SimDuration::from_micros(6));
    close(
        send_recv(bytes, &far, &scene.links)
            .duration()
            .as_secs_f64(),
        bytes.as_f64() / (90e9 * 0.85),
    );
}

/// One rank per node: every hop is a NIC.
#[test]
fn a_ring_across_nodes() {
    let scene = Scene::ideal("dgx-h100", 256);
    let group = scene
        .map
        .span(&(0..32).map(|node| node * 8).collect::<Vec<_>>());
    let step = scene
        .links
        .nic_step(group.level, Shape::Ring, Protocol::Simple);
    let rate = scene.links.nic_rate(Protocol::Simple);
    for bytes in SIZES {
        let op = CollectiveOp::AllReduce;
        let ring = collective_by(Algorithm::Ring, op, Bytes::new(bytes), &group, &scene.links)
            .expect("a ring serves it");
        assert_eq!(ring.duration(), wire(bytes, 62, 32, rate) + step * 62);
        assert_eq!(
            (ring.nvlink, group.level),
            (SimDuration::ZERO, Level::Spine)
        );
    }
}

/// Reduce-scatter inside, slices across by rail, all-gather inside: each NIC carries its slice.
#[test]
fn a_hierarchy_on_idle_wires() {
    let scene = Scene::ideal("dgx-h100", 64);
    let group = scene.first(64);
    let (near, far) = (
        scene.links.nvlink_step(Protocol::Simple),
        scene
            .links
            .nic_step(group.level, Shape::Ring, Protocol::Simple),
    );
    let demand = collective_by(
        Algorithm::Hierarchical,
        CollectiveOp::AllReduce,
        Bytes::new(1 << 30),
        &group,
        &scene.links,
    )
    .expect("it spans domains");
    assert_eq!(
        demand.nic,
        wire(
            1 << 30,
            2 * 7,
            8 * 8,
            scene.links.nic_rate(Protocol::Simple)
        )
    );
    assert_eq!(
        demand.nvlink,
        wire(1 << 30, 2 * 7, 8, scene.links.nvlink_rate(Protocol::Simple))
    );
    assert_eq!(demand.latency, near * 14 + far * 14);
}

/// Two steps per level of the tree; a NIC sends its slice up and down.
#[test]
fn a_tree_on_idle_wires() {
    let scene = Scene::ideal("dgx-h100", 128);
    let group = scene
        .map
        .span(&(0..16).map(|node| node * 8).collect::<Vec<_>>());
    let op = CollectiveOp::AllReduce;
    let tree = collective_by(
        Algorithm::Tree,
        op,
        Bytes::new(1 << 20),
        &group,
        &scene.links,
    )
    .expect("it spans domains");
    let step = scene
        .links
        .nic_step(group.level, Shape::Tree, Protocol::Simple);
    assert_eq!(tree.latency, step * 8);
    assert_eq!(
        tree.nic,
        wire(1 << 20, 2, 1, scene.links.nic_rate(Protocol::Simple))
    );
    let small = collective(op, Bytes::new(1024), &group, &scene.links);
    assert_eq!(
        small.algorithm,
        Algorithm::Tree,
        "latency decides small sizes"
    );
    let large = collective(op, Bytes::new(1 << 33), &group, &scene.links);
    assert_eq!(
        large.algorithm,
        Algorithm::Ring,
        "bandwidth decides large sizes"
    );
}

#[test]
fn an_all_to_all_and_a_message_on_idle_wires() {
    let scene = Scene::ideal("dgx-h100", 16);
    let inside = scene.first(8);
    let bytes = Bytes::new(1 << 26);
    let step = scene.links.nvlink_step(Protocol::Simple);
    let rate = scene.links.copy_rate(Protocol::Simple);
    let a2a = collective(CollectiveOp::AllToAll, bytes, &inside, &scene.links);
    assert_eq!(a2a.duration(), wire(1 << 26, 7, 8, rate) + step);

    let both = scene.first(16);
    let a2a = collective(CollectiveOp::AllToAll, bytes, &both, &scene.links);
    assert_eq!(
        a2a.nic,
        wire(1 << 26, 8, 16, scene.links.nic_rate(Protocol::Simple))
    );
    assert_eq!(a2a.nvlink, wire(1 << 26, 7, 16, rate));

    let path = scene.map.path(0, 8);
    let message = send_recv(bytes, &path, &scene.links);
    assert_eq!(
        message.duration(),
        path.latency + wire(1 << 26, 1, 1, scene.links.nic_rate(Protocol::Simple))
    );
    assert_eq!(
        send_recv(bytes, &scene.map.path(3, 3), &scene.links),
        Demand::NONE
    );
}

/// The switch reduces: a port carries the buffer once, and one slice more.
#[test]
fn an_in_switch_reduction() {
    let scene = Scene::new("dgx-h100", 8, "ib-two-tier");
    let demand = collective(
        CollectiveOp::AllReduce,
        Bytes::new(1 << 33),
        &scene.first(8),
        &scene.links,
    );
    assert_eq!(demand.algorithm, Algorithm::InSwitch);
    assert_eq!(demand.wire_bytes_nvlink, Bytes::new((1 << 33) / 8 * 9));
    let busbw = 2.0 * 7.0 / 8.0 * 8.59e9 / demand.duration().as_secs_f64() / 1e9;
    assert!(
        (470.0..490.0).contains(&busbw),
        "{busbw} GB/s; 480 are published"
    );
    let gather = collective(
        CollectiveOp::AllGather,
        Bytes::new(1 << 33),
        &scene.first(8),
        &scene.links,
    );
    assert_eq!(
        gather.algorithm,
        Algorithm::Ring,
        "only an all-reduce is reduced in flight"
    );
}

/// A token crosses the NIC once per visited domain, however many experts it has there.
#[test]
fn experts_behind_relays() {
    let scene = Scene::new("hgx-h800", 64, "deepseek-mpft");
    let group = scene.first(64);
    let exchange = |style| {
        let exchange = TokenExchange {
            tokens: 4096,
            bytes_per_token: Bytes::new(7168),
            top_k: 8,
            experts: 256,
            style,
            way: ExchangeWay::Dispatch,
            sms: 24,
        };
        expert_exchange(exchange, &group, &scene.links)
    };
    let payload = 4096.0 * 7168.0;
    let limited = exchange(ExchangeStyle::Relayed {
        max_domains: Some(4),
        hybrid: false,
    });
    let free = exchange(ExchangeStyle::Relayed {
        max_domains: None,
        hybrid: false,
    });
    let plain = exchange(ExchangeStyle::AllToAll);
    let copies = |demand: &Demand| demand.wire_bytes_nic.as_f64() / payload;
    // 8 of 128 experts in 4 domains of 32: 4 (1 - C(96,8)/C(128,8)) = 3.629, 7/8 of them remote.
    assert!(
        (copies(&limited) - 3.629 * 7.0 / 8.0).abs() < 0.01,
        "{}",
        copies(&limited)
    );
    // 8 of 256 in 8 domains of 32: 8 (1 - C(224,8)/C(256,8)) = 5.304.
    assert!(
        (copies(&free) - 5.304 * 7.0 / 8.0).abs() < 0.01,
        "{}",
        copies(&free)
    );
    assert!((copies(&plain) - 8.0 * 7.0 / 8.0).abs() < 1e-6);
    assert!(limited.duration() < free.duration() && free.duration() < plain.duration());
    assert_eq!(limited.algorithm, Algorithm::Relayed);
}

/// All traffic over a 2:1 leaf and a 4:1 spine takes 8 times as long; a ring that leaves its leaf
/// once in sixteen hops is not slowed.
#[test]
fn oversubscription_slows_what_crosses() {
    let mut scene = Scene::new("dgx-h100", 4096, "roce-oversubscribed");
    if let rackflow_topology::Fabric::FatTree(tree) = &mut scene.cluster.fabric {
        tree.load_balance = 1.0;
    }
    scene.map = ClusterMap::new(&scene.cluster).expect("sound");
    scene.links = Links::new(&scene.cluster, &scene.map);
    let bytes = Bytes::new(1 << 26);
    let message = |a, b| send_recv(bytes, &scene.map.path(a, b), &scene.links);
    let near = message(0, 8);
    assert_eq!(near.level, Level::Leaf);
    let pod = message(0, 512);
    assert_eq!(
        (pod.level, pod.nic.as_picos().div_ceil(near.nic.as_picos())),
        (Level::Spine, 2)
    );
    let far = message(0, 4088);
    assert_eq!(
        (far.level, far.nic.as_picos().div_ceil(near.nic.as_picos())),
        (Level::Core, 8)
    );

    let nodes: Vec<u32> = (0..512).map(|node| node * 8).collect();
    let group = scene.map.span(&nodes);
    let ring = |links: &Links| {
        collective_by(
            Algorithm::Ring,
            CollectiveOp::AllGather,
            bytes,
            &group,
            links,
        )
        .expect("a ring serves it")
        .nic
    };
    let free = Scene::new("dgx-h100", 4096, "ib-three-tier");
    assert_eq!(ring(&scene.links), ring(&free.links));
}

const NODES: [&str; 6] = [
    "dgx-a100",
    "jean-zay-a100",
    "dgx-h100",
    "hgx-h800",
    "mi300x-8",
    "gb200-nvl72",
];
const FABRICS: [&str; 5] = [
    "ib-three-tier",
    "rail-optimized-three-tier",
    "roce-oversubscribed",
    "rail-optimized-xdr",
    "rail-optimized-sharp",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 2, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the operation: no port moves its bytes faster than its line rate, more bytes never
    /// take less time, and idle wires alone are never slower than with the library.
    #[test]
    fn never_faster_than_the_wire(
        node in prop::sample::select(&NODES[..]),
        fabric in prop::sample::select(&FABRICS[..]),
        op in prop::sample::select(&CollectiveOp::ALL[..]),
        nodes in 1_u32..12,
        picks in prop::collection::vec(any::<u32>(), 2..40),
        bytes in 0_u64..(1 << 34),
        contiguous in any::<bool>(),
    ) {
        let per_node = common::nodes()[node].gpus;
        let scene = Scene::new(node, per_node * nodes, fabric);
        let mut gpus: Vec<u32> = if contiguous {
            (0..(picks.len() as u32).min(scene.map.gpus())).collect()
        } else {
            picks.iter().map(|pick| pick % scene.map.gpus()).collect()
        };
        gpus.sort_unstable();
        gpus.dedup();
        let group = scene.map.span(&gpus);
        let line = |rate: Bandwidth, bytes: Bytes| rate.time_to_send(bytes);
        let algorithms = [
            Algorithm::Ring, Algorithm::Hierarchical, Algorithm::Tree, Algorithm::InSwitch,
            Algorithm::InSwitchTree, Algorithm::InNetwork, Algorithm::Direct, Algorithm::Pxn,
        ];
        let size = Bytes::new(bytes);
        let all = algorithms.iter().filter_map(|a| collective_by(*a, op, size, &group, &scene.links));
        for demand in all {
            prop_assert!(demand.nvlink >= line(scene.cluster.node.scale_up.bandwidth, demand.wire_bytes_nvlink));
            prop_assert!(demand.nic >= line(scene.map.nic_share(), demand.wire_bytes_nic));
            prop_assert!(demand.duration() >= demand.nvlink.max(demand.nic) + demand.latency);
        }
        let chosen = collective(op, size, &group, &scene.links);
        let more = collective(op, Bytes::new(bytes + (bytes >> 3) + 1), &group, &scene.links);
        prop_assert!(chosen.duration() <= more.duration());
        let ideal = collective(op, size, &group, &scene.links.clone().without_library());
        prop_assert!(ideal.duration() <= chosen.duration());
        if group.ranks > 1 && op == CollectiveOp::AllReduce && group.domains > 1 {
            // Each domain must let the rest of the sum in: S over its members' NICs.
            let floor = line(scene.map.nic_share(), Bytes::new(bytes / u64::from(group.ranks_per_domain_min)));
            prop_assert!(chosen.nic >= floor);
        }
    }
}
