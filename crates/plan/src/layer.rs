//! The operations of one transformer layer on one rank, forward and backward, after sharding.
//!
//! Byte counts of streaming kernels follow from what each must read and write once; a stack that
//! does not fuse pays for every intermediate. Backward of a linear layer is two GEMMs of the
//! forward's size: the input gradient, on which the layer before waits, and the weight gradient,
//! on which nobody does.

use crate::cause::CommKind;
use crate::program::{GroupSlot, Stream};
use crate::run::{Builder, Context, Run, Spec};
use crate::vision::Encoder;
use rackflow_network::{CollectiveOp, ExchangeWay};
use rackflow_units::{Bytes, Precision, SimDuration};
use rackflow_workload::{
    Access, Activation, Attention, CudaGraphs, Direction, ExpertDispatcher, FeedForward, LayerKind,
    MoE, Model, Operation, Parallelism, Recipe, Recompute, SoftwareStack, Training, Zero,
};
use std::sync::Arc;

/// Which part of a backward pass a run contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Gradients {
    /// Input and weight gradients.
    Both,
    /// Only what the stage before waits for.
    Input,
    /// Only the weight gradients.
    Weight,
}

impl Gradients {
    fn input(self) -> bool {
        self != Self::Weight
    }
    fn weight(self) -> bool {
        self != Self::Input
    }
}

/// Sizes that every layer of a plan shares.
#[derive(Clone)]
pub(crate) struct Sizes<'a> {
    pub training: &'a Training,
    pub model: &'a Model,
    pub stack: &'a SoftwareStack,
    pub plan: &'a Parallelism,
    /// Tokens of one micro-batch on one tensor-parallel group.
    pub tokens: u64,
    /// Tokens of one micro-batch that one rank norms and routes.
    pub own_tokens: u64,
    /// The vision encoder in front of the model, where there are images.
    pub encoder: Option<Arc<Encoder>>,
    /// These are the sizes of an encoder: sequences are images, in which every token sees all.
    pub is_encoder: bool,
}

impl<'a> Sizes<'a> {
    pub fn new(training: &'a Training) -> Self {
        let plan = &training.parallelism;
        let tokens = training.micro_batch * training.sequence_length / u64::from(plan.context);
        let sharded = plan.tensor > 1 && plan.sequence_parallel;
        Self {
            training,
            model: &training.model,
            stack: &training.stack,
            plan,
            tokens,
            own_tokens: if sharded {
                tokens / u64::from(plan.tensor)
            } else {
                tokens
            },
            encoder: Encoder::of(training).map(Arc::new),
            is_encoder: false,
        }
    }

    /// Adjacent forward and backward passes are woven into one.
    pub fn weaves_passes(&self) -> bool {
        self.stack.overlap.expert && self.plan.expert > 1
    }

    pub fn tp(&self) -> u64 {
        u64::from(self.plan.tensor)
    }

