//! A cluster as a picture: racks with their domains, NICs on leaves by rail, tiers above. A few of
//! each kind are drawn, and how many there are is said.

use super::picture::{Anchor, Picture, text_width};
use super::style::{self, Ink, size};
use crate::topology::{blocking, count, fabric_name, gigabits, gigabytes};
use rackflow_topology::{Level, SketchRack, SketchSwitch, Survey, TierSurvey, Vertex};
use rackflow_units::counted;

const SWITCH_HEIGHT: f64 = 26.0;
/// From one tier of switches to the next.
const TIER: f64 = 104.0;
const RACK_HEIGHT: f64 = 168.0;
/// From the top of a GPU to what its domain is made of; its number lies between.
const UNDER_GPU: f64 = GPU + 17.0;
const GPU: f64 = 15.0;

/// The middle of the upper and of the lower edge of what is drawn.
type Places = Vec<(Vertex, (f64, f64), (f64, f64))>;

/// A cluster from racks to cores.
pub fn topology(survey: &Survey) -> Picture {
    let s = survey;
    let title = format!(
        "{}: {} on a {}",
        counted(s.gpus, "GPU"),
        s.node,
        fabric_name(s.fabric)
    );
    let subtitle = subtitle(s);
    let mut y = Picture::heading_height(&title, &subtitle) + 30.0;
    if s.fabric == "dragonfly_plus" {
        // Room for the arcs between groups.
        y += 44.0;
    }
    let rows = [&s.sketch.cores, &s.sketch.spines, &s.sketch.leaves];
    let drawn = rows.iter().filter(|row| !row.is_empty()).count() as f64;
    let height = y + drawn * TIER + RACK_HEIGHT + 100.0;
    let mut picture = Picture::new(height, &title, &subtitle);
    let mut places: Places = Vec::new();
    let mut captions = Vec::new();
    for (row, level) in rows
        .into_iter()
        .zip([Level::Core, Level::Spine, Level::Leaf])
    {
        if row.is_empty() {
            continue;
        }
        // The arcs between groups stay free.
        let above = if level == Level::Spine && s.fabric == "dragonfly_plus" {
            50.0
        } else {
            16.0
        };
        captions.push((y - above, switch_caption(s, level)));
        places.extend(place_switches(row, y));
        y += TIER;
    }
    let racks = place_racks(s, y);
    for rack in &racks {
        places.extend(
            rack.gpus
                .iter()
                .map(|(gpu, at)| (Vertex::Gpu(*gpu), *at, *at)),
        );
    }
    links(&mut picture, s, &places);
    for row in rows {
        pods(&mut picture, s, row, &places);
        for switch in row {
            draw_switch(&mut picture, s, switch, &places);
        }
    }
    for (y, (what, wires)) in captions {
        caption(&mut picture, y, &what, &wires);
    }
    for rack in &racks {
        draw_rack(&mut picture, s, rack);
    }
    let below = y + RACK_HEIGHT + 22.0;
    for (i, line) in footer(s).iter().enumerate() {
        let at = (style::MARGIN, below + 18.0 * i as f64);
        picture.words(at, line, size::SMALL, style::FAINT, Anchor::Start, false);
    }
    legend(&mut picture, s, below + 46.0);
    picture
}

/// A cluster of several kinds of node: what they have in common, and under it each kind with its own
/// racks and leaves.
pub fn topology_of_parts(parts: &[Survey]) -> Picture {
    let Some(first) = parts.first() else {
        return Picture::new(100.0, "no GPUs", "");
    };
    let all: u32 = parts.iter().map(|part| part.gpus).sum();
    let title = format!(
        "{} GPUs of {} kinds on one {}",
        count(all),
        parts.len(),
        fabric_name(first.fabric)
    );
    let mut starts = Vec::with_capacity(parts.len());
    let mut gpu = 0;
    for part in parts {
        starts.push(format!(
            "GPUs {gpu} to {}: {}",
            gpu + part.gpus - 1,
            part.node
        ));
        gpu += part.gpus;
    }
    let subtitle = starts.join("; ");
    let common = if first.pods > 1 || !first.sketch.cores.is_empty() {
        "cores"
    } else {
        "spines"
    };
    let words = format!(
        "The {common} are common: what goes from one kind to another climbs to them. Each kind has leaves of its own; \
         numbers start anew in each part."
    );
    let top = Picture::heading_height(&title, &subtitle) + 10.0;
    let drawn: Vec<Picture> = parts.iter().map(topology).collect();
    let below: f64 = drawn.iter().map(|part| part.height() + 10.0).sum();
    let mut picture = Picture::new(top + 60.0 + below, &title, &subtitle);
    let bar = (style::MARGIN, top, style::WIDTH - 2.0 * style::MARGIN);
    picture.rectangle(bar.0, bar.1, bar.2, 34.0, style::GRID);
    let middle = (style::WIDTH / 2.0, bar.1 + 17.0);
    picture.words(
        middle,
        &words,
        size::SMALL,
        style::TEXT,
        Anchor::Middle,
        false,
    );
    let mut y = top + 50.0;
    for part in &drawn {
        picture.place(part, y);
        y += part.height() + 10.0;
    }
    picture
}

