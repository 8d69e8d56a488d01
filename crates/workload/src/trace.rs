//! Request traces as streams: one request at a time, whatever the length of the file.
//!
//! Two shapes are read, told apart by the first character. **CSV** with a header: the Azure LLM
//! inference traces (`TIMESTAMP,ContextTokens,GeneratedTokens`), and any file whose columns have one
//! of the names in [`CSV_COLUMNS`]. **JSON** objects, one a line or in one array: Mooncake's traces
//! (`timestamp`, `input_length`, `output_length`, `hash_ids`), the aliases that replay tools accept
//! (`input_tokens`, `output_tokens`, `created_time`, `session_id`, `delay_ms`), and the ShareGPT form
//! of vLLM's benchmarks (`conversations` of `{from, value}`).
//!
//! ShareGPT holds text and no counts: a token is taken to be four bytes. Only the first two turns
//! of a conversation are used, as vLLM's benchmark does.

use crate::requests::{Request, Segment};
use rackflow_units::{SimDuration, SimTime};
use serde::Deserialize;
use std::io::{self, BufRead};

/// What is wrong with a trace, and where.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("line {line}: {error}")]
    Io {
        /// Line, counted from 1.
        line: u64,
        /// Why.
        error: io::Error,
    },
    /// The text is not a request.
    #[error("line {line}: {message}")]
    Format {
        /// Line, counted from 1.
        line: u64,
        /// What is wrong, and what would be right.
        message: String,
    },
}

/// Tokens of one hash of a Mooncake trace.
const TOKENS_PER_HASH: u32 = 512;
/// Bytes of text that make one token, where a trace holds text.
const BYTES_PER_TOKEN: usize = 4;
/// No model reads or writes more in one request.
const MOST_TOKENS: u64 = 100_000_000;
/// One request is text of at most this many bytes.
const LONGEST_ITEM: usize = 64 << 20;
/// Arrivals later than this (in seconds) do not fit simulated time.
const LATEST_S: f64 = 180.0 * 86_400.0;

/// Names of columns that are understood, by meaning: when (with its unit), prompt, answer, session.
pub const CSV_COLUMNS: [(&str, &[&str]); 4] = [
    (
        "arrival",
        &[
            "TIMESTAMP",
            "timestamp",
            "Timestamp",
            "arrival_time_ns",
            "arrived_at",
            "arrival_time",
            "created_time",
        ],
    ),
    (
        "input",
        &[
            "ContextTokens",
            "input_length",
            "input_tokens",
            "input_toks",
            "num_prefill_tokens",
            "prompt_len",
            "Request tokens",
        ],
    ),
    (
        "output",
        &[
            "GeneratedTokens",
            "output_length",
            "output_tokens",
            "output_toks",
            "num_decode_tokens",
            "output_len",
            "Response tokens",
        ],
    ),
    ("session", &["session_id", "chat_id", "Session ID"]),
];

/// Requests of a trace, in the order of the file. Arrivals count from the first request's.
#[derive(Debug)]
pub struct Trace<R> {
    reader: R,
    line: u64,
    shape: Option<Shape>,
    /// Time of the first request in the file's own clock, in seconds.
    origin: Option<f64>,
    buffer: Vec<u8>,
    failed: bool,
}

#[derive(Debug)]
enum Shape {
    Csv(Columns),
    Json,
}

#[derive(Debug)]
struct Columns {
    arrival: Option<(usize, Clock)>,
    input: usize,
    output: usize,
    session: Option<usize>,
    names: Vec<String>,
}

/// How a column writes time.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Clock {
    /// `2023-11-16 18:15:46.6805900`, or seconds.
    DateOrSeconds,
    Milliseconds,
    Nanoseconds,
}

