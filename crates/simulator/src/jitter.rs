//! Kernels that take longer than they should: draws, never more than what the scenario asks for.

use crate::fold::ONE;
use rackflow_engine::RandomStream;
use rackflow_plan::{MOST_JITTER, SLOW_NODE, Setup};

/// Time over the undisturbed, fixed point: `exp(sigma |z|)` for a normal z, so 1 or more.
fn draw(random: &mut RandomStream, sigma: f64) -> u64 {
    let factor = random.lognormal(1.0, sigma);
    let slower = factor.max(1.0 / factor).min(MOST_JITTER);
    (slower * ONE as f64).round() as u64
}

/// How much slower each GPU is for the whole step.
pub(crate) fn of_gpus(setup: &Setup, gpus: u32) -> Vec<u64> {
    let sigma = setup.jitter.gpu;
    let root = RandomStream::root(setup.seed).derive("jitter of GPUs");
    let mut slower: Vec<u64> = if sigma == 0.0 {
        vec![ONE; gpus as usize]
    } else {
        (0..gpus)
            .map(|gpu| draw(&mut root.derive_index(u64::from(gpu)), sigma))
            .collect()
    };
    if setup.jitter.slow_nodes > 0.0 {
        slow_nodes(setup, &mut slower);
    }
    slower
}

/// Makes the GPUs of some nodes slower, all of a node alike.
fn slow_nodes(setup: &Setup, slower: &mut [u64]) {
    let root = RandomStream::root(setup.seed).derive("slow nodes");
    let gpus = setup.cluster.node.gpus.max(1) as usize;
    for (node, gpus) in slower.chunks_mut(gpus).enumerate() {
        if root
            .derive_index(node as u64)
            .happens(setup.jitter.slow_nodes)
        {
            for slower in gpus {
                *slower = (*slower as f64 * SLOW_NODE).round() as u64;
            }
        }
    }
}

/// How much slower each run of kernels is. A rank draws in the order of its own work, so that the
/// draws do not depend on what other ranks do.
pub(crate) struct KernelJitter {
    sigma: f64,
    /// One for each rank; none where nothing is drawn.
    streams: Vec<RandomStream>,
}

impl KernelJitter {
    pub fn new(setup: &Setup, ranks: usize) -> Self {
        let sigma = setup.jitter.kernel;
        let root = RandomStream::root(setup.seed).derive("jitter of kernels");
        let streams = if sigma == 0.0 { 0 } else { ranks as u64 };
        Self {
            sigma,
            streams: (0..streams).map(|rank| root.derive_index(rank)).collect(),
        }
    }

    /// `slowdown` with the next draw of this rank on top.
    pub fn on(&mut self, slowdown: u64, entity: u32) -> u64 {
        match self.streams.get_mut(entity as usize) {
            None => slowdown,
            Some(random) => {
                let factor = draw(random, self.sigma);
                (u128::from(slowdown) * u128::from(factor) / u128::from(ONE)) as u64
            }
        }
    }
}
