//! Which guesses of a draft are kept.

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, de};
use std::fmt;

/// Depths that can be given one by one; deeper guesses are kept as the deepest given is.
const MOST: usize = 16;

/// Which guesses are accepted. The first that is refused ends a step's gain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Acceptance {
    /// Each with this probability, given that those before it were.
    Each(f64),
    /// So large a part of the steps keeps the guesses up to each depth.
    ByDepth(Depths),
    /// Each with a probability that is the request's own: texts differ in how well they can be
    /// guessed. Beta distributed over requests.
    Beta {
        /// Mean over requests.
        mean: f64,
        /// Standard deviation over requests.
        sd: f64,
    },
}

/// Shares of steps that keep the guesses up to each depth, falling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Depths {
    shares: [f64; MOST],
    given: usize,
}

impl Depths {
    /// The shares of depth 1, 2 and so on.
    ///
    /// # Errors
    /// Where there is none, or more than 16.
    pub fn new(shares: &[f64]) -> Result<Self, String> {
        if shares.is_empty() || shares.len() > MOST {
            return Err(format!(
                "{} depths are given; 1 to {MOST} can be",
                shares.len()
            ));
        }
        let mut all = [0.0; MOST];
        all[..shares.len()].copy_from_slice(shares);
        Ok(Self {
            shares: all,
            given: shares.len(),
        })
    }

    /// Those that were given.
    pub fn shares(&self) -> &[f64] {
        &self.shares[..self.given]
    }

    /// Probability that the guess at `depth`, from 1, is kept, given that those before it were.
    pub fn given_those_before(&self, depth: u32) -> f64 {
        let at = (depth.max(1) as usize - 1).min(self.given - 1);
        let before = if at == 0 { 1.0 } else { self.shares[at - 1] };
        if before > 0.0 {
            self.shares[at] / before
        } else {
            0.0
        }
    }
}

impl Acceptance {
    /// Part of all steps that keep the first `depth` guesses, over all requests.
    pub fn kept(&self, depth: u32) -> f64 {
        match *self {
            Self::Each(each) => each.powi(i32::try_from(depth).unwrap_or(i32::MAX)),
            Self::ByDepth(depths) => (1..=depth)
                .map(|depth| depths.given_those_before(depth))
                .product(),
            Self::Beta { mean, sd } => {
                let Some((alpha, beta)) = beta_shape(mean, sd) else {
                    return Self::Each(mean).kept(depth);
                };
                // Raw moments of a beta distribution.
                (0..depth)
                    .map(f64::from)
                    .map(|i| (alpha + i) / (alpha + beta + i))
                    .product()
            }
        }
    }
}

/// The two shapes of a beta distribution of this mean and deviation; `None` where it does not
/// spread. A deviation of `sqrt(mean (1 - mean))` and more no distribution on 0 to 1 has.
pub fn beta_shape(mean: f64, sd: f64) -> Option<(f64, f64)> {
    if sd <= 0.0 || mean <= 0.0 || mean >= 1.0 {
        return None;
    }
    let sum = mean * (1.0 - mean) / (sd * sd) - 1.0;
    (sum > 0.0).then_some((mean * sum, (1.0 - mean) * sum))
}

/// The forms that are not a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Shape {
    /// Shares of steps that keep the first guess, the first two and so on.
    ByDepth(Vec<f64>),
    /// A probability for each request, beta distributed.
    Beta {
        /// Mean over requests.
        mean: f64,
        /// Standard deviation over requests.
        sd: f64,
    },
}

/// As it is written.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Written {
    /// Probability of each guess, given that those before it were accepted.
    Each(f64),
    /// A distribution.
    Shaped(Shape),
}

impl JsonSchema for Acceptance {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Acceptance".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Written::json_schema(generator)
    }
}

impl Serialize for Acceptance {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Each(each) => Written::Each(each),
            Self::ByDepth(depths) => Written::Shaped(Shape::ByDepth(depths.shares().to_vec())),
            Self::Beta { mean, sd } => Written::Shaped(Shape::Beta { mean, sd }),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Acceptance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> de::Visitor<'de> for Reader {
    type Value = Acceptance;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, { by_depth: [0.85, 0.6] } or { beta: { mean: 0.8, sd: 0.1 } }")
    }

    fn visit_f64<E: de::Error>(self, each: f64) -> Result<Acceptance, E> {
        Ok(Acceptance::Each(each))
    }

    fn visit_u64<E: de::Error>(self, each: u64) -> Result<Acceptance, E> {
        Ok(Acceptance::Each(each as f64))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Acceptance, E> {
        match text.parse() {
            Ok(each) => Ok(Acceptance::Each(each)),
            Err(_) => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Acceptance, A::Error> {
        match Shape::deserialize(MapAccessDeserializer::new(map))? {
            Shape::ByDepth(shares) => Depths::new(&shares)
                .map(Acceptance::ByDepth)
                .map_err(de::Error::custom),
            Shape::Beta { mean, sd } => Ok(Acceptance::Beta { mean, sd }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn depths_are_shares_of_all_steps() {
        let depths = Depths::new(&[0.8, 0.6, 0.3]).unwrap();
        let kept = |depth| Acceptance::ByDepth(depths).kept(depth);
        for (depth, share) in [(1, 0.8), (2, 0.6), (3, 0.3), (4, 0.15)] {
            assert!((kept(depth) - share).abs() < 1e-12, "{depth}");
        }
        assert!(Depths::new(&[]).is_err());
        assert!(Depths::new(&[0.5; 17]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A spread over requests keeps the mean of the first guess, and helps deeper ones: whoever is
        /// easy to guess stays so (Jensen).
        #[test]
        fn spread_helps_deep_guesses(mean in 0.05..0.95f64, part in 0.01..0.95f64, depth in 2u32..9) {
            let sd = part * (mean * (1.0 - mean)).sqrt();
            let (even, spread) = (Acceptance::Each(mean), Acceptance::Beta { mean, sd });
            prop_assert!((spread.kept(1) - mean).abs() < 1e-9);
            prop_assert!(spread.kept(depth) >= even.kept(depth) - 1e-12);
            prop_assert!(spread.kept(depth) <= spread.kept(depth - 1) + 1e-12);
        }

        #[test]
        fn what_is_written_is_read(shares in prop::collection::vec(0.0..1.0f64, 1..5), mean in 0.0..1.0f64, sd in 0.0..0.4f64) {
            for acceptance in [Acceptance::Each(mean), Acceptance::Beta { mean, sd }, Acceptance::ByDepth(Depths::new(&shares).unwrap())] {
                let text = serde_json::to_string(&acceptance).unwrap();
                prop_assert_eq!(serde_json::from_str::<Acceptance>(&text).unwrap(), acceptance);
            }
        }
    }
}
