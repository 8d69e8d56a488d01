//! Every GPU-second is booked to exactly one cause.

use crate::plans::{plain, setups};
use proptest::prelude::*;
use rackflow_plan::{Cause, Fidelity, compile};
use rackflow_simulator::simulate;
use rackflow_topology::{Level, Survey};

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 3 / 8, ..ProptestConfig::default() })]

    #[test]
    fn causes_sum_to_gpus_times_step_time(setup in setups()) {
        let record = simulate(&compile(&setup).expect("the generator makes valid plans"));
        let gpus = u128::from(setup.cluster.gpus);
        prop_assert_eq!(record.total().total_picos(), gpus * u128::from(record.step_time.as_picos()));
        let ranks: u32 = record.classes.iter().map(|class| class.ranks).sum();
        prop_assert_eq!(ranks, setup.cluster.gpus);
    }

    /// No step is over before the wires could have carried what it sends: each rank's port into its domain
    /// and its share of the NICs, and all links of each tier together.
    #[test]
    fn no_step_is_faster_than_its_wires(setup in setups(), full in any::<bool>(), narrow in 0..3_u32) {
        let mut setup = setup;
        setup.fidelity = if full { Fidelity::Full } else { Fidelity::Folded };
        // Links so slow that they bound the step, in two of three.
        let slower = [1.0, 0.05, 0.002][narrow as usize];
        let node = &mut setup.cluster.node;
        node.nic.rate = node.nic.rate.scaled(slower);
        node.scale_up.bandwidth = node.scale_up.bandwidth.scaled(slower);
        let record = simulate(&compile(&setup).expect("the generator makes valid plans"));
        let survey = Survey::new(&setup.cluster).expect("the plan has a cluster");
        let step = record.step_time.as_secs_f64() * (1.0 + 1e-9);
        let [mut leaf_up, mut pod_up] = [0.0; 2];
        for class in &record.classes {
            let sent = class.traffic.total();
            prop_assert!(sent.nvlink as f64 <= step * survey.domain.bytes_per_s as f64, "{sent:?}");
            prop_assert!(sent.nic as f64 <= step * survey.nic_share_bytes_per_s as f64, "{sent:?}");
            leaf_up += f64::from(class.ranks) * sent.leaf_up as f64;
            pod_up += f64::from(class.ranks) * sent.pod_up as f64;
        }
        for tier in &survey.tiers {
            let sent = match tier.level {
                Level::Spine => leaf_up,
                Level::Core => pod_up,
                _ => continue,
            };
            prop_assert!(sent <= step * tier.bytes_per_s as f64, "{} of {tier:?}", sent);
        }
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
