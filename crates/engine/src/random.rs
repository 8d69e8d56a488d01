//! Random numbers as a tree of streams with labels.

use rackflow_units::SimDuration;
use rand::{Rng, TryRng};
use rand_pcg::Pcg64Mcg;
use std::convert::Infallible;

/// A stream of random numbers with its own place in a tree of labels.
///
/// A child depends on the labels above it and on nothing else: not on how much was drawn from its
/// parent, and not on which other children exist. Two consumers with two labels never disturb each
/// other.
///
/// The generator is PCG XSL-RR 128/64 (MCG), whose output is the same on every platform; and the
/// distributions use arithmetic that is too (no logarithm of the operating system), so a seed
/// gives the same bits everywhere.
///
/// Any distribution of the `rand` family can be used through [`rand::Rng`], but only the methods
/// here promise the same bits everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RandomStream {
    /// Names the place in the tree. Children derive from it, draws leave it alone.
    key: u128,
    generator: Pcg64Mcg,
}

impl RandomStream {
    /// The root of the tree of `seed`.
    pub fn root(seed: u64) -> Self {
        Self::from_key(absorb(u128::MAX / 3, seed))
    }

    /// The child named `label`.
    pub fn derive(&self, label: &str) -> Self {
        // The length keeps "a" + "b" apart from "ab", and labels apart from indices.
        let mut key = absorb(self.key, 1 << 63 | label.len() as u64);
        for chunk in label.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            key = absorb(key, u64::from_le_bytes(word));
        }
        Self::from_key(key)
    }

    /// The child with number `index`: one per rank, request or link.
    pub fn derive_index(&self, index: u64) -> Self {
        Self::from_key(absorb(absorb(self.key, 0), index))
    }

    fn from_key(key: u128) -> Self {
        let (high, low) = ((key >> 64) as u64, key as u64);
        let state = u128::from(mix(high ^ 0x5851_f42d_4c95_7f2d)) << 64 | u128::from(mix(low));
        Self {
            key,
            generator: Pcg64Mcg::new(state),
        }
    }

    /// The next 64 random bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.generator.next_u64()
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    #[inline]
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform among `0..count`, without bias.
    ///
    /// # Panics
    /// When `count` is zero.
    pub fn below(&mut self, count: u64) -> u64 {
        assert!(count > 0, "nothing to choose from");
        // Lemire's method: the high word of a product, refused where the low word would be biased.
        loop {
            let product = u128::from(self.bits()) * u128::from(count);
            if product as u64 >= count.wrapping_neg() % count {
                return (product >> 64) as u64;
            }
        }
    }

    /// Whether something with probability `p` happened.
    pub fn happens(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Exponential with the given mean, in the mean's unit.
    ///
    /// # Panics
    /// When `mean` is negative or not finite.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        assert!(
            mean >= 0.0 && mean.is_finite(),
            "not a mean of an exponential: {mean}"
        );
        // 1 - u is in (0, 1], so the logarithm is finite.
        -libm::log(1.0 - self.uniform()) * mean
    }

    /// An exponential span of time, rounded to the nearest picosecond: the gap between two
    /// arrivals of a Poisson process.
    pub fn exponential_duration(&mut self, mean: SimDuration) -> SimDuration {
        // At most 36.8 means: SimDuration::from_picos would saturate only beyond 5.8 days of mean.
        SimDuration::from_picos(self.exponential(mean.as_picos() as f64).round() as u64)
    }

    /// Normal with the given mean and standard deviation. Consumes two draws.
    ///
    /// # Panics
    /// When an argument is not finite or `std_dev` is negative.
    pub fn normal(&mut self, mean: f64, std_dev: f64) -> f64 {
        assert!(
            mean.is_finite() && std_dev >= 0.0 && std_dev.is_finite(),
            "not a normal distribution: {mean}, {std_dev}"
        );
        mean + std_dev * self.standard_normal()
    }

    /// Lognormal: `median` times e^(`sigma` z) for a standard normal z. The mean is
    /// `median` e^(`sigma`^2 / 2). Consumes two draws.
    ///
    /// # Panics
    /// When `median` is not positive and finite, or `sigma` is negative or not finite.
    pub fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        assert!(
            median > 0.0 && median.is_finite() && sigma >= 0.0 && sigma.is_finite(),
            "not a lognormal distribution: {median}, {sigma}"
        );
        median * libm::exp(sigma * self.standard_normal())
    }

    /// Box and Muller's transform, the cosine branch only: two draws per number, always.
    fn standard_normal(&mut self) -> f64 {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.uniform()));
        radius * libm::cos(std::f64::consts::TAU * self.uniform())
    }
}

