//! Two half batches that take turns: one computes while the other communicates.
//!
//! Both are cut into stages, and the stages follow each other in a fixed order, as in SGLang's
//! `operations_strategy.py`, which is written after DeepSeek's account of its service. A stage that has to wait
//! for its tokens keeps the other half waiting too.

/// One layer of one half batch [s].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Layer {
    /// What is before attention itself.
    pub prepare: f64,
    /// Attention itself and what is between it and the dispatch.
    pub attend: f64,
    /// Dispatch.
    pub dispatch: f64,
    /// Shared experts.
    pub shared: f64,
    /// Experts.
    pub experts: f64,
    /// Combine.
    pub combine: f64,
}

/// What two half batches take together [s]. `time` is compute of both, `contention` and `exposed`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Woven {
    /// From the first kernel to the last.
    pub time: f64,
    /// Compute that communication slowed by the SMs it held.
    pub contention: f64,
    /// No kernel ran.
    pub exposed: f64,
}

/// Layers that are simulated; from then on every layer is like the one before.
const SIMULATED: u64 = 8;

/// Runs `layers` layers of two equal half batches. A communication holds `sm_share` of the SMs.
pub(super) fn weave(layer: &Layer, layers: u64, decoding: bool, sm_share: f64) -> Woven {
    let run = |layers| {
        if decoding {
            five_stages(layer, layers, sm_share)
        } else {
            two_stages(layer, layers, sm_share)
        }
    };
    if layers <= SIMULATED {
        return run(layers);
    }
    let half = run(SIMULATED / 2);
    let all = run(SIMULATED);
    let more = (layers - SIMULATED) as f64 / (SIMULATED / 2) as f64;
    let extend = |end: f64, middle: f64| end + (end - middle) * more;
    Woven {
        time: extend(all.time, half.time),
        contention: extend(all.contention, half.contention),
        exposed: extend(all.exposed, half.exposed),
    }
}

/// Steps that generate: attention is cut in two, and the second half batch is two stages behind, so that
/// its attention hides the combine of the first. The shared expert runs beside the dispatch.
fn five_stages(layer: &Layer, layers: u64, sm_share: f64) -> Woven {
    const BEHIND: u64 = 2;
    let mut run = Run::new(sm_share);
    let stage = |run: &mut Run, half: usize, at: u64| match at % 5 {
        0 => run.compute(layer.prepare),
        1 => run.compute(layer.attend),
        2 => {
            run.send(half, layer.dispatch);
            run.compute(layer.shared);
        }
        3 => {
            run.wait(half);
            run.compute(layer.experts);
            run.send(half, layer.combine);
        }
        _ => run.wait(half),
    };
    let end = layers * 5;
    for at in 0..end + BEHIND {
        if at < end {
            stage(&mut run, 0, at);
        }
        if at >= BEHIND {
            stage(&mut run, 1, at - BEHIND);
        }
    }
    run.woven
}

/// Steps with prompts: attention and experts in turn; the shared expert runs beside the combine.
fn two_stages(layer: &Layer, layers: u64, sm_share: f64) -> Woven {
    let mut run = Run::new(sm_share);
    let end = layers * 2;
    for at in 0..=end {
        for half in 0..2 {
            if at % 2 == 1 {
                run.wait(half);
                run.compute(layer.experts);
                run.send(half, layer.combine);
                continue;
            }
            if at > 0 {
                run.compute(layer.shared);
                run.wait(half);
            }
            if at < end {
                run.compute(layer.prepare + layer.attend);
                run.send(half, layer.dispatch);
            }
        }
    }
    run.woven
}

/// The SMs, and the wires on which one exchange follows the other.
struct Run {
    woven: Woven,
    /// What an exchange leaves of the SMs.
    rate: f64,
    /// When the wires are free [s].
    free: f64,
    /// When the tokens of each half are where they were sent [s].
    arrived: [f64; 2],
}

impl Run {
    fn new(sm_share: f64) -> Self {
        Self {
            woven: Woven::default(),
            rate: 1.0 - sm_share,
            free: 0.0,
            arrived: [0.0; 2],
        }
    }

    /// Whatever was sent travels without a gap until the wires are free.
    fn compute(&mut self, span: f64) {
        let beside = (self.free - self.woven.time).max(0.0);
        let slowed = (span / self.rate).min(beside) * (1.0 - self.rate);
        self.woven.contention += slowed;
        self.woven.time += span + slowed;
    }

