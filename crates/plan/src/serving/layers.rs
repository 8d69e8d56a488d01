//! The kernels and collectives of each layer on one rank, as functions of a number of tokens.

use super::communication::{Groups, Way};
use super::kernels::{Heads, Kernels};
use super::memory::cached_elements;
use super::parts::Parts;
use rackflow_units::Bytes;
use rackflow_workload::serving::{Deployment, WeightFormat};
use rackflow_workload::{Attention, FeedForward, LayerKind, MoE};

/// A deployment on one rank of its GPUs.
pub(super) struct Layers<'a> {
    pub deployment: &'a Deployment,
    pub kernels: &'a Kernels,
    pub groups: &'a Groups,
}

/// Bytes of an activation element between kernels.
const ACTIVATION: f64 = 2.0;

impl Layers<'_> {
    fn tensor(&self) -> u64 {
        u64::from(self.deployment.parallelism.tensor)
    }

    fn hidden(&self) -> u64 {
        self.deployment.model.hidden
    }

    /// Query heads of one rank.
    fn heads(&self) -> u64 {
        let (Attention::Grouped { heads, .. } | Attention::Latent { heads, .. }) =
            self.deployment.model.attention;
        heads.div_ceil(self.tensor())
    }

    /// Attention that generates: latent attention works on the latent itself (absorbed).
    pub fn decode_heads(&self) -> Heads {
        let attention = &self.deployment.model.attention;
        let cached = cached_elements(attention, self.tensor());
        let kv = self.deployment.precision.kv;
        match *attention {
            Attention::Grouped {
                kv_heads, head_dim, ..
            } => Heads {
                heads: self.heads(),
                kv_heads: kv_heads.div_ceil(self.tensor()),
                width_qk: head_dim,
                width_v: head_dim,
                cached,
                kv,
            },
            Attention::Latent {
                kv_lora_rank,
                qk_rope_head_dim,
                ..
            } => Heads {
                heads: self.heads(),
                kv_heads: 1,
                width_qk: kv_lora_rank + qk_rope_head_dim,
                width_v: kv_lora_rank,
                cached,
                kv,
            },
        }
    }

    /// Attention of prompts: latents are expanded to keys and values of every head.
    pub fn prefill_heads(&self) -> Heads {
        let decode = self.decode_heads();
        match self.deployment.model.attention {
            Attention::Grouped { .. } => decode,
            Attention::Latent {
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
                ..
            } => Heads {
                kv_heads: decode.heads,
                width_qk: qk_nope_head_dim + qk_rope_head_dim,
                width_v: v_head_dim,
                ..decode
            },
        }
    }

    /// A product with its input quantised, where the format and the stack ask for a kernel.
    fn product(&self, tokens: u64, n: u64, k: u64, format: WeightFormat) -> Parts {
        let kernels = self.deployment.stack.kernels.quantization;
        let product = self.kernels.product(tokens, n, k, format);
        if self.kernels.operands(format).bits() >= 16 || kernels == 0 {
            return product;
        }
        let elements = (tokens * k) as f64;
        let quantize =
            self.kernels
                .small(elements * ACTIVATION, elements * format.bytes(), kernels);
        product + quantize
    }

    fn all_reduce(&self, tokens: u64) -> Parts {
        if self.tensor() == 1 {
            return Parts::default();
        }
        let bytes = Bytes::new(tokens * self.hidden() * 2);
        self.groups
            .all_reduce(bytes, self.deployment.stack.custom_all_reduce)
    }

    /// Norms, rotary embedding, cache writes, the activation function.
    fn small(&self, tokens: u64, ffn: u64) -> Parts {
        let fused = self.tensor() > 1
            && self
                .deployment
                .stack
                .custom_all_reduce
                .is_some_and(|own| own.fused_norm);
        let kernels = self.deployment.stack.kernels.layer;
        let kernels = if fused {
            kernels.saturating_sub(2)
        } else {
            kernels
        };
        let heads = self.decode_heads();
        let rows = tokens as f64;
        let norms = rows * (2 * self.hidden()) as f64 * ACTIVATION;
        let rope = rows * (heads.heads * heads.width_qk) as f64 * ACTIVATION;
        let activation = rows * ffn as f64 * ACTIVATION;
        self.kernels.small(
            2.0 * norms + rope + 2.0 * activation,
            2.0 * norms + rope + activation,
            kernels.max(1),
        )
    }

    /// Projections of attention without the parts that only prompts or only generation have.
    fn projections(&self, tokens: u64) -> Parts {
        let format = self.deployment.precision.attention;
        let (hidden, heads) = (self.hidden(), self.heads());
        let parts = match self.deployment.model.attention {
            Attention::Grouped {
                kv_heads, head_dim, ..
            } => {
                let kv = kv_heads.div_ceil(self.tensor());
                self.product(tokens, (heads + 2 * kv) * head_dim, hidden, format)
                    + self.product(tokens, hidden, heads * head_dim, format)
            }
            Attention::Latent {
                q_lora_rank,
                kv_lora_rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
                ..
            } => {
                let latent = kv_lora_rank + qk_rope_head_dim;
                let query = heads * (qk_nope_head_dim + qk_rope_head_dim);
                let down = match q_lora_rank {
                    Some(rank) => {
                        self.product(tokens, rank + latent, hidden, format)
                            + self.product(tokens, query, rank, format)
                    }
                    None => self.product(tokens, query + latent, hidden, format),
                };
                down + self.product(tokens, hidden, heads * v_head_dim, format)
            }
        };
        parts + self.all_reduce(tokens)
    }

    /// What generation adds in a layer: the products that the latent absorbs.
    pub fn absorbed(&self, tokens: u64) -> Parts {
        match self.deployment.model.attention {
            Attention::Grouped { .. } => Parts::default(),
            Attention::Latent {
                kv_lora_rank,
                qk_nope_head_dim,
                v_head_dim,
                ..
            } => {
                self.kernels
                    .batched(tokens, kv_lora_rank, qk_nope_head_dim, self.heads())
                    + self
                        .kernels
                        .batched(tokens, v_head_dim, kv_lora_rank, self.heads())
            }
        }
    }

    /// What prompts add in a layer: keys and values of every head from the latents, those in the
    /// cache too.
    pub fn expanded(&self, keys: u64) -> Parts {
        match self.deployment.model.attention {
            Attention::Grouped { .. } => Parts::default(),
            Attention::Latent {
                kv_lora_rank,
                qk_nope_head_dim,
                v_head_dim,
                ..
            } => self.product(
                keys,
                self.heads() * (qk_nope_head_dim + v_head_dim),
                kv_lora_rank,
                self.deployment.precision.attention,
            ),
        }
    }

    fn feed_forward(&self, tokens: u64, width: u64) -> Parts {
        let format = self.deployment.precision.dense;
        let up = if self.deployment.model.gated {
            2 * width
        } else {
            width
        };
        self.product(tokens, up, self.hidden(), format)
            + self.product(tokens, self.hidden(), width, format)
    }

    /// One layer on one rank, without attention itself, its experts and their exchange.
    pub fn rank_side(&self, kind: LayerKind, tokens: u64) -> Parts {
        let projections = self.projections(tokens);
        match (kind.feed_forward, &self.deployment.model.moe) {
            (FeedForward::MoE, Some(moe)) => {
                projections
                    + self.small(tokens, 0)
                    + self.router(moe, tokens)
                    + self.all_reduce(tokens)
            }
            _ => {
                let width = self.deployment.model.ffn / self.tensor();
                projections
                    + self.small(tokens, width)
                    + self.feed_forward(tokens, width)
                    + self.all_reduce(tokens)
            }
        }
    }

    fn router(&self, moe: &MoE, tokens: u64) -> Parts {
        let scores = self
            .kernels
            .product(tokens, moe.experts, self.hidden(), WeightFormat::Bf16);
        let read = (tokens * moe.experts) as f64 * 4.0;
        scores + self.kernels.small(read, read, 1)
    }

    /// The shared experts of one mixture layer on one rank.
    pub fn shared(&self, tokens: u64) -> Parts {
        let Some(moe) = self
            .deployment
            .model
            .moe
            .as_ref()
            .filter(|m| m.shared_ffn > 0)
        else {
            return Parts::default();
        };
        self.feed_forward(tokens, moe.shared_ffn / self.tensor())
    }

    /// The routed experts of one mixture layer on one rank, for `tokens` of the whole stage.
    pub fn experts(&self, tokens: u64) -> Parts {
        let d = self.deployment;
        let Some(moe) = &d.model.moe else {
            return Parts::default();
        };
        let groups = f64::from(d.parallelism.expert);
        let width = (moe.expert_ffn / u64::from(d.parallelism.expert_tensor())).max(1);
        let held = (moe.experts + d.redundant_experts) as f64 / groups;
        let chosen = (tokens * moe.top_k) as f64;
        let mean = chosen / groups;
        // Some expert of those held is met by at least one of the tokens.
        let missed = (1.0 - moe.top_k as f64 / moe.experts as f64).powf(tokens as f64);
        let touched = (held * (1.0 - missed)).min(chosen).max(1.0);
        // Tokens choose by chance: the busiest of many groups has some deviations more.
        let chance = if groups > 1.0 {
            (2.0 * groups.ln() / mean.max(1.0)).sqrt()
        } else {
            0.0
        };
        let busiest = (mean * (d.expert_imbalance + chance)).min((tokens * moe.top_k) as f64);
        let balanced = self.expert_rows(mean, touched, width);
        let most = self.expert_rows(busiest.max(mean), touched, width);
        Parts {
            imbalance: (most.compute() - balanced.compute()).max(0.0),
            ..balanced
        }
    }

    fn expert_rows(&self, rows: f64, touched: f64, width: u64) -> Parts {
        let d = self.deployment;
        let format = d.precision.experts;
        let hidden = self.hidden();
        let up = if d.model.gated { 2 * width } else { width };
        let products = self.kernels.experts(rows, touched, up, hidden, format)
            + self.kernels.experts(rows, touched, hidden, width, format);
        let activation = rows * width as f64 * ACTIVATION;
        let permuted = rows * hidden as f64 * ACTIVATION;
        let kernels = d.stack.kernels.mixture + 1;
        products
            + self.kernels.small(
                2.0 * activation + 2.0 * permuted,
                activation + 2.0 * permuted,
                kernels,
            )
    }

    /// Dispatch or combine of one mixture layer for `tokens` of one attention group.
    pub fn exchange(&self, way: Way, tokens: u64, decoding: bool) -> Parts {
        let d = self.deployment;
        let Some(moe) = d.model.moe.as_ref().filter(|_| d.parallelism.data > 1) else {
            return Parts::default();
        };
        let format = match way {
            Way::Dispatch => d.precision.dispatch,
            Way::Combine => WeightFormat::Bf16,
        };
        let bytes = self.hidden() as f64 * format.bytes();
        let own = tokens.div_ceil(self.tensor());
        self.groups
            .exchange(moe, way, own, bytes, d.stack.dispatcher, decoding)
    }

    /// Logits of `rows` positions and the choice of their tokens.
    pub fn head(&self, rows: u64) -> Parts {
        let model = &self.deployment.model;
        let columns = model.vocab.div_ceil(self.tensor());
        let logits = (rows * columns) as f64 * 4.0;
        let gathered = if self.tensor() > 1 {
            self.groups
                .gather_logits(Bytes::new(rows * model.vocab * 2))
        } else {
            Parts::default()
        };
        self.kernels
            .product(rows, columns, model.hidden, self.deployment.precision.head)
            + gathered
            + self.kernels.small(2.0 * logits, logits, 4)
    }

    /// Token table.
    pub fn embedding(&self, tokens: u64) -> Parts {
        let bytes = (tokens * self.hidden()) as f64 * ACTIVATION;
        self.kernels.small(bytes, bytes, 1)
    }

    /// One guess of the prediction module for `sequences` sequences of one rank, without attention.
    pub fn draft(&self, sequences: u64) -> Parts {
        let model = &self.deployment.model;
        let kind = model.mtp_layer_kind();
        let projection = self.kernels.product(
            sequences,
            model.hidden,
            2 * model.hidden,
            WeightFormat::Bf16,
        );
        let groups = u64::from(self.deployment.parallelism.data);
        let mut parts = projection
            + self.rank_side(kind, sequences)
            + self.absorbed(sequences)
            + self.head(sequences);
        if kind.feed_forward == FeedForward::MoE {
            parts += self.shared(sequences)
                + self.experts(sequences * groups)
                + self.exchange(Way::Dispatch, sequences, true)
                + self.exchange(Way::Combine, sequences, true);
        }
        parts
    }
}
