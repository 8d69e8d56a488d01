//! One published timing beside the cost model.

use super::{Before, Kind, Pass, PublishedKernel};
use crate::Catalogue;
use rackflow_plan::kernel::{
    self, DecodeAttention, Experts, Format, KernelOptions, LatentDecode, Launch, Library, Linear,
    Load, PrefillAttention, ServingOptions, SparseAttention,
};
use rackflow_topology::Accelerator;
use rackflow_units::{Bytes, Precision, SimDuration, counted};
use rackflow_workload::{Access, AttentionKernel, Direction, FeedForward, LayerKind, Operation};

/// One measured figure beside the modelled one.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What of the row is compared, with its shape.
    pub what: String,
    /// Catalogue name of the accelerator.
    pub accelerator: String,
    /// Who measured, and with whose kernels.
    pub source: String,
    /// Format of the operands as the source spells it.
    pub precision: String,
    /// m, n and k, or the positions of a prompt, of 1024 and more.
    pub large: bool,
    /// Unit of both figures.
    pub unit: &'static str,
    /// As published.
    pub measured: f64,
    /// As modelled.
    pub modelled: f64,
    /// ln(modelled time / measured time): positive where the model is too slow.
    pub log_error: f64,
}

impl Comparison {
    /// Whether the model's time is more than it can hold.
    fn is_endless(&self) -> bool {
        self.unit == "us" && self.modelled >= SimDuration::MAX.as_secs_f64() * 1e6
    }
}

/// Why a row cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The same words for all rows that are left out for this reason.
    pub reason: &'static str,
    /// What of the row it is.
    pub detail: String,
}

fn left_out<T>(reason: &'static str, detail: impl Into<String>) -> Result<T, LeftOut> {
    Err(LeftOut {
        reason,
        detail: detail.into(),
    })
}

/// Catalogue name of an accelerator as sources spell it.
fn accelerator_name(spelled: &str) -> Option<&'static str> {
    Some(match spelled {
        "A100-SXM" | "A100 SXM" | "A100-80" | "a100_sxm" | "a100-80" => "a100-80",
        "H100-SXM" | "H100 SXM 80GB" | "h100_sxm" | "h100-sxm" => "h100-sxm",
        "H200" | "h200_sxm" | "h200-sxm" => "h200-sxm",
        "H800" | "h800_sxm" | "h800-sxm" => "h800-sxm",
        "H20" | "h20" | "h20_sxm" => "h20",
        "B200" | "b200_sxm" | "b200-sxm" => "b200-sxm",
        "B300" | "b300_sxm" | "b300-sxm" => "b300-sxm",
        "GB200" | "gb200" | "gb200_sxm" => "gb200",
        "GB300" | "gb300" | "gb300_sxm" => "gb300",
        "MI300X" | "mi300x" => "mi300x",
        _ => return None,
    })
}

fn format_of(spelled: &str) -> Option<Format> {
    Some(match spelled {
        "bf16" | "fp16" | "bfloat16" | "float16" | "bf16/fp16" => Format::Bf16,
        "fp8" => Format::Fp8,
        "fp8_block" | "fp8_block128" => Format::Fp8Block,
        "nvfp4" | "fp4" => Format::Nvfp4,
        "w4a8_mxfp4_mxfp8" => Format::Mxfp4,
        "w4a16_mxfp4" => Format::Mxfp4Weights,
        "int8_wo" => Format::Int8Weights,
        "int4_wo" => Format::Int4Weights,
        _ => return None,
    })
}

fn library_of(spelled: &str) -> Option<Library> {
    Some(match spelled {
        "vllm" => Library::Vllm,
        "sglang" => Library::Sglang,
        "trtllm" => Library::TensorRtLlm,
        _ => return None,
    })
}

/// Format of a cache or of attention's products.
fn width(spelled: Option<&str>) -> Precision {
    match spelled {
        Some("fp8" | "fp8 kv") => Precision::Fp8,
        _ => Precision::Bf16,
    }
}

/// Who measured: the repository or site, and the engine whose kernels ran.
fn source_of(row: &PublishedKernel) -> String {
    let place = row.citation.trim_start_matches("github:");
    let end = place.find(['@', ' ', ',']).unwrap_or(place.len());
    let place = place[..end].rsplit('/').next().unwrap_or(place);
    match &row.library {
        Some(library) => format!("{place}/{library}"),
        None => place.to_owned(),
    }
}

