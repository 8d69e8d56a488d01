//! Images, and the encoder that takes them.

use super::count;
use crate::catalogue::{Catalogue, Section};
use crate::document::TrainingText;
use crate::resolve::Findings;
use crate::suggest::{divisors_near, either, multiples_near};
use rackflow_workload::{Images, Training, VisionEncoder};

const IMAGES: &str = "workload.training.images";
const TENSOR: &str = "workload.training.parallelism.tensor";
/// Side of an image [pixels].
const MOST_PIXELS: u64 = 100_000;
/// Images of a sequence.
const MOST_IMAGES: u64 = 1_000_000;

/// Checks the images of a training. Without a finding its encoder can be counted and divided.
pub(super) fn check(findings: &mut Findings<'_>, t: &Training, text: &TrainingText) {
    let (Some(images), Some(text)) = (&t.images, &text.images) else {
        return;
    };
    let Some(vision) = &t.model.vision else {
        let catalogue = Catalogue::builtin();
        let names = catalogue.names(Section::Models);
        let seeing = names.filter(|name| {
            let model = catalogue.model(name);
            model.is_some_and(|model| model.vision.is_some())
        });
        let seeing: Vec<&str> = seeing.collect();
        let message = format!(
            "there are `images`, but {} has no vision encoder",
            t.model.name
        );
        let found = findings.at(IMAGES, message);
        let hint = format!(
            "leave `images` out, give the model a `vision`, or take one of {}",
            seeing.join(", ")
        );
        return findings.report(found.hint(hint));
    };
    let per_sequence = format!("{IMAGES}.per_sequence");
    let counted = count(findings, &per_sequence, images.per_sequence, MOST_IMAGES);
    if pixels(findings, t, vision, images, text.pixels.is_some()) && counted {
        room(findings, t, vision, images);
    }
    divided(findings, t, vision);
}

/// Every image cuts into patches, and these can be merged.
fn pixels(
    findings: &mut Findings<'_>,
    t: &Training,
    vision: &VisionEncoder,
    images: &Images,
    is_told: bool,
) -> bool {
    let path = format!("{IMAGES}.pixels");
    let name = &t.model.name;
    let step = vision.step().max(1);
    let near = |pixels: u64| either(&multiples_near(step, pixels.max(step)));
    match vision.image {
        None if !is_told => {
            let message = format!(
                "`pixels` is missing: the vision encoder of {name} takes images of any size"
            );
            let found = findings.at(IMAGES, message);
            let size = 448 / step.min(448) * step;
            let hint =
                format!("write pixels: [{size}, {size}], height and width in multiples of {step}");
            findings.report(found.hint(hint));
            return false;
        }
        Some(own) if [images.height, images.width] != [own, own] => {
            let message = format!(
                "the vision encoder of {name} takes images of {own} x {own} pixels, not {} x {}",
                images.height, images.width
            );
            let found = findings.at(&path, message);
            let hint = "leave `pixels` out; a larger image is cut into tiles, and each counts";
            findings.report(found.hint(hint));
            return false;
        }
        _ => {}
    }
    for (index, pixels) in [images.height, images.width].into_iter().enumerate() {
        let path = format!("{path}.{index}");
        if pixels == 0 || pixels > MOST_PIXELS {
            let message = match pixels {
                0 => "an image of 0 pixels".to_owned(),
                _ => format!("an image of {pixels} pixels is absurdly large"),
            };
            let found = findings.at(&path, message);
            let found = found.label(format!("{step} to {MOST_PIXELS}"));
            findings.report(found);
            return false;
        }
        if !pixels.is_multiple_of(step) {
            let message = format!(
                "{pixels} pixels do not cut into patches of {} that are merged {} by {}",
                vision.patch, vision.merge, vision.merge
            );
            let found = findings.at(&path, message);
            findings.report(found.hint(format!("multiples of {step} near it: {}", near(pixels))));
            return false;
        }
    }
    true
}

/// The tokens of images fit into their sequence.
fn room(findings: &mut Findings<'_>, t: &Training, vision: &VisionEncoder, images: &Images) {
    let tokens = vision.tokens(images);
    let all = tokens.saturating_mul(images.per_sequence);
    if all <= t.sequence_length {
        return;
    }
    let message = format!(
        "{} images of {tokens} tokens are {all} tokens, and a sequence has {}",
        images.per_sequence, t.sequence_length
    );
    let found = findings.at(&format!("{IMAGES}.per_sequence"), message);
    let most = t.sequence_length / tokens.max(1);
    findings.report(found.hint(if most > 0 {
        format!("at most {most} images fit into it")
    } else {
        "take smaller images, or longer sequences".to_owned()
    }));
}

/// Heads and feed-forward width are cut over the tensor-parallel ranks.
fn divided(findings: &mut Findings<'_>, t: &Training, vision: &VisionEncoder) {
    let tensor = u64::from(t.parallelism.tensor);
    let widths = [
        (vision.heads, "attention heads"),
        (vision.ffn, "columns of the feed-forward network"),
    ];
    for (width, what) in widths {
        if !width.is_multiple_of(tensor) {
            let message = format!(
                "tensor parallelism {tensor} does not divide the {width} {what} of the vision encoder of {}",
                t.model.name
            );
            let near = either(&divisors_near(width, tensor));
            let found = findings.at(TENSOR, message);
            return findings.report(found.hint(format!("divisors near it: {near}")));
        }
    }
}
