//! The order in which a rank takes and gives back the tensors of a layer.
//!
//! Sizes are those of [`crate::memory`]: what is kept for the backward pass, and beside it what lives
//! within a pass only, of the same sizes. Small tensors are left out.

use crate::compile::{Chunk, layer_parameters};
use crate::layer::{Sizes, attention_weights, mtp_weight, network_weights};
use crate::memory::{Kept, kept};
use rackflow_workload::{Attention, FeedForward, LayerKind, OffloadedInput, Recompute, Zero};

/// Computation, the exchange of tokens and of sharded parameters have a stream each.
const COMPUTE: usize = 0;
const EXCHANGE: usize = 1;
const SHARDS: usize = 2;

/// FSDP has two layers' parameters in flight (`limit_all_gathers`).
const GATHERED: u64 = 2;
/// What leaves for the host is copied while the next layer is computed.
const COPIED: u64 = 2;

/// Bytes of a tensor: those that are always the same, and those of each token that an expert gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Size {
    fixed: u64,
    per_token: u64,
}

impl Size {
    fn fixed(fixed: u64) -> Self {
        Self {
            fixed,
            per_token: 0,
        }
    }

    fn per_token(per_token: u64) -> Self {
        Self {
            fixed: 0,
            per_token,
        }
    }

    /// With so many tokens at this rank's experts.
    pub fn bytes(self, tokens: u64) -> u64 {
        self.fixed + self.per_token * tokens
    }
}

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A tensor is taken.
    Take {
        slot: u16,
        size: Size,
        stream: usize,
    },
    /// A tensor is given back.
    Give(u16),
    /// It is given back, but another stream may still read it (`record_stream`): it is free once the device
    /// has come as far, so many passes through layers later.
    GiveLater(u16, u64),
    /// A tensor of these rows and columns in 16 bits is taken, unless one is held, and held for good.
    Keep(u64, u64),
    /// The ranks of the group meet in a collective.
    Meet,
}

/// What the passes through a layer take and give back. What a forward pass leaves is given back by the
/// backward pass.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Layer {
    pub forward: Vec<Event>,
    pub backward: Vec<Event>,
    pub slots: u16,
}

#[derive(Default)]
struct Writer {
    events: Vec<Event>,
    slots: u16,
}

impl Writer {
    fn take(&mut self, size: Size, stream: usize) -> u16 {
        self.slots += 1;
        let slot = self.slots - 1;
        if size != Size::default() {
            self.events.push(Event::Take { slot, size, stream });
        }
        slot
    }

    fn give(&mut self, slot: u16) {
        self.events.push(Event::Give(slot));
    }

    fn later(&mut self, slot: u16, passes: u64) {
        self.events.push(match passes {
            0 => Event::Give(slot),
            _ => Event::GiveLater(slot, passes),
        });
    }

    /// The gradients that nobody reads of these weights.
    fn keep(&mut self, s: &Sizes<'_>, weights: impl IntoIterator<Item = (u64, u64)>) {
        if s.keeps_dummy_gradients() {
            let keep = |(n, k)| Event::Keep(n, k);
            self.events.extend(weights.into_iter().map(keep));
        }
    }

    fn meet(&mut self) {
        self.events.push(Event::Meet);
    }
}

/// When the backward pass is through with a tensor that a forward pass left: autograd lets go of what a function saved as soon
/// as it has gone backward.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Weight gradients of experts, or of a dense network.
    Network,
    /// The router, and all else of the second half of the layer.
    SecondHalf,
    Attention,
    End,
}

/// What a forward pass took: slots that stay for the backward pass, those that go with its end, and those that leave for the host,
/// with their sizes.
#[derive(Default)]
struct Taken {
    stays: Vec<(u16, Until)>,
    passing: Vec<u16>,
    leaving: Vec<(u16, Size, Until)>,
}

/// What becomes of a tensor when its layer's forward pass ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Passes,
    Leaves,
}

impl Taken {
    fn sort(&mut self, (slot, size): (u16, Size), fate: Fate, until: Until) {
        match fate {
            Fate::Stays => self.stays.push((slot, until)),
            Fate::Passes => self.passing.push(slot),
            Fate::Leaves => self.leaving.push((slot, size, until)),
        }
    }