impl<R: BufRead> Trace<R> {
    /// Reads from `reader`, from its beginning.
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            line: 0,
            shape: None,
            origin: None,
            buffer: Vec::new(),
            failed: false,
        }
    }

    fn wrong(&self, message: impl Into<String>) -> TraceError {
        TraceError::Format {
            line: self.line.max(1),
            message: message.into(),
        }
    }

    /// The next line into the buffer, without its end; `false` at the end of the file.
    fn read_line(&mut self) -> Result<bool, TraceError> {
        self.buffer.clear();
        loop {
            let (used, done) = {
                let chunk = self.reader.fill_buf().map_err(|error| TraceError::Io {
                    line: self.line + 1,
                    error,
                })?;
                match chunk.iter().position(|byte| *byte == b'\n') {
                    Some(end) => {
                        self.buffer.extend_from_slice(&chunk[..end]);
                        (end + 1, true)
                    }
                    None => {
                        self.buffer.extend_from_slice(chunk);
                        (chunk.len(), chunk.is_empty())
                    }
                }
            };
            self.reader.consume(used);
            if used > 0 && done || used == 0 && !self.buffer.is_empty() {
                self.line += 1;
                if self.buffer.last() == Some(&b'\r') {
                    self.buffer.pop();
                }
                return Ok(true);
            }
            if used == 0 {
                return Ok(false);
            }
            if self.buffer.len() > LONGEST_ITEM {
                self.line += 1;
                return Err(self.wrong("a line is longer than 64 MiB, which no request is"));
            }
        }
    }

    /// The next byte that is no white space, without taking it.
    fn peek(&mut self) -> Result<Option<u8>, TraceError> {
        loop {
            let chunk = self.reader.fill_buf().map_err(|error| TraceError::Io {
                line: self.line.max(1),
                error,
            })?;
            let Some(&byte) = chunk.first() else {
                return Ok(None);
            };
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.line += u64::from(byte == b'\n');
            self.reader.consume(1);
        }
    }

    fn begin(&mut self) -> Result<Option<Shape>, TraceError> {
        // Some tools write a byte order mark.
        if let Ok(chunk) = self.reader.fill_buf()
            && chunk.starts_with(b"\xef\xbb\xbf")
        {
            self.reader.consume(3);
        }
        Ok(match self.peek()? {
            None => None,
            Some(b'{' | b'[') => {
                self.line += 1;
                Some(Shape::Json)
            }
            Some(_) => {
                self.read_line()?;
                Some(Shape::Csv(self.header()?))
            }
        })
    }

    fn header(&self) -> Result<Columns, TraceError> {
        let text = String::from_utf8_lossy(&self.buffer).into_owned();
        let names: Vec<String> = text
            .split(',')
            .map(|name| name.trim().trim_matches('"').to_owned())
            .collect();
        let column = |meaning: usize| {
            let known = CSV_COLUMNS[meaning].1;
            names.iter().position(|name| known.contains(&name.as_str()))
        };
        let needed = |meaning: usize| {
            column(meaning).ok_or_else(|| {
                let (what, known) = CSV_COLUMNS[meaning];
                self.wrong(format!(
                    "no column with the {what} tokens among `{}`; known names: {}",
                    shorten(&text),
                    known.join(", ")
                ))
            })
        };
        let arrival = column(0).map(|at| {
            let clock = match names[at].as_str() {
                "arrival_time_ns" => Clock::Nanoseconds,
                "created_time" => Clock::Milliseconds,
                _ => Clock::DateOrSeconds,
            };
            (at, clock)
        });
        Ok(Columns {
            arrival,
            input: needed(1)?,
            output: needed(2)?,
            session: column(3),
            names,
        })
    }

    fn csv_row(&mut self) -> Result<Option<Request>, TraceError> {
        loop {
            if !self.read_line()? {
                return Ok(None);
            }
            if self.buffer.iter().any(|byte| !byte.is_ascii_whitespace()) {
                break;
            }
        }
        let Some(Shape::Csv(columns)) = &self.shape else {
            return Ok(None);
        };
        let Ok(text) = std::str::from_utf8(&self.buffer) else {
            return Err(self.wrong("the line is not UTF-8"));
        };
        let field = |index: usize| {
            text.split(',').nth(index).map(str::trim).ok_or_else(|| {
                self.wrong(format!(
                    "the column `{}` is missing in `{}`",
                    columns.names[index],
                    shorten(text)
                ))
            })
        };
        let tokens = |index: usize| {
            let text = field(index)?;
            let value = text
                .parse::<f64>()
                .ok()
                .filter(|value| value.fract() == 0.0);
            value.and_then(whole_tokens).ok_or_else(|| {
                self.wrong(format!(
                    "`{}` is `{}`; it must be a number of tokens",
                    columns.names[index],
                    shorten(text)
                ))
            })
        };
        let (input, output) = (tokens(columns.input)?, tokens(columns.output)?);
        let seconds = match columns.arrival {
            None => None,
            Some((index, clock)) => {
                let text = field(index)?;
                Some(seconds_of(text, clock).ok_or_else(|| {
                    self.wrong(format!(
                        "`{}` is `{}`; it must be a time such as 2023-11-16 18:15:46.68 or 12.5",
                        columns.names[index],
                        shorten(text)
                    ))
                })?)
            }
        };
        let session = match columns.session {
            None => None,
            Some(index) => Some(hash_of(field(index)?)),
        };
        let arrival = self.arrival(seconds)?;
        Ok(Some(Request {
            arrival,
            input_tokens: input.max(1),
            output_tokens: output.max(1),
            session,
            ..Request::default()
        }))
    }

    /// Since the first request.
    fn arrival(&mut self, seconds: Option<f64>) -> Result<Option<SimTime>, TraceError> {
        let Some(seconds) = seconds else {
            return Ok(None);
        };
        let since = seconds - *self.origin.get_or_insert(seconds);
        if !(0.0..=LATEST_S).contains(&since) {
            return Err(self.wrong(format!(
                "the request is {since:.3} s after the first; arrivals must be in order and within 180 days"
            )));
        }
        Ok(Some(SimTime::ZERO + SimDuration::from_secs_f64(since)))
    }

    /// The text of the next JSON object into the buffer; `false` at the end.
    fn json_item(&mut self) -> Result<bool, TraceError> {
        loop {
            match self.peek()? {
                None => return Ok(false),
                Some(b'[' | b',' | b']') => self.reader.consume(1),
                Some(b'{') => break,
                Some(other) => {
                    return Err(self.wrong(format!(
                        "found `{}` where a request `{{...}}` begins",
                        char::from(other).escape_default()
                    )));
                }
            }
        }
        self.buffer.clear();
        let mut scan = Scan::default();
        loop {
            let chunk = self.reader.fill_buf().map_err(|error| TraceError::Io {
                line: self.line,
                error,
            })?;
            if chunk.is_empty() {
                return Err(self.wrong("the file ends inside a request"));
            }
            let end = chunk.iter().position(|byte| scan.ends_at(*byte));
            let used = end.map_or(chunk.len(), |end| end + 1);
            self.buffer.extend_from_slice(&chunk[..used]);
            self.reader.consume(used);
            if end.is_some() {
                return Ok(true);
            }
            if self.buffer.len() > LONGEST_ITEM {
                return Err(self.wrong("a request is longer than 64 MiB"));
            }
        }
    }

    fn json_row(&mut self) -> Result<Option<Request>, TraceError> {
        if !self.json_item()? {
            return Ok(None);
        }
        let parsed: Result<JsonRequest, _> = serde_json::from_slice(&self.buffer);
        let row = parsed.map_err(|error| {
            let mut text = error.to_string();
            // serde_json counts lines inside the object.
            if let Some(at) = text.find(" at line ") {
                text.truncate(at);
            }
            let line = self.line + (error.line().max(1) - 1) as u64;
            TraceError::Format {
                line,
                message: text,
            }
        })?;
        let request = self.request(&row);
        self.line += self.buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
        request.map(Some)
    }

    fn request(&mut self, row: &JsonRequest) -> Result<Request, TraceError> {
        let turn = |index: usize| {
            let turns = row.conversations.as_ref()?;
            Some((turns.get(index)?.value.len().div_ceil(BYTES_PER_TOKEN)) as f64)
        };
        let count = |given: Option<f64>, index: usize, what: &str| {
            let value = given.or_else(|| turn(index)).ok_or_else(|| {
                self.wrong(format!(
                    "the request has no {what}: write `{what}_length` (or `{what}_tokens`), or two `conversations`"
                ))
            })?;
            whole_tokens(value).ok_or_else(|| {
                self.wrong(format!("{what} is {value}; it must be a number of tokens"))
            })
        };
        let input = count(row.input, 0, "input")?;
        let output = count(row.output, 1, "output")?;
        let seconds = row
            .timestamp_ms
            .map(|ms| ms * 1e-3)
            .or_else(|| row.arrival_time_ns.map(|ns| ns * 1e-9));
        let arrival = self.arrival(seconds)?;
        let delay = row.delay_ms.unwrap_or(0.0);
        if !(0.0..=LATEST_S * 1e3).contains(&delay) {
            return Err(self.wrong(format!("delay_ms is {delay}; it must be at least 0")));
        }
        Ok(Request {
            arrival,
            input_tokens: input.max(1),
            output_tokens: output.max(1),
            priority: row.priority.unwrap_or(0),
            session: row.session.as_ref().map(|id| hash_of(&id.to_string())),
            delay: SimDuration::from_secs_f64(delay * 1e-3),
            prefix: prefix(row, input.max(1)),
        })
    }
}

