//! How busy the links are, on a drawing of the busiest rack and on all racks.

use super::picture::{Anchor, Picture, text_width};
use super::style::{self, Ink, size};
use crate::detail::{LinkTier, Links};
use crate::format::{number, percent, significant};
use crate::report::Report;

/// GPUs of a rack that are drawn at most.
const MOST_GPUS: usize = 96;
/// Columns of the drawing of the hall at most; more racks than this share columns.
const MOST_COLUMNS: usize = 128;
const SWITCH: f64 = 26.0;
const STEP: f64 = 58.0;
const HALL_ROW: f64 = 18.0;

/// Shares are drawn between nothing and the first of these that holds them all.
const TOPS: [f64; 6] = [0.05, 0.1, 0.25, 0.5, 0.75, 1.0];

/// What a tier is called in titles and beside its drawing.
fn words(tier: &str) -> (&'static str, &'static str) {
    match tier {
        "nvlink" => ("NVLink", "GPUs into their scale-up domain"),
        "nic" => ("NICs", "GPUs to their leaves"),
        "leaf_up" => ("Leaf uplinks", "leaves to spines"),
        _ => ("Pod uplinks", "pods to cores"),
    }
}

struct Canvas<'l> {
    picture: Picture,
    links: &'l Links,
    left: f64,
    right: f64,
    top: f64,
}

/// Link use of a training step; none where the report does not hold it.
pub fn links(report: &Report) -> Option<Picture> {
    let links = report.links.as_ref()?;
    let title = title(links);
    let subtitle = format!(
        "{}: bytes sent in a step of {} s over what the line rate could send. Rack {} of {}, the busiest, link by link.",
        report.scenario,
        significant(report.training.step_time_s),
        links.rack,
        number(report.cluster.racks as f64, 0),
    );
    let heading = Picture::heading_height(&title, &subtitle);
    let outside = links.tiers.iter().filter(|t| is_switch(&t.tier)).count() as f64;
    let hall = links.tiers.len() as f64;
    let height = heading + 34.0 + outside * STEP + 162.0 + hall * HALL_ROW + 128.0;
    let largest = links
        .tiers
        .iter()
        .flat_map(|tier| tier.by_gpu.iter().chain(&tier.by_rack).copied())
        .fold(0.0, f64::max);
    let mut canvas = Canvas {
        picture: Picture::new(height, &title, &subtitle),
        links,
        left: style::MARGIN + 118.0,
        right: style::WIDTH - style::MARGIN - 190.0,
        top: TOPS.into_iter().find(|top| largest <= *top).unwrap_or(1.0),
    };
    let below = canvas.switches(heading + 34.0);
    let below = canvas.rack(report, below);
    let below = canvas.hall(report, below + 34.0);
    canvas.scale(below + 26.0);
    for (i, line) in traffic(links).iter().enumerate() {
        let at = (style::MARGIN, below + 60.0 + 18.0 * i as f64);
        let ink = style::FAINT;
        canvas
            .picture
            .words(at, line, size::SMALL, ink, Anchor::Start, false);
    }
    Some(canvas.picture)
}

/// Tiers that are switches above the rack; NVLink is inside it.
fn is_switch(tier: &str) -> bool {
    tier != "nvlink"
}

