//! Attention of one new token per sequence over its cache: bound by memory, and by the number of
//! sequences where contexts are short.

use super::library::{DecodeRates, LatentRates};
use super::{Device, Generation, KernelCost, Launch, Parts, ServingOptions, device, gemm};
use rackflow_topology::Accelerator;
use rackflow_units::Precision;

/// Decode attention with multi-head, grouped-query or multi-query heads over a paged cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeAttention {
    /// Sequences.
    pub sequences: u64,
    /// Positions in the cache of a sequence, mean over the sequences.
    pub context: f64,
    /// New tokens per sequence: 1, or more where drafts are verified.
    pub queries: u64,
    /// Query heads on this rank.
    pub heads: u64,
    /// Key-value heads on this rank.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Format of the cache: 16 or 8 bits.
    pub kv: Precision,
    /// Most positions that a query sees (sliding window).
    pub window: Option<u64>,
}

/// Decode attention of a latent cache (MLA) with absorbed projections: every head reads the same
/// latent, as key and as value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentDecode {
    /// Sequences.
    pub sequences: u64,
    /// Positions in the cache of a sequence, mean over the sequences.
    pub context: f64,
    /// New tokens per sequence.
    pub queries: u64,
    /// Query heads on this rank.
    pub heads: u64,
    /// Width of the latent (512 in DeepSeek-V3).
    pub latent: u64,
    /// Width of the rotary part beside it (64).
    pub rope: u64,
    /// Format of the cache: 16 or 8 bits.
    pub kv: Precision,
}

/// Cost of decode attention, without the append of the new keys and values.
///
/// Keys are split over SMs until all work, so that one long sequence reads at the rate of many short
/// ones. The time is that of reading the cache, overlapped with the SM-time of the work items
/// (sequence x key-value head) and their products, and the fixed part of a call.
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn decode_attention(
    op: &DecodeAttention,
    accelerator: &Accelerator,
    sms: u32,
    options: &ServingOptions,
) -> KernelCost {
    let generation = device(accelerator, sms, options).generation_kind();
    let rates = options
        .library
        .decode(op.kv, generation)
        .slower(options.latency);
    decode_attention_by(op, accelerator, sms, options, &rates)
}

/// [`decode_attention`] under another set of library constants, for calibration.
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn decode_attention_by(
    op: &DecodeAttention,
    accelerator: &Accelerator,
    sms: u32,
    options: &ServingOptions,
    rates: &DecodeRates,
) -> KernelCost {
    let device = device(accelerator, sms, options);
    let context = op
        .window
        .map_or(op.context, |window| op.context.min(window as f64));
    let sequences = op.sequences as f64;
    let items = sequences * op.kv_heads as f64;
    // Query heads of a group share the keys and fill one tile of the tensor cores.
    let group = (op.queries * op.heads.div_ceil(op.kv_heads.max(1))) as f64;
    let rows = (group / TILE_ROWS).ceil() * TILE_ROWS;
    let width = op.head_dim as f64;
    let element = op.kv.bits() as f64 / 8.0;
    let query = sequences * (op.queries * op.heads) as f64 * width;
    let useful_flops = 4.0 * items * group * context * width;
    attention(
        &Work {
            useful_flops,
            flops: 4.0 * items * rows * context * width,
            efficiency: TENSOR_SHARE,
            exponentials: items * rows * context,
            cache: items * context * 2.0 * width * element,
            other: query * 4.0 + items * context / 16.0 * 4.0,
            share: rates.memory,
            busy: items * (rates.item + group * rates.head),
            tail: rates.tail,
            working: 1.0,
            fixed: rates.fixed,
        },
        &device,
        options,
    )
    .into_cost()
}

/// Cost of decode attention over a latent cache, without projections and the append.
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn latent_decode(
    op: &LatentDecode,
    accelerator: &Accelerator,
    sms: u32,
    options: &ServingOptions,
) -> KernelCost {
    let generation = device(accelerator, sms, options).generation_kind();
    let rates = options
        .library
        .latent(op.kv, generation)
        .slower(options.latency);
    latent_decode_by(op, accelerator, sms, options, &rates)
}

