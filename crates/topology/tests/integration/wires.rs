//! Directed links and the routes over them, against the map and a search of the graph.

use crate::common::{cluster, fabrics};
use crate::{any_cluster, map, quickest, relayed_loosely};
use proptest::prelude::*;
use rackflow_topology::{
    Cluster, ClusterGraph, Fabric, Level, LinkId, Part, Routing, Vertex, Wires,
};
use rackflow_units::{Bandwidth, SimDuration};
use std::collections::{BTreeMap, BTreeSet};

fn hashed(mut cluster: Cluster) -> Cluster {
    match &mut cluster.fabric {
        Fabric::FatTree(f) => f.routing = Routing::Ecmp,
        Fabric::RailOptimized(f) => f.routing = Routing::Ecmp,
        Fabric::MultiPlaneFatTree(f) => f.routing = Routing::Ecmp,
        Fabric::RailOnly(f) => f.routing = Routing::Ecmp,
        Fabric::DragonflyPlus(f) => f.routing = Routing::Ecmp,
    }
    cluster
}

fn wires(cluster: &Cluster) -> Wires {
    Wires::new(cluster, 7).expect("the cluster is sound")
}

/// Latency and highest level of a route that must lead from `a` to `b`.
fn walked(wires: &Wires, route: &[LinkId], a: u32, b: u32) -> (SimDuration, Level) {
    let mut at = a;
    let mut latency = SimDuration::ZERO;
    let mut level = Level::Local;
    for &link in route {
        let [from, to] = wires.end_indices(link);
        assert_eq!(from, at, "links of a route join");
        at = to;
        latency += wires.latency(link);
        level = level.max(wires.level(link));
    }
    assert_eq!(at, b, "a route leads to its end");
    (latency, level)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 3 / 2, failure_persistence: None, ..ProptestConfig::default() })]

    /// Routes join up, are as long as the map says and as short as a search of the graph finds,
    /// whichever way parallel paths are used.
    #[test]
    fn routes_are_shortest_paths(
        cluster in any_cluster(),
        ecmp in any::<bool>(),
        pair in any::<(u32, u32)>(),
        choice in any::<u64>(),
    ) {
        let cluster = if ecmp { hashed(cluster) } else { cluster };
        let Ok(wires) = Wires::new(&cluster, 7) else { return Ok(()) };
        let (a, b) = (pair.0 % cluster.gpus, pair.1 % cluster.gpus);
        let mut route = Vec::new();
        prop_assert!(wires.route(a, b, choice, &mut route));
        let (latency, level) = walked(&wires, &route, a, b);
        let path = map(&cluster).path(a, b);
        prop_assert_eq!((latency, level), (path.latency, path.level));
        if level > Level::NvLink && !relayed_loosely(&cluster) {
            let best = quickest(&ClusterGraph::build(&cluster).expect("as the wires"), a, b);
            prop_assert_eq!((latency, level), (best.latency, best.level));
        }
        let mut again = Vec::new();
        wires.route(a, b, choice, &mut again);
        prop_assert_eq!(&route, &again);
        // By rail, the message may take the way over NVLink, and then never leaves the leaf of its
        // rail for another rail.
        prop_assert!(wires.route_by_rail(a, b, choice, &mut again));
        let (_, by_rail) = walked(&wires, &again, a, b);
        prop_assert!(by_rail <= level.max(Level::NvLink) || relayed_loosely(&cluster));
    }

    /// The links are the graph's edges: the same bandwidth between the same vertices.
    #[test]
    fn links_are_the_edges_of_the_graph(cluster in any_cluster()) {
        let cluster = hashed(cluster);
        let Ok(wires) = Wires::new(&cluster, 7) else { return Ok(()) };
        let graph = ClusterGraph::build(&cluster).expect("as the wires");
        let mut of_wires: BTreeMap<(Vertex, Vertex), u64> = BTreeMap::new();
        for link in (0..wires.links() as u32).map(LinkId) {
            *of_wires.entry(wires.ends(link)).or_default() += wires.bandwidth(link).bytes_per_sec();
        }
        let g = graph.graph();
        let of_graph: BTreeMap<(Vertex, Vertex), u64> = g
            .edge_indices()
            .map(|e| {
                let (from, to) = g.edge_endpoints(e).expect("an edge has ends");
                ((g[from], g[to]), g[e].bandwidth.bytes_per_sec())
            })
            .collect();
        prop_assert_eq!(of_wires, of_graph);
    }
}

