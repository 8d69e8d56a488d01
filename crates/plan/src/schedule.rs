//! The order in which each pipeline stage takes its forward and backward passes.
//!
//! A schedule knows passes, not times: the simulator finds out how long the stages wait.

use rackflow_workload::Schedule;

/// One entry of a stage's order. `chunk` counts the model chunks that the stage holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// Forward.
    Forward {
        /// Which micro-batch.
        micro_batch: u32,
        /// Which chunk of the stage.
        chunk: u32,
    },
    /// Backward, with the weight gradients.
    Backward {
        /// Which micro-batch.
        micro_batch: u32,
        /// Which chunk of the stage.
        chunk: u32,
    },
    /// Backward without the weight gradients: only what the stage before waits for.
    InputGradient {
        /// Which micro-batch.
        micro_batch: u32,
        /// Which chunk of the stage.
        chunk: u32,
    },
    /// The weight gradients of an earlier [`Pass::InputGradient`].
    WeightGradient {
        /// Which micro-batch.
        micro_batch: u32,
        /// Which chunk of the stage.
        chunk: u32,
    },
    /// A forward and a backward of different micro-batches, interleaved layer by layer so that
    /// the communication of one runs beside the computation of the other.
    Overlapped {
        /// Micro-batch and chunk that go forward.
        forward: (u32, u32),
        /// Micro-batch and chunk that go backward.
        backward: (u32, u32),
    },
}

/// What a schedule is made for.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Pipeline stages.
    pub stages: u32,
    /// Model chunks per stage.
    pub chunks: u32,
    /// Micro-batches.
    pub micro_batches: u32,
    /// Adjacent forward and backward passes of the steady state are [`Pass::Overlapped`].
    pub overlap_passes: bool,
}

/// The order of `stage`.
///
/// # Panics
/// When DualPipe gets an odd number of stages or fewer micro-batches than twice the stages;
/// [`crate::compile`] refuses these first.
pub fn order(schedule: Schedule, shape: Shape, stage: u32) -> Vec<Pass> {
    match schedule {
        Schedule::Gpipe => gpipe(shape),
        Schedule::OneForwardOneBackward if shape.chunks == 1 => {
            one_forward_one_backward(shape, stage)
        }
        Schedule::OneForwardOneBackward => interleaved(shape, stage),
        Schedule::ZeroBubbleH1 => zero_bubble(shape, zb_h1).swap_remove(stage as usize),
        Schedule::ZeroBubbleH2 => zero_bubble(shape, zb_h2).swap_remove(stage as usize),
        Schedule::Dualpipe => dualpipe(shape, stage),
    }
}

/// The orders of all stages, which cost less together than one by one.
///
/// # Panics
/// As [`order`] does.
pub fn orders(schedule: Schedule, shape: Shape) -> Vec<Vec<Pass>> {
    match schedule {
        Schedule::ZeroBubbleH1 => zero_bubble(shape, zb_h1),
        Schedule::ZeroBubbleH2 => zero_bubble(shape, zb_h2),
        _ => (0..shape.stages)
            .map(|stage| order(schedule, shape, stage))
            .collect(),
    }
}

/// What a stage keeps at its fullest moments: of each chunk, how many micro-batches wait for their
/// backward pass, and how many for their weight gradients alone. Moments that hold no more of
/// anything than another one are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct InFlight {
    moments: Vec<Vec<(u32, u32)>>,
}

