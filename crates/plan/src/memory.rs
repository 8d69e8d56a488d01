//! What one GPU must hold at its fullest moment.
//!
//! Activation bytes are counted tensor by tensor: what the backward pass needs and recomputation
//! does not restore, after Korthikanti et al. 2022 for the dense transformer and in the same way
//! for latent attention and experts.

use crate::compile::{Chunk, Plan, RankParameters, sharded_parameters, stage_parameters};
use crate::error::{MemoryPart, PlanError};
use crate::facts::StageFacts;
use crate::layer::Sizes;
use crate::placement::Placement;
use crate::schedule::{InFlight, Pass};
use crate::setup::Setup;
use crate::vision::Encoder;
use rackflow_units::Bytes;
use rackflow_workload::{
    Activation, Attention, AttentionKernel, ExpertDispatcher, FeedForward, LayerKind,
    OffloadedInput, Recipe, Recompute, Schedule, Zero,
};

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
    /// Context and communication buffers, and fragmentation where the stack has no `allocator_slack`.
    pub reserved: Bytes,
}

impl MemoryUse {
    /// Which part is the largest.
    pub fn largest(&self) -> MemoryPart {
        [
            (
                self.weights + self.gradients + self.optimizer,
                MemoryPart::States,
            ),
            (self.activations, MemoryPart::Activations),
            (self.buffers, MemoryPart::Buffers),
            (self.reserved, MemoryPart::Reserved),
        ]
        .into_iter()
        .max_by_key(|(bytes, _)| *bytes)
        .map_or(MemoryPart::States, |(_, part)| part)
    }

    /// All of it.
    pub fn total(&self) -> Bytes {
        self.weights
            + self.gradients
            + self.optimizer
            + self.activations
            + self.buffers
            + self.reserved
    }
}

/// Memory of one rank of a stage that holds `chunks` and works in this order.
pub(crate) fn of_stage(
    s: &Sizes<'_>,
    placement: &Placement,
    chunks: &[Chunk],
    order: &[Pass],
) -> MemoryUse {
    let in_flight = InFlight::of(order, chunks.len(), s.training.schedule);
    Held::of(s, chunks, &in_flight).memory(s, placement)
}

/// What a stage holds whatever ZeRO shards.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    parameters: RankParameters,
    /// Parameters of the largest layer.
    widest: u64,
    activations: u64,
    /// Without and with the sum of gradients that nobody reads.
    buffers: [u64; 2],
    /// What one micro-batch leaves for a weight gradient that may be put off.
    put_off: u64,
    /// Parameters that are not trained.
    frozen: u64,
    /// Gradients that nobody reads.
    dummies: u64,
}

impl Held {
    /// Of a stage that holds `chunks`.
    pub fn of(s: &Sizes<'_>, chunks: &[Chunk], in_flight: &InFlight) -> Self {
        let kinds = chunks.iter().flat_map(|chunk| &chunk.layers);
        let widest = kinds.map(|(key, _)| {
            let p = crate::compile::layer_parameters(s, key.kind());
            p.dense + p.expert
        });
        let bytes: Vec<u64> = chunks.iter().map(|c| chunk_activations(s, c)).collect();
        Self {
            parameters: stage_parameters(s, chunks),
            widest: widest.max().unwrap_or(0),
            activations: in_flight.peak(&bytes),
            buffers: [None, summed_dummy(s)].map(|sum| buffers(s, chunks, sum)),
            put_off: if chunks.iter().any(|c| c.last) {
                put_off(s)
            } else {
                0
            },
            frozen: encoder_of(s, chunks).map_or(0, Encoder::frozen),
            dummies: dummy_gradients(s, chunks),
        }
    }

    /// All of it, as the plan's ZeRO shards it over the ranks of `placement`.
    pub fn memory(&self, s: &Sizes<'_>, placement: &Placement) -> MemoryUse {
        let zero = s.plan.zero;
        let all = self.parameters.dense + self.parameters.expert;
        let expert_data = placement.group_size(crate::program::GroupSlot::ExpertData);
        let mine = sharded_parameters(zero, self.parameters, placement.shard_size(), expert_data);
        let with_dummies = s.keeps_dummy_gradients();
        let gathered = if zero == Zero::Stage3 {
            let gradients = if s.stack.keeps_gather_buffers {
                s.stack.gradient_bytes
            } else {
                0
            };
            2 * self.widest * (2 + gradients)
        } else {
            0
        };
        MemoryUse {
            weights: Bytes::new(
                2 * if zero == Zero::Stage3 {
                    mine + self.frozen.div_ceil(u64::from(placement.shard_size()))
                } else {
                    all + self.frozen
                },
            ),
            gradients: Bytes::new(
                s.stack.gradient_bytes * if zero >= Zero::Stage2 { mine } else { all }
                    + produced(s, all)
                    + self.dummies * u64::from(with_dummies),
            ),
            optimizer: Bytes::new(
                s.stack.optimizer_bytes * (mine - s.stack.optimizer_on_host(mine)),
            ),
            activations: Bytes::new(self.activations),
            buffers: Bytes::new(
                gathered
                    + self.buffers[usize::from(with_dummies)]
                    + crate::compile::deferred_output_gradients(s) * self.put_off,
            ),
            reserved: s.stack.reserved_memory,
        }
    }
}