#[test]
fn hashed_connections_spread_and_collide() {
    let cluster = hashed(cluster("dgx-h100", 2048, "ib-two-tier"));
    let wires = wires(&cluster);
    assert_eq!(wires.paths(0, 2047), 32);
    assert_eq!((wires.paths(0, 7), wires.paths(0, 8)), (1, 1));
    let mut used = [0; 32];
    let mut route = Vec::new();
    for choice in 0..320 {
        wires.route(0, 2047, choice, &mut route);
        let up = route
            .iter()
            .find_map(|link| match wires.ends(*link) {
                (Vertex::Leaf(_), Vertex::Spine(spine)) => Some(spine),
                _ => None,
            })
            .expect("the route climbs to a spine");
        used[up as usize] += 1;
    }
    // Ten on each of 32 on average: no spine is left out, and they are not even.
    assert!(used.iter().all(|n| *n > 0), "{used:?}");
    assert!(used.iter().max() > used.iter().min(), "{used:?}");
}

#[test]
fn sprayed_tiers_are_one_link_of_their_sum() {
    let cluster = cluster("dgx-h100", 2048, "ib-two-tier");
    let wires = wires(&cluster);
    let mut route = Vec::new();
    wires.route(0, 2047, 1, &mut route);
    let up = route
        .iter()
        .find(|l| wires.level(**l) == Level::Spine)
        .expect("it climbs");
    // 32 uplinks of 400 Gbit/s, of which adaptive routing leaves 0.97.
    assert_eq!(
        wires.bandwidth(*up).bytes_per_sec(),
        32 * 50_000_000_000 * 97 / 100
    );
    assert_eq!(wires.paths(0, 2047), 32);
}

#[test]
fn a_rail_relay_keeps_messages_on_their_leaf() {
    let cluster = cluster("dgx-h100", 256, "rail-optimized");
    let wires = wires(&cluster);
    let mut route = Vec::new();
    wires.route(0, 8 + 5, 0, &mut route);
    assert_eq!(walked(&wires, &route, 0, 13).1, Level::Spine);
    wires.route_by_rail(0, 8 + 5, 0, &mut route);
    assert_eq!(walked(&wires, &route, 0, 13).1, Level::Leaf);
    assert_eq!(wires.ends(route[1]).1, Vertex::Gpu(5));
    assert_eq!(wires.rail_neighbour(0, 13), Some(5));
}

#[test]
fn pairs_of_groups_are_spread_over_their_spines() {
    let mut cluster = cluster("dgx-h100", 4096, "ib-two-tier");
    cluster.fabric = crate::dragonfly(64, 32, 1.0);
    let wires = wires(&cluster);
    // 341 direct cables between two groups; 32 uplinks of a leaf, one per spine.
    assert_eq!(wires.paths(0, 4095), 341);
    let mut route = Vec::new();
    let mut spines = std::collections::BTreeSet::new();
    for choice in 0..2000 {
        assert!(wires.route(0, 4095, choice, &mut route));
        walked(&wires, &route, 0, 4095);
        spines.insert(wires.ends(route[2]).1);
    }
    assert_eq!(spines.len(), 32);
}

