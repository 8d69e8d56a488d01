//! What one GPU must hold.

use rackflow_units::Bytes;

/// Memory of one rank at its peak, by what holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryUse {
    /// Weights in the precision they are kept in for compute.
    pub weights: Bytes,
    /// Gradients.
    pub gradients: Bytes,
    /// Master weights and moments.
    pub optimizer: Bytes,
    /// Activations of all micro-batches in flight.
    pub activations: Bytes,
    /// Logits, communication buffers, gathered shards.
    pub buffers: Bytes,
    /// Context, library workspaces, fragmentation.
    pub reserved: Bytes,
}

impl MemoryUse {
    /// All of it.
    pub fn total(&self) -> Bytes {
        self.weights + self.gradients + self.optimizer + self.activations + self.buffers + self.reserved
    }
}
