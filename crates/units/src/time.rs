//! Points and spans of simulated time, in integer picoseconds.
//!
//! 512 bytes over a 900 GB/s link take 0.57 ns, so nanoseconds would be too coarse; 2^64
//! picoseconds are 213 days, which is far beyond any step.

use crate::parse::{self, Grammar, ParseQuantityError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, AddAssign, Mul, Sub, SubAssign};
use std::str::FromStr;

/// A point in simulated time, counted from the start of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SimTime(u64);

/// A span of simulated time.
///
/// Spans that are longer than 213 days stay at [`SimDuration::MAX`]: the prices of absurd hardware
/// can be summed without a panic, and whoever compiles a plan refuses it. A point in time does not
/// saturate, since a run whose clock stops would lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SimDuration(u64);

impl SimTime {
    /// The start of the run.
    pub const ZERO: Self = Self(0);
    /// Later than anything that happens.
    pub const MAX: Self = Self(u64::MAX);

    /// The point `ps` picoseconds after the start.
    pub const fn from_picos(ps: u64) -> Self {
        Self(ps)
    }

    /// Picoseconds since the start.
    pub const fn as_picos(self) -> u64 {
        self.0
    }

    /// Seconds since the start, for display and reports.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 * 1e-12
    }

    /// The span since `earlier`.
    ///
    /// # Panics
    /// When `earlier` is later: time never runs backward.
    pub fn since(self, earlier: Self) -> SimDuration {
        assert!(
            earlier <= self,
            "time ran backward: {earlier:?} is after {self:?}"
        );
        SimDuration(self.0 - earlier.0)
    }

    /// The span since `earlier`, or zero when `earlier` is later.
    pub fn saturating_since(self, earlier: Self) -> SimDuration {
        SimDuration(self.0.saturating_sub(earlier.0))
    }
}

impl SimDuration {
    /// No time at all.
    pub const ZERO: Self = Self(0);
    /// The longest span, 213 days, or anything longer.
    pub const MAX: Self = Self(u64::MAX);

    /// `ps` picoseconds.
    pub const fn from_picos(ps: u64) -> Self {
        Self(ps)
    }

    /// `ns` nanoseconds.
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns * 1_000)
    }

    /// `us` microseconds.
    pub const fn from_micros(us: u64) -> Self {
        Self(us * 1_000_000)
    }

    /// `seconds`, rounded to the nearest picosecond; [`Self::MAX`] where that is longer.
    ///
    /// # Panics
    /// When negative or not a number.
    pub fn from_secs_f64(seconds: f64) -> Self {
        let ps = (seconds * 1e12).round();
        assert!(ps >= 0.0, "not a span of simulated time: {seconds} s");
        // A conversion to an integer saturates.
        Self(ps as u64)
    }

    /// Picoseconds.
    pub const fn as_picos(self) -> u64 {
        self.0
    }

    /// Seconds, for display and reports.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 * 1e-12
    }

    /// The part of `self` beyond `other`, or zero.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self * numerator / denominator`, rounded down; [`Self::MAX`] where that is longer.
    ///
    /// # Panics
    /// When `denominator` is zero.
    pub fn scale(self, numerator: u64, denominator: u64) -> Self {
        let scaled = u128::from(self.0) * u128::from(numerator) / u128::from(denominator);
        Self(u64::try_from(scaled).unwrap_or(u64::MAX))
    }
}

impl Add<SimDuration> for SimTime {
    type Output = SimTime;
    fn add(self, span: SimDuration) -> SimTime {
        SimTime(
            self.0
                .checked_add(span.0)
                .expect("simulated time fits 213 days"),
        )
    }
}

impl Add for SimDuration {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for SimDuration {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for SimDuration {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(
            self.0
                .checked_sub(other.0)
                .expect("a span of time is never negative"),
        )
    }
}

impl SubAssign for SimDuration {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Mul<u64> for SimDuration {
    type Output = Self;
    fn mul(self, times: u64) -> Self {
        Self(self.0.saturating_mul(times))
    }
}

impl std::iter::Sum for SimDuration {
    fn sum<I: Iterator<Item = Self>>(spans: I) -> Self {
        spans.fold(Self::ZERO, |a, b| a + b)
    }
}

const SCALES: &[(f64, &str)] = &[
    (1e-12, "ps"),
    (1e-9, "ns"),
    (1e-6, "us"),
    (1e-3, "ms"),
    (1.0, "s"),
    (3600.0, "h"),
    (86400.0, "d"),
];

const GRAMMAR: Grammar = Grammar {
    kind: "duration",
    example: "3 us",
    units: &[
        ("ps", 1.0),
        ("ns", 1e3),
        ("us", 1e6),
        ("µs", 1e6),
        ("ms", 1e9),
        ("s", 1e12),
        ("min", 60e12),
        ("h", 3600e12),
        ("d", 86400e12),
    ],
    spellings: &["us", "ms", "s", "ns", "ps", "min", "h", "d"],
};

impl fmt::Display for SimDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        parse::print(f, self.as_secs_f64(), SCALES)
    }
}

impl fmt::Display for SimTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        parse::print(f, self.as_secs_f64(), SCALES)
    }
}

impl FromStr for SimDuration {
    type Err = ParseQuantityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ps = parse::parse(text, &GRAMMAR)?;
        parse::integer(ps)
            .map(Self)
            .ok_or_else(|| ParseQuantityError::OutOfRange {
                kind: GRAMMAR.kind,
                text: parse::shorten(text.trim()),
            })
    }
}

crate::quantity::text_serde!(SimDuration, GRAMMAR, "Duration");
