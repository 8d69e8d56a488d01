//! A canvas of marks, and what hands it to plotters.

use super::style::{self, Ink, size};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, FontTransform, register_font};
use std::sync::Once;

/// The bundled typeface for layout and bitmaps, and what a viewer of an SVG may take in its place.
const FAMILY: &str = "Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif";
static REGULAR: &[u8] = include_bytes!("font/inter-regular.ttf");
static SEMIBOLD: &[u8] = include_bytes!("font/inter-semibold.ttf");

/// Backends of plotters count whole pixels: an SVG is drawn this many times larger and scaled back.
const SVG_SCALE: f64 = 8.0;
/// A bitmap has two pixels where the picture has one, as screens do.
const PNG_SCALE: f64 = 2.0;
/// Plotters centres words in bitmaps by their box, descenders included: so far too high, in heights.
const BITMAP_DROP: f64 = 0.1;

/// Which point of a text its place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The left end.
    Start,
    /// The middle.
    Middle,
    /// The right end.
    End,
}

#[derive(Debug, Clone, PartialEq)]
enum Mark {
    /// Filled.
    Polygon(Vec<(f64, f64)>, Ink),
    /// A line through points, with a width; dashed where lengths of dash and gap are given.
    Path(Vec<(f64, f64)>, Ink, f64, Option<(f64, f64)>),
    /// A filled disc.
    Disc((f64, f64), f64, Ink),
    /// Words; vertically centred at their place.
    Text {
        at: (f64, f64),
        words: String,
        size: f64,
        ink: Ink,
        anchor: Anchor,
        bold: bool,
        upright: bool,
    },
}

/// A drawing: marks on a white page, in pixels from the upper left corner.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    width: f64,
    height: f64,
    title: String,
    marks: Vec<Mark>,
}

impl Picture {
    /// An empty page with its title and subtitle. Long ones are wrapped.
    pub fn new(height: f64, title: &str, subtitle: &str) -> Self {
        let mut picture = Self::blank(style::WIDTH, height, title);
        let room = style::WIDTH - 2.0 * style::MARGIN;
        let mut y = 36.0;
        for line in wrapped(title, size::TITLE, true, room) {
            picture.words(
                (style::MARGIN, y),
                &line,
                size::TITLE,
                style::TEXT,
                Anchor::Start,
                true,
            );
            y += size::TITLE * 1.25;
        }
        y += 1.0;
        for line in wrapped(subtitle, size::SUBTITLE, false, room) {
            picture.words(
                (style::MARGIN, y),
                &line,
                size::SUBTITLE,
                style::FAINT,
                Anchor::Start,
                false,
            );
            y += size::SUBTITLE * 1.4;
        }
        picture
    }

    /// An empty page. The title is for those who cannot see it, and not drawn.
    pub fn blank(width: f64, height: f64, title: &str) -> Self {
        Self {
            width,
            height,
            title: title.to_owned(),
            marks: Vec::new(),
        }
    }

    /// Height that a title and a subtitle take at the top of a picture.
    pub fn heading_height(title: &str, subtitle: &str) -> f64 {
        let room = style::WIDTH - 2.0 * style::MARGIN;
        let titles = wrapped(title, size::TITLE, true, room).len() as f64;
        let subtitles = wrapped(subtitle, size::SUBTITLE, false, room).len() as f64;
        27.0 + titles * size::TITLE * 1.25 + subtitles * size::SUBTITLE * 1.4
    }

    /// Puts the marks of another picture so far below the upper edge of this one.
    pub fn place(&mut self, other: &Self, y: f64) {
        let down = |(x, old): (f64, f64)| (x, old + y);
        let all = |points: &[(f64, f64)]| points.iter().copied().map(down).collect();
        self.marks.extend(other.marks.iter().map(|mark| match mark {
            Mark::Polygon(points, ink) => Mark::Polygon(all(points), *ink),
            Mark::Path(points, ink, width, dash) => Mark::Path(all(points), *ink, *width, *dash),
            Mark::Disc(at, radius, ink) => Mark::Disc(down(*at), *radius, *ink),
            Mark::Text { at, .. } => {
                let mut moved = mark.clone();
                if let Mark::Text { at: place, .. } = &mut moved {
                    *place = down(*at);
                }
                moved
            }
        }));
    }

    /// Width in pixels.
    pub fn width(&self) -> f64 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> f64 {
        self.height
    }

    /// A filled rectangle.
    pub fn rectangle(&mut self, x: f64, y: f64, width: f64, height: f64, ink: Ink) {
        let (right, bottom) = (x + width, y + height);
        self.polygon(vec![(x, y), (right, y), (right, bottom), (x, bottom)], ink);
    }

