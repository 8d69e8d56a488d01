//! The cost of steps, and of many steps of plain decoding at once.
//!
//! Between two grid points of context the cost of a decode step is a straight line in whole
//! picoseconds per token. So the sum over any number of steps has a closed form in integers, and
//! taking steps together gives the very numbers that one after the other gives.

use rackflow_plan::serving::{StepBatch, StepCost};
use rackflow_plan::{Accounts, Cause};
use rackflow_units::SimDuration;

/// What a replica's steps cost: the simulator's only question to the hardware.
pub trait StepModel {
    /// The cost of one step of this batch.
    fn step(&self, batch: &StepBatch<'_>) -> StepCost;
}

impl StepModel for rackflow_plan::serving::Instance {
    fn step(&self, batch: &StepBatch<'_>) -> StepCost {
        Self::step(self, batch)
    }
}

/// Levels of the fabric.
const LEVELS: usize = rackflow_topology::Level::ALL.len();

/// Sums of what steps did: exact, so that the order of summation does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Work {
    /// Steps.
    pub steps: u64,
    /// Wall time of them, in picoseconds.
    pub time_ps: u128,
    /// GPU-time by cause; sums to `time_ps` x GPUs.
    pub causes: Accounts,
    /// Operations that the batches needed.
    pub flops: u128,
    /// Bytes of weights and cache.
    pub bytes: u128,
    /// Bytes sent, by level.
    pub wire: [u128; LEVELS],
}

impl Work {
    /// Adds one step.
    pub fn add_step(&mut self, cost: &StepCost) {
        self.steps += 1;
        self.time_ps += u128::from(cost.time.as_picos());
        self.causes.add(&cost.causes, 1);
        self.flops += cost.flops as u128;
        self.bytes += cost.bytes_read as u128;
        for (sum, bytes) in self.wire.iter_mut().zip(cost.wire_bytes) {
            *sum += bytes as u128;
        }
    }

    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.time_ps += other.time_ps;
        self.causes.add(&other.causes, 1);
        self.flops += other.flops;
        self.bytes += other.bytes;
        for (sum, bytes) in self.wire.iter_mut().zip(other.wire) {
            *sum += bytes;
        }
    }
}

/// What is tabled: time, then flops, bytes and wire bytes, then causes.
const FIXED: usize = 3 + LEVELS;
const WIDTH: usize = FIXED + Cause::COUNT;

/// The cost of decode steps of so many sequences with a context in one interval of the grid.
#[derive(Debug, Clone)]
struct Line {
    /// Values at `from`, and what each token of context adds.
    at: Box<[(i64, i64)]>,
    /// Which causes are not zero, as indices into `at`.
    causes: Vec<(u16, Cause)>,
    from: u64,
    /// First context that is not on this line.
    to: u64,
}

/// `count` steps from a context that grows by `n` each: the sum of a line.
fn sum_of((at, slope): (i64, i64), first: u64, n: u64, count: u64) -> i128 {
    let (count, first, n) = (i128::from(count), i128::from(first), i128::from(n));
    i128::from(at) * count + i128::from(slope) * (first * count + n * (count * (count - 1) / 2))
}

/// The grid of mean contexts per sequence: equal steps, then eight per doubling.
fn grid(index: usize) -> u64 {
    const LINEAR: u64 = 64;
    const FIRST: usize = 8;
    if index <= FIRST {
        return index as u64 * LINEAR;
    }
    let beyond = index - FIRST;
    let octave = (FIRST as u64 * LINEAR) << (beyond / 8);
    octave + octave / 8 * (beyond % 8) as u64
}

fn grid_index(context: u64) -> usize {
    if context < 512 {
        return (context / 64) as usize;
    }
    let octave = (context / 512).ilog2();
    8 + octave as usize * 8 + ((context - (512 << octave)) / (64 << octave)) as usize
}

/// Costs of plain decode steps, tabled as they are asked for.
#[derive(Debug, Default)]
pub struct DecodeTable {
    /// By sequences, then by interval.
    lines: Vec<Vec<Option<Line>>>,
    gpus: u64,
}

impl DecodeTable {
    /// An empty table for replicas of so many GPUs.
    pub fn new(gpus: u32) -> Self {
        Self {
            lines: Vec::new(),
            gpus: u64::from(gpus),
        }
    }

    fn line(&mut self, model: &dyn StepModel, n: u64, context: u64) -> &Line {
        let row = n as usize;
        if self.lines.len() <= row {
            self.lines.resize_with(row + 1, Vec::new);
        }
        let interval = grid_index(context / n);
        let line = &mut self.lines[row];
        if line.len() <= interval {
            line.resize_with(interval + 1, || None);
        }
        line[interval].get_or_insert_with(|| build(model, n, interval, self.gpus))
    }

