//! From YAML text to a tree in which every key and every value knows its place.
//!
//! This module knows YAML and nothing else: which keys exist and what they mean is decided by
//! whoever decodes the tree. Values stay text until a type asks for them, so that `1f1b`, `0.5` and
//! `400 Gbit/s` are never guessed at.

use crate::decode::DecodeError;
use crate::diagnostic::{Diagnostic, Source, Span};
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, StrInput};
use std::collections::BTreeMap;

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub span: Span,
    pub value: Value,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Scalar { text: String, quoted: bool },
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Key {
    pub text: String,
    pub span: Span,
}

impl Node {
    /// The value under a key of a mapping.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|(_, node)| node)
    }

    /// The key and the value under a key of a mapping.
    pub fn entry(&self, key: &str) -> Option<&(Key, Node)> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|(k, _)| k.text == key),
            _ => None,
        }
    }

    /// The text of a scalar that is not empty.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// Nothing is written here: `key:` or `key: ~`.
    pub fn is_null(&self) -> bool {
        matches!(
            &self.value,
            Value::Scalar { text, quoted: false } if matches!(text.as_str(), "" | "~" | "null")
        )
    }

    /// What is under a path of keys, or under its longest part that exists, as a place to point at:
    /// a scalar itself, the key of anything larger. Sequences are entered by index.
    pub fn place(&self, path: &str) -> Span {
        let mut node = self;
        let mut place = self.first_place();
        for key in path.split('.').filter(|key| !key.is_empty()) {
            let next = match &node.value {
                Value::Mapping(_) => node.entry(key).map(|(key, node)| (key.span, node)),
                Value::Sequence(items) => key
                    .parse::<usize>()
                    .ok()
                    .and_then(|i| items.get(i))
                    .map(|item| (item.span, item)),
                Value::Scalar { .. } => None,
            };
            let Some((key_span, child)) = next else { break };
            node = child;
            place = match &child.value {
                Value::Scalar { .. } if child.span.len > 0 => child.span,
                Value::Sequence(items)
                    if items
                        .iter()
                        .all(|i| matches!(i.value, Value::Scalar { .. })) =>
                {
                    child.span
                }
                _ => key_span,
            };
        }
        place
    }

    /// What is under a path of keys.
    pub fn at(&self, path: &str) -> Option<&Node> {
        path.split('.')
            .try_fold(self, |node, key| match &node.value {
                Value::Sequence(items) => items.get(key.parse::<usize>().ok()?),
                _ => node.get(key),
            })
    }

    fn first_place(&self) -> Span {
        match &self.value {
            Value::Mapping(entries) => entries.first().map_or(self.span, |(key, _)| key.span),
            _ => self.span,
        }
    }

    /// The same with every place replaced by `span`: what a catalogue entry looks like from a
    /// scenario that names it.
    pub fn placed_at(&self, span: Span) -> Self {
        let value = match &self.value {
            Value::Scalar { .. } => self.value.clone(),
            Value::Sequence(items) => {
                Value::Sequence(items.iter().map(|i| i.placed_at(span)).collect())
            }
            Value::Mapping(entries) => Value::Mapping(
                entries
                    .iter()
                    .map(|(key, node)| {
                        (
                            Key {
                                text: key.text.clone(),
                                span,
                            },
                            node.placed_at(span),
                        )
                    })
                    .collect(),
            ),
        };
        Self { span, value }
    }

    /// A mapping without one of its keys.
    pub fn without(&self, unwanted: &str) -> Self {
        let value = match &self.value {
            Value::Mapping(entries) => Value::Mapping(
                entries
                    .iter()
                    .filter(|(key, _)| key.text != unwanted)
                    .cloned()
                    .collect(),
            ),
            other => other.clone(),
        };
        Self {
            span: self.span,
            value,
        }
    }

    /// `self` with the fields of `changes` in place of its own; mappings are changed field by field.
    pub fn changed_by(&self, changes: &Self) -> Self {
        let (Value::Mapping(own), Value::Mapping(new)) = (&self.value, &changes.value) else {
            return changes.clone();
        };
        // Two different kinds of an enum: the new one replaces the old one whole.
        if let ([(a, _)], [(b, _)]) = (own.as_slice(), new.as_slice())
            && a.text != b.text
        {
            return changes.clone();
        }
        let mut entries: Vec<(Key, Self)> = own.clone();
        for (key, node) in new {
            match entries.iter_mut().find(|(k, _)| k.text == key.text) {
                Some(entry) => *entry = (key.clone(), entry.1.changed_by(node)),
                None => entries.push((key.clone(), node.clone())),
            }
        }
        Self {
            span: changes.span,
            value: Value::Mapping(entries),
        }
    }
}