    /// What a run of kernels is called: those of an encoder by its name.
    fn named(&self, label: &'static str) -> &'static str {
        match label {
            "attention" if self.is_encoder => "vision attention",
            "attention backward" if self.is_encoder => "vision attention backward",
            "feed-forward" if self.is_encoder => "vision feed-forward",
            "feed-forward backward" if self.is_encoder => "vision feed-forward backward",
            _ => label,
        }
    }

    fn recomputes(&self, activation: Activation) -> bool {
        match &self.training.recompute {
            Recompute::Activations(list) => list.contains(&activation),
            Recompute::Selective => activation == Activation::CoreAttention,
            _ => false,
        }
    }

    fn quantized(&self) -> bool {
        self.training.recipe.gemm().bits() < 16
    }

    /// Bytes of the residual stream of one micro-batch in bf16, over the whole tensor group.
    fn residual(&self) -> Bytes {
        Bytes::new(self.tokens * self.model.hidden * 2)
    }

    /// Whether tensor ranks convert their part before they gather. Scales of rows and columns are found
    /// over the whole (torchao gathers in 8 bits under tensor-wise scales only).
    fn gathers_narrow(&self) -> bool {
        self.quantized() && self.training.recipe != Recipe::Fp8Rowwise
    }

    /// The same as the tensor group gathers it: in 8 bits where the products behind it take them.
    fn gathered(&self) -> Bytes {
        if self.gathers_narrow() {
            Bytes::new(self.tokens * self.model.hidden)
        } else {
            self.residual()
        }
    }

    /// A linear layer's forward product: `tokens` x `k` by `k` x `n`.
    pub fn linear(&self, tokens: u64, n: u64, k: u64) -> Operation {
        gemm(tokens, n, k, self.training.recipe.gemm(), 2)
    }

    /// One of the equal pieces into which a stack cuts the same product, to communicate beside it. It issues them
    /// on several streams in turn (Transformer Engine, `comm_gemm_overlap.cpp`, `_stream_compute`; PyTorch,
    /// `_symmetric_memory`, its backend stream).
    fn piece_of_linear(&self, pieces: u64, tokens: u64, n: u64, k: u64) -> Operation {
        gemm_piece(pieces, self.linear(tokens / pieces, n, k))
    }

    /// Its input's gradient: `tokens` x `k` by `k` x `n`.
    pub fn input_gradient(&self, tokens: u64, n: u64, k: u64) -> Vec<Operation> {
        let mut ops = vec![self.linear(tokens, n, k)];
        ops.extend(self.rescaled(tokens * n));
        ops
    }

    /// As [`Self::piece_of_linear`] for [`Self::input_gradient`].
    fn piece_of_input_gradient(&self, pieces: u64, tokens: u64, n: u64, k: u64) -> Vec<Operation> {
        let whole = self.input_gradient(tokens / pieces, n, k);
        whole.into_iter().map(|op| gemm_piece(pieces, op)).collect()
    }

    /// The gradient of one input that several `products` (columns and reduced dimension) took.
    fn shared_input_gradient(&self, tokens: u64, products: &[(u64, u64)]) -> Vec<Operation> {
        if let [(n, k)] = products {
            return self.input_gradient(tokens, *k, *n);
        }
        let mut ops: Vec<Operation> = products
            .iter()
            .map(|(n, k)| self.linear(tokens, *k, *n))
            .collect();
        let one = products.first().map_or(0, |(_, k)| tokens * k);
        ops.extend(self.summed(halves(one), products.len() as u64));
        ops
    }

    /// Adding up `parts` gradients of one tensor of `bytes` each. A compiler adds them in the kernel that
    /// reads the sum (or in the product, cuBLAS's beta), unless a collective reads it and the products, in
    /// 8 bits, cannot add; scales of rows and columns are applied on the way. Eager autograd adds one after
    /// the other.
    fn summed(&self, bytes: Bytes, parts: u64) -> Option<Operation> {
        let more = parts.saturating_sub(1);
        if more == 0 {
            return None;
        }
        Some(if !self.stack.fused_activation {
            stream(bytes * (2 * more), bytes * more, more as u32)
        } else if self.quantized() && self.plan.tensor > 1 {
            stream(bytes * parts, bytes, 1)
        } else {
            stream(bytes * more, Bytes::ZERO, 0)
        })
    }

    /// Converting the weights of `products` where their scales are of rows and columns: each product
    /// converts its own, the backward pass along the other axis (torchao, `float8_linear.py`).
    fn converted_weights(&self, products: &[(u64, u64)], direction: Direction) -> Vec<Operation> {
        if self.training.recipe != Recipe::Fp8Rowwise {
            return vec![];
        }
        let elements: u64 = products.iter().map(|(n, k)| n * k).sum();
        let kernels = products.len() as u32;
        match direction {
            Direction::Forward => vec![by_rows(elements, kernels)],
            Direction::Backward => by_columns(elements, kernels).into(),
        }
    }

    /// The transpose of what the tensor ranks gathered in 8 bits, `k` wide, which the weight's gradient
    /// reads where tensor cores take 8-bit operands in one layout only: no rank has it before the gather
    /// (Transformer Engine, `fp8_transpose` of `ln_out_total` and of the gathered gradient; torchao,
    /// `preprocess_addmm`).
    fn transposed(&self, k: u64) -> Option<Operation> {
        let gathered = self.plan.tensor > 1 && self.plan.sequence_parallel;
        (gathered && self.gathers_narrow() && self.reads_one_layout()).then(|| {
            let all = Bytes::new(self.tokens * k);
            stream(all, all, 1)
        })
    }

    /// Whether weight gradients in the format read a transposed copy.
    fn reads_one_layout(&self) -> bool {
        matches!(
            self.training.recipe,
            Recipe::Fp8 | Recipe::Fp8Delayed | Recipe::Fp8Blockwise
        )
    }

    /// Scales of rows and columns are applied to `elements` of a gradient by a kernel of its own: torchao's
    /// products of the backward pass accumulate slowly, where cuBLAS with unit scales is faster than the
    /// kernel that knows them (pytorch/ao pull request 1325).
    fn rescaled(&self, elements: u64) -> Option<Operation> {
        (self.training.recipe == Recipe::Fp8Rowwise)
            .then(|| stream(halves(elements), halves(elements), 1))
    }

    /// Its weight gradient, accumulated over micro-batches in the stack's gradient format.
    pub fn weight_gradient(&self, tokens: u64, n: u64, k: u64) -> Vec<Operation> {
        let precision = self.training.recipe.gemm();
        let mut ops = vec![gemm(n, k, tokens, precision, self.gradient_output_bytes())];
        ops.extend(self.rescaled(n * k));
        ops.extend(self.accumulate(n * k));
        ops
    }

    /// Bytes per element that the product of a weight gradient moves: read, add and write in the
    /// accumulation format, or just the result.
    fn gradient_output_bytes(&self) -> u64 {
        if self.stack.fused_gradient_accumulation {
            2 * self.stack.gradient_bytes
        } else {
            2
        }
    }

    /// Adding a finished gradient into its buffer, where that is a kernel of its own.
    fn accumulate(&self, elements: u64) -> Option<Operation> {
        let kept = self.stack.gradient_bytes;
        // A wider buffer takes a copy of the gradient in its own format; what was added is cleared.
        let (read, written, kernels) = if kept > 2 {
            (2 + 2 * kept, 2 * kept + 2, 3)
        } else {
            (2 + kept, kept, 1)
        };
        (!self.stack.fused_gradient_accumulation).then(|| {
            stream(
                Bytes::new(elements * read),
                Bytes::new(elements * written),
                kernels,
            )
        })
    }

    /// Whether prediction modules are computed again: `recompute_method: block` leaves them out (Megatron-Core,
    /// `MultiTokenPredictionLayer`).
    pub fn recomputes_modules(&self) -> bool {
        self.training.recompute == Recompute::Full
    }

    /// Whether autograd is given gradients that nobody reads, since products have added them already. Where ZeRO shards
    /// parameters they do not: recipes with FSDP turn that off (Megatron-Bridge, `gradient_accumulation_fusion`).
    pub fn keeps_dummy_gradients(&self) -> bool {
        self.may_keep_dummy_gradients() && self.plan.zero < Zero::Stage3
    }

    /// The same whatever ZeRO shards.
    pub fn may_keep_dummy_gradients(&self) -> bool {
        self.stack.dummy_gradients && self.stack.fused_gradient_accumulation
    }

    /// The weight that makes logits, as this rank holds it: rows and columns.
    pub fn output_weight(&self) -> (u64, u64) {
        (self.model.vocab.div_ceil(self.tp()), self.model.hidden)
    }

    /// Elements of this rank's part of the table of tokens.
    pub fn table(&self) -> u64 {
        self.model.table_parameters() / self.tp()
    }

    /// Adding the gradient of the table of tokens into its buffer, which no product does.
    fn accumulate_table(&self) -> Operation {
        let (table, kept) = (self.table(), self.stack.gradient_bytes);
        let (read, write) = (table * (2 + kept), table * kept);
        let access = if kept == 2 {
            Access::Elementwise
        } else {
            Access::Mixed
        };
        self.accumulate(table)
            .unwrap_or_else(|| streamed(Bytes::new(read), Bytes::new(write), 1, access))
    }

    /// Converting `elements` activations to the GEMM's format, row- and column-wise.
    fn quantize(&self, elements: u64) -> Vec<Operation> {
        if !self.stack.fused_quantization {
            return self.quantize_apart(elements);
        }
        // The kernel before writes what this product reads. The weight gradient reads the
        // transpose, which tensor cores that take 8-bit operands in one layout only need as a copy
        // (NVIDIA Transformer Engine, fp8 primer).
        self.reads_one_layout()
            .then(|| stream(Bytes::new(elements), Bytes::new(elements), 1))
            .into_iter()
            .collect()
    }

    /// Converting the part of the activations that this rank holds, before the tensor ranks gather them.
    fn quantize_part(&self, elements: u64) -> Vec<Operation> {
        if !self.stack.fused_quantization {
            return self.converted_apart(elements, self.layouts_before_gather());
        }
        // Nothing but the transposed copy is left to do, and that is made of the whole.
        vec![]
    }

    /// The same of gradients.
    fn quantize_gradient_part(&self, elements: u64) -> Vec<Operation> {
        if !self.quantized() {
            return vec![];
        }
        let layouts = self.layouts_before_gather();
        if !self.stack.fused_quantization {
            return self.converted_apart(elements, layouts);
        }
        let narrow = Bytes::of_elements(elements, self.training.recipe.gemm().bits());
        vec![stream(Bytes::new(elements * 2), narrow * layouts, 1)]
    }

    /// Layouts that a conversion writes where ranks gather its result: a transpose is made of the whole.
    fn layouts_before_gather(&self) -> u64 {
        if self.reads_one_layout() { 1 } else { 2 }
    }

    /// Converting `elements` gradients, both ways: there is no norm or activation to fuse it into.
    fn quantize_gradient(&self, elements: u64) -> Vec<Operation> {
        if !self.quantized() {
            return vec![];
        }
        if !self.stack.fused_quantization {
            return self.quantize_apart(elements);
        }
        let narrow = Bytes::of_elements(elements, self.training.recipe.gemm().bits());
        vec![stream(Bytes::new(elements * 2), narrow * 2, 1)]
    }

    /// The same where a permutation lies before it, so that there is no kernel to fuse it into.
    fn quantize_apart(&self, elements: u64) -> Vec<Operation> {
        self.converted_apart(elements, 2)
    }

    /// Converting `elements` by kernels of their own, written in `layouts`.
    fn converted_apart(&self, elements: u64, layouts: u64) -> Vec<Operation> {
        if !self.quantized() {
            return vec![];
        }
        let narrow = Bytes::of_elements(elements, self.training.recipe.gemm().bits());
        // Current scaling passes over the tensor for its maximum; delayed scaling knows its scale, and
        // block scales are found in the pass that converts.
        let passes = match self.training.recipe {
            Recipe::Fp8 => 2,
            Recipe::Fp8Rowwise => {
                let [maxima, columns] = by_columns(elements, 1);
                return vec![by_rows(elements, 1), maxima, columns];
            }
            _ => 1,
        };
        vec![stream(
            Bytes::new(elements * 2 * passes),
            narrow * layouts,
            passes as u32,
        )]
    }
}

/// Converting `elements` with a scale for each row, which is found in the pass that converts.
fn by_rows(elements: u64, kernels: u32) -> Operation {
    stream(Bytes::new(elements * 2), Bytes::new(elements), kernels)
}

/// Converting `elements` with a scale for each column: a pass for the largest values, and one that
/// writes the transpose, since products read both operands along what they add up.
fn by_columns(elements: u64, kernels: u32) -> [Operation; 2] {
    [
        stream(Bytes::new(elements * 2), Bytes::ZERO, kernels),
        streamed(
            Bytes::new(elements * 2),
            Bytes::new(elements),
            kernels,
            Access::Transposed,
        ),
    ]
}

/// Streaming kernels that compute on what passes by.
pub(crate) fn stream(read: Bytes, write: Bytes, kernels: u32) -> Operation {
    streamed(read, write, kernels, Access::Elementwise)
}

/// Streaming kernels that only move bytes.
pub(crate) fn copied(read: Bytes, write: Bytes, kernels: u32) -> Operation {
    streamed(read, write, kernels, Access::Copy)
}

/// Framework kernels over views with strides or repeated operands.
fn strided(read: Bytes, write: Bytes, kernels: u32) -> Operation {
    streamed(read, write, kernels, Access::Strided)
}

fn streamed(read: Bytes, write: Bytes, kernels: u32, access: Access) -> Operation {
    Operation::Stream {
        read,
        write,
        kernels,
        flops: 0.0,
        access,
    }
}

pub(crate) fn gemm(m: u64, n: u64, k: u64, precision: Precision, output_bytes: u64) -> Operation {
    Operation::Gemm {
        m,
        n,
        k,
        batch: 1,
        pieces: 1,
        sms_left: 0,
        precision,
        output_bytes,
    }
}

/// A product as one of so many pieces; other operations as they are.
fn gemm_piece(of: u64, mut op: Operation) -> Operation {
    if let Operation::Gemm { pieces, .. } = &mut op {
        *pieces = of;
    }
    op
}

/// A product that leaves so many SMs to communication; other operations as they are.
fn leaving_sms(sms: u32, mut op: Operation) -> Operation {
    if let Operation::Gemm { sms_left, .. } = &mut op {
        *sms_left = sms;
    }
    op
}

/// `count` values of 2 bytes.
pub(crate) fn halves(count: u64) -> Bytes {
    Bytes::new(count * 2)
}

/// RMSNorm or LayerNorm with the residual addition before it.
pub(crate) fn norm_forward(s: &Sizes<'_>) -> Vec<Operation> {
    let x = halves(s.own_tokens * s.model.hidden);
    if s.stack.fused_norms {
        vec![stream(x * 2, x * 2, 1)]
    } else if is_layer_norm(s) {
        // Residual addition, norm.
        vec![stream(x * 3, x * 2, 2)]
    } else {
        // Bias and dropout, residual addition, norm in fp32 with its casts.
        vec![stream(x * 2, x * 2, 2), stream(x * 3, x * 3, 3)]
    }
}

pub(crate) fn norm_backward(s: &Sizes<'_>) -> Vec<Operation> {
    let x = halves(s.own_tokens * s.model.hidden);
    if s.stack.fused_norms {
        vec![stream(x * 3, x, 2)]
    } else if is_layer_norm(s) {
        // Its input's gradient, its parameters', and the sum with the residual's.
        vec![stream(x * 6, x * 2, 4)]
    } else {
        vec![stream(x * 4, x * 3, 5), stream(x * 2, x, 1)]
    }
}

/// Gradients of queries, keys and values that one product made: eager PyTorch copies them into one
/// tensor, and adds them up for the bias.
fn put_together(s: &Sizes<'_>, inputs: &Products, latents: &Products) -> Vec<Operation> {
    let width: u64 = inputs.iter().map(|(n, _)| n).sum();
    let mut ops: Vec<Operation> = bias_gradient(s, width).into_iter().collect();
    if !ops.is_empty() && latents.is_empty() {
        let all = halves(s.tokens * width);
        ops.push(stream(all, all, 1));
    }
    ops
}

/// Models with biases normalise with LayerNorm, which PyTorch computes in one kernel; RMSNorm it
/// composes of several.
fn is_layer_norm(s: &Sizes<'_>) -> bool {
    s.model.biases
}

/// Kernels around products that nothing is fused into: an addition of `width` gradients over the tokens
/// for each bias. The biases themselves are added by the products (cuBLASLt's epilogue).
fn bias_gradient(s: &Sizes<'_>, width: u64) -> Option<Operation> {
    let apart = s.model.biases && !s.stack.fused_activation;
    apart.then(|| stream(halves(s.tokens * width), Bytes::ZERO, 1))
}

/// Widths of the products around attention, on one tensor rank.
struct AttentionShape {
    heads: u64,
    kv_heads: u64,
    qk: u64,
    v: u64,
}

fn attention_shape(s: &Sizes<'_>) -> AttentionShape {
    match s.model.attention {
        Attention::Grouped {
            heads,
            kv_heads,
            head_dim,
            ..
        } => AttentionShape {
            heads: heads / s.tp(),
            // Fewer key-value heads than ranks: each rank keeps a copy of one.
            kv_heads: (kv_heads / s.tp()).max(1),
            qk: head_dim,
            v: head_dim,
        },
        Attention::Latent {
            heads,
            qk_nope_head_dim,
            qk_rope_head_dim,
            v_head_dim,
            ..
        } => AttentionShape {
            heads: heads / s.tp(),
            kv_heads: heads / s.tp(),
            qk: qk_nope_head_dim + qk_rope_head_dim,
            v: v_head_dim,
        },
    }
}

/// Columns and reduced dimension of linear layers.
type Products = Vec<(u64, u64)>;

/// The linear layers before attention: those that take the layer's input, then those that take a
/// latent (MLA).
fn projections(s: &Sizes<'_>) -> (Products, Products) {
    let h = s.model.hidden;
    let shape = attention_shape(s);
    match s.model.attention {
        Attention::Grouped { .. } => {
            let widths = [
                shape.heads * shape.qk,
                shape.kv_heads * shape.qk,
                shape.kv_heads * shape.v,
            ];
            let products = if s.stack.separate_projections {
                widths.map(|n| (n, h)).to_vec()
            } else {
                vec![(widths.iter().sum(), h)]
            };
            (products, vec![])
        }
        Attention::Latent {
            q_lora_rank,
            kv_lora_rank,
            qk_nope_head_dim,
            qk_rope_head_dim,
            v_head_dim,
            ..
        } => {
            let q_width = shape.heads * shape.qk;
            let kv_up = (shape.heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank);
            let kv_down = (kv_lora_rank + qk_rope_head_dim, h);
            match q_lora_rank {
                Some(rank) => (vec![(rank, h), kv_down], vec![(q_width, rank), kv_up]),
                None => (vec![(q_width, h), kv_down], vec![kv_up]),
            }
        }
    }
}

/// Attention proper. Returns one list of operations per context-parallel step.
fn attention_ops(s: &Sizes<'_>, kind: LayerKind, direction: Direction) -> Vec<Vec<Operation>> {
    let shape = attention_shape(s);
    let sequence = s.training.sequence_length;
    let ranks = u64::from(s.plan.context);
    let own = sequence / ranks;
    let batch = s.training.micro_batch;
    let (batch, own, mask) = if s.is_encoder {
        // Every token sees all of its image, or all of its window: each is a sequence of its own.
        let windows = kind.window.map_or(1, |window| own.div_ceil(window.max(1)));
        (batch * windows, own.div_ceil(windows), 1.0)
    } else {
        (batch, own, kind.keys_seen(sequence) / sequence as f64)
    };
    let step = Operation::Attention {
        batch,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        query_len: own,
        kv_len: own,
        head_dim_qk: shape.qk,
        head_dim_v: shape.v,
        mask_fraction: mask,
        direction,
        precision: Precision::Bf16,
    };
    // The load-balanced ring gives every rank the same share of the mask at every step.
    let steps = if ranks > 1 { ranks } else { 1 };
    (0..steps).map(|_| vec![step.clone()]).collect()
}

/// Norms over the width of each query and key head (Qwen3), a module for queries and one for keys.
fn head_norms(s: &Sizes<'_>, direction: Direction) -> Option<Operation> {
    let Attention::Grouped { qk_norm: true, .. } = s.model.attention else {
        return None;
    };
    let shape = attention_shape(s);
    let bytes = halves(s.tokens * (shape.heads + shape.kv_heads) * shape.qk);
    Some(match direction {
        Direction::Forward => stream(bytes, bytes, 2),
        // Its input and its result's gradient give the input's; the scale's is summed by a second kernel.
        Direction::Backward => stream(bytes * 2, bytes, 4),
    })
}

fn rope(s: &Sizes<'_>, direction: Direction) -> Vec<Operation> {
    if s.model.learned_positions > 0 {
        return vec![];
    }
    let shape = attention_shape(s);
    let (width, fused) = match s.model.attention {
        // The fused kernel knows no scale of attention (Megatron-Core, `apply_rotary_pos_emb`); that of latent
        // attention takes cosines and sines that hold it.
        Attention::Grouped { .. } => (
            (shape.heads + shape.kv_heads) * shape.qk,
            s.stack.fused_rope && !s.model.scaled_rope,
        ),
        // The rotary part is small, but queries and keys are put together from two parts.
        Attention::Latent { .. } => (
            2 * shape.heads * shape.qk,
            s.stack.fused_latent_rope.unwrap_or(s.stack.fused_rope),
        ),
    };
    let elements = s.tokens * width;
    let bytes = halves(elements);
    if fused {
        return vec![stream(bytes, bytes, 2)];
    }
    if let Attention::Latent {
        qk_rope_head_dim, ..
    } = s.model.attention
    {
        return latent_rope(s, qk_rope_head_dim, direction);
    }
    // Queries and keys each: times the cosine, one half negated, halves exchanged, times the sine over
    // views and repeated angles; the sum and putting the parts together over what lies side by side
    // (Megatron-Core, `_apply_rotary_pos_emb_bshd`). Going back, the gradients of its slices and their
    // sums are added.
    let (beside, kernels) = match direction {
        Direction::Forward => ((3, 2), 4),
        Direction::Backward => ((5, 5), 10),
    };
    vec![
        strided(Bytes::new(elements * 7), Bytes::new(elements * 7), 8),
        stream(bytes * beside.0, bytes * beside.1, kernels),
    ]
}

/// Rotary embedding of latent attention in the framework's own kernels, `rotary` elements of each head: even
/// and odd elements are parted first, then it goes as in other attention, and queries, keys and values
/// are put together from views of what two products left (Megatron-Core, `multi_latent_attention.py`,
/// `_apply_rotary_pos_emb_bshd` with `multi_latent_attention`). All heads share the rotary part of the keys, which
/// is a kernel's work and no bytes to speak of.
fn latent_rope(s: &Sizes<'_>, rotary: u64, direction: Direction) -> Vec<Operation> {
    let shape = attention_shape(s);
    let bytes = |per_head: u64| Bytes::new(s.tokens * shape.heads * per_head);
    // Elements of one head of the queries, which the keys' own part and the rotary one make up too.
    let (whole, own) = (shape.qk, shape.qk - rotary);
    match direction {
        // Even and odd parted (2, 2), cosine (2, 2), half negated (1, 1), halves exchanged (2, 2), sine (2, 2);
        // queries and keys of two parts each, values from beside the keys. Side by side: the sum (4, 2) and a
        // copy (2, 2). Cosines and sines of the angles are small.
        Direction::Forward => vec![
            strided(
                bytes(9 * rotary + 2 * (whole + own + shape.v)),
                bytes(9 * rotary + 2 * (2 * whole + shape.v)),
                13,
            ),
            stream(bytes(6 * rotary), bytes(4 * rotary), 16),
        ],
        // Cosine, sine, half negated, halves joined (7, 7), even and odd put back (2, 2); gradients of the two
        // products joined of theirs, those of the shared part summed over heads. Side by side: zeros that slices
        // are put into (0, 6) and three sums (12, 6).
        Direction::Backward => vec![
            strided(
                bytes(9 * rotary + 2 * (whole + own + shape.v + rotary)),
                bytes(9 * rotary + 2 * (whole + own + shape.v)),
                15,
            ),
            stream(bytes(12 * rotary), bytes(12 * rotary), 12),
        ],
    }
}

/// Bytes of the keys and values of one rank, which the context-parallel ring passes on.
fn context_bytes(s: &Sizes<'_>) -> Bytes {
    let shape = attention_shape(s);
    halves(s.tokens * shape.kv_heads * (shape.qk + shape.v))
}

/// What a step of the ring adds to attention proper: results of part of the keys are scaled by their
/// share of the softmax and added up, in fp32, and so are gradients of the queries; halves of the
/// sequence are cut out and put together (Transformer Engine, `context_parallel.py`,
/// `AttnFuncWithCPAndKVP2P`). A step concerns three quarters of the queries in the mean: all of them
/// for keys of ranks before, half for those of ranks after.
fn ring_step(s: &Sizes<'_>, direction: Direction) -> Operation {
    let shape = attention_shape(s);
    let queries = s.tokens * shape.heads * 3 / 4;
    match direction {
        // The step's result and the sum so far in fp32, which is written again.
        Direction::Forward => stream(
            Bytes::new(queries * shape.v * 6),
            Bytes::new(queries * shape.v * 4),
            5,
        ),
        Direction::Backward => {
            let keys = s.tokens * shape.kv_heads * (shape.qk + shape.v);
            stream(
                Bytes::new(queries * shape.qk * 4 + keys * 4),
                Bytes::new(queries * shape.qk * 2 + keys * 2),
                6,
            )
        }
    }
}

/// What the framework's ring does around one step of attention (PyTorch,
/// `torch/distributed/tensor/experimental/_attention.py`, load balanced, sums in fp32), as bytes read and
/// written for each element of a rank's queries. Half of the steps concern the second half of the queries and
/// half the first half of the keys; these are the means of both. Halves are views with strides.
fn framework_ring_step(s: &Sizes<'_>, direction: Direction) -> [Operation; 2] {
    let shape = attention_shape(s);
    let elements = s.tokens * shape.heads * shape.v.max(shape.qk);
    let halves = |bytes: u64| Bytes::new(elements * bytes / 2);
    match direction {
        // Keys and values joined (4, 4); the result in fp32 (1.5, 3); difference, product with its weight and
        // new sum (10, 6, and over halves 5, 3); halves joined (2, 2).
        Direction::Forward => [
            stream(halves(35), halves(30), 9),
            strided(halves(10), halves(6), 3),
        ],
        // Keys and values joined (4, 4); their gradients added up where layouts differ or over halves (9, 6)
        // and joined twice (12, 12); those of the queries added up (3, 2, and over halves 1.5, 1) and joined
        // (2, 2); the result brought into the layout that attention reads (1.5, 1.5).
        Direction::Backward => [
            stream(halves(42), halves(40), 8),
            strided(halves(24), halves(17), 5),
        ],
    }
}

/// The same once for all steps: first parts to fp32 and sums back to 16 bits; backward also the zeros that
/// gradients start from.
fn framework_ring_ends(s: &Sizes<'_>, direction: Direction) -> Operation {
    let shape = attention_shape(s);
    let elements = s.tokens * shape.heads * shape.v.max(shape.qk);
    match direction {
        Direction::Forward => stream(Bytes::new(elements * 6), Bytes::new(elements * 6), 2),
        Direction::Backward => stream(Bytes::new(elements * 12), Bytes::new(elements * 18), 6),
    }
}

/// Attention by the framework's ring: one gather of all keys and values beside the first step, each
/// repeated for its query heads; their gradients go round in fp32, each time beside the next step.
fn framework_ring(b: &mut Builder<'_, '_>, s: &Sizes<'_>, kind: LayerKind, direction: Direction) {
    let steps = attention_ops(s, kind, direction);
    let shape = attention_shape(s);
    let repeated = s.tokens * shape.heads * (shape.qk + shape.v);
    let ring = |b: &mut Builder<'_, '_>, label, spec| {
        b.collective(
            label,
            CommKind::Context,
            GroupSlot::Context,
            Stream::Tensor,
            spec,
            s.stack.communication_sms,
        )
    };
    let all = halves(repeated) * steps.len() as u64;
    let gather = Spec::Collective(CollectiveOp::AllGather, all);
    let gather = ring(b, "context all-gather", gather);
    let mut gradients = None;
    for (i, step) in steps.into_iter().enumerate() {
        if i == 1 {
            b.wait(gather);
        }
        b.extend(step);
        if let Some(arrived) = gradients.take() {
            b.wait(arrived);
        }
        // The first result is what the others are added to.
        if i > 0 || direction == Direction::Backward {
            b.extend(framework_ring_step(s, direction));
        }
        if direction == Direction::Backward {
            let spec = Spec::RingStep(Bytes::new(repeated * 4));
            gradients = Some(ring(b, "context ring", spec));
        }
    }
    if let Some(arrived) = gradients {
        b.wait(arrived);
    }
    b.op(framework_ring_ends(s, direction));
}

/// Runs `steps` of attention with the ring exchange of keys and values beside them; gradients of both
/// go round with them on the way back.
fn ring_attention(b: &mut Builder<'_, '_>, s: &Sizes<'_>, kind: LayerKind, direction: Direction) {
    if s.stack.framework_ring && s.plan.context > 1 {
        framework_ring(b, s, kind, direction);
        return;
    }
    let steps = attention_ops(s, kind, direction);
    let ranks = steps.len();
    let volume = match direction {
        Direction::Forward => 1,
        Direction::Backward => 2,
    };
    for (i, step) in steps.into_iter().enumerate() {
        let exchange = (i + 1 < ranks).then(|| {
            b.collective(
                "context ring",
                CommKind::Context,
                GroupSlot::Context,
                Stream::Tensor,
                Spec::RingStep(context_bytes(s) * volume),
                0,
            )
        });
        b.extend(step);
        if ranks > 1 {
            b.op(ring_step(s, direction));
        }
        if let Some(exchange) = exchange {
            b.wait(exchange);
        }
    }
}

/// Puts what the tensor group gathers or scatters along the sequence in order, where the batch comes
/// before the sequence.
fn reorder(b: &mut Builder<'_, '_>, s: &Sizes<'_>, bytes: Bytes) {
    if s.stack.copies_sequence_parts
        && s.plan.tensor > 1
        && s.plan.sequence_parallel
        && !s.stack.overlap.tensor
    {
        b.op(copied(bytes, bytes, 1));
    }
}

/// Issues a collective of the tensor group.
pub(crate) fn tensor_collective(
    b: &mut Builder<'_, '_>,
    label: &'static str,
    spec: Spec,
    sms: u32,
) -> u32 {
    b.collective(
        label,
        CommKind::Tensor,
        GroupSlot::Tensor,
        Stream::Tensor,
        spec,
        sms,
    )
}

/// How the tensor group sums: over sharded sequences, or with a copy on every rank.
fn sum_op(s: &Sizes<'_>) -> CollectiveOp {
    if s.plan.sequence_parallel {
        CollectiveOp::ReduceScatter
    } else {
        CollectiveOp::AllReduce
    }
}

/// How many pieces a gathering tensor-parallel collective is cut into where it overlaps with its GEMM: one for
/// each rank, as they come round the ring (Transformer Engine, `ring_exchange`).
fn gather_pieces(s: &Sizes<'_>) -> u64 {
    if s.stack.overlap.tensor { s.tp() } else { 1 }
}

/// Whether a tensor that its ranks hold in parts needs one scale for all of it, found by asking all of them.
fn shares_scales(s: &Sizes<'_>) -> bool {
    s.training.recipe == Recipe::Fp8 && s.plan.tensor > 1 && s.plan.sequence_parallel
}

/// Tells all ranks of the tensor group the largest value that any of them holds, before they convert and gather
/// (Transformer Engine, current scaling with `with_amax_reduction`).
fn share_scale(b: &mut Builder<'_, '_>, s: &Sizes<'_>) {
    if !shares_scales(s) {
        return;
    }
    let spec = Spec::Collective(CollectiveOp::AllReduce, Bytes::new(4));
    let told = tensor_collective(b, "scale all-reduce", spec, 0);
    b.wait(told);
}

/// Compares the largest values that a pass through `layers` has seen over the tensor and the data ranks and takes new
/// scales from them, before the next pass (Transformer Engine, `global_amax_reduction` at the end of `fp8_autocast`
/// and of the first module's backward pass).
pub(crate) fn compare_scales(ctx: &mut Context<'_>, s: &Sizes<'_>, layers: u64) -> Run {
    let maxima = Bytes::new(layers * SCALED_OPERANDS * 4);
    let spec = Spec::Collective(CollectiveOp::AllReduce, maxima);
    let mut b = Builder::new(ctx);
    if s.plan.data * s.plan.context > 1 {
        let (kind, slot) = (CommKind::Data, GroupSlot::Data);
        b.collective("scale all-reduce", kind, slot, Stream::Tensor, spec, 0);
    }
    if s.plan.tensor > 1 {
        tensor_collective(&mut b, "scale all-reduce", spec, 0);
    }
    b.finish()
}

/// Operands of a layer's four products in one direction that have a scale: inputs and weights, and what the
/// products write (Transformer Engine, `FP8FwdTensors`).
const SCALED_OPERANDS: u64 = 12;

/// Scales of rows whose width the tensor ranks share: the largest values of `rows` are found by a pass of their
/// own and compared over all ranks before anything is converted, and so are those of the weights that are cut
/// along the same axis (torchao, `tensor_to_amax` of tensors that are sharded along it).
fn share_row_scales(b: &mut Builder<'_, '_>, s: &Sizes<'_>, products: &[(u64, u64)], rows: u64) {
    if s.training.recipe != Recipe::Fp8Rowwise || s.plan.tensor == 1 {
        return;
    }
    for (width, weights) in products {
        b.op(stream(halves(rows * width), Bytes::new(rows * 4), 1));
        for maxima in [rows, *weights] {
            let spec = Spec::Collective(CollectiveOp::AllReduce, Bytes::new(maxima * 4));
            let told = tensor_collective(b, "scale all-reduce", spec, 0);
            b.wait(told);
        }
    }
}

/// `inputs`: the products that take the gathered activations. With overlap, pieces of the
/// activations arrive while the products of the pieces before them run.
fn gathered_products(b: &mut Builder<'_, '_>, s: &Sizes<'_>, inputs: &[(u64, u64)]) {
    let k = inputs.first().map_or(s.model.hidden, |(_, k)| *k);
    b.extend(s.converted_weights(inputs, Direction::Forward));
    if s.plan.tensor == 1 || !s.plan.sequence_parallel {
        b.extend(s.quantize(s.tokens * k));
        b.extend(inputs.iter().map(|(n, k)| s.linear(s.tokens, *n, *k)));
        return;
    }
    share_scale(b, s);
    if s.gathers_narrow() {
        b.extend(s.quantize_part(s.own_tokens * k));
    }
    let pieces = gather_pieces(s);
    let sms = if pieces > 1 {
        0
    } else {
        s.stack.communication_sms
    };
    for gather in gathered_pieces(b, s, sms) {
        if let Some(gather) = gather {
            b.wait(gather);
        }
        reorder(b, s, s.gathered());
        if !s.gathers_narrow() {
            b.extend(s.quantize(s.tokens / pieces * k));
        }
        b.extend(
            inputs
                .iter()
                .map(|(n, k)| s.piece_of_linear(pieces, s.tokens, *n, *k)),
        );
    }
}

/// Begins to gather, whole or in pieces as they come round the ring; what the product of each piece waits for. A
/// rank begins with its own piece, which is there.
fn gathered_pieces(b: &mut Builder<'_, '_>, s: &Sizes<'_>, sms: u32) -> Vec<Option<u32>> {
    let pieces = gather_pieces(s);
    if pieces == 1 {
        let whole = Spec::Collective(CollectiveOp::AllGather, s.gathered());
        return vec![Some(tensor_collective(b, "TP all-gather", whole, sms))];
    }
    // Of all that a gather moves, each of the others' pieces is an equal part.
    let one = Spec::Collective(CollectiveOp::AllGather, piece(s.gathered(), pieces - 1));
    let mut gathers = vec![None];
    for _ in 1..pieces {
        gathers.push(Some(tensor_collective(b, "TP all-gather", one, sms)));
    }
    gathers
}

fn piece(all: Bytes, pieces: u64) -> Bytes {
    Bytes::new(all.get().div_ceil(pieces))
}

/// The product whose result is summed over the tensor group; the next computation waits for it.
fn reduced_product(b: &mut Builder<'_, '_>, s: &Sizes<'_>, n: u64, k: u64) {
    share_row_scales(b, s, &[(k, n)], s.tokens);
    b.extend(s.quantize(s.tokens * k));
    b.extend(s.converted_weights(&[(n, k)], Direction::Forward));
    if s.plan.tensor == 1 {
        b.op(s.linear(s.tokens, n, k));
        return;
    }
    if !s.stack.overlap.tensor || !s.plan.sequence_parallel {
        b.op(s.linear(s.tokens, n, k));
        reorder(b, s, s.residual());
        let spec = Spec::Collective(sum_op(s), s.residual());
        let reduce = tensor_collective(b, "TP reduce", spec, s.stack.communication_sms);
        b.wait(reduce);
    } else if s.stack.tensor_reduce_sms > 0 {
        reduced_in_pipeline(b, s, n, k);
    } else {
        reduced_in_ring(b, s, n, k);
    }
}

/// A kernel sums the results of a piece on all ranks while the product of the next one runs, on the SMs that the
/// products leave to it (Transformer Engine, `pipeline`).
fn reduced_in_pipeline(b: &mut Builder<'_, '_>, s: &Sizes<'_>, n: u64, k: u64) {
    let pieces = s.tp().min(MOST_SPLITS);
    let product = s.piece_of_linear(pieces, s.tokens, n, k);
    let spec = Spec::OnSmsLeft(CollectiveOp::ReduceScatter, piece(s.residual(), pieces));
    let mut last = 0;
    for _ in 0..pieces {
        b.op(leaving_sms(s.stack.tensor_reduce_sms, product.clone()));
        last = tensor_collective(b, "TP reduce", spec, 0);
    }
    b.wait(last);
}

/// Every rank sends the results of each piece to whom they belong while the product of the next one runs, its own
/// piece last, and sums what has come (Transformer Engine, `ring_exchange`; PyTorch, `_fused_matmul_reduce_scatter`).
fn reduced_in_ring(b: &mut Builder<'_, '_>, s: &Sizes<'_>, n: u64, k: u64) {
    let (pieces, others) = (s.tp(), s.tp() - 1);
    let product = s.piece_of_linear(pieces, s.tokens, n, k);
    let spec = Spec::Collective(CollectiveOp::ReduceScatter, piece(s.residual(), others));
    let mut last = 0;
    for _ in 0..others {
        b.op(product.clone());
        last = tensor_collective(b, "TP reduce", spec, 0);
    }
    b.op(product);
    b.wait(last);
    b.op(stream(s.residual(), piece(s.residual(), pieces), 1));
}

/// Pieces into which Transformer Engine cuts a reduction in a `pipeline` (`num_splits`).
const MOST_SPLITS: u64 = 4;

/// Collects a gradient of the tensor-parallel region's output on all ranks (sequence parallel).
fn gather_gradient(b: &mut Builder<'_, '_>, s: &Sizes<'_>) {
    if s.plan.tensor > 1 && s.plan.sequence_parallel {
        let spec = Spec::Collective(CollectiveOp::AllGather, s.gathered());
        let sms = s.stack.communication_sms;
        let gather = tensor_collective(b, "TP all-gather", spec, sms);
        b.wait(gather);
        reorder(b, s, s.gathered());
    }
}

/// Collects a gradient of the region's output and multiplies it by `k` x `n` weights: in pieces
/// beside each other where the stack cuts tensor-parallel collectives, one after the other elsewhere.
fn gathered_gradient_product(b: &mut Builder<'_, '_>, s: &Sizes<'_>, n: u64, k: u64) {
    let pieces = gather_pieces(s);
    let parted = s.plan.tensor > 1 && s.plan.sequence_parallel && s.gathers_narrow();
    b.extend(s.converted_weights(&[(k, n)], Direction::Backward));
    share_scale(b, s);
    if parted {
        b.extend(s.quantize_gradient_part(s.own_tokens * k));
    }
    if pieces == 1 || !s.plan.sequence_parallel {
        gather_gradient(b, s);
        if !parted {
            b.extend(s.quantize_gradient(s.tokens * k));
        }
        b.extend(s.input_gradient(s.tokens, n, k));
        return;
    }
    for gather in gathered_pieces(b, s, 0) {
        if let Some(gather) = gather {
            b.wait(gather);
        }
        if !parted {
            b.extend(s.quantize_gradient(s.tokens / pieces * k));
        }
        b.extend(s.piece_of_input_gradient(pieces, s.tokens, n, k));
    }
}

/// The weight gradient of the product whose result is summed over the tensor group, `n` x `k`.
fn gathered_weight_gradient(s: &Sizes<'_>, n: u64, k: u64) -> Vec<Operation> {
    let mut ops: Vec<Operation> = s.transposed(n).into_iter().collect();
    ops.extend(s.weight_gradient(s.tokens, n, k));
    ops
}

/// The weight gradients of the `products` that take what the tensor group gathers.
fn gathered_input_weight_gradients(s: &Sizes<'_>, products: &[(u64, u64)]) -> Vec<Operation> {
    let k = products.first().map_or(0, |(_, k)| *k);
    let mut ops: Vec<Operation> = s.transposed(k).into_iter().collect();
    ops.extend(
        products
            .iter()
            .flat_map(|(n, k)| s.weight_gradient(s.tokens, *n, *k)),
    );
    ops
}

/// Collects the region's input once more, of which each rank kept its part: the weight gradients
/// need all of it. Runs beside the input gradient; returns what to wait for.
fn gather_input_again(b: &mut Builder<'_, '_>, s: &Sizes<'_>) -> Option<u32> {
    let gather = gather_input(b, s)?;
    if s.stack.collectives_first {
        return Some(gather);
    }
    b.wait(gather);
    reorder(b, s, s.gathered());
    None
}

fn gather_input(b: &mut Builder<'_, '_>, s: &Sizes<'_>) -> Option<u32> {
    (s.plan.tensor > 1 && s.plan.sequence_parallel).then(|| {
        let sms = if gather_pieces(s) > 1 {
            0
        } else {
            s.stack.communication_sms
        };
        let spec = Spec::Collective(CollectiveOp::AllGather, s.gathered());
        tensor_collective(b, "TP all-gather", spec, sms)
    })
}

/// SMs of a tensor-parallel collective that runs beside a product uncut (Transformer Engine, `bulk`): what
/// NVIDIA's configurations give it (mlcommons/training_results_v4.0, NVIDIA gpt3, `tp_overlap`:
/// `num_sm: 4`; NeMo, `tp_overlap_configs/userbuffers.py`).
const BULK_SMS: u32 = 4;

/// Sums the gradient of the region's input over the tensor group; `beside` runs meanwhile.
fn reduce_gradient(b: &mut Builder<'_, '_>, s: &Sizes<'_>, beside: Vec<Operation>) {
    if s.plan.tensor == 1 {
        b.extend(beside);
        return;
    }
    let op = sum_op(s);
    let sms = if s.stack.overlap.tensor {
        BULK_SMS.min(s.stack.communication_sms)
    } else {
        s.stack.communication_sms
    };
    reorder(b, s, s.residual());
    let spec = Spec::Collective(op, s.residual());
    let reduce = tensor_collective(b, "TP reduce", spec, sms);
    if s.stack.collectives_first {
        b.extend(beside);
        b.wait(reduce);
    } else {
        b.wait(reduce);
        b.extend(beside);
    }
}

fn attention_forward(b: &mut Builder<'_, '_>, s: &Sizes<'_>, kind: LayerKind) {
    let shape = attention_shape(s);
    let (inputs, latents) = projections(s);
    b.label(s.named("attention"));
    b.extend(norm_forward(s));
    gathered_products(b, s, &inputs);
    b.extend(latent_forward(s, &latents));
    b.extend(head_norms(s, Direction::Forward));
    b.extend(rope(s, Direction::Forward));
    ring_attention(b, s, kind, Direction::Forward);
    reduced_product(b, s, s.model.hidden, shape.heads * shape.v);
}

fn latent_forward(s: &Sizes<'_>, latents: &[(u64, u64)]) -> Vec<Operation> {
    let mut ops = Vec::new();
    for (n, k) in latents {
        ops.push(stream(halves(s.tokens * k), halves(s.tokens * k), 1));
        ops.extend(s.quantize(s.tokens * k));
        ops.push(s.linear(s.tokens, *n, *k));
    }
    ops
}

fn attention_backward(
    b: &mut Builder<'_, '_>,
    s: &Sizes<'_>,
    kind: LayerKind,
    gradients: Gradients,
) {
    let shape = attention_shape(s);
    let (inputs, latents) = projections(s);
    let h = s.model.hidden;
    let out = shape.heads * shape.v;
    b.label(s.named("attention backward"));
    if gradients == Gradients::Weight {
        b.extend(gathered_weight_gradient(s, h, out));
        b.extend(
            latents
                .iter()
                .flat_map(|(n, k)| s.weight_gradient(s.tokens, *n, *k)),
        );
        b.extend(gathered_input_weight_gradients(s, &inputs));
        return;
    }
    if s.recomputes(Activation::Norms) || s.recomputes(Activation::MlaUpProjection) {
        b.recompute(true);
        if s.recomputes(Activation::Norms) {
            b.host(s.stack.checkpoint_launch);
            b.extend(norm_forward(s));
        }
        if s.recomputes(Activation::MlaUpProjection) {
            b.host(s.stack.checkpoint_launch);
            b.extend(latent_forward(s, &latents));
            b.extend(rope(s, Direction::Forward));
        }
        b.recompute(false);
    }
    b.extend(bias_gradient(s, h));
    gathered_gradient_product(b, s, out, h);
    if gradients.weight() {
        b.extend(gathered_weight_gradient(s, h, out));
    }
    if s.recomputes(Activation::CoreAttention) {
        b.recompute(true);
        b.host(s.stack.checkpoint_launch);
        ring_attention(b, s, kind, Direction::Forward);
        b.recompute(false);
    }
    ring_attention(b, s, kind, Direction::Backward);
    b.extend(rope(s, Direction::Backward));
    b.extend(head_norms(s, Direction::Backward));
    b.extend(put_together(s, &inputs, &latents));
    for (n, k) in &latents {
        b.extend(s.quantize_gradient(s.tokens * n));
        b.extend(s.input_gradient(s.tokens, *k, *n));
        if gradients.weight() {
            b.extend(s.weight_gradient(s.tokens, *n, *k));
        }
        b.op(stream(halves(s.tokens * k * 3), halves(s.tokens * k), 2));
    }
    let width: u64 = inputs.iter().map(|(n, _)| n).sum();
    share_row_scales(b, s, &inputs, s.tokens);
    b.extend(s.quantize_gradient(s.tokens * width));
    let again = gradients
        .weight()
        .then(|| gather_input_again(b, s))
        .flatten();
    b.extend(s.converted_weights(&inputs, Direction::Backward));
    // The sum of both gradients of latent attention is left out: a thousandth of a layer.
    if latents.is_empty() {
        b.extend(s.shared_input_gradient(s.tokens, &inputs));
    } else {
        b.extend(
            inputs
                .iter()
                .flat_map(|(n, k)| s.input_gradient(s.tokens, *k, *n)),
        );
    }
    if let Some(again) = again {
        b.wait(again);
        reorder(b, s, s.gathered());
    }
    let beside = if gradients.weight() {
        gathered_input_weight_gradients(s, &inputs)
    } else {
        vec![]
    };
    reduce_gradient(b, s, beside);
    b.extend(norm_backward(s));
}

/// An activation function without a gate is one kernel in any case; its bias is added by the product.
fn is_one_kernel(s: &Sizes<'_>) -> bool {
    !s.model.gated
}

/// The activation function between the two products of a feed-forward network.
fn activation_forward(s: &Sizes<'_>, tokens: u64, width: u64) -> Operation {
    let x = halves(tokens * width);
    let inputs = if s.model.gated { 2 } else { 1 };
    if s.stack.fused_activation || is_one_kernel(s) {
        stream(x * inputs, x, 1)
    } else {
        // Bias, activation and gate pass one after the other.
        stream(x * (inputs + 2), x * 3, inputs as u32 + 2)
    }
}

fn activation_backward(s: &Sizes<'_>, tokens: u64, width: u64) -> Operation {
    let x = halves(tokens * width);
    let inputs = if s.model.gated { 2 } else { 1 };
    if s.stack.fused_activation || is_one_kernel(s) {
        stream(x * (inputs + 1), x * inputs, 1)
    } else {
        stream(x * (inputs + 5), x * (inputs + 3), inputs as u32 + 4)
    }
}

/// Gate and linear part clamped by kernels of their own before the activation, which fuses no clamp
/// (Megatron-Core, `weighted_bias_quick_geglu_impl`): each half, a view of every second block of
/// columns, is clamped, and both are put together again. Going back, the linear part is compared with
/// both limits and the gate with one, the gradient of each is chosen by that mask (PyTorch,
/// `clamp_backward`), and both are put together.
fn clamp(s: &Sizes<'_>, tokens: u64, width: u64, direction: Direction) -> Vec<Operation> {
    if !s.model.clamped {
        return vec![];
    }
    let elements = tokens * width * 2;
    let both = halves(elements);
    match direction {
        Direction::Forward => vec![strided(both, both, 2), stream(both, both, 1)],
        Direction::Backward => vec![
            strided(both * 3, Bytes::new(elements * 7 / 2), 5),
            stream(Bytes::new(elements * 3), Bytes::new(elements * 5 / 2), 2),
        ],
    }
}

fn up_width(s: &Sizes<'_>, width: u64) -> u64 {
    if s.model.gated { 2 * width } else { width }
}

/// The weights of attention as one rank holds them, rows and columns: those that make its inputs, and the one behind it.
pub(crate) fn attention_weights(s: &Sizes<'_>) -> (Products, (u64, u64)) {
    let shape = attention_shape(s);
    let (mut inputs, latents) = projections(s);
    inputs.extend(latents);
    (inputs, (s.model.hidden, shape.heads * shape.v))
}

/// Those of a layer's network, of all routed experts once: those before the activation function, and behind it.
pub(crate) fn network_weights(s: &Sizes<'_>, kind: LayerKind) -> (Products, Products) {
    let widths = match (kind.feed_forward, &s.model.moe) {
        (FeedForward::MoE, Some(moe)) => [
            moe.expert_ffn / u64::from(s.plan.expert_tensor),
            moe.shared_ffn / s.tp(),
        ],
        _ => [s.model.ffn / s.tp(), 0],
    };
    let widths = || widths.into_iter().filter(|width| *width > 0);
    let before = widths().flat_map(|width| up_products(s, width)).collect();
    (
        before,
        widths().map(|width| (s.model.hidden, width)).collect(),
    )
}

/// The weights of a layer that products multiply, as one rank holds them: rows and columns, once for all routed experts.
pub(crate) fn weights(s: &Sizes<'_>, kind: LayerKind) -> Products {
    let (mut weights, behind) = attention_weights(s);
    let (up, down) = network_weights(s, kind);
    weights.push(behind);
    weights.extend(up);
    weights.extend(down);
    weights
}

/// The projection in front of a prediction module: rows and columns.
pub(crate) fn mtp_weight(s: &Sizes<'_>) -> (u64, u64) {
    (s.model.hidden, 2 * s.model.hidden)
}

/// The products before the activation function of a dense network.
fn up_products(s: &Sizes<'_>, width: u64) -> Products {
    let h = s.model.hidden;
    if s.model.gated && s.stack.separate_projections {
        vec![(width, h); 2]
    } else {
        vec![(up_width(s, width), h)]
    }
}

/// `again`: the backward pass computes it a second time, perhaps without its last product.
fn dense_forward(b: &mut Builder<'_, '_>, s: &Sizes<'_>, again: bool) {
    let width = s.model.ffn / s.tp();
    b.label(s.named("feed-forward"));
    b.extend(norm_forward(s));
    gathered_products(b, s, &up_products(s, width));
    b.op(activation_forward(s, s.tokens, width));
    if !(again && s.stack.recompute_stops_early) {
        reduced_product(b, s, s.model.hidden, width);
    }
}

fn dense_backward(b: &mut Builder<'_, '_>, s: &Sizes<'_>, gradients: Gradients) {
    let h = s.model.hidden;
    let width = s.model.ffn / s.tp();
    let up = up_width(s, width);
    let products = up_products(s, width);
    b.label(s.named("feed-forward backward"));
    if gradients == Gradients::Weight {
        b.extend(gathered_weight_gradient(s, h, width));
        b.extend(gathered_input_weight_gradients(s, &products));
        return;
    }
    if s.recomputes(Activation::Mlp) {
        b.recompute(true);
        b.host(s.stack.checkpoint_launch);
        dense_forward(b, s, true);
        b.recompute(false);
    } else if s.recomputes(Activation::Swiglu) || s.recomputes(Activation::Norms) {
        b.recompute(true);
        if s.recomputes(Activation::Norms) {
            b.host(s.stack.checkpoint_launch);
            b.extend(norm_forward(s));
        }
        if s.recomputes(Activation::Swiglu) {
            b.host(s.stack.checkpoint_launch);
            b.op(activation_forward(s, s.tokens, width));
        }
        b.recompute(false);
    }
    b.label(s.named("feed-forward backward"));
    b.extend(bias_gradient(s, h));
    gathered_gradient_product(b, s, width, h);
    if gradients.weight() {
        b.extend(gathered_weight_gradient(s, h, width));
    }
    b.op(activation_backward(s, s.tokens, width));
    b.extend(bias_gradient(s, up));
    share_row_scales(b, s, &products, s.tokens);
    b.extend(s.quantize_gradient(s.tokens * up));
    let again = gradients
        .weight()
        .then(|| gather_input_again(b, s))
        .flatten();
    b.extend(s.converted_weights(&products, Direction::Backward));
    b.extend(s.shared_input_gradient(s.tokens, &products));
    let beside = if gradients.weight() {
        gathered_input_weight_gradients(s, &products)
    } else {
        vec![]
    };
    if let Some(again) = again {
        b.wait(again);
        reorder(b, s, s.gathered());
    }
    reduce_gradient(b, s, beside);
    b.extend(norm_backward(s));
}

/// What one rank's experts see.
struct Experts {
    /// Experts on the rank.
    groups: u64,
    /// Routed tokens on the rank, in the mean.
    tokens: u64,
    /// Hidden width on the rank.
    width: u64,
}

fn experts(s: &Sizes<'_>, moe: &MoE) -> Experts {
    let etp = u64::from(s.plan.expert_tensor);
    Experts {
        groups: moe.experts / u64::from(s.plan.expert),
        tokens: s.own_tokens * moe.top_k * etp,
        width: moe.expert_ffn / etp,
    }
}

/// The four journeys of a token and its gradient between its rank and its experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Dispatch,
    Combine,
    /// The combine's gradient travels as the token did.
    CombineBackward,
    DispatchBackward,
}