impl Canvas<'_> {
    fn ink(&self, share: f64) -> Ink {
        style::heat(share / self.top)
    }

    fn tier(&self, name: &str) -> Option<&LinkTier> {
        self.links.tiers.iter().find(|tier| tier.tier == name)
    }

    fn small(&mut self, at: (f64, f64), words: &str, anchor: Anchor) {
        let ink = style::FAINT;
        self.picture
            .words(at, words, size::SMALL, ink, anchor, false);
    }

    fn body(&mut self, at: (f64, f64), words: &str, anchor: Anchor, bold: bool) {
        let ink = style::TEXT;
        self.picture.words(at, words, size::BODY, ink, anchor, bold);
    }

    /// Cores, spines and leaves, from above, with the cables under each; where the last one ends.
    fn switches(&mut self, mut y: f64) -> f64 {
        let rows = [
            ("pod_up", "cores"),
            ("leaf_up", "spines"),
            ("nic", "leaves"),
        ];
        for (name, switch) in rows {
            let Some(tier) = self.tier(name).cloned() else {
                continue;
            };
            let (left, width) = (self.left, self.right - self.left);
            self.picture
                .rectangle(left, y, width, SWITCH, style::GRID.tint(0.7));
            self.picture.frame(left, y, width, SWITCH, style::PEAK, 1.0);
            let middle = (left + width / 2.0, y + SWITCH / 2.0);
            self.body(middle, switch, Anchor::Middle, false);
            self.beside(&tier, y + SWITCH + (STEP - SWITCH) / 2.0);
            // The cables of a tier of switches are drawn as one bundle; those of GPUs one by one.
            if name != "nic" {
                let ink = self.ink(tier.busy);
                let bundle = width / 3.0;
                let x = left + (width - bundle) / 2.0;
                self.picture
                    .rectangle(x, y + SWITCH, bundle, STEP - SWITCH, ink);
            }
            y += STEP;
        }
        y
    }

    /// Name and share of a tier at the sides of its cables.
    fn beside(&mut self, tier: &LinkTier, y: f64) {
        let (name, _) = words(&tier.tier);
        self.body((self.left - 12.0, y), name, Anchor::End, true);
        let share = format!(
            "{} % of {} GB/s per GPU",
            percent(tier.busy),
            significant(tier.bytes_per_s * 1e-9)
        );
        self.body((self.right + 12.0, y), &share, Anchor::Start, false);
    }

    /// The rack: its GPUs, their NIC above, their links into the domain below.
    fn rack(&mut self, report: &Report, y: f64) -> f64 {
        let (left, right) = (self.left, self.right);
        let gpus = self.links.tiers.first().map_or(0, |tier| tier.by_gpu.len());
        let drawn = gpus.min(MOST_GPUS);
        let domain = self.links.gpus_per_domain.max(1) as usize;
        let pitch = (right - left - 24.0) / drawn.max(1) as f64;
        let cell = (pitch - 2.0).min(34.0);
        let x = |gpu: usize| left + 12.0 + pitch * (gpu as f64 + 0.5);
        let (top, height) = (y, 128.0);
        self.picture
            .frame(left, top, right - left, height, style::PEAK, 1.5);
        let (gpu_y, hub) = (top + 16.0, top + 76.0);
        let nic = self.tier("nic").cloned();
        let nvlink = self.tier("nvlink").cloned();
        for gpu in 0..drawn {
            if let Some(share) = nic.as_ref().and_then(|nic| nic.by_gpu.get(gpu)) {
                let (ink, wide) = (self.ink(*share), (cell * 0.6).max(1.5));
                let from = top - (STEP - SWITCH);
                self.picture
                    .rectangle(x(gpu) - wide / 2.0, from, wide, gpu_y - from, ink);
            }
            if let Some(share) = nvlink.as_ref().and_then(|tier| tier.by_gpu.get(gpu)) {
                let (ink, wide) = (self.ink(*share), (cell * 0.6).max(1.5));
                self.picture.rectangle(
                    x(gpu) - wide / 2.0,
                    gpu_y + 18.0,
                    wide,
                    hub - gpu_y - 18.0,
                    ink,
                );
            }
            self.picture
                .rectangle(x(gpu) - cell / 2.0, gpu_y, cell, 18.0, style::PEAK);
        }
        if let Some(tier) = nvlink {
            self.beside(&tier, (gpu_y + 18.0 + hub) / 2.0);
            for first in (0..drawn).step_by(domain) {
                let last = (first + domain).min(drawn) - 1;
                let (from, to) = (x(first) - cell / 2.0, x(last) + cell / 2.0);
                self.picture
                    .rectangle(from, hub, to - from, 20.0, style::GRID.tint(0.7));
                self.picture
                    .frame(from, hub, to - from, 20.0, style::PEAK, 1.0);
                let name = "NVLink domain";
                if text_width(name, size::SMALL, false) < to - from {
                    self.small(((from + to) / 2.0, hub + 10.0), name, Anchor::Middle);
                }
            }
        }
        let mut name = format!(
            "rack {}: {} {}",
            self.links.rack,
            number(gpus as f64, 0),
            report.cluster.accelerator
        );
        if gpus > drawn {
            name.push_str(&format!(", {drawn} of them drawn"));
        }
        self.body(
            ((left + right) / 2.0, top + height - 14.0),
            &name,
            Anchor::Middle,
            true,
        );
        top + height
    }

    /// Every rack of the hall, a row of shades for each tier.
    fn hall(&mut self, report: &Report, y: f64) -> f64 {
        let racks = report.cluster.racks as usize;
        let columns = racks.clamp(1, MOST_COLUMNS);
        let width = (self.right - self.left) / columns as f64;
        let gap = if width > 4.0 { 1.0 } else { 0.0 };
        let title = format!(
            "All {} racks, in the order of the hall",
            number(racks as f64, 0)
        );
        let at = ((self.left + self.right) / 2.0, y - 12.0);
        self.small(
            at,
            if racks == 1 { "The only rack" } else { &title },
            Anchor::Middle,
        );
        for (row, tier) in self.links.tiers.clone().iter().enumerate() {
            let top = y + HALL_ROW * row as f64;
            for column in 0..columns {
                let (from, to) = (column * racks / columns, (column + 1) * racks / columns);
                let of = tier.by_rack.get(from..to.max(from + 1)).unwrap_or_default();
                let mean = of.iter().sum::<f64>() / of.len().max(1) as f64;
                let (x, ink) = (self.left + width * column as f64, self.ink(mean));
                self.picture
                    .rectangle(x, top, width - gap, HALL_ROW - 2.0, ink);
            }
            let middle = top + HALL_ROW / 2.0 - 1.0;
            let (name, _) = words(&tier.tier);
            self.small((self.left - 12.0, middle), name, Anchor::End);
            let most = format!("busiest rack {} %", percent(tier.busy_most));
            self.small((self.right + 12.0, middle), &most, Anchor::Start);
        }
        y + HALL_ROW * self.links.tiers.len() as f64
    }

    /// What the shades mean.
    fn scale(&mut self, y: f64) {
        let width = 36.0;
        for step in 0..=5 {
            let share = f64::from(step) / 5.0;
            let x = self.left + width * f64::from(step);
            self.picture
                .rectangle(x, y - 7.0, width, 14.0, style::heat(share));
            let ink = style::on_heat(share);
            let words = number(share * self.top * 100.0, 0);
            let at = (x + width / 2.0, y);
            self.picture
                .words(at, &words, size::SMALL, ink, Anchor::Middle, false);
        }
        let at = (self.left + width * 6.0 + 12.0, y);
        self.small(at, "% of the line rate, mean over the step", Anchor::Start);
    }
}

