//! Axes: where a value lies, and which values are named.

use crate::format::number;

/// How values are spread along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scale {
    /// Equal differences are equally far apart.
    #[default]
    Linear,
    /// Equal ratios are equally far apart.
    Log,
}

/// How a tick is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ticks {
    /// 1,000 and 0.25.
    #[default]
    Number,
    /// A fraction as a percentage.
    Percent,
    /// 2k, 131k, 1.5M: decimal thousands.
    Count,
    /// 8 KiB, 1 GiB: powers of 1,024.
    Bytes,
}

/// One axis of a chart.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Axis {
    /// What it measures, with its unit.
    pub label: String,
    /// How values are spread.
    pub scale: Scale,
    /// How ticks are written.
    pub ticks: Ticks,
    /// Lowest and highest value; from the data where it is left out.
    pub range: Option<(f64, f64)>,
    /// The values that are named; chosen where it is left out.
    pub named: Option<Vec<f64>>,
}

impl Axis {
    /// An axis with equal differences.
    pub fn linear(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            ..Self::default()
        }
    }

    /// An axis with equal ratios.
    pub fn log(label: &str) -> Self {
        Self {
            scale: Scale::Log,
            ..Self::linear(label)
        }
    }

    /// Writes ticks this way.
    #[must_use]
    pub fn written(mut self, ticks: Ticks) -> Self {
        self.ticks = ticks;
        self
    }

    /// Runs from the first to the last value.
    #[must_use]
    pub fn from_to(mut self, from: f64, to: f64) -> Self {
        self.range = Some((from, to));
        self
    }

    /// The axis laid over its values.
    pub(super) fn fit(&self, values: impl Iterator<Item = f64>) -> Fitted {
        let (mut low, mut high) = self.range.unwrap_or_else(|| extent(values, self.scale));
        if high <= low || low.is_nan() || high.is_nan() {
            (low, high) = match self.scale {
                Scale::Linear => (low - 0.5, low + 0.5),
                Scale::Log => (low / 2.0, low * 2.0),
            };
        }
        let chosen = match self.scale {
            Scale::Linear => linear_ticks(low, high),
            Scale::Log if self.ticks == Ticks::Bytes => powers(low, high, 2.0, 9.0),
            Scale::Log => log_ticks(low, high),
        };
        let ticks = self.named.clone().unwrap_or(chosen);
        // An axis that is not given its range ends at ticks, where that costs little room.
        if self.range.is_none() && self.scale == Scale::Linear {
            let step = ticks.get(1).zip(ticks.first()).map_or(0.0, |(b, a)| b - a);
            low = if step > 0.0 {
                (low / step).floor() * step
            } else {
                low
            };
            high = if step > 0.0 {
                (high / step).ceil() * step
            } else {
                high
            };
        }
        let inside =
            |value: &f64| *value >= low - 1e-9 * (high - low) && *value <= high * (1.0 + 1e-9);
        let mut ticks: Vec<f64> = if self.scale == Scale::Linear && self.named.is_none() {
            linear_ticks(low, high)
        } else {
            ticks
        };
        ticks.retain(inside);
        Fitted {
            scale: self.scale,
            low,
            high,
            ticks,
        }
    }

    /// A value as its tick is written.
    pub(super) fn write(&self, value: f64) -> String {
        match self.ticks {
            Ticks::Number => plain(value),
            Ticks::Percent => format!("{} %", plain(value * 100.0)),
            Ticks::Count => match value.abs() {
                v if v >= 1e9 => format!("{}B", short(value / 1e9)),
                v if v >= 1e6 => format!("{}M", short(value / 1e6)),
                v if v >= 1e3 => format!("{}k", short(value / 1e3)),
                _ => plain(value),
            },
            Ticks::Bytes => {
                let units = ["B", "KiB", "MiB", "GiB", "TiB"];
                let power = (value.max(1.0).log2() / 10.0).floor().clamp(0.0, 4.0);
                format!(
                    "{} {}",
                    plain(value / 1024_f64.powf(power)),
                    units[power as usize]
                )
            }
        }
    }
}

/// An axis with its range and its ticks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fitted {
    scale: Scale,
    low: f64,
    high: f64,
    /// Values that are named.
    pub ticks: Vec<f64>,
}

impl Fitted {
    /// Where a value lies: 0 at the low end, 1 at the high one; clamped to the axis.
    pub fn place(&self, value: f64) -> f64 {
        let part = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        if part.is_nan() {
            0.0
        } else {
            part.clamp(0.0, 1.0)
        }
    }