/// A row with what every comparison needs.
struct Case<'a> {
    row: &'a PublishedKernel,
    accelerator: &'a Accelerator,
    format: Format,
    library: Library,
    source: String,
}

/// Compares a row with the model: one comparison for each figure that it gives.
///
/// # Errors
/// When the catalogue lacks the accelerator, or the row what the model needs.
pub fn compare(row: &PublishedKernel, catalogue: &Catalogue) -> Result<Vec<Comparison>, LeftOut> {
    let Some(accelerator) =
        accelerator_name(&row.accelerator).and_then(|name| catalogue.accelerator(name))
    else {
        return left_out("not in the catalogue", &row.accelerator);
    };
    let spelled = row.format.as_deref().unwrap_or("bf16");
    let format = match (format_of(spelled), row.kind.family()) {
        (Some(format), _) => format,
        (None, "gemm" | "experts") => return left_out("a format that the model lacks", spelled),
        (None, _) => Format::Bf16,
    };
    let library = match row.library.as_deref() {
        None => Library::Best,
        Some(spelled) => match library_of(spelled) {
            Some(library) => library,
            None => return left_out("a library that the model lacks", spelled),
        },
    };
    let case = Case {
        row,
        accelerator,
        format,
        library,
        source: source_of(row),
    };
    let has_load = matches!(row.kind, Kind::Gemm | Kind::AttentionTraining);
    if case.continuous() && (!has_load || row.library.is_some()) {
        return left_out("a load that the model lacks", row.kind.name());
    }
    let comparisons = match row.kind {
        Kind::Gemm => case.gemm()?,
        Kind::GemmMamf | Kind::GemmPeak => case.best_gemm()?,
        Kind::GemmSummary => case.gemm_summary(),
        Kind::GroupedGemmContiguous | Kind::GroupedGemmMasked => case.grouped_gemm()?,
        Kind::Experts => case.experts()?,
        Kind::Attention => case.attention()?,
        Kind::AttentionTraining => case.attention_training()?,
        Kind::AttentionPrefill | Kind::MlaPrefill => case.prefill()?,
        Kind::AttentionPrefillSummary => case.prefill_summary(),
        Kind::AttentionDecode | Kind::MlaDecode => case.decode()?,
        Kind::AttentionDecodeSummary => case.decode_summary(),
        Kind::MlaDecodeSummary => case.latent_summary(),
        Kind::HbmStream => case.long_stream()?,
        Kind::Stream => case.stream()?,
        Kind::L2Bandwidth => case.cache(),
        Kind::Launch => case.launch(),
        Kind::Clock => case.clock(),
        Kind::Latency => {
            return left_out(
                "the model has no latency of a single access",
                &row.accelerator,
            );
        }
    };
    if comparisons.is_empty() {
        return left_out("nothing measured that the model states", row.kind.name());
    }
    if comparisons
        .iter()
        .any(|comparison| !comparison.log_error.is_finite())
    {
        return left_out("a measurement that is not positive", row.kind.name());
    }
    if comparisons.iter().any(Comparison::is_endless) {
        return left_out("a size that no kernel has", row.kind.name());
    }
    Ok(comparisons)
}

/// Largest size that is priced: products of three fit 64 bits.
const LARGEST: u64 = 1 << 21;

/// The same of the bytes of a stream: more than any accelerator has.
const LARGEST_STREAM: u64 = 1 << 42;
/// From here on a stream is large: its time is not that of its start and end [B].
const LONG_STREAM: f64 = 64e6;

/// A size that the kind must have.
fn need(value: Option<u64>, name: &str) -> Result<u64, LeftOut> {
    match value {
        Some(value) if (1..=LARGEST).contains(&value) => Ok(value),
        Some(value) => left_out("a size that no kernel has", format!("{name} of {value}")),
        None => left_out("a size is missing", name),
    }
}

/// A benchmark of one kernel, launched by the host, over and over on the same data.
fn benchmark(library: Library) -> ServingOptions {
    ServingOptions {
        library,
        load: Load::Burst,
        launch: Launch::Host,
        warm_cache: true,
        ..ServingOptions::default()
    }
}

/// Mean number of positions that one of `length` positions sees.
fn keys_seen(length: u64, row: &PublishedKernel) -> f64 {
    let layer = LayerKind {
        feed_forward: FeedForward::Dense,
        window: row.window.map(|window| window.max(1)),
        chunked: false,
    };
    if row.causal.unwrap_or(true) {
        layer.keys_seen(length)
    } else {
        length as f64
    }
}

