//! What must hold for every kernel of a serving engine.

use super::tests::{NAMES, accelerator};
use super::{
    DecodeAttention, Experts, Format, Indexer, KernelCost, LatentDecode, Launch, Library, Linear,
    Load, PrefillAttention, ServingOptions, SmallKernel, SparseAttention, decode_attention,
    experts, experts_touched, indexer, latent_decode, launch_floor, linear, prefill_attention,
    small_kernel, sparse_attention,
};
use rackflow_topology::Accelerator;
use rackflow_units::{Precision, SimDuration};

fn burst(library: Library) -> ServingOptions {
    ServingOptions {
        library,
        load: Load::Burst,
        ..ServingOptions::default()
    }
}

fn decode(sequences: u64, context: f64, kv: Precision) -> DecodeAttention {
    DecodeAttention {
        sequences,
        context,
        queries: 1,
        heads: 64,
        kv_heads: 8,
        head_dim: 128,
        kv,
        window: None,
    }
}

fn latent(sequences: u64, context: f64, kv: Precision) -> LatentDecode {
    LatentDecode {
        sequences,
        context,
        queries: 1,
        heads: 128,
        latent: 512,
        rope: 64,
        kv,
    }
}

fn prefill(new_tokens: u64, cached: u64, window: Option<u64>) -> PrefillAttention {
    PrefillAttention {
        sequences: 2,
        new_tokens,
        cached,
        heads: 32,
        kv_heads: 8,
        head_dim_qk: 128,
        head_dim_v: 128,
        compute: Precision::Bf16,
        kv: Precision::Bf16,
        window,
        latent: None,
    }
}

/// One of each kernel, at a size that grows with `scale`.
fn every_kernel(acc: &Accelerator, scale: u64, options: &ServingOptions) -> Vec<KernelCost> {
    let sms = acc.sms;
    let mut costs = Vec::new();
    for format in Format::ALL {
        let op = Linear {
            m: scale,
            n: 8192,
            k: 4096,
            format,
        };
        costs.push(linear(&op, acc, sms, options));
        let op = Experts {
            rows: 8.0 * scale as f64,
            touched: experts_touched(scale as f64, 8, 128, 0.0),
            hidden: 4096,
            inner: 1536,
            gated: true,
            format,
            sent: false,
        };
        costs.push(experts(&op, acc, sms, options));
    }
    for kv in [Precision::Bf16, Precision::Fp8] {
        costs.push(decode_attention(
            &decode(scale, 4096.0, kv),
            acc,
            sms,
            options,
        ));
        costs.push(latent_decode(&latent(scale, 4096.0, kv), acc, sms, options));
        let op = SparseAttention {
            queries: scale,
            top_k: 2048,
            heads: 128,
            latent: 512,
            rope: 64,
            kv,
            prefill: false,
        };
        costs.push(sparse_attention(&op, acc, sms, options));
    }
    costs.push(prefill_attention(
        &prefill(scale, 0, None),
        acc,
        sms,
        options,
    ));
    let op = Indexer {
        queries: scale,
        sequences: scale,
        context: 32768.0,
        heads: 64,
        head_dim: 128,
    };
    costs.push(indexer(&op, acc, sms, options));
    for op in [
        SmallKernel::Norm {
            tokens: scale,
            hidden: 8192,
        },
        SmallKernel::Rope {
            tokens: scale,
            heads: 72,
            head_dim: 128,
        },
        SmallKernel::AppendCache {
            tokens: scale,
            width: 2048,
            bytes: 1.0,
        },
        SmallKernel::Activation {
            tokens: scale,
            inner: 14336,
        },
        SmallKernel::Quantise {
            tokens: scale,
            width: 8192,
            format: Format::Fp8,
        },
        SmallKernel::Router {
            tokens: scale,
            experts: 256,
        },
        SmallKernel::Embedding {
            tokens: scale,
            hidden: 8192,
        },
        SmallKernel::Sample {
            sequences: scale,
            vocab: 128_256,
        },
    ] {
        costs.push(small_kernel(&op, acc, sms, options));
    }
    costs
}

