//! One replica on its GPUs, compiled so that a step is priced by looking up.

use super::communication::{Groups, Way};
use super::error::ServingError;
use super::kernels::{self, Heads, Kernels, Prompts};
use super::layers::Layers;
use super::memory::{self, InstanceMemory};
use super::overlap::{self, Woven};
use super::parts::Parts;
use super::table::Table;
use super::{PrefillChunk, StepBatch, StepCost};
use crate::cause::{Accounts, Cause, CommKind};
use rackflow_network::Links;
use rackflow_topology::{Cluster, ClusterMap, Level};
use rackflow_units::{Bytes, SimDuration};
use rackflow_workload::serving::{Deployment, Draft, GraphCapture};
use rackflow_workload::{Attention, FeedForward, LayerKind, SparseIndex};

/// Layers that attend alike.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Attending {
    /// Keys that a query sees at most.
    window: Option<f64>,
    /// Layers with a dense feed-forward network.
    dense: f64,
    /// Layers with a mixture.
    mixture: f64,
}

/// One replica of a model on its GPUs.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    deployment: Deployment,
    kernels: Kernels,
    memory: InstanceMemory,
    tensor_level: Level,
    expert_level: Level,
    pipeline_level: Level,
    decode_heads: Heads,
    prefill_heads: Heads,
    sparse: Option<SparseIndex>,
    attending: Vec<Attending>,
    layers: f64,
    mixture_layers: f64,
    /// Routing and experts are one operation of the framework.
    fused_experts: bool,
    /// By tokens of the busiest attention group: all dense layers, and the token table.
    dense: Table,
    /// The same for the rank's side of all mixture layers.
    mixture: Table,
    /// What of it is before attention, where two half batches take turns.
    prepare: Table,
    /// Shared experts of all mixture layers.
    shared: Table,
    /// By tokens of the stage: routed experts of all mixture layers.
    experts: Table,
    /// By tokens of an attention group, with kernels of low latency and of high throughput.
    dispatch: [Table; 2],
    combine: [Table; 2],
    /// By generating tokens of an attention group: products that latents absorb, all layers.
    absorbed: Table,
    /// By keys of prompts: latents expanded, all layers.
    expanded: Table,
    /// By sequences: logits and sampling.
    head: Table,
    /// By sequences: one guess.
    draft: Table,
    /// By tokens: from one stage to the next.
    hop: Table,
}

/// The batch of one attention group in one micro-batch.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    sequences: f64,
    context: f64,
    queries: f64,
    prompts: Prompts,
    /// Tokens of all groups.
    stage_tokens: f64,
}

impl Share {
    fn tokens(&self) -> f64 {
        self.sequences * self.queries + self.prompts.new
    }

    fn rows(&self) -> f64 {
        self.sequences * self.queries + self.prompts.chunks
    }

    fn half(&self) -> Self {
        let p = self.prompts;
        Self {
            sequences: self.sequences / 2.0,
            context: self.context / 2.0,
            queries: self.queries,
            prompts: Prompts {
                chunks: p.chunks / 2.0,
                new: p.new / 2.0,
                keys: p.keys / 2.0,
                pairs: p.pairs / 2.0,
            },
            stage_tokens: self.stage_tokens / 2.0,
        }
    }
}

/// One pass through all layers, on one rank.
#[derive(Debug, Clone, Copy, Default)]
struct Pass {
    parts: Parts,
    contention: f64,
}

impl Instance {
    /// Compiles `deployment` on `gpus` of a cluster: tensor ranks are neighbours, then attention
    /// groups, then stages.
    ///
    /// # Errors
    /// When the plan does not match the GPUs or the model, or when the weights do not fit.
    pub fn new(
        deployment: &Deployment,
        cluster: &Cluster,
        map: &ClusterMap,
        gpus: &[u32],
    ) -> Result<Self, ServingError> {
        let links = Links::new(cluster, map);
        Self::over(deployment, cluster, (map, links), gpus)
    }

