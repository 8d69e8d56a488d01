//! The order in which a rank takes and gives back the tensors of a layer.
//!
//! Sizes are those of [`crate::memory`]: what is kept for the backward pass, and beside it what lives
//! within a pass only, of the same sizes. Small tensors are left out.

use crate::compile::{Chunk, layer_parameters};
use crate::layer::{Sizes, attention_weights, mtp_weight, network_weights};
use crate::memory::{Kept, kept, layer_offload};
use rackflow_workload::{FeedForward, LayerKind, Recompute, Zero};

/// Computation, the exchange of tokens and of sharded parameters have a stream each.
const COMPUTE: usize = 0;
const EXCHANGE: usize = 1;
const SHARDS: usize = 2;

/// FSDP has two layers' parameters in flight (`limit_all_gathers`).
const GATHERED: u64 = 2;

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

/// Sizes of a layer's tensors, whether they are kept or not.
struct Tensors<'a> {
    s: &'a Sizes<'a>,
    kind: LayerKind,
    /// As a layer without recomputation keeps them.
    all: Kept,
    /// As this plan keeps them.
    kept: Kept,
    /// Output of the layer and of its two halves.
    output: Size,
    gathered: Size,
    /// Stream of the exchange of tokens, and how late what it reads is free.
    exchange: (usize, u64),
}

impl<'a> Tensors<'a> {
    fn new(s: &'a Sizes<'a>, kind: LayerKind) -> Self {
        let gathered = if s.plan.zero == Zero::Stage3 {
            let parameters = layer_parameters(s, kind);
            2 * (parameters.dense + parameters.expert)
        } else {
            0
        };
        Self {
            s,
            kind,
            all: kept(s, kind, &Recompute::None),
            kept: kept(s, kind, &s.training.recompute),
            output: Size::fixed(s.own_tokens * s.model.hidden * 2),
            gathered: Size::fixed(gathered),
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

    /// The forward pass, all but the residual stream; slots that stay for the backward pass.
    fn forward(&self, w: &mut Writer) -> Vec<u16> {
        let (all, kept) = (&self.all, &self.kept);
        let mut stays = Vec::new();
        let mut passing = Vec::new();
        let parameters = w.take(self.gathered, SHARDS);
        let mut sort = |slot: u16, keeps: bool| {
            if keeps {
                stays.push(slot);
            } else {
                passing.push(slot);
            }
        };
        sort(w.take(Size::fixed(all.norm), COMPUTE), kept.norm > 0);
        sort(w.take(Size::fixed(all.rest), COMPUTE), kept.rest > 0);
        // Queries, keys and values are one tensor before they are three.
        let whole = w.take(Size::fixed(all.attention_input), COMPUTE);
        for _ in 0..3 {
            let third = Size::fixed(all.attention_input / 3);
            sort(w.take(third, COMPUTE), kept.attention_input > 0);
        }
        w.give(whole);
        let output = Size::fixed(all.attention_output);
        sort(w.take(output, COMPUTE), kept.attention_output > 0);
        let projected = w.take(self.output, COMPUTE);
        sort(w.take(Size::fixed(all.residual), COMPUTE), true);
        w.give(projected);
        sort(w.take(Size::fixed(all.norm), COMPUTE), kept.norm > 0);
        match self.kind.feed_forward {
            FeedForward::MoE => self.experts(w, &mut sort),
            FeedForward::Dense => {
                for part in [all.network * 2 / 3, all.network / 3] {
                    sort(w.take(Size::fixed(part), COMPUTE), kept.network > 0);
                }
                let out = w.take(self.output, COMPUTE);
                w.give(out);
            }
        }
        for slot in passing {
            w.give(slot);
        }
        w.later(parameters, GATHERED);
        w.meet();
        stays
    }

    fn experts(&self, w: &mut Writer, sort: &mut impl FnMut(u16, bool)) {
        let (all, kept) = (&self.all, &self.kept);
        let tokens = self.tokens().max(1);
        let (sent, hidden) = self.exchanged();
        let (exchange, late) = self.exchange;
        // Around a plain all-to-all tokens are kept as sent, and the experts' outputs as they came back.
        let copies = all.received > hidden.bytes(tokens);
        // The activation's output is counted with the shared expert's.
        let gates = if self.s.model.gated { 2 } else { 1 };
        let activated = all.expert_first / gates;
        let shared = Size::fixed(all.network.saturating_sub(activated));
        let shared = w.take(shared, COMPUTE);
        sort(shared, kept.network > 0);
        sort(w.take(Size::fixed(all.shared), COMPUTE), kept.shared > 0);
        let permuted = w.take(sent, COMPUTE);
        w.meet();
        let received = w.take(hidden, exchange);
        sort(permuted, copies && kept.received > 0);
        w.meet();
        let sorted = w.take(hidden, COMPUTE);
        w.later(received, late);
        sort(sorted, kept.received > 0);
        let first = Size::per_token(all.expert_first / tokens);
        sort(w.take(first, COMPUTE), kept.expert_first > 0);
        let second = Size::per_token(activated / tokens);
        sort(w.take(second, COMPUTE), kept.network > 0);
        let out = w.take(hidden, COMPUTE);
        let back = w.take(hidden, COMPUTE);
        w.give(out);
        w.meet();
        let combined = w.take(sent, exchange);
        w.later(back, late);
        sort(combined, copies && kept.received > 0);
        w.meet();
        let out = w.take(self.output, COMPUTE);
        w.give(out);
    }

    /// Tokens as they are sent, always as many, and as they are received.
    fn exchanged(&self) -> (Size, Size) {
        let hidden = self.s.model.hidden * 2;
        (Size::fixed(self.tokens() * hidden), Size::per_token(hidden))
    }

    /// Gradients on their way back through a layer that left `stays`.
    fn backward(&self, w: &mut Writer, stays: &[u16]) {
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
                let out = w.take(sent, COMPUTE);
                w.meet();
                let received = w.take(hidden, exchange);
                w.later(out, late);
                w.meet();
                let sorted = w.take(hidden, COMPUTE);
                w.later(received, late);
                let first = Size::per_token(all.expert_first / tokens);
                let gates = if self.s.model.gated { 2 } else { 1 };
                let half = Size::per_token(all.expert_first / tokens / gates);
                let second = passing(w, half, sorted);
                w.keep(self.s, down);
                let first = passing(w, first, second);
                let input = passing(w, hidden, first);
                w.keep(self.s, up);
                let back = passing(w, hidden, input);
                w.meet();
                let combined = w.take(sent, exchange);
                w.later(back, late);
                w.meet();
                let out = w.take(self.output, COMPUTE);
                w.later(combined, late);
                w.give(out);
            }
            FeedForward::Dense => {
                let second = w.take(Size::fixed(all.network / 3), COMPUTE);
                w.keep(self.s, down);
                let first = passing(w, Size::fixed(all.network * 2 / 3), second);
                let input = passing(w, self.output, first);
                w.keep(self.s, up);
                w.give(input);
            }
        }
        let out = w.take(Size::fixed(all.attention_output), COMPUTE);
        let (inputs, behind) = attention_weights(self.s);
        w.keep(self.s, [behind]);
        let third = Size::fixed(all.attention_input / 3);
        let parts = [(); 3].map(|()| w.take(third, COMPUTE));
        w.give(out);
        let whole = w.take(Size::fixed(all.attention_input), COMPUTE);
        for part in parts {
            w.give(part);
        }
        w.keep(self.s, inputs);
        w.give(whole);
        let weights = w.take(self.gathered, COMPUTE);
        for slot in stays {
            w.give(*slot);
        }
        w.give(gradient);
        w.later(weights, GATHERED);
        w.later(parameters, GATHERED);
        w.meet();
    }
}