/// [`latent_decode`] under another set of library constants, for calibration.
///
/// # Panics
/// When `sms` is zero or more than the accelerator has.
pub fn latent_decode_by(
    op: &LatentDecode,
    accelerator: &Accelerator,
    sms: u32,
    options: &ServingOptions,
    rates: &LatentRates,
) -> KernelCost {
    let device = device(accelerator, sms, options);
    let sequences = op.sequences as f64;
    let heads = (op.queries * op.heads) as f64;
    // Whole tiles, or keys and queries swapped where few heads would leave a tile empty.
    let tile = match device.generation_kind() {
        Generation::Ampere | Generation::Hopper => 64.0,
        Generation::Blackwell => 128.0,
    };
    let tiles = (heads / tile).ceil();
    let rows = if heads <= rates.rows {
        rates.rows
    } else {
        tiles * tile
    };
    let width = (op.latent + op.rope) as f64;
    let element = op.kv.bits() as f64 / 8.0;
    let per_row = 2.0 * sequences * op.context * (width + op.latent as f64);
    let mut parts = attention(
        &Work {
            useful_flops: per_row * heads,
            flops: per_row * rows,
            efficiency: rates.efficiency,
            exponentials: 0.0,
            cache: sequences * op.context * width * element,
            other: sequences * heads * (width + op.latent as f64) * 2.0,
            share: rates.memory,
            busy: sequences * (rates.item + heads * rates.head),
            tail: rates.tail,
            working: (sequences * tiles * rates.parts / f64::from(device.sms)).min(1.0),
            fixed: rates.fixed,
        },
        &device,
        options,
    );
    if options.launch == Launch::Host {
        parts.at_least(rates.host * device.host_slowdown());
    }
    parts.into_cost()
}

/// Rows that one instruction of the tensor cores multiplies at least, with queries on the narrow
/// side.
const TILE_ROWS: f64 = 16.0;

/// Fraction of the peak that products on narrow tiles sustain.
const TENSOR_SHARE: f64 = 0.4;

struct Work {
    useful_flops: f64,
    /// On whole tiles.
    flops: f64,
    efficiency: f64,
    exponentials: f64,
    /// Bytes of the cache that are read.
    cache: f64,
    /// Bytes of queries, results and page tables.
    other: f64,
    share: f64,
    /// SM-time beyond products and keys [s].
    busy: f64,
    /// Most time between the ends of the first and of the last SM [s].
    tail: f64,
    /// Share of the SMs that has work.
    working: f64,
    fixed: f64,
}

fn attention(work: &Work, device: &Device<'_>, options: &ServingOptions) -> Parts {
    let peak = gemm::peak(device, Precision::Bf16);
    let useful = work.useful_flops / peak;
    let sustained = (useful / work.efficiency * device.slower()).max(useful);
    let math = work.flops / (peak * work.efficiency) * device.slower();
    let exponent_rate = f64::from(device.accelerator.exponentials_per_sm_clock)
        * f64::from(device.sms)
        / device.cycles(1.0);
    let exponent = work.exponentials / exponent_rate;
    let computed = math.max(exponent) + device.mechanism.exponent_serial * math.min(exponent);
    let busy = work.busy / f64::from(device.sms) / device.clock_share;
    let shape = (math.max(sustained) / work.working - sustained).max(0.0) + busy;
    let computed = computed.max(sustained) / work.working + busy;
    let read = device.read_time(work.cache + work.other, work.share, options.warm_cache);
    // An SM asks for little more than its share of the memory.
    let read = read / (work.working * device.mechanism.sm_memory_surplus).min(1.0);
    let whole = pipelined(computed, read);
    // SMs end at different times, by a part of what one of them works on; long kernels balance.
    let whole = whole + work.tail * whole / (whole + 2.0 * work.tail).max(f64::MIN_POSITIVE);
    Parts {
        useful,
        sustained: sustained - useful,
        shape,
        exponent: computed - sustained - shape,
        memory: whole - computed + device.ramp(),
        floor: device.floor() + work.fixed,
        memory_time: read,
    }
}

/// Two resources that a persistent kernel keeps busy at the same time: the slower one, and at a tie
/// 9 % more. (Products of tiles, which wait for their first operands, lose 19 %.)
fn pipelined(a: f64, b: f64) -> f64 {
    let longest = a.max(b);
    if longest <= 0.0 {
        return 0.0;
    }
    longest * (1.0 + (a.min(b) / longest).powi(8)).powf(0.125)
}