    /// A rectangle's outline.
    pub fn frame(&mut self, x: f64, y: f64, width: f64, height: f64, ink: Ink, stroke: f64) {
        let (right, bottom) = (x + width, y + height);
        let corners = vec![(x, y), (right, y), (right, bottom), (x, bottom), (x, y)];
        self.path(corners, ink, stroke);
    }

    /// A filled polygon.
    pub fn polygon(&mut self, points: Vec<(f64, f64)>, ink: Ink) {
        self.marks.push(Mark::Polygon(points, ink));
    }

    /// A straight line, one pixel wide.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), ink: Ink) {
        self.path(vec![from, to], ink, 1.0);
    }

    /// A line through points.
    pub fn path(&mut self, points: Vec<(f64, f64)>, ink: Ink, width: f64) {
        self.marks.push(Mark::Path(points, ink, width, None));
    }

    /// A dashed line through points.
    pub fn dashes(&mut self, points: Vec<(f64, f64)>, ink: Ink, width: f64) {
        self.marks
            .push(Mark::Path(points, ink, width, Some((6.0, 4.0))));
    }

    /// A line with a head at its end.
    pub fn arrow(&mut self, from: (f64, f64), to: (f64, f64), ink: Ink) {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length = dx.hypot(dy).max(1e-9);
        let (ux, uy) = (dx / length, dy / length);
        let base = (to.0 - 7.0 * ux, to.1 - 7.0 * uy);
        self.line(from, base, ink);
        self.polygon(
            vec![
                to,
                (base.0 - 3.0 * uy, base.1 + 3.0 * ux),
                (base.0 + 3.0 * uy, base.1 - 3.0 * ux),
            ],
            ink,
        );
    }

    /// A filled disc.
    pub fn disc(&mut self, at: (f64, f64), radius: f64, ink: Ink) {
        self.marks.push(Mark::Disc(at, radius, ink));
    }

    /// Words, vertically centred at `at`.
    pub fn words(
        &mut self,
        at: (f64, f64),
        words: &str,
        size: f64,
        ink: Ink,
        anchor: Anchor,
        bold: bool,
    ) {
        self.marks.push(Mark::Text {
            at,
            words: words.to_owned(),
            size,
            ink,
            anchor,
            bold,
            upright: false,
        });
    }

    /// Words that run upwards, their middle at `at`.
    pub fn upright(&mut self, at: (f64, f64), words: &str, size: f64, ink: Ink) {
        self.marks.push(Mark::Text {
            at,
            words: words.to_owned(),
            size,
            ink,
            anchor: Anchor::Middle,
            bold: false,
            upright: true,
        });
    }

    /// Squares of colour with their names, left to right from `x`, on as many lines as they take.
    pub fn legend(&mut self, x: f64, y: f64, entries: &[(Ink, &str)]) {
        let right = self.width - style::MARGIN;
        let (mut at, mut line) = (x, y);
        for (ink, name) in entries {
            let width = 18.0 + text_width(name, size::SMALL, false);
            if at > x && at + width > right {
                at = x;
                line += 20.0;
            }
            self.rectangle(at, line - 6.0, 12.0, 12.0, *ink);
            self.words(
                (at + 18.0, line),
                name,
                size::SMALL,
                style::FAINT,
                Anchor::Start,
                false,
            );
            at += width + 24.0;
        }
    }

    /// The picture as one SVG document.
    pub fn svg(&self) -> String {
        let mut text = String::new();
        let (width, height) = self.pixels(SVG_SCALE);
        {
            let area = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
            self.draw(&area, SVG_SCALE, 0.0);
        }
        // Plotters gives the document the size it was drawn at.
        let drawn = format!("width=\"{width}\" height=\"{height}\"");
        let shown = format!(
            "width=\"{}\" height=\"{}\" role=\"img\"",
            self.width, self.height
        );
        let mut text = self.with_widths(&text.replacen(&drawn, &shown, 1));
        if let Some(end) = text.find('>') {
            let title = self
                .title
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;");
            text.insert_str(end + 1, &format!("\n<title>{title}</title>"));
        }
        text.push('\n');
        text
    }

    /// An SVG of this picture whose words are as wide as they were laid out, in whichever typeface of
    /// [`FAMILY`] its viewer has: DejaVu Sans is a fifth wider than Inter, and would leave the page.
    fn with_widths(&self, svg: &str) -> String {
        const TAG: &str = "<text ";
        let mut text = String::with_capacity(svg.len() * 11 / 10);
        let mut rest = svg;
        for mark in &self.marks {
            let Mark::Text {
                words, size, bold, ..
            } = mark
            else {
                continue;
            };
            let width = text_width(words, *size, *bold) * SVG_SCALE;
            let Some(tag) = rest.find(TAG) else {
                break;
            };
            let (before, after) = rest.split_at(tag + TAG.len());
            text += before;
            if width > 0.0 {
                text += &format!("textLength=\"{width:.0}\" lengthAdjust=\"spacingAndGlyphs\" ");
            }
            rest = after;
        }
        text + rest
    }

    /// The picture as a PNG file, two pixels for one.
    pub fn png(&self) -> Vec<u8> {
        let (width, height) = self.pixels(PNG_SCALE);
        let mut buffer = vec![255_u8; width as usize * height as usize * 3];
        {
            let area = BitMapBackend::with_buffer(&mut buffer, (width, height)).into_drawing_area();
            self.draw(&area, PNG_SCALE, BITMAP_DROP);
        }
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let written = encoder
            .write_header()
            .and_then(|mut writer| writer.write_image_data(&buffer));
        written.expect("a buffer of the right size is written to memory");
        file
    }

    fn pixels(&self, scale: f64) -> (u32, u32) {
        (
            (self.width * scale).round() as u32,
            (self.height * scale).round() as u32,
        )
    }

    fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, plotters::coord::Shift>,
        scale: f64,
        drop: f64,
    ) {
        load_fonts();
        // Drawing to memory with a typeface that is there cannot fail.
        area.fill(&WHITE).expect("a page is filled");
        for mark in &self.marks {
            draw(area, mark, scale, drop);
        }
        area.present().expect("a page in memory is finished");
    }
}