    /// Takes tensors of so many bytes, of which so many do not pass.
    fn take(&mut self, w: &mut Writer, all: u64, (kept, fate): (u64, Fate), until: Until) {
        let kept = kept.min(all);
        for (bytes, fate) in [(kept, fate), (all - kept, Fate::Passes)] {
            let size = Size::fixed(bytes);
            self.sort((w.take(size, COMPUTE), size), fate, until);
        }
    }
}

/// Sizes of a layer's tensors, whether they are kept or not.
struct Tensors<'a> {
    s: &'a Sizes<'a>,
    kind: LayerKind,
    /// As a layer without recomputation keeps them.
    all: Kept,
    /// As this plan keeps them.
    kept: Kept,
    /// Whether what the stack names of them lies with the host.
    away: bool,
    /// Output of the layer and of its two halves.
    output: Size,
    /// Parameters of the layer where they are gathered, and their gradients.
    gathered: Size,
    gradients: Size,
    /// Stream of the exchange of tokens, and how late what it reads is free.
    exchange: (usize, u64),
}

impl<'a> Tensors<'a> {
    fn new(s: &'a Sizes<'a>, kind: LayerKind, away: bool) -> Self {
        let gradients = if s.plan.zero == Zero::Stage3 {
            let parameters = layer_parameters(s, kind);
            2 * (parameters.dense + parameters.expert)
        } else {
            0
        };
        let gathered = if s.stack.keeps_gather_buffers {
            0
        } else {
            gradients
        };
        Self {
            s,
            kind,
            all: kept(s, kind, &Recompute::None),
            kept: kept(s, kind, &s.training.recompute),
            away,
            output: Size::fixed(s.own_tokens * s.model.hidden * 2),
            gathered: Size::fixed(gathered),
            gradients: Size::fixed(gradients),
            exchange: match s.stack.overlap.expert {
                true => (EXCHANGE, s.stack.exchange_held),
                false => (COMPUTE, 0),
            },
        }
    }

    /// Tokens that reach a rank's experts from one micro-batch, on average.
    fn tokens(&self) -> u64 {
        tokens_at_experts(self.s)
    }

    /// What becomes of a tensor that the backward pass needs: the input of a module, or that of none that can leave alone.
    fn needed(&self, input: Option<OffloadedInput>) -> Fate {
        let named = &self.s.stack.activation_offload.inputs;
        let leaves = |input| named.contains(&input);
        match self.away && (leaves(OffloadedInput::Layer) || input.is_some_and(leaves)) {
            true => Fate::Leaves,
            false => Fate::Stays,
        }
    }

    /// The same where it passes unless it is kept.
    fn if_kept(&self, is_kept: bool, input: Option<OffloadedInput>) -> Fate {
        match is_kept {
            true => self.needed(input),
            false => Fate::Passes,
        }
    }

    /// The forward pass, all but the residual stream before attention.
    fn forward(&self, w: &mut Writer, taken: &mut Taken) {
        use OffloadedInput::{AttentionProjection, CoreAttention, MlpNorm, QkvLinear};
        let (all, kept) = (&self.all, &self.kept);
        let of = |bytes: u64, input| (bytes, self.needed(input));
        let parameters = w.take(self.gathered, SHARDS);
        taken.take(w, all.norm, of(kept.norm, Some(QkvLinear)), Until::End);
        taken.take(w, all.rest, of(kept.rest, None), Until::End);
        let (raw, ready) = self.attention_inputs();
        let raw: Vec<u16> = raw.iter().map(|size| w.take(*size, COMPUTE)).collect();
        for size in ready {
            let fate = self.if_kept(kept.attention_input > 0, Some(CoreAttention));
            taken.sort((w.take(size, COMPUTE), size), fate, Until::Attention);
        }
        for slot in raw {
            w.give(slot);
        }
        // The projection's weight gradient reads it.
        let until = if self.late_weights() {
            Until::End
        } else {
            Until::Attention
        };
        let result = of(kept.attention_output, Some(AttentionProjection));
        taken.take(w, all.attention_output, result, until);
        let projected = w.take(self.output, COMPUTE);
        let residual = of(all.residual, Some(MlpNorm));
        taken.take(w, all.residual, residual, Until::SecondHalf);
        w.give(projected);
        taken.take(w, all.norm, of(kept.norm, None), Until::SecondHalf);
        match self.kind.feed_forward {
            FeedForward::MoE => self.experts(w, taken),
            FeedForward::Dense => {
                let first = self.first_of_network();
                taken.take(w, first, of(kept.network, None), Until::Network);
                let second = of(kept.network.saturating_sub(first), None);
                taken.take(w, all.network - first, second, Until::Network);
                let out = w.take(self.output, COMPUTE);
                w.give(out);
            }
        }
        for slot in taken.passing.drain(..) {
            w.give(slot);
        }
        for (slot, ..) in &taken.leaving {
            w.later(*slot, COPIED);
        }
        w.later(parameters, GATHERED);
        w.meet();
    }

