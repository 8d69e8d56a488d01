//! What SMs move for a library that copies and reduces on them.
//!
//! A collective's kernel holds some SMs, a thread block each. However wide the links are, they carry no
//! more than these SMs copy and add up: few SMs are a limit of their own. Constants are by generation
//! of the GPU, per SM, and serve every model and every link alike.

use rackflow_topology::Generation;
use rackflow_units::{Bandwidth, Bytes, SimDuration};

const fn gigabytes(per_second: u64) -> Bandwidth {
    Bandwidth::from_bytes_per_sec(per_second * 1_000_000_000)
}

/// What one SM moves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SmRates {
    /// Bus bandwidth of one channel of a ring, a chain or an all-to-all: `perChMaxRingLL128Bws` in
    /// NVIDIA/nccl `src/graph/tuning.cc` (20, 36.7 and 40 GB/s).
    pub channel: Bandwidth,
    /// The same where NVLink switches reduce: `perChMaxNVLSTreeBws` of two nodes in the same place (57.7
    /// and 96 GB/s).
    pub in_switch: Bandwidth,
    /// Fixed cost of dispatching tokens, beyond the node's own: layout and first flags [ns]. One token takes
    /// 26 us on H100 and 34 on B200 and GB200 (DeepEP's normal kernels, AIConfigurator).
    pub exchange_base: u64,
    dispatch: SmWork,
    combine: SmWork,
    /// What reaching other domains adds, with a copy for each.
    dispatch_across: SmWork,
    combine_across: SmWork,
}

/// The work of one SM on one token.
#[derive(Debug, Clone, Copy, PartialEq)]
struct SmWork {
    /// Whatever its size [ns].
    token: u64,
    /// Rate at which its copies are read and written, the local one among them.
    rate: Bandwidth,
}

impl SmWork {
    const fn new(token: u64, rate: Bandwidth) -> Self {
        Self { token, rate }
    }

    /// Seconds of one token of which `copies` are moved.
    fn seconds(self, bytes: f64, copies: f64) -> f64 {
        self.token as f64 * 1e-9 + copies * bytes / self.rate.as_f64()
    }
}

// The work on a token is read off AIConfigurator's tables of DeepEP's normal kernels (ai-dynamo/aiconfigurator
// 095f58a, `deepep`), which go from 4 to 24 SMs: up to where the links are the limit times fall as one over
// the SMs. Two sizes of token (7,168 and 2,048 elements, 8 experts of 256 and of 128) give time per token and
// rate, of H100 on one node, of B200 and GB200 together. H100 on two and four nodes give what crossing adds.

const HOPPER: SmRates = SmRates {
    channel: Bandwidth::from_bytes_per_sec(36_700_000_000),
    in_switch: Bandwidth::from_bytes_per_sec(57_700_000_000),
    exchange_base: 20_000,
    dispatch: SmWork::new(650, gigabytes(25)),
    combine: SmWork::new(205, Bandwidth::from_bytes_per_sec(20_700_000_000)),
    dispatch_across: SmWork::new(800, gigabytes(15)),
    combine_across: SmWork::new(3_600, Bandwidth::from_bytes_per_sec(12_600_000_000)),
};

const BLACKWELL: SmRates = SmRates {
    channel: gigabytes(40),
    in_switch: gigabytes(96),
    exchange_base: 24_000,
    dispatch: SmWork::new(1_100, Bandwidth::from_bytes_per_sec(34_500_000_000)),
    combine: SmWork::new(1_100, gigabytes(28)),
    ..HOPPER
};

const AMPERE: SmRates = SmRates {
    channel: gigabytes(20),
    ..HOPPER
};

/// HybridEP's kernels move data by the tensor memory accelerator: with 16 SMs they are at the limit of the
/// links, 605 to 764 GB/s (deepseek-ai/DeepEP, branch hybrid-ep). So an SM moves this much at least.
const HYBRID: SmWork = SmWork::new(0, gigabytes(47));

/// SMs of an exchange where nothing is said: the most that DeepEP's own tests take, and what its
/// published tables are of.
pub const DISPATCH_SMS: u32 = 24;

/// Which way tokens go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExchangeWay {
    /// To their experts.
    Dispatch,
    /// Back, where what comes from several experts is added up.
    Combine,
}

/// What an exchange does to one token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenWork {
    pub way: ExchangeWay,
    pub hybrid: bool,
    pub bytes: f64,
    /// Ranks that it visits, its own among them.
    pub copies: f64,
    /// Other domains that it visits.
    pub remote: f64,
    pub across: bool,
}

impl SmRates {
    pub fn of(generation: Generation) -> Self {
        match generation {
            Generation::Ampere => AMPERE,
            Generation::Hopper => HOPPER,
            Generation::Blackwell => BLACKWELL,
        }
    }

    /// The time that `sms` SMs take for `tokens` tokens.
    pub fn exchange(&self, tokens: f64, work: TokenWork, sms: u32) -> SimDuration {
        let (inside, across) = match work.way {
            _ if work.hybrid => (HYBRID, SmWork::new(0, HYBRID.rate)),
            ExchangeWay::Dispatch => (self.dispatch, self.dispatch_across),
            ExchangeWay::Combine => (self.combine, self.combine_across),
        };
        let mut seconds = inside.seconds(work.bytes, work.copies);
        if work.across {
            seconds += across.seconds(work.bytes, work.remote);
        }
        SimDuration::from_secs_f64(tokens * seconds / f64::from(sms.max(1)))
    }
}

/// The time that `channels` of `rate` take for `bytes` of bus traffic; none where their number is the
/// library's.
pub(crate) fn channels(bytes: Bytes, rate: Bandwidth, channels: Option<u32>) -> SimDuration {
    channels.map_or(SimDuration::ZERO, |channels| {
        let all = rate.bytes_per_sec().saturating_mul(channels.max(1).into());
        Bandwidth::from_bytes_per_sec(all).time_to_send(bytes)
    })
}