    /// The same without what the tiers cost, for a fleet whose flows run over their links.
    pub(super) fn on_fabric(
        deployment: &Deployment,
        cluster: &Cluster,
        map: &ClusterMap,
        gpus: &[u32],
    ) -> Result<Self, ServingError> {
        let links = Links::new(cluster, map).without_tiers();
        Self::over(deployment, cluster, (map, links), gpus)
    }

    fn over(
        deployment: &Deployment,
        cluster: &Cluster,
        (map, links): (&ClusterMap, Links),
        gpus: &[u32],
    ) -> Result<Self, ServingError> {
        check(deployment, gpus)?;
        let mut accelerator = cluster.node.accelerator.clone();
        if deployment.stack.decode_graphs == GraphCapture::Persistent {
            // Inside one kernel nothing is scheduled and nothing drains between layers.
            accelerator.measured.kernel_floor = SimDuration::ZERO;
        }
        let memory = memory::of(deployment, &accelerator)?;
        let native = native(deployment, &accelerator);
        let kernels = Kernels::new(accelerator, deployment, native);
        let groups = Groups::new(links, map, gpus, &deployment.parallelism, kernels.floor());
        let layers = Layers {
            deployment,
            kernels: &kernels,
            groups: &groups,
        };
        let kinds = deployment.model.layer_kinds();
        let of = |feed_forward: FeedForward| -> Vec<(LayerKind, f64)> {
            kinds
                .iter()
                .filter(|(kind, _)| kind.feed_forward == feed_forward)
                .map(|(kind, count)| (*kind, *count as f64))
                .collect()
        };
        let (dense, mixture) = (of(FeedForward::Dense), of(FeedForward::MoE));
        let count = |kinds: &[(LayerKind, f64)]| kinds.iter().map(|(_, n)| n).sum::<f64>();
        let mixture_layers = count(&mixture);
        let all = count(&dense) + mixture_layers;
        let side = |kinds: &[(LayerKind, f64)], tokens: u64| -> Parts {
            // Layers that differ in their window alone have the same projections.
            kinds.first().map_or(Parts::default(), |(kind, _)| {
                layers.rank_side(*kind, tokens) * count(kinds)
            })
        };
        let latent = layers.absorbed(1) != Parts::default();
        let exchanges = mixture_layers > 0.0 && deployment.parallelism.data > 1;
        let table_if = |wanted: bool, cost: &dyn Fn(u64) -> Parts| {
            if wanted {
                Table::new(cost)
            } else {
                Table::empty()
            }
        };
        let exchange = |way: Way, decoding: bool| {
            table_if(exchanges, &|tokens| {
                layers.exchange(way, tokens, decoding) * mixture_layers
            })
        };
        let stage_width = deployment.model.hidden * 2;
        let drafts = deployment
            .speculation
            .as_ref()
            .is_some_and(|s| s.draft == Draft::Mtp && s.draft_tokens > 0);
        Ok(Self {
            memory,
            tensor_level: groups.tensor_level(),
            expert_level: groups.expert_level(),
            pipeline_level: groups.pipeline_level(),
            decode_heads: layers.decode_heads(),
            prefill_heads: layers.prefill_heads(),
            sparse: match deployment.model.attention {
                Attention::Latent { sparse, .. } => sparse,
                Attention::Grouped { .. } => None,
            },
            attending: attending(&kinds),
            layers: all,
            mixture_layers,
            fused_experts: kernels.fused_experts(deployment),
            dense: Table::new(|tokens| side(&dense, tokens) + layers.embedding(tokens)),
            mixture: table_if(mixture_layers > 0.0, &|tokens| side(&mixture, tokens)),
            prepare: table_if(exchanges && deployment.two_batch_overlap, &|tokens| {
                layers.prepare(tokens) * mixture_layers
            }),
            shared: table_if(mixture_layers > 0.0, &|tokens| {
                layers.shared(tokens) * mixture_layers
            }),
            experts: table_if(mixture_layers > 0.0, &|tokens| {
                layers.experts(tokens) * mixture_layers
            }),
            dispatch: [
                exchange(Way::Dispatch, true),
                exchange(Way::Dispatch, false),
            ],
            combine: [exchange(Way::Combine, true), exchange(Way::Combine, false)],
            absorbed: table_if(latent, &|tokens| layers.absorbed(tokens) * all),
            expanded: table_if(latent, &|keys| layers.expanded(keys) * all),
            head: Table::new(|rows| layers.head(rows)),
            draft: table_if(drafts, &|sequences| layers.draft(sequences)),
            hop: table_if(deployment.parallelism.pipeline > 1, &|tokens| {
                groups.to_next_stage(Bytes::new(tokens * stage_width))
            }),
            deployment: deployment.clone(),
            kernels,
        })
    }

