//! What a model's shape implies: parameters, FLOPs per token, bytes of keys and values.
//!
//! Everything is counted once, from the matrices that the model multiplies by. All sums saturate,
//! so that a shape nobody has checked yields a wrong number and not a panic;
//! [`Model::check`](crate::Model::check) refuses such shapes.

use crate::model::{Attention, FeedForward, LayerKind, Model};
use rackflow_units::Bytes;

/// How much of the score square counts as the model's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttentionCount {
    /// What the causal mask leaves: half the square.
    Causal,
    /// The full square, masked entries too (for a windowed layer the full band). Exactly twice
    /// [`AttentionCount::Causal`].
    NonCausal,
}

/// Parameters of one layer, by what happens to them in a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LayerParameters {
    /// Projections of queries, keys, values and output; for MLA both halves of each.
    pub attention: u64,
    /// The dense feed-forward network; 0 in a routed layer.
    pub dense_ffn: u64,
    /// The matrix that scores the experts.
    pub router: u64,
    /// All routed experts.
    pub routed_experts: u64,
    /// One routed expert.
    pub one_expert: u64,
    /// The routed experts that one token visits.
    pub visited_experts: u64,
    /// All shared experts.
    pub shared_expert: u64,
    /// Norms, with those inside attention, and attention sinks.
    pub norms: u64,
}

impl LayerParameters {
    /// Everything that the layer holds.
    pub fn total(&self) -> u64 {
        self.common().saturating_add(self.routed_experts)
    }

    /// What one token passes through.
    pub fn active(&self) -> u64 {
        self.common().saturating_add(self.visited_experts)
    }

    /// What every token passes through: all but the routed experts.
    pub fn common(&self) -> u64 {
        sum([
            self.attention,
            self.dense_ffn,
            self.router,
            self.shared_expert,
            self.norms,
        ])
    }
}

/// Parameters of a model. Prediction modules stand beside the total and are not part of it, as in
/// the published counts; so does the vision encoder, without which the model can be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParameterCount {
    /// Embedding, layers, final norm and output.
    pub total: u64,
    /// `total` without the routed experts that a token does not visit. The embedding table counts
    /// whole.
    pub active: u64,
    /// Token table, and learned positions.
    pub embedding: u64,
    /// All layers.
    pub layers: u64,
    /// The norm before the output.
    pub final_norm: u64,
    /// Output matrix; 0 where it shares the token table.
    pub output: u64,
    /// Prediction modules, without the table and the output matrix that they share.
    pub mtp: u64,
    /// The vision encoder with its projector.
    pub vision: u64,
}

/// Model FLOPs of one token, forward and backward, by where they are spent.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FlopsPerToken {
    /// Products with the weights of attention.
    pub projections: f64,
    /// Scores, and their product with the values.
    pub scores: f64,
    /// Dense networks, visited and shared experts.
    pub feed_forward: f64,
    /// Scoring of the experts.
    pub router: f64,
    /// Logits.
    pub output: f64,
}

impl FlopsPerToken {
    /// The sum.
    pub fn total(&self) -> f64 {
        self.projections + self.scores + self.feed_forward + self.router + self.output
    }

    fn add_layers(&mut self, layer: Self, count: u64) {
        let count = count as f64;
        self.projections += layer.projections * count;
        self.scores += layer.scores * count;
        self.feed_forward += layer.feed_forward * count;
        self.router += layer.router * count;
        self.output += layer.output * count;
    }
}

/// A multiply-add is two operations; the backward pass does two products for each of the forward
/// pass's.
const FLOPS_PER_WEIGHT: f64 = 2.0 * 3.0;

fn sum<const N: usize>(terms: [u64; N]) -> u64 {
    terms.into_iter().fold(0, u64::saturating_add)
}

fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

/// Counts linear layers, with or without their biases.
#[derive(Clone, Copy)]
struct Linear {
    biases: bool,
}

impl Linear {
    fn parameters(self, inputs: u64, outputs: u64) -> u64 {
        product([inputs, outputs]).saturating_add(if self.biases { outputs } else { 0 })
    }
}