#[test]
fn parts_sum_and_more_work_never_takes_less() {
    for name in NAMES {
        let acc = accelerator(name);
        for library in Library::ALL {
            for launch in [Launch::Graph, Launch::Host] {
                let options = ServingOptions {
                    launch,
                    ..burst(library)
                };
                let mut before = vec![0.0; 64];
                for scale in [1, 3, 16, 64, 100, 256, 1024, 4096] {
                    for (i, c) in every_kernel(&acc, scale, &options).iter().enumerate() {
                        let parts =
                            c.useful + c.sustained + c.shape + c.memory + c.exponent + c.floor;
                        assert_eq!(parts, c.time, "{name} {library:?} kernel {i}");
                        assert!(c.time >= c.memory_time, "{name} {library:?} kernel {i}");
                        // A taller product may spread over more SMs, which then ask for more memory.
                        let time = c.time.as_secs_f64();
                        assert!(
                            time >= 0.9 * before[i],
                            "{name} {library:?} kernel {i} at {scale}: {time} after {}",
                            before[i]
                        );
                        before[i] = time;
                    }
                }
            }
        }
    }
}

#[test]
fn a_hot_chip_is_never_faster() {
    for name in NAMES {
        let acc = accelerator(name);
        let cold = every_kernel(&acc, 64, &burst(Library::Best));
        let hot = every_kernel(&acc, 64, &ServingOptions::default());
        for (cold, hot) in cold.iter().zip(&hot) {
            assert!(hot.time >= cold.time, "{name}");
        }
    }
}

#[test]
fn one_token_streams_the_weights() {
    // README figures of the measurements: weight streaming reaches .85-.91 of the bandwidth in bf16.
    for (name, low, high) in [("h100-sxm", 0.75, 0.95), ("b200-sxm", 0.75, 0.95)] {
        let acc = accelerator(name);
        let op = Linear {
            m: 1,
            n: 16384,
            k: 16384,
            format: Format::Bf16,
        };
        let time = linear(&op, &acc, acc.sms, &burst(Library::Vllm))
            .time
            .as_secs_f64();
        let share = 2.0 * 16384.0 * 16384.0 / time / acc.memory_bandwidth.as_f64();
        assert!((low..high).contains(&share), "{name}: {share}");
    }
}

#[test]
fn narrower_weights_are_faster_where_weights_are_all() {
    let acc = accelerator("b200-sxm");
    let time = |format| {
        let op = Linear {
            m: 4,
            n: 16384,
            k: 16384,
            format,
        };
        linear(&op, &acc, acc.sms, &burst(Library::Best)).time
    };
    assert!(time(Format::Nvfp4) < time(Format::Fp8));
    assert!(time(Format::Fp8) < time(Format::Bf16));
    assert!(time(Format::Int4Weights) < time(Format::Int8Weights));
}

#[test]
fn an_8_bit_cache_gains_less_on_hopper_than_on_blackwell() {
    let gain = |name, library| {
        let acc = accelerator(name);
        let time = |kv| {
            let cost = decode_attention(&decode(64, 16384.0, kv), &acc, acc.sms, &burst(library));
            cost.time.as_secs_f64()
        };
        time(Precision::Bf16) / time(Precision::Fp8)
    };
    for library in [Library::Vllm, Library::Sglang] {
        let (hopper, blackwell) = (gain("h100-sxm", library), gain("b200-sxm", library));
        assert!((1.2..1.75).contains(&hopper), "{library:?}: {hopper}");
        assert!((1.8..2.05).contains(&blackwell), "{library:?}: {blackwell}");
    }
}

#[test]
fn latents_hit_the_tensor_cores_before_the_memory() {
    // deepseek-ai/FlashMLA 9241ae3: 660 TFLOP/s on H800 where compute bounds, up to 3000 GB/s where
    // memory does.
    let acc = accelerator("h800-sxm");
    let op = latent(128, 8192.0, Precision::Bf16);
    let time = latent_decode(&op, &acc, acc.sms, &burst(Library::Best))
        .time
        .as_secs_f64();
    let rate = 2.0 * 128.0 * 8192.0 * 128.0 * (576.0 + 512.0) / time / 1e12;
    assert!((500.0..700.0).contains(&rate), "{rate}");
}