fn subtitle(s: &Survey) -> String {
    let i = &s.inventory;
    let share = if s.bisection_share > 0.9995 {
        "non-blocking".to_owned()
    } else {
        format!(
            "{:.0} % of what the NICs of one half send",
            s.bisection_share * 100.0
        )
    };
    format!(
        "{}, {}; {} switches, {} cables, {} transceivers; bisection {} one way, {share}",
        counted(i.racks, "rack"),
        counted(i.nodes, "node"),
        count(i.switches()),
        count(i.cables),
        count(s.transceivers),
        gigabytes(s.bisection_bytes_per_s),
    )
}

/// What a row of switches is, and the cables under it.
fn switch_caption(s: &Survey, level: Level) -> (String, String) {
    let i = &s.inventory;
    let direct = s.fabric == "dragonfly_plus";
    let (one, several, all, drawn) = match level {
        Level::Core => ("core", "cores", i.cores, &s.sketch.cores),
        Level::Spine => ("spine", "spines", i.spines, &s.sketch.spines),
        _ => ("leaf", "leaves", i.leaves, &s.sketch.leaves),
    };
    let what = if all == 1 { one } else { several };
    let mut parts = vec![format!("{} {what}", count(all))];
    match level {
        Level::Spine if s.pods > 1 => {
            parts.push(format!(
                "in {} {}",
                s.pods,
                if direct { "groups" } else { "pods" }
            ));
        }
        Level::Leaf if s.planes > 1 => parts.push(format!("in {} planes", s.planes)),
        Level::Leaf if s.rails > 1 => parts.push(format!("on {} rails", s.rails)),
        _ => {}
    }
    let mut wires = s
        .tiers
        .iter()
        .filter(|tier| tier.level == level)
        .map(tier_words)
        .collect::<Vec<_>>();
    if level == Level::Spine && direct {
        wires.extend(
            s.tiers
                .iter()
                .filter(|tier| tier.level == Level::Core)
                .map(tier_words),
        );
    }
    let mut words = parts.join(" ");
    if (drawn.len() as u64) < u64::from(all) {
        words.push_str(&format!(", {} drawn", drawn.len()));
    }
    (words, wires.join("; "))
}

fn tier_words(tier: &TierSurvey) -> String {
    let mut words = format!(
        "{}: {} x {}",
        tier.name,
        count(tier.cables),
        gigabits(tier.cable_bytes_per_s)
    );
    if tier.level != Level::Leaf {
        words.push_str(&format!(", {}", blocking(tier.oversubscription)));
    }
    words
}

fn caption(picture: &mut Picture, y: f64, what: &str, wires: &str) {
    let bold = text_width(what, size::BODY, true);
    backing(picture, (style::MARGIN, y), bold, size::BODY);
    let width = text_width(wires, size::SMALL, false);
    backing(
        picture,
        (style::WIDTH - style::MARGIN - width, y),
        width,
        size::SMALL,
    );
    picture.words(
        (style::MARGIN, y),
        what,
        size::BODY,
        style::TEXT,
        Anchor::Start,
        true,
    );
    let right = style::WIDTH - style::MARGIN;
    picture.words(
        (right, y),
        wires,
        size::SMALL,
        style::FAINT,
        Anchor::End,
        false,
    );
}

/// White behind words that lie on lines.
fn backing(picture: &mut Picture, (x, y): (f64, f64), width: f64, height: f64) {
    let half = height * 0.62;
    picture.rectangle(
        x - 3.0,
        y - half,
        width + 6.0,
        2.0 * half,
        Ink(255, 255, 255),
    );
}

const fn gpu_ink() -> Ink {
    style::FAINT
}