impl Model {
    /// Parameters, by part.
    pub fn parameters(&self) -> ParameterCount {
        let mut layers = 0u64;
        let mut unvisited = 0u64;
        for (kind, count) in self.layer_kinds() {
            let layer = self.layer_parameters(kind);
            layers = layers.saturating_add(layer.total().saturating_mul(count));
            let idle = layer.routed_experts.saturating_sub(layer.visited_experts);
            unvisited = unvisited.saturating_add(idle.saturating_mul(count));
        }
        let embedding = self.embedding_parameters();
        let final_norm = self.norm_parameters(self.hidden);
        let output = self.output_parameters();
        let total = sum([embedding, layers, final_norm, output]);
        let active = total.saturating_sub(unvisited);
        let mtp = self.mtp_parameters();
        ParameterCount {
            total,
            active,
            embedding,
            layers,
            final_norm,
            output,
            mtp,
            vision: self
                .vision
                .as_ref()
                .map_or(0, |vision| vision.parameters(self.hidden).total()),
        }
    }

    /// All parameters, without prediction modules.
    pub fn parameters_total(&self) -> u64 {
        self.parameters().total
    }

    /// Parameters less the routed experts that a token does not visit.
    pub fn parameters_active(&self) -> u64 {
        self.parameters().active
    }

    /// Parameters of one layer of this kind.
    pub fn layer_parameters(&self, kind: LayerKind) -> LayerParameters {
        self.layer(
            kind,
            Linear {
                biases: self.biases,
            },
        )
    }

    fn layer(&self, kind: LayerKind, linear: Linear) -> LayerParameters {
        let mut layer = LayerParameters {
            attention: self.attention_parameters(linear),
            norms: self.layer_norm_parameters(),
            ..LayerParameters::default()
        };
        match (kind.feed_forward, &self.moe) {
            (FeedForward::MoE, Some(moe)) => {
                layer.one_expert = self.ffn_parameters(moe.expert_ffn, linear);
                layer.routed_experts = layer.one_expert.saturating_mul(moe.experts);
                layer.visited_experts = layer.one_expert.saturating_mul(moe.top_k);
                layer.shared_expert = self.ffn_parameters(moe.shared_ffn, linear);
                layer.router = linear.parameters(self.hidden, moe.experts);
            }
            _ => layer.dense_ffn = self.ffn_parameters(self.ffn, linear),
        }
        layer
    }

    /// Token table, and the table of learned positions.
    pub fn embedding_parameters(&self) -> u64 {
        self.vocab
            .saturating_add(self.learned_positions)
            .saturating_mul(self.hidden)
    }

    /// Prediction modules that are trained along.
    pub fn prediction_modules(&self) -> u64 {
        self.mtp.as_ref().map_or(0, |mtp| mtp.modules)
    }

    /// Table of tokens, without learned positions.
    pub fn table_parameters(&self) -> u64 {
        product([self.vocab, self.hidden])
    }

    /// Output matrix; 0 where it shares the token table.
    pub fn output_parameters(&self) -> u64 {
        if self.tied_embeddings {
            0
        } else {
            product([self.vocab, self.hidden])
        }
    }

    /// Prediction modules: each a layer, a projection of two hidden states to one, and its norms.
    /// Token table and output matrix are the model's own.
    pub fn mtp_parameters(&self) -> u64 {
        self.mtp.as_ref().map_or(0, |mtp| {
            let layer = self.layer_parameters(self.mtp_layer_kind()).total();
            let projection = product([2, self.hidden, self.hidden]);
            let norms = product([3, self.norm_parameters(self.hidden)]);
            sum([layer, projection, norms]).saturating_mul(mtp.modules)
        })
    }

    /// Model FLOPs of one token, forward and backward, without recomputation and without
    /// prediction modules.
    ///
    /// The token table is looked up and costs nothing; norms, activations and softmax are not
    /// counted, as nowhere in the literature.
    pub fn flops_per_token(&self, sequence_length: u64, count: AttentionCount) -> f64 {
        self.flops_per_token_by_part(sequence_length, count).total()
    }

    /// [`Model::flops_per_token`], by where they are spent.
    pub fn flops_per_token_by_part(
        &self,
        sequence_length: u64,
        count: AttentionCount,
    ) -> FlopsPerToken {
        let mut flops = FlopsPerToken {
            output: self.logits_flops(),
            ..FlopsPerToken::default()
        };
        for (kind, layers) in self.layer_kinds() {
            flops.add_layers(
                self.layer_flops_per_token(kind, sequence_length, count),
                layers,
            );
        }
        flops
    }

