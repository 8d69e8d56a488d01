//! A fleet: pools of equal replicas on their GPUs, and what is asked of them.

use super::{Instance, ServingError};
use crate::crossing::may_block;
use crate::setup::{Seats, Straggler};
use rackflow_topology::{Cluster, ClusterMap, LinkFault};
use rackflow_units::Bytes;
use rackflow_workload::serving::Deployment;
use rackflow_workload::{
    Decoder, EngineConfig, KvTier, KvTransfer, RequestPlan, Role, Router, Slo,
};

/// Equal replicas, one after the other on consecutive GPUs.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolSetup {
    /// What they do.
    pub role: Role,
    /// Which cluster of the fleet they are on.
    pub cluster: usize,
    /// First GPU, counted over all clusters.
    pub first_gpu: u32,
    /// How many.
    pub replicas: u32,
    /// What each is.
    pub deployment: Deployment,
    /// Limits and habits of each.
    pub engine: EngineConfig,
}

impl PoolSetup {
    /// Activations are kept for the largest step of one attention group.
    pub fn fit_activations(&mut self) {
        let groups = u64::from(self.deployment.parallelism.data.max(1));
        let tokens = u64::from(self.engine.max_num_batched_tokens);
        self.deployment.max_batched_tokens = tokens.div_ceil(groups);
    }
}

/// A serving scenario as meant.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetSetup {
    /// Name of the scenario, for the report.
    pub name: String,
    /// The hardware; one cluster, or one for each pool.
    pub clusters: Vec<Cluster>,
    /// One pool that does everything, or prefill and decode.
    pub pools: Vec<PoolSetup>,
    /// What is asked.
    pub requests: RequestPlan,
    /// How answers are produced.
    pub decoder: Decoder,
    /// How a request finds its replica.
    pub router: Router,
    /// How caches move between pools.
    pub transfer: KvTransfer,
    /// Tiers of KV cache below HBM, the nearest first.
    pub store: Vec<KvTier>,
    /// What requests should not exceed.
    pub slo: Slo,
    /// Where its GPUs sit, if its one cluster is a part of a larger one; else GPU i is GPU i.
    pub seats: Option<Seats>,
    /// GPUs whose kernels take longer; a replica is as slow as its slowest.
    pub stragglers: Vec<Straggler>,
    /// Dead, slow and flapping links of its one cluster, or of the larger one.
    pub faults: Vec<LinkFault>,
    /// What the sources do not say.
    pub assumed: Vec<String>,
    /// Root of all random streams.
    pub seed: u64,
}

impl FleetSetup {
    /// The cluster that the GPUs sit in, with whatever else is there; `None` where pools are of
    /// different hardware.
    pub fn host(&self) -> Option<&Cluster> {
        match (&self.seats, self.clusters.as_slice()) {
            (Some(seats), _) => Some(&seats.cluster),
            (None, [cluster]) => Some(cluster),
            _ => None,
        }
    }

    /// A GPU, counted over [`FleetSetup::host`].
    pub fn gpu_of(&self, gpu: u32) -> u32 {
        self.seats
            .as_ref()
            .map_or(gpu, |seats| seats.gpus[gpu as usize])
    }
}

/// A fleet whose replicas are compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetPlan {
    /// What it was compiled from.
    pub setup: FleetSetup,
    /// One replica of each pool.
    pub instances: Vec<Instance>,
    /// Where GPUs sit, by cluster; that of the larger one where the fleet is a part of it.
    pub maps: Vec<ClusterMap>,
    /// What goes over NICs runs as flows over the links above the leaves, because those can hold it back.
    /// Otherwise what those tiers cost is in the price of each step.
    pub on_fabric: bool,
}

/// Why a fleet has no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FleetError {
    /// A replica cannot be compiled.
    #[error("{error}")]
    Replica {
        /// Of which pool.
        pool: usize,
        /// Why.
        error: ServingError,
    },
    /// The cache is too small for any request.
    #[error(
        "{cache} on each GPU remain for the cache, which holds {tokens} tokens: too few for one request"
    )]
    NoCache {
        /// Of which pool.
        pool: usize,
        /// What remains on one GPU.
        cache: Bytes,
        /// What the replica holds.
        tokens: u64,
    },
}

impl FleetError {
    /// The pool that it is about.
    pub fn pool(&self) -> usize {
        match self {
            Self::Replica { pool, .. } | Self::NoCache { pool, .. } => *pool,
        }
    }
}

/// Compiles one replica of each pool, on the first GPUs of the pool.
///
/// # Errors
/// When a replica does not fit its GPUs.
pub fn compile_fleet(setup: FleetSetup) -> Result<FleetPlan, FleetError> {
    let mut maps = Vec::new();
    for (index, cluster) in setup.clusters.iter().enumerate() {
        let map = ClusterMap::new(setup.seats.as_ref().map_or(cluster, |seats| &seats.cluster))
            .map_err(|error| FleetError::Replica {
                pool: setup
                    .pools
                    .iter()
                    .position(|pool| pool.cluster == index)
                    .unwrap_or(0),
                error: error.into(),
            })?;
        maps.push(map);
    }
    let host = setup.host();
    let on_fabric = host.is_some_and(|host| may_block(host, &setup.faults, &maps[0]));
    let mut instances = Vec::new();
    for (index, pool) in setup.pools.iter().enumerate() {
        let before: u32 = setup.clusters[..pool.cluster]
            .iter()
            .map(|cluster| cluster.gpus)
            .sum();
        let first = pool.first_gpu - before;
        let gpus: Vec<u32> = (first..first + pool.deployment.parallelism.gpus())
            .map(|gpu| setup.gpu_of(gpu))
            .collect();
        let compile = if on_fabric {
            Instance::on_fabric
        } else {
            Instance::new
        };
        let instance = compile(
            &pool.deployment,
            &setup.clusters[pool.cluster],
            &maps[pool.cluster],
            &gpus,
        )
        .map_err(|error| FleetError::Replica { pool: index, error })?;
        let tokens = instance.kv_capacity_tokens();
        if tokens < u64::from(pool.engine.block_size) {
            return Err(FleetError::NoCache {
                pool: index,
                cache: instance.memory().cache,
                tokens,
            });
        }
        instances.push(instance);
    }
    Ok(FleetPlan {
        setup,
        instances,
        maps,
        on_fabric,
    })
}