    /// Whether a value lies on the axis.
    pub fn holds(&self, value: f64) -> bool {
        let slack = 1e-9 * (self.high - self.low).abs();
        value.is_finite() && value >= self.low - slack && value <= self.high + slack
    }
}

fn extent(values: impl Iterator<Item = f64>, scale: Scale) -> (f64, f64) {
    let counts = |value: &f64| value.is_finite() && (scale == Scale::Linear || *value > 0.0);
    let (low, high) = values
        .filter(counts)
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    if low > high {
        return (1.0, 10.0);
    }
    match scale {
        // Amounts are drawn from zero, so that lengths can be compared.
        Scale::Linear if low >= 0.0 => (0.0, high),
        Scale::Linear => (low, high),
        Scale::Log => (low / 1.08, high * 1.08),
    }
}

/// Multiples of 1, 2, 2.5 or 5 times a power of ten; about six of them.
fn linear_ticks(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low) / 5.0;
    let power = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= raw * 0.999)
        .unwrap_or(raw);
    let first = (low / step - 1e-9).ceil();
    (0..20)
        .map(|i| (first + f64::from(i)) * step)
        .take_while(|tick| *tick <= high + step * 1e-6)
        .collect()
}

/// Powers of ten; with 2 and 5 between them where the axis is short, every few where it is long.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = (high / low).log10();
    if decades > 6.0 {
        return powers(low, high, 10.0, 7.0);
    }
    let factors: &[f64] = match decades {
        d if d < 0.7 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
        d if d < 2.5 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let first = low.log10().floor() as i32;
    let last = high.log10().ceil() as i32;
    (first..=last)
        .flat_map(|decade| {
            factors
                .iter()
                .map(move |factor| factor * 10_f64.powi(decade))
        })
        .filter(|tick| *tick >= low * 0.999 && *tick <= high * 1.001)
        .collect()
}

/// Powers of `base`, thinned out to about `most` of them.
fn powers(low: f64, high: f64, base: f64, most: f64) -> Vec<f64> {
    let first = low.log(base).ceil() as i32;
    let last = high.log(base).floor() as i32;
    let step = (f64::from(last - first) / most).ceil().max(1.0) as usize;
    (first..=last)
        .step_by(step)
        .map(|power| base.powi(power))
        .collect()
}

fn plain(value: f64) -> String {
    let digits = match value.abs() {
        v if v == 0.0 || v >= 100.0 => 0,
        v if (v - v.round()).abs() < 1e-9 * v => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        v => (-v.log10()).ceil().min(9.0) as usize + 1,
    };
    let text = number(value, digits);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn short(value: f64) -> String {
    if value.abs() >= 10.0 {
        number(value, 0)
    } else {
        plain((value * 10.0).round() / 10.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_axes_start_at_zero_and_end_at_a_tick() {
        let axis = Axis::linear("TFLOP/s").fit([3.0, 47.0].into_iter());
        assert_eq!(axis.ticks, [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(axis.place(0.0), 0.0);
        assert_eq!(axis.place(50.0), 1.0);
    }

    #[test]
    fn log_axes_name_powers() {
        let axis = Axis::log("GPUs").fit([2048.0, 131_072.0].into_iter());
        assert_eq!(
            axis.ticks,
            [2000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0, 100_000.0]
        );
        let middle = axis.place((2048.0_f64 * 131_072.0).sqrt());
        assert!((middle - 0.5).abs() < 1e-9);
    }

    #[test]
    fn values_are_written_short() {
        let count = Axis::linear("").written(Ticks::Count);
        assert_eq!(count.write(131_072.0), "131k");
        assert_eq!(count.write(2048.0), "2k");
        let bytes = Axis::log("").written(Ticks::Bytes);
        assert_eq!(bytes.write(8192.0), "8 KiB");
        assert_eq!(bytes.write(1e9_f64.log2().ceil().exp2()), "1 GiB");
        assert_eq!(Axis::linear("").written(Ticks::Percent).write(0.25), "25 %");
        assert_eq!(Axis::linear("").write(0.05), "0.05");
    }

    #[test]
    fn an_axis_without_extent_still_has_room() {
        let axis = Axis::linear("").from_to(3.0, 3.0).fit(std::iter::empty());
        assert!(axis.place(3.0) > 0.0 && axis.place(3.0) < 1.0);
    }
}