/// Boxes side by side over the width of the page; a gap between groups.
fn place_switches(row: &[SketchSwitch], y: f64) -> Places {
    let group = |switch: &SketchSwitch| (switch.plane, switch.pod);
    let gaps = row
        .windows(2)
        .filter(|pair| group(&pair[0]) != group(&pair[1]))
        .count() as f64;
    let room = style::WIDTH - 2.0 * style::MARGIN - 20.0 * (gaps + 1.0);
    let pitch = (room / row.len() as f64).min(150.0);
    let used = pitch * row.len() as f64 + 20.0 * gaps;
    let mut x = (style::WIDTH - used) / 2.0;
    let mut places = Vec::new();
    for (i, switch) in row.iter().enumerate() {
        if i > 0 && group(&row[i - 1]) != group(switch) {
            x += 20.0;
        }
        let middle = x + pitch / 2.0;
        places.push((switch.vertex, (middle, y), (middle, y + SWITCH_HEIGHT)));
        x += pitch;
    }
    places
}

fn at(places: &Places, vertex: Vertex) -> Option<((f64, f64), (f64, f64))> {
    places
        .iter()
        .find(|(v, ..)| *v == vertex)
        .map(|(_, top, bottom)| (*top, *bottom))
}

/// Rails or planes that have colours of their own.
fn colors(s: &Survey) -> u32 {
    if s.planes > 1 { s.planes } else { s.rails }
}

fn leaf_ink(s: &Survey, switch: &SketchSwitch) -> Ink {
    if colors(s) <= 1 {
        return style::ORDER;
    }
    let index = if s.planes > 1 {
        switch.plane
    } else {
        switch.rail
    };
    let ink = style::series(index as usize);
    // An eighth rail has no colour left and takes the grey of frames.
    if index as usize % 8 == 7 {
        style::PEAK
    } else {
        ink
    }
}

fn links(picture: &mut Picture, s: &Survey, places: &Places) {
    for (from, to) in &s.sketch.links {
        let (Some(lower), Some(upper)) = (at(places, *from), at(places, *to)) else {
            continue;
        };
        match (from, to) {
            (Vertex::Gpu(_), _) => {
                let leaf = s.sketch.leaves.iter().find(|leaf| leaf.vertex == *to);
                let ink = leaf
                    .map_or(style::PEAK, |leaf| leaf_ink(s, leaf))
                    .tint(0.55);
                picture.path(vec![lower.0, upper.1], ink, 1.0);
            }
            (Vertex::Spine(_), Vertex::Spine(_)) => {
                // Groups are joined by arcs above them.
                let (a, b) = (lower.0, upper.0);
                let lift = 14.0 + 0.03 * (b.0 - a.0).abs();
                let arc = (0..=16).map(|i| {
                    let t = f64::from(i) / 16.0;
                    (
                        a.0 + t * (b.0 - a.0),
                        a.1 - 4.0 * lift * t * (1.0 - t) * 0.5,
                    )
                });
                picture.path(arc.collect(), style::LOST.tint(0.5), 1.0);
            }
            _ => picture.path(vec![lower.0, upper.1], style::PEAK.tint(0.6), 1.0),
        }
    }
}

/// A frame around the switches of one pod, plane or group.
fn pods(picture: &mut Picture, s: &Survey, row: &[SketchSwitch], places: &Places) {
    if s.pods * s.planes == 1
        || matches!(row.first().map(|r| r.vertex), None | Some(Vertex::Core(_)))
    {
        return;
    }
    for group in row.chunk_by(|a, b| (a.plane, a.pod) == (b.plane, b.pod)) {
        let ends = [group[0], group[group.len() - 1]].map(|switch| at(places, switch.vertex));
        let [Some((first, _)), Some((last, _))] = ends else {
            continue;
        };
        let half = pitch(row, places) / 2.0;
        let (x, width) = (first.0 - half, last.0 - first.0 + 2.0 * half);
        picture.frame(
            x,
            first.1 - 5.0,
            width,
            SWITCH_HEIGHT + 24.0,
            style::GRID,
            1.5,
        );
        let name = match (s.planes > 1, s.fabric) {
            (true, _) => format!("plane {}", group[0].plane),
            (_, "dragonfly_plus") => format!("group {}", group[0].pod),
            _ => format!("pod {}", group[0].pod),
        };
        let at = (x + width / 2.0, first.1 + SWITCH_HEIGHT + 9.0);
        let wide = text_width(&name, size::SMALL, false);
        if wide < width {
            backing(picture, (at.0 - wide / 2.0, at.1), wide, size::SMALL);
            picture.words(at, &name, size::SMALL, style::FAINT, Anchor::Middle, false);
        }
    }
}

