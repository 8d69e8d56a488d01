//! The kernels and collectives of each layer on one rank, as functions of a number of tokens.

use super::communication::{Groups, Way};
use super::kernels::{Heads, Kernels, grouped_by_library, is_blackwell};
use super::memory::cached_elements;
use super::parts::Parts;
use crate::kernel::SmallKernel;
use rackflow_units::Bytes;
use rackflow_workload::serving::{Deployment, DispatchKernel, WeightFormat};
use rackflow_workload::{Attention, FeedForward, LayerKind, MoE};

/// A deployment on one rank of its GPUs.
pub(super) struct Layers<'a> {
    pub deployment: &'a Deployment,
    pub kernels: &'a Kernels,
    pub groups: &'a Groups,
}

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
        let kv = self.deployment.precision.kv;
        let cached = cached_elements(attention, self.tensor(), kv.bytes());
        match *attention {
            Attention::Grouped {
                kv_heads, head_dim, ..
            } => Heads {
                heads: self.heads(),
                kv_heads: kv_heads.div_ceil(self.tensor()),
                width_qk: head_dim,
                width_v: head_dim,
                rope: None,
                latents: 1,
                cached,
                kv,
            },
            Attention::Latent {
                kv_lora_rank,
                qk_rope_head_dim,
                latents,
                ..
            } => Heads {
                heads: self.heads(),
                kv_heads: 1,
                width_qk: kv_lora_rank + qk_rope_head_dim,
                width_v: kv_lora_rank,
                rope: Some(qk_rope_head_dim),
                latents: latents.div_ceil(self.tensor()),
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

    fn product(&self, tokens: u64, n: u64, k: u64, format: WeightFormat) -> Parts {
        self.kernels.product(tokens, n, k, format)
    }

    fn all_reduce(&self, tokens: u64) -> Parts {
        if self.tensor() == 1 {
            return Parts::default();
        }
        let bytes = Bytes::new(tokens * self.hidden() * 2);
        self.groups
            .all_reduce(bytes, self.deployment.stack.custom_all_reduce)
    }

    /// Norms, rotary embedding, cache writes, and the activation function of `inner` columns; and what
    /// the stack launches besides.
    fn small(&self, tokens: u64, inner: u64) -> Parts {
        let stack = &self.deployment.stack;
        let norms =
            if self.tensor() > 1 && stack.custom_all_reduce.is_some_and(|own| own.fused_norm) {
                0.0
            } else {
                2.0
            };
        let heads = self.decode_heads();
        let norm = self.kernels.small(&SmallKernel::Norm {
            tokens,
            hidden: self.hidden(),
        });
        let mut parts = norm * norms;
        if !stack.kernels.fused_append {
            parts += self.kernels.small(&SmallKernel::AppendCache {
                tokens,
                width: heads.cached as u64,
                bytes: heads.kv.bytes(),
            });
        }
        if !stack.kernels.fused_rope {
            parts += self.kernels.small(&SmallKernel::Rope {
                tokens,
                heads: heads.heads + heads.kv_heads,
                head_dim: heads.rope.unwrap_or(heads.width_qk),
            });
        }
        if inner > 0 && !stack.kernels.fused_activation {
            parts += self
                .kernels
                .small(&SmallKernel::Activation { tokens, inner });
        }
        parts + self.kernels.stream(0.0, 0.0, stack.kernels.more)
    }

    /// Projections of attention without the parts that only prompts or only generation have.
    fn projections(&self, tokens: u64) -> Parts {
        let format = self.deployment.precision.attention_output;
        let (Attention::Grouped {
            head_dim: width, ..
        }
        | Attention::Latent {
            v_head_dim: width, ..
        }) = self.deployment.model.attention;
        self.inputs(tokens)
            + self.product(tokens, self.hidden(), self.heads() * width, format)
            + self.all_reduce(tokens)
    }

    /// What one layer does before attention itself.
    pub fn prepare(&self, tokens: u64) -> Parts {
        let norm = self.kernels.small(&SmallKernel::Norm {
            tokens,
            hidden: self.hidden(),
        });
        norm + self.inputs(tokens)
    }

    /// Queries, keys and values, or the latents they come from.
    fn inputs(&self, tokens: u64) -> Parts {
        let format = self.deployment.precision.attention;
        let (hidden, heads) = (self.hidden(), self.heads());
        match self.deployment.model.attention {
            Attention::Grouped {
                kv_heads, head_dim, ..
            } => {
                let kv = kv_heads.div_ceil(self.tensor());
                self.product(tokens, (heads + 2 * kv) * head_dim, hidden, format)
            }
            Attention::Latent {
                q_lora_rank,
                kv_lora_rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                latents,
                sparse,
                ..
            } => {
                let latent = latents.div_ceil(self.tensor()) * kv_lora_rank + qk_rope_head_dim;
                // Every rank holds the whole indexer.
                let index = sparse.map_or(Parts::default(), |index| {
                    let queries = index.heads * index.head_dim;
                    self.product(tokens, queries, q_lora_rank.unwrap_or(hidden), format)
                        + self.product(tokens, index.head_dim + index.heads, hidden, format)
                });
                let query = heads * (qk_nope_head_dim + qk_rope_head_dim);
                let down = match q_lora_rank {
                    Some(rank) => {
                        self.product(tokens, rank + latent, hidden, format)
                            + self.product(tokens, query, rank, format)
                    }
                    None => self.product(tokens, query + latent, hidden, format),
                };
                down + index
            }
        }
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
        let choice = self.kernels.small(&SmallKernel::Router {
            tokens,
            experts: moe.experts,
        });
        scores + choice
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
        // Tokens choose by chance: the busiest of many groups has some deviations more, of rows and of
        // experts whose weights it reads.
        let deviations = largest_of(groups) * clumping(moe, groups);
        let rows = mean * (d.expert_imbalance + deviations / mean.max(1.0).sqrt());
        let busiest = rows.min((tokens * moe.top_k) as f64).max(mean);
        let spread = (held * missed * (1.0 - missed)).sqrt();
        let widest = (touched + deviations * spread).min(held).min(busiest);
        let balanced = self.expert_rows(mean, touched, width);
        let most = self.expert_rows(busiest, widest.max(touched), width);
        Parts {
            imbalance: (most.compute() - balanced.compute()).max(0.0),
            ..balanced
        }
    }

    fn expert_rows(&self, rows: f64, touched: f64, width: u64) -> Parts {
        let d = self.deployment;
        self.kernels.experts(
            (rows, touched),
            self.hidden(),
            width,
            d.model.gated,
            d.precision.experts,
            d.parallelism.data > 1 && d.parallelism.expert_tensor() == 1,
        )
    }

    /// Dispatch or combine of one mixture layer for `tokens` of one attention group.
    pub fn exchange(&self, way: Way, tokens: u64, decoding: bool) -> Parts {
        let d = self.deployment;
        let Some(moe) = d.model.moe.as_ref().filter(|_| d.parallelism.data > 1) else {
            return Parts::default();
        };
        let kernel = self.dispatcher();
        let format = match way {
            // What is gathered is quantised by the experts' own kernels.
            Way::Dispatch
                if kernel == DispatchKernel::AllGather
                    && d.precision.experts == WeightFormat::Fp8Block =>
            {
                WeightFormat::Bf16
            }
            Way::Dispatch => d.precision.dispatch,
            Way::Combine => WeightFormat::Bf16,
        };
        let bytes = self.hidden() as f64 * format.bytes();
        let own = tokens.div_ceil(self.tensor());
        let kernel = (kernel, d.stack.dispatch_sms);
        self.groups.exchange(moe, way, own, bytes, kernel, decoding)
    }

    /// How tokens reach their experts: as the stack has it, where it can. A token goes to experts that
    /// are cut over ranks by being gathered; one-sided stores need Blackwell's NVLink and experts that
    /// take unsorted tokens (TensorRT-LLM, `select_alltoall_method_type`), and give way to a gather
    /// inside a domain, to DeepEP across.
    fn dispatcher(&self) -> DispatchKernel {
        let d = self.deployment;
        if d.parallelism.expert_tensor() > 1 {
            return DispatchKernel::AllGather;
        }
        let accelerator = self.kernels.accelerator();
        let stores = is_blackwell(accelerator) && !grouped_by_library(d, accelerator);
        match d.stack.dispatcher {
            DispatchKernel::OneSided if !stores && self.groups.experts_in_one_domain() => {
                DispatchKernel::AllGather
            }
            DispatchKernel::OneSided if !is_blackwell(accelerator) => DispatchKernel::DeepEp,
            own => own,
        }
    }

    /// Logits of `rows` positions and the choice of their tokens.
    pub fn head(&self, rows: u64) -> Parts {
        let model = &self.deployment.model;
        let columns = model.vocab.div_ceil(self.tensor());
        let gathered = if self.tensor() > 1 {
            self.groups
                .gather_logits(Bytes::new(rows * model.vocab * 2))
        } else {
            Parts::default()
        };
        self.kernels
            .product(rows, columns, model.hidden, self.deployment.precision.head)
            + gathered
            + self.kernels.small(&SmallKernel::Sample {
                sequences: rows,
                vocab: model.vocab,
            })
    }

    /// Token table.
    pub fn embedding(&self, tokens: u64) -> Parts {
        self.kernels.small(&SmallKernel::Embedding {
            tokens,
            hidden: self.hidden(),
        })
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

/// By how many standard deviations the largest of `n` normal numbers is above their mean, on average;
/// within 3 % for 2 to 144.
fn largest_of(n: f64) -> f64 {
    if n > 1.0 {
        (2.0 * n.ln()).sqrt() - 0.6
    } else {
        0.0
    }
}

/// Standard deviation of the rows of one of `ranks` groups over that of independent choices. A token
/// whose experts come from a part of the groups only (DeepSeek: 4 of 8) gives each of those more.
fn clumping(moe: &MoE, ranks: f64) -> f64 {
    let per_token = moe.top_k as f64 / ranks;
    moe.group_limit.map_or(1.0, |limit| {
        let left_out = limit.groups as f64 / limit.chosen as f64 - 1.0;
        (1.0 + per_token * left_out).sqrt()
    })
}
