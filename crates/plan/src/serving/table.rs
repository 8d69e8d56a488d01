//! Costs by number of tokens: exact at the grid's points, linear between them.

use super::parts::Parts;

/// Up to here every count is a grid point.
const DENSE: usize = 32;
/// Grid points per doubling beyond.
const PER_OCTAVE: usize = 8;
/// The last grid point is 2 to this power; beyond it costs grow in proportion.
const LAST_OCTAVE: u32 = 17;

/// A cost as a function of a number of tokens or sequences.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Table {
    points: Box<[Parts]>,
}

/// The count at grid point `index`.
fn grid(index: usize) -> f64 {
    if index <= DENSE {
        index as f64
    } else {
        let beyond = index - DENSE;
        let octave = DENSE << (beyond / PER_OCTAVE);
        octave as f64 * (1.0 + (beyond % PER_OCTAVE) as f64 / PER_OCTAVE as f64)
    }
}

/// Position of `count` on the grid.
fn position(count: f64) -> f64 {
    if count <= DENSE as f64 {
        return count.max(0.0);
    }
    let ratio = count / DENSE as f64;
    // The exponent of the ratio is the octave, its mantissa the place inside.
    let bits = ratio.to_bits();
    let octave = ((bits >> 52) & 0x7ff) as i32 - 1023;
    let mantissa = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    DENSE as f64 + (f64::from(octave) + mantissa - 1.0) * PER_OCTAVE as f64
}

impl Table {
    /// Tables `cost`, which is nothing at zero.
    pub fn new(cost: impl Fn(u64) -> Parts) -> Self {
        let octaves = LAST_OCTAVE as usize - DENSE.ilog2() as usize;
        let last = DENSE + octaves * PER_OCTAVE;
        let points = (0..=last)
            .map(|index| match index {
                0 => Parts::default(),
                _ => cost(grid(index) as u64),
            })
            .collect();
        Self { points }
    }

    /// A table of nothing.
    pub fn empty() -> Self {
        Self {
            points: Box::from([Parts::default(); 2]),
        }
    }

    /// The cost at `count`. Between zero and one it is that of one: half a token takes no less.
    pub fn at(&self, count: f64) -> Parts {
        if count <= 0.0 {
            return Parts::default();
        }
        let place = position(count.max(1.0));
        let last = self.points.len() - 1;
        let index = place as usize;
        if index >= last {
            return self.points[last] * (count / grid(last)).max(1.0);
        }
        self.points[index].towards(self.points[index + 1], place - index as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_the_inverse_of_the_grid() {
        for index in 0..=(DENSE + 12 * PER_OCTAVE) {
            assert!(
                (position(grid(index)) - index as f64).abs() < 1e-9,
                "{index}"
            );
        }
    }

    #[test]
    fn a_linear_cost_is_tabled_exactly() {
        let table = Table::new(|tokens| Parts {
            useful: tokens as f64,
            ..Parts::default()
        });
        for count in [1.0, 7.0, 33.5, 1000.25, 65_537.0, 131_072.0, 500_000.0] {
            assert!(
                (table.at(count).useful / count - 1.0).abs() < 1e-12,
                "{count}"
            );
        }
        assert_eq!(table.at(0.25).useful, 1.0);
        assert_eq!(table.at(0.0), Parts::default());
    }
}