fn draw<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    mark: &Mark,
    scale: f64,
    drop: f64,
) {
    let place = |&(x, y): &(f64, f64)| ((x * scale).round() as i32, (y * scale).round() as i32);
    let places = |points: &[(f64, f64)]| points.iter().map(place).collect::<Vec<_>>();
    let stroke = |width: f64| ((width * scale).round() as u32).max(1);
    let drawn = match mark {
        Mark::Polygon(points, ink) => {
            let [a, b, c, d] = points.as_slice() else {
                return area
                    .draw(&Polygon::new(places(points), color(*ink).filled()))
                    .expect("a polygon is drawn");
            };
            if a.1 == b.1 && b.0 == c.0 && c.1 == d.1 && d.0 == a.0 {
                let ((left, top), (right, bottom)) = (place(a), place(c));
                // The far edge belongs to the next pixel.
                let corner = ((right - 1).max(left), (bottom - 1).max(top));
                area.draw(&Rectangle::new([(left, top), corner], color(*ink).filled()))
            } else {
                area.draw(&Polygon::new(places(points), color(*ink).filled()))
            }
        }
        Mark::Path(points, ink, width, None) => area.draw(&PathElement::new(
            places(points),
            color(*ink).stroke_width(stroke(*width)),
        )),
        Mark::Path(points, ink, width, Some(dash)) => {
            for piece in dashed(points, *dash) {
                area.draw(&PathElement::new(
                    places(&piece),
                    color(*ink).stroke_width(stroke(*width)),
                ))
                .expect("a dash is drawn");
            }
            Ok(())
        }
        Mark::Disc(at, radius, ink) => area.draw(&Circle::new(
            place(at),
            (radius * scale).round() as i32,
            color(*ink).filled(),
        )),
        Mark::Text {
            at,
            words,
            size,
            ink,
            anchor,
            bold,
            upright,
        } => {
            let face = if *bold {
                FontStyle::Bold
            } else {
                FontStyle::Normal
            };
            let mut font = FontDesc::new(FontFamily::Name(FAMILY), size * scale, face);
            if *upright {
                font = font.transform(FontTransform::Rotate270);
            }
            let horizontal = match anchor {
                Anchor::Start => HPos::Left,
                Anchor::Middle => HPos::Center,
                Anchor::End => HPos::Right,
            };
            let shade = color(*ink);
            let look = TextStyle::from(font)
                .color(&shade)
                .pos(Pos::new(horizontal, VPos::Center));
            let at = (at.0, at.1 + size * drop);
            area.draw(&Text::new(words.as_str(), place(&at), look))
        }
    };
    drawn.expect("a mark is drawn into memory");
}

fn color(Ink(red, green, blue): Ink) -> RGBColor {
    RGBColor(red, green, blue)
}