/// Gradients as the backward pass leaves them, where a kernel of its own adds them into wider ones:
/// both are kept ("4 bytes x params and it's not sharded", BigScience, tr11-176B-ml, chronicles-prequel).
/// FSDP frees them with each unit.
fn produced(s: &Sizes<'_>, parameters: u64) -> u64 {
    let apart = !s.stack.fused_gradient_accumulation && s.stack.gradient_bytes > 2;
    if apart && s.plan.zero < Zero::Stage3 {
        2 * parameters
    } else {
        0
    }
}

/// One tensor in 16 bits for each shape of weight whose gradient a product adds into its buffer: autograd must be given
/// a gradient so that the framework's hooks run, and each shape's serves all weights of that shape (Transformer Engine,
/// `get_dummy_wgrad`; Megatron-Core, `LinearWithGradAccumulationAndAsyncCommunication`).
pub(crate) fn dummy_gradients(s: &Sizes<'_>, chunks: &[Chunk]) -> u64 {
    if !s.may_keep_dummy_gradients() {
        return 0;
    }
    let layers = chunks.iter().flat_map(|chunk| &chunk.layers);
    let of_layers = layers.map(|(key, _)| crate::layer::weights(s, key.kind()));
    let mut shapes: Vec<(u64, u64)> = of_layers.flatten().collect();
    if chunks.iter().any(|chunk| chunk.last) {
        shapes.push(s.output_weight());
        if s.model.mtp.is_some() {
            shapes.extend(crate::layer::weights(s, s.model.mtp_layer_kind()));
            shapes.push(crate::layer::mtp_weight(s));
        }
    }
    shapes.extend(encoder_of(s, chunks).into_iter().flat_map(Encoder::weights));
    shapes.sort_unstable();
    shapes.dedup();
    shapes.iter().map(|(n, k)| 2 * n * k).sum()
}

/// The sum of the dummy gradients that an output layer gets from the losses of prediction modules and its own: a tensor
/// beside the kept one, which others hold and so nothing may be added into (PyTorch, `InputBuffer`).
pub(crate) fn summed_dummy(s: &Sizes<'_>) -> Option<u64> {
    let (n, k) = s.output_weight();
    let sums = s.may_keep_dummy_gradients() && s.model.prediction_modules() > 0;
    sums.then_some(2 * n * k)
}

fn recomputes(recompute: &Recompute, activation: Activation) -> bool {
    match recompute {
        Recompute::Activations(list) => list.contains(&activation),
        Recompute::Selective => activation == Activation::CoreAttention,
        _ => false,
    }
}

/// Activations that one forward pass through a chunk leaves for its backward pass.
pub(crate) fn chunk_activations(s: &Sizes<'_>, chunk: &Chunk) -> u64 {
    let h = s.model.hidden;
    let input = s.own_tokens * h * 2;
    let recomputed = match s.training.recompute {
        Recompute::Full => chunk.len(),
        Recompute::FullLayers(n) => u64::from(n).min(chunk.len()),
        _ => 0,
    };
    let offload = s.stack.activation_offload.layers(chunk.len(), chunk.last);
    let (mut left, mut away) = (recomputed, offload);
    let mut kept = 0;
    for (key, count) in &chunk.layers {
        let again = left.min(*count);
        left -= again;
        kept += again * input;
        if again < *count {
            kept += (count - again) * layer_activations(s, key.kind());
        }
        let leaves = away.min(*count);
        away -= leaves;
        if leaves > 0 {
            let first = leaves.min(again);
            kept -= first * layer_offload(s, key.kind(), true);
            kept -= (leaves - first) * layer_offload(s, key.kind(), false);
        }
    }
    let mtp = if chunk.last {
        modules_activations(s)
    } else {
        0
    };
    let vision = encoder_of(s, std::slice::from_ref(chunk))
        .map_or(0, |encoder| encoder.activations(layer_activations));
    // The final norm's input and output.
    kept + mtp + vision + if chunk.last { 2 * input } else { 0 }
}

/// Activations that prediction modules leave for their backward pass: of each the embedding of the next token, both hidden
/// states side by side as its projection reads them, its layer's, and its final norm's input and output.
fn modules_activations(s: &Sizes<'_>) -> u64 {
    let modules = s.model.prediction_modules();
    if modules == 0 {
        return 0;
    }
    let hidden = s.own_tokens * s.model.hidden;
    let before_norm = if s.recomputes_modules() {
        // What is checkpointed keeps the hidden states of a token and of the next one.
        4 * hidden
    } else {
        let operand = s.training.recipe.gemm().bits().div_ceil(8);
        (2 + 2 * operand) * hidden + layer_activations(s, s.model.mtp_layer_kind())
    };
    modules * (before_norm + 4 * hidden)
}

/// The vision encoder, where one of these chunks has it.
fn encoder_of<'s>(s: &'s Sizes<'_>, chunks: &[Chunk]) -> Option<&'s Encoder> {
    let encoder = s.encoder.as_deref()?;
    chunks.iter().any(|chunk| chunk.first).then_some(encoder)
}

/// What one layer keeps of one micro-batch for its backward pass, by what holds it [bytes].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Kept {
    /// Output of each of the two norms.
    pub norm: u64,
    /// The residual stream before each of them.
    pub residual: u64,
    /// Dropout masks, scores, latents, queries and keys before their norms, routing probabilities: what stays in any case.
    pub rest: u64,
    /// Queries, keys and values.
    pub attention_input: u64,
    /// Result of attention.
    pub attention_output: u64,
    /// Tokens at their experts.
    pub received: u64,
    /// Output of the experts' first product.
    pub expert_first: u64,
    /// Output of the experts' activation function, and the pair of a dense network or shared expert.
    pub network: u64,
    /// The shared expert's output, until the experts' are combined with it.
    pub shared: u64,
}

