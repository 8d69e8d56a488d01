//! Curves and points over two axes: scaling, rooflines, Pareto fronts, goodput, loss against cost.

use super::picture::{Anchor, Picture, text_width};
use super::scale::{Axis, Fitted};
use super::style::{self, Ink, size};

const HEIGHT: f64 = 540.0;
/// Room between two labels at the ends of curves.
const LABEL_ROOM: f64 = 16.0;

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// A line with its points marked.
    #[default]
    Line,
    /// A line without marks.
    Curve,
    /// Dashed and grey: what would be if nothing were lost.
    Ideal,
    /// Marks only.
    Points,
}

/// One curve.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Series {
    /// Its label, where it ends.
    pub name: String,
    /// Its points, in the order in which they are joined.
    pub points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub kind: Kind,
    /// Labels beside points, by position; empty ones are left out.
    pub labels: Vec<String>,
    /// Radius of each mark, in pixels; the usual one where it is left out.
    pub radii: Vec<f64>,
    /// Lower and upper bound of each point, drawn as a band.
    pub band: Vec<(f64, f64)>,
    /// Colour; the next of the palette where it is left out.
    pub ink: Option<Ink>,
}

impl Series {
    /// A line with its points marked.
    pub fn line(name: &str, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.to_owned(),
            points,
            ..Self::default()
        }
    }

    /// Drawn another way.
    #[must_use]
    pub fn drawn(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }
}

/// A chart of curves.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Lines {
    /// The finding, as a sentence.
    pub title: String,
    /// What was varied, on what, with what.
    pub subtitle: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The curves.
    pub series: Vec<Series>,
    /// Below the chart: where the figures are from.
    pub note: String,
}

struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Fitted,
    y: Fitted,
}

impl Frame {
    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (
            self.left + self.x.place(x) * (self.right - self.left),
            self.bottom - self.y.place(y) * (self.bottom - self.top),
        )
    }
}

impl Lines {
    /// Draws the chart.
    pub fn picture(&self) -> Picture {
        let mut picture = Picture::new(HEIGHT, &self.title, &self.subtitle);
        let frame = self.frame();
        self.axes(&mut picture, &frame);
        let mut colors = 0..;
        let inks: Vec<Ink> = self
            .series
            .iter()
            .map(|series| match (series.ink, series.kind) {
                (Some(ink), _) => ink,
                (None, Kind::Ideal) => style::PEAK,
                (None, _) => style::series(colors.next().unwrap_or(0)),
            })
            .collect();
        for (series, ink) in self.series.iter().zip(&inks) {
            band(&mut picture, &frame, series, *ink);
        }
        for (series, ink) in self.series.iter().zip(&inks) {
            curve(&mut picture, &frame, series, *ink);
        }
        labels(&mut picture, &frame, &self.series);
        self.names(&mut picture, &frame, &inks);
        picture.words(
            (style::MARGIN, HEIGHT - 18.0),
            &self.note,
            size::SMALL,
            style::FAINT,
            Anchor::Start,
            false,
        );
        picture
    }

    fn frame(&self) -> Frame {
        let values = |pick: fn(&(f64, f64)) -> f64| {
            self.series
                .iter()
                .flat_map(move |series| series.points.iter().map(pick))
        };
        let bands = self
            .series
            .iter()
            .flat_map(|series| series.band.iter().flat_map(|&(low, high)| [low, high]));
        let x = self.x.fit(values(|point| point.0));
        let y = self.y.fit(values(|point| point.1).chain(bands));
        let ticks = y
            .ticks
            .iter()
            .map(|tick| text_width(&self.y.write(*tick), size::SMALL, false));
        let names = self
            .series
            .iter()
            .map(|series| text_width(&series.name, size::BODY, false));
        let left = style::MARGIN + 26.0 + ticks.fold(0.0, f64::max);
        let right = style::WIDTH - style::MARGIN - 12.0 - names.fold(0.0, f64::max).min(260.0);
        Frame {
            left,
            right,
            top: Picture::heading_height(&self.title, &self.subtitle) + 14.0,
            bottom: HEIGHT - 84.0,
            x,
            y,
        }
    }

