//! Requests as they come: drawn from distributions or read from a trace, never more than needed.

use rackflow_engine::RandomStream;
use rackflow_units::{SimDuration, SimTime};
use rackflow_workload::{
    Arrivals, Length, Request, RequestPlan, Segment, Sessions, Shapes, TraceError,
};
use std::collections::{BTreeMap, VecDeque};

/// Rows of a trace.
pub type Rows<'r> = Box<dyn Iterator<Item = Result<Request, TraceError>> + 'r>;

/// A conversation that is not over.
#[derive(Debug)]
struct Session {
    /// Turns of a trace that wait for the answer before them.
    waiting: VecDeque<Request>,
    /// Turns to draw, this one included.
    turns_left: u32,
    /// What every prompt begins with, and all that was said so far.
    system: Option<Segment>,
    said: u32,
}

/// Requests in the order in which they come.
pub(super) struct Source<'r> {
    arrivals: Option<Arrivals>,
    rate_scale: f64,
    shapes: Draw,
    rows: Option<Rows<'r>>,
    limit: u64,
    issued: u64,
    /// Sessions begun, for keys.
    begun: u64,
    clock: SimTime,
    gaps: RandomStream,
    lengths: RandomStream,
    thinking: RandomStream,
    priorities: u32,
    sessions: BTreeMap<u64, Session>,
    /// Turns that were read and whose session is idle.
    ready: VecDeque<Request>,
}

/// What is drawn where there is no trace.
struct Draw {
    input: Length,
    output: Length,
    sessions: Option<Sessions>,
}

impl<'r> Source<'r> {
    pub fn new(plan: &RequestPlan, rows: Option<Rows<'r>>, seed: u64) -> Self {
        let (shapes, limit) = match &plan.shapes {
            Shapes::Drawn {
                input,
                output,
                sessions,
                count,
            } => (
                Draw {
                    input: *input,
                    output: *output,
                    sessions: *sessions,
                },
                *count,
            ),
            Shapes::Trace { limit, .. } => (
                Draw {
                    input: Length::Fixed(1),
                    output: Length::Fixed(1),
                    sessions: None,
                },
                limit.unwrap_or(u64::MAX),
            ),
        };
        let root = RandomStream::root(seed).derive("requests");
        Self {
            arrivals: plan
                .arrivals
                .map(|arrivals| arrivals.scaled(plan.rate_scale)),
            rate_scale: plan.rate_scale,
            shapes,
            rows,
            limit,
            issued: 0,
            begun: 0,
            clock: SimTime::ZERO,
            gaps: root.derive("arrivals"),
            lengths: root.derive("lengths"),
            thinking: root.derive("think time"),
            priorities: plan.priorities.max(1),
            sessions: BTreeMap::new(),
            ready: VecDeque::new(),
        }
    }

    /// Requests that are sent before any is answered, where the next waits for an answer.
    pub fn closed_loop(&self) -> Option<u32> {
        match self.arrivals {
            Some(Arrivals::ClosedLoop { concurrency }) => Some(concurrency),
            _ => None,
        }
    }

    /// The next request that does not wait for an answer, and when it comes. `now` is the earliest.
    pub fn next(&mut self, now: SimTime) -> Result<Option<(SimTime, Request)>, TraceError> {
        let Some(mut request) = self.shape()? else {
            return Ok(None);
        };
        self.clock = self.clock.max(now);
        let at = match self.arrivals {
            Some(Arrivals::ClosedLoop { .. } | Arrivals::Burst {}) => now,
            Some(arrivals) => {
                self.clock = self.clock + self.gap(arrivals);
                self.clock
            }
            None => match request.arrival {
                Some(at) => {
                    SimTime::ZERO + SimDuration::from_secs_f64(at.as_secs_f64() / self.rate_scale)
                }
                None => self.clock,
            },
        };
        let at = at.max(now);
        request.arrival = Some(at);
        if self.priorities > 1 {
            request.priority = (self.issued % u64::from(self.priorities)) as u32;
        }
        self.issued += 1;
        Ok(Some((at, request)))
    }

    /// `request` of a session was answered: its next turn, and when it comes.
    pub fn answered(&mut self, request: &Answered, now: SimTime) -> Option<(SimTime, Request)> {
        let key = request.session?;
        let session = self.sessions.get_mut(&key)?;
        if let Some(mut next) = session.waiting.pop_front() {
            let at = now + next.delay;
            next.arrival = Some(at);
            self.issued += 1;
            return Some((at, next));
        }
        session.said = request.said;
        session.turns_left = session.turns_left.saturating_sub(1);
        let plan = self.shapes.sessions;
        let (true, Some(plan)) = (session.turns_left > 0 && self.issued < self.limit, plan) else {
            self.sessions.remove(&key);
            return None;
        };
        let pause =
            SimDuration::from_secs_f64(self.thinking.exponential(plan.think_time.as_secs_f64()));
        let at = now + pause;
        let mut next = self.turn(key);
        next.arrival = Some(at);
        self.issued += 1;
        Some((at, next))
    }

    fn shape(&mut self) -> Result<Option<Request>, TraceError> {
        if let Some(request) = self.ready.pop_front() {
            return Ok(Some(request));
        }
        if self.issued >= self.limit {
            return Ok(None);
        }
        if self.rows.is_some() {
            return self.row();
        }
        Ok(Some(match self.shapes.sessions {
            None => Request {
                input_tokens: draw(&mut self.lengths, self.shapes.input),
                output_tokens: draw(&mut self.lengths, self.shapes.output),
                ..Request::default()
            },
            Some(plan) => self.first_turn(&plan),
        }))
    }