#[test]
fn a_window_and_a_prefix_count_the_pairs_that_exist() {
    // Against a loop over queries.
    for (new, cached, window) in [
        (1, 0, None),
        (5, 7, None),
        (100, 0, Some(16)),
        (100, 10, Some(16)),
        (100, 1000, Some(16)),
        (8, 4, Some(100)),
    ] {
        let slow: u64 = (1..=new)
            .map(|i| (cached + i).min(window.unwrap_or(u64::MAX)))
            .sum();
        let scores = prefill(new, cached, window).scores();
        assert!(
            (scores - slow as f64).abs() < 1e-9,
            "{new} {cached} {window:?}"
        );
    }
}

#[test]
fn chunks_cost_a_little_more_than_the_whole() {
    let acc = accelerator("h100-sxm");
    let options = burst(Library::Best);
    let whole = prefill_attention(&prefill(16384, 0, None), &acc, acc.sms, &options).time;
    let chunks: SimDuration = (0..8)
        .map(|i| prefill_attention(&prefill(2048, 2048 * i, None), &acc, acc.sms, &options).time)
        .fold(SimDuration::ZERO, |sum, time| sum + time);
    let ratio = chunks.as_secs_f64() / whole.as_secs_f64();
    assert!((0.98..1.25).contains(&ratio), "{ratio}");
    let window = prefill_attention(&prefill(16384, 0, Some(1024)), &acc, acc.sms, &options).time;
    assert!(window.as_secs_f64() < 0.3 * whole.as_secs_f64());
}

#[test]
fn touched_experts_are_those_of_independent_draws() {
    assert!((experts_touched(1.0, 8, 256, 0.0) - 8.0).abs() < 1e-9);
    assert!((experts_touched(1e6, 8, 256, 0.0) - 256.0).abs() < 1e-6);
    // 256 (1 - (1 - 8/256)^64)
    assert!((experts_touched(64.0, 8, 256, 0.0) - 222.44).abs() < 0.1);
    assert!(experts_touched(64.0, 8, 256, 1.0) < experts_touched(64.0, 8, 256, 0.0));
}

#[test]
fn host_code_bounds_what_no_graph_captures() {
    let acc = accelerator("h100-sxm");
    let op = Linear {
        m: 4,
        n: 4096,
        k: 4096,
        format: Format::Fp8Block,
    };
    let time = |launch| {
        let options = ServingOptions {
            launch,
            ..burst(Library::Vllm)
        };
        linear(&op, &acc, acc.sms, &options).time.as_secs_f64()
    };
    assert!(time(Launch::Host) > 50e-6);
    assert!(time(Launch::Graph) < 25e-6);
    let floor = launch_floor(&acc, Launch::Graph, SimDuration::from_secs_f64(5e-6));
    assert!((1.2e-6..1.4e-6).contains(&floor.as_secs_f64()), "{floor}");
    let host = launch_floor(&acc, Launch::Host, SimDuration::from_secs_f64(5e-6));
    assert!(host > floor);
}

#[test]
fn an_indexer_makes_long_contexts_cheaper() {
    let acc = accelerator("h800-sxm");
    let options = burst(Library::Best);
    let context = 131_072.0;
    let dense = latent_decode(
        &latent(32, context, Precision::Fp8),
        &acc,
        acc.sms,
        &options,
    )
    .time;
    let scores = indexer(
        &Indexer {
            queries: 32,
            sequences: 32,
            context,
            heads: 64,
            head_dim: 128,
        },
        &acc,
        acc.sms,
        &options,
    );
    let chosen = sparse_attention(
        &SparseAttention {
            queries: 32,
            top_k: 2048,
            heads: 128,
            latent: 512,
            rope: 64,
            kv: Precision::Fp8,
            prefill: false,
        },
        &acc,
        acc.sms,
        &options,
    );
    assert!(scores.time + chosen.time < dense);
}
