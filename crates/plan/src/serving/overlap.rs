//! Two half batches on two streams: one computes while the other communicates.

/// One layer of one half batch: compute, send, compute, send [s].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Layer {
    /// Attention and what is before the dispatch.
    pub attention: f64,
    /// Dispatch.
    pub dispatch: f64,
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
pub(super) fn weave(layer: &Layer, layers: u64, sm_share: f64) -> Woven {
    if layers <= SIMULATED {
        return simulate(layer, layers, sm_share);
    }
    let half = simulate(layer, SIMULATED / 2, sm_share);
    let all = simulate(layer, SIMULATED, sm_share);
    let more = (layers - SIMULATED) as f64 / (SIMULATED / 2) as f64;
    let extend = |end: f64, middle: f64| end + (end - middle) * more;
    Woven {
        time: extend(all.time, half.time),
        contention: extend(all.contention, half.contention),
        exposed: extend(all.exposed, half.exposed),
    }
}

/// A half batch on its way through the layers.
#[derive(Debug, Clone, Copy)]
struct Half {
    /// Segment it is at or waits for: even ones compute, odd ones communicate.
    at: u64,
    /// What is left of it, at full rate.
    left: f64,
}

fn simulate(layer: &Layer, layers: u64, sm_share: f64) -> Woven {
    let spans = [
        layer.attention,
        layer.dispatch,
        layer.experts,
        layer.combine,
    ];
    let end = layers * 4;
    let mut halves = [Half {
        at: 0,
        left: spans[0],
    }; 2];
    // Who holds the SMs and who the wires; the other half waits.
    let mut holders: [Option<usize>; 2] = [None, None];
    let mut woven = Woven::default();
    loop {
        for (resource, holder) in holders.iter_mut().enumerate() {
            if holder.is_none() {
                // The half that is behind goes first.
                *holder = (0..2)
                    .filter(|h| halves[*h].at < end && (halves[*h].at % 2) as usize == resource)
                    .min_by_key(|h| halves[*h].at);
            }
        }
        let rate = if holders[1].is_some() {
            1.0 - sm_share
        } else {
            1.0
        };
        let until = |resource: usize| {
            holders[resource].map_or(f64::INFINITY, |h| {
                halves[h].left / if resource == 0 { rate } else { 1.0 }
            })
        };
        let (compute, wire) = (until(0), until(1));
        let span = compute.min(wire);
        if span == f64::INFINITY {
            return woven;
        }
        woven.time += span;
        match holders[0] {
            Some(_) => woven.contention += span * (1.0 - rate),
            None => woven.exposed += span,
        }
        for (resource, finish) in [(0, compute), (1, wire)] {
            let Some(h) = holders[resource] else { continue };
            if finish <= span {
                let half = &mut halves[h];
                half.at += 1;
                half.left = spans[(half.at % 4) as usize];
                holders[resource] = None;
            } else {
                halves[h].left -= span * if resource == 0 { rate } else { 1.0 };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(attention: f64, dispatch: f64, experts: f64, combine: f64) -> Layer {
        Layer {
            attention,
            dispatch,
            experts,
            combine,
        }
    }

    #[test]
    fn communication_that_is_shorter_than_compute_hides() {
        // Two halves of 2 s compute per layer; only the first half's last combine shows.
        let woven = weave(&layer(1.0, 0.5, 1.0, 0.5), 100, 0.0);
        assert!((woven.exposed - 0.5).abs() < 1e-9, "{woven:?}");
        assert!((woven.time - 400.5).abs() < 1e-9, "{woven:?}");
    }

    #[test]
    fn wires_that_never_rest_bound_the_time() {
        let woven = weave(&layer(0.1, 1.0, 0.1, 1.0), 100, 0.0);
        // 2 halves x 2 s x 100 layers on the wires.
        assert!((400.0..401.0).contains(&woven.time), "{woven:?}");
    }

    #[test]
    fn accounts_sum_to_the_time() {
        for sm_share in [0.0, 0.15, 0.5] {
            for l in [layer(1.0, 0.3, 2.0, 0.6), layer(0.2, 0.9, 0.4, 0.1)] {
                for layers in [1, 3, 8, 61] {
                    let woven = weave(&l, layers, sm_share);
                    let compute = 2.0 * layers as f64 * (l.attention + l.experts);
                    let sum = compute + woven.contention + woven.exposed;
                    assert!((woven.time - sum).abs() < 1e-9 * sum, "{woven:?} {sum}");
                }
            }
        }
    }

    #[test]
    fn many_layers_extend_few_exactly() {
        for l in [layer(1.0, 0.3, 2.0, 0.6), layer(0.2, 0.9, 0.4, 0.1)] {
            let (woven, direct) = (weave(&l, 30, 0.2), simulate(&l, 30, 0.2));
            assert!(
                (woven.time - direct.time).abs() < 1e-9,
                "{woven:?} {direct:?}"
            );
        }
    }
}