impl InFlight {
    /// Of a stage with so many chunks that works in this order. Two passes woven into one go through their
    /// layers side by side: what the forward pass keeps takes the place of what the backward pass frees.
    /// DualPipe's go through different parts of the model, and count both ("PP + 1", arXiv 2412.19437).
    pub fn of(order: &[Pass], chunks: usize, schedule: Schedule) -> Self {
        let mut found = Self::default();
        let mut now = vec![(0u32, 0u32); chunks];
        let both = schedule == Schedule::Dualpipe;
        for pass in order {
            match *pass {
                Pass::Forward { chunk, .. } => now[chunk as usize].0 += 1,
                Pass::Backward { chunk, .. } => {
                    found.note(&now);
                    now[chunk as usize].0 -= 1;
                }
                Pass::InputGradient { chunk, .. } => {
                    found.note(&now);
                    now[chunk as usize].0 -= 1;
                    now[chunk as usize].1 += 1;
                }
                Pass::WeightGradient { chunk, .. } => {
                    found.note(&now);
                    now[chunk as usize].1 -= 1;
                }
                Pass::Overlapped { forward, backward } => {
                    found.note(&now);
                    now[forward.1 as usize].0 += 1;
                    if both {
                        found.note(&now);
                    }
                    now[backward.1 as usize].0 -= 1;
                }
            }
        }
        found.note(&now);
        found
    }

    fn note(&mut self, now: &[(u32, u32)]) {
        // What is still whole is no less than what waits for its weight gradients.
        let within = |less: &[(u32, u32)], more: &[(u32, u32)]| {
            less.iter()
                .zip(more)
                .all(|(less, more)| less.0 <= more.0 && less.0 + less.1 <= more.0 + more.1)
        };
        if self.moments.iter().any(|known| within(now, known)) {
            return;
        }
        self.moments.retain(|known| !within(known, now));
        self.moments.push(now.to_vec());
    }

    /// The most bytes at once, where a micro-batch keeps so many of each chunk. What a weight gradient
    /// still needs is about half of it.
    pub fn peak(&self, bytes_of_chunk: &[u64]) -> u64 {
        let at = |moment: &Vec<(u32, u32)>| {
            let held = moment.iter().zip(bytes_of_chunk);
            held.map(|((whole, rest), bytes)| {
                u64::from(*whole) * bytes + u64::from(*rest) * (bytes - bytes / 2)
            })
            .sum::<u64>()
        };
        self.moments.iter().map(at).max().unwrap_or(0)
    }
}

/// Micro-batches in flight of ZB-H1: the memory of 1F1B.
fn zb_h1(stage: u32, stages: u32) -> (u32, u32) {
    (stages - stage, stages)
}

/// Micro-batches in flight of ZB-H2: enough to leave no bubble.
fn zb_h2(stage: u32, stages: u32) -> (u32, u32) {
    (2 * (stages - stage) - 1, 2 * stages - 1)
}

fn gpipe(shape: Shape) -> Vec<Pass> {
    let forwards = (0..shape.chunks).flat_map(|chunk| {
        (0..shape.micro_batches).map(move |micro_batch| Pass::Forward { micro_batch, chunk })
    });
    let backwards = (0..shape.chunks).rev().flat_map(|chunk| {
        (0..shape.micro_batches).map(move |micro_batch| Pass::Backward { micro_batch, chunk })
    });
    forwards.chain(backwards).collect()
}

/// Narayanan et al., "Efficient large-scale language model training on GPU clusters", 2021, 2.2.1.
fn one_forward_one_backward(shape: Shape, stage: u32) -> Vec<Pass> {
    let m = shape.micro_batches;
    // Without a pipeline, one more forward in flight gives every backward pass a partner (Megatron's
    // combined schedule for no pipelining).
    let partner = u32::from(shape.overlap_passes && shape.stages == 1);
    let warm_up = (shape.stages - stage - 1 + partner).min(m);
    steady(m, warm_up, shape.overlap_passes, |k| (k, 0), |k| (k, 0))
}

/// The interleaved schedule of the same paper, 2.2.2, in the order that Megatron-LM gives it:
/// groups of `stages` micro-batches go through one chunk after the other.
fn interleaved(shape: Shape, stage: u32) -> Vec<Pass> {
    let (p, v, m) = (shape.stages, shape.chunks, shape.micro_batches);
    let total = m * v;
    let warm_up = if m == p {
        total
    } else {
        // With overlapped passes one more forward must be in flight.
        ((p - stage - 1) * 2 + (v - 1) * p + u32::from(shape.overlap_passes)).min(total)
    };
    let place = move |k: u32| {
        // The last group is smaller where the micro-batches do not divide by the stages.
        let group = k / (p * v);
        let size = p.min(m - group * p);
        let within = k - group * p * v;
        (group * p + within % size, within / size)
    };
    steady(total, warm_up, shape.overlap_passes, place, move |k| {
        let (micro_batch, chunk) = place(k);
        (micro_batch, v - 1 - chunk)
    })
}