    /// Model FLOPs of one token in one layer of this kind, forward and backward.
    pub fn layer_flops_per_token(
        &self,
        kind: LayerKind,
        sequence_length: u64,
        count: AttentionCount,
    ) -> FlopsPerToken {
        let layer = self.layer(kind, Linear { biases: false });
        let keys = match count {
            AttentionCount::Causal => kind.keys_seen(sequence_length),
            AttentionCount::NonCausal => 2.0 * kind.keys_seen(sequence_length),
        };
        let feed_forward = sum([layer.dense_ffn, layer.visited_experts, layer.shared_expert]);
        FlopsPerToken {
            projections: FLOPS_PER_WEIGHT * layer.attention as f64,
            scores: FLOPS_PER_WEIGHT * self.score_width() as f64 * keys,
            feed_forward: FLOPS_PER_WEIGHT * feed_forward as f64,
            router: FLOPS_PER_WEIGHT * layer.router as f64,
            output: 0.0,
        }
    }

    /// Model FLOPs that the prediction modules add to one token, each with its own logits. Sources
    /// differ in whether they count them.
    pub fn mtp_flops_per_token(&self, sequence_length: u64, count: AttentionCount) -> f64 {
        self.mtp.as_ref().map_or(0.0, |mtp| {
            let layer = self.layer_flops_per_token(self.mtp_layer_kind(), sequence_length, count);
            let projection = FLOPS_PER_WEIGHT * product([2, self.hidden, self.hidden]) as f64;
            mtp.modules as f64 * (layer.total() + projection + self.logits_flops())
        })
    }

    /// Bytes that one token adds to the cache over all layers, with elements of this many bits.
    pub fn kv_bytes_per_token(&self, bits: u64) -> Bytes {
        Bytes::of_elements(self.kv_elements().saturating_mul(self.layers), bits)
    }

    /// Bytes of the cache of one sequence with this many tokens: windowed layers drop what no
    /// query will see again.
    pub fn kv_bytes(&self, context_length: u64, bits: u64) -> Bytes {
        let tokens = self
            .layer_kinds()
            .into_iter()
            .fold(0u64, |tokens, (kind, layers)| {
                let kept = kind
                    .window
                    .map_or(context_length, |window| window.min(context_length));
                tokens.saturating_add(kept.saturating_mul(layers))
            });
        Bytes::of_elements(self.kv_elements().saturating_mul(tokens), bits)
    }

    /// Elements that one token adds to the cache of one layer: keys and values, or the latent that
    /// both are made from and the shared rotary key.
    fn kv_elements(&self) -> u64 {
        match self.attention {
            Attention::Grouped {
                kv_heads, head_dim, ..
            } => product([2, kv_heads, head_dim]),
            Attention::Latent {
                kv_lora_rank,
                qk_rope_head_dim,
                latents,
                sparse,
                ..
            } => sum([
                product([latents, kv_lora_rank]),
                qk_rope_head_dim,
                sparse.map_or(0, |index| index.head_dim),
            ]),
        }
    }

    /// Width of queries and values over all heads: what a key costs a query.
    fn score_width(&self) -> u64 {
        match self.attention {
            Attention::Grouped {
                heads, head_dim, ..
            } => product([2, heads, head_dim]),
            Attention::Latent {
                heads,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
                ..
            } => product([heads, sum([qk_nope_head_dim, qk_rope_head_dim, v_head_dim])]),
        }
    }

    fn logits_flops(&self) -> f64 {
        FLOPS_PER_WEIGHT * product([self.vocab, self.hidden]) as f64
    }

