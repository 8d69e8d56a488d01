//! Colours and widths of the terminal text.

/// How text is drawn. The caller knows the terminal; this crate does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// ANSI colours.
    pub color: bool,
    /// Columns to fill; less than 80 is taken as 80.
    pub width: usize,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            color: false,
            width: 92,
        }
    }
}

/// What a piece of text is; each has one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ink {
    /// Section titles and the figures that matter most.
    Strong,
    /// Units, explanations, what can be skipped.
    Faint,
    /// What the cluster is for.
    Useful,
    /// Losses of the math itself.
    Math,
    /// Waiting for communication.
    Wait,
    /// Bubbles, imbalance, stragglers: waiting for each other.
    Order,
    /// A warning.
    Alarm,
}

impl Style {
    /// `text` in `ink`.
    pub(crate) fn paint(&self, ink: Ink, text: &str) -> String {
        if !self.color || text.is_empty() {
            return text.to_owned();
        }
        let code = match ink {
            Ink::Strong => "1",
            Ink::Faint => "2",
            Ink::Useful => "32",
            Ink::Math => "33",
            Ink::Wait => "35",
            Ink::Order => "34",
            Ink::Alarm => "31",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}