    /// GPUs of the replica.
    pub fn gpus(&self) -> u32 {
        self.deployment.parallelism.gpus()
    }

    /// What is deployed.
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// What one GPU holds.
    pub fn memory(&self) -> &InstanceMemory {
        &self.memory
    }

    /// Weights of one GPU.
    pub fn weight_bytes_per_gpu(&self) -> Bytes {
        self.memory.weights
    }

    /// Bytes that one token adds to the caches of the whole replica, in layers without a window;
    /// what tensor ranks keep twice counts twice.
    pub fn kv_bytes_per_token(&self) -> f64 {
        let plan = &self.deployment.parallelism;
        self.memory.kv_bytes_per_token * f64::from(plan.tensor * plan.pipeline)
    }

    /// Tokens that the caches of the replica hold in all.
    pub fn kv_capacity_tokens(&self) -> u64 {
        self.memory.kv_capacity_tokens()
    }

    /// Dense peak of one GPU in the narrowest format of the deployment [FLOP/s]: what MFU is over.
    pub fn native_peak(&self) -> f64 {
        self.kernels.native_peak()
    }

    /// What `batch` costs. Nothing is allocated and nothing remembered.
    pub fn step(&self, batch: &StepBatch<'_>) -> StepCost {
        let plan = &self.deployment.parallelism;
        let units = batch.decode_sequences + batch.prefill.len() as u64;
        let stages = f64::from(plan.pipeline);
        // A pipeline works on as many parts of the batch as it has stages, if there are so many.
        let micro = (units as f64).min(stages).max(1.0);
        let (share, fill) = self.share(batch, micro);
        let decoding = batch.prefill.is_empty();
        let mut pass = self.pass(&share, decoding);
        let head = self.head.at(share.rows());
        pass.parts += head + self.hop.at(share.tokens()) * (stages - 1.0);
        if let Some(speculation) = &self.deployment.speculation
            && share.sequences > 0.0
            && speculation.draft == Draft::Mtp
        {
            pass.parts += self.guesses(&share, speculation.draft_tokens);
        }
        let busy = pass.parts.time() + pass.contention;
        let bubble_of_head = if micro >= stages {
            head.time() * (stages - 1.0)
        } else {
            0.0
        };
        let on_gpu = busy + bubble_of_head;
        let time = self.with_host(on_gpu, &pass.parts, units as f64, &share);
        self.book(&pass, on_gpu, time, micro, fill)
    }

    /// The batch of the busiest attention group in one of `micro` parts, and mean tokens over those.
    fn share(&self, batch: &StepBatch<'_>, micro: f64) -> (Share, f64) {
        let groups = u64::from(self.deployment.parallelism.data);
        let all = prompts(batch.prefill.iter());
        let sequences = batch.decode_sequences as f64 / micro;
        let queries = batch.tokens_per_sequence.max(1) as f64;
        let stage_tokens = sequences * queries + all.new / micro;
        let mut share = Share {
            sequences,
            context: batch.decode_context_tokens as f64 / micro,
            queries,
            prompts: scaled(&all, 1.0 / micro),
            stage_tokens,
        };
        if groups == 1 {
            return (share, 1.0);
        }
        let busiest = (sequences / groups as f64).ceil();
        if sequences > 0.0 {
            share.context *= busiest / sequences;
        }
        share.sequences = busiest;
        // Prompts go to the groups in turn.
        let step = groups as usize;
        let most = (0..step.min(batch.prefill.len()))
            .map(|first| prompts(batch.prefill[first..].iter().step_by(step)))
            .max_by(|a, b| a.new.total_cmp(&b.new));
        share.prompts = most.map_or(Prompts::default(), |most| scaled(&most, 1.0 / micro));
        let mean = stage_tokens / groups as f64;
        (share, (mean / share.tokens().max(mean)).min(1.0))
    }

