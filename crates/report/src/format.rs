//! Numbers as people read them.

/// `value` with `digits` after the point and commas between thousands.
pub(crate) fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (sign, unsigned) = text
        .strip_prefix('-')
        .map_or(("", text.as_str()), |rest| ("-", rest));
    let (whole, fraction) = unsigned
        .split_once('.')
        .map_or((unsigned, None), |(w, f)| (w, Some(f)));
    let mut out = String::from(sign);
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// About four significant digits, commas between thousands.
pub(crate) fn significant(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 999.95 => 0,
        v if v >= 99.995 => 1,
        v if v >= 9.9995 => 2,
        _ => 3,
    };
    number(value, digits)
}

/// A fraction as a percentage with one digit, without the sign ("19.4").
pub(crate) fn percent(fraction: f64) -> String {
    number(fraction * 100.0, 1)
}

/// A large count in words of thousands: "671 B", "1.02 T".
pub(crate) fn count(value: f64) -> String {
    let (scale, unit) = match value {
        v if v >= 0.9995e12 => (1e12, " T"),
        v if v >= 0.9995e9 => (1e9, " B"),
        v if v >= 0.9995e6 => (1e6, " M"),
        v if v >= 1e4 => (1e3, " k"),
        _ => (1.0, ""),
    };
    let scaled = value / scale;
    let digits = match (unit, scaled) {
        ("", _) => 0,
        (_, s) if s >= 99.95 => 0,
        (_, s) if s >= 9.995 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$}{unit}")
}

/// A span of seconds, in the unit that suits it.
pub(crate) fn seconds(value: f64) -> String {
    match value {
        v if v >= 0.9995 => format!("{} s", significant(v)),
        v if v >= 0.9995e-3 => format!("{} ms", significant(v * 1e3)),
        v => format!("{} us", significant(v * 1e6)),
    }
}

/// `text` cut into lines of at most `width` characters, at spaces.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        assert_eq!(number(1_234_567.891, 1), "1,234,567.9");
        assert_eq!(number(-1234.0, 0), "-1,234");
        assert_eq!(number(999.0, 2), "999.00");
    }

    #[test]
    fn counts_read_like_model_names() {
        assert_eq!(count(671.03e9), "671 B");
        assert_eq!(count(37.55e9), "37.5 B");
        assert_eq!(count(1.026e12), "1.03 T");
        assert_eq!(count(96.0), "96");
    }

    #[test]
    fn seconds_take_the_unit_that_suits() {
        assert_eq!(seconds(19.934), "19.93 s");
        assert_eq!(seconds(0.0421), "42.10 ms");
    }
}