impl Way {
    /// Whether copies go out or come back to be added up.
    fn exchange(self) -> ExchangeWay {
        match self {
            Self::Dispatch | Self::CombineBackward => ExchangeWay::Dispatch,
            Self::Combine | Self::DispatchBackward => ExchangeWay::Combine,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Dispatch => "dispatch",
            Self::Combine => "combine",
            Self::CombineBackward => "combine backward",
            Self::DispatchBackward => "dispatch backward",
        }
    }
}

/// Dispatch or combine. `bytes`: of one token on the wire.
fn exchange(
    b: &mut Builder<'_, '_>,
    s: &Sizes<'_>,
    moe: &MoE,
    way: Way,
    bytes: Bytes,
) -> Option<u32> {
    b.meet(2);
    if s.plan.expert == 1 {
        return None;
    }
    match s.stack.dispatcher {
        ExpertDispatcher::AllGather => return Some(gather_all(b, s, way, bytes)),
        ExpertDispatcher::NcclAllToAll if way == Way::Dispatch && !s.stack.static_expert_shapes => {
            exchange_counts(b, s, moe);
        }
        _ => {}
    }
    let spec = Spec::Exchange {
        tokens: s.own_tokens,
        bytes_per_token: bytes,
        top_k: moe.top_k,
        experts: moe.experts,
        dispatcher: s.stack.dispatcher,
        limit: moe.group_limit,
        way: way.exchange(),
        sms: s.stack.dispatch_sms,
    };
    let sms = s.stack.dispatch_sms;
    let sent = b.collective(
        way.label(),
        CommKind::Expert,
        GroupSlot::Expert,
        Stream::Expert,
        spec,
        sms,
    );
    Some(exchange_weights(b, s, moe, way).unwrap_or(sent))
}

