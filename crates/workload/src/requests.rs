//! Requests as data: when they come, how long they are, and which parts they share.

use rackflow_units::{RequestRate, SimDuration, SimTime};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When requests come.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Arrivals {
    /// Independent of each other: exponential gaps.
    Poisson {
        /// Mean rate.
        rate: RequestRate,
    },
    /// Gamma gaps: burstier than Poisson where the coefficient of variation is above 1, smoother
    /// below (vLLM's `--burstiness` is 1 / cv^2).
    Gamma {
        /// Mean rate.
        rate: RequestRate,
        /// Standard deviation of a gap over its mean.
        cv: f64,
    },
    /// Equal gaps.
    Constant {
        /// Rate.
        rate: RequestRate,
    },
    /// So many users, each of whom sends the next request when the last is answered.
    ClosedLoop {
        /// Requests in flight.
        concurrency: u32,
    },
    /// Everything at once, as an offline batch.
    Burst {},
}

impl Arrivals {
    /// The same with every rate `factor` times as high. A closed loop has no rate.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        match self {
            Self::Poisson { rate } => Self::Poisson {
                rate: rate * factor,
            },
            Self::Gamma { rate, cv } => Self::Gamma {
                rate: rate * factor,
                cv,
            },
            Self::Constant { rate } => Self::Constant {
                rate: rate * factor,
            },
            Self::ClosedLoop { .. } | Self::Burst {} => self,
        }
    }

    /// Mean rate, where there is one.
    pub fn rate(self) -> Option<RequestRate> {
        match self {
            Self::Poisson { rate } | Self::Gamma { rate, .. } | Self::Constant { rate } => {
                Some(rate)
            }
            Self::ClosedLoop { .. } | Self::Burst {} => None,
        }
    }
}

/// How many tokens a prompt or an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Length {
    /// Always the same.
    Fixed(u32),
    /// Every whole number from `min` to `max` equally likely.
    Uniform {
        /// The shortest.
        min: u32,
        /// The longest.
        max: u32,
    },
    /// Log-normal, rounded, at least 1.
    LogNormal {
        /// Half of all are shorter.
        median: u32,
        /// Standard deviation of the natural logarithm.
        sigma: f64,
        /// Longer ones are cut to this.
        max: u32,
    },
}

impl Length {
    /// The longest that can occur.
    pub const fn longest(self) -> u32 {
        match self {
            Self::Fixed(tokens) => tokens,
            Self::Uniform { max, .. } | Self::LogNormal { max, .. } => max,
        }
    }
}

/// Conversations: each turn's prompt is everything said before and a new part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sessions {
    /// Turns of one conversation.
    pub turns: Length,
    /// Mean pause between an answer and the next turn, exponential.
    pub think_time: SimDuration,
    /// Tokens that every prompt of a group begins with.
    #[serde(default)]
    pub system_prompt: u32,
    /// Different system prompts, equally likely.
    #[serde(default = "one")]
    pub system_prompts: u32,
}

fn one() -> u32 {
    1
}

/// Where the lengths and contents of requests come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Shapes {
    /// Drawn.
    Drawn {
        /// Tokens of a prompt; in a conversation, of the new part of each turn.
        input: Length,
        /// Tokens of an answer.
        output: Length,
        /// Conversations, where requests belong to some.
        sessions: Option<Sessions>,
        /// Requests in all.
        count: u64,
    },
    /// Read from a file, which whoever runs the simulation opens.
    Trace {
        /// Its path, relative to the scenario.
        path: String,
        /// Requests to read at most.
        limit: Option<u64>,
    },
}

/// What is asked of a fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestPlan {
    /// Lengths and contents.
    pub shapes: Shapes,
    /// When they come; a trace's own times where it is `None`.
    pub arrivals: Option<Arrivals>,
    /// The rate of arrivals is multiplied by this.
    pub rate_scale: f64,
    /// What happens before this is simulated and not measured.
    pub warm_up: SimDuration,
    /// Length of the measured window after it; to the last answer where it is `None`. What comes
    /// later is simulated as long as a measured request is not answered.
    pub measure_for: Option<SimDuration>,
    /// Priority classes in equal shares; 1 for none. Class 0 is served first.
    pub priorities: u32,
}

/// A stretch of a prompt that is the same wherever its key is: prompts which begin with the same
/// segments share their KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// What it says.
    pub key: u64,
    /// How long it is.
    pub tokens: u32,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// When it comes; `None` where a closed loop or a conversation decides.
    pub arrival: Option<SimTime>,
    /// Tokens of the prompt, at least 1.
    pub input_tokens: u32,
    /// Tokens of the answer, at least 1.
    pub output_tokens: u32,
    /// Lower is served first.
    pub priority: u32,
    /// The conversation that it belongs to: its turns follow each other.
    pub session: Option<u64>,
    /// Pause between the previous turn's answer and this request.
    pub delay: SimDuration,
    /// What the prompt begins with; the rest, up to `input_tokens`, is its own.
    pub prefix: Vec<Segment>,
}