    fn attention_parameters(&self, linear: Linear) -> u64 {
        let hidden = self.hidden;
        let linear = |inputs, outputs| linear.parameters(inputs, outputs);
        match self.attention {
            Attention::Grouped {
                heads,
                kv_heads,
                head_dim,
                ..
            } => {
                let query = product([heads, head_dim]);
                let key = product([kv_heads, head_dim]);
                sum([
                    linear(hidden, query),
                    linear(hidden, key),
                    linear(hidden, key),
                    linear(query, hidden),
                ])
            }
            Attention::Latent {
                heads,
                q_lora_rank,
                kv_lora_rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
                latents,
                sparse,
            } => {
                let query = product([heads, qk_nope_head_dim.saturating_add(qk_rope_head_dim)]);
                let queries = match q_lora_rank {
                    Some(rank) => linear(hidden, rank).saturating_add(linear(rank, query)),
                    None => linear(hidden, query),
                };
                let key_value = product([heads, qk_nope_head_dim.saturating_add(v_head_dim)]);
                let latent = product([latents, kv_lora_rank]).saturating_add(qk_rope_head_dim);
                let index = sparse.map_or(0, |index| {
                    sum([
                        linear(
                            q_lora_rank.unwrap_or(hidden),
                            product([index.heads, index.head_dim]),
                        ),
                        linear(hidden, index.head_dim),
                        linear(hidden, index.heads),
                    ])
                });
                sum([
                    queries,
                    index,
                    linear(hidden, latent),
                    linear(kv_lora_rank, key_value),
                    linear(product([heads, v_head_dim]), hidden),
                ])
            }
        }
    }

    fn ffn_parameters(&self, width: u64, linear: Linear) -> u64 {
        if width == 0 {
            return 0;
        }
        let inputs = if self.gated { 2 } else { 1 };
        product([inputs, linear.parameters(self.hidden, width)])
            .saturating_add(linear.parameters(width, self.hidden))
    }

    /// Scale, and a shift in LayerNorm. LayerNorm goes with biases and an ungated network (GPT,
    /// BLOOM); everyone else uses RMSNorm.
    fn norm_parameters(&self, width: u64) -> u64 {
        if self.biases && !self.gated {
            width.saturating_mul(2)
        } else {
            width
        }
    }