    fn axes(&self, picture: &mut Picture, frame: &Frame) {
        for tick in &frame.y.ticks {
            let y = frame.bottom - frame.y.place(*tick) * (frame.bottom - frame.top);
            picture.line((frame.left, y), (frame.right, y), style::GRID);
            let words = self.y.write(*tick);
            picture.words(
                (frame.left - 8.0, y),
                &words,
                size::SMALL,
                style::FAINT,
                Anchor::End,
                false,
            );
        }
        let mut free_from = f64::NEG_INFINITY;
        for tick in &frame.x.ticks {
            let x = frame.left + frame.x.place(*tick) * (frame.right - frame.left);
            picture.line((x, frame.bottom), (x, frame.bottom + 5.0), style::PEAK);
            let words = self.x.write(*tick);
            let half = text_width(&words, size::SMALL, false) / 2.0;
            // A label that would touch its neighbour is left out; its tick stays.
            if x - half >= free_from {
                let at = (x, frame.bottom + 16.0);
                picture.words(at, &words, size::SMALL, style::FAINT, Anchor::Middle, false);
                free_from = x + half + 8.0;
            }
        }
        picture.line(
            (frame.left, frame.bottom),
            (frame.right, frame.bottom),
            style::PEAK,
        );
        let middle = (frame.left + frame.right) / 2.0;
        let below = (middle, frame.bottom + 38.0);
        picture.words(
            below,
            &self.x.label,
            size::BODY,
            style::TEXT,
            Anchor::Middle,
            false,
        );
        let beside = (style::MARGIN, (frame.top + frame.bottom) / 2.0);
        picture.upright(beside, &self.y.label, size::BODY, style::TEXT);
    }

    /// Names at the ends of their curves, moved apart where they would overlap.
    fn names(&self, picture: &mut Picture, frame: &Frame, inks: &[Ink]) {
        let mut ends: Vec<(usize, f64)> = self
            .series
            .iter()
            .enumerate()
            .filter_map(|(i, series)| {
                let inside = |(x, y): &&(f64, f64)| frame.x.holds(*x) && frame.y.holds(*y);
                // Marks do not end anywhere; the first of them is the most important.
                let last = match series.kind {
                    Kind::Points => series.points.iter().find(inside)?,
                    _ => series.points.iter().rev().find(inside)?,
                };
                (!series.name.is_empty()).then(|| (i, frame.place(*last).1))
            })
            .collect();
        ends.sort_by(|a, b| a.1.total_cmp(&b.1));
        let heights = apart(
            ends.iter().map(|end| end.1).collect(),
            frame.top,
            frame.bottom,
        );
        for ((i, at), y) in ends.into_iter().zip(heights) {
            let series = &self.series[i];
            let ink = if series.kind == Kind::Ideal {
                style::FAINT
            } else {
                inks[i]
            };
            if (at - y).abs() > 4.0 {
                picture.line((frame.right + 1.0, at), (frame.right + 9.0, y), ink);
            }
            picture.words(
                (frame.right + 12.0, y),
                &series.name,
                size::BODY,
                ink,
                Anchor::Start,
                true,
            );
        }
    }
}

/// Heights in rising order, moved so that neighbours keep their distance, and kept inside.
fn apart(mut heights: Vec<f64>, top: f64, bottom: f64) -> Vec<f64> {
    for i in 1..heights.len() {
        heights[i] = heights[i].max(heights[i - 1] + LABEL_ROOM);
    }
    let over = heights.last().map_or(0.0, |last| last - bottom).max(0.0);
    let mut ceiling = bottom;
    for height in heights.iter_mut().rev() {
        if over > 0.0 {
            *height = height.min(ceiling);
        }
        ceiling = *height - LABEL_ROOM;
        *height = height.max(top - LABEL_ROOM);
    }
    heights
}

fn band(picture: &mut Picture, frame: &Frame, series: &Series, ink: Ink) {
    if series.band.len() != series.points.len() || series.band.len() < 2 {
        return;
    }
    let edge = |pick: fn(&(f64, f64)) -> f64| {
        series
            .points
            .iter()
            .zip(&series.band)
            .map(move |(point, bounds)| frame.place((point.0, pick(bounds))))
    };
    let mut outline: Vec<(f64, f64)> = edge(|bounds| bounds.0).collect();
    let upper: Vec<(f64, f64)> = edge(|bounds| bounds.1).collect();
    outline.extend(upper.into_iter().rev());
    picture.polygon(outline, ink.tint(0.2));
}