    /// The next row of the trace that need not wait for another one's answer.
    fn row(&mut self) -> Result<Option<Request>, TraceError> {
        loop {
            let Some(row) = self.rows.as_mut().and_then(Iterator::next) else {
                return Ok(None);
            };
            let mut request = row?;
            let Some(key) = request.session else {
                return Ok(Some(request));
            };
            if request.prefix.is_empty() {
                request.prefix = vec![Segment {
                    key,
                    tokens: request.input_tokens,
                }];
            }
            let follows = request.arrival.is_none() && self.arrivals.is_none();
            match self.sessions.get_mut(&key) {
                Some(session) if follows => session.waiting.push_back(request),
                Some(_) => return Ok(Some(request)),
                None => {
                    self.sessions.insert(
                        key,
                        Session {
                            waiting: VecDeque::new(),
                            turns_left: 0,
                            system: None,
                            said: 0,
                        },
                    );
                    return Ok(Some(request));
                }
            }
        }
    }

    fn first_turn(&mut self, plan: &Sessions) -> Request {
        self.begun += 1;
        // Keys of sessions and of system prompts are apart.
        let key = self.begun << 1;
        let which = self.lengths.below(u64::from(plan.system_prompts.max(1)));
        let session = Session {
            waiting: VecDeque::new(),
            turns_left: draw(&mut self.lengths, plan.turns),
            system: (plan.system_prompt > 0).then_some(Segment {
                key: which << 1 | 1,
                tokens: plan.system_prompt,
            }),
            said: 0,
        };
        self.sessions.insert(key, session);
        self.turn(key)
    }

    /// The next prompt of a drawn session: the system prompt, everything said, and a new part.
    fn turn(&mut self, key: u64) -> Request {
        let fresh = draw(&mut self.lengths, self.shapes.input);
        let output = draw(&mut self.lengths, self.shapes.output);
        let session = &self.sessions[&key];
        let said = session.said.saturating_add(fresh);
        let mut prefix: Vec<Segment> = session.system.into_iter().collect();
        prefix.push(Segment { key, tokens: said });
        Request {
            input_tokens: prefix
                .iter()
                .fold(0, |sum: u32, segment| sum.saturating_add(segment.tokens)),
            output_tokens: output,
            session: Some(key),
            prefix,
            ..Request::default()
        }
    }

    fn gap(&mut self, arrivals: Arrivals) -> SimDuration {
        let mean = 1.0 / arrivals.rate().map_or(f64::INFINITY, |rate| rate.per_sec());
        let gap = match arrivals {
            Arrivals::Constant { .. } => 1.0,
            Arrivals::Gamma { cv, .. } => gamma(&mut self.gaps, cv),
            _ => self.gaps.exponential(1.0),
        };
        SimDuration::from_secs_f64(gap * mean)
    }
}

/// What the source needs to know of an answered request.
pub(super) struct Answered {
    pub session: Option<u64>,
    /// Tokens of the conversation so far, prompt and answer, without the system prompt.
    pub said: u32,
}

fn draw(stream: &mut RandomStream, length: Length) -> u32 {
    match length {
        Length::Fixed(tokens) => tokens.max(1),
        Length::Uniform { min, max } => {
            let span = u64::from(max.saturating_sub(min)) + 1;
            (min + stream.below(span) as u32).max(1)
        }
        Length::LogNormal { median, sigma, max } => {
            let tokens = stream.lognormal(f64::from(median.max(1)), sigma).round();
            (tokens as u32).clamp(1, max.max(1))
        }
    }
}

/// Gamma with mean 1 and this coefficient of variation.
fn gamma(stream: &mut RandomStream, cv: f64) -> f64 {
    gamma_of_shape(stream, 1.0 / (cv * cv))
}

/// Gamma with mean 1 and this shape (Marsaglia and Tsang 2000).
pub(super) fn gamma_of_shape(stream: &mut RandomStream, shape: f64) -> f64 {
    // Below 1 the method needs a shape one higher and a power of a uniform.
    let boost = if shape < 1.0 {
        libm::pow(1.0 - stream.uniform(), 1.0 / shape)
    } else {
        1.0
    };
    let d = if shape < 1.0 { shape + 1.0 } else { shape } - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let z = stream.normal(0.0, 1.0);
        let v = 1.0 + c * z;
        if v <= 0.0 {
            continue;
        }
        let v = v * v * v;
        let u = 1.0 - stream.uniform();
        if libm::log(u) < 0.5 * z * z + d - d * v + d * libm::log(v) {
            return boost * d * v / shape;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_has_its_moments() {
        for cv in [0.3, 1.0, 2.0] {
            let mut stream = RandomStream::root(3);
            let draws: Vec<f64> = (0..40_000).map(|_| gamma(&mut stream, cv)).collect();
            let mean = draws.iter().sum::<f64>() / draws.len() as f64;
            let variance =
                draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
            assert!((mean - 1.0).abs() < 0.04, "{cv}: mean {mean}");
            assert!(
                (variance.sqrt() / cv - 1.0).abs() < 0.06,
                "{cv}: {variance}"
            );
        }
    }
}