/// Where weights are multiplied into the experts' activation, a plain all-to-all of their own takes them to the
/// experts after the tokens, in fp32, and their gradients back (Megatron-Core, `MoEAlltoAllTokenDispatcher`).
fn exchange_weights(b: &mut Builder<'_, '_>, s: &Sizes<'_>, moe: &MoE, way: Way) -> Option<u32> {
    let sent = s.stack.weighted_activation
        && s.stack.dispatcher == ExpertDispatcher::NcclAllToAll
        && matches!(way, Way::Dispatch | Way::DispatchBackward);
    let weights = Bytes::new(4 * s.own_tokens * moe.top_k);
    sent.then(|| {
        b.collective(
            "routing weights",
            CommKind::Expert,
            GroupSlot::Expert,
            Stream::Expert,
            Spec::Collective(CollectiveOp::AllToAll, weights),
            0,
        )
    })
}

/// How many tokens go to each expert, told to all ranks of the group. The host needs the counts before
/// it can launch a plain all-to-all (Megatron-Core, `MoEAlltoAllTokenDispatcher`).
fn exchange_counts(b: &mut Builder<'_, '_>, s: &Sizes<'_>, moe: &MoE) {
    let counts = Bytes::new(8 * moe.experts * u64::from(s.plan.expert));
    let told = b.collective(
        "token counts",
        CommKind::Expert,
        GroupSlot::Expert,
        Stream::Expert,
        Spec::Collective(CollectiveOp::AllGather, counts),
        0,
    );
    b.host_waits(told);
}

