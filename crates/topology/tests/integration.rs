//! The graph, the map and the errors of clusters.

mod common;
#[path = "integration/wires.rs"]
mod wires;

use common::{cluster, fabrics, nodes};
use petgraph::algo::dijkstra;
use petgraph::graph::NodeIndex;
use petgraph::visit::EdgeRef;
use proptest::prelude::*;
use rackflow_topology::{
    Cluster, ClusterGraph, ClusterMap, DragonflyPlus, Fabric, FatTree, Level, MultiPlaneFatTree,
    Part, Path, RailOnly, RailOptimized, Routing, TopologyError, Torus, Vertex, Wiring,
};
use rackflow_units::{Bandwidth, SimDuration};

fn map(cluster: &Cluster) -> ClusterMap {
    ClusterMap::new(cluster).expect("the cluster is sound")
}

fn fat_tree(tiers: u32, radix: u32) -> FatTree {
    FatTree {
        in_network_reduction: false,
        tiers,
        radix,
        spine_radix: None,
        nics_per_leaf: None,
        link: None,
        leaf_oversubscription: 1.0,
        spine_oversubscription: 1.0,
        load_balance: 1.0,
        routing: Routing::Adaptive,
        hop: SimDuration::from_nanos(300),
    }
}

#[test]
fn every_node_stands_on_a_three_tier_fabric() {
    for (name, node) in nodes() {
        let gpus = if node.gpus > 1000 {
            node.gpus
        } else {
            node.gpus * 4
        };
        let fabric = fabrics()["ib-three-tier"].clone();
        let cluster = Cluster {
            parts: Vec::new(),
            node: node.clone(),
            gpus,
            fabric,
        };
        assert!(ClusterMap::new(&cluster).is_ok(), "{name}");
    }
}

#[test]
fn published_counts_of_switches() {
    // arXiv 2505.09343: two tiers 2,048 end points, 96 switches; three tiers 65,536 and 5,120;
    // eight planes 16,384 and 768.
    for (fabric, gpus, switches) in [
        ("ib-two-tier", 2048, 96),
        ("ib-three-tier", 65_536, 5120),
        ("deepseek-mpft", 16_384, 768),
    ] {
        let inventory = map(&cluster("dgx-h100", gpus, fabric)).inventory();
        assert_eq!(inventory.switches(), switches, "{fabric}");
    }
    // Every NIC has one cable per tier of a non-blocking tree.
    assert_eq!(
        map(&cluster("dgx-h100", 65_536, "ib-three-tier"))
            .inventory()
            .cables,
        3 * 65_536
    );
    // Llama 3: 8 pods of 192 racks of 16 GPUs.
    let meta = map(&cluster("hgx-h100", 24_576, "meta-roce-24k"));
    assert_eq!(meta.inventory().leaves, 8 * 192);
    assert_eq!(meta.inventory().racks, 1536);
    assert_eq!((meta.place(3071).pod, meta.place(3072).pod), (0, 1));
}

#[test]
fn a_rank_sits_where_the_rack_says() {
    let rails = map(&cluster("dgx-h100", 2048, "rail-optimized"));
    let place = rails.place(8 * 33 + 5);
    assert_eq!((place.node, place.domain, place.rail), (33, 33, 5));
    assert_eq!(place.rack, (8 * 33 + 5) / 32);
    assert_eq!((place.leaf, place.segment), (8 + 5, 1));
    assert_eq!(
        rails.level(0, 8),
        Level::Leaf,
        "equal rails of 32 nodes share a leaf"
    );
    assert_eq!(rails.level(0, 9), Level::Spine, "unequal rails do not");
    assert_eq!(rails.level(0, 8 * 32), Level::Spine);

    let nvl72 = map(&cluster("nvl36x2", 144, "ib-two-tier"));
    assert_eq!(nvl72.level(0, 71), Level::NvLink);
    assert_eq!(
        (
            nvl72.place(35).rack,
            nvl72.place(36).rack,
            nvl72.place(71).domain
        ),
        (0, 1, 0)
    );
    assert_eq!(nvl72.racks(), [0..36, 36..72, 72..108, 108..144]);

    let half = map(&cluster("dgx-h100", 4, "ib-two-tier"));
    assert_eq!(
        (half.gpus(), half.racks().len(), half.inventory().nics),
        (4, 1, 4)
    );
}

