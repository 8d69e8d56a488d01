#![allow(missing_docs)]
use rackflow_workload::*;
#[derive(Clone, Copy)]
pub enum AttentionCount { Causal, NonCausal }
pub struct LayerParameters { pub attention: u64, pub dense_ffn: u64, pub router: u64, pub routed_experts: u64, pub shared_expert: u64, pub norms: u64 }
pub trait Counts {
    fn layer_parameters(&self, kind: LayerKind) -> LayerParameters;
    fn embedding_parameters(&self) -> u64;
    fn output_parameters(&self) -> u64;
    fn flops_per_token(&self, seq: u64, c: AttentionCount) -> f64;
    fn parameters_total(&self) -> u64;
    fn parameters_active(&self) -> u64;
}
impl Counts for Model {
    fn layer_parameters(&self, kind: LayerKind) -> LayerParameters {
        let h = self.hidden;
        let attention = match self.attention {
            Attention::Grouped { heads, kv_heads, head_dim, .. } => h * head_dim * (2 * heads + 2 * kv_heads),
            Attention::Latent { heads, q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim } => {
                let qk = qk_nope_head_dim + qk_rope_head_dim;
                let q = q_lora_rank.map_or(h * heads * qk, |r| h * r + r * heads * qk);
                q + h * (kv_lora_rank + qk_rope_head_dim) + kv_lora_rank * heads * (qk_nope_head_dim + v_head_dim) + heads * v_head_dim * h
            }
        };
        let mats = if self.gated { 3 } else { 2 };
        let (mut dense_ffn, mut router, mut routed_experts, mut shared_expert) = (0, 0, 0, 0);
        match (kind.feed_forward, &self.moe) {
            (FeedForward::MoE, Some(m)) => { router = h * m.experts; routed_experts = m.experts * mats * h * m.expert_ffn; shared_expert = mats * h * m.shared_ffn; }
            _ => dense_ffn = mats * h * self.ffn,
        }
        LayerParameters { attention, dense_ffn, router, routed_experts, shared_expert, norms: 2 * h }
    }
    fn embedding_parameters(&self) -> u64 { self.vocab * self.hidden }
    fn output_parameters(&self) -> u64 { if self.tied_embeddings { 0 } else { self.vocab * self.hidden } }
    fn flops_per_token(&self, seq: u64, c: AttentionCount) -> f64 {
        let act: f64 = (0..self.layers).map(|i| { let k = self.layer_kind(i); let p = self.layer_parameters(k);
            let e = self.moe.as_ref().map_or(0, |m| p.routed_experts / m.experts * m.top_k);
            let (a, qk, v) = match self.attention { Attention::Grouped { heads, head_dim, .. } => (heads, head_dim, head_dim), Attention::Latent { heads, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, .. } => (heads, qk_nope_head_dim + qk_rope_head_dim, v_head_dim) };
            let f = match c { AttentionCount::Causal => 0.5, AttentionCount::NonCausal => 1.0 };
            let w = k.window.map_or(seq as f64 * f, |w| (w as f64).min(seq as f64 * f));
            6.0 * (p.attention + p.dense_ffn + p.router + p.shared_expert + e) as f64 + 6.0 * a as f64 * (qk + v) as f64 * w }).sum();
        act + 6.0 * (self.vocab * self.hidden) as f64
    }
    fn parameters_total(&self) -> u64 { (0..self.layers).map(|i| { let p = self.layer_parameters(self.layer_kind(i)); p.attention + p.dense_ffn + p.router + p.routed_experts + p.shared_expert + p.norms }).sum::<u64>() + self.embedding_parameters() + self.output_parameters() }
    fn parameters_active(&self) -> u64 { self.parameters_total() }
}