/// Every rank gets all tokens of the group, or sums over it on the way back: what the stacks did
/// before they had an all-to-all.
fn gather_all(b: &mut Builder<'_, '_>, s: &Sizes<'_>, way: Way, bytes: Bytes) -> u32 {
    let op = match way {
        Way::Dispatch | Way::CombineBackward => CollectiveOp::AllGather,
        Way::Combine | Way::DispatchBackward => CollectiveOp::ReduceScatter,
    };
    let label = way.label();
    let all = bytes * (s.own_tokens * u64::from(s.plan.expert));
    let sms = s.stack.communication_sms;
    b.collective(
        label,
        CommKind::Expert,
        GroupSlot::Expert,
        Stream::Expert,
        Spec::Collective(op, all),
        sms,
    )
}

/// Bytes of a token on its way to an expert: fp8 with a scale per 128 in DeepSeek's recipe.
fn dispatch_bytes(s: &Sizes<'_>) -> Bytes {
    let h = s.model.hidden;
    if s.training.recipe == Recipe::Fp8Blockwise {
        Bytes::new(h + h / 128 * 4)
    } else {
        halves(h)
    }
}

/// Bytes of a rank's tokens, once and with a copy for each chosen expert.
fn token_bytes(s: &Sizes<'_>, moe: &MoE) -> (Bytes, Bytes) {
    let one = halves(s.own_tokens * s.model.hidden);
    (one, one * moe.top_k)
}

