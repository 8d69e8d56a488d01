//! Sizes, rates, power and money: one macro gives each its text form, its schema and its errors.

use crate::parse::{self, Grammar, ParseQuantityError};
use crate::time::SimDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, AddAssign, Mul, Sub};
use std::str::FromStr;

/// Serialisation as text with a unit, and a JSON Schema whose pattern and examples editors show.
macro_rules! text_serde {
    ($name:ident, $grammar:expr, $title:literal) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                // Not `deserialize_str`: YAML would make text of a bare number, or refuse it
                // without a word about units.
                d.deserialize_any(crate::parse::QuantityVisitor {
                    grammar: &$grammar,
                    quantity: std::marker::PhantomData,
                })
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $title.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let units: Vec<&str> = $grammar.units.iter().map(|(unit, _)| *unit).collect();
                schemars::json_schema!({
                    "type": "string",
                    "description": format!(
                        "A {} with its unit, such as \"{}\".", $grammar.kind, $grammar.example
                    ),
                    "pattern": format!(r"^\s*[0-9][0-9_]*(\.[0-9_]+)?([eE][+-]?[0-9]+)?\s*({})\s*$", units.join("|")),
                    "examples": [$grammar.example],
                })
            }
        }
    };
}
pub(crate) use text_serde;

macro_rules! quantity {
    (
        $(#[$doc:meta])* $name:ident($base:ty), $kind:literal, $title:literal, $example:literal,
        parse { $($spelling:literal = $size:expr),+ $(,)? },
        offer [$($offer:literal),+ $(,)?],
        print { $($unit:literal = $scale:expr),+ $(,)? }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
        pub struct $name($base);

        const _: () = {
            const GRAMMAR: Grammar = Grammar {
                kind: $kind,
                example: $example,
                units: &[$(($spelling, $size)),+],
                spellings: &[$($offer),+],
            };

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    parse::print(f, self.0 as f64, &[$(($scale, $unit)),+])
                }
            }

            impl FromStr for $name {
                type Err = ParseQuantityError;
                fn from_str(text: &str) -> Result<Self, Self::Err> {
                    let base = parse::parse(text, &GRAMMAR)?;
                    Self::from_base(base).ok_or_else(|| ParseQuantityError::OutOfRange {
                        kind: GRAMMAR.kind,
                        text: parse::shorten(text.trim()),
                    })
                }
            }

            text_serde!($name, GRAMMAR, $title);
        };

        impl $name {
            /// None of it.
            pub const ZERO: Self = Self(0 as $base);
        }

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(Self::add_base(self.0, other.0))
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }

        impl std::iter::Sum for $name {
            fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
                parts.fold(Self::ZERO, |a, b| a + b)
            }
        }
    };
}

quantity! {
    /// A number of bytes. Prints decimal (GB = 10^9); parses decimal and binary (GiB = 2^30).
    #[derive(Eq, Ord)]
    Bytes(u64), "size", "Bytes", "80 GB",
    parse {
        "B" = 1.0, "kB" = 1e3, "KB" = 1e3, "MB" = 1e6, "GB" = 1e9, "TB" = 1e12, "PB" = 1e15,
        "KiB" = 1024.0, "MiB" = 1_048_576.0, "GiB" = 1_073_741_824.0, "TiB" = 1_099_511_627_776.0,
    },
    offer ["GB", "GiB", "B", "kB", "MB", "TB", "KiB", "MiB", "TiB"],
    print { "B" = 1.0, "kB" = 1e3, "MB" = 1e6, "GB" = 1e9, "TB" = 1e12, "PB" = 1e15 }
}

