//! Horizontal bars: memory by category, elasticities, shares of a whole.

use super::picture::{Anchor, Picture, text_width};
use super::scale::Axis;
use super::style::{self, Ink, size};

const ROW: f64 = 26.0;
const BAR: f64 = 18.0;

/// One piece of a bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its length, in the axis's unit; negative ones reach to the left.
    pub value: f64,
    /// Its colour.
    pub ink: Ink,
}

/// One bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What it stands for, left of it.
    pub name: String,
    /// Its pieces, one after another.
    pub parts: Vec<Part>,
    /// Its figure, right of it.
    pub figure: String,
}

impl Bar {
    /// A bar of one piece.
    pub fn new(name: &str, value: f64, ink: Ink, figure: &str) -> Self {
        Self {
            name: name.to_owned(),
            parts: vec![Part { value, ink }],
            figure: figure.to_owned(),
        }
    }
}

/// A chart of bars, from above to below.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bars {
    /// The finding, as a sentence.
    pub title: String,
    /// What was measured, on what.
    pub subtitle: String,
    /// The axis of lengths.
    pub axis: Axis,
    /// The bars.
    pub bars: Vec<Bar>,
    /// A vertical line with its name: a capacity, a limit.
    pub limit: Option<(f64, String)>,
    /// What the colours mean.
    pub legend: Vec<(Ink, String)>,
    /// Below the chart: where the figures are from.
    pub note: String,
}

impl Bars {
    /// Draws the chart.
    pub fn picture(&self) -> Picture {
        let top = Picture::heading_height(&self.title, &self.subtitle) + 34.0;
        let bottom = top + ROW * self.bars.len() as f64;
        let legend = if self.legend.is_empty() { 0.0 } else { 28.0 };
        let mut picture = Picture::new(bottom + 56.0 + legend, &self.title, &self.subtitle);
        let widest = |pick: fn(&Bar) -> &str| {
            let widths = self
                .bars
                .iter()
                .map(|bar| text_width(pick(bar), size::BODY, false));
            widths.fold(0.0, f64::max)
        };
        let left = style::MARGIN + widest(|bar| &bar.name).min(320.0) + 14.0;
        let right = style::WIDTH - style::MARGIN - widest(|bar| &bar.figure) - 14.0;
        let reach = |bar: &Bar| {
            let sum = |keep: fn(&f64) -> bool| {
                bar.parts
                    .iter()
                    .map(|part| part.value)
                    .filter(keep)
                    .sum::<f64>()
            };
            [sum(|value| *value < 0.0), sum(|value| *value > 0.0)]
        };
        let limit = self.limit.iter().map(|(value, _)| *value);
        let axis = self
            .axis
            .fit(self.bars.iter().flat_map(reach).chain(limit).chain([0.0]));
        let x = |value: f64| left + axis.place(value) * (right - left);
        for tick in &axis.ticks {
            picture.line((x(*tick), top - 8.0), (x(*tick), bottom), style::GRID);
            let at = (x(*tick), top - 16.0);
            picture.words(
                at,
                &self.axis.write(*tick),
                size::SMALL,
                style::FAINT,
                Anchor::Middle,
                false,
            );
        }
        for (i, bar) in self.bars.iter().enumerate() {
            let y = top + ROW * i as f64;
            let middle = y + BAR / 2.0;
            picture.words(
                (left - 12.0, middle),
                &bar.name,
                size::BODY,
                style::TEXT,
                Anchor::End,
                false,
            );
            let (mut below, mut above) = (0.0, 0.0);
            for part in &bar.parts {
                let from = if part.value < 0.0 {
                    &mut below
                } else {
                    &mut above
                };
                let (a, b) = (x(*from), x(*from + part.value));
                // What is not zero is at least a visible hairline.
                let width = if part.value == 0.0 {
                    0.0
                } else {
                    (a - b).abs().max(1.0)
                };
                picture.rectangle(a.min(b), y, width, BAR, part.ink);
                *from += part.value;
            }
            let at = (style::WIDTH - style::MARGIN, middle);
            picture.words(at, &bar.figure, size::BODY, style::TEXT, Anchor::End, false);
        }
        picture.line((x(0.0), top - 8.0), (x(0.0), bottom), style::PEAK);
        if let Some((value, name)) = &self.limit {
            picture.dashes(
                vec![(x(*value), top - 8.0), (x(*value), bottom + 4.0)],
                style::LOST,
                1.5,
            );
            picture.words(
                (x(*value), bottom + 14.0),
                name,
                size::SMALL,
                style::LOST,
                Anchor::Middle,
                true,
            );
        }
        let middle = (left + right) / 2.0;
        // A limit has its name under the chart; the axis's then stands at the left.
        let (at, anchor) = match self.limit {
            None => (middle, Anchor::Middle),
            Some(_) => (left, Anchor::Start),
        };
        picture.words(
            (at, bottom + 14.0),
            &self.axis.label,
            size::SMALL,
            style::FAINT,
            anchor,
            false,
        );
        let entries: Vec<(Ink, &str)> = self
            .legend
            .iter()
            .map(|(ink, name)| (*ink, name.as_str()))
            .collect();
        picture.legend(left, bottom + 38.0, &entries);
        let at = (style::MARGIN, bottom + 38.0 + legend);
        picture.words(
            at,
            &self.note,
            size::SMALL,
            style::FAINT,
            Anchor::Start,
            false,
        );
        picture
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_carry_their_names_and_figures() {
        let chart = Bars {
            title: "The tensor cores come first".to_owned(),
            axis: Axis::linear("throughput"),
            bars: vec![
                Bar::new("tensor FLOP/s", 0.42, style::USEFUL, "+0.42 %"),
                Bar::new("latency", -0.05, style::WAIT, "-0.05 %"),
            ],
            limit: Some((0.5, "80 GB".to_owned())),
            ..Bars::default()
        };
        let svg = chart.picture().svg();
        for words in ["tensor FLOP/s", "+0.42 %", "-0.05 %", "80 GB"] {
            assert!(svg.contains(words), "{words}");
        }
    }
}