fn pitch(row: &[SketchSwitch], places: &Places) -> f64 {
    let gap = |pair: &[SketchSwitch]| {
        let (a, b) = (at(places, pair[0].vertex)?, at(places, pair[1].vertex)?);
        Some((b.0.0 - a.0.0).abs())
    };
    row.windows(2).filter_map(gap).fold(150.0, f64::min)
}

fn draw_switch(picture: &mut Picture, s: &Survey, switch: &SketchSwitch, places: &Places) {
    let Some((top, _)) = at(places, switch.vertex) else {
        return;
    };
    let row = match switch.vertex {
        Vertex::Leaf(_) => &s.sketch.leaves,
        Vertex::Spine(_) => &s.sketch.spines,
        _ => &s.sketch.cores,
    };
    let width = (pitch(row, places) - 6.0).clamp(12.0, 110.0);
    let (ink, number, word) = match switch.vertex {
        Vertex::Leaf(i) => (leaf_ink(s, switch), i, "leaf"),
        Vertex::Spine(i) => (style::MATH, i, "spine"),
        Vertex::Core(i) => (style::LOST, i, "core"),
        _ => return,
    };
    picture.rectangle(
        top.0 - width / 2.0,
        top.1,
        width,
        SWITCH_HEIGHT,
        ink.tint(0.25),
    );
    picture.frame(top.0 - width / 2.0, top.1, width, SWITCH_HEIGHT, ink, 1.0);
    let long = format!("{word} {number}");
    let words = if text_width(&long, size::SMALL, false) + 6.0 < width {
        long
    } else {
        number.to_string()
    };
    let middle = (top.0, top.1 + SWITCH_HEIGHT / 2.0);
    picture.words(
        middle,
        &words,
        size::SMALL,
        style::TEXT,
        Anchor::Middle,
        false,
    );
}

struct RackBox<'s> {
    rack: &'s SketchRack,
    x: f64,
    y: f64,
    width: f64,
    gpus: Vec<(u32, (f64, f64))>,
}

/// Racks over the width of the page, wider than they are apart.
fn place_racks(s: &Survey, y: f64) -> Vec<RackBox<'_>> {
    let racks = &s.sketch.racks;
    let room = style::WIDTH - 2.0 * style::MARGIN;
    let pitch = room / racks.len() as f64;
    let width = (pitch - 28.0).min(420.0);
    let mut boxes = Vec::new();
    for (i, rack) in racks.iter().enumerate() {
        let x = pitch * i as f64 + style::MARGIN + (pitch - width) / 2.0;
        let columns = rack.domains.len().max(1) as f64;
        let column = (width - 16.0) / columns;
        let mut gpus = Vec::new();
        for (d, (_, drawn)) in rack.domains.iter().enumerate() {
            let step = ((column - 12.0) / drawn.len() as f64).min(26.0);
            let left = x + 8.0 + column * d as f64 + (column - step * drawn.len() as f64) / 2.0;
            gpus.extend(
                drawn
                    .iter()
                    .enumerate()
                    .map(|(g, gpu)| (*gpu, (left + step * (g as f64 + 0.5), y + 14.0))),
            );
        }
        boxes.push(RackBox {
            rack,
            x,
            y,
            width,
            gpus,
        });
    }
    boxes
}