    fn layer_norm_parameters(&self) -> u64 {
        let inside = match self.attention {
            Attention::Grouped {
                heads,
                head_dim,
                qk_norm,
                sinks,
                ..
            } => {
                let scales = if qk_norm { product([2, head_dim]) } else { 0 };
                scales.saturating_add(if sinks { heads } else { 0 })
            }
            Attention::Latent {
                q_lora_rank,
                kv_lora_rank,
                ..
            } => kv_lora_rank.saturating_add(q_lora_rank.unwrap_or(0)),
        };
        product([2, self.norm_parameters(self.hidden)]).saturating_add(inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MoE, MultiTokenPrediction};
    use std::collections::BTreeMap;

    /// Small enough to count by hand.
    fn model() -> Model {
        Model {
            name: "small".to_owned(),
            layers: 3,
            hidden: 8,
            attention: Attention::Grouped {
                heads: 4,
                kv_heads: 2,
                head_dim: 4,
                sliding_window: None,
                full_every: None,
                chunked: false,
                qk_norm: false,
                sinks: false,
            },
            ffn: 32,
            gated: true,
            moe: Some(MoE {
                experts: 6,
                top_k: 2,
                expert_ffn: 10,
                shared_ffn: 5,
                first_dense_layers: 1,
                every: 1,
                group_limit: None,
            }),
            vocab: 100,
            tied_embeddings: false,
            learned_positions: 0,
            biases: false,
            clamped: false,
            scaled_rope: false,
            mtp: Some(MultiTokenPrediction { modules: 2 }),
            vision: None,
            sources: BTreeMap::new(),
        }
    }

    const ATTENTION: u64 = 8 * 16 + 2 * 8 * 8 + 16 * 8;
    const EXPERT: u64 = 3 * 8 * 10;
    const SHARED: u64 = 3 * 8 * 5;

    #[test]
    fn parameters_by_hand() {
        let model = model();
        let dense = model.layer_parameters(model.layer_kind(0));
        assert_eq!(
            (dense.attention, dense.dense_ffn, dense.router),
            (ATTENTION, 3 * 8 * 32, 0)
        );
        assert_eq!(dense.total(), dense.active());
        let routed = model.layer_parameters(model.layer_kind(1));
        assert_eq!(
            (routed.one_expert, routed.routed_experts),
            (EXPERT, 6 * EXPERT)
        );
        assert_eq!(
            (routed.shared_expert, routed.router, routed.norms),
            (SHARED, 48, 16)
        );
        assert_eq!(routed.total() - routed.active(), 4 * EXPERT);
        let counts = model.parameters();
        assert_eq!(
            counts.total,
            800 + dense.total() + 2 * routed.total() + 8 + 800
        );
        assert_eq!(counts.active, counts.total - 2 * 4 * EXPERT);
        assert_eq!(counts.mtp, 2 * (routed.total() + 2 * 8 * 8 + 3 * 8));
    }

    #[test]
    fn biases_count_as_parameters_and_not_as_work() {
        let plain = Model {
            moe: None,
            mtp: None,
            ..model()
        };
        let biased = Model {
            biases: true,
            ..plain.clone()
        };
        let added = biased.parameters_total() - plain.parameters_total();
        assert_eq!(added, 3 * (16 + 8 + 8 + 8 + 32 + 32 + 8));
        let flops = |model: &Model| model.flops_per_token(64, AttentionCount::Causal);
        assert_eq!(flops(&biased), flops(&plain));
        // LayerNorm, which goes without a gate, has a shift.
        let layer_norm = Model {
            gated: false,
            ..biased
        };
        assert_eq!(
            layer_norm.layer_parameters(layer_norm.layer_kind(0)).norms,
            2 * 2 * 8
        );
    }

    #[test]
    fn flops_by_hand() {
        let model = Model {
            layers: 2,
            ..model()
        };
        let weights = 2 * ATTENTION + 3 * 8 * 32 + 2 * EXPERT + SHARED + 48 + 800;
        let scores = 2 * 2 * 16 * 64;
        let noncausal = model.flops_per_token(64, AttentionCount::NonCausal);
        assert_eq!(noncausal, 6.0 * (weights + scores) as f64);
        let causal = model.flops_per_token(64, AttentionCount::Causal);
        assert_eq!(causal, 6.0 * (weights + scores / 2) as f64);
        let module = ATTENTION + 2 * EXPERT + SHARED + 48 + 2 * 64 + 800 + 16 * 64;
        let mtp = model.mtp_flops_per_token(64, AttentionCount::Causal);
        assert_eq!(mtp, 2.0 * 6.0 * module as f64);
    }

    /// Counted query by query, for every window up to the sequence. The diagonal counts half.
    #[test]
    fn keys_seen_are_those_counted_one_by_one() {
        let sequence = 37;
        for window in 1..=sequence {
            for chunked in [false, true] {
                let kind = LayerKind {
                    feed_forward: FeedForward::Dense,
                    window: Some(window),
                    chunked,
                };
                let seen: f64 = (0..sequence)
                    .map(|query| {
                        if chunked {
                            query % window
                        } else {
                            query.min(window)
                        }
                    })
                    // Beyond its window a query loses as much of the last key as it gains.
                    .map(|before| before as f64 + if before == window { 0.0 } else { 0.5 })
                    .sum();
                let ours = kind.keys_seen(sequence) * sequence as f64;
                assert!(
                    (ours - seen).abs() < 1e-9,
                    "{window} {chunked}: {ours} {seen}"
                );
            }
        }
    }

    #[test]
    fn cache_keeps_the_window_only() {
        let mut model = Model {
            layers: 4,
            ..model()
        };
        assert_eq!(model.kv_bytes_per_token(16), Bytes::new(4 * 2 * 2 * 4 * 2));
        assert_eq!(model.kv_bytes(10, 8), Bytes::new(4 * 2 * 2 * 4 * 10));
        if let Attention::Grouped {
            sliding_window,
            full_every,
            ..
        } = &mut model.attention
        {
            (*sliding_window, *full_every) = (Some(3), Some(4));
        }
        assert_eq!(model.kv_bytes(10, 8), Bytes::new(2 * 2 * 4 * (3 * 3 + 10)));
    }

    #[test]
    fn unchecked_shapes_saturate() {
        let huge = Model {
            hidden: u64::MAX,
            vocab: u64::MAX,
            ..model()
        };
        assert_eq!(huge.parameters_total(), u64::MAX);
        assert!(
            huge.flops_per_token(u64::MAX, AttentionCount::NonCausal)
                .is_finite()
        );
    }
}