#[test]
fn shared_nics_halve() {
    let jean_zay = map(&cluster("jean-zay-a100", 384, "ib-two-tier"));
    assert_eq!(jean_zay.nic_share(), Bandwidth::from_gigabits_per_sec(50));
    assert_eq!(
        (
            jean_zay.place(0).rail,
            jean_zay.place(1).rail,
            jean_zay.place(2).rail
        ),
        (0, 0, 1)
    );
    assert_eq!(jean_zay.inventory().nics, 192);
}

#[test]
fn spans_count_what_crosses() {
    let rails = map(&cluster("dgx-h100", 2048, "rail-optimized"));
    let tensor = rails.span(&[0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(
        (tensor.level, tensor.domains, tensor.pairs_remote),
        (Level::NvLink, 1, 0)
    );

    // One rank per node, equal rails, two segments of 32 nodes: the ring leaves a leaf twice.
    let data: Vec<u32> = (0..64).map(|node| node * 8 + 3).collect();
    let span = rails.span(&data);
    assert_eq!(
        (span.level, span.leaves, span.rail_aligned),
        (Level::Spine, 2, true)
    );
    assert_eq!((span.ring_hops_over_leaf, span.pairs_remote), (2, 64 * 63));
    assert_eq!(span.pairs_over_leaf, 2 * 32 * 32);

    // The same in any order.
    let shuffled: Vec<u32> = (0..64).map(|i| data[(i * 37) % 64]).collect();
    assert_eq!(rails.span(&shuffled), span);

    // Whole nodes reach other rails over NVLink, so their traffic stays on its leaf.
    let whole: Vec<u32> = (0..16).collect();
    assert_eq!(rails.span(&whole).level, Level::Leaf);
    // Two ranks on different rails cannot.
    assert_eq!(rails.span(&[0, 9]).level, Level::Spine);
    // Planes never meet, whatever the rails.
    let planes = map(&cluster("hgx-h800", 2048, "deepseek-mpft"));
    assert_eq!(planes.span(&[0, 9]).level, Level::Leaf);
    assert_eq!(rails.span(&[5]).level, Level::Local);
}

/// Spans agree with pairs looked up one by one.
#[test]
fn a_span_is_the_sum_of_its_pairs() {
    for fabric in [
        "ib-two-tier",
        "rail-optimized",
        "deepseek-mpft",
        "roce-oversubscribed",
    ] {
        let map = map(&cluster("dgx-h100", 2048, fabric));
        for stride in [1, 3, 8, 24, 40] {
            let gpus: Vec<u32> = (0..48).map(|i| i * stride).collect();
            let span = map.span(&gpus);
            let pairs = gpus.iter().flat_map(|a| gpus.iter().map(move |b| (*a, *b)));
            let mut counts = [0_u64; 5];
            for (a, b) in pairs.filter(|(a, b)| a != b) {
                counts[map.level(a, b) as usize] += 1;
            }
            let remote = counts[2] + counts[3] + counts[4];
            assert_eq!(span.pairs_remote, remote, "{fabric} {stride}");
            assert_eq!(span.pairs_over_pod, counts[4], "{fabric} {stride}");
            if fabric != "rail-optimized" || !span.rail_aligned {
                assert_eq!(
                    span.pairs_over_leaf,
                    counts[3] + counts[4],
                    "{fabric} {stride}"
                );
            }
        }
    }
}

/// Why a cluster is refused, and the sentence that says so.
fn refused(change: impl FnOnce(&mut Cluster)) -> (TopologyError, String) {
    let mut cluster = cluster("dgx-h100", 64, "ib-two-tier");
    change(&mut cluster);
    let error = ClusterMap::new(&cluster).expect_err("the cluster is faulty");
    assert_eq!(
        ClusterGraph::build(&cluster).expect_err("the graph agrees"),
        error
    );
    let text = error.to_string();
    (error, text)
}

#[test]
fn zero_counts() {
    let (error, text) = refused(|c| c.gpus = 0);
    assert_eq!(error, TopologyError::ZeroCount { field: "gpus" });
    assert_eq!(text, "gpus is zero");
    let (error, _) = refused(|c| c.node.scale_up.domain = 0);
    assert_eq!(
        error,
        TopologyError::ZeroCount {
            field: "node.scale_up.domain"
        }
    );
    let (error, _) = refused(|c| c.fabric = Fabric::FatTree(fat_tree(2, 0)));
    assert_eq!(
        error,
        TopologyError::ZeroCount {
            field: "fabric.radix"
        }
    );
}

#[test]
fn shares_out_of_range() {
    let (_, text) = refused(|c| c.node.nic.efficiency = 1.5);
    assert_eq!(
        text,
        "node.nic.efficiency is 1.5, which is not a fraction above 0 and at most 1"
    );
    refused(|c| c.node.scale_up.efficiency = -0.5);
    let zero = FatTree {
        leaf_oversubscription: 0.0,
        ..fat_tree(2, 64)
    };
    let (error, _) = refused(|c| c.fabric = Fabric::FatTree(zero));
    assert!(matches!(error, TopologyError::OutOfRange { .. }));
}

#[test]
fn a_node_that_is_not_full() {
    let (_, text) = refused(|c| c.gpus = 60);
    assert_eq!(
        text,
        "a cluster of 60 GPUs is not a multiple of the 8 of one dgx-h100; 56 or 64 would be"
    );
}

#[test]
fn a_domain_that_does_not_nest() {
    let (error, _) = refused(|c| c.node.scale_up.domain = 12);
    assert_eq!(
        error,
        TopologyError::DomainDoesNotNest {
            domain: 12,
            per_node: 8
        }
    );
}

#[test]
fn nics_that_are_not_shared_evenly() {
    let (error, _) = refused(|c| c.node.nic.count = 3);
    assert_eq!(
        error,
        TopologyError::NicsNotShared {
            nics: 3,
            per_node: 8
        }
    );
}

#[test]
fn a_fabric_of_four_tiers() {
    let (error, _) = refused(|c| c.fabric = Fabric::FatTree(fat_tree(4, 64)));
    assert_eq!(error, TopologyError::Tiers { tiers: 4 });
}

#[test]
fn a_torus_that_is_not_its_domain() {
    let (_, text) = refused(|c| {
        c.node.scale_up.wiring = Wiring::Torus(Torus {
            dims: vec![2, 2, 3],
            wrap_multiple_of: 1,
        });
    });
    assert_eq!(text, "a torus of 2 x 2 x 3 has 12 chips and its domain 8");
}

fn dragonfly(radix: u32, leaves_per_group: u32, global_oversubscription: f64) -> Fabric {
    Fabric::DragonflyPlus(DragonflyPlus {
        radix,
        nics_per_leaf: None,
        leaves_per_group: Some(leaves_per_group),
        link: None,
        leaf_oversubscription: 1.0,
        global_oversubscription,
        load_balance: 1.0,
        routing: Routing::Ecmp,
        hop: SimDuration::from_nanos(300),
    })
}

#[test]
fn groups_that_are_too_many_or_too_large() {
    let (_, text) = refused(|c| {
        c.gpus = 1024;
        c.fabric = dragonfly(16, 1, 4.0);
    });
    assert_eq!(
        text,
        "128 groups of 2 links each are too many to be joined each to each"
    );
    let (_, text) = refused(|c| {
        c.gpus = 1024;
        c.fabric = dragonfly(16, 40, 1.0);
    });
    assert_eq!(
        text,
        "a group of 40 leaves needs spines of more than 16 ports"
    );
}

#[test]
fn a_dragonfly_has_the_cables_of_its_groups() {
    // Four groups of 32 leaves of 32 NICs: each has 32 x 32 links up, so 1,024 to three others.
    let mut cluster = cluster("dgx-h100", 4096, "ib-two-tier");
    cluster.fabric = dragonfly(64, 32, 1.0);
    let inventory = map(&cluster).inventory();
    assert_eq!(
        (inventory.leaves, inventory.spines, inventory.cores),
        (128, 128, 0)
    );
    assert_eq!(inventory.cables, 4096 + 4096 + 4 * 1023 / 2);
    assert_eq!(map(&cluster).level(0, 1023), Level::Spine);
    assert_eq!(
        map(&cluster).path(0, 1024).latency,
        SimDuration::from_nanos(2700 + 900)
    );
}

#[test]
fn planes_that_do_not_divide() {
    let fabric = Fabric::MultiPlaneFatTree(MultiPlaneFatTree {
        in_network_reduction: false,
        planes: 3,
        radix: 64,
        link: None,
        load_balance: 1.0,
        routing: Routing::Adaptive,
        hop: SimDuration::ZERO,
    });
    let (error, _) = refused(|c| c.fabric = fabric);
    assert_eq!(
        error,
        TopologyError::RailsDoNotDivide {
            what: "planes",
            rails: 3,
            nics: 8
        }
    );
}

#[test]
fn planes_that_never_meet() {
    let (error, _) = refused(|c| {
        c.node.scale_up.domain = 2;
        c.fabric = fabrics()["deepseek-mpft"].clone();
    });
    assert_eq!(
        error,
        TopologyError::PlanesNeverMeet {
            planes: 8,
            domain: 2
        }
    );
}

#[test]
fn a_leaf_without_room() {
    let crowded = FatTree {
        nics_per_leaf: Some(40),
        ..fat_tree(2, 64)
    };
    let (error, _) = refused(|c| c.fabric = Fabric::FatTree(crowded));
    assert_eq!(
        error,
        TopologyError::LeafTooSmall {
            radix: 64,
            nics_per_leaf: 40,
            uplinks: 40
        }
    );
    let (error, _) = refused(|c| c.fabric = Fabric::FatTree(fat_tree(2, 1)));
    assert_eq!(
        error,
        TopologyError::LeafTooSmall {
            radix: 1,
            nics_per_leaf: 1,
            uplinks: 1
        }
    );
}

#[test]
fn a_fabric_without_room() {
    let (error, text) = refused(|c| c.gpus = 4096);
    let expected = TopologyError::FabricTooSmall {
        nics: 4096,
        capacity: 2048,
        radix: 64,
        tiers: 2,
    };
    assert_eq!(error, expected);
    assert!(text.contains("holds 2048"), "{text}");
}

/// The quickest route of the graph: as few passes through an NVLink hub as possible, then the
/// least latency, then the fewest links (some have no latency, and a walk back must not circle).
fn quickest(graph: &ClusterGraph, a: u32, b: u32) -> Path {
    const LINK: u128 = 1 << 16;
    const HUB: u128 = 1 << 100;
    let g = graph.graph();
    let cost = |from: NodeIndex, to: NodeIndex, latency: SimDuration| {
        let inside = matches!(g[to], Vertex::Domain(_) | Vertex::Gpu(_));
        let relay = matches!(g[from], Vertex::Gpu(_)) && inside;
        u128::from(latency.as_picos()) * LINK + 1 + if relay { HUB } else { 0 }
    };
    let (start, goal) = (graph.gpu(a), graph.gpu(b));
    let distance = dijkstra(g, start, Some(goal), |e| {
        cost(e.source(), e.target(), e.weight().latency)
    });
    // Walk back along edges that are tight, and keep the narrowest.
    let mut at = goal;
    let mut bandwidth = Bandwidth::from_bytes_per_sec(u64::MAX);
    let mut level = Level::Local;
    while at != start {
        let edge = g
            .edges_directed(at, petgraph::Direction::Incoming)
            .find(|e| {
                let through = cost(e.source(), e.target(), e.weight().latency);
                distance
                    .get(&e.source())
                    .is_some_and(|d| d + through == distance[&at])
            })
            .expect("a tight edge leads here");
        if edge.weight().bandwidth < bandwidth {
            bandwidth = edge.weight().bandwidth;
        }
        level = level.max(match g[edge.source()] {
            Vertex::Gpu(_) | Vertex::Nic(_) => Level::Local,
            Vertex::Domain(_) => Level::NvLink,
            Vertex::Leaf(_) => Level::Leaf,
            Vertex::Spine(_) if matches!(g[at], Vertex::Spine(_)) => Level::Core,
            Vertex::Spine(_) => Level::Spine,
            Vertex::Core(_) => Level::Core,
        });
        at = edge.source();
    }
    let latency = SimDuration::from_picos((distance[&goal] % HUB / LINK) as u64);
    Path {
        level,
        bandwidth,
        latency,
    }
}

fn any_fabric() -> impl Strategy<Value = Fabric> {
    let hop = (0_u64..1000).prop_map(SimDuration::from_nanos);
    let over = prop_oneof![Just(1.0), Just(2.0), Just(7.0)];
    (
        0..5_u32,
        1..=3_u32,
        4_u32..40,
        hop,
        over.clone(),
        over,
        any::<bool>(),
    )
        .prop_map(|(kind, tiers, radix, hop, leaf, spine, slow)| {
            let link = slow.then(|| Bandwidth::from_gigabits_per_sec(200));
            match kind {
                0 => Fabric::FatTree(FatTree {
                    link,
                    leaf_oversubscription: leaf,
                    spine_oversubscription: spine,
                    hop,
                    ..fat_tree(tiers, radix)
                }),
                1 => Fabric::RailOptimized(RailOptimized {
                    in_network_reduction: false,
                    tiers,
                    radix,
                    rails: None,
                    link,
                    leaf_oversubscription: leaf,
                    spine_oversubscription: spine,
                    load_balance: 1.0,
                    routing: Routing::Adaptive,
                    hop,
                }),
                2 => Fabric::RailOnly(RailOnly {
                    in_network_reduction: false,
                    tiers,
                    radix,
                    rails: None,
                    link,
                    leaf_oversubscription: leaf,
                    load_balance: 1.0,
                    routing: Routing::Adaptive,
                    hop,
                }),
                3 => Fabric::DragonflyPlus(DragonflyPlus {
                    radix,
                    nics_per_leaf: None,
                    leaves_per_group: Some(tiers),
                    link,
                    leaf_oversubscription: leaf,
                    global_oversubscription: spine,
                    load_balance: 1.0,
                    routing: Routing::Adaptive,
                    hop,
                }),
                _ => Fabric::MultiPlaneFatTree(MultiPlaneFatTree {
                    in_network_reduction: false,
                    planes: 4,
                    radix,
                    link,
                    load_balance: 1.0,
                    routing: Routing::Adaptive,
                    hop,
                }),
            }
        })
}

/// A cluster that may not fit its fabric.
fn any_cluster() -> impl Strategy<Value = Cluster> {
    let shape = prop_oneof![
        Just((8, 8, 8)),
        Just((8, 4, 8)),
        Just((4, 4, 16)),
        Just((8, 16, 8)),
        Just((8, 8, 2)),
        Just((4, 4, 1))
    ];
    (any_fabric(), 1_u32..40, shape, 0..4_u32).prop_map(|(fabric, nodes, shape, wiring)| {
        let (gpus, nics, domain) = shape;
        let mut cluster = cluster("dgx-h100", gpus * nodes, "ib-two-tier");
        cluster.node.gpus = gpus;
        cluster.node.nic.count = nics;
        cluster.node.scale_up.domain = domain;
        cluster.node.scale_up.wiring = match wiring {
            0 => Wiring::Mesh,
            1 => Wiring::Torus(Torus {
                dims: if domain % 4 == 0 {
                    vec![2, domain / 2]
                } else {
                    vec![1, domain]
                },
                wrap_multiple_of: nodes % 3 + 1,
            }),
            _ => Wiring::Switched,
        };
        cluster.fabric = fabric;
        cluster
    })
}

/// A relay between planes may have several places, of which a search finds the best.
fn relayed_loosely(cluster: &Cluster) -> bool {
    let planes = matches!(
        cluster.fabric,
        Fabric::MultiPlaneFatTree(_) | Fabric::RailOnly(_)
    );
    let scale_up = &cluster.node.scale_up;
    planes && (scale_up.domain > cluster.node.gpus || scale_up.wiring != Wiring::Switched)
}

/// Spines of a Dragonfly+ group may hold unequal numbers of cables to another group, and where switches
/// take no time a way through a third group is as quick as the direct one. Of equally quick paths a
/// search takes the widest; the map promises what every one of them has.
fn unequal_cables(cluster: &Cluster) -> bool {
    matches!(cluster.fabric, Fabric::DragonflyPlus(_))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 9 / 8, failure_persistence: None, ..ProptestConfig::default() })]

    /// The map's arithmetic and a search of the graph tell the same story.
    #[test]
    fn the_map_agrees_with_the_graph(cluster in any_cluster(), pair in any::<(u32, u32)>()) {
        let Ok(map) = ClusterMap::new(&cluster) else { return Ok(()) };
        let graph = ClusterGraph::build(&cluster).expect("the graph agrees");
        let (a, b) = (pair.0 % cluster.gpus, pair.1 % cluster.gpus);
        let path = map.path(a, b);
        prop_assert_eq!(path.level, map.level(a, b));
        prop_assert_eq!(map.level(a, b), map.level(b, a));
        if a == b {
            prop_assert_eq!(path.latency, SimDuration::ZERO);
        } else if path.level == Level::NvLink {
            if cluster.node.scale_up.wiring == Wiring::Switched {
                prop_assert_eq!(path.bandwidth, cluster.node.scale_up.bandwidth);
                prop_assert_eq!(path.latency, cluster.node.scale_up.latency);
            }
        } else if relayed_loosely(&cluster) {
            // Ranks change planes inside their own node. A search may find a node of the same
            // domain on a nearer leaf, and can only be quicker.
            let best = quickest(&graph, a, b);
            prop_assert!(path.latency >= best.latency && path.level >= best.level);
        } else if unequal_cables(&cluster) {
            let best = quickest(&graph, a, b);
            prop_assert_eq!((path.level, path.latency), (best.level, best.latency));
            prop_assert!(path.bandwidth <= best.bandwidth);
        } else {
            prop_assert_eq!(path, quickest(&graph, a, b));
        }
    }
}