fn draw_rack(picture: &mut Picture, s: &Survey, rack: &RackBox<'_>) {
    let RackBox { x, y, width, .. } = *rack;
    if rack.rack.rack + 1 == s.inventory.racks && s.inventory.racks > s.sketch.racks.len() as u32 {
        // Racks that are not drawn stand before the last one.
        let gap = (x - 14.0, y + RACK_HEIGHT / 2.0);
        picture.words(gap, "...", size::TITLE, style::FAINT, Anchor::Middle, true);
    }
    picture.frame(x, y, width, RACK_HEIGHT, style::PEAK, 1.5);
    let columns = rack.rack.domains.len().max(1) as f64;
    let column = (width - 16.0) / columns;
    for (d, (domain, drawn)) in rack.rack.domains.iter().enumerate() {
        let left = x + 8.0 + column * d as f64;
        let places: Vec<(f64, f64)> = drawn
            .iter()
            .filter_map(|gpu| rack.gpus.iter().find(|(g, _)| g == gpu).map(|(_, at)| *at))
            .collect();
        draw_domain(
            picture,
            s,
            *domain,
            &places,
            (left + 3.0, column - 6.0),
            y + 6.0,
        );
        let step = places.get(1).map_or(GPU + 4.0, |next| next.0 - places[0].0);
        let wide = (step - 3.0).min(GPU);
        for at in &places {
            picture.rectangle(at.0 - wide / 2.0, at.1, wide, GPU, gpu_ink());
        }
        number_gpus(picture, drawn, &places, column);
    }
    let shown = rack.rack.domains.len() as u32;
    let inside = rack
        .rack
        .gpus
        .div_ceil(s.domain.gpus.min(rack.rack.gpus).max(1));
    let name = format!(
        "rack {}: {}",
        rack.rack.rack,
        counted(rack.rack.gpus, "GPU")
    );
    let more = if inside > shown {
        format!("{shown} of its {inside} domains drawn")
    } else {
        String::new()
    };
    let middle = x + width / 2.0;
    picture.words(
        (middle, y + RACK_HEIGHT - 30.0),
        &name,
        size::BODY,
        style::TEXT,
        Anchor::Middle,
        true,
    );
    picture.words(
        (middle, y + RACK_HEIGHT - 13.0),
        &more,
        size::SMALL,
        style::FAINT,
        Anchor::Middle,
        false,
    );
}

/// The numbers of the first and the last GPU under them, or both in one where a neighbour's are near.
fn number_gpus(picture: &mut Picture, gpus: &[u32], places: &[(f64, f64)], column: f64) {
    let (Some(first), Some(last)) = (places.first(), places.last()) else {
        return;
    };
    let ends = [gpus[0], gpus[gpus.len() - 1]].map(|gpu| gpu.to_string());
    let length = text_width(&ends[1], size::SMALL, false);
    let (span, y) = (last.0 - first.0, first.1 + GPU + 8.0);
    let near = length + 8.0 > (column - span).min(span);
    let labels = match (gpus.len(), near) {
        (1, _) => vec![(first.0, ends[0].clone())],
        (_, true) => vec![((first.0 + last.0) / 2.0, ends.join(" to "))],
        (_, false) => vec![(first.0, ends[0].clone()), (last.0, ends[1].clone())],
    };
    for (x, words) in labels {
        let length = text_width(&words, size::SMALL, false);
        backing(picture, (x - length / 2.0, y), length, size::SMALL);
        let ink = style::FAINT;
        picture.words((x, y), &words, size::SMALL, ink, Anchor::Middle, false);
    }
}

/// The GPUs of a domain in one rack, and how they are wired.
fn draw_domain(
    picture: &mut Picture,
    s: &Survey,
    domain: u32,
    gpus: &[(f64, f64)],
    (x, width): (f64, f64),
    y: f64,
) {
    let hub = y + 52.0;
    let ink = style::WAIT.tint(0.6);
    let wiring = Wiring::of(&s.domain.wiring);
    match wiring {
        Wiring::Switched | Wiring::Bridged => {
            for gpu in gpus {
                picture.path(vec![(gpu.0, gpu.1 + GPU), (gpu.0, hub)], ink, 1.0);
            }
            let bar = (x + 4.0, width - 8.0);
            picture.rectangle(bar.0, hub, bar.1, 16.0, style::WAIT.tint(0.25));
            picture.frame(bar.0, hub, bar.1, 16.0, style::WAIT, 1.0);
        }
        Wiring::Mesh => mesh(picture, gpus, ink),
        Wiring::Torus => lattice(picture, (x + width / 2.0, y + 8.0 + UNDER_GPU + 15.0), ink),
    }
    let (words, label) = match wiring {
        Wiring::Switched => (format!("domain {domain}"), hub + 8.0),
        Wiring::Bridged => (format!("domain {domain}: PCIe"), hub + 8.0),
        Wiring::Mesh => (format!("domain {domain}: mesh"), hub + 32.0),
        Wiring::Torus => (format!("domain {domain}: {}", s.domain.wiring), hub + 36.0),
    };
    let words = if text_width(&words, size::SMALL, false) < width {
        words
    } else {
        domain.to_string()
    };
    let middle = (x + width / 2.0, label);
    picture.words(
        middle,
        &words,
        size::SMALL,
        style::TEXT,
        Anchor::Middle,
        false,
    );
    let (drawn, all) = (gpus.len() as u32, s.domain.gpus.min(s.gpus_per_rack));
    if all > drawn {
        let words = format!("{drawn} of {} GPUs drawn", count(all));
        let under = (x + width / 2.0, label + 17.0);
        picture.words(
            under,
            &words,
            size::SMALL,
            style::FAINT,
            Anchor::Middle,
            false,
        );
    }
}

