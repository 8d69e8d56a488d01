//! The one grammar of quantities: a decimal number, an optional space, a unit.

use std::fmt;

/// Why a text is not a quantity. Displays as a sentence a user can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParseQuantityError {
    /// A number without a unit: `400` where a bandwidth is wanted.
    MissingUnit {
        /// What was wanted ("bandwidth").
        kind: &'static str,
        /// The number as typed.
        number: String,
        /// Units that would be right.
        units: &'static [&'static str],
    },
    /// A unit that this quantity does not have.
    UnknownUnit {
        /// What was wanted.
        kind: &'static str,
        /// The unit as typed.
        unit: String,
        /// Units that would be right.
        units: &'static [&'static str],
    },
    /// The text does not begin with a decimal number.
    NotANumber {
        /// What was wanted.
        kind: &'static str,
        /// The whole text.
        text: String,
        /// An example that would be right.
        example: &'static str,
    },
    /// Negative, not finite, or beyond what the base unit can hold.
    OutOfRange {
        /// What was wanted.
        kind: &'static str,
        /// The whole text.
        text: String,
    },
}

impl fmt::Display for ParseQuantityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingUnit {
                kind,
                number,
                units,
            } => {
                write!(f, "missing unit of {kind}: write ")?;
                for (i, unit) in units.iter().take(3).enumerate() {
                    let glue = ["", " or "][usize::from(i > 0)];
                    write!(f, "{glue}\"{number} {unit}\"")?;
                }
                Ok(())
            }
            Self::UnknownUnit { kind, unit, units } => {
                write!(
                    f,
                    "unknown unit of {kind} \"{unit}\"; known: {}",
                    units.join(", ")
                )
            }
            Self::NotANumber {
                kind,
                text,
                example,
            } => {
                write!(f, "\"{text}\" is not a {kind}; an example is \"{example}\"")
            }
            Self::OutOfRange { kind, text } => {
                write!(f, "\"{text}\" is out of range for a {kind}")
            }
        }
    }
}

impl std::error::Error for ParseQuantityError {}

/// What one quantity may be written in. `units` pairs a spelling with its size in base units; the
/// first spellings are the ones that messages offer.
pub(crate) struct Grammar {
    pub kind: &'static str,
    pub example: &'static str,
    pub units: &'static [(&'static str, f64)],
    pub spellings: &'static [&'static str],
}

/// Parses `text` into base units.
pub(crate) fn parse(text: &str, grammar: &Grammar) -> Result<f64, ParseQuantityError> {
    let trimmed = text.trim();
    let split = number_length(trimmed);
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.trim_start();
    let value: f64 =
        number
            .replace('_', "")
            .parse()
            .map_err(|_| ParseQuantityError::NotANumber {
                kind: grammar.kind,
                text: shorten(trimmed),
                example: grammar.example,
            })?;
    if unit.is_empty() {
        return Err(ParseQuantityError::MissingUnit {
            kind: grammar.kind,
            number: shorten(number),
            units: grammar.spellings,
        });
    }
    let Some((_, scale)) = grammar.units.iter().find(|(name, _)| *name == unit) else {
        return Err(ParseQuantityError::UnknownUnit {
            kind: grammar.kind,
            unit: shorten(unit),
            units: grammar.spellings,
        });
    };
    let base = value * scale;
    if !base.is_finite() || base < 0.0 {
        return Err(ParseQuantityError::OutOfRange {
            kind: grammar.kind,
            text: shorten(trimmed),
        });
    }
    Ok(base)
}

/// Length of the leading decimal number: digits, `_`, one point, an exponent such as `1e9`.
fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut i = usize::from(bytes.first().is_some_and(|b| matches!(b, b'+' | b'-')));
    while i < bytes.len() && (bytes[i].is_ascii_digit() || matches!(bytes[i], b'.' | b'_')) {
        i += 1;
    }
    let exponent = bytes.get(i).is_some_and(|b| matches!(b, b'e' | b'E'));
    if exponent {
        let sign = usize::from(bytes.get(i + 1).is_some_and(|b| matches!(b, b'+' | b'-')));
        let digits = bytes[i + 1 + sign..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count();
        if digits > 0 {
            i += 1 + sign + digits;
        }
    }
    i
}

/// Keeps an error message readable whatever was typed.
fn shorten(text: &str) -> String {
    const LIMIT: usize = 40;
    if text.chars().count() <= LIMIT {
        return text.to_owned();
    }
    text.chars().take(LIMIT).chain("...".chars()).collect()
}

/// Prints `value` (in base units) with the largest of `scales` that leaves at least 1 before the
/// point, with up to four significant digits.
pub(crate) fn print(
    f: &mut fmt::Formatter<'_>,
    value: f64,
    scales: &[(f64, &'static str)],
) -> fmt::Result {
    let (scale, unit) = scales
        .iter()
        .rev()
        .find(|(scale, _)| value.abs() >= *scale * 0.9995)
        .copied()
        .unwrap_or(scales[0]);
    let scaled = value / scale;
    let digits = if scaled.abs() >= 999.5 {
        0
    } else if scaled.abs() >= 99.95 {
        1
    } else if scaled.abs() >= 9.995 {
        2
    } else {
        3
    };
    let mut text = format!("{scaled:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    f.pad(&format!("{text} {unit}"))
}