/// Warm-up forwards, then one forward and one backward at a time, then the last backwards.
fn steady(
    total: u32,
    warm_up: u32,
    overlap: bool,
    forward: impl Fn(u32) -> (u32, u32),
    backward: impl Fn(u32) -> (u32, u32),
) -> Vec<Pass> {
    let f = |k| {
        let (micro_batch, chunk) = forward(k);
        Pass::Forward { micro_batch, chunk }
    };
    let b = |k| {
        let (micro_batch, chunk) = backward(k);
        Pass::Backward { micro_batch, chunk }
    };
    let mut order = Vec::with_capacity(2 * total as usize);
    order.extend((0..warm_up).map(f));
    for k in 0..total - warm_up {
        let pair = (forward(warm_up + k), backward(k));
        // A pass cannot overlap with the backward pass of the very same micro-batch and chunk.
        if overlap && pair.0 != pair.1 {
            order.push(Pass::Overlapped {
                forward: pair.0,
                backward: pair.1,
            });
        } else {
            order.push(f(warm_up + k));
            order.push(b(k));
        }
    }
    order.extend((total - warm_up..total).map(b));
    order
}

/// Zero-bubble schedules (Qi et al. 2023): a greedy list schedule in which forward, input gradient
/// and weight gradient take equal time, as in the paper's hand-written H1 and H2. A stage prefers
/// a forward, then the input gradient, then a weight gradient. `limits(stage, stages)` are the
/// micro-batches that may wait for their backward pass, and those whose activations may be kept.
fn zero_bubble(shape: Shape, limits: impl Fn(u32, u32) -> (u32, u32)) -> Vec<Vec<Pass>> {
    let (p, m) = (shape.stages as usize, shape.micro_batches);
    let mut orders = vec![Vec::with_capacity(3 * m as usize); p];
    let mut forwards = vec![0u32; p];
    let mut inputs = vec![0u32; p];
    let mut weights = vec![0u32; p];
    let (mut f_before, mut b_before) = (forwards.clone(), inputs.clone());
    let mut unfinished = p;
    while unfinished > 0 {
        // What was finished before this tick decides what may run in it.
        f_before.copy_from_slice(&forwards);
        b_before.copy_from_slice(&inputs);
        let mut progress = false;
        for s in 0..p {
            let f_ready = forwards[s] < m && (s == 0 || f_before[s - 1] > forwards[s]);
            let b_ready = inputs[s] < m
                && f_before[s] > inputs[s]
                && (s == p - 1 || b_before[s + 1] > inputs[s]);
            let (waiting, kept) = limits(s as u32, p as u32);
            let room = forwards[s] - inputs[s] < waiting && forwards[s] - weights[s] < kept;
            let pass = if f_ready && room {
                forwards[s] += 1;
                Pass::Forward {
                    micro_batch: forwards[s] - 1,
                    chunk: 0,
                }
            } else if b_ready {
                inputs[s] += 1;
                Pass::InputGradient {
                    micro_batch: inputs[s] - 1,
                    chunk: 0,
                }
            } else if weights[s] < inputs[s] {
                weights[s] += 1;
                Pass::WeightGradient {
                    micro_batch: weights[s] - 1,
                    chunk: 0,
                }
            } else {
                continue;
            };
            orders[s].push(pass);
            unfinished -= usize::from(orders[s].len() == 3 * m as usize);
            progress = true;
        }
        assert!(
            progress,
            "a zero-bubble schedule always has a pass that is ready"
        );
    }
    orders
}