/// Maps of so many entries that say where rows go.
fn maps(entries: u64, kernels: u32) -> Operation {
    let bytes = Bytes::new(entries * 4);
    streamed(bytes, bytes, kernels, Access::Maps)
}

/// Copying tokens into the order of their experts.
fn permute(s: &Sizes<'_>, moe: &MoE) -> Vec<Operation> {
    if s.training.relays_tokens() {
        // The library reads the tokens itself; only the map is made.
        let kernels = if s.stack.fused_router { 1 } else { 4 };
        let map = Bytes::new(s.own_tokens * moe.top_k * 16);
        return vec![stream(map, map, kernels)];
    }
    let (one, copies) = token_bytes(s, moe);
    // A block sorts the experts of each token, as many as the next power of two. The framework's sort of the routing map
    // takes about as long, by more kernels.
    let entries = s.own_tokens * moe.experts.next_power_of_two();
    if s.stack.fused_permutation {
        vec![maps(entries, 3), stream(one, copies, 1)]
    } else {
        vec![maps(entries, 6), streamed(one, copies, 1, Access::Rows)]
    }
}

/// Gradients of the copies from that of their sum: the copies again, times their weights where those are
/// applied to the sum.
fn unpermute_backward(s: &Sizes<'_>, moe: &MoE) -> Vec<Operation> {
    let (one, copies) = token_bytes(s, moe);
    if s.training.relays_tokens() {
        return vec![stream(one * 2, one, 2)];
    }
    let weighted_here = !s.stack.weighted_activation;
    if s.stack.fused_permutation {
        // One kernel, which reads the copies for the gradient of their weights.
        let read = if weighted_here { one + copies } else { one };
        return vec![stream(read, copies, 1)];
    }
    let mut ops = vec![streamed(one, copies, 1, Access::Rows)];
    // The gradient times the weights, and times the copies, whose sums are the gradients of the weights.
    ops.extend(weighted_here.then(|| stream(copies * 4, copies * 2, 3)));
    ops
}

/// The sum of the gradients of a token's copies, and a pass that adds it to what else reaches the token.
fn permute_backward(s: &Sizes<'_>, moe: &MoE) -> Vec<Operation> {
    let (one, copies) = token_bytes(s, moe);
    if s.training.relays_tokens() {
        return vec![stream(one * 2, one, 1)];
    }
    let mut ops = summed(s, one, copies, Access::IndexAdd);
    ops.push(stream(one, one, 1));
    ops
}

/// The sum of each token's copies: by one kernel, or into zeros by the framework's.
fn summed(s: &Sizes<'_>, one: Bytes, copies: Bytes, access: Access) -> Vec<Operation> {
    if s.stack.fused_permutation {
        vec![stream(copies, one, 1)]
    } else {
        vec![
            copied(Bytes::ZERO, one, 1),
            streamed(copies, one, 1, access),
        ]
    }
}

/// Weighting and summing the copies of each token, and a pass that adds what else the layer gives.
fn unpermute(s: &Sizes<'_>, moe: &MoE) -> Vec<Operation> {
    let (one, copies) = token_bytes(s, moe);
    if s.training.relays_tokens() {
        // The library already summed them.
        return vec![stream(one * 2, one, 1)];
    }
    // A kernel made for it weights as it sums.
    let weighted_apart = !s.stack.weighted_activation && !s.stack.fused_permutation;
    let weights = weighted_apart.then(|| stream(copies, copies, 1));
    let mut ops: Vec<Operation> = weights.into_iter().collect();
    ops.extend(summed(s, one, copies, Access::ScatterAdd));
    ops.push(stream(one, one, 1));
    ops
}

