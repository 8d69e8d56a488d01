//! Which guesses of a request are kept.

use super::source::gamma_of_shape;
use rackflow_engine::RandomStream;
use rackflow_workload::serving::{Acceptance, beta_shape};

/// The luck of one request: draws of its own, so that what others do changes nothing.
#[derive(Debug)]
pub(super) struct Luck {
    stream: RandomStream,
    acceptance: Acceptance,
}

impl Luck {
    /// What one request has of `acceptance`: a probability of its own where requests differ.
    pub fn new(acceptance: Acceptance, mut stream: RandomStream) -> Self {
        let acceptance = match acceptance {
            Acceptance::Beta { mean, sd } => Acceptance::Each(match beta_shape(mean, sd) {
                Some((alpha, beta)) => {
                    // Two gammas of one scale: the first over their sum.
                    let x = alpha * gamma_of_shape(&mut stream, alpha);
                    let y = beta * gamma_of_shape(&mut stream, beta);
                    x / (x + y).max(f64::MIN_POSITIVE)
                }
                None => mean,
            }),
            other => other,
        };
        Self { stream, acceptance }
    }

    /// Guesses of one step that are kept, of so many.
    pub fn accepted(&mut self, guesses: u32) -> u32 {
        let mut kept = 0;
        while kept < guesses {
            let probability = match &self.acceptance {
                Acceptance::Each(each) | Acceptance::Beta { mean: each, .. } => *each,
                Acceptance::ByDepth(depths) => depths.given_those_before(kept + 1),
            };
            if !self.stream.happens(probability) {
                break;
            }
            kept += 1;
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackflow_workload::serving::Depths;

    /// Over many requests the guesses kept are those that the distribution promises.
    #[test]
    fn guesses_are_kept_as_often_as_said() {
        let depths = Depths::new(&[0.8, 0.5, 0.45]).expect("three depths");
        for acceptance in [
            Acceptance::Each(0.6),
            Acceptance::ByDepth(depths),
            Acceptance::Beta {
                mean: 0.7,
                sd: 0.25,
            },
        ] {
            let root = RandomStream::root(11);
            let (requests, steps) = (4_000_u64, 20_u64);
            let mut kept = [0_u64; 4];
            for request in 0..requests {
                let mut luck = Luck::new(acceptance, root.derive_index(request));
                for _ in 0..steps {
                    for count in &mut kept[..luck.accepted(4) as usize] {
                        *count += 1;
                    }
                }
            }
            for (depth, count) in (1_u32..).zip(kept) {
                let share = count as f64 / (requests * steps) as f64;
                let expected = acceptance.kept(depth);
                assert!(
                    (share - expected).abs() < 0.012,
                    "{acceptance:?}, {depth}: {share} {expected}"
                );
            }
        }
    }
}
