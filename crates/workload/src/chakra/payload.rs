//! What a collective of a trace carries.
//!
//! Chakra says which collective and how many bytes. Our own traces say more in one attribute, so
//! that a replay prices a collective exactly as the run did: `expert_exchange tokens=4096 ...`.

use crate::ExpertDispatcher;
use rackflow_units::{Bytes, SimDuration};
use std::fmt;

/// `CollectiveCommType` of Chakra.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TraceOp {
    /// Everyone ends with the sum.
    AllReduce,
    /// One ends with the sum.
    Reduce,
    /// Everyone ends with everyone's part.
    AllGather,
    /// One ends with everyone's part.
    Gather,
    /// Everyone gets its part from one.
    Scatter,
    /// Everyone gets the same from one.
    Broadcast,
    /// Everyone sends a part to everyone.
    AllToAll,
    /// Everyone ends with its part of the sum.
    ReduceScatter,
    /// Nobody goes on before all are there.
    Barrier,
}

impl TraceOp {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::AllReduce,
        Self::Reduce,
        Self::AllGather,
        Self::Gather,
        Self::Scatter,
        Self::Broadcast,
        Self::AllToAll,
        Self::ReduceScatter,
        Self::Barrier,
    ];

    /// Its number in the schema.
    pub const fn number(self) -> u64 {
        match self {
            Self::AllReduce => 0,
            Self::Reduce => 1,
            Self::AllGather => 2,
            Self::Gather => 3,
            Self::Scatter => 4,
            Self::Broadcast => 5,
            Self::AllToAll => 6,
            Self::ReduceScatter => 7,
            Self::Barrier => 9,
        }
    }

    /// The one with this number; `REDUCE_SCATTER_BLOCK` (8) is a reduce-scatter.
    pub fn of_number(number: u64) -> Option<Self> {
        let number = if number == 8 { 7 } else { number };
        Self::ALL.into_iter().find(|op| op.number() == number)
    }

    /// Its name in words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all-reduce",
            Self::Reduce => "reduce",
            Self::AllGather => "all-gather",
            Self::Gather => "gather",
            Self::Scatter => "scatter",
            Self::Broadcast => "broadcast",
            Self::AllToAll => "all-to-all",
            Self::ReduceScatter => "reduce-scatter",
            Self::Barrier => "barrier",
        }
    }
}

/// What a collective carries, and what slows it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// What.
    pub kind: PayloadKind,
    /// Time of its bytes over that of the collective alone, in 1,024ths.
    pub slowdown: u64,
    /// Time that the dispatch library adds where it leaves the domain.
    pub overhead: SimDuration,
    /// Load of the fullest rank over the mean, in 65,536ths.
    pub load: u64,
}

/// What a collective carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadKind {
    /// A buffer, its size as nccl-tests counts it: the larger of input and output of one rank.
    Buffer(TraceOp, Bytes),
    /// One broadcast (or reduction) after the other, each from another rank: size of one, how many.
    Turns(Bytes, u64),
    /// Tokens on their way to experts, or back.
    Exchange(Exchange),
    /// Each rank sends this much to the next.
    RingStep(Bytes),
    /// One message to a peer.
    Message(Bytes),
}

/// Tokens on their way to experts, or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// Tokens of one rank.
    pub tokens: u64,
    /// Bytes of one token.
    pub bytes_per_token: Bytes,
    /// Experts that a token visits.
    pub top_k: u64,
    /// Experts in all.
    pub experts: u64,
    /// Who carries the tokens.
    pub dispatcher: ExpertDispatcher,
    /// Results come back and are added up.
    pub back: bool,
    /// SMs that its kernels hold.
    pub sms: u32,
    /// A token visits at most so many groups of experts, of so many.
    pub limit: Option<(u64, u64)>,
}

/// Slowdown and load that change nothing.
const SLOWDOWN_ONE: u64 = 1 << 10;
const LOAD_ONE: u64 = 1 << 16;

impl Payload {
    /// A payload that nothing slows.
    pub const fn plain(kind: PayloadKind) -> Self {
        Self {
            kind,
            slowdown: SLOWDOWN_ONE,
            overhead: SimDuration::ZERO,
            load: LOAD_ONE,
        }
    }