impl Kept {
    fn total(&self) -> u64 {
        2 * self.norm
            + 2 * self.residual
            + self.rest
            + self.attention_input
            + self.attention_output
            + self.received
            + self.expert_first
            + self.network
            + self.shared
    }

    /// Input of one module.
    fn input(&self, of: OffloadedInput) -> u64 {
        match of {
            OffloadedInput::AttentionNorm | OffloadedInput::MlpNorm => self.residual,
            OffloadedInput::QkvLinear => self.norm,
            OffloadedInput::CoreAttention => self.attention_input,
            OffloadedInput::AttentionProjection => self.attention_output,
            OffloadedInput::ExpertFc1 => self.received,
            OffloadedInput::MoeActivation => self.expert_first,
            OffloadedInput::Layer => self.total(),
        }
    }
}

/// Bytes that one layer keeps for its backward pass, one micro-batch.
fn layer_activations(s: &Sizes<'_>, kind: LayerKind) -> u64 {
    kept(s, kind, &s.training.recompute).total()
}

/// Of these, the bytes that lie in the host's memory until then; `again`: the layer is recomputed and
/// keeps its input only.
pub(crate) fn layer_offload(s: &Sizes<'_>, kind: LayerKind, again: bool) -> u64 {
    let kept = if again {
        Kept {
            residual: s.own_tokens * s.model.hidden * 2,
            ..Kept::default()
        }
    } else {
        kept(s, kind, &s.training.recompute)
    };
    let inputs = &s.stack.activation_offload.inputs;
    if inputs.contains(&OffloadedInput::Layer) {
        // A recomputed layer's input is one of the two.
        return if again { kept.residual } else { kept.total() };
    }
    let mut listed = inputs.clone();
    listed.sort_unstable();
    listed.dedup();
    if again {
        listed.retain(|input| *input == OffloadedInput::AttentionNorm);
    }
    listed.into_iter().map(|input| kept.input(input)).sum()
}

/// What one layer keeps where `recompute` restores the rest.
pub(crate) fn kept(s: &Sizes<'_>, kind: LayerKind, recompute: &Recompute) -> Kept {
    let tp = u64::from(s.plan.tensor);
    let (t, own, h) = (s.tokens, s.own_tokens, s.model.hidden);
    // Inputs of GEMMs are kept in the format they are multiplied in.
    let operand = s.training.recipe.gemm().bits().div_ceil(8);
    if *recompute == Recompute::Operators {
        return kept_of_operators(s, kind);
    }
    let norm = if recomputes(recompute, Activation::Norms) {
        0
    } else {
        own * h * operand
    };
    // A byte mask of dropout for each residual in stacks of that time.
    let masks = if s.stack.attention == AttentionKernel::Unfused {
        2 * own * h
    } else {
        0
    };
    let (attention_input, attention_output, before) = match s.model.attention {
        Attention::Grouped {
            heads,
            kv_heads,
            head_dim,
            qk_norm,
            ..
        } => {
            let kv = (kv_heads / tp).max(1);
            // Norms of heads keep what they norm, beside what attention is given.
            let normed = if qk_norm { heads / tp + kv } else { 0 };
            (
                t * (heads / tp + 2 * kv) * head_dim * 2,
                t * heads / tp * head_dim * 2,
                t * normed * head_dim * 2,
            )
        }
        Attention::Latent {
            heads,
            q_lora_rank,
            kv_lora_rank,
            qk_nope_head_dim,
            qk_rope_head_dim,
            v_head_dim,
            ..
        } => {
            let qk = qk_nope_head_dim + qk_rope_head_dim;
            let up = t * heads / tp * (2 * qk + v_head_dim) * 2;
            let latent =
                t * (q_lora_rank.unwrap_or(0) + kv_lora_rank + qk_rope_head_dim) * (2 + operand);
            let up = if recomputes(recompute, Activation::MlaUpProjection) {
                0
            } else {
                up
            };
            (up, t * heads / tp * v_head_dim * 2, latent)
        }
    };
    let scores = match s.model.attention {
        Attention::Grouped { heads, .. }
            if s.stack.attention == AttentionKernel::Unfused
                && !recomputes(recompute, Activation::CoreAttention) =>
        {
            // Softmax output, dropout output and its mask.
            5 * s.training.micro_batch * heads / tp
                * s.training.sequence_length
                * (s.training.sequence_length / u64::from(s.plan.context))
        }
        _ => 0,
    };
    let mut kept = Kept {
        norm,
        residual: own * h * 2,
        rest: masks + scores + before,
        attention_input,
        attention_output,
        ..Kept::default()
    };
    keep_feed_forward(&mut kept, s, kind, (operand, recompute));
    kept
}

