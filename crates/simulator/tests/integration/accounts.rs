//! Every GPU-second is booked to exactly one cause.

use crate::plans::{plain, setups};
use proptest::prelude::*;
use rackflow_plan::{Cause, compile};
use rackflow_simulator::simulate;

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn causes_sum_to_gpus_times_step_time(setup in setups()) {
        let record = simulate(&compile(&setup).expect("the generator makes valid plans"));
        let gpus = u128::from(setup.cluster.gpus);
        prop_assert_eq!(record.total().total_picos(), gpus * u128::from(record.step_time.as_picos()));
        let ranks: u32 = record.classes.iter().map(|class| class.ranks).sum();
        prop_assert_eq!(ranks, setup.cluster.gpus);
    }

    /// What the ranks booked as useful math is the model's definition, not a byproduct.
    #[test]
    fn useful_math_is_the_models_flops(setup in setups()) {
        let record = simulate(&compile(&setup).expect("the generator makes valid plans"));
        let useful = record.total().seconds(Cause::UsefulMath) * record.facts.peak_native.flops_per_sec();
        // Unfused attention computes masked scores as well, and calls them useful nowhere else.
        let relative = useful / record.facts.model_flops_causal;
        prop_assert!((0.97..1.06).contains(&relative), "{relative}");
    }
}

#[test]
fn one_gpu_alone_waits_for_nobody() {
    let record = simulate(&compile(&plain(1)).expect("a valid plan"));
    let total = record.total();
    for cause in Cause::all() {
        if matches!(
            cause,
            Cause::Exposed(..) | Cause::Bubble | Cause::Imbalance | Cause::Contention
        ) {
            assert_eq!(total.picos(cause), 0, "{cause:?}");
        }
    }
}