    /// All layers for one share, with or without two-batch overlap.
    fn pass(&self, share: &Share, decoding: bool) -> Pass {
        let cut = share.half();
        let woven = self.deployment.two_batch_overlap
            && self.deployment.parallelism.data > 1
            && self.mixture_layers > 0.0
            && share.tokens() >= 2.0;
        if woven {
            self.two_batches(&cut, decoding)
        } else {
            self.one_batch(share, decoding)
        }
    }

    fn one_batch(&self, share: &Share, decoding: bool) -> Pass {
        let tokens = share.tokens();
        let shared = self.shared.at(tokens);
        let (dispatch, combine) = self.exchanges(tokens, decoding);
        let mut exchange = dispatch + combine;
        let mut contention = 0.0;
        if self.deployment.stack.shared_expert_overlap {
            // The shared expert runs while tokens travel, on the SMs that they leave.
            let slowed = shared.compute() / (1.0 - self.exchange_sms(decoding));
            let beside = slowed.min(exchange.expert);
            contention = beside * self.exchange_sms(decoding);
            exchange.expert -= beside;
        }
        let parts = self.dense.at(tokens)
            + self.mixture.at(tokens)
            + shared
            + exchange
            + self.experts.at(share.stage_tokens)
            + self.attention(share, |a| a.dense + a.mixture);
        Pass { parts, contention }
    }

    fn two_batches(&self, half: &Share, decoding: bool) -> Pass {
        let tokens = half.tokens();
        let n = self.mixture_layers;
        let before = self.mixture.at(tokens) + self.attention(half, |a| a.mixture);
        let prepare = self.prepare.at(tokens).time().min(before.time());
        let shared = self.shared.at(tokens);
        let experts = self.experts.at(half.stage_tokens);
        let (dispatch, combine) = self.exchanges(tokens, decoding);
        let layer = overlap::Layer {
            prepare: prepare / n,
            attend: (before.time() - prepare) / n,
            dispatch: dispatch.expert / n,
            shared: shared.time() / n,
            experts: experts.time() / n,
            combine: combine.expert / n,
        };
        let Woven {
            contention,
            exposed,
            ..
        } = overlap::weave(&layer, n as u64, decoding, self.exchange_sms(decoding));
        let outside = self.dense.at(tokens) + self.attention(half, |a| a.dense);
        let before = before + shared;
        let mut parts = (before + experts + dispatch + combine + outside) * 2.0;
        parts.expert = exposed;
        // Both halves meet the same weights; they are read twice but touched once.
        parts.bytes -= (before.bytes + experts.bytes + outside.bytes) - self.attention_bytes(half);
        Pass { parts, contention }
    }

    fn attention_bytes(&self, share: &Share) -> f64 {
        self.attention(share, |a| a.dense + a.mixture).bytes
    }

    fn exchanges(&self, tokens: f64, decoding: bool) -> (Parts, Parts) {
        let kind = usize::from(!decoding);
        (
            self.dispatch[kind].at(tokens),
            self.combine[kind].at(tokens),
        )
    }

    /// Part of the SMs that an exchange holds: kernels of low latency leave once they have sent.
    fn exchange_sms(&self, decoding: bool) -> f64 {
        if decoding {
            0.0
        } else {
            let held = f64::from(self.deployment.stack.dispatch_sms);
            (held / f64::from(self.kernels.accelerator.sms)).min(0.9)
        }
    }

