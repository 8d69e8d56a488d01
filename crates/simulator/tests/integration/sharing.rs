//! Flows of a training step on the links of the fabric: hashes that collide, narrow tiers, placement.

use crate::plans::{cluster, fabric, plain};
use rackflow_plan::{Fidelity, Plan, Seats, Setup, compile};
use rackflow_simulator::{simulate, simulate_jobs};
use rackflow_topology::Fabric;
use rackflow_units::SimDuration;

/// Gradients of 64 GPUs over NICs, and nothing to hide them behind.
fn exposed(wired: Fabric) -> Setup {
    let mut setup = plain(64);
    setup.cluster = cluster("dgx-h100", 64);
    setup.cluster.fabric = wired;
    setup.training.global_batch = 64;
    setup.training.stack.overlap.gradient_reduce = false;
    setup.training.stack.overlap.parameter_gather = false;
    setup
}

fn plan(setup: &Setup) -> Plan {
    compile(setup).expect("the setup compiles")
}

fn step(setup: &Setup) -> SimDuration {
    simulate(&plan(setup)).step_time
}

/// One node on each leaf, as many cables up as down: every hop of a ring climbs.
const HASHED: &str = "fat_tree: { tiers: 2, radix: 16, nics_per_leaf: 8, routing: ecmp }";
const SPRAYED: &str = "fat_tree: { tiers: 2, radix: 16, nics_per_leaf: 8, load_balance: 1.0 }";

fn seeds(wired: &str) -> Vec<SimDuration> {
    let mut setup = exposed(fabric(wired));
    (0..6)
        .map(|seed| {
            setup.seed = seed;
            step(&setup)
        })
        .collect()
}

#[test]
fn hashed_connections_collide_as_the_seed_has_it_and_spraying_avoids_it() {
    let hashed = seeds(HASHED);
    let sprayed = seeds(SPRAYED);
    assert!(
        sprayed.windows(2).all(|pair| pair[0] == pair[1]),
        "nothing is drawn: {sprayed:?}"
    );
    assert!(
        hashed.iter().all(|time| *time > sprayed[0]),
        "{hashed:?} {sprayed:?}"
    );
    let (fastest, slowest) = (hashed.iter().min(), hashed.iter().max());
    assert_ne!(fastest, slowest, "seeds collide differently: {hashed:?}");
    // Two of eight connections on one cable is the least that a collision costs the exposed part:
    // it takes twice as long. Eight on one would be eight times.
    let whole = sprayed[0].as_secs_f64();
    let cost = |time: &SimDuration| time.as_secs_f64() / whole;
    assert!(
        hashed.iter().all(|time| (1.01..8.0).contains(&cost(time))),
        "{hashed:?} {whole}"
    );
}

/// On rails the ring of each column keeps to one leaf, where nothing is hashed.
#[test]
fn rail_aligned_rings_meet_no_hash() {
    let rails = seeds("rail_optimized: { tiers: 2, radix: 16, routing: ecmp }");
    assert!(rails.windows(2).all(|pair| pair[0] == pair[1]), "{rails:?}");
    let setup = exposed(fabric(
        "rail_optimized: { tiers: 2, radix: 16, routing: ecmp }",
    ));
    assert!(!plan(&setup).on_fabric);
}

/// An oversubscribed tier holds back what crosses it and nothing else: a ring of whole nodes with
/// four of them to a leaf crosses once where a scattered one crosses four times.
#[test]
fn packed_rings_cross_an_oversubscribed_tier_less_often_than_scattered_ones() {
    let mut host = cluster("dgx-h100", 128);
    host.fabric =
        fabric("fat_tree: { tiers: 2, radix: 64, nics_per_leaf: 32, leaf_oversubscription: 4 }");
    let on = |nodes: [u32; 8]| {
        let mut setup = exposed(host.fabric.clone());
        setup.seats = Some(Seats {
            cluster: host.clone(),
            gpus: nodes
                .iter()
                .flat_map(|node| node * 8..(node + 1) * 8)
                .collect(),
        });
        simulate_jobs(&[plan(&setup)])[0].step_time
    };
    let packed = on([0, 1, 2, 3, 4, 5, 6, 7]);
    let striped = on([0, 1, 4, 5, 8, 9, 12, 13]);
    let single = {
        let mut setup = exposed(fabric(
            "fat_tree: { tiers: 2, radix: 64, load_balance: 1.0 }",
        ));
        setup.seed = 0;
        step(&setup)
    };
    // The eight NICs of a node share the uplinks of the leaf, which carry eight NICs.
    assert_eq!(packed, single, "eight flows fit eight cables");
    assert_eq!(
        striped, packed,
        "a ring by place leaves every leaf once either way"
    );
    let mut narrow = host.clone();
    narrow.fabric =
        fabric("fat_tree: { tiers: 2, radix: 64, nics_per_leaf: 32, leaf_oversubscription: 8 }");
    let mut setup = exposed(narrow.fabric.clone());
    setup.seats = Some(Seats {
        cluster: narrow,
        gpus: (0..64).collect(),
    });
    let held = simulate_jobs(&[plan(&setup)])[0].step_time;
    assert!(
        held > packed,
        "four cables hold eight flows back: {held:?} {packed:?}"
    );
}

/// A single workload is laid out on the links wherever its own flows ask too much of one.
#[test]
fn a_plan_is_on_the_fabric_where_its_flows_may_be_held_back() {
    let on = |wired: &str| plan(&exposed(fabric(wired))).on_fabric;
    assert!(!on("fat_tree: { tiers: 2, radix: 64 }"));
    assert!(!on(SPRAYED));
    assert!(on(HASHED));
    assert!(on(
        "fat_tree: { tiers: 2, radix: 16, nics_per_leaf: 8, leaf_oversubscription: 2 }"
    ));
    // Three nodes of one leaf: two flows cross for every four that could.
    assert!(!on(
        "fat_tree: { tiers: 2, radix: 64, nics_per_leaf: 32, leaf_oversubscription: 4 }"
    ));
}

/// Hashed, oversubscribed and shared: ranks that cannot differ still stand for each other.
#[test]
fn folding_on_the_fabric_changes_nothing() {
    for wired in [
        HASHED,
        "fat_tree: { tiers: 2, radix: 16, nics_per_leaf: 8, leaf_oversubscription: 2 }",
        "fat_tree: { tiers: 3, radix: 16, nics_per_leaf: 8, leaf_oversubscription: 2, routing: ecmp }",
    ] {
        let mut setup = exposed(fabric(wired));
        setup.training.parallelism.tensor = 2;
        setup.training.parallelism.pipeline = 2;
        setup.training.parallelism.data = 16;
        let folded = simulate(&plan(&setup));
        setup.fidelity = Fidelity::Full;
        let full = simulate(&plan(&setup));
        assert_eq!(folded.step_time, full.step_time, "{wired}");
        assert_eq!(folded.total(), full.total(), "{wired}");
        assert!(
            folded.classes.len() < full.classes.len() || wired.contains("ecmp"),
            "{wired}"
        );
    }
}