/// What one layer keeps where products take turns: its input, queries, values, the result of attention, and
/// of a dense network the first product and the last. Products of experts are of another kind (a grouped
/// one), and all of them are computed again.
fn kept_of_operators(s: &Sizes<'_>, kind: LayerKind) -> Kept {
    let tp = u64::from(s.plan.tensor);
    let whole = kept(s, kind, &Recompute::None);
    let (queries, values) = match s.model.attention {
        Attention::Grouped {
            heads,
            kv_heads,
            head_dim,
            ..
        } => (heads / tp * head_dim, (kv_heads / tp).max(1) * head_dim),
        Attention::Latent { .. } => (0, whole.attention_input / (4 * s.tokens).max(1)),
    };
    let network = match kind.feed_forward {
        FeedForward::Dense => s.tokens * s.model.ffn / tp * 2,
        FeedForward::MoE => 0,
    };
    Kept {
        // The input, and the output of the last product.
        residual: whole.residual,
        attention_input: s.tokens * (queries + values) * 2,
        attention_output: whole.attention_output,
        network,
        ..Kept::default()
    }
}

fn keep_feed_forward(
    kept: &mut Kept,
    s: &Sizes<'_>,
    kind: LayerKind,
    (operand, recompute): (u64, &Recompute),
) {
    let tp = u64::from(s.plan.tensor);
    let up = if s.model.gated { 2 } else { 1 };
    // The first product's output, and the activation function's output that the second one takes.
    // DeepSeek's recipe keeps the former in fp8 as well, where the latter is computed again
    // (DeepSeek-V3 technical report, 3.3.3).
    let pair = |tokens: u64, width: u64, act_again: bool| {
        let narrow = act_again && s.training.recipe == Recipe::Fp8Blockwise;
        let first = tokens * width * up * if narrow { 1 } else { 2 };
        let second = if act_again {
            0
        } else {
            tokens * width * operand
        };
        (first, second)
    };
    match (kind.feed_forward, &s.model.moe) {
        (FeedForward::MoE, Some(moe)) => {
            if recomputes(recompute, Activation::Moe) {
                return;
            }
            let again = recomputes(recompute, Activation::MoeActivation)
                || recomputes(recompute, Activation::Swiglu);
            let routed = s.own_tokens * moe.top_k;
            let etp = u64::from(s.plan.expert_tensor);
            // Tokens as the experts received them. Older stacks also keep them as sent, and the experts'
            // outputs for the gradient of the routing weights; the dispatch libraries and later stacks
            // weight the activation instead.
            let copies = match s.stack.dispatcher {
                ExpertDispatcher::DeepEp | ExpertDispatcher::HybridEp => operand,
                _ if s.stack.weighted_activation => operand,
                _ => operand + 4,
            };
            kept.received = routed * etp * s.model.hidden * copies;
            kept.rest += s.own_tokens * moe.experts * 4 * 2;
            let (first, second) = pair(routed * etp, moe.expert_ffn / etp, again);
            let shared = pair(
                s.own_tokens,
                moe.shared_ffn,
                recomputes(recompute, Activation::Swiglu),
            );
            if weaves_layers(s) && moe.shared_ffn > 0 {
                // Its output waits for the experts' in a node of its own, which the backward pass ends
                // (Megatron-Core, `TransformerLayerNode.detach`).
                kept.shared = s.own_tokens * s.model.hidden * 2;
            }
            kept.expert_first = first;
            kept.network = second + shared.0 + shared.1;
        }
        _ => {
            if recomputes(recompute, Activation::Mlp) {
                return;
            }
            let (first, second) = pair(
                s.tokens,
                s.model.ffn / tp,
                recomputes(recompute, Activation::Swiglu),
            );
            kept.network = first + second;
        }
    }
}

/// Tensors as large as the logits of one micro-batch while its losses are computed [bytes]: in 16 bits, and beside them
/// in 32. Prediction modules have theirs before (Megatron-Core, `GPTModel._postprocess`), and keep what their backward pass
/// needs: exponentials in fp32, or their gradient in 16 bits in the place of the logits where one kernel makes it.
pub(crate) fn logits(s: &Sizes<'_>) -> impl Iterator<Item = u64> + use<> {
    let fused = s.stack.fused_cross_entropy;
    let bytes = s.stack.loss_bytes.unwrap_or(if fused { 4 } else { 10 });
    let kept = if bytes > 4 { 4 } else { bytes.min(2) };
    let modules = s.model.prediction_modules();
    let narrow = bytes.min(2);
    let wide = (bytes - narrow) / 4;
    let rest = (bytes - narrow) % 4;
    let each = (0..modules).map(move |_| kept).chain([narrow]);
    let each = each.chain((0..wide).map(|_| 4)).chain([rest]);
    let count = s.tokens * s.output_weight().0;
    each.filter(|bytes| *bytes > 0)
        .map(move |bytes| bytes * count)
}

/// Whether layers of one micro-batch's forward pass and of another's backward pass take turns as Megatron-Core's do.
fn weaves_layers(s: &Sizes<'_>) -> bool {
    s.weaves_passes() && s.training.schedule != Schedule::Dualpipe
}