fn curve(picture: &mut Picture, frame: &Frame, series: &Series, ink: Ink) {
    let points: Vec<(f64, f64)> = series
        .points
        .iter()
        .filter(|(x, y)| x.is_finite() && y.is_finite())
        .map(|point| frame.place(*point))
        .collect();
    match series.kind {
        Kind::Ideal => picture.dashes(points.clone(), ink, 1.5),
        Kind::Line | Kind::Curve if points.len() > 1 => picture.path(points.clone(), ink, 2.0),
        _ => {}
    }
    if matches!(series.kind, Kind::Line | Kind::Points) {
        for (i, point) in points.iter().enumerate() {
            picture.disc(*point, radius_of(series, i), ink);
        }
    }
}

/// Radius of a mark.
const RADIUS: f64 = 3.5;

/// What a label covers: left, top, right, bottom.
type Covered = (f64, f64, f64, f64);

/// Names points beside them, where a name covers neither another one nor a mark. Those of points
/// that come first have the first choice; a name that finds no room is left out.
fn labels(picture: &mut Picture, frame: &Frame, all: &[Series]) {
    let mut taken: Vec<Covered> = Vec::new();
    for series in all.iter().filter(|series| series.kind != Kind::Curve) {
        for (i, point) in series.points.iter().enumerate() {
            let (at, radius) = (frame.place(*point), radius_of(series, i));
            taken.push((at.0 - radius, at.1 - radius, at.0 + radius, at.1 + radius));
        }
    }
    for series in all {
        let named = series.labels.iter().zip(&series.points).enumerate();
        for (i, (label, point)) in named.filter(|(_, (label, _))| !label.is_empty()) {
            let at = frame.place(*point);
            let (width, half) = (text_width(label, size::SMALL, false), size::SMALL * 0.6);
            let off = radius_of(series, i) + 4.0;
            let places = [
                (at.0 + off, at.1, Anchor::Start),
                (at.0 - off, at.1, Anchor::End),
                (at.0 + 4.0, at.1 - off - half, Anchor::Start),
                (at.0 + 4.0, at.1 + off + half, Anchor::Start),
                (at.0 - 4.0, at.1 - off - half, Anchor::End),
                (at.0 - 4.0, at.1 + off + half, Anchor::End),
            ];
            let covered = |&(x, y, anchor): &(f64, f64, Anchor)| {
                let left = if anchor == Anchor::Start {
                    x
                } else {
                    x - width
                };
                (left, y - half, left + width, y + half)
            };
            let free = |place: &&(f64, f64, Anchor)| {
                let (left, top, right, bottom) = covered(place);
                left >= frame.left
                    && right <= frame.right
                    && top >= frame.top
                    && bottom <= frame.bottom
                    && taken.iter().all(|other| {
                        right < other.0 || left > other.2 || bottom < other.1 || top > other.3
                    })
            };
            if let Some(place) = places.iter().find(free) {
                taken.push(covered(place));
                let (x, y, anchor) = *place;
                picture.words((x, y), label, size::SMALL, style::FAINT, anchor, false);
            }
        }
    }
}

fn radius_of(series: &Series, point: usize) -> f64 {
    series.radii.get(point).copied().unwrap_or(RADIUS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_distance_and_stay_inside() {
        let heights = apart(vec![10.0, 11.0, 12.0, 99.0, 100.0], 0.0, 100.0);
        for pair in heights.windows(2) {
            assert!(pair[1] - pair[0] >= LABEL_ROOM - 1e-9, "{heights:?}");
        }
        assert!(heights.iter().all(|height| *height <= 100.0), "{heights:?}");
    }

    #[test]
    fn a_chart_names_its_finding_its_axes_and_its_curves() {
        let chart = Lines {
            title: "Four times the GPUs, three times the tokens".to_owned(),
            x: Axis::log("GPUs"),
            y: Axis::linear("tokens/s"),
            series: vec![
                Series::line("GB200 NVL72", vec![(2048.0, 10.0), (8192.0, 30.0)]),
                Series::line("ideal", vec![(2048.0, 10.0), (8192.0, 40.0)]).drawn(Kind::Ideal),
            ],
            ..Lines::default()
        };
        let svg = chart.picture().svg();
        for words in [
            "Four times the GPUs, three times the tokens",
            "GPUs",
            "tokens/s",
            "GB200 NVL72",
            "ideal",
        ] {
            assert!(svg.contains(words), "{words}");
        }
    }

    #[test]
    fn nothing_to_draw_is_an_empty_chart() {
        assert!(Lines::default().picture().svg().contains("</svg>"));
    }
}