    /// Attention over the layers that `count` counts.
    fn attention(&self, share: &Share, count: impl Fn(&Attending) -> f64) -> Parts {
        let mut parts = Parts::default();
        let mut layers = 0.0;
        for kind in &self.attending {
            let n = count(kind);
            if n == 0.0 {
                continue;
            }
            layers += n;
            let context = kind.window.map_or(share.context, |window| {
                share.context.min(share.sequences * window)
            });
            let prompts = kind
                .window
                .map_or(share.prompts, |window| windowed(&share.prompts, window));
            let one = self.decode_attention(share, context) + self.prefill_attention(&prompts);
            parts += one * n;
        }
        let part = layers / self.layers;
        let generated = share.sequences * share.queries;
        // Chosen keys are attended to as latents, by prompts too.
        let (absorbed, expanded) = if self.chooses(&share.prompts) {
            (generated + share.prompts.new, 0.0)
        } else {
            (generated, share.prompts.keys)
        };
        parts + self.absorbed.at(absorbed) * part + self.expanded.at(expanded) * part
    }

    /// Whether prompts see more keys than an indexer chooses.
    fn chooses(&self, prompts: &Prompts) -> bool {
        self.sparse
            .is_some_and(|index| prompts.pairs > index.top_k as f64 * prompts.new)
    }

    fn decode_attention(&self, share: &Share, context: f64) -> Parts {
        let mean = context / share.sequences.max(1e-9);
        match &self.sparse {
            Some(index) if mean > index.top_k as f64 => self.kernels.sparse(
                &self.decode_heads,
                index,
                share.sequences,
                share.sequences * share.queries,
                mean,
                false,
            ),
            _ => self
                .kernels
                .decode(&self.decode_heads, share.sequences, share.queries, context),
        }
    }

    fn prefill_attention(&self, prompts: &Prompts) -> Parts {
        match &self.sparse {
            Some(index) if self.chooses(prompts) => self.kernels.sparse(
                &self.decode_heads,
                index,
                prompts.chunks,
                prompts.new,
                prompts.pairs / prompts.new.max(1e-9),
                true,
            ),
            _ => {
                let latent = self.decode_heads.rope.is_some();
                self.kernels.prefill(&self.prefill_heads, prompts, latent)
            }
        }
    }

    /// `guesses` passes of the prediction module.
    fn guesses(&self, share: &Share, guesses: u32) -> Parts {
        let attention =
            self.kernels
                .decode(&self.decode_heads, share.sequences, 1.0, share.context);
        (self.draft.at(share.sequences) + attention) * f64::from(guesses)
    }

    /// The GPU's time, with what the host adds [s].
    fn with_host(&self, on_gpu: f64, parts: &Parts, units: f64, share: &Share) -> f64 {
        let stack = &self.deployment.stack;
        let reads = share.prompts.new > 0.0;
        let fits = stack
            .graph_tokens
            .is_none_or(|most| share.tokens() <= most as f64);
        let capture = if stack.decode_graphs == GraphCapture::Persistent {
            GraphCapture::Persistent
        } else if reads && fits {
            stack.prefill_graphs
        } else if !reads && share.sequences <= stack.graph_sequences as f64 {
            stack.decode_graphs
        } else {
            GraphCapture::None
        };
        let calls = match capture {
            GraphCapture::None => parts.kernels,
            // A graph before and a call for attention in each layer.
            GraphCapture::Piecewise => 2.0 * self.layers,
            GraphCapture::Full | GraphCapture::Persistent => 1.0,
        };
        let eager = if capture == GraphCapture::None {
            self.mixture_layers * self.eager_mixture() + self.eager_attention()
        } else {
            0.0
        };
        let slower = self.kernels.host_slowdown();
        let launches = (calls * stack.launch.as_secs_f64() + eager) * slower;
        let elapsed = on_gpu.max(launches) + self.allocation(share.tokens()) * slower;
        let prompts = if reads {
            stack.prompt_overhead.as_secs_f64()
        } else {
            0.0
        };
        let host = (stack.step_overhead.as_secs_f64()
            + prompts
            // Each attention group has a scheduler of its own.
            + units / f64::from(self.deployment.parallelism.data)
                * stack.sequence_overhead.as_secs_f64())
            * slower;
        if stack.overlapped_scheduling {
            elapsed.max(
                host + if capture == GraphCapture::None {
                    launches
                } else {
                    0.0
                },
            )
        } else {
            elapsed + host
        }
    }