/// A polyline cut into dashes.
fn dashed(points: &[(f64, f64)], (dash, gap): (f64, f64)) -> Vec<Vec<(f64, f64)>> {
    let mut pieces = Vec::new();
    let mut travelled = 0.0;
    for pair in points.windows(2) {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        let length = (x1 - x0).hypot(y1 - y0);
        let at = |along: f64| {
            let part = (along / length).clamp(0.0, 1.0);
            (x0 + part * (x1 - x0), y0 + part * (y1 - y0))
        };
        // Dashes begin at multiples of one period along the whole line.
        let mut start = -(travelled % (dash + gap));
        while start < length {
            let (from, to) = (start.max(0.0), (start + dash).min(length));
            if to > from {
                pieces.push(vec![at(from), at(to)]);
            }
            start += dash + gap;
        }
        travelled += length;
    }
    pieces
}

/// Width of a text in pixels, as the bundled typeface sets it.
pub(super) fn text_width(words: &str, size: f64, bold: bool) -> f64 {
    load_fonts();
    let face = if bold {
        FontStyle::Bold
    } else {
        FontStyle::Normal
    };
    // Ten times as large, since the answer is in whole pixels.
    let font = FontDesc::new(FontFamily::Name(FAMILY), size * 10.0, face);
    font.box_size(words)
        .map_or(0.0, |(width, _)| f64::from(width) / 10.0)
}

/// `words` on lines of at most `room` pixels.
fn wrapped(words: &str, size: f64, bold: bool, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words.split_whitespace() {
        match lines.last_mut() {
            Some(line) if text_width(&format!("{line} {word}"), size, bold) <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn load_fonts() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        let loaded = register_font(FAMILY, FontStyle::Normal, REGULAR)
            .and_then(|()| register_font(FAMILY, FontStyle::Bold, SEMIBOLD));
        assert!(loaded.is_ok(), "the bundled typefaces are well-formed");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_an_svg_of_its_size_and_a_png_twice_as_large() {
        let mut picture = Picture::new(200.0, "More <racks> & less", "of everything");
        picture.rectangle(10.0, 100.0, 50.0, 20.0, style::USEFUL);
        let svg = picture.svg();
        assert!(
            svg.starts_with("<svg width=\"960\" height=\"200\""),
            "{}",
            &svg[..80]
        );
        assert!(svg.contains("<title>More &lt;racks&gt; &amp; less</title>"));
        let png = picture.png();
        assert_eq!(&png[1..4], b"PNG");
        assert_eq!(u32::from_be_bytes(png[16..20].try_into().unwrap()), 1920);
    }

    #[test]
    fn words_of_an_svg_are_as_wide_as_they_were_laid_out() {
        let mut picture = Picture::new(200.0, "A title", "of <text and more");
        picture.words((9.0, 90.0), "", 11.0, style::TEXT, Anchor::Start, false);
        picture.words((9.0, 99.0), "last", 11.0, style::TEXT, Anchor::End, true);
        let svg = picture.svg();
        // What each tag says of its width, and its words.
        let given: Vec<(f64, &str)> = svg
            .split("<text ")
            .skip(1)
            .map(|tag| {
                let width = tag.strip_prefix("textLength=\"");
                let width =
                    width.map_or(0.0, |rest| rest[..rest.find('"').unwrap()].parse().unwrap());
                let (_, words) = tag.split_once('>').unwrap();
                (width, words.split("</text>").next().unwrap().trim())
            })
            .collect();
        let wide = |words: &str, size: f64, bold: bool| {
            (text_width(words, size, bold) * SVG_SCALE).round()
        };
        let expected = [
            (wide("A title", size::TITLE, true), "A title"),
            (
                wide("of <text and more", size::SUBTITLE, false),
                "of &lt;text and more",
            ),
            (0.0, ""),
            (wide("last", 11.0, true), "last"),
        ];
        assert_eq!(given, expected, "{svg}");
    }

    #[test]
    fn dashes_cover_their_share_of_a_line() {
        let pieces = dashed(&[(0.0, 0.0), (60.0, 0.0), (60.0, 40.0)], (6.0, 4.0));
        let drawn: f64 = pieces
            .iter()
            .map(|piece| (piece[1].0 - piece[0].0).hypot(piece[1].1 - piece[0].1))
            .sum();
        assert!((drawn - 60.0).abs() < 1e-9, "{drawn}");
    }

    #[test]
    fn wider_words_are_wider() {
        assert!(text_width("mmmm", 13.0, false) > text_width("iiii", 13.0, false));
        assert_eq!(wrapped("one two three", 13.0, false, 60.0).len(), 2);
    }
}