    fn experts(&self, w: &mut Writer, taken: &mut Taken) {
        use OffloadedInput::{ExpertFc1, MoeActivation};
        let (all, kept) = (&self.all, &self.kept);
        let of = |bytes: u64| (bytes, self.needed(None));
        let tokens = self.tokens().max(1);
        let (sent, hidden) = self.exchanged();
        let (exchange, late) = self.exchange;
        // Around a plain all-to-all tokens are kept as sent, and the experts' outputs as they came back.
        let copies = all.received > hidden.bytes(tokens);
        // The activation's output is counted with the shared expert's.
        let activated = self.activated();
        let shared = all.network.saturating_sub(activated);
        taken.take(w, shared, of(kept.network), Until::Network);
        taken.take(w, all.shared, of(kept.shared), Until::SecondHalf);
        let permuted = w.take(sent, COMPUTE);
        w.meet();
        let received = w.take(hidden, exchange);
        // Tokens at their experts, and their copies.
        let arrived = self.if_kept(kept.received > 0, Some(ExpertFc1));
        if copies && kept.received > 0 {
            taken.sort((permuted, sent), arrived, Until::SecondHalf);
        } else {
            w.later(permuted, late);
        }
        w.meet();
        let sorted = w.take(hidden, COMPUTE);
        w.later(received, late);
        taken.sort((sorted, hidden), arrived, Until::Network);
        let size = Size::per_token(all.expert_first / tokens);
        let first = self.if_kept(kept.expert_first > 0, Some(MoeActivation));
        taken.sort((w.take(size, COMPUTE), size), first, Until::Network);
        let size = Size::per_token(activated / tokens);
        let second = self.if_kept(kept.network > shared, None);
        taken.sort((w.take(size, COMPUTE), size), second, Until::Network);
        let out = w.take(hidden, COMPUTE);
        let back = w.take(hidden, COMPUTE);
        w.give(out);
        w.meet();
        let combined = w.take(sent, exchange);
        w.later(back, late);
        let back = if copies { arrived } else { Fate::Passes };
        taken.sort((combined, sent), back, Until::SecondHalf);
        w.meet();
        let out = w.take(self.output, exchange);
        w.give(out);
    }

    /// Whether weight gradients are put off until the exchange runs.
    fn late_weights(&self) -> bool {
        self.s.stack.overlap.expert
    }

    /// Bytes of an operand of a product.
    fn operand(&self) -> u64 {
        self.s.training.recipe.gemm().bits().div_ceil(8)
    }

    /// Widths that the first product of a network has.
    fn gates(&self) -> u64 {
        if self.s.model.gated { 2 } else { 1 }
    }

    /// What the experts' activation function gives.
    fn activated(&self) -> u64 {
        self.all.expert_first / (2 * self.gates()) * self.operand()
    }

    /// Output of a dense network's first product.
    fn first_of_network(&self) -> u64 {
        let both = 2 * self.gates() + self.operand();
        self.all.network / both * 2 * self.gates()
    }

    /// Tokens as they are sent, always as many, and as they are received.
    fn exchanged(&self) -> (Size, Size) {
        let hidden = self.s.model.hidden * 2;
        (Size::fixed(self.tokens() * hidden), Size::per_token(hidden))
    }

    /// Queries, keys and values as products give them, and as attention takes them.
    fn attention_inputs(&self) -> (Vec<Size>, [Size; 3]) {
        let all = self.all.attention_input;
        match self.s.model.attention {
            Attention::Latent {
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
                ..
            } => {
                let qk = qk_nope_head_dim + qk_rope_head_dim;
                let of = |part: u64| Size::fixed(all / (2 * qk + v_head_dim) * part);
                (
                    vec![of(qk), of(qk_nope_head_dim + v_head_dim)],
                    [of(qk), of(qk), of(v_head_dim)],
                )
            }
            Attention::Grouped {
                heads, kv_heads, ..
            } => {
                let tp = u64::from(self.s.plan.tensor);
                let (q, kv) = (heads / tp, (kv_heads / tp).max(1));
                let of = |part: u64| Size::fixed(all / (q + 2 * kv) * part);
                (vec![Size::fixed(all)], [of(q), of(kv), of(kv)])
            }
        }
    }