/// Sorting what arrived by local expert, where the exchange left it by sender; in one `direction`, since
/// the map of the forward pass serves both.
fn sort_received(s: &Sizes<'_>, e: &Experts, direction: Direction) -> Vec<Operation> {
    let all = halves(e.tokens * s.model.hidden);
    if s.training.relays_tokens() {
        // The libraries' own kernels permute (DeepEP's hybrid-ep branch, `dispatch_with_permute`), and what follows
        // DeepEP does so as fast.
        let kernels = if s.stack.fused_router { 1 } else { 3 };
        return vec![stream(all, all, kernels)];
    }
    // Copies for one local expert are in its order.
    if e.groups == 1 {
        return vec![];
    }
    if s.stack.static_expert_shapes {
        // Senders and experts change places as two dimensions of one tensor (Megatron-Core,
        // `MoEAlltoAllTokenDispatcher` with `drop_and_pad`: a transposed view is made contiguous, which one with a single
        // sender is already).
        let senders = s.plan.expert * s.plan.expert_tensor;
        return (senders > 1)
            .then(|| strided(all, all, 1))
            .into_iter()
            .collect();
    }
    // A framework's kernel puts chunks together as fast, without a map.
    let has_map = direction == Direction::Forward && s.stack.fused_permutation;
    let map = has_map.then(|| maps(e.tokens * ENTRIES_OF_A_ROW, 1));
    map.into_iter().chain([stream(all, all, 1)]).collect()
}

/// Copying each expert's rows to a place with as many as narrow formats need, or back (Megatron-Core,
/// `TEGroupedMLP`: `quantization_padding`). The libraries' own kernels pad as they permute, and a fixed number of
/// rows needs no padding.
fn pad_experts(s: &Sizes<'_>, e: &Experts) -> Option<Operation> {
    let pads = s.stack.pads_experts
        && s.quantized()
        && !s.stack.static_expert_shapes
        && !s.training.relays_tokens();
    let all = halves(e.tokens * s.model.hidden);
    pads.then(|| stream(all, all, 1))
}

/// Entries of a map whose time a thread block takes that finds the place of one row: 1.14 ns on an H100 and
/// an H200 (0.94 to 1.38 in eight shapes), where an entry takes 0.091.
const ENTRIES_OF_A_ROW: u64 = 12;

fn router_ops(s: &Sizes<'_>, moe: &MoE) -> Vec<Operation> {
    let scores = Bytes::new(s.own_tokens * moe.experts * 4);
    let passes = if s.stack.fused_router { 2 } else { 6 };
    let kernels = if s.stack.fused_router { 3 } else { 18 };
    let mut ops = vec![
        gemm(
            s.own_tokens,
            moe.experts,
            s.model.hidden,
            Precision::Bf16,
            4,
        ),
        stream(scores * passes, scores * passes, kernels),
    ];
    // A token's best experts, and an expert's best tokens where it takes no more, are found by sorting kernels; their
    // launches are among those above.
    let chosen_by_experts = s.stack.static_expert_shapes && !s.training.relays_tokens();
    let sorts = u64::from(!s.stack.fused_router) + u64::from(chosen_by_experts);
    if sorts > 0 {
        ops.push(maps(s.own_tokens * moe.experts * sorts, 0));
    }
    ops
}

/// The products of a group of experts, by one launch or by one each.
fn expert_product(
    s: &Sizes<'_>,
    e: &Experts,
    n: u64,
    k: u64,
    weight_gradient: bool,
) -> Vec<Operation> {
    let precision = s.training.recipe.gemm();
    let output_bytes = if weight_gradient {
        s.gradient_output_bytes()
    } else {
        2
    };
    let mut ops = Vec::new();
    if s.stack.grouped_gemm {
        ops.push(Operation::GroupedGemm {
            groups: e.groups,
            m_total: e.tokens,
            n,
            k,
            precision,
            output_bytes,
            weight_gradient,
            apart: !s.stack.grouped_in_one_kernel,
        });
    } else {
        ops.extend(one_by_one(
            e,
            n,
            k,
            weight_gradient,
            precision,
            output_bytes,
        ));
    }
    if weight_gradient {
        ops.extend(s.accumulate(e.groups * n * k));
    }
    ops
}

/// A product for each expert.
fn one_by_one(
    e: &Experts,
    n: u64,
    k: u64,
    weight_gradient: bool,
    precision: Precision,
    output_bytes: u64,
) -> Vec<Operation> {
    let rows = (e.tokens / e.groups).max(1);
    let one = if weight_gradient {
        gemm(n, k, rows, precision, output_bytes)
    } else {
        gemm(rows, n, k, precision, output_bytes)
    };
    vec![one; e.groups as usize]
}

fn shared_forward(s: &Sizes<'_>, moe: &MoE) -> Vec<Operation> {
    if moe.shared_ffn == 0 {
        return vec![];
    }
    let h = s.model.hidden;
    let mut ops: Vec<Operation> = s.quantize(s.own_tokens * h).into_iter().collect();
    ops.push(s.linear(s.own_tokens, up_width(s, moe.shared_ffn), h));
    ops.push(activation_forward(s, s.own_tokens, moe.shared_ffn));
    ops.extend(s.quantize(s.own_tokens * moe.shared_ffn));
    ops.push(s.linear(s.own_tokens, h, moe.shared_ffn));
    ops
}

fn shared_backward(s: &Sizes<'_>, moe: &MoE, gradients: Gradients) -> Vec<Operation> {
    let mut ops = Vec::new();
    if moe.shared_ffn == 0 {
        return ops;
    }
    let h = s.model.hidden;
    let up = up_width(s, moe.shared_ffn);
    if gradients.input() {
        ops.extend(s.quantize_gradient(s.own_tokens * h));
        ops.extend(s.input_gradient(s.own_tokens, moe.shared_ffn, h));
        ops.push(activation_backward(s, s.own_tokens, moe.shared_ffn));
        ops.extend(s.quantize_gradient(s.own_tokens * up));
        ops.extend(s.input_gradient(s.own_tokens, h, up));
    }
    if gradients.weight() {
        ops.extend(s.weight_gradient(s.own_tokens, h, moe.shared_ffn));
        ops.extend(s.weight_gradient(s.own_tokens, up, h));
    }
    ops
}

fn experts_forward(b: &mut Builder<'_, '_>, s: &Sizes<'_>, e: &Experts) {
    let h = s.model.hidden;
    b.extend(sort_received(s, e, Direction::Forward));
    b.extend(pad_experts(s, e));
    b.extend(s.quantize_apart(e.tokens * h));
    b.extend(expert_product(s, e, up_width(s, e.width), h, false));
    expert_activation(b, s, e);
    b.extend(s.quantize(e.tokens * e.width));
    b.extend(expert_product(s, e, h, e.width, false));
    b.extend(expert_bias(s, e, Direction::Forward));
    b.extend(pad_experts(s, e));
    b.extend(sort_received(s, e, Direction::Forward));
}

/// The experts' activation function. With a clamp it takes an offset that is copied to the device anew
/// each time, and the host waits for that copy (Megatron-Core, `weighted_bias_quick_geglu_impl`:
/// `torch.tensor(linear_offset, device=...)`).
fn expert_activation(b: &mut Builder<'_, '_>, s: &Sizes<'_>, e: &Experts) {
    b.extend(clamp(s, e.tokens, e.width, Direction::Forward));
    if s.model.clamped
        && s.stack.cuda_graphs != CudaGraphs::Full
        && let Some(clamped) = b.close()
    {
        b.host_waits(clamped);
    }
    b.op(activation_forward(s, e.tokens, e.width));
}

/// The bias after an expert's second product, weighted by each token's probability, expert by
/// expert: an outer product, its sum with the result, all experts put together again, a cast where
/// that is wider (Megatron-Core, `TEGroupedMLP._apply_bias`). Its gradient sums over tokens for the
/// bias and over the width for the probability, and those of both biases of an expert are added to
/// their buffers one by one. The first product takes its bias itself.
fn expert_bias(s: &Sizes<'_>, e: &Experts, direction: Direction) -> Vec<Operation> {
    if !s.model.biases {
        return vec![];
    }
    let elements = e.tokens * s.model.hidden;
    let bytes = |per_element: u64| Bytes::new(elements * per_element);
    let each = e.groups as u32;
    // Probabilities and all that they touch are fp32 where a library exchanges tokens (it takes no
    // others), and as wide as the router's result elsewhere.
    let wide = s.stack.dispatcher.relays();
    match (direction, wide) {
        (Direction::Forward, true) => vec![
            strided(Bytes::ZERO, bytes(4), each),
            stream(bytes(14), bytes(10), each + 2),
        ],
        (Direction::Forward, false) => vec![
            strided(Bytes::ZERO, bytes(2), each),
            stream(bytes(6), bytes(4), each + 1),
        ],
        (Direction::Backward, true) => vec![
            strided(bytes(8), bytes(8), 2 * each),
            stream(bytes(16), bytes(8), 5 * each + 2),
        ],
        (Direction::Backward, false) => vec![
            strided(bytes(4), bytes(4), 2 * each),
            stream(bytes(6), bytes(2), 4 * each + 1),
        ],
    }
}

/// Host time of the gradients of an expert's two biases, each a parameter of its own: autograd hands it
/// on and calls the hook of its buffer (Megatron-Core, `DistributedDataParallel`), two launches' worth
/// beside the kernel that adds it.
fn bias_hooks(s: &Sizes<'_>, e: &Experts) -> SimDuration {
    if s.model.biases {
        s.stack.launch * (4 * e.groups)
    } else {
        SimDuration::ZERO
    }
}

/// Host time of a pass through a mixture before its dispatch, with the router, and that of its experts.
fn mixture_launch(stack: &SoftwareStack) -> (SimDuration, SimDuration) {
    let whole = stack.mixture_launch;
    let router = whole.as_picos() as f64 * stack.mixture_launch_router.clamp(0.0, 1.0);
    let router = SimDuration::from_picos(router.round() as u64);
    (router, whole - router)
}

fn moe_forward(b: &mut Builder<'_, '_>, s: &Sizes<'_>, moe: &MoE) {
    let e = experts(s, moe);
    b.label("router");
    b.extend(norm_forward(s));
    b.host(mixture_launch(s.stack).0);
    b.extend(router_ops(s, moe));
    b.extend(permute(s, moe));
    if !s.stack.overlap.shared_expert {
        b.extend(shared_forward(s, moe));
    }
    let dispatch = exchange(b, s, moe, Way::Dispatch, dispatch_bytes(s));
    if s.stack.overlap.shared_expert {
        b.label("shared expert");
        b.extend(shared_forward(s, moe));
    }
    if let Some(dispatch) = dispatch {
        b.wait(dispatch);
    }
    expert_gather(b, s, &e);
    b.label("experts");
    b.routed(true);
    b.host(mixture_launch(s.stack).1);
    experts_forward(b, s, &e);
    b.routed(false);
    expert_reduce(b, s, &e);
    if let Some(combine) = exchange(b, s, moe, Way::Combine, halves(s.model.hidden)) {
        b.wait(combine);
    }
    b.label("combine tokens");
    b.extend(unpermute(s, moe));
}

/// Tensor parallelism inside experts: every rank of an expert needs all of its tokens.
fn expert_gather(b: &mut Builder<'_, '_>, s: &Sizes<'_>, e: &Experts) {
    expert_tensor(b, s, e, CollectiveOp::AllGather);
}

fn expert_reduce(b: &mut Builder<'_, '_>, s: &Sizes<'_>, e: &Experts) {
    expert_tensor(b, s, e, CollectiveOp::ReduceScatter);
}

fn expert_tensor(b: &mut Builder<'_, '_>, s: &Sizes<'_>, e: &Experts, op: CollectiveOp) {
    if s.plan.expert_tensor == 1 {
        return;
    }
    let spec = Spec::Collective(op, halves(e.tokens * s.model.hidden));
    let sms = s.stack.communication_sms;
    let node = b.collective(
        "expert TP",
        CommKind::Tensor,
        GroupSlot::ExpertTensor,
        Stream::Expert,
        spec,
        sms,
    );
    b.wait(node);
}