    /// Host time of one mixture layer [s].
    fn eager_mixture(&self) -> f64 {
        let stack = &self.deployment.stack;
        let time = if self.fused_experts {
            stack.eager_fused_mixture
        } else {
            stack.eager_mixture
        };
        time.as_secs_f64()
    }

    /// Host time of attention in all layers beyond its kernels [s].
    fn eager_attention(&self) -> f64 {
        match self.deployment.model.attention {
            Attention::Latent { .. } => {
                self.layers * self.deployment.stack.eager_latent.as_secs_f64()
            }
            Attention::Grouped { .. } => 0.0,
        }
    }

    /// Time in which the driver hands out memory for a step that is larger than what is kept [s].
    fn allocation(&self, tokens: f64) -> f64 {
        match self.deployment.stack.allocation {
            Some(kept) if tokens > kept.kept_tokens as f64 => {
                let bytes = tokens * memory::activations_per_token(&self.deployment);
                self.layers * bytes / kept.rate.as_f64()
            }
            _ => 0.0,
        }
    }

    /// Books the step. `micro` parts of the batch each make one pass; `fill` is the mean over the
    /// busiest attention group.
    fn book(&self, pass: &Pass, on_gpu: f64, time: f64, micro: f64, fill: f64) -> StepCost {
        let plan = &self.deployment.parallelism;
        let stages = f64::from(plan.pipeline);
        let ranks = f64::from(plan.stage_gpus());
        // Each GPU holds one stage's part of the layers and sees every part of the batch.
        let duty = micro / stages;
        let p = &pass.parts;
        let idle = (p.useful + p.wider + p.sustained + p.exponent) * (1.0 - fill);
        let busy = (p.time() + pass.contention) * duty;
        let exposed = Cause::Exposed;
        let spans = [
            (Cause::UsefulMath, p.useful * fill * duty),
            (Cause::WiderPrecision, p.wider * fill * duty),
            (Cause::SustainedRate, p.sustained * fill * duty),
            (Cause::Shape, p.shape * duty),
            (Cause::MemoryBound, p.memory * duty),
            (Cause::ExponentBound, p.exponent * fill * duty),
            (Cause::Launch, p.floor * duty + (time - on_gpu)),
            (Cause::Contention, pass.contention * duty),
            (
                exposed(CommKind::Tensor, self.tensor_level),
                p.tensor * duty,
            ),
            (
                exposed(CommKind::Expert, self.expert_level),
                p.expert * duty,
            ),
            (
                exposed(CommKind::Pipeline, self.pipeline_level),
                p.pipeline * duty,
            ),
            (Cause::Bubble, (on_gpu - busy).max(0.0)),
            (Cause::Imbalance, (p.imbalance + idle) * duty),
        ];
        let mut causes = Accounts::default();
        let gpus = u64::from(plan.gpus());
        // The running sum is rounded, so that the spans sum to the time.
        let (mut end, mut before) = (0.0, SimDuration::ZERO);
        for (cause, seconds) in spans {
            end += seconds.max(0.0);
            let now = SimDuration::from_secs_f64(end);
            causes.book_times(cause, now - before, gpus);
            before = now;
        }
        let mut wire_bytes = [0.0; Level::ALL.len()];
        wire_bytes[Level::NvLink as usize] += p.wire_nvlink * ranks * micro;
        let across = self
            .expert_level
            .max(self.tensor_level)
            .max(self.pipeline_level)
            .max(Level::Leaf);
        wire_bytes[across as usize] += p.wire_nic * ranks * micro;
        StepCost {
            time: before,
            causes,
            flops: p.flops * fill * ranks * micro,
            bytes_read: p.bytes * ranks * micro,
            wire_bytes,
        }
    }
}

