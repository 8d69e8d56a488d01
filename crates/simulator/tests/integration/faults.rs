//! Dead, slow and flapping links, and what each does to a step.

use crate::plans::{cluster, plain};
use proptest::prelude::*;
use rackflow_plan::{Fidelity, Setup, compile};
use rackflow_simulator::{Record, simulate};
use rackflow_topology::{FaultyLink, Flapping, LinkFault, LinkState};
use rackflow_units::SimDuration;

fn run(setup: &Setup) -> Record {
    simulate(&compile(setup).expect("the setup compiles"))
}

/// Gradients over NICs, and nothing to hide them behind.
fn exposed() -> Setup {
    let mut setup = plain(32);
    setup.training.global_batch = 32;
    setup.training.stack.overlap.gradient_reduce = false;
    setup.training.stack.overlap.parameter_gather = false;
    setup
}

fn seconds(setup: &Setup) -> f64 {
    run(setup).step_time.as_secs_f64()
}

fn with(link: FaultyLink, state: LinkState) -> Setup {
    Setup {
        faults: vec![LinkFault { link, state }],
        ..exposed()
    }
}

#[test]
fn a_slow_nic_holds_up_everybody_as_much_as_it_is_slow() {
    let whole = seconds(&exposed());
    let degraded = |part| seconds(&with(FaultyLink::Nic(5), LinkState::Degraded(part)));
    let (three_quarters, half, quarter) = (degraded(0.75), degraded(0.5), degraded(0.25));
    assert!(whole < three_quarters && three_quarters < half && half < quarter);
    // Communication over NICs takes 1/part times as long: differences are in proportion.
    let ratio = (quarter - whole) / (half - whole);
    assert!((2.6..3.4).contains(&ratio), "{ratio}");
    // A link that works at its full rate changes nothing.
    assert_eq!(
        seconds(&with(FaultyLink::Nic(5), LinkState::Degraded(1.0))),
        whole
    );
}

#[test]
fn a_dead_nic_shares_its_neighbours_and_a_dead_rail_is_no_worse_for_a_ring() {
    let half = seconds(&with(FaultyLink::Nic(5), LinkState::Degraded(0.5)));
    let dead = seconds(&with(FaultyLink::Nic(5), LinkState::Down));
    let rail = seconds(&with(FaultyLink::Rail(5), LinkState::Down));
    assert_eq!(dead, half, "two ranks share one NIC");
    assert_eq!(rail, dead, "every node has such a pair");
}

#[test]
fn a_flapping_link_costs_the_time_that_it_is_down() {
    let whole = seconds(&exposed());
    let flapping = |down| {
        let every = SimDuration::from_micros(1_000);
        let down = SimDuration::from_micros(down);
        seconds(&with(
            FaultyLink::Nic(5),
            LinkState::Flapping(Flapping { every, down }),
        ))
    };
    let (little, much) = (flapping(50), flapping(500));
    assert!(whole <= little && little < much, "{whole} {little} {much}");
    // Down half of the time: what is exposed takes about twice as long, and no more than that.
    let dead = seconds(&with(FaultyLink::Nic(5), LinkState::Degraded(0.5)));
    assert!(much - whole < 1.6 * (dead - whole), "{whole} {much} {dead}");
}

#[test]
fn a_leaf_with_fewer_uplinks_slows_what_crosses_it() {
    let mut setup = exposed();
    setup.cluster = cluster("dgx-h100", 32);
    // Four NICs per leaf, so that a ring leaves every leaf.
    let tree = "fat_tree: { tiers: 2, radix: 16, nics_per_leaf: 8 }";
    setup.cluster.fabric = crate::plans::fabric(tree);
    let whole = seconds(&setup);
    let mut leaf = |part| {
        setup.faults = vec![LinkFault {
            link: FaultyLink::LeafUplinks(2),
            state: LinkState::Degraded(part),
        }];
        seconds(&setup)
    };
    assert_eq!(leaf(1.0), whole);
    let (half, quarter) = (leaf(0.5), leaf(0.25));
    assert!(whole < half && half < quarter, "{whole} {half} {quarter}");
}

#[test]
fn a_slow_scale_up_link_slows_tensor_parallelism() {
    let mut setup = plain(8);
    setup.training.parallelism.tensor = 8;
    setup.training.parallelism.data = 1;
    let whole = seconds(&setup);
    setup.faults = vec![LinkFault {
        link: FaultyLink::ScaleUp(3),
        // Small messages are mostly latency: half of the rate would not show.
        state: LinkState::Degraded(0.05),
    }];
    assert!(seconds(&setup) > whole);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 21, failure_persistence: None, ..ProptestConfig::default() })]

    /// Folding splits what a fault tells apart, and nothing changes.
    #[test]
    fn folding_changes_nothing_beside_faults(
        gpu in 0_u32..32,
        part in 0.2..1.0_f64,
        kind in 0..3_u32,
        tensor in prop_oneof![Just(1_u32), Just(2), Just(8)],
    ) {
        let state = match kind {
            0 => LinkState::Degraded(part),
            1 => LinkState::Down,
            _ => LinkState::Flapping(Flapping {
                every: SimDuration::from_micros(3_000),
                down: SimDuration::from_micros((part * 1_000.0) as u64),
            }),
        };
        let mut setup = with(FaultyLink::Nic(gpu), state);
        setup.training.parallelism.tensor = tensor;
        setup.training.parallelism.data = 32 / tensor;
        let folded = run(&setup);
        setup.fidelity = Fidelity::Full;
        let full = run(&setup);
        prop_assert_eq!(folded.step_time, full.step_time);
        prop_assert!(folded.classes.len() < full.classes.len());
        prop_assert_eq!(folded.total().total_picos(), full.total().total_picos());
    }
}