    /// What Chakra says of it: which collective, and the input of one of `ranks` ranks in bytes.
    pub fn standard(&self, ranks: u64) -> (TraceOp, u64) {
        match self.kind {
            PayloadKind::Buffer(op @ (TraceOp::AllGather | TraceOp::Gather), bytes) => {
                (op, bytes.get().div_ceil(ranks.max(1)))
            }
            PayloadKind::Buffer(op, bytes) => (op, bytes.get()),
            PayloadKind::Turns(bytes, turns) => {
                (TraceOp::Broadcast, bytes.get().saturating_mul(turns))
            }
            PayloadKind::Exchange(exchange) => (TraceOp::AllToAll, exchange.bytes()),
            PayloadKind::RingStep(bytes) | PayloadKind::Message(bytes) => {
                (TraceOp::AllToAll, bytes.get())
            }
        }
    }

    /// The payload of a collective of which only this is known.
    pub fn of_standard(op: TraceOp, comm_size: u64, ranks: u64) -> Self {
        let bytes = match op {
            TraceOp::AllGather | TraceOp::Gather => comm_size.saturating_mul(ranks),
            _ => comm_size,
        };
        Self::plain(PayloadKind::Buffer(op, Bytes::new(bytes)))
    }

    /// The payload that [`Payload`]'s `Display` wrote.
    ///
    /// # Errors
    /// With the word that is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split_ascii_whitespace();
        let name = words.next().unwrap_or_default();
        let mut fields = Fields::default();
        for word in words {
            fields.add(word)?;
        }
        let bytes = Bytes::new(fields.bytes);
        let kind = match name {
            "turns" => PayloadKind::Turns(bytes, fields.turns),
            "ring_step" => PayloadKind::RingStep(bytes),
            "message" => PayloadKind::Message(bytes),
            "expert_exchange" => PayloadKind::Exchange(Exchange {
                tokens: fields.tokens,
                bytes_per_token: bytes,
                top_k: fields.top_k,
                experts: fields.experts,
                dispatcher: match fields.relayed {
                    0 => ExpertDispatcher::NcclAllToAll,
                    1 => ExpertDispatcher::DeepEp,
                    _ => ExpertDispatcher::HybridEp,
                },
                back: fields.back > 0,
                sms: u32::try_from(fields.sms).map_err(|_| text.to_owned())?,
                limit: (fields.groups > 0).then_some((fields.chosen, fields.groups)),
            }),
            name => {
                let op = TraceOp::ALL.into_iter().find(|op| op.name() == name);
                PayloadKind::Buffer(op.ok_or_else(|| name.to_owned())?, bytes)
            }
        };
        if fields.chosen > fields.groups || fields.slowdown == 0 || fields.load == 0 {
            return Err(text.to_owned());
        }
        Ok(Self {
            kind,
            slowdown: fields.slowdown,
            overhead: SimDuration::from_picos(fields.overhead),
            load: fields.load,
        })
    }
}

impl Exchange {
    /// Bytes that one rank sends.
    pub fn bytes(&self) -> u64 {
        let token = self.bytes_per_token.get().saturating_mul(self.top_k);
        self.tokens.saturating_mul(token)
    }
}

/// SMs of an exchange that does not say: what DeepEP's own tests hold.
const EXCHANGE_SMS: u64 = 24;

/// The largest factor by which anything is slowed.
const MOST: u64 = 1 << 40;

struct Fields {
    bytes: u64,
    turns: u64,
    tokens: u64,
    top_k: u64,
    experts: u64,
    relayed: u64,
    back: u64,
    sms: u64,
    chosen: u64,
    groups: u64,
    slowdown: u64,
    overhead: u64,
    load: u64,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            bytes: 0,
            turns: 1,
            tokens: 0,
            top_k: 1,
            experts: 1,
            relayed: 0,
            back: 0,
            sms: EXCHANGE_SMS,
            chosen: 0,
            groups: 0,
            slowdown: SLOWDOWN_ONE,
            overhead: 0,
            load: LOAD_ONE,
        }
    }
}