/// One segment for each hash: 512 tokens, the last one what is left.
fn prefix(row: &JsonRequest, input: u32) -> Vec<Segment> {
    let mut left = input;
    let mut segments = Vec::with_capacity(row.hash_ids.len());
    for &key in &row.hash_ids {
        if left == 0 {
            break;
        }
        let tokens = left.min(TOKENS_PER_HASH);
        segments.push(Segment { key, tokens });
        left -= tokens;
    }
    segments
}

impl<R: BufRead> Iterator for Trace<R> {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        if self.shape.is_none() {
            match self.begin() {
                Ok(shape) => self.shape = shape,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        let row = match self.shape {
            None => return None,
            Some(Shape::Csv(_)) => self.csv_row(),
            Some(Shape::Json) => self.json_row(),
        };
        self.failed = row.is_err();
        row.transpose()
    }
}

/// Where a JSON object ends.
#[derive(Debug, Default)]
struct Scan {
    depth: u32,
    in_text: bool,
    escaped: bool,
}

impl Scan {
    fn ends_at(&mut self, byte: u8) -> bool {
        if self.in_text {
            if self.escaped {
                self.escaped = false;
            } else if byte == b'\\' {
                self.escaped = true;
            } else if byte == b'"' {
                self.in_text = false;
            }
            return false;
        }
        match byte {
            b'"' => self.in_text = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// Every name under which replay tools know a field. Unknown fields are theirs and pass.
#[derive(Debug, Deserialize)]
struct JsonRequest {
    #[serde(default, alias = "timestamp", alias = "created_time")]
    timestamp_ms: Option<f64>,
    #[serde(default)]
    arrival_time_ns: Option<f64>,
    #[serde(
        default,
        alias = "input_length",
        alias = "input_tokens",
        alias = "input_toks",
        alias = "prompt_len",
        alias = "num_prefill_tokens"
    )]
    input: Option<f64>,
    #[serde(
        default,
        alias = "output_length",
        alias = "output_tokens",
        alias = "output_toks",
        alias = "output_len",
        alias = "num_decode_tokens"
    )]
    output: Option<f64>,
    #[serde(default, alias = "delay")]
    delay_ms: Option<f64>,
    #[serde(default)]
    priority: Option<u32>,
    #[serde(default, alias = "session_id", alias = "chat_id")]
    session: Option<serde_json::Value>,
    #[serde(default)]
    hash_ids: Vec<u64>,
    #[serde(default)]
    conversations: Option<Vec<Turn>>,
}

