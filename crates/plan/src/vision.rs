//! The vision encoder of the first stage: patches, its transformer, the projector behind it.
//!
//! Its transformer is a model whose sequences are images, and its layers are those of
//! [`crate::layer`] without a mask. It differs from the language model in how it is divided:
//!
//! - tensor ranks divide its heads and widths like those of the language model, and sum by
//!   all-reduce: its tokens are not sharded between them (no sequence parallelism);
//! - context ranks each encode their part of the images and gather what comes out
//!   (Megatron-Bridge, Qwen3-VL: `AllGatherVisionEmbeddings`);
//! - it computes in 16 bits under any recipe (assumed: fp8 products of Transformer Engine take widths in
//!   multiples of 16 only, which not every encoder has).

use crate::cause::CommKind;
use crate::compile::RankParameters;
use crate::layer::{
    Gradients, Sizes, copied, halves, norm_backward, norm_forward, stream, tensor_collective,
};
use crate::program::{GroupSlot, Stream};
use crate::run::{Builder, Context, Run, Spec};
use rackflow_network::CollectiveOp;
use rackflow_units::Bytes;
use rackflow_workload::{
    Direction, Images, LayerKind, Model, Operation, Parallelism, Recipe, Recompute, Training,
    VisionEncoder,
};

/// An encoder at work: its transformer as a training of its own, and what stands around that.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// Its transformer; a sequence is an image, a micro-batch is what one rank encodes of a
    /// micro-batch of the language model.
    training: Training,
    vision: VisionEncoder,
    images: Images,
    /// Width of the language model.
    hidden: u64,
    /// Images of a micro-batch, over all context ranks.
    all_images: u64,
    /// Context ranks of the language model, which share the images.
    context: u32,
}

impl Encoder {
    /// That of a training with images.
    pub fn of(training: &Training) -> Option<Self> {
        let (vision, images) = training.vision()?;
        let plan = &training.parallelism;
        let all_images = training.micro_batch * images.per_sequence;
        let recompute = match &training.recompute {
            // So many layers of each chunk are layers of the language model.
            Recompute::FullLayers(_) | Recompute::Operators => Recompute::None,
            others => others.clone(),
        };
        Some(Self {
            training: Training {
                model: vision.transformer(images),
                stack: training.stack.clone(),
                recipe: if training.recipe == Recipe::Fp16 {
                    Recipe::Fp16
                } else {
                    Recipe::Bf16
                },
                sequence_length: vision.length(images),
                micro_batch: all_images.div_ceil(u64::from(plan.context)),
                parallelism: Parallelism {
                    sequence_parallel: false,
                    context: 1,
                    expert: 1,
                    expert_tensor: 1,
                    ..plan.clone()
                },
                recompute,
                images: None,
                layers_per_chunk: None,
                assumed: Vec::new(),
                ..training.clone()
            },
            vision: vision.clone(),
            images: *images,
            hidden: training.model.hidden,
            all_images,
            context: plan.context,
        })
    }