/// Logits of one micro-batch, the `sum` of gradients that nobody reads, and what a layer needs while it is being computed.
fn buffers(s: &Sizes<'_>, chunks: &[Chunk], sum: Option<u64>) -> u64 {
    let logits = if chunks.iter().any(|c| c.last) {
        let gradient = 2 * s.tokens * s.output_weight().0;
        let of_gradients = sum.map_or(0, |sum| sum + gradient);
        logits(s).sum::<u64>().max(of_gradients)
    } else {
        0
    };
    let layers = chunks.iter().flat_map(|chunk| &chunk.layers);
    let of_modules = chunks
        .iter()
        .filter(|chunk| chunk.last && s.model.mtp.is_some())
        .map(|_| s.model.mtp_layer_kind());
    let kinds = layers.map(|(key, _)| key.kind()).chain(of_modules);
    let layer = kinds.clone().map(|kind| layer_activations(s, kind));
    let layer = layer.max().unwrap_or(0);
    let live = kinds.map(|kind| running(s, kind)).max().unwrap_or(0);
    // What one layer of an encoder makes and nobody keeps.
    let of_encoder = encoder_of(s, chunks)
        .filter(|encoder| !encoder.trains() || encoder.recomputes_layers())
        .map_or(0, |encoder| encoder.live(layer_activations));
    let live = live.max(of_encoder);
    // Of two passes woven into one, the forward one is a layer ahead.
    let ahead = if weaves_layers(s) { layer } else { 0 };
    let table = chunks.iter().map(|chunk| table_gradient(s, chunk));
    let table = table.max().unwrap_or(0);
    let away = on_the_way(s, chunks);
    // Losses are computed when both passes are through their layers, and a first look-up's gradient after that.
    (logits + away.beside_losses).max((live + ahead).max(table) + away.beside_layers)
}

/// The gradient of the whole table of tokens in 16 bits, which a backward pass through a look-up makes before it is added
/// into its buffer: what is more than the activations that the pass has freed by then.
fn table_gradient(s: &Sizes<'_>, chunk: &Chunk) -> u64 {
    let gradient = 2 * s.table();
    let of_first = chunk.first.then(|| chunk_activations(s, chunk));
    let of_modules = (chunk.last && s.model.mtp.is_some()).then(|| modules_activations(s));
    let freed = of_first.into_iter().chain(of_modules).min();
    freed.map_or(0, |freed| gradient.saturating_sub(freed))
}

/// What waits of one micro-batch for a weight gradient of the output layer that is put off: the gradient of the
/// logits, and the layer's input.
pub(crate) fn put_off(s: &Sizes<'_>) -> u64 {
    let (vocab, _) = s.output_weight();
    2 * (s.tokens * vocab + s.own_tokens * s.model.hidden)
}

/// What a layer needs while its backward pass runs, beside what its forward pass left: all that it computes
/// again, four tensors as wide as the residual stream, and of tokens at experts two, before and after each step.
fn running(s: &Sizes<'_>, kind: LayerKind) -> u64 {
    let again = match s.training.recompute {
        Recompute::Full | Recompute::FullLayers(_) => layer_activations(s, kind),
        Recompute::Operators => {
            let whole = kept(s, kind, &Recompute::None).total();
            whole.saturating_sub(layer_activations(s, kind))
        }
        _ => 0,
    };
    let at_experts = match (kind.feed_forward, &s.model.moe) {
        (FeedForward::MoE, Some(moe)) => s.own_tokens * moe.top_k * u64::from(s.plan.expert_tensor),
        _ => 0,
    };
    again + (4 * s.tokens + 2 * at_experts) * s.model.hidden * 2
}

/// Activations that have not left for the host yet or are back already [bytes].
struct OnTheWay {
    beside_losses: u64,
    beside_layers: u64,
}

/// Of one layer each way while layers are computed. Nothing comes back before losses are computed, and all has left where at
/// least two layers stay behind those that leave.
fn on_the_way(s: &Sizes<'_>, chunks: &[Chunk]) -> OnTheWay {
    let offload = &s.stack.activation_offload;
    let again = matches!(
        s.training.recompute,
        Recompute::Full | Recompute::FullLayers(_)
    );
    let leaving = |chunk: &&Chunk| offload.layers(chunk.len(), chunk.last) > 0;
    let largest = |chunk: &Chunk| {
        let kinds = chunk.kinds();
        kinds
            .map(|kind| layer_offload(s, kind, again))
            .max()
            .unwrap_or(0)
    };
    let late = chunks.iter().filter(leaving).filter(|chunk| {
        let stay = chunk.len() - offload.layers(chunk.len(), chunk.last);
        chunks.len() > 1 || stay < 2
    });
    OnTheWay {
        beside_losses: late.map(largest).max().unwrap_or(0),
        beside_layers: 2 * chunks
            .iter()
            .filter(leaving)
            .map(largest)
            .max()
            .unwrap_or(0),
    }
}

/// Holds the fullest stage against the memory of one GPU.
pub(crate) fn check(plan: &Plan) -> Result<(), PlanError> {
    let stages = plan.facts.stages.iter().enumerate();
    let missing = |stage: &StageFacts| stage.memory.total().saturating_sub(stage.capacity);
    let most = stages.max_by_key(|(_, stage)| (missing(stage), stage.memory.total()));
    let Some((stage, facts)) = most else {
        return Ok(());
    };
    let capacity = facts.capacity;
    let memory = facts.memory;
    if memory.total() <= capacity {
        return Ok(());
    }
    Err(PlanError::DoesNotFit {
        stage,
        needed: memory.total(),
        capacity,
        largest: memory.largest(),
        arithmetic: format!(
            "weights {} + gradients {} + optimizer {} + activations {} + buffers {} + reserved {}",
            memory.weights,
            memory.gradients,
            memory.optimizer,
            memory.activations,
            memory.buffers,
            memory.reserved
        ),
        hints: plans_that_fit(plan),
    })
}