impl Fields {
    fn add(&mut self, word: &str) -> Result<(), String> {
        let wrong = || word.to_owned();
        let (name, value) = word.split_once('=').ok_or_else(wrong)?;
        let value: u64 = value.parse().map_err(|_| wrong())?;
        let field = match name {
            "bytes" => &mut self.bytes,
            "turns" => &mut self.turns,
            "tokens" => &mut self.tokens,
            "top_k" => &mut self.top_k,
            "experts" => &mut self.experts,
            "relayed" => &mut self.relayed,
            "back" => &mut self.back,
            "sms" => &mut self.sms,
            "chosen" => &mut self.chosen,
            "groups" => &mut self.groups,
            "slowdown" => &mut self.slowdown,
            "overhead_ps" => &mut self.overhead,
            "load" => &mut self.load,
            _ => return Err(wrong()),
        };
        if value > MOST && name != "bytes" {
            return Err(wrong());
        }
        *field = value;
        Ok(())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            PayloadKind::Buffer(op, bytes) => write!(f, "{} bytes={}", op.name(), bytes.get()),
            PayloadKind::Turns(bytes, turns) => {
                write!(f, "turns bytes={} turns={turns}", bytes.get())
            }
            PayloadKind::RingStep(bytes) => write!(f, "ring_step bytes={}", bytes.get()),
            PayloadKind::Message(bytes) => write!(f, "message bytes={}", bytes.get()),
            PayloadKind::Exchange(e) => {
                write!(
                    f,
                    "expert_exchange tokens={} bytes={} top_k={} experts={} relayed={}",
                    e.tokens,
                    e.bytes_per_token.get(),
                    e.top_k,
                    e.experts,
                    match e.dispatcher {
                        ExpertDispatcher::NcclAllToAll | ExpertDispatcher::AllGather => 0,
                        ExpertDispatcher::DeepEp => 1,
                        ExpertDispatcher::HybridEp => 2,
                    }
                )?;
                if e.back {
                    write!(f, " back=1")?;
                }
                if u64::from(e.sms) != EXCHANGE_SMS {
                    write!(f, " sms={}", e.sms)?;
                }
                match e.limit {
                    Some((chosen, groups)) => write!(f, " chosen={chosen} groups={groups}"),
                    None => Ok(()),
                }
            }
        }?;
        if self.slowdown != SLOWDOWN_ONE {
            write!(f, " slowdown={}", self.slowdown)?;
        }
        if self.overhead != SimDuration::ZERO {
            write!(f, " overhead_ps={}", self.overhead.as_picos())?;
        }
        if self.load != LOAD_ONE {
            write!(f, " load={}", self.load)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = PayloadKind> {
        let bytes = (0..u64::MAX / 2).prop_map(Bytes::new);
        prop_oneof![
            (0..9usize, bytes.clone()).prop_map(|(op, b)| PayloadKind::Buffer(TraceOp::ALL[op], b)),
            (bytes.clone(), 1..1000u64).prop_map(|(b, n)| PayloadKind::Turns(b, n)),
            bytes.clone().prop_map(PayloadKind::RingStep),
            bytes.clone().prop_map(PayloadKind::Message),
            (
                0..1_000_000u64,
                1..100_000u64,
                1..16u64,
                1..1000u64,
                0..3usize,
                any::<bool>()
            )
                .prop_map(|(tokens, b, top_k, experts, relayed, limited)| {
                    PayloadKind::Exchange(Exchange {
                        tokens,
                        bytes_per_token: Bytes::new(b),
                        top_k,
                        experts,
                        dispatcher: [
                            ExpertDispatcher::NcclAllToAll,
                            ExpertDispatcher::DeepEp,
                            ExpertDispatcher::HybridEp,
                        ][relayed],
                        back: limited,
                        sms: 4 + relayed as u32,
                        limit: limited.then_some((4, 8)),
                    })
                }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kind in kinds(),
            slowdown in 1..5000u64,
            overhead in 0..1_000_000_000u64,
            load in 1..1_000_000u64,
        ) {
            let overhead = SimDuration::from_picos(overhead);
            let payload = Payload { kind, slowdown, overhead, load };
            prop_assert_eq!(Payload::parse(&payload.to_string()), Ok(payload));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
            let _ = Payload::parse(&text);
        }
    }

    #[test]
    fn a_foreign_all_gather_counts_the_input_of_one_rank() {
        let payload = Payload::of_standard(TraceOp::AllGather, 10, 8);
        assert_eq!(
            payload.kind,
            PayloadKind::Buffer(TraceOp::AllGather, Bytes::new(80))
        );
        assert_eq!(payload.standard(8), (TraceOp::AllGather, 10));
        assert_eq!(TraceOp::of_number(8), Some(TraceOp::ReduceScatter));
        assert_eq!(TraceOp::of_number(10), None);
    }
}
