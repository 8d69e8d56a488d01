//! Jobs beside each other on one fabric.

use crate::plans::{cluster, fabric, plain};
use rackflow_plan::{Fidelity, Plan, Seats, Setup, compile};
use rackflow_simulator::{JobRecord, simulate, simulate_jobs};
use rackflow_topology::{Cluster, ClusterMap};

/// Four leaves of four nodes each, 4:1 above the leaf.
fn oversubscribed() -> Cluster {
    Cluster {
        fabric: fabric(
            "fat_tree: { tiers: 2, radix: 64, nics_per_leaf: 32, leaf_oversubscription: 4 }",
        ),
        ..cluster("dgx-h100", 128)
    }
}

/// A job of 64 GPUs on whole nodes, its gradients exposed.
fn job(host: &Cluster, nodes: &[u32]) -> Setup {
    let mut setup = plain(64);
    setup.training.global_batch = 64;
    setup.training.stack.overlap.gradient_reduce = false;
    setup.training.stack.overlap.parameter_gather = false;
    setup.cluster.fabric = host.fabric.clone();
    setup.seats = Some(Seats {
        cluster: host.clone(),
        gpus: nodes
            .iter()
            .flat_map(|node| node * 8..(node + 1) * 8)
            .collect(),
    });
    setup
}

fn plans(setups: &[Setup]) -> Vec<Plan> {
    setups
        .iter()
        .map(|setup| compile(setup).expect("the job compiles"))
        .collect()
}

fn seconds(jobs: &[JobRecord]) -> Vec<f64> {
    jobs.iter().map(|job| job.step_time.as_secs_f64()).collect()
}

const FIRST_HALF: [u32; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
const SECOND_HALF: [u32; 8] = [8, 9, 10, 11, 12, 13, 14, 15];
const EVEN: [u32; 8] = [0, 2, 4, 6, 8, 10, 12, 14];
const ODD: [u32; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

#[test]
fn jobs_on_leaves_of_their_own_do_not_slow_each_other() {
    let host = oversubscribed();
    let setups = [job(&host, &FIRST_HALF), job(&host, &SECOND_HALF)];
    let together = simulate_jobs(&plans(&setups));
    for (setup, beside) in setups.iter().zip(&together) {
        let alone = simulate_jobs(&plans(std::slice::from_ref(setup)));
        assert_eq!(beside.step_time, alone[0].step_time);
        assert_eq!(beside.step_time_range[0], beside.step_time_range[1]);
    }
}

#[test]
fn jobs_on_shared_leaves_slow_each_other() {
    let host = oversubscribed();
    let setups = [job(&host, &EVEN), job(&host, &ODD)];
    let together = seconds(&simulate_jobs(&plans(&setups)));
    let alone: Vec<f64> = setups
        .iter()
        .flat_map(|setup| seconds(&simulate_jobs(&plans(std::slice::from_ref(setup)))))
        .collect();
    assert_eq!(alone[0], alone[1], "the seats are alike");
    let slowdown: f64 = together.iter().zip(&alone).map(|(t, a)| t / a).sum::<f64>() / 2.0;
    assert!(slowdown > 1.02, "{together:?} {alone:?}");
    // Sharing at most halves a rate: a step takes no more than twice as long.
    assert!(
        together
            .iter()
            .zip(&alone)
            .all(|(t, a)| (1.0..2.0).contains(&(t / a)))
    );
}

#[test]
fn one_job_on_a_fabric_that_does_not_block_is_the_plain_run() {
    let mut host = cluster("dgx-h100", 64);
    host.fabric = fabric("fat_tree: { tiers: 2, radix: 64, load_balance: 0.9 }");
    let mut setup = plain(64);
    setup.cluster = host.clone();
    let plain = simulate(&compile(&setup).expect("it compiles"));
    setup.seats = Some(Seats {
        cluster: host,
        gpus: (0..64).collect(),
    });
    let job = simulate_jobs(&plans(&[setup]));
    assert_eq!(job[0].step_time, plain.step_time);
    assert_eq!(
        job[0].record.total().total_picos(),
        plain.total().total_picos()
    );
}

/// Where all ranks send alike, flows that meet at the tier come out at what the average says.
#[test]
fn a_job_that_fills_an_oversubscribed_fabric_takes_what_the_average_says() {
    let host = oversubscribed();
    let mut setup = plain(128);
    setup.training.global_batch = 128;
    setup.training.stack.overlap.gradient_reduce = false;
    setup.training.stack.overlap.parameter_gather = false;
    setup.cluster = host.clone();
    let averaged = simulate(&compile(&setup).expect("it compiles"))
        .step_time
        .as_secs_f64();
    setup.seats = Some(Seats {
        cluster: host,
        gpus: (0..128).collect(),
    });
    let emergent = seconds(&simulate_jobs(&plans(&[setup])))[0];
    assert!(
        (emergent / averaged - 1.0).abs() < 0.05,
        "{emergent} {averaged}"
    );
}

#[test]
fn folded_jobs_run_as_full_ones() {
    let host = oversubscribed();
    let mut setups = [job(&host, &EVEN), job(&host, &ODD)];
    let folded = seconds(&simulate_jobs(&plans(&setups)));
    for setup in &mut setups {
        setup.fidelity = Fidelity::Full;
    }
    let full = seconds(&simulate_jobs(&plans(&setups)));
    assert_eq!(folded, full);
}

/// What crosses a leaf's uplinks never exceeds them: over a step the bytes that leave are at most
/// what the uplinks carry in that time.
#[test]
fn uplinks_carry_no_more_than_they_can() {
    let host = oversubscribed();
    let map = ClusterMap::new(&host).expect("it is sound");
    let setups = [job(&host, &EVEN), job(&host, &ODD)];
    let plans = plans(&setups);
    let together = simulate_jobs(&plans);
    // Gradients and parameters of a ring over 64 ranks: each NIC on a ring of 8 nodes over 4 leaves.
    let crossing: f64 = plans
        .iter()
        .map(|plan| {
            let per_step: f64 = plan.programs[0]
                .tasks
                .iter()
                .filter_map(|task| match task.work {
                    rackflow_plan::Work::Collective(slot, transfer) => {
                        let class = plan.spans.classes[slot as usize].first()?;
                        let demand = &plan.demands[transfer.0 as usize][*class as usize];
                        Some(demand.wire_bytes_nic.as_f64() * f64::from(demand.over_leaf) / 1e6)
                    }
                    _ => None,
                })
                .sum();
            // 16 ranks of each job on a leaf.
            per_step * 16.0
        })
        .sum();
    let slowest = together
        .iter()
        .map(|job| job.step_time.as_secs_f64())
        .fold(0.0, f64::max);
    assert!(crossing > 0.0);
    assert!(crossing / map.leaf_capacity() < slowest, "{crossing}");
}