// ---- making variants of a document

impl Node {
    /// Puts `value` under a path of keys, in place of what is there. Keys that are missing are made.
    ///
    /// # Errors
    /// When the path leads through something that is no mapping.
    pub fn set(&mut self, path: &str, value: &Self) -> Result<(), DecodeError> {
        *self.make(path, value.span)? = value.clone();
        Ok(())
    }

    /// Changes what is under the path that `key` spells as [`Node::changed_by`] does.
    ///
    /// # Errors
    /// When the path leads through something that is no mapping.
    pub fn change(&mut self, key: &Key, value: &Self) -> Result<(), DecodeError> {
        let place = self.make(&key.text, key.span)?;
        *place = place.changed_by(value);
        Ok(())
    }

    fn make(&mut self, path: &str, span: Span) -> Result<&mut Self, DecodeError> {
        let mut node = self;
        for key in path.split('.') {
            if node.is_null() {
                node.value = Value::Mapping(Vec::new());
            }
            let Value::Mapping(entries) = &mut node.value else {
                return Err(DecodeError::placed(
                    format!("`{path}` leads through a value that has no keys"),
                    span,
                ));
            };
            let index = entries.iter().position(|(known, _)| known.text == key);
            let index = index.unwrap_or_else(|| {
                let key = Key {
                    text: key.to_owned(),
                    span,
                };
                let value = Value::Scalar {
                    text: String::new(),
                    quoted: false,
                };
                entries.push((key, Self { span, value }));
                entries.len() - 1
            });
            node = &mut entries[index].1;
        }
        Ok(node)
    }

    /// The value on one line, for names and tables.
    pub fn in_short(&self) -> String {
        match &self.value {
            Value::Scalar { text, .. } => text.clone(),
            Value::Sequence(items) => {
                let items: Vec<String> = items.iter().map(Self::in_short).collect();
                format!("[{}]", items.join(", "))
            }
            Value::Mapping(entries) => {
                let entries: Vec<String> = entries
                    .iter()
                    .map(|(key, node)| format!("{}: {}", key.text, node.in_short()))
                    .collect();
                format!("{{ {} }}", entries.join(", "))
            }
        }
    }

    /// The tree as YAML text, without comments.
    pub fn to_yaml(&self) -> String {
        let mut out = String::new();
        self.write(0, &mut out);
        out
    }

    fn write(&self, indent: usize, out: &mut String) {
        let margin = "  ".repeat(indent);
        match &self.value {
            Value::Scalar { text, quoted } => {
                let plain = !quoted && !text.contains('\n');
                out.push_str(&if plain { text.clone() } else { json(text) });
                out.push('\n');
            }
            Value::Sequence(items) if items.is_empty() => out.push_str("[]\n"),
            Value::Sequence(items) => {
                for item in items {
                    out.push_str(&format!("{margin}- "));
                    item.write_below(indent, out);
                }
            }
            Value::Mapping(entries) if entries.is_empty() => out.push_str("{}\n"),
            Value::Mapping(entries) => {
                for (key, node) in entries {
                    out.push_str(&format!("{margin}{}: ", json_if_odd(&key.text)));
                    node.write_below(indent, out);
                }
            }
        }
    }

    /// What follows a key or a dash: a scalar on the same line, anything else below it.
    fn write_below(&self, indent: usize, out: &mut String) {
        let inline = match &self.value {
            Value::Scalar { .. } => true,
            Value::Sequence(items) => items.is_empty(),
            Value::Mapping(entries) => entries.is_empty(),
        };
        if !inline {
            out.truncate(out.trim_end_matches(' ').len());
            out.push('\n');
        }
        self.write(indent + 1, out);
    }
}

/// A double-quoted scalar: JSON strings are YAML.
fn json(text: &str) -> String {
    serde_json::to_string(text).expect("a text has a JSON form")
}