/// Plans near this one that fit, the cheapest in throughput first. One change where one is enough.
fn plans_that_fit(plan: &Plan) -> Vec<String> {
    let setup = &plan.setup;
    let single = tries(setup);
    let mut fitting: Vec<String> = single
        .iter()
        .filter(|(_, setup)| fits(setup))
        .map(|(text, _)| text.clone())
        .take(3)
        .collect();
    if !fitting.is_empty() {
        return fitting;
    }
    // All at once, and then on more GPUs.
    let with_all = |text: &str, base: &Setup| {
        let mut all = base.clone();
        let t = &mut all.training;
        t.micro_batch = 1;
        t.recompute = Recompute::Full;
        t.parallelism.zero = Zero::Stage3;
        (
            format!("{text}micro_batch: 1, recompute: full and zero: 3"),
            all,
        )
    };
    let mut more = vec![with_all("", setup)];
    more.extend(
        single
            .iter()
            .filter(|(_, changed)| changed.training.parallelism != setup.training.parallelism)
            .map(|(text, changed)| with_all(&format!("{text}, "), changed)),
    );
    for by in [2, 4, 8, 16, 32, 64] {
        let mut larger = setup.clone();
        let (Some(gpus), Some(data)) = (
            setup.cluster.gpus.checked_mul(by),
            setup.training.parallelism.data.checked_mul(by),
        ) else {
            break;
        };
        larger.cluster.gpus = gpus;
        larger.training.parallelism.data = data;
        larger.training.global_batch = setup.training.global_batch.saturating_mul(u64::from(by));
        let (_, larger) = with_all("", &larger);
        more.push((
            format!(
                "{gpus} GPUs, data: {data}, global_batch: {}, micro_batch: 1, recompute: full and zero: 3",
                larger.training.global_batch
            ),
            larger,
        ));
    }
    fitting.extend(
        more.into_iter()
            .find(|(_, setup)| fits(setup))
            .map(|(text, _)| text),
    );
    if fitting.is_empty() {
        fitting
            .push("a smaller model, or GPUs with more memory; no plan near this one does".into());
    }
    fitting
}

fn fits(setup: &Setup) -> bool {
    crate::compile::stage_memory(setup).is_ok_and(|stages| {
        stages
            .iter()
            .all(|m| m.total() <= setup.cluster.least_memory())
    })
}