#[derive(Debug, Deserialize)]
struct Turn {
    #[serde(default)]
    value: String,
}

fn whole_tokens(value: f64) -> Option<u32> {
    (0.0..=MOST_TOKENS as f64)
        .contains(&value)
        .then_some(value as u32)
}

/// FNV-1a, so that a session has the same number on every machine.
fn hash_of(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn shorten(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = clean.take(60).collect();
    if text.chars().count() > 60 {
        short.push_str("...");
    }
    short
}

fn seconds_of(text: &str, clock: Clock) -> Option<f64> {
    let text = text.trim_matches('"');
    let number = text.parse::<f64>().ok().filter(|value| value.is_finite());
    match (clock, number) {
        (Clock::Milliseconds, number) => number.map(|ms| ms * 1e-3),
        (Clock::Nanoseconds, number) => number.map(|ns| ns * 1e-9),
        (Clock::DateOrSeconds, Some(seconds)) => Some(seconds),
        (Clock::DateOrSeconds, None) => date_seconds(text),
    }
}

/// Seconds since 1970 of `2023-11-16 18:15:46.6805900`, with a `T` or a space, in UTC.
fn date_seconds(text: &str) -> Option<f64> {
    let text = text.trim_end_matches('Z');
    let text = text.strip_suffix("+00:00").unwrap_or(text);
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.split(':');
    let hour: i64 = time.next()?.parse().ok()?;
    let minute: i64 = time.next()?.parse().ok()?;
    let second: f64 = time.next()?.parse().ok()?;
    let right = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0.0..61.0).contains(&second)
        && time.next().is_none();
    if !right {
        return None;
    }
    // Days since 1970-01-01 in the Gregorian calendar, with years that begin in March.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some((days * 86_400 + hour * 3_600 + minute * 60) as f64 + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Vec<Request>, TraceError> {
        Trace::new(text.as_bytes()).collect()
    }

    fn told(text: &str) -> String {
        read(text).expect_err("a wrong trace").to_string()
    }

    #[test]
    fn the_azure_form() {
        let requests = read(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n\
             2023-11-16 23:59:59.5000000,374,44\n\
             2023-11-17 00:00:00.2500000,396,109\n",
        )
        .unwrap();
        assert_eq!(requests.len(), 2);
        assert_eq!(
            (requests[0].input_tokens, requests[0].output_tokens),
            (374, 44)
        );
        assert_eq!(requests[0].arrival, Some(SimTime::ZERO));
        assert_eq!(requests[1].arrival.unwrap().as_picos(), 750_000_000_000);
    }

    #[test]
    fn the_mooncake_form_has_prefixes() {
        let requests = read(
            "{\"timestamp\": 1000, \"input_length\": 1000, \"output_length\": 5, \"hash_ids\": [7, 9]}\n\
             {\"timestamp\": 1250, \"input_length\": 512, \"output_length\": 0, \"hash_ids\": [7]}\n",
        )
        .unwrap();
        let keys: Vec<_> = requests[0]
            .prefix
            .iter()
            .map(|s| (s.key, s.tokens))
            .collect();
        assert_eq!(keys, [(7, 512), (9, 488)]);
        assert_eq!(requests[1].arrival.unwrap().as_picos(), 250_000_000_000);
        assert_eq!(requests[1].output_tokens, 1, "an answer has a token");
    }

    #[test]
    fn the_sharegpt_form_and_other_names() {
        let requests = read(
            r#"[ {"id": "a", "conversations": [{"from": "human", "value": "12345678"},
                 {"from": "gpt", "value": "a } \" {"}, {"from": "human", "value": "more"}]},
                 {"input_tokens": 10, "output_tokens": 3, "session_id": "s", "delay_ms": 20} ]"#,
        )
        .unwrap();
        assert_eq!(
            (requests[0].input_tokens, requests[0].output_tokens),
            (2, 2)
        );
        assert_eq!(requests[1].delay, SimDuration::from_micros(20_000));
        assert!(requests[1].session.is_some());
        let columns =
            read("arrival_time_ns,input_toks,output_toks\n5,1,2\n1000000005,3,4").unwrap();
        assert_eq!(columns[1].arrival.unwrap().as_secs_f64(), 1.0);
    }

    #[test]
    fn errors_name_the_line() {
        assert!(told("a,b\n1,2\n").contains("line 1: no column with the input tokens"));
        let text = "ContextTokens,GeneratedTokens\n1,2\n\n3,x\n";
        assert!(
            told(text).contains("line 4: `GeneratedTokens` is `x`"),
            "{}",
            told(text)
        );
        let text = "{\"input_length\": 1, \"output_length\": 2}\n{\"input_length\": 1}\n";
        assert!(
            told(text).contains("line 2: the request has no output"),
            "{}",
            told(text)
        );
        let text = "{\"timestamp\": 5, \"input_length\": 1, \"output_length\": 2}\n\
                    {\"timestamp\": 4, \"input_length\": 1, \"output_length\": 2}\n";
        assert!(
            told(text).contains("line 2") && told(text).contains("in order"),
            "{}",
            told(text)
        );
        assert!(told("{\"input_length\": 1, ").contains("ends inside"));
        assert!(told("{\"input_length\": \"x\"}").contains("line 1"));
    }

    #[test]
    fn calendar() {
        assert_eq!(date_seconds("1970-01-01 00:00:00"), Some(0.0));
        assert_eq!(
            date_seconds("2024-02-29T12:00:00.5Z"),
            Some(1_709_208_000.5)
        );
        assert_eq!(date_seconds("2024-13-01 00:00:00"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the bytes, reading ends and nothing panics.
        #[test]
        fn any_bytes_are_requests_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Trace::new(bytes.as_slice()).count();
        }

        /// The same for text that looks like a trace.
        #[test]
        fn any_near_trace_is_requests_or_an_error(text in r#"(TIMESTAMP,ContextTokens,GeneratedTokens\n)?([\[{}\],:"0-9a-zT. \n-]|"input_length": |"hash_ids": \[){0,80}"#) {
            let _ = Trace::new(text.as_bytes()).count();
        }

        /// What is written is read, however the file is cut into reads.
        #[test]
        fn a_trace_survives_small_reads(
            rows in prop::collection::vec((0u32..100_000, 1u32..9000, 1u32..900), 1..20),
            capacity in 1usize..40,
        ) {
            let mut at = 0;
            let mut text = String::new();
            for (gap, input, output) in &rows {
                at += gap;
                text.push_str(&format!("{{\"timestamp\": {at}, \"input_length\": {input}, \"output_length\": {output}}}\n"));
            }
            let reader = io::BufReader::with_capacity(capacity, text.as_bytes());
            let read: Vec<Request> = Trace::new(reader).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(read.len(), rows.len());
            for (request, row) in read.iter().zip(&rows) {
                prop_assert_eq!((request.input_tokens, request.output_tokens), (row.1, row.2));
            }
        }
    }
}
