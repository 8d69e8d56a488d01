//! Other ways to use the same GPUs for the same work.

use super::FleetSetup;
use rackflow_workload::Role;

/// More than this nobody reads.
const MOST: usize = 12;

/// One way to use the GPUs.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// In a few words: "2 x TP 4", "prefill 3 x 32 GPUs, decode 1 x 144 GPUs".
    pub name: String,
    /// The fleet.
    pub setup: FleetSetup,
}

/// The scenario's own way first, then its neighbours: other tensor-parallel degrees where one pool
/// does everything and attention has one group; other numbers of replicas where prefill and decode
/// share one cluster.
pub fn candidates(setup: &FleetSetup) -> Vec<Candidate> {
    let mut all = vec![candidate(setup.clone())];
    if setup.clusters.len() == 1 {
        match setup.pools.as_slice() {
            [pool] if pool.role == Role::Both => degrees(setup, &mut all),
            [_, _] => splits(setup, &mut all),
            _ => {}
        }
    }
    all
}

fn candidate(setup: FleetSetup) -> Candidate {
    let parts: Vec<String> = setup
        .pools
        .iter()
        .map(|pool| {
            let p = &pool.deployment.parallelism;
            let mut degrees = vec![format!("TP {}", p.tensor)];
            for (name, degree) in [("DP", p.data), ("EP", p.expert), ("PP", p.pipeline)] {
                if degree > 1 {
                    degrees.push(format!("{name} {degree}"));
                }
            }
            let role = match pool.role {
                Role::Both => String::new(),
                role => format!("{} ", role.key()),
            };
            format!("{role}{} x {}", pool.replicas, degrees.join(" "))
        })
        .collect();
    Candidate {
        name: parts.join(", "),
        setup,
    }
}

/// Every power of two of tensor parallelism inside an NVLink domain.
fn degrees(setup: &FleetSetup, all: &mut Vec<Candidate>) {
    let cluster = &setup.clusters[0];
    let pool = &setup.pools[0];
    let own = pool.deployment.parallelism;
    if own.data > 1 || own.pipeline > 1 {
        return;
    }
    let most = cluster.node.scale_up.domain.min(cluster.gpus);
    let mut tensor = 1;
    while tensor <= most && all.len() < MOST {
        if tensor != own.tensor && cluster.gpus >= tensor {
            let mut other = setup.clone();
            let pool = &mut other.pools[0];
            pool.deployment.parallelism.tensor = tensor;
            if own.expert > 1 {
                pool.deployment.parallelism.expert = tensor;
            }
            pool.replicas = cluster.gpus / tensor;
            all.push(candidate(other));
        }
        tensor *= 2;
    }
}

/// Every number of prefill replicas, with as many decode replicas as then fit.
fn splits(setup: &FleetSetup, all: &mut Vec<Candidate>) {
    let gpus = setup.clusters[0].gpus;
    let [prefill, decode] = [0, 1].map(|pool| setup.pools[pool].deployment.parallelism.gpus());
    for replicas in 1..=gpus / prefill {
        let left = gpus - replicas * prefill;
        let others = left / decode;
        let own = replicas == setup.pools[0].replicas && others == setup.pools[1].replicas;
        if others == 0 || own || all.len() >= MOST {
            continue;
        }
        let mut other = setup.clone();
        other.pools[0].replicas = replicas;
        other.pools[1].replicas = others;
        other.pools[1].first_gpu = other.pools[0].first_gpu + replicas * prefill;
        all.push(candidate(other));
    }
}