/// One change at a time.
fn tries(setup: &Setup) -> Vec<(String, Setup)> {
    let mut tries: Vec<(String, Setup)> = Vec::new();
    let t = &setup.training;
    let mut change = |text: String, change: &dyn Fn(&mut Setup)| {
        let mut changed = setup.clone();
        change(&mut changed);
        tries.push((text, changed));
    };
    if t.micro_batch > 1 {
        change("micro_batch: 1".into(), &|s| s.training.micro_batch = 1);
    }
    if t.parallelism.zero < Zero::Stage1 {
        change("zero: 1".into(), &|s| {
            s.training.parallelism.zero = Zero::Stage1;
        });
    }
    if t.recompute != Recompute::Full {
        change("recompute: full".into(), &|s| {
            s.training.recompute = Recompute::Full;
        });
    }
    for by in [2, 4, 8, 16] {
        if !t.parallelism.data.is_multiple_of(by) {
            continue;
        }
        for tensor in [true, false] {
            let mut p = t.parallelism.clone();
            p.data /= by;
            let name = if tensor {
                p.tensor *= by;
                format!("tensor: {} (data: {})", p.tensor, p.data)
            } else {
                p.pipeline *= by;
                format!("pipeline: {} (data: {})", p.pipeline, p.data)
            };
            if tensor && p.tensor > setup.cluster.node.scale_up.domain {
                continue;
            }
            for full in [false, true] {
                let with = if full { " with recompute: full" } else { "" };
                change(format!("{name}{with}"), &|s| {
                    s.training.parallelism = p.clone();
                    s.training.layers_per_chunk = None;
                    if full {
                        s.training.recompute = Recompute::Full;
                    }
                });
            }
        }
    }
    if t.parallelism.zero < Zero::Stage3 {
        change("zero: 3".into(), &|s| {
            s.training.parallelism.zero = Zero::Stage3;
        });
    }
    tries
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::setup::RankOrder;
    use rackflow_scenario::Catalogue;
    use rackflow_workload::{Model, Parallelism, Routing, Training};

    pub(crate) fn gpt3(tensor: u32, sequence_parallel: bool) -> Training {
        let catalogue = Catalogue::builtin();
        let stack = catalogue
            .stack("megatron-lm-2022")
            .expect("in the catalogue");
        assert_eq!(stack.attention, AttentionKernel::Unfused);
        Training {
            model: catalogue
                .model("gpt3-175b")
                .expect("in the catalogue")
                .clone(),
            stack: stack.clone(),
            recipe: Recipe::Fp16,
            sequence_length: 2048,
            global_batch: 64,
            micro_batch: 2,
            parallelism: Parallelism {
                tensor,
                sequence_parallel,
                context: 1,
                pipeline: 1,
                virtual_pipeline: 1,
                data: 1,
                expert: 1,
                expert_tensor: 1,
                zero: Zero::Stage0,
                zero_group: None,
            },
            schedule: Schedule::OneForwardOneBackward,
            recompute: Recompute::None,
            routing: Routing::Balanced,
            images: None,
            layers_per_chunk: None,
            assumed: Vec::new(),
        }
    }

    fn layer(training: &Training) -> u64 {
        let model: &Model = &training.model;
        layer_activations(&Sizes::new(training), model.layer_kind(0))
    }

    /// Korthikanti et al. 2022, equations 1, 2 and 4, table 2: bytes of one layer in units of
    /// s b h, with a s / h = 16 for GPT-3 at 2,048 tokens.
    #[test]
    fn a_layer_keeps_what_korthikanti_counts() {
        let (s, b, h, a, t) = (2048, 2, 12288, 96, 8);
        let unit = s * b * h;
        assert_eq!(layer(&gpt3(1, false)), unit * 34 + 5 * a * s * s * b);
        assert_eq!(
            layer(&gpt3(8, false)),
            unit * 10 + unit * 24 / t + 5 * a * s * s * b / t
        );
        assert_eq!(layer(&gpt3(8, true)), (unit * 34 + 5 * a * s * s * b) / t);
        let selective = Training {
            recompute: Recompute::Selective,
            ..gpt3(8, true)
        };
        assert_eq!(layer(&selective), unit * 34 / t);
    }

    /// Input, queries, values, the result of attention, the network's first product (four times as wide) and its
    /// result: 9 s b h elements, whatever the scores take.
    #[test]
    fn every_second_product_is_kept() {
        let operators = Training {
            recompute: Recompute::Operators,
            ..gpt3(1, false)
        };
        assert_eq!(layer(&operators), 2048 * 2 * 12288 * 18);
        let s = Sizes::new(&operators);
        let kind = operators.model.layer_kind(0);
        let whole = layer(&gpt3(1, false));
        let beside = 4 * s.tokens * s.model.hidden * 2;
        assert_eq!(running(&s, kind), whole - layer(&operators) + beside);
    }

    /// 1F1B keeps as many micro-batches as there are stages left; GPipe keeps them all.
    #[test]
    fn a_schedule_keeps_what_it_has_in_flight() {
        use crate::schedule::{Shape, order};
        let shape = Shape {
            stages: 4,
            chunks: 1,
            micro_batches: 16,
            overlap_passes: false,
        };
        for stage in 0..4 {
            let one = order(Schedule::OneForwardOneBackward, shape, stage);
            assert_eq!(
                InFlight::of(&one, 1, Schedule::OneForwardOneBackward).peak(&[100]),
                100 * u64::from(4 - stage)
            );
            let all = order(Schedule::Gpipe, shape, stage);
            assert_eq!(InFlight::of(&all, 1, Schedule::Gpipe).peak(&[100]), 1600);
        }
        let both = Shape { chunks: 2, ..shape };
        for stage in 0..4 {
            let order = order(Schedule::Dualpipe, both, stage);
            assert_eq!(
                InFlight::of(&order, 2, Schedule::Dualpipe).peak(&[100, 100]),
                500,
                "one more than the stages"
            );
        }
    }

    /// Gradients that a kernel of its own adds into wider ones are kept twice, unless ZeRO frees them.
    #[test]
    fn gradients_apart_are_kept_in_both_formats() {
        let mut training = gpt3(1, false);
        training.stack.fused_gradient_accumulation = false;
        let extra = |training: &Training| produced(&Sizes::new(training), 100);
        for (bytes, zero, expected) in [
            (4, Zero::Stage1, 200),
            (2, Zero::Stage1, 0),
            (4, Zero::Stage3, 0),
        ] {
            training.stack.gradient_bytes = bytes;
            training.parallelism.zero = zero;
            assert_eq!(extra(&training), expected, "{bytes} bytes, {zero:?}");
        }
        training.stack.gradient_bytes = 4;
        training.parallelism.zero = Zero::Stage0;
        training.stack.fused_gradient_accumulation = true;
        assert_eq!(extra(&training), 0);
    }

    pub(crate) fn deepseek_v3() -> Training {
        let mut training = gpt3(1, false);
        training.model = Catalogue::builtin()
            .model("deepseek-v3")
            .expect("in the catalogue")
            .clone();
        training.parallelism.expert = 16;
        training
    }

    /// A chunk of so many layers like the model's last.
    pub(crate) fn chunk(training: &Training, layers: u64, last: bool) -> Chunk {
        let kind = training.model.layer_kind(training.model.layers - 1);
        Chunk {
            layers: vec![(kind.into(), layers)],
            first: false,
            last,
        }
    }

    fn dummies(training: &Training, layers: u64, last: bool) -> u64 {
        dummy_gradients(&Sizes::new(training), &[chunk(training, layers, last)])
    }

    /// However many layers have a shape, one gradient that nobody reads is kept of it: of GPT-3 over four ranks that of
    /// queries, keys and values, of attention's result, and one for both products of the network, which are square.
    #[test]
    fn one_dummy_gradient_is_kept_of_each_shape() {
        let mut training = gpt3(4, true);
        training.stack.dummy_gradients = true;
        let (h, vocab) = (12288, training.model.vocab);
        let layer = 2 * (3 * h / 4 * h + h * h / 4 + h * h);
        for layers in [1, 7] {
            assert_eq!(dummies(&training, layers, false), layer);
            let output = 2 * vocab.div_ceil(4) * h;
            assert_eq!(dummies(&training, layers, true), layer + output);
        }
        let without: [fn(&mut Training); 2] = [
            |t| t.stack.dummy_gradients = false,
            |t| t.stack.fused_gradient_accumulation = false,
        ];
        for change in without {
            let mut changed = training.clone();
            change(&mut changed);
            assert_eq!(dummies(&changed, 7, true), 0);
        }
    }

    /// All experts share theirs, the shared one too where it is as wide; prediction modules have the layer's, that of their
    /// projection, and a second one of the output layer while both of its uses are added up.
    #[test]
    fn experts_share_dummy_gradients_and_modules_add_theirs() {
        let mut training = deepseek_v3();
        training.stack.dummy_gradients = true;
        let h = 7168;
        let attention = 1536 * h + 576 * h + 24576 * 1536 + 32768 * 512 + h * 16384;
        let layer = 2 * (attention + 4096 * h + h * 2048);
        let (output, projection) = (2 * 129_280 * h, 4 * h * h);
        assert_eq!(dummies(&training, 2, false), layer);
        assert_eq!(dummies(&training, 2, true), layer + output + projection);
        assert_eq!(summed_dummy(&Sizes::new(&training)), Some(output));
        training.model.mtp = None;
        assert_eq!(dummies(&training, 2, true), layer + output);
        assert_eq!(summed_dummy(&Sizes::new(&training)), None);
    }

    /// With sharded parameters neither they nor their sum are there, though what a stage holds is found once for all that
    /// ZeRO may shard.
    #[test]
    fn no_dummy_gradients_are_kept_of_sharded_parameters() {
        let mut training = deepseek_v3();
        // Little else is in the buffers.
        training.sequence_length = 128;
        training.parallelism.data = training.parallelism.expert;
        let order = {
            let (micro_batch, chunk) = (0, 0);
            [
                Pass::Forward { micro_batch, chunk },
                Pass::Backward { micro_batch, chunk },
            ]
        };
        let more = |training: &mut Training, zero| {
            training.parallelism.zero = zero;
            let [without, with] = [false, true].map(|dummies| {
                training.stack.dummy_gradients = dummies;
                let placement =
                    Placement::new(&training.parallelism, RankOrder::DataBeforePipeline);
                let chunks = [chunk(training, 2, true)];
                of_stage(&Sizes::new(training), &placement, &chunks, &order)
            });
            (
                (with.gradients - without.gradients).get(),
                (with.buffers - without.buffers).get(),
            )
        };
        let (gradients, buffers) = more(&mut training, Zero::Stage1);
        assert_eq!(gradients, dummies(&training, 2, true));
        assert!(buffers > 0, "the sum of two is more than the losses");
        assert_eq!(more(&mut training, Zero::Stage3), (0, 0));
    }

    /// Of woven passes the forward one is a layer ahead; losses are computed when both are through.
    #[test]
    fn a_layer_ahead_is_not_held_beside_the_losses() {
        let mut training = deepseek_v3();
        training.stack.loss_bytes = Some(10);
        let of = |training: &Training, last: bool| {
            buffers(&Sizes::new(training), &[chunk(training, 2, last)], None)
        };
        let alone = [false, true].map(|last| of(&training, last));
        training.stack.overlap.expert = true;
        let woven = [false, true].map(|last| of(&training, last));
        assert!(alone[1] > alone[0], "losses are the most: {alone:?}");
        assert_eq!(woven[0], alone[0] + layer_activations_of_last(&training));
        assert_eq!(woven[1], alone[1].max(woven[0]));
    }

    /// While layers are computed one is on its way each way; while losses are, at most one has not left, and none where two
    /// layers stay or nothing leaves.
    #[test]
    fn layers_on_their_way_are_not_all_held_beside_the_losses() {
        let mut training = deepseek_v3();
        let way = |training: &Training, chunks: &[Chunk]| {
            let OnTheWay {
                beside_losses,
                beside_layers,
            } = on_the_way(&Sizes::new(training), chunks);
            (beside_losses, beside_layers)
        };
        let last = chunk(&training, 4, true);
        assert_eq!(way(&training, std::slice::from_ref(&last)), (0, 0));
        training.stack.activation_offload.inputs = vec![OffloadedInput::Layer];
        let layer = layer_activations_of_last(&training);
        // All but the last leave.
        let all = way(&training, std::slice::from_ref(&last));
        assert_eq!(all, (layer, 2 * layer));
        training.stack.activation_offload.fraction = 0.6;
        let some = way(&training, std::slice::from_ref(&last));
        assert_eq!(some, (0, 2 * layer));
        // Of another chunk some may still be on their way.
        let two = [chunk(&training, 4, false), last];
        assert_eq!(way(&training, &two), (layer, 2 * layer));
    }

    /// Buffers that are kept hold the gradients of two layers beside their parameters.
    #[test]
    fn kept_buffers_hold_gradients_of_two_layers_as_well() {
        let mut training = gpt3(1, false);
        training.parallelism.zero = Zero::Stage3;
        let of = |training: &Training| {
            let chunks = [chunk(training, 4, false)];
            let placement = Placement::new(&training.parallelism, RankOrder::DataBeforePipeline);
            of_stage(&Sizes::new(training), &placement, &chunks, &[]).buffers
        };
        let without = of(&training);
        training.stack.keeps_gather_buffers = true;
        let s = Sizes::new(&training);
        let kind = training.model.layer_kind(training.model.layers - 1);
        let parameters = crate::compile::layer_parameters(&s, kind);
        let layer = (parameters.dense + parameters.expert) * training.stack.gradient_bytes;
        assert_eq!(of(&training), without + Bytes::new(2 * layer));
    }

    fn layer_activations_of_last(training: &Training) -> u64 {
        let kind = training.model.layer_kind(training.model.layers - 1);
        layer_activations(&Sizes::new(training), kind)
    }
}