    /// Gradients on their way back through a layer that left `stays`.
    fn backward(&self, w: &mut Writer, stays: &[(u16, Until)]) {
        let done = |w: &mut Writer, now: Until| {
            for (slot, until) in stays {
                if *until == now {
                    w.give(*slot);
                }
            }
        };
        let all = &self.all;
        let parameters = w.take(self.gathered, SHARDS);
        let gradient = w.take(self.output, COMPUTE);
        let passing = |w: &mut Writer, size: Size, before: u16| {
            let slot = w.take(size, COMPUTE);
            w.give(before);
            slot
        };
        let (up, down) = network_weights(self.s, self.kind);
        match self.kind.feed_forward {
            FeedForward::MoE => {
                let tokens = self.tokens().max(1);
                let (sent, hidden) = self.exchanged();
                let (exchange, late) = self.exchange;
                // The exchange's stream undoes the permutation as well, so nobody else reads what it sends.
                let out = w.take(sent, exchange);
                w.meet();
                let received = w.take(hidden, exchange);
                w.give(out);
                w.meet();
                let sorted = w.take(hidden, COMPUTE);
                w.later(received, late);
                let first = Size::per_token(all.expert_first / tokens);
                let half = Size::per_token(all.expert_first / tokens / self.gates());
                // Where weight gradients run beside the exchange, what they read waits for them.
                let late_weights = self.late_weights();
                let second = w.take(half, COMPUTE);
                if !late_weights {
                    w.give(sorted);
                }
                w.keep(self.s, down);
                let first = passing(w, first, second);
                let input = w.take(hidden, COMPUTE);
                if !late_weights {
                    w.give(first);
                    done(w, Until::Network);
                }
                w.keep(self.s, up);
                let back = passing(w, hidden, input);
                w.meet();
                if late_weights {
                    w.give(sorted);
                    w.give(first);
                    done(w, Until::Network);
                }
                let combined = w.take(sent, exchange);
                w.later(back, late);
                w.meet();
                let out = w.take(self.output, COMPUTE);
                w.later(combined, late);
                w.give(out);
            }
            FeedForward::Dense => {
                let first = self.first_of_network();
                let second = w.take(Size::fixed(first / self.gates()), COMPUTE);
                w.keep(self.s, down);
                let first = passing(w, Size::fixed(first), second);
                let input = passing(w, self.output, first);
                w.keep(self.s, up);
                w.give(input);
                done(w, Until::Network);
            }
        }
        done(w, Until::SecondHalf);
        let out = w.take(Size::fixed(all.attention_output), COMPUTE);
        let (inputs, behind) = attention_weights(self.s);
        w.keep(self.s, [behind]);
        let (raw, ready) = self.attention_inputs();
        let parts = ready.map(|size| w.take(size, COMPUTE));
        w.give(out);
        done(w, Until::Attention);
        let raw: Vec<u16> = raw.iter().map(|size| w.take(*size, COMPUTE)).collect();
        for part in parts {
            w.give(part);
        }
        w.keep(self.s, inputs);
        for slot in raw {
            w.give(slot);
        }
        let weights = w.take(self.gradients, COMPUTE);
        done(w, Until::End);
        w.give(gradient);
        // Where buffers are kept they are copied there, else they are summed over the ranks from where they are.
        if self.s.stack.keeps_gather_buffers {
            w.give(weights);
        } else {
            w.later(weights, GATHERED);
        }
        w.later(parameters, GATHERED);
        w.meet();
    }
}