/// Ports of every switch fit its radix, on the largest cluster that we promise.
#[test]
fn a_cluster_of_131072_gpus() {
    let cluster = cluster("dgx-h100", 131_072, "rail-optimized-xdr");
    let graph = ClusterGraph::build(&cluster).expect("it fits");
    let rate = cluster.node.nic.rate.bytes_per_sec();
    for index in graph.graph().node_indices() {
        let vertex = graph.graph()[index];
        if matches!(vertex, Vertex::Leaf(_) | Vertex::Spine(_) | Vertex::Core(_)) {
            let ports: u64 = graph
                .graph()
                .edges(index)
                .map(|e| e.weight().bandwidth.bytes_per_sec() / rate)
                .sum();
            assert!(ports <= 144, "{vertex:?} has {ports} ports");
        }
    }
}

#[test]
fn parts_of_several_kinds_hang_on_leaves_of_their_own() {
    let nodes = nodes();
    let part = |name: &str, count: u32| Part {
        node: nodes[name].clone(),
        gpus: nodes[name].gpus * count,
    };
    for (tiers, level) in [(2, Level::Spine), (3, Level::Core)] {
        let fabric = Fabric::FatTree(fat_tree(tiers, 64));
        let parts = vec![part("dgx-h100", 4), part("gb200-nvl72", 1)];
        let mixed = Cluster::of_parts(parts.clone(), fabric.clone());
        let joined = map(&mixed);
        assert_eq!(joined.gpus(), 32 + 72);
        assert_eq!(joined.level(0, 32), level);
        assert_eq!(joined.path(0, 40), joined.path(40, 0));
        assert_eq!(joined.racks().last().map(|rank| rank.end), Some(104));
        for (first, part) in [(0, &parts[0]), (32, &parts[1])] {
            let alone = Cluster::of_parts(vec![part.clone()], fabric.clone());
            let alone = map(&alone);
            for (a, b) in [(0, 1), (0, 9), (3, 31), (7, 8)] {
                assert_eq!(joined.path(first + a, first + b), alone.path(a, b));
            }
            let all: Vec<u32> = (0..part.gpus).collect();
            let moved: Vec<u32> = all.iter().map(|gpu| gpu + first).collect();
            assert_eq!(joined.span(&moved), alone.span(&all));
        }
    }
}

