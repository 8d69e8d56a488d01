//! What one GPU of an instance holds, and how many tokens of cache remain.

use super::error::ServingError;
use rackflow_topology::Accelerator;
use rackflow_units::Bytes;
use rackflow_workload::serving::{Deployment, Draft};
use rackflow_workload::{Attention, Model};

/// Memory of one GPU, and the cache of the replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InstanceMemory {
    /// Weights of one GPU.
    pub weights: Bytes,
    /// Activations of the largest step, with logits.
    pub activations: Bytes,
    /// What the engine keeps for graphs, workspaces and the context.
    pub reserved: Bytes,
    /// What remains for the cache on one GPU.
    pub cache: Bytes,
    /// Cache of one token on one GPU, in the layers that keep every token.
    pub kv_bytes_per_token: f64,
    /// Cache of one sequence on one GPU in windowed layers, once it is longer than the window.
    pub kv_bytes_per_window: f64,
    /// Attention groups, each with a cache of its own.
    groups: u64,
    /// Sequences for which windows are kept.
    window_sequences: u64,
}

impl InstanceMemory {
    /// Tokens that the replica's caches hold in all.
    pub fn kv_capacity_tokens(&self) -> u64 {
        let windows = self.kv_bytes_per_window * self.window_sequences as f64;
        let left = (self.cache.as_f64() - windows).max(0.0);
        if self.kv_bytes_per_token > 0.0 {
            (left / self.kv_bytes_per_token) as u64 * self.groups
        } else {
            u64::MAX
        }
    }
}

/// Elements that one token adds to the cache of one layer on one rank, of which `element` bytes are
/// kept; an indexer's key is kept in 8 bits with a scale.
pub(super) fn cached_elements(attention: &Attention, tensor: u64, element: f64) -> f64 {
    match *attention {
        Attention::Grouped {
            kv_heads, head_dim, ..
        } => (2 * kv_heads.div_ceil(tensor) * head_dim) as f64,
        // A latent that serves all heads lies on every rank; of several, each rank keeps its own.
        Attention::Latent {
            kv_lora_rank,
            qk_rope_head_dim,
            latents,
            sparse,
            ..
        } => {
            let index = sparse.map_or(0.0, |index| (index.head_dim + 4) as f64 / element);
            (latents.div_ceil(tensor) * kv_lora_rank + qk_rope_head_dim) as f64 + index
        }
    }
}

/// Weights of the last projection of attention in one layer.
fn output_projection(model: &Model) -> f64 {
    let width = match model.attention {
        Attention::Grouped {
            heads, head_dim, ..
        } => heads * head_dim,
        Attention::Latent {
            heads, v_head_dim, ..
        } => heads * v_head_dim,
    };
    (width * model.hidden) as f64
}

/// Weights of the GPU that has most [bytes].
fn weights(d: &Deployment) -> f64 {
    let (model, plan, precision) = (&d.model, &d.parallelism, &d.precision);
    let tensor = f64::from(plan.tensor);
    let stages = f64::from(plan.pipeline);
    let stage = f64::from(plan.stage_gpus());
    let layer = |kind| {
        let p = model.layer_parameters(kind);
        let output = output_projection(model);
        let copies = model.moe.as_ref().map_or(1.0, |moe| {
            1.0 + d.redundant_experts as f64 / moe.experts as f64
        });
        ((p.attention as f64 - output) * precision.attention.bytes()
            + output * precision.attention_output.bytes()
            + (p.dense_ffn + p.shared_expert) as f64 * precision.dense.bytes())
            / tensor
            + (p.router + p.norms) as f64 * 2.0
            + p.routed_experts as f64 * copies * precision.experts.bytes() / stage
    };
    let layers: f64 = model
        .layer_kinds()
        .into_iter()
        .map(|(kind, count)| count as f64 * layer(kind))
        .sum();
    let matrices = if model.tied_embeddings { 1.0 } else { 2.0 };
    let table = (model.vocab * model.hidden) as f64 * precision.head.bytes() / tensor;
    let draft = match &d.speculation {
        Some(s) if s.draft == Draft::Mtp => {
            let projection = (2 * model.hidden * model.hidden) as f64 * 2.0;
            layer(model.mtp_layer_kind()) + projection
        }
        _ => 0.0,
    };
    if stages > 1.0 {
        // First and last stage hold one table each.
        layers / stages + table + draft
    } else {
        layers + matrices * table + draft
    }
}

/// Activations of the largest step on one rank [bytes]: what two neighbouring kernels read and
/// write, and logits in 32 bits.
fn activations(d: &Deployment) -> f64 {
    let logits = (d.stack.limits.max_sequences * d.model.vocab) as f64 * 4.0;
    d.max_batched_tokens as f64 * activations_per_token(d) + logits
}

/// What two neighbouring kernels read and write for one token on one rank [bytes].
pub(super) fn activations_per_token(d: &Deployment) -> f64 {
    let model = &d.model;
    let tensor = f64::from(d.parallelism.tensor);
    let dense = model.ffn as f64 / tensor;
    let routed = model.moe.as_ref().map_or(0.0, |moe| {
        (moe.top_k * (moe.expert_ffn + model.hidden)) as f64
            / f64::from(d.parallelism.expert_tensor())
            + moe.shared_ffn as f64 / tensor
    });
    let widest = (3.0 * dense).max(2.0 * routed);
    (6.0 * model.hidden as f64 + widest) * 2.0
}

/// What one GPU holds.
pub(super) fn of(
    d: &Deployment,
    accelerator: &Accelerator,
) -> Result<InstanceMemory, ServingError> {
    let tensor = u64::from(d.parallelism.tensor);
    let stages = f64::from(d.parallelism.pipeline);
    let per_layer = cached_elements(&d.model.attention, tensor, d.precision.kv.bytes())
        * d.precision.kv.bytes();
    let (mut full, mut windows) = (0.0, 0.0);
    for (kind, count) in d.model.layer_kinds() {
        match kind.window.filter(|_| d.stack.windowed_cache) {
            None => full += count as f64 * per_layer / stages,
            Some(window) => windows += (count * window) as f64 * per_layer / stages,
        }
    }
    let draft = d
        .speculation
        .as_ref()
        .is_some_and(|s| s.draft == Draft::Mtp);
    let weights = Bytes::new(weights(d) as u64);
    let activations = Bytes::new(activations(d) as u64);
    let whole = accelerator.memory.as_f64();
    let taken = (activations + d.stack.reserved_memory).as_f64();
    let fraction = d.stack.memory_fraction;
    let (available, cache) = if d.stack.fraction_of_free {
        let available = (whole - taken).max(0.0);
        (available, (available - weights.as_f64()) * fraction)
    } else {
        let available = (whole * fraction - taken).max(0.0);
        (available, available - weights.as_f64())
    };
    let available = Bytes::new(available as u64);
    let cache = Bytes::new(cache.max(0.0) as u64);
    if cache == Bytes::ZERO {
        return Err(ServingError::Memory { weights, available });
    }
    Ok(InstanceMemory {
        weights,
        activations,
        reserved: d.stack.reserved_memory,
        cache,
        kv_bytes_per_token: full + if draft { per_layer } else { 0.0 },
        kv_bytes_per_window: windows,
        groups: u64::from(d.parallelism.data),
        window_sequences: if windows > 0.0 {
            d.stack
                .limits
                .max_sequences
                .min((cache.as_f64() * 0.5 / windows) as u64)
        } else {
            0
        },
    })
}
