//! Ranks that cannot differ are simulated once, and nobody can tell.

use crate::plans::{setups, small_switches};
use proptest::prelude::*;
use rackflow_plan::{Fidelity, Setup, compile};
use rackflow_simulator::{Record, simulate, simulate_in_islands, simulate_on_links};
use rackflow_topology::{Fabric, Routing};

fn simulated(setup: &Setup, fidelity: Fidelity) -> Record {
    let setup = Setup {
        fidelity,
        ..setup.clone()
    };
    simulate(&compile(&setup).expect("the generator makes valid plans"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 3 / 8, ..ProptestConfig::default() })]

    /// Step time, total accounts and the accounts of every single GPU are equal to the picosecond.
    #[test]
    fn folded_equals_full(setup in setups()) {
        let folded = simulated(&setup, Fidelity::Folded);
        let full = simulated(&setup, Fidelity::Full);
        prop_assert_eq!(folded.step_time, full.step_time);
        prop_assert_eq!(folded.total(), full.total());
        for (gpu, (a, b)) in folded.class_of_gpu.iter().zip(&full.class_of_gpu).enumerate() {
            let (a, b) = (&folded.classes[*a as usize], &full.classes[*b as usize]);
            prop_assert_eq!(&a.accounts, &b.accounts, "GPU {}", gpu);
            prop_assert_eq!(a.stage, b.stage);
        }
        prop_assert!(folded.engine.entities <= full.engine.entities);
    }

    /// The order in which islands are simulated changes no result. How many events an instant takes may
    /// differ: an end that is moved and moved back within one is an event more.
    #[test]
    fn islands_equal_the_whole(setup in setups(), full in any::<bool>()) {
        let fidelity = if full { Fidelity::Full } else { Fidelity::Folded };
        let plan = compile(&Setup { fidelity, ..setup }).expect("the generator makes valid plans");
        let (mut islands, whole) = (simulate_in_islands(&plan), simulate(&plan));
        islands.engine.events = whole.engine.events;
        prop_assert_eq!(islands, whole);
    }

    /// A fabric as wide as all that can be sent at once leaves no trace: with every flow on the real
    /// links the record is that of ports alone, folded or not.
    #[test]
    fn links_that_are_wide_enough_leave_no_trace(setup in setups(), full in any::<bool>()) {
        let mut setup = setup;
        setup.cluster.fabric = small_switches(1.0, Routing::Adaptive);
        if let Fabric::FatTree(tree) = &mut setup.cluster.fabric {
            tree.load_balance = 1.0;
        }
        setup.fidelity = if full { Fidelity::Full } else { Fidelity::Folded };
        let plan = compile(&setup).expect("the generator makes valid plans");
        prop_assert!(!plan.on_fabric);
        let (ports, links) = (simulate(&plan), simulate_on_links(&plan));
        prop_assert_eq!(ports.step_time, links.step_time);
        prop_assert_eq!(ports.total(), links.total());
    }

    /// The same input gives the same record.
    #[test]
    fn same_input_same_record(setup in setups()) {
        let once = simulated(&setup, Fidelity::Folded);
        let again = simulated(&setup, Fidelity::Folded);
        prop_assert_eq!(once, again);
    }
}
