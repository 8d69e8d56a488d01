//! Which cases of a sweep are meant: patterns over names and choices.

use rackflow_scenario::Case;

/// Patterns that all must match.
pub struct Filter(Vec<String>);

impl Filter {
    /// Each pattern is `key=value` with stars in the value, or a part of the case's name.
    pub fn new(patterns: &[String]) -> Self {
        Self(patterns.to_vec())
    }

    /// Whether this case is meant.
    pub fn takes(&self, case: &Case) -> bool {
        self.0.iter().all(|pattern| {
            let by_choice = pattern.split_once('=').is_some_and(|(key, value)| {
                case.parameters
                    .iter()
                    .any(|(path, chosen)| is_key(path, key) && matches(value, chosen))
            });
            by_choice || matches(&format!("*{pattern}*"), &case.name)
        })
    }
}

/// A whole path, or its last keys.
fn is_key(path: &str, key: &str) -> bool {
    path == key
        || path
            .strip_suffix(key)
            .is_some_and(|rest| rest.ends_with('.'))
}

/// Whether `text` is what `pattern` says; `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(rest) = text.strip_prefix(before) else {
        return false;
    };
    let starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    starts.into_iter().any(|at| matches(after, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("gb*", "gb200", true),
            ("*200*", "gb200-nvl72", true),
            ("gb*72", "gb200-nvl72", true),
            ("gb*73", "gb200-nvl72", false),
            ("2048", "2048", true),
            ("2048", "20480", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_key_is_a_path_or_its_end() {
        assert!(is_key("cluster.gpus", "gpus") && is_key("cluster.gpus", "cluster.gpus"));
        assert!(!is_key("cluster.gpus", "pus"));
    }
}