quantity! {
    /// Bytes per second, one direction. `Gbit/s` is 10^9 bits and `GB/s` is 10^9 bytes per second.
    #[derive(Eq, Ord)]
    Bandwidth(u64), "bandwidth", "Bandwidth", "400 Gbit/s",
    parse {
        "B/s" = 1.0, "kB/s" = 1e3, "MB/s" = 1e6, "GB/s" = 1e9, "TB/s" = 1e12, "PB/s" = 1e15,
        "bit/s" = 0.125, "kbit/s" = 125.0, "Mbit/s" = 125e3, "Gbit/s" = 125e6, "Tbit/s" = 125e9,
        "Mb/s" = 125e3, "Gb/s" = 125e6, "Tb/s" = 125e9, "Mbps" = 125e3, "Gbps" = 125e6, "Tbps" = 125e9,
    },
    offer ["GB/s", "Gbit/s", "TB/s", "Tbit/s", "MB/s", "Mbit/s"],
    print { "B/s" = 1.0, "kB/s" = 1e3, "MB/s" = 1e6, "GB/s" = 1e9, "TB/s" = 1e12, "PB/s" = 1e15 }
}

quantity! {
    /// A count of floating-point operations (a fused multiply-add counts two).
    Flops(f64), "operation count", "Flops", "2 TFLOP",
    parse {
        "FLOP" = 1.0, "kFLOP" = 1e3, "MFLOP" = 1e6, "GFLOP" = 1e9, "TFLOP" = 1e12,
        "PFLOP" = 1e15, "EFLOP" = 1e18, "ZFLOP" = 1e21,
    },
    offer ["TFLOP", "PFLOP", "EFLOP", "GFLOP", "ZFLOP", "FLOP"],
    print {
        "FLOP" = 1.0, "kFLOP" = 1e3, "MFLOP" = 1e6, "GFLOP" = 1e9, "TFLOP" = 1e12,
        "PFLOP" = 1e15, "EFLOP" = 1e18, "ZFLOP" = 1e21,
    }
}

quantity! {
    /// Floating-point operations per second, dense.
    FlopRate(f64), "rate of operations", "FlopRate", "989 TFLOP/s",
    parse {
        "FLOP/s" = 1.0, "GFLOP/s" = 1e9, "TFLOP/s" = 1e12, "PFLOP/s" = 1e15, "EFLOP/s" = 1e18,
        "ZFLOP/s" = 1e21,
    },
    offer ["TFLOP/s", "PFLOP/s", "GFLOP/s", "EFLOP/s"],
    print {
        "FLOP/s" = 1.0, "GFLOP/s" = 1e9, "TFLOP/s" = 1e12, "PFLOP/s" = 1e15, "EFLOP/s" = 1e18,
        "ZFLOP/s" = 1e21,
    }
}

quantity! {
    /// Cycles per second.
    Frequency(f64), "frequency", "Frequency", "1830 MHz",
    parse { "Hz" = 1.0, "MHz" = 1e6, "GHz" = 1e9 },
    offer ["MHz", "GHz", "Hz"],
    print { "Hz" = 1.0, "MHz" = 1e6, "GHz" = 1e9 }
}

quantity! {
    /// Electrical power.
    Power(f64), "power", "Power", "700 W",
    parse { "W" = 1.0, "kW" = 1e3, "MW" = 1e6, "GW" = 1e9 },
    offer ["W", "kW", "MW", "GW"],
    print { "W" = 1.0, "kW" = 1e3, "MW" = 1e6, "GW" = 1e9 }
}

quantity! {
    /// Rent of one accelerator.
    UsdPerHour(f64), "price", "UsdPerHour", "2.35 USD/h",
    parse { "USD/h" = 1.0 },
    offer ["USD/h"],
    print { "USD/h" = 1.0 }
}

quantity! {
    /// Requests per second.
    RequestRate(f64), "rate of requests", "RequestRate", "2 requests/s",
    parse { "requests/s" = 1.0, "request/s" = 1.0, "req/s" = 1.0, "requests/min" = 0.016_666_666_666_666_666, "requests/h" = 2.777_777_777_777_778e-4 },
    offer ["requests/s", "requests/min", "requests/h"],
    print { "requests/s" = 1.0 }
}