/// A key as it was typed, quoted where it is no plain word.
fn json_if_odd(key: &str) -> String {
    let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !key.is_empty() && key.chars().all(word) {
        key.to_owned()
    } else {
        json(key)
    }
}

/// What the scanner says, and what usually is behind it.
const SCAN_HINTS: &[(&str, &str)] = &[
    (
        "simple key expected",
        "a key is followed by a colon and a space, as in `gpus: 64`",
    ),
    (
        "mapping values are not allowed",
        "the line does not line up with the one above it, or has a second colon",
    ),
    (
        "unexpected character",
        "put quotes around text that begins with a sign",
    ),
    (
        "unknown anchor",
        "`*name` repeats a value that was marked `&name` before; put quotes around it if it is text",
    ),
    ("unclosed quote", "the quote that opens here is not closed"),
    (
        "unclosed bracket",
        "the bracket that opens here is not closed",
    ),
];

/// Bytes of the longest text that is read.
const LONGEST_TEXT: usize = 4 << 20;
/// Nodes of the largest tree, aliases expanded.
const MOST_NODES: usize = 200_000;
/// Levels of the deepest tree.
const DEEPEST: usize = 48;

/// Reads one YAML document.
///
/// # Errors
/// When the text is not YAML, holds no document or several, repeats a key, or is absurdly large.
pub(crate) fn parse(source: &Source) -> Result<Node, Box<Diagnostic>> {
    let text: &str = &source.text;
    if text.len() > LONGEST_TEXT {
        let message = format!(
            "the text is {} bytes long; at most {LONGEST_TEXT} are read",
            text.len()
        );
        return Err(Box::new(Diagnostic::error(
            source,
            Span::default(),
            message,
        )));
    }
    let mut composer = Composer {
        source,
        parser: Parser::new_from_str(text),
        anchors: BTreeMap::default(),
        nodes: 0,
    };
    composer.document()
}

struct Composer<'s> {
    source: &'s Source,
    parser: Parser<'s, StrInput<'s>>,
    anchors: BTreeMap<usize, (Node, usize)>,
    nodes: usize,
}

type Composed<T> = Result<T, Box<Diagnostic>>;

impl<'s> Composer<'s> {
    fn refuse<T>(&self, span: Span, message: impl Into<String>) -> Composed<T> {
        Err(Box::new(Diagnostic::error(self.source, span, message)))
    }

    /// The next event that is more than presentation.
    fn next(&mut self) -> Composed<Option<(Event<'s>, Span)>> {
        loop {
            let (event, span) = match self.parser.next_event() {
                None => return Ok(None),
                Some(Ok(next)) => next,
                Some(Err(error)) => return Err(Box::new(self.scan_error(&error))),
            };
            let structure = matches!(
                event,
                Event::StreamEnd
                    | Event::DocumentStart(..)
                    | Event::SequenceEnd
                    | Event::MappingEnd
            );
            if event.is_node() || structure {
                let range = span.byte_range().unwrap_or(0..0);
                return Ok(Some((event, Span::between(range.start, range.end))));
            }
        }
    }

    fn scan_error(&self, error: &ScanError) -> Diagnostic {
        let at = error
            .marker()
            .byte_offset()
            .unwrap_or(0)
            .min(self.source.text.len());
        let info = error.info();
        let found = Diagnostic::error(
            self.source,
            Span { offset: at, len: 1 },
            format!("this is not YAML: {info}"),
        );
        let line = self
            .source
            .text
            .lines()
            .nth(found.line - 1)
            .unwrap_or_default();
        let indent = &line[..line.len() - line.trim_start().len()];
        if indent.contains('\t') {
            return found.hint("indent with spaces, not with tabs");
        }
        for (what, hint) in SCAN_HINTS {
            if info.contains(what) {
                return found.hint(*hint);
            }
        }
        found
    }

    fn document(&mut self) -> Composed<Node> {
        let mut root = None;
        while let Some((event, span)) = self.next()? {
            match event {
                Event::StreamEnd => break,
                _ if root.is_some() => {
                    return self.refuse(
                        span,
                        "a second YAML document begins here; one file holds one scenario",
                    );
                }
                Event::DocumentStart(..) => {}
                event => root = Some(self.node(event, span, 0)?),
            }
        }
        match root {
            Some(root) if !root.is_null() => Ok(root),
            _ => Err(Box::new(
                Diagnostic::error(
                    self.source,
                    Span::default(),
                    "there is nothing in this file",
                )
                .hint(
                    "`rackflow show quickstart-llama3-8b-8-h100` prints a scenario to begin with",
                ),
            )),
        }
    }