impl TryRng for RandomStream {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.generator.next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.generator.next_u64())
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        self.generator.fill_bytes(dst);
        Ok(())
    }
}

/// Stirs `word` into `key`: two SplitMix64 finalisers that see each other's half.
fn absorb(key: u128, word: u64) -> u128 {
    let (high, low) = ((key >> 64) as u64, key as u64);
    let low = mix(low ^ word);
    let high = mix(high.rotate_left(23) ^ low.wrapping_add(word));
    u128::from(high) << 64 | u128::from(low)
}

/// The SplitMix64 step: a bijection of 64 bits that spreads every input bit over all output bits.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_labels_give_the_same_bits_everywhere() {
        let mut stream = RandomStream::root(7).derive("arrivals").derive_index(17);
        let drawn = [stream.bits(), stream.bits(), stream.bits()];
        assert_eq!(drawn, PINNED_BITS);
        let floats = [
            stream.uniform(),
            stream.exponential(2.0),
            stream.normal(1.0, 3.0),
            stream.lognormal(1.0, 0.5),
        ];
        assert_eq!(floats.map(f64::to_bits), PINNED_FLOATS);
    }

    /// A change here changes every result with a seed: say so in the changelog.
    const PINNED_BITS: [u64; 3] = [
        11_056_419_877_559_996_252,
        10_272_148_581_624_775_729,
        13_989_268_453_126_484_428,
    ];
    const PINNED_FLOATS: [u64; 4] = [
        4_602_691_524_754_939_273,
        4_619_835_472_842_254_735,
        4_607_506_228_985_479_996,
        4_606_012_415_214_686_838,
    ];

    #[test]
    fn a_child_does_not_depend_on_draws_or_siblings() {
        let mut parent = RandomStream::root(1);
        let before = parent.derive("child");
        parent.bits();
        let _sibling = parent.derive("sibling");
        assert_eq!(parent.derive("child"), before);
    }

    #[test]
    fn labels_do_not_run_together() {
        let root = RandomStream::root(1);
        let streams = [
            root.clone(),
            root.derive("ab"),
            root.derive("a").derive("b"),
            root.derive(""),
            root.derive("a\0"),
            root.derive("a"),
            root.derive_index(0),
            root.derive_index(1),
            root.derive_index(0).derive_index(0),
            RandomStream::root(2),
        ];
        for (i, a) in streams.iter().enumerate() {
            for b in &streams[i + 1..] {
                assert_ne!(a.clone().bits(), b.clone().bits());
            }
        }
    }

    /// Mean and variance of 200,000 numbers.
    fn moments(mut draw: impl FnMut(&mut RandomStream) -> f64) -> (f64, f64) {
        let n = 200_000;
        let mut stream = RandomStream::root(3).derive("moments");
        let drawn: Vec<f64> = (0..n).map(|_| draw(&mut stream)).collect();
        let mean = drawn.iter().sum::<f64>() / f64::from(n);
        let square = drawn.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>();
        (mean, square / f64::from(n))
    }

    fn check((mean, variance): (f64, f64), expected: (f64, f64)) {
        assert!((mean / expected.0 - 1.0).abs() < 0.02, "mean {mean}");
        assert!(
            (variance / expected.1 - 1.0).abs() < 0.05,
            "variance {variance}"
        );
    }

    #[test]
    fn distributions_have_their_moments() {
        check(moments(RandomStream::uniform), (0.5, 1.0 / 12.0));
        check(moments(|s| s.exponential(4.0)), (4.0, 16.0));
        check(moments(|s| s.normal(10.0, 3.0)), (10.0, 9.0));
        let spread = (0.25f64).exp();
        check(
            moments(|s| s.lognormal(2.0, 0.5)),
            (2.0 * spread.sqrt(), 4.0 * spread * (spread - 1.0)),
        );
        check(moments(|s| s.below(6) as f64), (2.5, 35.0 / 12.0));
        check(moments(|s| f64::from(s.happens(0.3))), (0.3, 0.21));
    }

    #[test]
    fn an_exponential_is_never_endless() {
        assert_eq!(RandomStream::root(1).exponential(0.0), 0.0);
        assert!(moments(|s| s.exponential(1.0)).0.is_finite());
    }
}
