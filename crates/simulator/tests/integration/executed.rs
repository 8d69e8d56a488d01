//! One simulation that is watched in several ways.

use crate::plans::setups;
use proptest::prelude::*;
use rackflow_plan::compile;
use rackflow_simulator::{simulate, simulate_executed_each, simulate_traced_each};

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 8, ..ProptestConfig::default() })]

    /// What a run shows of some ranks and of all is what runs for each alone would show.
    #[test]
    fn a_run_shows_the_same_however_much_of_it_is_watched(setup in setups(), rank in any::<prop::sample::Index>()) {
        let plan = compile(&setup).expect("the generator makes valid plans");
        let last = plan.placement.ranks() - 1;
        let some = [rank.index(last as usize + 1) as u32, 0, last];
        let (record, traces) = simulate_traced_each(&plan, [&some[..], &some[..1]]);
        prop_assert_eq!(&record, &simulate(&plan));
        let (of_all, [], alone) = simulate_executed_each(&plan, []);
        let (of_both, both, execution) = simulate_executed_each(&plan, [&some[..], &some[..1]]);
        prop_assert_eq!(&record, &of_all);
        prop_assert_eq!(&record, &of_both);
        prop_assert_eq!(&traces, &both);
        prop_assert_eq!(&alone, &execution);
    }
}
