//! Who does what when: pipeline stages or streams over time.

use super::picture::{Anchor, Picture, text_width};
use super::scale::Axis;
use super::style::{self, Ink, size};

/// Height of a row where there are few, and where there are very many.
const ROWS: (f64, f64) = (30.0, 9.0);
/// Height that many rows share.
const ROOM: f64 = 720.0;

/// One piece of work.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Row, counted from above.
    pub row: usize,
    /// When it begins, in the axis's unit.
    pub start: f64,
    /// When it ends.
    pub end: f64,
    /// Its colour.
    pub ink: Ink,
    /// Inside it, where there is room.
    pub label: String,
}

/// A chart of work over time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Gantt {
    /// The finding, as a sentence.
    pub title: String,
    /// What is shown.
    pub subtitle: String,
    /// The axis of time.
    pub axis: Axis,
    /// Names of the rows.
    pub rows: Vec<String>,
    /// The work.
    pub spans: Vec<Span>,
    /// What the colours mean.
    pub legend: Vec<(Ink, String)>,
}

impl Gantt {
    /// Draws the chart.
    pub fn picture(&self) -> Picture {
        let top = Picture::heading_height(&self.title, &self.subtitle) + 16.0;
        let row = (ROOM / self.rows.len().max(1) as f64).clamp(ROWS.1, ROWS.0);
        let bar = 0.8 * row;
        let type_size = size::BODY.min(row - 1.0);
        let bottom = top + row * self.rows.len() as f64;
        let mut picture = Picture::new(bottom + 84.0, &self.title, &self.subtitle);
        let names = self
            .rows
            .iter()
            .map(|name| text_width(name, type_size, false));
        let left = style::MARGIN + names.fold(0.0, f64::max) + 14.0;
        let right = style::WIDTH - style::MARGIN;
        let last = self.spans.iter().map(|span| span.end).fold(0.0, f64::max);
        let mut axis = self.axis.clone();
        axis.range = axis.range.or(Some((0.0, last)));
        let fitted = axis.fit(std::iter::empty());
        let x = |time: f64| left + fitted.place(time) * (right - left);
        for (i, name) in self.rows.iter().enumerate() {
            let y = top + row * i as f64;
            picture.rectangle(left, y, right - left, bar, style::GRID.tint(0.6));
            picture.words(
                (left - 12.0, y + bar / 2.0),
                name,
                type_size,
                style::TEXT,
                Anchor::End,
                false,
            );
        }
        for span in &self.spans {
            let (a, b) = (x(span.start), x(span.end));
            let y = top + row * span.row as f64;
            // A hairline of the page between neighbours, where there is room for it.
            let width = if b - a > 3.0 { b - a - 0.6 } else { b - a };
            picture.rectangle(a, y, width.max(0.3), bar, span.ink);
            if bar > size::SMALL && text_width(&span.label, size::SMALL, true) + 4.0 < b - a {
                let at = ((a + b) / 2.0, y + bar / 2.0);
                picture.words(
                    at,
                    &span.label,
                    size::SMALL,
                    Ink(255, 255, 255),
                    Anchor::Middle,
                    true,
                );
            }
        }
        for tick in &fitted.ticks {
            picture.line((x(*tick), bottom), (x(*tick), bottom + 5.0), style::PEAK);
            let at = (x(*tick), bottom + 14.0);
            picture.words(
                at,
                &axis.write(*tick),
                size::SMALL,
                style::FAINT,
                Anchor::Middle,
                false,
            );
        }
        let at = ((left + right) / 2.0, bottom + 34.0);
        picture.words(
            at,
            &axis.label,
            size::SMALL,
            style::FAINT,
            Anchor::Middle,
            false,
        );
        let entries: Vec<(Ink, &str)> = self
            .legend
            .iter()
            .map(|(ink, name)| (*ink, name.as_str()))
            .collect();
        picture.legend(left, bottom + 60.0, &entries);
        picture
    }
}
