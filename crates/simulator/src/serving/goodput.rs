//! The highest rate that a fleet bears: bisection over runs that differ in their rate alone.

/// Doublings that are tried before a rate is taken to be without limit.
const DOUBLINGS: i32 = 14;

/// One run of the search.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial<T> {
    /// Rate over the scenario's own.
    pub scale: f64,
    /// Whether it was good enough.
    pub passed: bool,
    /// What the run came to.
    pub result: T,
}

/// Runs `trial` at one rate after another, from `first` on, until the highest that passes is known to
/// within `precision` (0.02: two per cent). All runs, in the order in which they were made; where even a
/// vanishing rate fails, none has passed.
///
/// The same seed in every run makes gaps and lengths the same, stretched in time (common random
/// numbers), so that two rates differ by their rate and not by luck.
///
/// # Errors
/// The first that `trial` returns.
pub fn highest_rate<T, E>(
    precision: f64,
    first: f64,
    mut trial: impl FnMut(f64) -> Result<(bool, T), E>,
) -> Result<Vec<Trial<T>>, E> {
    let mut trials = Vec::new();
    let mut run = |scale: f64, trials: &mut Vec<Trial<T>>| -> Result<bool, E> {
        let (passed, result) = trial(scale)?;
        trials.push(Trial {
            scale,
            passed,
            result,
        });
        Ok(passed)
    };
    let (mut low, mut high) = (first, first);
    let first = run(first, &mut trials)?;
    for _ in 0..DOUBLINGS {
        let scale = if first { high * 2.0 } else { low / 2.0 };
        let passed = run(scale, &mut trials)?;
        if first {
            high = scale;
            if !passed {
                break;
            }
            low = scale;
        } else {
            low = scale;
            if passed {
                break;
            }
            high = scale;
        }
    }
    if trials.iter().all(|trial| trial.passed) || trials.iter().all(|trial| !trial.passed) {
        return Ok(trials);
    }
    while high / low > 1.0 + precision {
        let middle = (low * high).sqrt();
        if run(middle, &mut trials)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(trials)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_edge_is_found_from_either_side(edge in 0.001f64..5000.0, first in 0.3f64..3.0) {
            let trials = highest_rate(0.02, first, |scale| Ok::<_, ()>((scale <= edge, ()))).unwrap();
            let best = trials.iter().filter(|trial| trial.passed).map(|trial| trial.scale).fold(0.0, f64::max);
            prop_assert!(best <= edge && best > edge / 1.02, "{} of {}", best, edge);
            prop_assert!(trials.len() < 30);
        }
    }

    #[test]
    fn what_never_or_always_passes_ends() {
        let never = highest_rate(0.02, 1.0, |_| Ok::<_, ()>((false, ()))).unwrap();
        assert!(never.iter().all(|trial| !trial.passed));
        let always = highest_rate(0.02, 1.0, |_| Ok::<_, ()>((true, ()))).unwrap();
        assert_eq!(always.len(), 15);
    }
}