quantity! {
    /// Money.
    Usd(f64), "amount of money", "Usd", "50000 USD",
    parse { "USD" = 1.0, "kUSD" = 1e3, "MUSD" = 1e6 },
    offer ["USD", "kUSD", "MUSD"],
    print { "USD" = 1.0 }
}

quantity! {
    /// Price of energy.
    UsdPerKilowattHour(f64), "price of energy", "UsdPerKilowattHour", "0.08 USD/kWh",
    parse { "USD/kWh" = 1.0, "USD/MWh" = 1e-3 },
    offer ["USD/kWh", "USD/MWh"],
    print { "USD/kWh" = 1.0 }
}

impl Bytes {
    /// `n` bytes.
    pub const fn new(n: u64) -> Self {
        Self(n)
    }

    fn add_base(a: u64, b: u64) -> u64 {
        a.checked_add(b).expect("a size fits 2^64 bytes")
    }

    fn from_base(base: f64) -> Option<Self> {
        parse::integer(base).map(Self)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of bytes, for rates and reports.
    pub const fn as_f64(self) -> f64 {
        self.0 as f64
    }

    /// Bytes of `elements` elements of `bits` bits each, rounded up to whole bytes.
    ///
    /// # Panics
    /// When that is 2^64 bytes or more.
    pub const fn of_elements(elements: u64, bits: u64) -> Self {
        let bytes = (elements as u128 * bits as u128).div_ceil(8);
        assert!(bytes <= u64::MAX as u128, "a size fits 2^64 bytes");
        Self(bytes as u64)
    }

    /// The part beyond `other`, or zero.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Sub for Bytes {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(
            self.0
                .checked_sub(other.0)
                .expect("a size is never negative"),
        )
    }
}

impl Mul<u64> for Bytes {
    type Output = Self;
    fn mul(self, times: u64) -> Self {
        Self(self.0.checked_mul(times).expect("a size fits 2^64 bytes"))
    }
}

impl Bandwidth {
    /// `n` bytes per second.
    pub const fn from_bytes_per_sec(n: u64) -> Self {
        Self(n)
    }

    /// `n` times 10^9 bits per second.
    pub const fn from_gigabits_per_sec(n: u64) -> Self {
        Self(n * 125_000_000)
    }

    /// `n` times 10^9 bytes per second, never 2^30.
    pub const fn from_gigabytes_per_sec(n: u64) -> Self {
        Self(n * 1_000_000_000)
    }

    fn add_base(a: u64, b: u64) -> u64 {
        a.checked_add(b)
            .expect("a bandwidth fits 2^64 bytes per second")
    }

    fn from_base(base: f64) -> Option<Self> {
        parse::integer(base).map(Self)
    }

    /// Bytes per second.
    pub const fn bytes_per_sec(self) -> u64 {
        self.0
    }

    /// Bytes per second, for ratios and reports.
    pub const fn as_f64(self) -> f64 {
        self.0 as f64
    }

    /// `self` times `factor`, rounded down to a whole byte per second.
    pub fn scaled(self, factor: f64) -> Self {
        Self((self.0 as f64 * factor) as u64)
    }

    /// Time to send `size`, rounded up to a picosecond: a transfer never finishes early.
    ///
    /// # Panics
    /// When the bandwidth is zero and `size` is not.
    pub fn time_to_send(self, size: Bytes) -> SimDuration {
        if size.get() == 0 {
            return SimDuration::ZERO;
        }
        let ps = (u128::from(size.get()) * 1_000_000_000_000).div_ceil(u128::from(self.0));
        SimDuration::from_picos(u64::try_from(ps).unwrap_or(u64::MAX))
    }
}

