//! Values as shades in a grid: links, racks, ranks.

use super::picture::{Anchor, Picture, text_width};
use super::style::{self, size};

/// A grid of values between 0 and 1.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Heat {
    /// The finding, as a sentence.
    pub title: String,
    /// What is shown.
    pub subtitle: String,
    /// Names of the rows.
    pub rows: Vec<String>,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Values by row, then column; `None` where there is nothing.
    pub values: Vec<Vec<Option<f64>>>,
    /// What a value of 0 and of 1 mean.
    pub ends: (String, String),
    /// Below the chart.
    pub note: String,
}

impl Heat {
    /// Draws the grid.
    pub fn picture(&self) -> Picture {
        let names = self
            .rows
            .iter()
            .map(|name| text_width(name, size::BODY, false));
        let left = style::MARGIN + names.fold(0.0, f64::max) + 14.0;
        let cell =
            ((style::WIDTH - style::MARGIN - left) / self.columns.len().max(1) as f64).min(96.0);
        let row = 26.0;
        let top = Picture::heading_height(&self.title, &self.subtitle) + 34.0;
        let bottom = top + row * self.rows.len() as f64;
        let mut picture = Picture::new(bottom + 78.0, &self.title, &self.subtitle);
        for (i, name) in self.columns.iter().enumerate() {
            if text_width(name, size::SMALL, false) < cell * 1.2 {
                let at = (left + cell * (i as f64 + 0.5), top - 12.0);
                picture.words(at, name, size::SMALL, style::FAINT, Anchor::Middle, false);
            }
        }
        for (i, name) in self.rows.iter().enumerate() {
            let y = top + row * i as f64;
            picture.words(
                (left - 12.0, y + row / 2.0),
                name,
                size::BODY,
                style::TEXT,
                Anchor::End,
                false,
            );
            for (j, value) in self.values.get(i).into_iter().flatten().enumerate() {
                let x = left + cell * j as f64;
                let Some(value) = value else { continue };
                picture.rectangle(x, y, cell - 1.0, row - 1.0, style::heat(*value));
                let words = format!("{} %", crate::format::number(value * 100.0, 0));
                if text_width(&words, size::SMALL, false) + 4.0 < cell {
                    let ink = style::on_heat(*value);
                    let at = (x + cell / 2.0, y + row / 2.0);
                    picture.words(at, &words, size::SMALL, ink, Anchor::Middle, false);
                }
            }
        }
        let (low, high) = (style::heat(0.0), style::heat(1.0));
        picture.legend(
            left,
            bottom + 24.0,
            &[(low, self.ends.0.as_str()), (high, self.ends.1.as_str())],
        );
        let at = (style::MARGIN, bottom + 54.0);
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
