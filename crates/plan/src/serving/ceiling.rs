//! The most that a replica could ever do: what its steps cost in the best of batches.
//!
//! A search leaves out ways whose ceiling is below what another way has been seen to do. So a ceiling
//! must never be too low: whatever cannot be bounded counts as free.

use super::{Instance, PrefillChunk, StepBatch};
use rackflow_units::SimDuration;
use rackflow_workload::{Decoder, EngineConfig, Length, RequestPlan, Shapes};

/// What a mean request asks for at least.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Tokens of its prompt that no cache can hold.
    pub fresh: f64,
    /// Tokens that it attends to before its answer begins.
    pub context: f64,
    /// Tokens of its answer.
    pub output: f64,
}

impl Demand {
    /// What drawn requests ask for; nothing is known of a trace before it is read.
    pub fn of(plan: &RequestPlan) -> Self {
        match &plan.shapes {
            Shapes::Drawn { input, output, .. } => Self {
                fresh: mean(*input),
                context: mean(*input),
                output: mean(*output),
            },
            Shapes::Trace { .. } => Self {
                fresh: 0.0,
                context: 0.0,
                output: 1.0,
            },
        }
    }
}

/// Mean of a length; of a log-normal one that is cut, the mean of what is left of it.
fn mean(length: Length) -> f64 {
    match length {
        Length::Fixed(tokens) => f64::from(tokens),
        Length::Uniform { min, max } => f64::midpoint(min.into(), max.into()),
        Length::LogNormal { median, sigma, max } => {
            // The integral of the quantiles, by the middle of a thousand parts.
            let part = |i: u32| {
                let p = (f64::from(i) + 0.5) / 1000.0;
                (f64::from(median) * libm::exp(sigma * normal_quantile(p))).min(max.into())
            };
            (0..1000).map(part).sum::<f64>() / 1000.0
        }
    }
}

/// Quantile of the normal distribution, by bisection of its integral.
fn normal_quantile(p: f64) -> f64 {
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

/// Ceilings of one replica, in requests per second, and the pace of a lone user.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceiling {
    /// If it did nothing but prompts.
    pub prefill: f64,
    /// If it did nothing but answers, each at a pace inside the objective.
    pub decode: f64,
    /// Tokens per second of one answer, alone.
    pub pace: f64,
}

/// Between two sizes of batch that are priced, the best is no further above them than this.
const BETWEEN: f64 = 1.05;

impl Ceiling {
    /// Those of `instance` with these limits, when answers may take `tpot` per token.
    pub fn of(
        instance: &Instance,
        engine: &EngineConfig,
        decoder: Decoder,
        demand: &Demand,
        tpot: Option<SimDuration>,
    ) -> Self {
        let (queries, gain) = match decoder {
            Decoder::Autoregressive => (1, 1.0),
            Decoder::Speculative(guess) => (
                1 + u64::from(guess.draft_tokens),
                guess.tokens_per_step().max(1.0),
            ),
            // What a step of these delivers differs from step to step.
            Decoder::BlockDiffusion { .. } | Decoder::FullDiffusion { .. } => {
                return Self {
                    prefill: f64::INFINITY,
                    decode: f64::INFINITY,
                    pace: f64::INFINITY,
                };
            }
        };
        let step = |sequences: u64| {
            let batch = StepBatch {
                prefill: &[],
                decode_sequences: sequences,
                decode_context_tokens: (sequences as f64 * demand.context) as u64,
                tokens_per_sequence: queries,
            };
            instance.step(&batch).time.as_secs_f64()
        };
        let held = demand.fresh.max(1.0);
        let room = (instance.kv_capacity_tokens() as f64 / held) as u64;
        let most = u64::from(engine.max_num_seqs).min(room).max(1);
        let slowest = tpot.map_or(f64::INFINITY, |tpot| tpot.as_secs_f64() * gain);
        let tokens = sizes(most)
            .map(|sequences| (sequences as f64 * gain, step(sequences)))
            .filter(|(_, time)| *time <= slowest)
            .map(|(tokens, time)| tokens / time)
            .fold(0.0, f64::max);
        let later = demand.output - 1.0;
        Self {
            prefill: prompts(instance, engine, demand),
            decode: if later > 0.0 {
                BETWEEN * tokens / later
            } else {
                f64::INFINITY
            },
            pace: gain / step(1),
        }
    }

    /// Of a replica that does both: what it computes together takes no less than either part.
    pub fn both(&self) -> f64 {
        self.prefill.min(self.decode)
    }
}

/// Prompts per second in the best of batches.
fn prompts(instance: &Instance, engine: &EngineConfig, demand: &Demand) -> f64 {
    if demand.fresh < 1.0 {
        return f64::INFINITY;
    }
    let most = u64::from(engine.max_num_batched_tokens).max(demand.fresh as u64);
    let each = demand.fresh as u64;
    let rate = |tokens: u64| {
        let mut chunks = vec![
            PrefillChunk {
                new_tokens: each.min(tokens),
                cached_tokens: 0,
            };
            (tokens / each).clamp(1, 4096) as usize
        ];
        let taken: u64 = chunks.iter().map(|chunk| chunk.new_tokens).sum();
        if taken < tokens && chunks.len() < 4096 {
            chunks.push(PrefillChunk {
                new_tokens: tokens - taken,
                cached_tokens: 0,
            });
        }
        let all: u64 = chunks.iter().map(|chunk| chunk.new_tokens).sum();
        let time = instance.step(&StepBatch::prefill(&chunks)).time;
        all as f64 / time.as_secs_f64()
    };
    let best = sizes(most).map(rate).fold(0.0, f64::max);
    BETWEEN * best / demand.fresh
}

/// Sizes of batches, four per doubling, up to the largest.
fn sizes(most: u64) -> impl Iterator<Item = u64> {
    let mut last = 0;
    (0..)
        .map(|index: i32| libm::exp2(f64::from(index) / 4.0) as u64)
        .take_while(move |size| *size < most)
        .chain([most])
        .filter(move |size| std::mem::replace(&mut last, *size) != *size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_those_of_the_draws() {
        assert_eq!(mean(Length::Uniform { min: 2, max: 5 }), 3.5);
        let wide = mean(Length::LogNormal {
            median: 100,
            sigma: 0.5,
            max: 1_000_000,
        });
        assert!(
            (wide / (100.0 * libm::exp(0.125)) - 1.0).abs() < 0.002,
            "{wide}"
        );
        let cut = mean(Length::LogNormal {
            median: 100,
            sigma: 0.5,
            max: 100,
        });
        assert!(cut < 100.0 && cut > 80.0, "{cut}");
    }

    #[test]
    fn sizes_rise_to_the_largest() {
        assert_eq!(sizes(1).collect::<Vec<_>>(), [1]);
        assert_eq!(
            sizes(7).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5, 6, 7][..].to_vec()
        );
        assert_eq!(sizes(1000).last(), Some(1000));
    }
}
