//! The one grammar of quantities: a decimal number, an optional space, a unit.

use serde::de;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

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
        /// Spellings that differ from it in case only.
        meant: Vec<&'static str>,
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
            Self::UnknownUnit {
                kind,
                unit,
                meant,
                units,
            } => {
                write!(f, "unknown unit of {kind} \"{unit}\"")?;
                if !meant.is_empty() {
                    write!(f, ", did you mean \"{}\"?", meant.join("\" or \""))?;
                }
                write!(f, "; known: {}", units.join(", "))
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

impl Grammar {
    /// The spellings that `unit` is but for case, without synonyms of the same size. Bits and
    /// bytes, milli and mega differ in case only, so there may be two.
    fn spelled_like(&self, unit: &str) -> Vec<&'static str> {
        let mut found: Vec<(&'static str, f64)> = Vec::new();
        for (name, size) in self.units {
            let known = found.iter().any(|(_, other)| other == size);
            if name.to_lowercase() == unit.to_lowercase() && !known {
                found.push((name, *size));
            }
        }
        found.into_iter().map(|(name, _)| name).collect()
    }

    /// What to say about a number that came without quotes and so without a unit.
    pub fn missing_unit(&self, number: impl fmt::Display) -> ParseQuantityError {
        ParseQuantityError::MissingUnit {
            kind: self.kind,
            number: shorten(&number.to_string()),
            units: self.spellings,
        }
    }
}

/// Accepts text; says of a bare number that its unit is missing.
pub(crate) struct QuantityVisitor<T> {
    pub grammar: &'static Grammar,
    pub quantity: PhantomData<T>,
}

impl<T: FromStr<Err = ParseQuantityError>> de::Visitor<'_> for QuantityVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a {} with its unit, such as \"{}\"",
            self.grammar.kind, self.grammar.example
        )
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        Err(E::custom(self.grammar.missing_unit(number)))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        Err(E::custom(self.grammar.missing_unit(number)))
    }

    fn visit_u128<E: de::Error>(self, number: u128) -> Result<T, E> {
        Err(E::custom(self.grammar.missing_unit(number)))
    }

    fn visit_i128<E: de::Error>(self, number: i128) -> Result<T, E> {
        Err(E::custom(self.grammar.missing_unit(number)))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        Err(E::custom(self.grammar.missing_unit(number)))
    }
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
    let out_of_range = || ParseQuantityError::OutOfRange {
        kind: grammar.kind,
        text: shorten(trimmed),
    };
    if !value.is_finite() || value < 0.0 {
        return Err(out_of_range());
    }
    if unit.is_empty() {
        return Err(grammar.missing_unit(number));
    }
    let Some((_, scale)) = grammar.units.iter().find(|(name, _)| *name == unit) else {
        return Err(ParseQuantityError::UnknownUnit {
            kind: grammar.kind,
            unit: shorten(unit),
            meant: grammar.spelled_like(unit),
            units: grammar.spellings,
        });
    };
    // Adding zero makes -0 plain.
    let base = value * scale + 0.0;
    if base.is_finite() {
        Ok(base)
    } else {
        Err(out_of_range())
    }
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
pub(crate) fn shorten(text: &str) -> String {
    const LIMIT: usize = 40;
    if text.chars().count() <= LIMIT {
        return text.to_owned();
    }
    text.chars().take(LIMIT).chain("...".chars()).collect()
}

