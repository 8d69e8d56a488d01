//! Colours and type, chosen once. Light on white, so that it prints.

/// A colour, 8 bits a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ink(pub u8, pub u8, pub u8);

impl Ink {
    /// Between this colour and white: 0 is white, 1 is the colour.
    #[must_use]
    pub fn tint(self, strength: f64) -> Self {
        let mix = |channel: u8| {
            (255.0 - (255.0 - f64::from(channel)) * strength.clamp(0.0, 1.0)).round() as u8
        };
        Self(mix(self.0), mix(self.1), mix(self.2))
    }
}

/// Titles, names and figures.
pub const TEXT: Ink = Ink(0x1f, 0x23, 0x28);
/// What explains: units, notes, legends.
pub const FAINT: Ink = Ink(0x5b, 0x63, 0x70);
/// Lines that guide the eye.
pub const GRID: Ink = Ink(0xe3, 0xe6, 0xea);
/// Frames, and bars that are references.
pub const PEAK: Ink = Ink(0x9c, 0xa3, 0xaf);
/// Useful math.
pub const USEFUL: Ink = Ink(0x00, 0x9e, 0x73);
/// Math below peak.
pub const MATH: Ink = Ink(0xe6, 0x9f, 0x00);
/// Waiting for communication.
pub const WAIT: Ink = Ink(0xb5, 0x47, 0x9d);
/// Waiting for each other.
pub const ORDER: Ink = Ink(0x00, 0x72, 0xb2);
/// Time that a run loses besides its steps: failures and checkpoints.
pub const LOST: Ink = Ink(0xd5, 0x5e, 0x00);

/// Colours of series, in the order in which they are taken: those of M. Okabe and K. Ito ("Color
/// universal design", 2008), which stay apart under every common colour vision, without their
/// yellow, which does not print.
pub const SERIES: [Ink; 7] = [
    Ink(0x00, 0x72, 0xb2),
    Ink(0xd5, 0x5e, 0x00),
    Ink(0x00, 0x9e, 0x73),
    Ink(0xb5, 0x47, 0x9d),
    Ink(0xe6, 0x9f, 0x00),
    Ink(0x56, 0xb4, 0xe9),
    Ink(0x6b, 0x5b, 0x4b),
];

/// Colour of the `index`th series.
pub fn series(index: usize) -> Ink {
    SERIES[index % SERIES.len()]
}

/// Shade of a share of the darkest value that a picture shows: one hue, so that it stays readable in
/// grey and for every colour vision.
pub fn heat(share: f64) -> Ink {
    LOST.tint(0.06 + 0.94 * share.clamp(0.0, 1.0))
}

/// Colour of words on a shade.
pub fn on_heat(share: f64) -> Ink {
    if share > 0.55 {
        Ink(255, 255, 255)
    } else {
        TEXT
    }
}

/// Heights of type, in pixels of the picture.
pub mod size {
    /// The finding.
    pub const TITLE: f64 = 20.0;
    /// What it is about.
    pub const SUBTITLE: f64 = 13.0;
    /// Names and figures.
    pub const BODY: f64 = 13.0;
    /// Ticks, units and notes.
    pub const SMALL: f64 = 11.5;
}

/// Width of a picture, and the empty space around what is drawn.
pub const WIDTH: f64 = 960.0;
/// See [`WIDTH`].
pub const MARGIN: f64 = 32.0;