fn check(deployment: &Deployment, gpus: &[u32]) -> Result<(), ServingError> {
    let plan = &deployment.parallelism;
    for (axis, degree) in [
        ("tensor", plan.tensor),
        ("pipeline", plan.pipeline),
        ("data", plan.data),
        ("expert", plan.expert),
    ] {
        if degree == 0 {
            return Err(ServingError::Zero { axis });
        }
    }
    if gpus.len() != plan.gpus() as usize {
        return Err(ServingError::Gpus {
            ranks: plan.gpus(),
            gpus: gpus.len(),
        });
    }
    if !plan.stage_gpus().is_multiple_of(plan.expert) {
        return Err(ServingError::ExpertGroups {
            expert: plan.expert,
            stage: plan.stage_gpus(),
        });
    }
    if u64::from(plan.pipeline) > deployment.model.layers {
        return Err(ServingError::Stages {
            stages: plan.pipeline,
            layers: deployment.model.layers,
        });
    }
    Ok(())
}

/// The narrowest format that the deployment's products run in on this accelerator.
fn native(
    deployment: &Deployment,
    accelerator: &rackflow_topology::Accelerator,
) -> rackflow_units::Precision {
    let p = &deployment.precision;
    let routed = deployment.model.moe.is_some();
    [
        p.attention,
        p.dense,
        if routed { p.experts } else { p.dense },
    ]
    .into_iter()
    .map(|format| kernels::operands(accelerator, format))
    .min_by_key(|precision| precision.bits())
    .unwrap_or(rackflow_units::Precision::Bf16)
}

fn attending(kinds: &[(LayerKind, u64)]) -> Vec<Attending> {
    let mut all: Vec<Attending> = Vec::new();
    for (kind, count) in kinds {
        let window = kind.window.map(|w| w as f64);
        let n = *count as f64;
        let (dense, mixture) = match kind.feed_forward {
            FeedForward::Dense => (n, 0.0),
            FeedForward::MoE => (0.0, n),
        };
        match all.iter_mut().find(|a| a.window == window) {
            Some(known) => {
                known.dense += dense;
                known.mixture += mixture;
            }
            None => all.push(Attending {
                window,
                dense,
                mixture,
            }),
        }
    }
    all
}

fn prompts<'a>(chunks: impl Iterator<Item = &'a PrefillChunk>) -> Prompts {
    chunks.fold(Prompts::default(), |sum, chunk| {
        let (new, cached) = (chunk.new_tokens as f64, chunk.cached_tokens as f64);
        Prompts {
            chunks: sum.chunks + 1.0,
            new: sum.new + new,
            keys: sum.keys + new + cached,
            pairs: sum.pairs + new * (cached + 0.5 * (new + 1.0)),
        }
    })
}

fn scaled(p: &Prompts, factor: f64) -> Prompts {
    Prompts {
        chunks: p.chunks * factor,
        new: p.new * factor,
        keys: p.keys * factor,
        pairs: p.pairs * factor,
    }
}

/// The same prompts where a query sees no more than `window` keys.
fn windowed(p: &Prompts, window: f64) -> Prompts {
    let chunks = p.chunks.max(1.0);
    let (new, cached) = (p.new / chunks, (p.keys - p.new) / chunks);
    // Queries whose keys the window does not cut.
    let whole = (window - cached).clamp(0.0, new);
    let pairs = whole * (cached + 0.5 * (whole + 1.0)) + (new - whole) * window;
    Prompts {
        pairs: pairs.min(p.pairs / chunks) * chunks,
        keys: (new + cached.min(window)) * chunks,
        ..*p
    }
}