fn seconds(cost: kernel::KernelCost) -> f64 {
    cost.time.as_secs_f64()
}

/// Value below which `share` of the values lie.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

impl Case<'_> {
    fn comparison(
        &self,
        what: String,
        large: bool,
        unit: &'static str,
        pair: (f64, f64),
    ) -> Comparison {
        let (measured, modelled) = pair;
        // Rates are reciprocal to times.
        let log_error = if unit == "us" {
            (modelled / measured).ln()
        } else {
            (measured / modelled).ln()
        };
        Comparison {
            what,
            accelerator: self.accelerator.name.clone(),
            source: self.source.clone(),
            precision: self.precision(),
            large,
            unit,
            measured,
            modelled,
            log_error,
        }
    }

    fn precision(&self) -> String {
        let compute = self.row.format.as_deref();
        match (compute, self.row.kv_format.as_deref()) {
            (Some(compute), None) => compute.to_owned(),
            (None, Some(kv)) => format!("{kv} cache"),
            (Some(compute), Some(kv)) => format!("{compute}, {kv} cache"),
            (None, None) => "-".to_owned(),
        }
    }

    /// Compares a time and the rates that the row gives instead of one.
    fn timed(
        &self,
        what: &str,
        large: bool,
        modelled: f64,
        flops: f64,
        bytes: f64,
    ) -> Vec<Comparison> {
        let mut all = Vec::new();
        if let Some(us) = self.row.us {
            all.push(self.comparison(what.to_owned(), large, "us", (us, modelled * 1e6)));
        } else if let Some(rate) = self.row.tflops {
            let pair = (rate, flops / modelled / 1e12);
            all.push(self.comparison(what.to_owned(), large, "TFLOP/s", pair));
        } else if let Some(rate) = self.row.gbps {
            let pair = (rate, bytes / modelled / 1e9);
            all.push(self.comparison(what.to_owned(), large, "GB/s", pair));
        }
        all
    }

    /// Time of a product [s]. Engines quantise the activations first; other benchmarks time the
    /// product alone.
    fn product(&self, m: u64, n: u64, k: u64) -> f64 {
        let acc = self.accelerator;
        if self.row.library.is_some() {
            let op = Linear {
                m,
                n,
                k,
                format: self.format,
            };
            return seconds(kernel::linear(&op, acc, acc.sms, &benchmark(self.library)));
        }
        let op = Operation::Gemm {
            m,
            n,
            k,
            batch: 1,
            pieces: 1,
            sms_left: 0,
            precision: self.format.math(),
            output_bytes: 2,
        };
        seconds(kernel::cost_with(&op, acc, acc.sms, self.options()))
    }

    /// The load that the row names.
    fn options(&self) -> KernelOptions {
        KernelOptions {
            load: match self.continuous() {
                false => Load::Burst,
                true => Load::Continuous,
            },
            ..KernelOptions::default()
        }
    }

    fn gemm(&self) -> Result<Vec<Comparison>, LeftOut> {
        let row = self.row;
        if row.m.is_none() && row.n.is_none() && row.k.is_none() {
            return self.best_gemm();
        }
        let (m, n, k) = (need(row.m, "m")?, need(row.n, "n")?, need(row.k, "k")?);
        let flops = 2.0 * m as f64 * n as f64 * k as f64;
        let what = format!("{m} x {n} x {k}{}", self.after());
        // The target is one of bursts.
        let large = m.min(n).min(k) >= 1024 && !self.continuous();
        Ok(self.timed(&what, large, self.product(m, n, k), flops, 0.0))
    }

    /// Words for a row under continuous load.
    fn after(&self) -> &'static str {
        match self.continuous() {
            false => "",
            true => ", continuous",
        }
    }

    fn continuous(&self) -> bool {
        self.row.load == Some(Before::Continuous)
    }

    /// The best of many shapes, where the source does not say of which.
    fn best_gemm(&self) -> Result<Vec<Comparison>, LeftOut> {
        let row = self.row;
        if row.m.is_some() || row.n.is_some() || row.k.is_some() {
            let (m, n, k) = (need(row.m, "m")?, need(row.n, "n")?, need(row.k, "k")?);
            let flops = 2.0 * m as f64 * n as f64 * k as f64;
            let what = format!("best shape, {m} x {n} x {k}");
            return Ok(self.timed(&what, true, self.product(m, n, k), flops, 0.0));
        }
        let Some(measured) = row.tflops else {
            return left_out("a size is missing", "m, n, k");
        };
        let sizes = [1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384];
        let mut best = 0.0f64;
        for m in sizes {
            for n in sizes {
                for k in sizes {
                    let flops = 2.0 * (m * n * k) as f64;
                    best = best.max(flops / self.product(m, n, k) / 1e12);
                }
            }
        }
        let what = "best of all shapes".to_owned();
        Ok(vec![self.comparison(
            what,
            true,
            "TFLOP/s",
            (measured, best),
        )])
    }

    fn gemm_summary(&self) -> Vec<Comparison> {
        let mut rates = Vec::new();
        for m in [4096, 8192] {
            for n in [4096, 5120, 7168, 8192, 12288, 16384, 65536] {
                for k in [4096, 5120, 7168, 8192, 16384] {
                    rates.push(2.0 * (m * n * k) as f64 / self.product(m, n, k) / 1e12);
                }
            }
        }
        let mut all = Vec::new();
        let mut push = |what: &str, measured, modelled, unit| {
            if let Some(measured) = measured {
                all.push(self.comparison(what.to_owned(), true, unit, (measured, modelled)));
            }
        };
        let median = quantile(&mut rates, 0.5);
        push(
            "median of m, n, k >= 4096",
            self.row.median_big_tflops,
            median,
            "TFLOP/s",
        );
        let top = quantile(&mut rates, 0.99);
        push(
            "99th percentile of m, n, k >= 4096",
            self.row.tflops,
            top,
            "TFLOP/s",
        );
        let mut streams = Vec::new();
        for m in [1, 4, 16] {
            for (n, k) in [
                (16384, 8192),
                (8192, 16384),
                (16384, 16384),
                (65536, 4096),
                (65536, 16384),
            ] {
                let bytes = (n * k) as f64 * self.format.weight_bytes();
                streams.push(bytes / self.product(m, n, k) / 1e9);
            }
        }
        let stream = quantile(&mut streams, 0.9);
        push(
            "weights streamed at m <= 16",
            self.row.weight_stream_gbps,
            stream,
            "GB/s",
        );
        all
    }

    fn grouped_gemm(&self) -> Result<Vec<Comparison>, LeftOut> {
        let row = self.row;
        let (groups, m) = (
            need(row.groups, "groups")?,
            need(row.m_per_group, "m_per_group")?,
        );
        let (n, k) = (need(row.n, "n")?, need(row.k, "k")?);
        let op = Operation::GroupedGemm {
            groups,
            m_total: groups * m,
            n,
            k,
            precision: self.format.math(),
            output_bytes: 2,
            weight_gradient: false,
            apart: false,
        };
        let time = seconds(kernel::cost(&op, self.accelerator, self.accelerator.sms));
        let what = format!("{groups} x {m} x {n} x {k}");
        Ok(self.timed(&what, m.min(n).min(k) >= 1024, time, op.tensor_flops(), 0.0))
    }

    /// A benchmark of one expert layer under balanced routing.
    fn experts(&self) -> Result<Vec<Comparison>, LeftOut> {
        let row = self.row;
        let (tokens, top_k) = (need(row.tokens, "tokens")?, need(row.top_k, "top_k")?);
        let experts = need(row.experts, "experts")?;
        let (hidden, inner) = (need(row.hidden, "hidden")?, need(row.inner, "inner")?);
        let op = Experts {
            rows: (tokens * top_k) as f64,
            touched: (tokens * top_k).min(experts) as f64,
            hidden,
            inner,
            gated: true,
            format: self.format,
            sent: false,
        };
        let acc = self.accelerator;
        let options = ServingOptions {
            warm_cache: false,
            ..benchmark(self.library)
        };
        let time = seconds(kernel::experts(&op, acc, acc.sms, &options));
        let what = format!(
            "{} to {top_k} of {experts}, {hidden} x {inner}",
            counted(tokens, "token")
        );
        let flops = 6.0 * (tokens * top_k) as f64 * (hidden * inner) as f64;
        Ok(self.timed(&what, tokens >= 1024, time, flops, 0.0))
    }

    fn prefill_time(&self, batch: u64, length: u64, heads: (u64, u64), widths: (u64, u64)) -> f64 {
        let acc = self.accelerator;
        let options = benchmark(self.library);
        let kv = width(self.row.kv_format.as_deref());
        let op = PrefillAttention {
            sequences: batch,
            new_tokens: length,
            cached: 0,
            heads: heads.0,
            kv_heads: heads.1,
            head_dim_qk: widths.0,
            head_dim_v: widths.1,
            compute: width(self.row.format.as_deref()),
            kv,
            window: None,
            latent: (widths.0 != widths.1).then_some(512),
        };
        seconds(kernel::prefill_attention(&op, acc, acc.sms, &options))
    }

    fn prefill(&self) -> Result<Vec<Comparison>, LeftOut> {
        let row = self.row;
        let (batch, length) = (need(row.batch, "batch")?, need(row.length, "length")?);
        let heads = need(row.heads, "heads")?;
        let (kv_heads, widths) = if row.kind == Kind::MlaPrefill {
            (heads, (192, 128))
        } else {
            let width = need(row.head_dim, "head_dim")?;
            (need(row.kv_heads, "kv_heads")?, (width, width))
        };
        let time = self.prefill_time(batch, length, (heads, kv_heads), widths);
        let what = format!("{batch} x {heads}/{kv_heads} heads x {length}");
        let flops = (batch * heads * length) as f64 * (length * (widths.0 + widths.1)) as f64;
        Ok(self.timed(
            &what,
            length >= 1024 && batch * heads >= 8,
            time,
            flops,
            0.0,
        ))
    }

    /// Causal prefill of 8192 positions and more, 32 heads of 128 and more.
    fn prefill_summary(&self) -> Vec<Comparison> {
        let mut rates = Vec::new();
        for batch in [1, 2, 4, 8] {
            for length in [8192, 10240, 12288, 16384] {
                for heads in [32, 64, 96] {
                    let time = self.prefill_time(batch, length, (heads, 8), (128, 128));
                    let flops = 2.0 * (batch * heads * length * length * 128) as f64;
                    rates.push(flops / time / 1e12);
                }
            }
        }
        let mut all = Vec::new();
        if let Some(measured) = self.row.median_tflops {
            let pair = (measured, quantile(&mut rates, 0.5));
            all.push(self.comparison("median of long prompts".to_owned(), true, "TFLOP/s", pair));
        }
        if let Some(measured) = self.row.tflops {
            let pair = (measured, quantile(&mut rates, 1.0));
            all.push(self.comparison("best of long prompts".to_owned(), true, "TFLOP/s", pair));
        }
        all
    }

    fn decode_time(&self, op: DecodeAttention) -> f64 {
        let acc = self.accelerator;
        seconds(kernel::decode_attention(
            &op,
            acc,
            acc.sms,
            &benchmark(self.library),
        ))
    }

    fn latent_time(&self, batch: u64, length: u64, heads: u64) -> f64 {
        let acc = self.accelerator;
        let op = LatentDecode {
            sequences: batch,
            context: length as f64,
            queries: 1,
            heads,
            latent: 512,
            rope: 64,
            kv: width(self.row.kv_format.as_deref()),
        };
        seconds(kernel::latent_decode(
            &op,
            acc,
            acc.sms,
            &benchmark(self.library),
        ))
    }

    fn decode(&self) -> Result<Vec<Comparison>, LeftOut> {
        let row = self.row;
        let (batch, length) = (need(row.batch, "batch")?, need(row.length, "length")?);
        let heads = need(row.heads, "heads")?;
        let large = length >= 1024;
        if row.kind == Kind::MlaDecode {
            let time = self.latent_time(batch, length, heads);
            let what = format!("{batch} x {heads} heads x {length}");
            return Ok(self.timed(&what, large, time, 0.0, 0.0));
        }
        let kv_heads = need(row.kv_heads, "kv_heads")?;
        let time = self.decode_time(DecodeAttention {
            sequences: batch,
            context: length as f64,
            queries: 1,
            heads,
            kv_heads,
            head_dim: need(row.head_dim, "head_dim")?,
            kv: width(row.kv_format.as_deref()),
            window: None,
        });
        let what = format!("{batch} x {heads}/{kv_heads} heads x {length}");
        Ok(self.timed(&what, large, time, 0.0, 0.0))
    }

    /// Caches of 2 GB and more.
    fn decode_summary(&self) -> Vec<Comparison> {
        let kv = width(self.row.kv_format.as_deref());
        let mut rates = Vec::new();
        for (batch, length) in [
            (16, 65536),
            (64, 16384),
            (128, 8192),
            (256, 8192),
            (32, 65536),
        ] {
            for heads in [32, 64] {
                let time = self.decode_time(DecodeAttention {
                    sequences: batch,
                    context: length as f64,
                    queries: 1,
                    heads,
                    kv_heads: 8,
                    head_dim: 128,
                    kv,
                    window: None,
                });
                let bytes = (2 * batch * length * 8 * 128 * kv.bits() / 8) as f64;
                rates.push(bytes / time / 1e9);
            }
        }
        let mut all = Vec::new();
        if let Some(measured) = self.row.median_gbps {
            let pair = (measured, quantile(&mut rates, 0.5));
            all.push(self.comparison("median of caches over 2 GB".to_owned(), true, "GB/s", pair));
        }
        if let Some(measured) = self.row.gbps {
            let pair = (measured, quantile(&mut rates, 1.0));
            all.push(self.comparison("best of caches over 2 GB".to_owned(), true, "GB/s", pair));
        }
        all
    }

    /// 128 heads over 2^20 cached positions and more: the best, which is the same shape in TFLOP/s
    /// and in GB/s.
    fn latent_summary(&self) -> Vec<Comparison> {
        let Some(measured) = self.row.tflops else {
            return Vec::new();
        };
        let best = [
            (16, 65536),
            (64, 16384),
            (128, 8192),
            (256, 8192),
            (256, 32768),
            (1024, 4096),
        ]
        .into_iter()
        .map(|(batch, length)| {
            let flops = 2.0 * (batch * length * 128 * (576 + 512)) as f64;
            flops / self.latent_time(batch, length, 128) / 1e12
        })
        .fold(0.0, f64::max);
        let what = "best of 2^20 positions and more, 128 heads".to_owned();
        vec![self.comparison(what, true, "TFLOP/s", (measured, best))]
    }

    /// Attention as its authors benchmark it. Shapes that a source does not give are the ones of the
    /// FlashAttention papers: 16,384 tokens, a model width of 2048, no mask.
    fn attention(&self) -> Result<Vec<Comparison>, LeftOut> {
        let row = self.row;
        let acc = self.accelerator;
        let implementation = row.implementation.as_deref().unwrap_or_default();
        let note = row.note.as_deref().unwrap_or_default();
        let cache = width(row.format.as_deref());
        let best = benchmark(Library::Best);
        let (flops, bytes, time, what) = match implementation {
            "dense MLA decode" | "dense MLA decode, memory bound" => {
                // Few heads read as much as many and multiply less.
                let heads = if row.gbps.is_some() { 16 } else { 128 };
                let (batch, length) = (128u64, 8192u64);
                let pairs = (batch * length) as f64;
                (
                    2.0 * pairs * heads as f64 * 1088.0,
                    pairs * 576.0 * 2.0,
                    self.latent_time(batch, length, heads),
                    format!("latents, {heads} heads"),
                )
            }
            "sparse MLA decode" | "sparse MLA prefill" => {
                let prefill = implementation.ends_with("prefill");
                let op = SparseAttention {
                    queries: if prefill { 4096 } else { 128 },
                    top_k: 2048,
                    heads: 128,
                    latent: 512,
                    rope: 64,
                    kv: cache,
                    prefill,
                };
                let flops = 2.0 * (op.queries * op.top_k * op.heads) as f64 * 1088.0;
                let time = seconds(kernel::sparse_attention(&op, acc, acc.sms, &best));
                (
                    flops,
                    0.0,
                    time,
                    "2048 of all positions, 128 heads".to_owned(),
                )
            }
            _ => {
                let (kernel, widths, heads, mask) = match implementation {
                    "FA2" => (AttentionKernel::Flash2, head_width(note), None, 1.0),
                    "FA3" | "FA4" => (AttentionKernel::Best, 128, None, 1.0),
                    "MHA prefill fwd" | "MHA prefill bwd" => {
                        (AttentionKernel::Best, 192, Some(128), 0.5)
                    }
                    _ => return left_out("an attention that the model lacks", implementation),
                };
                let op = Operation::Attention {
                    batch: 2,
                    heads: heads.unwrap_or(2048 / widths),
                    kv_heads: heads.unwrap_or(2048 / widths),
                    query_len: 8192,
                    kv_len: 8192,
                    head_dim_qk: widths,
                    head_dim_v: widths.min(128),
                    mask_fraction: mask,
                    direction: if implementation.ends_with("bwd") {
                        Direction::Backward
                    } else {
                        Direction::Forward
                    },
                    precision: cache,
                };
                let options = KernelOptions {
                    attention: kernel,
                    load: Load::Burst,
                };
                let time = seconds(kernel::cost_with(&op, acc, acc.sms, options));
                (
                    op.tensor_flops(),
                    0.0,
                    time,
                    format!("8192 positions, heads of {widths}"),
                )
            }
        };
        Ok(self.timed(
            &format!("{implementation}, {what}"),
            true,
            time,
            flops,
            bytes,
        ))
    }

    /// Attention as a training step launches it.
    fn attention_training(&self) -> Result<Vec<Comparison>, LeftOut> {
        let row = self.row;
        let (batch, length) = (need(row.batch, "batch")?, need(row.length, "length")?);
        let (heads, kv_heads) = (need(row.heads, "heads")?, need(row.kv_heads, "kv_heads")?);
        let head_dim = need(row.head_dim, "head_dim")?;
        let head_dim_v = need(row.head_dim_v.or(row.head_dim), "head_dim_v")?;
        let Some(pass) = row.pass else {
            return left_out("a size is missing", "pass");
        };
        let implementation = row.implementation.as_deref().unwrap_or_default();
        let kernel = match implementation {
            "FA2" => AttentionKernel::Flash2,
            "FA3" | "FA4" => AttentionKernel::Best,
            "cuDNN 9.1" => AttentionKernel::Cudnn91,
            "cuDNN 9.13" => AttentionKernel::Cudnn913,
            "cuDNN 9.19" => AttentionKernel::Cudnn919,
            _ => return left_out("an attention that the model lacks", implementation),
        };
        let precision = width(row.format.as_deref());
        let direction = match pass {
            Pass::Forward => Direction::Forward,
            Pass::Backward if precision == Precision::Fp8 => {
                return left_out("a format that the model lacks", "fp8, backward");
            }
            Pass::Backward => Direction::Backward,
        };
        let op = Operation::Attention {
            batch,
            heads,
            kv_heads,
            query_len: length,
            kv_len: length,
            head_dim_qk: head_dim,
            head_dim_v,
            mask_fraction: keys_seen(length, row) / length as f64,
            direction,
            precision,
        };
        let options = KernelOptions {
            attention: kernel,
            ..self.options()
        };
        let time = seconds(kernel::cost_with(
            &op,
            self.accelerator,
            self.accelerator.sms,
            options,
        ));
        let mask = match (row.causal.unwrap_or(true), row.window) {
            (true, Some(window)) => format!("a window of {window}"),
            (true, None) => "causal".to_owned(),
            (false, _) => "no mask".to_owned(),
        };
        let what = format!(
            "{implementation} {}, {batch} x {heads}/{kv_heads} heads of {head_dim} x {length}, {mask}{}",
            match pass {
                Pass::Forward => "forward",
                Pass::Backward => "backward",
            },
            self.after()
        );
        Ok(self.timed(&what, length >= 1024, time, op.tensor_flops(), 0.0))
    }

    /// Time of one kernel that reads and writes so many bytes [s].
    fn streamed(&self, read: u64, written: u64, access: Access) -> f64 {
        let op = Operation::Stream {
            read: Bytes::new(read),
            write: Bytes::new(written),
            kernels: 1,
            flops: 0.0,
            access,
        };
        seconds(kernel::cost(&op, self.accelerator, self.accelerator.sms))
    }

    /// A kernel of a framework that reads and writes so many bytes.
    fn stream(&self) -> Result<Vec<Comparison>, LeftOut> {
        let row = self.row;
        let test = row.test.as_deref().unwrap_or("none");
        let access = match test {
            "copy" | "add" | "sum" | "fill" | "adamw" => Access::Copy,
            "silu" | "gelu_tanh" | "gelu_erf" | "rms_norm" | "layer_norm" => Access::Elementwise,
            // Kernels made for it (Transformer Engine), and a framework's copy of whole chunks.
            "permute" | "unpermute" | "unpermute_backward" | "sort_chunks" | "split_cat" => {
                Access::Elementwise
            }
            "transpose_chunks" => Access::Strided,
            "index_select" | "gather" => Access::Rows,
            "scatter_add" => Access::ScatterAdd,
            "index_add" => Access::IndexAdd,
            "add_mixed" => Access::Mixed,
            "cross_entropy" => Access::Softmax,
            _ => return left_out("a test that the model lacks", test),
        };
        let (Some(read), Some(written)) = (row.read, row.written) else {
            return left_out("a size is missing", "read, written");
        };
        if read.max(written) > LARGEST_STREAM || read.max(written) == 0 {
            return left_out("a size that no kernel has", test);
        }
        let mut time = self.streamed(read, written, access);
        if matches!(access, Access::ScatterAdd | Access::IndexAdd) {
            // What is added to was filled with zeros before, by a kernel of its own.
            time += self.streamed(0, written, Access::Copy);
        }
        let what = format!("{test}, {read} B read, {written} B written");
        let bytes = (read + written) as f64;
        Ok(self.timed(&what, bytes >= LONG_STREAM, time, 0.0, bytes))
    }

    /// A benchmark of the memory.
    fn long_stream(&self) -> Result<Vec<Comparison>, LeftOut> {
        let Some(measured) = self.row.tbps else {
            return left_out("nothing measured that the model states", "TB/s");
        };
        let test = self.row.test.as_deref().unwrap_or_else(|| {
            let words = ["read", "triad", "copy"];
            let found = words
                .into_iter()
                .find(|word| self.row.citation.contains(word));
            found.unwrap_or("read")
        });
        let array = 1u64 << 30;
        let (read, written) = match test.to_ascii_lowercase().as_str() {
            "copy" | "mul" => (array, array),
            "add" | "triad" => (2 * array, array),
            "dot" | "read" => (2 * array, 0),
            _ => return left_out("a test that the model lacks", test),
        };
        let time = self.streamed(read, written, Access::Copy);
        let rate = (read + written) as f64 / time / 1e12;
        Ok(vec![self.comparison(
            test.to_owned(),
            true,
            "TB/s",
            (measured, rate),
        )])
    }

    fn cache(&self) -> Vec<Comparison> {
        let rate = kernel::cache_bandwidth(self.accelerator).as_f64() / 1e12;
        self.row
            .tbps
            .map(|measured| {
                self.comparison(
                    "last-level cache".to_owned(),
                    true,
                    "TB/s",
                    (measured, rate),
                )
            })
            .into_iter()
            .collect()
    }

    fn launch(&self) -> Vec<Comparison> {
        let floor = kernel::launch_floor(self.accelerator, Launch::Graph, SimDuration::ZERO);
        let pair = |measured| (measured, floor.as_secs_f64() * 1e6);
        self.row
            .us
            .map(|measured| {
                self.comparison(
                    "kernel of a CUDA graph".to_owned(),
                    false,
                    "us",
                    pair(measured),
                )
            })
            .into_iter()
            .collect()
    }

    /// The rate that is left of the peak when the clock falls under load.
    fn clock(&self) -> Vec<Comparison> {
        let peak = self
            .accelerator
            .peak
            .get(self.format.math())
            .flops_per_sec();
        let rate = peak * self.accelerator.measured.continuous_clock / 1e12;
        self.row
            .tflops
            .map(|measured| {
                self.comparison(
                    "peak at the clock under load".to_owned(),
                    true,
                    "TFLOP/s",
                    (measured, rate),
                )
            })
            .into_iter()
            .collect()
    }
}