fn title(links: &Links) -> String {
    let busiest = links.tiers.iter().max_by(|a, b| a.busy.total_cmp(&b.busy));
    let Some(busiest) = busiest else {
        return "One GPU has no links to others".to_owned();
    };
    let (name, what) = words(&busiest.tier);
    let mut title = format!(
        "{name} are the busiest links, {} % of the step",
        percent(busiest.busy)
    );
    if busiest.tier == "nvlink" {
        title = format!(
            "NVLink is the busiest tier, {} % of its line rate",
            percent(busiest.busy)
        );
    }
    let others: Vec<String> = links
        .tiers
        .iter()
        .filter(|tier| tier.tier != busiest.tier)
        .map(|tier| {
            let name = words(&tier.tier)
                .0
                .replace("Leaf", "leaf")
                .replace("Pod", "pod");
            format!("{name} {} %", percent(tier.busy))
        })
        .collect();
    if others.is_empty() {
        return format!("{title} ({what})");
    }
    format!("{title}; {}", others.join(", "))
}

/// What is sent for which purpose, in a line each for the inside and the outside.
fn traffic(links: &Links) -> Vec<String> {
    let line = |name: &str, pick: fn(&crate::detail::TrafficOf) -> f64| {
        let parts: Vec<String> = links
            .traffic
            .iter()
            .filter(|of| pick(of) > 0.0)
            .map(|of| {
                let gigabytes = significant(pick(of) * 1e-9);
                format!("{} {gigabytes} GB", of.kind.to_uppercase())
            })
            .collect();
        (!parts.is_empty()).then(|| format!("{name} per GPU and step: {}.", parts.join(", ")))
    };
    [
        line("Over NVLink", |of| of.nvlink),
        line("Through the NICs", |of| of.nic),
    ]
    .into_iter()
    .flatten()
    .collect()
}