#[test]
fn what_joins_one_kind_only_is_refused() {
    let part = |name: &str, count: u32| Part {
        node: nodes()[name].clone(),
        gpus: nodes()[name].gpus * count,
    };
    let parts = || vec![part("dgx-h100", 4), part("gb200-nvl72", 1)];
    let refused = |fabric: Fabric| ClusterMap::new(&Cluster::of_parts(parts(), fabric)).err();
    let single = refused(Fabric::FatTree(fat_tree(1, 256)));
    assert!(
        matches!(single, Some(TopologyError::NotJoined { .. })),
        "{single:?}"
    );
    let narrow = FatTree {
        spine_radix: Some(2),
        nics_per_leaf: Some(8),
        ..fat_tree(2, 64)
    };
    let small = refused(Fabric::FatTree(narrow));
    assert!(
        matches!(small, Some(TopologyError::FabricTooSmall { .. })),
        "{small:?}"
    );
}

proptest! {
    /// Every GPU has a host; hosts are counted from the first GPU on, hold no more than they may, and end
    /// where their node does.
    #[test]
    fn hosts_lie_within_nodes(
        shapes in prop::collection::vec((1..20u32, 1..20u32, 1..5u32), 1..4),
    ) {
        let mut cluster = cluster("dgx-h100", 8, "rail-optimized");
        let parts = shapes.iter().map(|(in_node, in_host, nodes)| {
            let mut node = cluster.node.clone();
            (node.gpus, node.gpus_per_host) = (*in_node, *in_host);
            Part { node, gpus: in_node * nodes }
        });
        let parts: Vec<Part> = parts.collect();
        cluster.node = parts[0].node.clone();
        cluster.gpus = parts.iter().map(|part| part.gpus).sum();
        if parts.len() > 1 {
            cluster.parts = parts;
        }
        let hosts = cluster.host_of_gpus();
        let mut expected = Vec::new();
        let mut next = 0;
        for (in_node, in_host, nodes) in shapes {
            for _ in 0..nodes {
                let mut left = in_node;
                while left > 0 {
                    let here = left.min(in_host);
                    expected.extend(std::iter::repeat_n(next, here as usize));
                    (left, next) = (left - here, next + 1);
                }
            }
        }
        prop_assert_eq!(hosts, expected);
    }
}