    /// Composes the node that begins with `event`.
    fn node(&mut self, event: Event<'s>, span: Span, depth: usize) -> Composed<Node> {
        if depth > DEEPEST {
            return self.refuse(span, format!("nested more than {DEEPEST} levels deep"));
        }
        self.count(1, span)?;
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let quoted = !matches!(style, ScalarStyle::Plain);
                let node = Node {
                    span,
                    value: Value::Scalar {
                        text: text.into_owned(),
                        quoted,
                    },
                };
                self.remember(anchor, &node, 0);
                Ok(node)
            }
            Event::SequenceStart(.., anchor, _) => {
                let before = self.nodes;
                let mut items = Vec::new();
                let mut end = span;
                while let Some((event, span)) = self.next()? {
                    match event {
                        Event::SequenceEnd => {
                            end = span;
                            break;
                        }
                        event => items.push(self.node(event, span, depth + 1)?),
                    }
                }
                let span = Span::between(span.offset, end.offset + end.len);
                let node = Node {
                    span,
                    value: Value::Sequence(items),
                };
                self.remember(anchor, &node, self.nodes - before);
                Ok(node)
            }
            Event::MappingStart(.., anchor, _) => {
                let before = self.nodes;
                let mut entries: Vec<(Key, Node)> = Vec::new();
                let mut seen: BTreeMap<String, Span> = BTreeMap::default();
                let mut end = span;
                while let Some((event, span)) = self.next()? {
                    match event {
                        Event::MappingEnd => {
                            end = span;
                            break;
                        }
                        event => {
                            let key = self.key(event, span, depth + 1)?;
                            if let Some(first) = seen.insert(key.text.clone(), key.span) {
                                return Err(Box::new(self.duplicate(&key, first)));
                            }
                            let value = self.value(&key, depth + 1)?;
                            entries.push((key, value));
                        }
                    }
                }
                let span = Span::between(span.offset, end.offset + end.len);
                let node = Node {
                    span,
                    value: Value::Mapping(entries),
                };
                self.remember(anchor, &node, self.nodes - before);
                Ok(node)
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some((node, size)) => {
                    let node = if self.nodes + size > MOST_NODES {
                        None
                    } else {
                        Some(node.placed_at(span))
                    };
                    self.count(*size, span)?;
                    Ok(node.expect("counted above"))
                }
                None => self.refuse(
                    span,
                    "this alias stands inside the value that it names, so it never ends",
                ),
            },
            _ => self.refuse(span, "a value was expected here"),
        }
    }

    fn key(&mut self, event: Event<'s>, span: Span, depth: usize) -> Composed<Key> {
        let node = self.node(event, span, depth)?;
        match node.value {
            Value::Scalar { text, .. } => Ok(Key {
                text,
                span: node.span,
            }),
            _ => self.refuse(node.span, "a key must be a word, not a list or a mapping"),
        }
    }

    fn value(&mut self, key: &Key, depth: usize) -> Composed<Node> {
        match self.next()? {
            Some((event, span)) => self.node(event, span, depth),
            None => self.refuse(key.span, format!("`{}` has no value", key.text)),
        }
    }

    fn duplicate(&self, key: &Key, first: Span) -> Diagnostic {
        let line = Diagnostic::error(self.source, first, "").line;
        Diagnostic::error(
            self.source,
            key.span,
            format!("`{}` is given twice", key.text),
        )
        .label("second time")
        .hint(format!(
            "it was first given on line {line}; keep one of them"
        ))
    }

    fn remember(&mut self, anchor: usize, node: &Node, size: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), size));
        }
    }

    fn count(&mut self, more: usize, span: Span) -> Composed<()> {
        self.nodes += more;
        if self.nodes > MOST_NODES {
            return self.refuse(
                span,
                format!("more than {MOST_NODES} values, aliases expanded"),
            );
        }
        Ok(())
    }
}