fn moe_backward(b: &mut Builder<'_, '_>, s: &Sizes<'_>, moe: &MoE, gradients: Gradients) {
    let e = experts(s, moe);
    let h = s.model.hidden;
    let up = up_width(s, e.width);
    let weight_ops = || {
        let mut ops = expert_product(s, &e, h, e.width, true);
        ops.extend(expert_product(s, &e, up, h, true));
        ops
    };
    let router_weight = gemm(moe.experts, h, s.own_tokens, Precision::Bf16, 8);
    if gradients == Gradients::Weight {
        b.label("expert weight gradients");
        b.routed(true);
        b.extend(weight_ops());
        b.routed(false);
        b.label("shared expert backward");
        b.extend(shared_backward(s, moe, gradients));
        b.op(router_weight);
        return;
    }
    if s.recomputes(Activation::Moe) {
        b.recompute(true);
        b.host(s.stack.checkpoint_launch);
        moe_forward(b, s, moe);
        b.recompute(false);
    }
    if s.recomputes(Activation::Norms) && !s.recomputes(Activation::Moe) {
        b.recompute(true);
        b.label("router");
        b.host(s.stack.checkpoint_launch);
        b.extend(norm_forward(s));
        b.recompute(false);
    }
    b.label("combine backward");
    b.extend(unpermute_backward(s, moe));
    // Gradients of the combine travel as the tokens did.
    let sent = exchange(b, s, moe, Way::CombineBackward, halves(h));
    if s.stack.overlap.shared_expert {
        b.label("shared expert backward");
        b.extend(shared_backward(s, moe, gradients));
    }
    if let Some(sent) = sent {
        b.wait(sent);
    }
    expert_gather(b, s, &e);
    if s.recomputes(Activation::MoeActivation) || s.recomputes(Activation::Swiglu) {
        b.recompute(true);
        b.label("experts");
        b.routed(true);
        b.host(s.stack.checkpoint_launch);
        expert_activation(b, s, &e);
        b.recompute(false);
    }
    b.label("experts backward");
    b.routed(true);
    b.host(mixture_launch(s.stack).1);
    b.extend(sort_received(s, &e, Direction::Backward));
    b.extend(pad_experts(s, &e));
    b.host(bias_hooks(s, &e));
    b.extend(expert_bias(s, &e, Direction::Backward));
    b.extend(s.quantize_apart(e.tokens * h));
    b.extend(expert_product(s, &e, e.width, h, false));
    b.op(activation_backward(s, e.tokens, e.width));
    b.extend(clamp(s, e.tokens, e.width, Direction::Backward));
    b.extend(s.quantize_gradient(e.tokens * up));
    b.extend(expert_product(s, &e, h, up, false));
    b.extend(pad_experts(s, &e));
    b.extend(sort_received(s, &e, Direction::Backward));
    // Stacks that overlap the exchange leave the weight gradients for the time it takes.
    let late = s.stack.overlap.expert && gradients.weight();
    if gradients.weight() && !late {
        b.extend(weight_ops());
    }
    b.routed(false);
    expert_reduce(b, s, &e);
    let back = exchange(b, s, moe, Way::DispatchBackward, halves(h));
    if late {
        b.label("expert weight gradients");
        b.routed(true);
        b.extend(weight_ops());
        b.routed(false);
    }
    if let Some(back) = back {
        b.wait(back);
    }
    b.label("router backward");
    if !s.stack.overlap.shared_expert {
        b.extend(shared_backward(s, moe, gradients));
    }
    b.host(mixture_launch(s.stack).0);
    b.extend(permute_backward(s, moe));
    let scores = Bytes::new(s.own_tokens * moe.experts * 4);
    b.op(stream(
        scores * 3,
        scores * 2,
        if s.stack.fused_router { 3 } else { 12 },
    ));
    b.op(gemm(s.own_tokens, h, moe.experts, Precision::Bf16, 2));
    if gradients.weight() {
        b.op(router_weight);
    }
    b.extend(norm_backward(s));
}

/// One layer forward.
pub(crate) fn forward(
    ctx: &mut Context<'_>,
    s: &Sizes<'_>,
    kind: LayerKind,
    recompute: bool,
) -> Run {
    let mut b = Builder::new(ctx);
    b.recompute(recompute);
    if recompute {
        b.host(s.stack.checkpoint_launch);
    }
    attention_forward(&mut b, s, kind);
    match (kind.feed_forward, &s.model.moe) {
        (FeedForward::MoE, Some(moe)) => moe_forward(&mut b, s, moe),
        _ => dense_forward(&mut b, s, recompute),
    }
    b.meet(1);
    b.finish()
}

/// One layer backward, where it is computed `again` first.
pub(crate) fn recomputed_backward(
    ctx: &mut Context<'_>,
    s: &Sizes<'_>,
    kind: LayerKind,
    gradients: Gradients,
    again: bool,
) -> Run {
    let mut run = Run::default();
    if again {
        run.append(&forward(ctx, s, kind, true));
    }
    run.append(&backward(ctx, s, kind, gradients));
    run
}

/// One layer backward.
pub(crate) fn backward(
    ctx: &mut Context<'_>,
    s: &Sizes<'_>,
    kind: LayerKind,
    gradients: Gradients,
) -> Run {
    let mut b = Builder::new(ctx);
    match (kind.feed_forward, &s.model.moe) {
        (FeedForward::MoE, Some(moe)) => moe_backward(&mut b, s, moe, gradients),
        _ => dense_backward(&mut b, s, gradients),
    }
    attention_backward(&mut b, s, kind, gradients);
    b.meet(1);
    b.finish()
}

/// Puts a message from another stage together, of which each tensor rank received a part.
pub(crate) fn gather_message(ctx: &mut Context<'_>, s: &Sizes<'_>) -> Run {
    let mut b = Builder::new(ctx);
    let node = b.collective(
        "message all-gather",
        CommKind::Pipeline,
        GroupSlot::Tensor,
        Stream::Tensor,
        Spec::Collective(CollectiveOp::AllGather, s.residual()),
        s.stack.communication_sms,
    );
    b.wait(node);
    b.finish()
}

/// Token embedding on the first stage, and in front of a prediction module.
pub(crate) fn embedding(ctx: &mut Context<'_>, s: &Sizes<'_>, direction: Direction) -> Run {
    let mut b = Builder::new(ctx);
    b.label("embedding");
    let x = halves(s.tokens * s.model.hidden);
    match direction {
        Direction::Forward => {
            b.op(stream(x, x, 3));
            if s.plan.tensor > 1 {
                let op = sum_op(s);
                let spec = Spec::Collective(op, s.residual());
                let sms = s.stack.communication_sms;
                let node = tensor_collective(&mut b, "TP reduce", spec, sms);
                b.wait(node);
            }
        }
        Direction::Backward => {
            gather_gradient(&mut b, s);
            // Rows are added into a gradient of the whole table, which is zero before and is added into its
            // buffer after (PyTorch, `embedding_dense_backward`; Megatron-Core's hook, `main_grad.add_`).
            b.op(copied(Bytes::ZERO, halves(s.table()), 1));
            b.op(stream(x * 3, x * 2, 3));
            b.op(s.accumulate_table());
        }
    }
    b.finish()
}

/// Adding to the gradients that nobody reads of an output layer the one of one more use, after so many. The first two are one
/// tensor, read once, and their sum is another; what follows is added into that.
fn sum_dummy(s: &Sizes<'_>, uses: u64) -> Option<Operation> {
    let sum = Bytes::new(crate::memory::summed_dummy(s)?);
    (s.keeps_dummy_gradients() && uses > 0).then(|| stream(sum * uses.min(2), sum, 1))
}

/// Final norm, logits and loss on the last stage; `uses`: of the output layer for which autograd has a gradient already.
pub(crate) fn head(
    ctx: &mut Context<'_>,
    s: &Sizes<'_>,
    direction: Direction,
    gradients: Gradients,
    uses: u64,
) -> Run {
    let mut b = Builder::new(ctx);
    let (vocab, h) = s.output_weight();
    let logits = s.tokens * vocab;
    // Bytes per logit: cast to fp32, maximum, exponentials and their sum, loss.
    let (read, write, kernels, access) = if s.stack.fused_cross_entropy {
        (6, 2, 3, Access::Softmax)
    } else {
        (22, 14, 8, Access::SoftmaxChain)
    };
    match direction {
        Direction::Forward => {
            b.label("logits and loss");
            b.extend(norm_forward(s));
            if s.plan.tensor > 1 && s.plan.sequence_parallel {
                gather_gradient(&mut b, s);
            }
            b.op(gemm(s.tokens, vocab, h, Precision::Bf16, 2));
            b.op(streamed(
                Bytes::new(logits * read),
                Bytes::new(logits * write),
                kernels,
                access,
            ));
            if s.plan.tensor > 1 {
                // Maximum, sum and target logit of every token.
                let spec = Spec::Collective(CollectiveOp::AllReduce, Bytes::new(s.tokens * 12));
                let sms = s.stack.communication_sms;
                let node = tensor_collective(&mut b, "loss reduce", spec, sms);
                b.wait(node);
            }
        }
        Direction::Backward => {
            b.label("logits backward");
            let mut weight = vec![gemm(
                vocab,
                h,
                s.tokens,
                Precision::Bf16,
                s.gradient_output_bytes(),
            )];
            weight.extend(s.accumulate(vocab * h));
            weight.extend(sum_dummy(s, uses));
            if gradients == Gradients::Weight {
                b.extend(weight);
                return b.finish();
            }
            let (read, write) = if s.stack.fused_cross_entropy {
                (2, 2)
            } else {
                (8, 6)
            };
            b.op(streamed(
                Bytes::new(logits * read),
                Bytes::new(logits * write),
                2,
                access,
            ));
            b.op(gemm(s.tokens, h, vocab, Precision::Bf16, 2));
            let beside = if gradients.weight() { weight } else { vec![] };
            reduce_gradient(&mut b, s, beside);
            b.extend(norm_backward(s));
        }
    }
    b.finish()
}

/// The projection in front of a multi-token-prediction module: two norms, then 2h to h. `recompute`: for the second time.
pub(crate) fn mtp_projection(ctx: &mut Context<'_>, s: &Sizes<'_>, recompute: bool) -> Run {
    let mut b = Builder::new(ctx);
    b.recompute(recompute);
    b.label("MTP projection");
    let (n, k) = mtp_weight(s);
    b.extend(norm_forward(s));
    b.extend(norm_forward(s));
    b.op(s.linear(s.own_tokens, n, k));
    b.finish()
}

/// The same backward.
pub(crate) fn mtp_projection_backward(
    ctx: &mut Context<'_>,
    s: &Sizes<'_>,
    gradients: Gradients,
) -> Run {
    let mut b = Builder::new(ctx);
    b.label("MTP projection");
    let (n, k) = mtp_weight(s);
    let own = s.own_tokens;
    if gradients.input() {
        b.extend(s.input_gradient(own, k, n));
        b.extend(norm_backward(s));
        b.extend(norm_backward(s));
    }
    if gradients.weight() {
        b.extend(s.weight_gradient(own, n, k));
    }
    b.finish()
}