    /// Sizes of its transformer.
    pub fn sizes(&self) -> Sizes<'_> {
        Sizes {
            is_encoder: true,
            ..Sizes::new(&self.training)
        }
    }

    /// Whether the transformer has a backward pass.
    pub fn trains(&self) -> bool {
        self.images.frozen.trains_encoder()
    }

    /// Whether the projector has one.
    pub fn trains_projector(&self) -> bool {
        self.images.frozen.trains_projector()
    }

    /// The kinds of its layers in order.
    pub fn kinds(&self) -> impl DoubleEndedIterator<Item = LayerKind> + ExactSizeIterator + '_ {
        let model: &Model = &self.training.model;
        (0..model.layers as usize).map(|index| model.layer_kind(index as u64))
    }

    /// Whether whole layers are computed again in its backward pass.
    pub fn recomputes_layers(&self) -> bool {
        self.training.recompute == Recompute::Full
    }

    fn tp(&self) -> u64 {
        u64::from(self.training.parallelism.tensor)
    }

    /// Patches that one rank makes tokens of.
    fn patches(&self) -> u64 {
        self.training.micro_batch * self.vision.patches(&self.images)
    }

    /// Tokens for the language model that one rank makes.
    fn results(&self) -> u64 {
        self.training.micro_batch * self.vision.tokens(&self.images)
    }

    /// The same over all context ranks.
    fn all_results(&self) -> u64 {
        self.all_images * self.vision.tokens(&self.images)
    }

    /// The part of one tensor rank in the linear layers of a projector: columns and reduced dimension,
    /// and whether its results are sums over the ranks. Columns and rows are cut in turn.
    fn links(&self) -> Vec<(u64, u64, bool)> {
        let tp = self.tp();
        let cut = |(i, (n, k)): (usize, (u64, u64))| {
            if i % 2 == 0 {
                (n.div_ceil(tp), k, false)
            } else {
                (n, k.div_ceil(tp), true)
            }
        };
        let links = self.vision.links(self.hidden);
        links.into_iter().enumerate().map(cut).collect()
    }

    /// The weights that products multiply and training changes, as one rank holds them: rows and columns. That of the
    /// patches is no linear layer's.
    pub fn weights(&self) -> Vec<(u64, u64)> {
        let sizes = self.sizes();
        let kinds = self.training.model.layer_kinds().into_iter();
        let kinds = kinds.filter(|_| self.trains());
        let of_layers = kinds.flat_map(|(kind, _)| crate::layer::weights(&sizes, kind));
        let links = self.links().into_iter().filter(|_| self.trains_projector());
        of_layers.chain(links.map(|(n, k, _)| (n, k))).collect()
    }

    /// Columns of the last layer are cut, so that results are gathered.
    fn gathers_columns(&self) -> bool {
        self.tp() > 1 && self.vision.projector.widths.len().is_multiple_of(2)
    }

    /// Parameters of one rank besides the layers: before them, and the projector.
    fn ends(&self) -> (u64, u64) {
        let counts = self.vision.parameters(self.hidden);
        let before = counts.patches + counts.outer_norms;
        (before, counts.projector.div_ceil(self.tp()))
    }

    /// Parameters that one rank trains before its layers.
    pub fn before(&self) -> RankParameters {
        RankParameters::dense(if self.trains() { self.ends().0 } else { 0 })
    }

    /// Parameters that one rank trains behind them.
    pub fn behind(&self) -> RankParameters {
        RankParameters::dense(if self.trains_projector() {
            self.ends().1
        } else {
            0
        })
    }

    /// Parameters of one rank of a layer, trained or not.
    pub fn layer(&self, kind: LayerKind) -> RankParameters {
        crate::compile::layer_parameters(&self.sizes(), kind)
    }

    /// Parameters of one rank before and behind its layers, trained or not.
    pub fn outside_layers(&self) -> [RankParameters; 2] {
        let (before, behind) = self.ends();
        [before, behind].map(RankParameters::dense)
    }

    fn layers(&self) -> u64 {
        let sizes = self.sizes();
        self.training
            .model
            .layer_kinds()
            .into_iter()
            .map(|(kind, count)| crate::compile::layer_parameters(&sizes, kind).dense * count)
            .sum()
    }

    /// All parameters that one rank trains.
    pub fn trained(&self) -> u64 {
        let layers = if self.trains() { self.layers() } else { 0 };
        self.before().dense + layers + self.behind().dense
    }

    /// Those that it holds and does not train.
    pub fn frozen(&self) -> u64 {
        let (before, behind) = self.ends();
        before + self.layers() + behind - self.trained()
    }

    /// Bytes that one micro-batch keeps for the backward pass; `of_layer` is what a layer keeps.
    pub fn activations(&self, of_layer: impl Fn(&Sizes<'_>, LayerKind) -> u64) -> u64 {
        let sizes = self.sizes();
        let hidden = self.training.model.hidden;
        let mut kept = 0;
        if self.trains() {
            for (kind, count) in self.training.model.layer_kinds() {
                let one = if self.recomputes_layers() {
                    sizes.tokens * hidden * 2
                } else {
                    of_layer(&sizes, kind)
                };
                kept += one * count;
            }
            // Pixels, for the weight gradient of the first product; inputs of the outer norms.
            kept += self.patches() * self.vision.patch_elements() * 2;
            kept += self.vision.outer_norms * sizes.tokens * hidden * 2;
        }
        if self.trains_projector() {
            let links = self.links();
            let last = links.len() - 1;
            let of_link = |(i, (n, k, _)): (usize, &(u64, u64, bool))| {
                // Its input, and what its activation function takes.
                let before_activation = if i < last { *n } else { 0 };
                self.results() * (k + before_activation) * 2
            };
            let links: u64 = links.iter().enumerate().map(of_link).sum();
            let norm = if self.vision.projector.norm {
                self.patches() * hidden * 2
            } else {
                0
            };
            kept += self.vision.projectors() * (links + norm);
        }
        kept
    }

    /// Most that one of its layers needs while it runs [bytes].
    pub fn live(&self, of_layer: impl Fn(&Sizes<'_>, LayerKind) -> u64) -> u64 {
        let sizes = self.sizes();
        let kinds = self.training.model.layer_kinds().into_iter();
        kinds
            .map(|(kind, _)| of_layer(&sizes, kind))
            .max()
            .unwrap_or(0)
    }
}

/// Patches to tokens, before the first layer; and what stands between pixels and the norm before it.
pub(crate) fn patches(
    ctx: &mut Context<'_>,
    e: &Encoder,
    direction: Direction,
    gradients: Gradients,
) -> Run {
    let s = e.sizes();
    let mut b = Builder::new(ctx);
    let (patches, width, hidden) = (e.patches(), e.vision.patch_elements(), s.model.hidden);
    let x = halves(s.tokens * hidden);
    match direction {
        Direction::Forward => {
            b.label("vision patches");
            // Pixels are cut out; every rank has them all.
            let pixels = halves(patches * width);
            b.op(copied(pixels, pixels, 2));
            b.op(s.linear(patches, hidden, width));
            if e.vision.learned_positions > 0 || e.vision.class_token {
                b.op(stream(x * 2, x, 2));
            }
            if e.vision.outer_norms > 0 {
                b.extend(norm_forward(&s));
            }
        }
        Direction::Backward => {
            b.label("vision patches backward");
            if gradients != Gradients::Weight {
                if e.vision.outer_norms > 0 {
                    b.extend(norm_backward(&s));
                }
                if e.vision.learned_positions > 0 || e.vision.class_token {
                    b.op(stream(x, x, 2));
                }
            }
            // Nobody needs the gradient of pixels.
            if gradients != Gradients::Input {
                b.extend(s.weight_gradient(patches, hidden, width));
            }
        }
    }
    b.finish()
}

/// What the encoder's last layer hands on, merged and brought to the width of the language model, into
/// whose sequence it is written; and the way back, as far as anything behind is trained.
pub(crate) fn projector(
    ctx: &mut Context<'_>,
    e: &Encoder,
    direction: Direction,
    gradients: Gradients,
) -> Run {
    let s = e.sizes();
    let mut b = Builder::new(ctx);
    match direction {
        Direction::Forward => {
            b.label("vision projector");
            if e.vision.outer_norms > 1 {
                b.extend(norm_forward(&s));
            }
            for _ in 0..e.vision.projectors() {
                project(&mut b, e, &s);
            }
            share_results(&mut b, e, CollectiveOp::AllGather);
            b.extend(written(e));
        }
        Direction::Backward => {
            b.label("vision projector backward");
            if gradients != Gradients::Weight {
                b.extend(written(e));
                share_results(&mut b, e, CollectiveOp::ReduceScatter);
            }
            for _ in 0..e.vision.projectors() {
                project_back(&mut b, e, &s, gradients);
            }
            if e.trains() && gradients != Gradients::Weight && e.vision.outer_norms > 1 {
                b.extend(norm_backward(&s));
            }
        }
    }
    b.finish()
}

/// Results of images take the places of words, or are added to what is there, one kind after the other.
fn written(e: &Encoder) -> Vec<Operation> {
    let rows = halves(e.all_results() * e.hidden);
    let mut ops = vec![copied(rows, rows, 2)];
    let deep = e.vision.projector.deep;
    if deep > 0 {
        ops.push(stream(rows * (2 * deep), rows * deep, 2 * deep as u32));
    }
    ops
}

/// Context ranks tell each other what they made of their images.
fn share_results(b: &mut Builder<'_, '_>, e: &Encoder, op: CollectiveOp) {
    if e.context == 1 {
        return;
    }
    let bytes = halves(e.all_results() * e.hidden) * e.vision.projectors();
    let node = b.collective(
        "image tokens",
        CommKind::Context,
        GroupSlot::Context,
        Stream::Tensor,
        Spec::Collective(op, bytes),
        e.training.stack.communication_sms,
    );
    b.wait(node);
}

/// Sums or gathers the results of the tensor ranks' parts of a linear layer.
fn collect(b: &mut Builder<'_, '_>, e: &Encoder, op: CollectiveOp, width: u64) {
    if e.tp() == 1 {
        return;
    }
    let label = match op {
        CollectiveOp::AllGather => "TP all-gather",
        _ => "TP reduce",
    };
    let spec = Spec::Collective(op, halves(e.results() * width));
    let sms = e.training.stack.communication_sms;
    let node = tensor_collective(b, label, spec, sms);
    b.wait(node);
}

fn norm_and_merge(e: &Encoder, direction: Direction) -> Vec<Operation> {
    let x = halves(e.patches() * e.vision.hidden);
    let mut ops = Vec::new();
    if e.vision.projector.norm {
        ops.push(match direction {
            Direction::Forward => stream(x, x, 1),
            Direction::Backward => stream(x * 2, x, 2),
        });
    }
    if e.vision.merge > 1 {
        ops.push(copied(x, x, 1));
    }
    ops
}

fn project(b: &mut Builder<'_, '_>, e: &Encoder, s: &Sizes<'_>) {
    b.extend(norm_and_merge(e, Direction::Forward));
    let (links, rows) = (e.links(), e.results());
    for (i, (n, k, sums)) in links.iter().enumerate() {
        b.op(s.linear(rows, *n, *k));
        if *sums {
            collect(b, e, CollectiveOp::AllReduce, *n);
        }
        if i + 1 < links.len() {
            let x = halves(rows * n);
            b.op(stream(x, x, 1));
        }
    }
    if e.gathers_columns() {
        collect(b, e, CollectiveOp::AllGather, e.hidden);
    }
}

fn project_back(b: &mut Builder<'_, '_>, e: &Encoder, s: &Sizes<'_>, gradients: Gradients) {
    let (links, rows) = (e.links(), e.results());
    for (i, (n, k, sums)) in links.iter().enumerate().rev() {
        if gradients != Gradients::Input {
            b.extend(s.weight_gradient(rows, *n, *k));
        }
        // A frozen encoder wants no gradient.
        if gradients == Gradients::Weight || (i == 0 && !e.trains()) {
            continue;
        }
        b.extend(s.input_gradient(rows, *k, *n));
        if !sums {
            collect(b, e, CollectiveOp::AllReduce, *k);
        }
        if i > 0 {
            let x = halves(rows * k);
            b.op(stream(x * 2, x, 1));
        }
    }
    if gradients == Gradients::Weight {
        return;
    }
    if e.trains() {
        b.extend(norm_and_merge(e, Direction::Backward));
    } else if e.vision.projector.norm {
        // Only its scale is trained.
        let x = halves(e.patches() * e.vision.hidden);
        b.op(stream(x * 2, Bytes::ZERO, 2));
    }
}