macro_rules! real_accessors {
    ($name:ident, $new:ident, $get:ident, $unit:literal) => {
        impl $name {
            #[doc = concat!("`value` ", $unit, ".")]
            pub const fn $new(value: f64) -> Self {
                Self(value)
            }

            fn add_base(a: f64, b: f64) -> f64 {
                a + b
            }

            #[allow(
                clippy::unnecessary_wraps,
                reason = "the macro asks every quantity the same question"
            )]
            fn from_base(base: f64) -> Option<Self> {
                Some(Self(base))
            }

            #[doc = concat!("The value in ", $unit, ".")]
            pub const fn $get(self) -> f64 {
                self.0
            }
        }

        impl Mul<f64> for $name {
            type Output = Self;
            fn mul(self, factor: f64) -> Self {
                Self(self.0 * factor)
            }
        }
    };
}

real_accessors!(Flops, new, get, "floating-point operations");
real_accessors!(
    FlopRate,
    from_flops_per_sec,
    flops_per_sec,
    "floating-point operations per second"
);
real_accessors!(Frequency, from_hertz, hertz, "hertz");
real_accessors!(Power, from_watts, watts, "watts");
real_accessors!(UsdPerHour, new, get, "dollars per hour");
real_accessors!(RequestRate, from_per_sec, per_sec, "requests per second");
real_accessors!(Usd, new, get, "dollars");
real_accessors!(UsdPerKilowattHour, new, get, "dollars per kilowatt-hour");

impl Flops {
    /// Seconds that these operations take at `rate`.
    pub fn seconds_at(self, rate: FlopRate) -> f64 {
        self.0 / rate.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(text: &str) -> u64 {
        text.parse::<Bytes>().unwrap().get()
    }

    fn bandwidth(text: &str) -> u64 {
        text.parse::<Bandwidth>().unwrap().bytes_per_sec()
    }

    #[test]
    fn decimal_and_binary_sizes_differ() {
        assert_eq!(bytes("80 GB"), 80_000_000_000);
        assert_eq!(bytes("80 GiB"), 85_899_345_920);
        assert_eq!(bytes("1KiB"), 1024);
        assert_eq!(bytes("1_000 kB"), bytes("1 MB"));
        assert_eq!(bytes("1.5e3 B"), 1500);
    }

    #[test]
    fn bits_and_bytes_differ() {
        assert_eq!(bandwidth("400 GB/s"), 400_000_000_000);
        assert_eq!(bandwidth("400 Gbit/s"), 50_000_000_000);
        assert_eq!(bandwidth("400 Gb/s"), bandwidth("400 Gbps"));
    }

    #[test]
    fn elements_of_four_bits_share_bytes() {
        assert_eq!(Bytes::of_elements(3, 4), Bytes::new(2));
        assert_eq!(Bytes::of_elements(1 << 62, 16), Bytes::new(1 << 63));
    }

    #[test]
    #[should_panic(expected = "a size fits 2^64 bytes")]
    fn a_size_never_wraps() {
        let _ = Bytes::new(u64::MAX) + Bytes::new(1);
    }

    #[test]
    fn time_to_send_rounds_up() {
        let nvlink = Bandwidth::from_gigabytes_per_sec(900);
        // 512 B / 900 GB/s = 568.88 ps.
        assert_eq!(
            nvlink.time_to_send(Bytes::new(512)),
            SimDuration::from_picos(569)
        );
        assert_eq!(
            nvlink.time_to_send(Bytes::new(900)),
            SimDuration::from_picos(1000)
        );
        assert_eq!(Bandwidth::ZERO.time_to_send(Bytes::ZERO), SimDuration::ZERO);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_transfer_never_finishes_early(size in 0u64..1 << 42, rate in 1_000_000u64..1 << 50) {
            let ps = Bandwidth::from_bytes_per_sec(rate).time_to_send(Bytes::new(size)).as_picos();
            let sent = |ps: u64| u128::from(ps) * u128::from(rate);
            let wanted = u128::from(size) * 1_000_000_000_000;
            prop_assert!(sent(ps) >= wanted);
            prop_assert!(ps == 0 || sent(ps - 1) < wanted, "and never a whole picosecond late");
        }
    }
}
