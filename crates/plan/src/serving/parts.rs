//! Seconds of one GPU by what they go to, as a vector that tables can interpolate.

use std::ops::{Add, AddAssign, Mul};

/// What a GPU's time goes to in a step, with the quantities that belong to it. Times are exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Parts {
    /// At the dense peak of the deployment's narrowest format [s].
    pub useful: f64,
    /// Math in a wider format, over that [s].
    pub wider: f64,
    /// Clocks and operand delivery [s].
    pub sustained: f64,
    /// Tiles, waves, padding [s].
    pub shape: f64,
    /// Waiting for memory [s].
    pub memory: f64,
    /// Waiting for exponentials [s].
    pub exponent: f64,
    /// Shortest kernels, launches in a graph [s].
    pub floor: f64,
    /// Tensor-parallel collectives [s].
    pub tensor: f64,
    /// Tokens on their way to experts and back [s].
    pub expert: f64,
    /// Between pipeline stages [s].
    pub pipeline: f64,
    /// The busiest expert group over the mean [s].
    pub imbalance: f64,
    /// Operations of the tensor cores.
    pub flops: f64,
    /// Bytes of weights and cache.
    pub bytes: f64,
    /// Bytes out of the NVLink port.
    pub wire_nvlink: f64,
    /// Bytes out of the NIC.
    pub wire_nic: f64,
    /// Kernels launched.
    pub kernels: f64,
}

impl Parts {
    const COUNT: usize = 16;

    fn to_array(self) -> [f64; Self::COUNT] {
        [
            self.useful,
            self.wider,
            self.sustained,
            self.shape,
            self.memory,
            self.exponent,
            self.floor,
            self.tensor,
            self.expert,
            self.pipeline,
            self.imbalance,
            self.flops,
            self.bytes,
            self.wire_nvlink,
            self.wire_nic,
            self.kernels,
        ]
    }

    fn from_array(a: [f64; Self::COUNT]) -> Self {
        let [
            useful,
            wider,
            sustained,
            shape,
            memory,
            exponent,
            floor,
            tensor,
            expert,
            pipeline,
            imbalance,
            flops,
            bytes,
            wire_nvlink,
            wire_nic,
            kernels,
        ] = a;
        Self {
            useful,
            wider,
            sustained,
            shape,
            memory,
            exponent,
            floor,
            tensor,
            expert,
            pipeline,
            imbalance,
            flops,
            bytes,
            wire_nvlink,
            wire_nic,
            kernels,
        }
    }

    fn zip(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        let (a, b) = (self.to_array(), other.to_array());
        Self::from_array(std::array::from_fn(|i| f(a[i], b[i])))
    }

    /// Time on the SMs [s].
    pub fn compute(&self) -> f64 {
        self.useful
            + self.wider
            + self.sustained
            + self.shape
            + self.memory
            + self.exponent
            + self.floor
            + self.imbalance
    }

    /// Time in all, nothing beside anything [s].
    pub fn time(&self) -> f64 {
        self.compute() + self.tensor + self.expert + self.pipeline
    }

    /// The point a fraction `x` of the way from `self` to `to`.
    pub fn towards(self, to: Self, x: f64) -> Self {
        self.zip(to, |a, b| a + x * (b - a))
    }
}

impl Add for Parts {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
}

impl AddAssign for Parts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<f64> for Parts {
    type Output = Self;
    fn mul(self, factor: f64) -> Self {
        self.zip(self, |a, _| a * factor)
    }
}

impl std::iter::Sum for Parts {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Add::add)
    }
}