impl Layer {
    /// A layer of this plan; `again`: all of it is recomputed; `away`: what it keeps leaves for the host.
    pub fn new(s: &Sizes<'_>, kind: LayerKind, again: bool, away: bool) -> Self {
        let tensors = Tensors::new(s, kind);
        let mut forward = Writer::default();
        // The residual stream is what any layer keeps; what lies with the host is not held.
        let leaves = if away {
            layer_offload(s, kind, again)
        } else {
            0
        };
        let input = s.own_tokens * s.model.hidden * 2;
        let held = Size::fixed(if leaves >= input { 0 } else { input });
        let residual = forward.take(held, COMPUTE);
        let mut stays = tensors.forward(&mut forward);
        let mut backward = Writer {
            slots: forward.slots,
            ..Writer::default()
        };
        if again || leaves > 0 {
            // Computed again, or copied back: in both cases it is taken when the backward pass begins.
            for slot in std::mem::take(&mut stays) {
                forward.give(slot);
            }
            stays = tensors.forward(&mut backward);
        }
        tensors.backward(&mut backward, &stays);
        backward.give(residual);
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
    let layers = chunk.kinds().enumerate();
    let layers =
        layers.map(|(i, kind)| Layer::new(s, kind, (i as u64) < recomputed, (i as u64) < away));
    let first = chunk.first.then(|| Layer::look_up(s));
    let modules = match chunk.last {
        true => s.model.prediction_modules(),
        false => 0,
    };
    let modules = (0..modules).map(|_| {
        let mut layer = Layer::new(s, s.model.mtp_layer_kind(), s.recomputes_modules(), false);
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