    fn send(&mut self, half: usize, span: f64) {
        self.free = self.free.max(self.woven.time) + span;
        self.arrived[half] = self.free;
    }

    fn wait(&mut self, half: usize) {
        let idle = (self.arrived[half] - self.woven.time).max(0.0);
        self.woven.exposed += idle;
        self.woven.time += idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layer(attention: f64, dispatch: f64, experts: f64, combine: f64) -> Layer {
        Layer {
            prepare: 0.25 * attention,
            attend: 0.75 * attention,
            dispatch,
            shared: 0.0,
            experts,
            combine,
        }
    }

    #[test]
    fn communication_that_is_shorter_than_compute_hides() {
        // Two halves of 2 s compute per layer; only the last combine shows.
        let woven = weave(&layer(1.0, 0.5, 1.0, 0.5), 100, false, 0.0);
        assert!((woven.exposed - 0.5).abs() < 1e-9, "{woven:?}");
        assert!((woven.time - 400.5).abs() < 1e-9, "{woven:?}");
    }

    #[test]
    fn a_long_combine_hides_behind_attention_while_generating() {
        // Experts of 0.3 s do not hide a combine of 0.7 s, attention of 0.75 s does.
        let one = layer(1.0, 0.2, 0.3, 0.7);
        let [decoding, prompts] = [true, false].map(|decoding| weave(&one, 100, decoding, 0.0));
        assert!(decoding.exposed < 1.0, "{decoding:?}");
        assert!(prompts.exposed > 100.0 * 0.3, "{prompts:?}");
    }

    #[test]
    fn a_shared_expert_hides_what_experts_leave_of_a_combine() {
        let without = layer(1.0, 0.2, 0.3, 0.7);
        let with = Layer {
            shared: 0.25,
            ..without
        };
        let [without, with] = [without, with].map(|layer| weave(&layer, 100, false, 0.0).exposed);
        assert!(
            (without - with - 100.0 * 0.25).abs() < 1.0,
            "{without} {with}"
        );
    }

    #[test]
    fn wires_that_never_rest_bound_the_time() {
        for decoding in [true, false] {
            let woven = weave(&layer(0.1, 1.0, 0.1, 1.0), 100, decoding, 0.0);
            // 2 halves x 2 s x 100 layers on the wires, which rest while experts of the half that came compute.
            let rest = if decoding { 21.0 } else { 1.0 };
            assert!((400.0..400.0 + rest).contains(&woven.time), "{woven:?}");
        }
    }

    proptest! {
        #[test]
        fn accounts_sum_and_bounds_hold(
            spans in proptest::array::uniform6(0.0..2.0_f64),
            layers in 1_u64..70,
            decoding: bool,
            sm_share in 0.0..0.6_f64,
        ) {
            let [prepare, attend, dispatch, shared, experts, combine] = spans;
            let layer = Layer { prepare, attend, dispatch, shared, experts, combine };
            let woven = weave(&layer, layers, decoding, sm_share);
            let both = 2.0 * layers as f64;
            let compute = both * (prepare + attend + shared + experts);
            let wires = both * (dispatch + combine);
            let sum = compute + woven.contention + woven.exposed;
            prop_assert!((woven.time - sum).abs() < 1e-9 * sum, "{woven:?} {sum}");
            prop_assert!(woven.time >= compute.max(wires) * (1.0 - 1e-9), "{woven:?}");
            prop_assert!(woven.exposed <= wires * (1.0 + 1e-9), "{woven:?}");
            prop_assert!(woven.contention <= wires * sm_share * (1.0 + 1e-9), "{woven:?}");
        }

        #[test]
        fn many_layers_extend_few(
            spans in proptest::array::uniform6(0.0..2.0_f64),
            decoding: bool,
        ) {
            let [prepare, attend, dispatch, shared, experts, combine] = spans;
            let layer = Layer { prepare, attend, dispatch, shared, experts, combine };
            let woven = weave(&layer, 60, decoding, 0.2);
            let direct = if decoding {
                five_stages(&layer, 60, 0.2)
            } else {
                two_stages(&layer, 60, 0.2)
            };
            prop_assert!((woven.time - direct.time).abs() < 1e-6 * direct.time, "{woven:?} {direct:?}");
        }
    }
}