/// Base units held as integers: rounded to the nearest. Refused beyond `u64`, and where something
/// would become nothing.
pub(crate) fn integer(base: f64) -> Option<u64> {
    const TWO_TO_THE_64: f64 = 18_446_744_073_709_551_616.0;
    let rounded = base.round();
    (rounded < TWO_TO_THE_64 && (rounded > 0.0 || base == 0.0)).then_some(rounded as u64)
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

#[cfg(test)]
mod tests {
    use crate::{Bandwidth, Bytes, FlopRate, Flops, Frequency, Power, SimDuration, UsdPerHour};
    use proptest::prelude::*;
    use std::fmt::Display;
    use std::str::FromStr;

    fn error<T: FromStr<Err: Display>>(text: &str) -> String {
        text.parse::<T>()
            .err()
            .expect("the text is refused")
            .to_string()
    }

    #[test]
    fn a_bare_number_is_refused_with_both_readings() {
        assert_eq!(
            error::<Bandwidth>("400"),
            "missing unit of bandwidth: write \"400 GB/s\" or \"400 Gbit/s\" or \"400 TB/s\""
        );
        assert_eq!(
            error::<UsdPerHour>(" 2.5 "),
            "missing unit of price: write \"2.5 USD/h\""
        );
    }

    #[test]
    fn an_unknown_unit_lists_the_known_ones() {
        assert_eq!(
            error::<Power>("3 hp"),
            "unknown unit of power \"hp\"; known: W, kW, MW, GW"
        );
    }

    #[test]
    fn case_is_asked_about_and_never_guessed() {
        let text = error::<Bandwidth>("400 gb/s");
        assert!(
            text.contains("did you mean \"GB/s\" or \"Gb/s\"?"),
            "{text}"
        );
        let text = error::<Bandwidth>("400 GBIT/S");
        assert!(text.contains("did you mean \"Gbit/s\"?"), "{text}");
        let text = error::<SimDuration>("3 MS");
        assert!(text.contains("did you mean \"ms\"?"), "{text}");
        let text = error::<Bytes>("3 kb");
        assert!(
            text.contains("did you mean \"kB\"?"),
            "synonyms are offered once: {text}"
        );
    }

    #[test]
    fn what_is_not_a_quantity_is_refused() {
        for text in [
            "",
            "GB",
            "NaN GB",
            "inf GB",
            "1.2.3 GB",
            "_ GB",
            "\u{ff11} GB",
            "- GB",
        ] {
            assert!(error::<Bytes>(text).contains("is not a size"), "{text}");
        }
        for text in [
            "-1 GB", "-1", "1e999 GB", "1e400", "1e30 PB", "0.4 B", "1e-9 kB",
        ] {
            assert!(error::<Bytes>(text).contains("is out of range"), "{text}");
        }
        assert!(error::<SimDuration>("214 d").contains("is out of range"));
        assert!(error::<SimDuration>("0.1 ps").contains("is out of range"));
        let endless = "9".repeat(10_000);
        assert!(error::<Bytes>(&format!("{endless} GB")).len() < 100);
        assert!(error::<Bytes>(&format!("1 {endless}GB")).len() < 200);
    }

    #[test]
    fn zero_has_no_sign() {
        assert_eq!("-0 FLOP".parse::<Flops>().unwrap().to_string(), "0 FLOP");
        assert_eq!("0 s".parse::<SimDuration>().unwrap(), SimDuration::ZERO);
    }

    #[test]
    fn a_number_in_a_file_is_told_that_its_unit_is_missing() {
        for (json, number) in [("400", "400"), ("-3", "-3"), ("2.5", "2.5")] {
            let error = serde_json::from_str::<Bandwidth>(json)
                .unwrap_err()
                .to_string();
            let expected = format!("missing unit of bandwidth: write \"{number} GB/s\"");
            assert!(error.starts_with(&expected), "{error}");
        }
        let error = serde_json::from_str::<SimDuration>("true")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("expected a duration with its unit, such as \"3 us\""),
            "{error}"
        );
        let parsed: Bandwidth = serde_json::from_str("\"400 Gbit/s\"").unwrap();
        assert_eq!(parsed, Bandwidth::from_gigabits_per_sec(400));
        assert_eq!(serde_json::to_string(&parsed).unwrap(), "\"50 GB/s\"");
    }

    /// Printing keeps four digits, and what was printed can be parsed.
    fn check_round_trip<T: FromStr<Err: Display> + Display>(value: T, base: impl Fn(&T) -> f64) {
        let text = value.to_string();
        let again: T = text
            .parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        let (was, is) = (base(&value), base(&again));
        assert!(
            (was - is).abs() <= was * 5.1e-4 + 0.000_5,
            "{was} prints as {text}, which is {is}"
        );
    }

    /// A size of any magnitude, which uniform numbers hardly ever are.
    fn magnitude() -> impl Strategy<Value = u64> {
        (0u32..63, any::<u64>()).prop_map(|(bits, word)| word >> (63 - bits) >> 1)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_printed_can_be_parsed(n in magnitude(), real in 0f64..1e24) {
            check_round_trip(Bytes::new(n), |x| x.as_f64());
            check_round_trip(Bandwidth::from_bytes_per_sec(n), |x| x.as_f64());
            check_round_trip(SimDuration::from_picos(n), |x| x.as_picos() as f64);
            for real in [real, n as f64] {
                check_round_trip(Flops::new(real), |x| x.get());
                check_round_trip(FlopRate::from_flops_per_sec(real), |x| x.flops_per_sec());
                check_round_trip(Frequency::from_hertz(real), |x| x.hertz());
                check_round_trip(Power::from_watts(real), |x| x.watts());
                check_round_trip(UsdPerHour::new(real), |x| x.get());
            }
        }

        #[test]
        fn no_text_panics(text in any::<String>(), number in "[-+0-9._eE]{0,12}", unit in "[a-zA-Zµ/ ]{0,6}") {
            for text in [text, format!("{number}{unit}"), format!("{number} GB"), format!("{number} s")] {
                // Whatever the answer is, it can be shown.
                let _ = text.parse::<Bytes>().map_err(|error| error.to_string());
                let _ = text.parse::<Flops>().map_err(|error| error.to_string());
                let _ = text.parse::<Bandwidth>().map_err(|error| error.to_string());
                let _ = text.parse::<SimDuration>().map_err(|error| error.to_string());
            }
        }
    }
}