    /// Time of `count` steps of `n` sequences, the first with `context` tokens in all.
    pub fn time(&mut self, model: &dyn StepModel, n: u64, context: u64, count: u64) -> SimDuration {
        let mut time = 0_i128;
        let (mut context, mut left) = (context, count);
        while left > 0 {
            let line = self.line(model, n, context);
            let here = left.min((line.to - context).div_ceil(n));
            time += sum_of(line.at[0], context - line.from, n, here);
            left -= here;
            context += here * n;
        }
        SimDuration::from_picos(time as u64)
    }

    /// The fewest of at most `most` steps that take at least `span`, and their time.
    pub fn steps_reaching(
        &mut self,
        model: &dyn StepModel,
        (n, context): (u64, u64),
        span: SimDuration,
        most: u64,
    ) -> (u64, SimDuration) {
        let span = i128::from(span.as_picos());
        let mut time = 0_i128;
        let (mut context, mut done) = (context, 0);
        while done < most {
            let line = self.line(model, n, context);
            let here = (most - done).min((line.to - context).div_ceil(n));
            let first = context - line.from;
            let all = sum_of(line.at[0], first, n, here);
            if time + all >= span {
                let (mut low, mut high) = (1, here);
                while low < high {
                    let middle = low.midpoint(high);
                    if time + sum_of(line.at[0], first, n, middle) >= span {
                        high = middle;
                    } else {
                        low = middle + 1;
                    }
                }
                time += sum_of(line.at[0], first, n, low);
                return (done + low, SimDuration::from_picos(time as u64));
            }
            time += all;
            done += here;
            context += here * n;
        }
        (most, SimDuration::from_picos(time as u64))
    }

    /// Adds what `count` such steps do to `work`.
    pub fn book(
        &mut self,
        model: &dyn StepModel,
        (n, context): (u64, u64),
        count: u64,
        work: &mut Work,
    ) {
        work.steps += count;
        let (mut context, mut left) = (context, count);
        while left > 0 {
            let line = self.line(model, n, context);
            let here = left.min((line.to - context).div_ceil(n));
            let first = context - line.from;
            let sum = |index: usize| sum_of(line.at[index], first, n, here) as u128;
            work.time_ps += sum(0);
            work.flops += sum(1);
            work.bytes += sum(2);
            for (level, bytes) in work.wire.iter_mut().enumerate() {
                *bytes += sum(3 + level);
            }
            for (index, cause) in &line.causes {
                let picos = sum(usize::from(*index));
                work.causes
                    .book(*cause, SimDuration::from_picos(picos as u64));
            }
            left -= here;
            context += here * n;
        }
    }
}

fn values(cost: &StepCost) -> [i64; WIDTH] {
    let mut values = [0; WIDTH];
    values[0] = cost.time.as_picos() as i64;
    values[1] = cost.flops as i64;
    values[2] = cost.bytes_read as i64;
    for (value, bytes) in values[3..FIXED].iter_mut().zip(cost.wire_bytes) {
        *value = bytes as i64;
    }
    for (value, cause) in values[FIXED..].iter_mut().zip(Cause::all()) {
        *value = cost.causes.picos(cause) as i64;
    }
    values
}

fn build(model: &dyn StepModel, n: u64, interval: usize, gpus: u64) -> Line {
    let (from, to) = (grid(interval) * n, grid(interval + 1) * n);
    let low = values(&model.step(&StepBatch::decode(n, from)));
    let high = values(&model.step(&StepBatch::decode(n, to)));
    let width = (to - from) as i64;
    let mut at: Vec<(i64, i64)> = low
        .iter()
        .zip(high)
        // Towards zero, so that nothing that is positive at both ends is negative between them.
        .map(|(low, high)| (*low, (high - low) / width))
        .collect();
    // Rounding each slope leaves a few picoseconds per token: the largest cause takes them, so
    // that the causes sum to the time everywhere on the line.
    let largest = (FIXED..WIDTH)
        .max_by_key(|index| low[*index])
        .unwrap_or(FIXED);
    let slopes: i64 = at[FIXED..].iter().map(|(_, slope)| slope).sum();
    let values: i64 = at[FIXED..].iter().map(|(value, _)| value).sum();
    at[largest].1 += at[0].1 * gpus as i64 - slopes;
    at[largest].0 += at[0].0 * gpus as i64 - values;
    let causes = Cause::all()
        .enumerate()
        .map(|(index, cause)| ((FIXED + index) as u16, cause))
        .filter(|(index, _)| at[usize::from(*index)] != (0, 0))
        .collect();
    Line {
        at: at.into_boxed_slice(),
        causes,
        from,
        to,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_and_its_index_agree() {
        for index in 0..200 {
            assert_eq!(grid_index(grid(index)), index);
            assert_eq!(grid_index(grid(index + 1) - 1), index);
        }
    }
}