/// The width of a head in a note such as `bs2 seq8192 d64`; 128 where it has none.
fn head_width(note: &str) -> u64 {
    note.split_whitespace()
        .find_map(|word| word.strip_prefix('d')?.parse().ok())
        .unwrap_or(128)
}

/// TFLOP/s of long causal prefill in bf16 on each accelerator: those of equal tensor peak differ by
/// their exponent units alone. 64 heads of 128, 16,384 positions, the best library, in a burst.
pub fn exponent_ceiling(catalogue: &Catalogue) -> Vec<(&'static str, u32, f64)> {
    ["b200-sxm", "b300-sxm", "gb200", "gb300"]
        .into_iter()
        .filter_map(|name| {
            let acc = catalogue.accelerator(name)?;
            let op = PrefillAttention {
                sequences: 1,
                new_tokens: 16384,
                cached: 0,
                heads: 64,
                kv_heads: 8,
                head_dim_qk: 128,
                head_dim_v: 128,
                compute: Precision::Bf16,
                kv: Precision::Bf16,
                window: None,
                latent: None,
            };
            let cost = kernel::prefill_attention(&op, acc, acc.sms, &benchmark(Library::Best));
            let flops = 4.0 * 64.0 * 128.0 * op.scores();
            Some((
                name,
                acc.exponentials_per_sm_clock,
                flops / seconds(cost) / 1e12,
            ))
        })
        .collect()
}