impl Layer {
    /// A layer of this plan; `again`: all of it is recomputed; `away`: what it keeps leaves for the host; `behind_experts`: its input
    /// comes from a layer with experts.
    pub fn new(
        s: &Sizes<'_>,
        kind: LayerKind,
        (again, away, behind_experts): (bool, bool, bool),
    ) -> Self {
        // What is computed again is kept no longer than a pass, but for the layer's input.
        let tensors = Tensors::new(s, kind, away && !again);
        let mut forward = Writer::default();
        // The exchange's stream puts together what it gives back, and that is the next layer's input.
        let stream = if behind_experts {
            tensors.exchange.0
        } else {
            COMPUTE
        };
        let input = Size::fixed(s.own_tokens * s.model.hidden * 2);
        let residual = forward.take(input, stream);
        let mut taken = Taken::default();
        let named = &s.stack.activation_offload.inputs;
        let of_input = [OffloadedInput::AttentionNorm, OffloadedInput::Layer];
        let input_leaves = away && of_input.iter().any(|of| named.contains(of));
        if input_leaves {
            taken.leaving.push((residual, input, Until::End));
        }
        tensors.forward(&mut forward, &mut taken);
        if again {
            for (slot, _) in taken.stays.drain(..) {
                forward.give(slot);
            }
        }
        let mut backward = Writer {
            slots: forward.slots,
            ..Writer::default()
        };
        for (_, size, until) in std::mem::take(&mut taken.leaving) {
            taken.stays.push((backward.take(size, COMPUTE), until));
        }
        if again {
            tensors.forward(&mut backward, &mut taken);
        }
        tensors.backward(&mut backward, &taken.stays);
        if !input_leaves {
            backward.give(residual);
        }
        Self {
            slots: backward.slots,
            forward: forward.events,
            backward: backward.events,
        }
    }

    /// A look-up in the table of tokens, whose gradient is as large as the table until it is added into its buffer.
    fn look_up(s: &Sizes<'_>) -> Self {
        let mut layer = Self::default();
        layer.looks_up(s);
        layer
    }

    /// The projection of a prediction module in front of what is here.
    fn projects(&mut self, s: &Sizes<'_>) {
        let mut backward = Writer::default();
        backward.keep(s, [mtp_weight(s)]);
        self.backward.extend(backward.events);
    }

    /// The same in front of what is here.
    fn looks_up(&mut self, s: &Sizes<'_>) {
        let mut backward = Writer {
            events: std::mem::take(&mut self.backward),
            slots: self.slots,
        };
        let gradient = backward.take(Size::fixed(2 * s.table()), COMPUTE);
        backward.give(gradient);
        self.slots = backward.slots;
        self.backward = backward.events;
    }
}

/// Layers of a chunk in the order of the model, with the look-up before the first and the prediction modules after
/// the last.
pub(super) fn of_chunk(s: &Sizes<'_>, chunk: &Chunk) -> Vec<Layer> {
    let recomputed = match s.training.recompute {
        Recompute::Full => chunk.len(),
        Recompute::FullLayers(n) => u64::from(n).min(chunk.len()),
        _ => 0,
    };
    let away = s.stack.activation_offload.layers(chunk.len(), chunk.last);
    let mut behind_experts = false;
    let layers = chunk.kinds().enumerate().map(|(i, kind)| {
        let i = i as u64;
        let layer = Layer::new(s, kind, (i < recomputed, i < away, behind_experts));
        behind_experts = kind.feed_forward == FeedForward::MoE;
        layer
    });
    let layers: Vec<Layer> = layers.collect();
    let first = chunk.first.then(|| Layer::look_up(s));
    let modules = match chunk.last {
        true => s.model.prediction_modules(),
        false => 0,
    };
    let modules = (0..modules).map(|_| {
        let how = (s.recomputes_modules(), false, false);
        let mut layer = Layer::new(s, s.model.mtp_layer_kind(), how);
        layer.projects(s);
        layer.looks_up(s);
        layer
    });
    first.into_iter().chain(layers).chain(modules).collect()
}

/// Tokens that one rank's experts get of one micro-batch of each rank, on average.
pub(super) fn tokens_at_experts(s: &Sizes<'_>) -> u64 {
    let top_k = s.model.moe.as_ref().map_or(0, |moe| moe.top_k);
    s.own_tokens * top_k * u64::from(s.plan.expert_tensor)
}

