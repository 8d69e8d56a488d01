//! The normal distribution.

/// Its quantile, by bisection of its integral.
pub(crate) fn quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-8.0_f64, 8.0_f64);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if 0.5 * libm::erfc(-middle / std::f64::consts::SQRT_2) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_tables() {
        for (p, z) in [(0.5, 0.0), (0.841_344_75, 1.0), (0.025, -1.959_964)] {
            assert!((quantile(p) - z).abs() < 1e-6, "{p}");
        }
    }
}