/// How a domain is drawn.
#[derive(Clone, Copy)]
enum Wiring {
    Switched,
    Bridged,
    Mesh,
    Torus,
}

impl Wiring {
    fn of(words: &str) -> Self {
        match words {
            "switched" => Self::Switched,
            "mesh" => Self::Mesh,
            torus if torus.starts_with("torus") => Self::Torus,
            _ => Self::Bridged,
        }
    }
}

/// A link for each pair: an arc under the two, deeper the farther apart they are.
fn mesh(picture: &mut Picture, gpus: &[(f64, f64)], ink: Ink) {
    for (i, a) in gpus.iter().enumerate() {
        for (j, b) in gpus.iter().enumerate().skip(i + 1) {
            let low = a.1 + UNDER_GPU + 4.0 * (j - i) as f64;
            let (top, left, right) = (a.1 + GPU, a.0 + 2.0, b.0 - 2.0);
            let arc = vec![(a.0, top), (left, low), (right, low), (b.0, top)];
            picture.path(arc, ink, 1.0);
        }
    }
}

/// A piece of a torus: chips with their neighbours, and links that go on around.
fn lattice(picture: &mut Picture, middle: (f64, f64), ink: Ink) {
    const STEP: f64 = 13.0;
    let place = |column: i32, row: i32| {
        (
            middle.0 + f64::from(column) * 1.6 * STEP,
            middle.1 + f64::from(row) * STEP,
        )
    };
    for row in -1..=1 {
        let (first, last) = (place(-4, row), place(4, row));
        picture.line((first.0 - 9.0, first.1), (last.0 + 9.0, last.1), ink);
    }
    for column in -4..=4 {
        let (first, last) = (place(column, -1), place(column, 1));
        picture.line((first.0, first.1 - 6.0), (last.0, last.1 + 6.0), ink);
        for row in -1..=1 {
            picture.disc(place(column, row), 3.0, gpu_ink());
        }
    }
}

/// How many racks there are, and the scale-up domain in words.
fn footer(s: &Survey) -> Vec<String> {
    let drawn = s.sketch.racks.len();
    let d = &s.domain;
    let racks = counted(s.inventory.racks, "rack");
    let racks = if drawn < s.inventory.racks as usize {
        format!("{drawn} of {racks} drawn")
    } else {
        racks
    };
    let first = format!(
        "{racks}; {} of {}, {} per GPU",
        counted(s.inventory.nics, "NIC"),
        gigabits(s.nic_bytes_per_s),
        gigabits(s.nic_share_bytes_per_s),
    );
    let link = if d.cables > 0 {
        format!(
            ", {} of {} one way each",
            counted(d.cables, "link"),
            gigabytes(d.link_bytes_per_s)
        )
    } else {
        String::new()
    };
    let second = format!(
        "{} of {}, {}: {} per GPU one way{link}",
        counted(s.inventory.domains, "scale-up domain"),
        counted(d.gpus, "GPU"),
        d.wiring,
        gigabytes(d.bytes_per_s),
    );
    vec![first, second]
}

fn legend(picture: &mut Picture, s: &Survey, y: f64) {
    let what = if s.planes > 1 { "plane" } else { "rail" };
    let mut seen: Vec<(u32, Ink)> = s
        .sketch
        .leaves
        .iter()
        .map(|leaf| {
            (
                if s.planes > 1 { leaf.plane } else { leaf.rail },
                leaf_ink(s, leaf),
            )
        })
        .collect();
    seen.sort_by_key(|(index, _)| *index);
    seen.dedup_by_key(|(index, _)| *index);
    let of_leaves = seen.into_iter().filter(|_| colors(s) > 1);
    let names: Vec<(Ink, String)> = std::iter::once((gpu_ink(), "GPU".to_owned()))
        .chain(of_leaves.map(|(index, ink)| (ink, format!("{what} {index}"))))
        .collect();
    let entries: Vec<(Ink, &str)> = names
        .iter()
        .map(|(ink, name)| (*ink, name.as_str()))
        .collect();
    picture.legend(style::MARGIN, y, &entries);
}