/// Whether the experts' tokens differ in number from micro-batch to micro-batch.
pub(super) fn varies(s: &Sizes<'_>) -> bool {
    s.model.moe.is_some() && s.plan.expert > 1 && !s.stack.static_expert_shapes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layer_offload;
    use crate::memory::tests::{deepseek_v3, gpt3};
    use rackflow_workload::Recipe;

    /// Plays a part of a pass over the bytes that its slots hold.
    fn play(events: &[Event], held: &mut [u64]) {
        play_with(events, held, 1_000);
    }

    /// The same with so many tokens at the experts.
    fn play_with(events: &[Event], held: &mut [u64], tokens: u64) {
        for event in events {
            match *event {
                Event::Take { slot, size, .. } => {
                    assert_eq!(held[usize::from(slot)], 0, "a slot is taken twice");
                    held[usize::from(slot)] = size.bytes(tokens);
                }
                Event::Give(slot) | Event::GiveLater(slot, _) => held[usize::from(slot)] = 0,
                Event::Keep(..) | Event::Meet => {}
            }
        }
    }

    /// Attention takes what memory counts of it. Products give as many bytes, or an eighth less where the heads of a latent
    /// attention share a third of their keys.
    #[test]
    fn attention_takes_what_memory_counts() {
        for (training, eighths) in [(gpt3(4, true), 8), (deepseek_v3(), 7)] {
            let s = Sizes::new(&training);
            let tensors = Tensors::new(&s, s.model.layer_kind(0), false);
            let (raw, ready) = tensors.attention_inputs();
            let counted = tensors.all.attention_input;
            let sum = |sizes: &[Size]| sizes.iter().map(|size| size.bytes(0)).sum::<u64>();
            assert_eq!(sum(&ready), counted);
            assert_eq!(8 * sum(&raw), eighths * counted);
        }
    }

    /// What the stack names of a layer in 16 bits leaves for the host, no more and no less than memory counts, and all of it goes in the
    /// end. Operands of 8 bits are played as 16.
    #[test]
    fn what_leaves_for_the_host_is_what_memory_counts() {
        use OffloadedInput::{
            AttentionNorm, AttentionProjection, CoreAttention, ExpertFc1, Layer as Whole, MlpNorm,
            MoeActivation, QkvLinear,
        };
        for (mut training, modules) in [(gpt3(4, true), 0), (deepseek_v3(), 1)] {
            training.recipe = Recipe::Bf16;
            for weighted in [false, true] {
                training.stack.weighted_activation = weighted;
                for inputs in [
                    vec![Whole],
                    vec![AttentionNorm],
                    vec![QkvLinear, MlpNorm],
                    vec![CoreAttention, AttentionProjection, AttentionNorm],
                    vec![ExpertFc1, MoeActivation, MlpNorm],
                ] {
                    let of_experts = [ExpertFc1, MoeActivation].iter();
                    if modules == 0 && of_experts.clone().any(|of| inputs.contains(of)) {
                        continue;
                    }
                    training.stack.activation_offload.inputs = inputs;
                    let s = Sizes::new(&training);
                    let kind = s.model.layer_kind(s.model.layers - 1);
                    let tokens = tokens_at_experts(&s);
                    for again in [false, true] {
                        let left = [false, true].map(|away| {
                            let layer = Layer::new(&s, kind, (again, away, false));
                            let mut held = vec![0; layer.slots.into()];
                            play_with(&layer.forward, &mut held, tokens);
                            let left: u64 = held.iter().sum();
                            play_with(&layer.backward, &mut held, tokens);
                            assert!(held.iter().all(|bytes| *bytes == 0));
                            left
                        });
                        let leaves = layer_offload(&s, kind, again);
                        assert_eq!(
                            left[0] - left[1],
                            leaves,
                            "{:?} {again}",
                            s.stack.activation_offload
                        );
                    }
                }
            }
        }
    }

    /// What a forward pass leaves goes in the course of the backward pass. What experts' weight gradients read goes with the
    /// experts, or waits for the next exchange where the exchange runs beside computation.
    #[test]
    fn a_backward_pass_lets_go_of_what_is_done() {
        let mut training = deepseek_v3();
        for overlaps in [false, true] {
            training.stack.overlap.expert = overlaps;
            let s = Sizes::new(&training);
            let kind = s.model.layer_kind(s.model.layers - 1);
            let layer = Layer::new(&s, kind, (false, false, false));
            let mut held = vec![0; layer.slots.into()];
            play(&layer.forward, &mut held);
            let left = held.clone();
            let mut still = Vec::new();
            for part in layer
                .backward
                .split_inclusive(|event| *event == Event::Meet)
            {
                play(part, &mut held);
                let kept = left.iter().zip(&held).filter(|(before, now)| before == now);
                still.push(kept.map(|(_, now)| now).sum::<u64>());
            }
            let all: u64 = left.iter().sum();
            // To the gradients' exchange, back from it, through the experts, the exchange, the rest of the layer, and its input.
            let experts = all - still[3];
            assert!(experts > 0);
            let waits = if overlaps { all } else { all - experts };
            let input = 2 * s.own_tokens * s.model.hidden;
            assert_eq!(still, [all, all, waits, all - experts, input, 0]);
            assert!(held.iter().all(|bytes| *bytes == 0));
        }
    }
}