/// DualPipe (DeepSeek-AI 2024): micro-batches enter from both ends, every stage holds two chunks
/// (its own stage of the forward direction and of the reverse one), and the steady state runs the
/// forward pass of one direction beside the backward pass of the other. Chunk 0 is the direction
/// that enters at the stage's own nearer end, as in the paper's Figure 5.
fn dualpipe(shape: Shape, stage: u32) -> Vec<Pass> {
    let (p, m) = (shape.stages, shape.micro_batches);
    assert!(
        p % 2 == 0 && m % 2 == 0 && m >= 2 * p,
        "DualPipe needs even stages and m >= 2p"
    );
    let half = p / 2;
    let in_second_half = stage >= half;
    let half_rank = stage.min(p - 1 - stage);
    let half_chunks = m / 2;
    // `phase` 0 is the nearer direction; chunk 0 of a stage is the direction that enters at stage 0.
    let chunk = |phase: u32| phase ^ u32::from(in_second_half);
    // The two directions take the even and the odd micro-batches.
    let id = |phase: u32, k: u32| 2 * k + chunk(phase);

    let mut order = Vec::with_capacity(2 * m as usize);
    let mut f = [0u32; 2];
    let mut b = [0u32; 2];
    let mut delayed = std::collections::VecDeque::new();
    let next = |counter: &mut [u32; 2], phase: u32| {
        let k = counter[phase as usize];
        counter[phase as usize] += 1;
        (id(phase, k), chunk(phase))
    };
    let forward = |order: &mut Vec<Pass>, f: &mut [u32; 2], phase: u32| {
        let (micro_batch, chunk) = next(f, phase);
        order.push(Pass::Forward { micro_batch, chunk });
    };

    // 1: forwards of the nearer direction fill the pipeline.
    for _ in 0..(half - half_rank - 1) * 2 {
        forward(&mut order, &mut f, 0);
    }
    // 2: both directions.
    for _ in 0..half_rank + 1 {
        forward(&mut order, &mut f, 0);
        forward(&mut order, &mut f, 1);
    }
    // 3: the farther direction's backwards begin; weight gradients fill the gaps.
    for _ in 0..half - half_rank - 1 {
        let (micro_batch, c) = (id(1, b[1]), chunk(1));
        b[1] += 1;
        order.push(Pass::InputGradient {
            micro_batch,
            chunk: c,
        });
        order.push(Pass::WeightGradient {
            micro_batch,
            chunk: c,
        });
        let (micro_batch, c) = (id(1, f[1]), chunk(1));
        f[1] += 1;
        order.push(Pass::Forward {
            micro_batch,
            chunk: c,
        });
    }
    // 4: the steady state.
    let pair = |order: &mut Vec<Pass>, f: &mut [u32; 2], b: &mut [u32; 2], forward: u32| {
        let backward = 1 - forward;
        let fw = (id(forward, f[forward as usize]), chunk(forward));
        let bw = (id(backward, b[backward as usize]), chunk(backward));
        f[forward as usize] += 1;
        b[backward as usize] += 1;
        order.push(Pass::Overlapped {
            forward: fw,
            backward: bw,
        });
    };
    for i in 0..half_chunks - p + half_rank + 1 {
        if i == 0 && half_rank == half - 1 {
            // The middle stages have nothing to overlap the very first pair with.
            let (micro_batch, c) = (id(0, f[0]), chunk(0));
            f[0] += 1;
            order.push(Pass::Forward {
                micro_batch,
                chunk: c,
            });
            let (micro_batch, c) = (id(1, b[1]), chunk(1));
            b[1] += 1;
            order.push(Pass::Backward {
                micro_batch,
                chunk: c,
            });
        } else {
            pair(&mut order, &mut f, &mut b, 0);
        }
        pair(&mut order, &mut f, &mut b, 1);
    }
    // 5: the nearer direction has no more forwards.
    for _ in 0..half - half_rank - 1 {
        let (micro_batch, c) = (id(1, b[1]), chunk(1));
        b[1] += 1;
        order.push(Pass::Backward {
            micro_batch,
            chunk: c,
        });
        pair(&mut order, &mut f, &mut b, 1);
    }
    // 6: backwards of both directions; the later half leaves its weight gradients for the gaps.
    let mut late = false;
    for i in 0..half_rank + 1 {
        for phase in [1, 0] {
            if i == half_rank.div_ceil(2) && half_rank % 2 == u32::from(phase == 1) {
                late = true;
            }
            let (micro_batch, c) = (id(phase, b[phase as usize]), chunk(phase));
            b[phase as usize] += 1;
            if late {
                order.push(Pass::InputGradient {
                    micro_batch,
                    chunk: c,
                });
                delayed.push_back((micro_batch, c));
            } else {
                order.push(Pass::Backward {
                    micro_batch,
                    chunk: c,
                });
            }
        }
    }
    // 7 and 8: the remaining input gradients between the delayed weight gradients.
    for _ in 0..half - half_rank - 1 {
        if let Some((micro_batch, c)) = delayed.pop_front() {
            order.push(Pass::WeightGradient {
                micro_batch,
                chunk: c,
            });
        }
        let (micro_batch, c) = (id(0, b[0]), chunk(0));
        b[0] += 1;
        order.push(Pass::InputGradient {
            micro_batch,
            chunk: c,
        });
        delayed.push_back((micro_batch, c));
    }
    for (micro_batch, chunk) in delayed {
        order.push(Pass::WeightGradient { micro_batch, chunk });
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Every micro-batch goes once forward and once backward through every chunk of the stage,
    /// forward first and weight gradient last.
    fn check_complete(order: &[Pass], expected: impl Iterator<Item = (u32, u32)>) {
        let (mut f, mut b, mut w) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for pass in order {
            match *pass {
                Pass::Forward { micro_batch, chunk } => assert!(f.insert((micro_batch, chunk))),
                Pass::Backward { micro_batch, chunk } => {
                    assert!(f.contains(&(micro_batch, chunk)));
                    assert!(b.insert((micro_batch, chunk)) && w.insert((micro_batch, chunk)));
                }
                Pass::InputGradient { micro_batch, chunk } => {
                    assert!(f.contains(&(micro_batch, chunk)) && b.insert((micro_batch, chunk)));
                }
                Pass::WeightGradient { micro_batch, chunk } => {
                    assert!(b.contains(&(micro_batch, chunk)) && w.insert((micro_batch, chunk)));
                }
                Pass::Overlapped { forward, backward } => {
                    assert!(
                        f.contains(&backward),
                        "{backward:?} overlaps its own forward"
                    );
                    assert!(f.insert(forward) && b.insert(backward) && w.insert(backward));
                }
            }
        }
        let expected: BTreeSet<_> = expected.collect();
        assert_eq!(f, expected);
        assert_eq!(b, expected);
        assert_eq!(w, expected);
    }

    #[test]
    fn every_schedule_is_complete() {
        for stages in [1, 2, 4, 6, 8] {
            for micro_batches in [1, 2, 3, 8, 13, 16, 40] {
                for overlap_passes in [false, true] {
                    for stage in 0..stages {
                        let one = Shape {
                            stages,
                            chunks: 1,
                            micro_batches,
                            overlap_passes,
                        };
                        let all = || (0..micro_batches).map(|m| (m, 0));
                        check_complete(&order(Schedule::Gpipe, one, stage), all());
                        check_complete(&order(Schedule::OneForwardOneBackward, one, stage), all());
                        check_complete(&order(Schedule::ZeroBubbleH1, one, stage), all());
                        check_complete(&order(Schedule::ZeroBubbleH2, one, stage), all());
                        let three = Shape { chunks: 3, ..one };
                        let all = (0..micro_batches).flat_map(|m| (0..3).map(move |c| (m, c)));
                        check_complete(&order(Schedule::OneForwardOneBackward, three, stage), all);
                    }
                }
            }
        }
    }

    #[test]
    fn dualpipe_is_complete_and_each_direction_takes_half() {
        for stages in [2, 4, 8, 16] {
            for micro_batches in [2 * stages, 2 * stages + 4, 120] {
                if micro_batches < 2 * stages {
                    continue;
                }
                for stage in 0..stages {
                    let shape = Shape {
                        stages,
                        chunks: 2,
                        micro_batches,
                        overlap_passes: true,
                    };
                    let order = order(Schedule::Dualpipe, shape, stage);
                    check_complete(&order, (0..micro_batches).map(|m| (m, m % 2)));
                }
            }
        }
    }

    #[test]
    fn one_forward_one_backward_of_the_first_of_four_stages() {
        let shape = Shape {
            stages: 4,
            chunks: 1,
            micro_batches: 5,
            overlap_passes: false,
        };
        let text: String = order(Schedule::OneForwardOneBackward, shape, 0)
            .iter()
            .map(|pass| match pass {
                Pass::Forward { micro_batch, .. } => format!("F{micro_batch} "),
                Pass::Backward { micro_batch, .. } => format!("B{micro_batch} "),
                other => panic!("{other:?} in 1F1B"),
            })
            .collect();
        assert_eq!(text, "F0 F1 F2 F3 B0 F4 B1 B2 B3 B4 ");
    }

    /// Makespan of a schedule in which every pass of a third of a micro-batch takes one tick
    /// (forward 1, backward 2, or input and weight gradient 1 each) and messages take none.
    fn makespan(schedule: Schedule, shape: Shape) -> u32 {
        let orders: Vec<Vec<Pass>> = (0..shape.stages)
            .map(|s| order(schedule, shape, s))
            .collect();
        let (p, m) = (shape.stages as usize, shape.micro_batches as usize);
        let mut next = vec![0; p];
        let mut free = vec![0u32; p];
        let mut forward = vec![vec![None; m]; p];
        let mut backward = vec![vec![None; m]; p];
        while (0..p).any(|s| next[s] < orders[s].len()) {
            let before = next.clone();
            for s in 0..p {
                let Some(pass) = orders[s].get(next[s]) else {
                    continue;
                };
                let (ready, time) = match *pass {
                    Pass::Forward { micro_batch, .. } => (
                        if s == 0 {
                            Some(0)
                        } else {
                            forward[s - 1][micro_batch as usize]
                        },
                        1,
                    ),
                    Pass::Backward { micro_batch, .. } => (
                        if s == p - 1 {
                            Some(0)
                        } else {
                            backward[s + 1][micro_batch as usize]
                        },
                        2,
                    ),
                    Pass::InputGradient { micro_batch, .. } => (
                        if s == p - 1 {
                            Some(0)
                        } else {
                            backward[s + 1][micro_batch as usize]
                        },
                        1,
                    ),
                    _ => (Some(0), 1),
                };
                let Some(ready) = ready else { continue };
                free[s] = free[s].max(ready) + time;
                match *pass {
                    Pass::Forward { micro_batch, .. } => {
                        forward[s][micro_batch as usize] = Some(free[s])
                    }
                    Pass::Backward { micro_batch, .. }
                    | Pass::InputGradient { micro_batch, .. } => {
                        backward[s][micro_batch as usize] = Some(free[s]);
                    }
                    _ => {}
                }
                next[s] += 1;
            }
            assert_ne!(before, next, "the schedule deadlocks");
        }
        free.into_iter().max().unwrap_or(0)
    }

    /// Bubbles of Qi et al. 2023, table 2, with equal passes: (p - 1) (F + B + W) for 1F1B and a
    /// third of it for the zero-bubble schedules as a whole step sees them.
    #[test]
    fn bubbles_are_those_of_the_papers() {
        for (stages, micro_batches) in [(2, 4), (4, 8), (4, 16), (8, 16), (8, 40)] {
            let shape = Shape {
                stages,
                chunks: 1,
                micro_batches,
                overlap_passes: false,
            };
            let work = 3 * micro_batches;
            assert_eq!(
                makespan(Schedule::OneForwardOneBackward, shape),
                work + 3 * (stages - 1)
            );
            assert_eq!(makespan(Schedule::Gpipe, shape), work + 3 * (stages - 1));
            assert_eq!(
                makespan(Schedule::ZeroBubbleH1, shape),
                work + stages - 1,
                "H1 {shape:?}"
            );
            assert_eq!(
                makespan(Schedule::ZeroBubbleH2, shape),
                work + stages - 1,
                "H2 {shape:?}"
            );
        }
    }
}