#[test]
fn every_fabric_of_the_catalogue_compiles() {
    for name in fabrics().keys() {
        let cluster = cluster("dgx-h100", 512, name);
        let wires = wires(&cluster);
        let mut route = Vec::new();
        assert!(wires.route(3, 509, 0, &mut route), "{name}");
        walked(&wires, &route, 3, 509);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 9 / 8, failure_persistence: None, ..ProptestConfig::default() })]

    /// A reduction in the switches is a tree: every GPU climbs to the same switch, over links of
    /// which each is taken once, and what comes down takes the same cables the other way.
    #[test]
    fn reductions_are_trees(
        cluster in any_cluster(),
        ecmp in any::<bool>(),
        picks in prop::collection::btree_set(any::<u32>(), 1..40),
        choice in any::<u64>(),
    ) {
        let cluster = if ecmp { hashed(cluster) } else { cluster };
        let Ok(wires) = Wires::new(&cluster, 7) else { return Ok(()) };
        let map = map(&cluster);
        let gpus: BTreeSet<u32> = picks.iter().map(|pick| pick % cluster.gpus).collect();
        let gpus: Vec<u32> = gpus.into_iter().collect();
        let planes = matches!(cluster.fabric, Fabric::MultiPlaneFatTree(_) | Fabric::RailOnly(_));
        let same_plane = !planes || gpus.iter().all(|gpu| map.place(*gpu).rail == map.place(gpus[0]).rail);
        let groups = matches!(cluster.fabric, Fabric::DragonflyPlus(_));
        let one_pod = gpus.iter().all(|gpu| map.pod(*gpu) == map.pod(gpus[0]));
        let mut flows: Vec<Vec<LinkId>> = Vec::new();
        let joined = wires.reduction_tree(&gpus, choice, |route| flows.push(route.to_vec()));
        prop_assert_eq!(joined, same_plane && (one_pod || !groups));
        if !joined {
            prop_assert!(flows.is_empty());
            return Ok(());
        }
        let (up, down) = flows.split_at(flows.len() / 2);
        let ends = |flow: &[LinkId]| (wires.end_indices(flow[0])[0], wires.end_indices(flow[flow.len() - 1])[1]);
        let next: BTreeMap<u32, u32> = up.iter().map(|flow| ends(flow)).collect();
        prop_assert_eq!(next.len(), up.len(), "nobody sends up twice");
        let top = |gpu: u32| {
            let mut at = gpu;
            for _ in 0..4 {
                at = next.get(&at).copied().unwrap_or(at);
            }
            at
        };
        for gpu in &gpus {
            prop_assert_eq!(top(*gpu), top(gpus[0]));
        }
        let back: BTreeMap<u32, u32> = down.iter().map(|flow| { let (a, b) = ends(flow); (b, a) }).collect();
        prop_assert_eq!(next, back);
        for flow in &flows {
            for pair in flow.windows(2) {
                prop_assert_eq!(wires.end_indices(pair[0])[1], wires.end_indices(pair[1])[0]);
            }
        }
    }
}

/// Several kinds side by side: every route is a walk from sender to receiver, and what leaves a part
/// climbs to the common switches and comes down again.
#[test]
fn parts_of_several_kinds_are_joined() {
    for (fabric, hops) in [
        ("ib-two-tier", 6),
        ("ib-three-tier", 8),
        ("rail-optimized", 6),
    ] {
        let mut cluster = cluster("dgx-h100", 64, fabric);
        let mut other = cluster.node.clone();
        other.name = "other".to_owned();
        other.nic.rate = Bandwidth::from_bytes_per_sec(25_000_000_000);
        cluster.parts = vec![
            Part {
                node: cluster.node.clone(),
                gpus: 32,
            },
            Part {
                node: other,
                gpus: 32,
            },
        ];
        for routing in [Routing::Ecmp, Routing::Adaptive] {
            let wires = Wires::routed(&cluster, routing, 7).expect("the parts are joined");
            assert_eq!(wires.gpus(), 64);
            let mut route = Vec::new();
            for from in 0..64 {
                for to in (0..64).filter(|to| *to != from) {
                    for by_rail in [false, true] {
                        let reached = if by_rail {
                            wires.route_by_rail(from, to, 3, &mut route)
                        } else {
                            wires.route(from, to, 3, &mut route)
                        };
                        assert!(reached);
                        let ends: Vec<_> = route.iter().map(|link| wires.ends(*link)).collect();
                        assert_eq!(ends[0].0, Vertex::Gpu(from));
                        assert_eq!(ends[ends.len() - 1].1, Vertex::Gpu(to));
                        if from / 32 == to / 32 {
                            assert!(
                                ends.windows(2).all(|pair| pair[0].1 == pair[1].0),
                                "{ends:?}"
                            );
                            continue;
                        }
                        assert_eq!(route.len(), hops, "{ends:?}");
                        // The switch in the middle is common: each part has its own links to it.
                        let broken = ends
                            .windows(2)
                            .filter(|pair| pair[0].1 != pair[1].0)
                            .count();
                        assert!(broken <= 1, "{ends:?}");
                        let rates: Vec<u64> = route
                            .iter()
                            .map(|link| wires.bandwidth(*link).bytes_per_sec())
                            .collect();
                        assert_eq!(rates.iter().min(), Some(&25_000_000_000), "{ends:?}");
                    }
                }
            }
        }
    }
}
