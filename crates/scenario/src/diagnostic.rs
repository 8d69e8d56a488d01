//! What is wrong with a scenario, as data: the command line draws it, the tests read it.

use std::fmt;
use std::sync::Arc;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The scenario cannot be simulated.
    Error,
    /// The scenario can be simulated, but probably does not say what was meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// A stretch of a source text, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Where it begins.
    pub offset: usize,
    /// How long it is.
    pub len: usize,
}

impl Span {
    /// From `start` to `end`.
    pub(crate) fn between(start: usize, end: usize) -> Self {
        Self {
            offset: start,
            len: end.saturating_sub(start),
        }
    }
}

/// A named text that spans point into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub name: Arc<str>,
    pub text: Arc<str>,
}

/// One finding, with its place in the text and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one sentence.
    pub message: String,
    /// Name of the file, as the user gave it.
    pub source_name: Arc<str>,
    /// The whole text of the file.
    pub source_text: Arc<str>,
    /// The offending stretch, in bytes.
    pub span: Span,
    /// Line of the first byte of `span`, counted from 1.
    pub line: usize,
    /// Column of the first byte of `span` in characters, counted from 1.
    pub column: usize,
    /// A few words under the stretch; empty for none.
    pub label: String,
    /// The arithmetic behind it; empty for none.
    pub needs: String,
    /// What would be right, the likeliest first.
    pub hints: Vec<String>,
}

impl Diagnostic {
    pub(crate) fn error(source: &Source, span: Span, message: impl Into<String>) -> Self {
        let span = clip(&source.text, span);
        let before = &source.text[..span.offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            severity: Severity::Error,
            message: one_line(&message.into()),
            source_name: Arc::clone(&source.name),
            source_text: Arc::clone(&source.text),
            span,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            label: String::new(),
            needs: String::new(),
            hints: Vec::new(),
        }
    }

    pub(crate) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = one_line(&label.into());
        self
    }

    pub(crate) fn needs(mut self, arithmetic: impl Into<String>) -> Self {
        self.needs = one_line(&arithmetic.into());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(one_line(&hint.into()));
        self
    }

    pub(crate) fn hints(mut self, hints: impl IntoIterator<Item = String>) -> Self {
        self.hints
            .extend(hints.into_iter().map(|hint| one_line(&hint)));
        self
    }
}

/// Control characters of the input never reach a terminal.
fn one_line(text: &str) -> String {
    let unsafe_char = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    if text.contains(unsafe_char) {
        text.chars()
            .map(|c| if unsafe_char(c) { ' ' } else { c })
            .collect()
    } else {
        text.to_owned()
    }
}

/// Keeps a span inside the text, on character boundaries and on its first line.
fn clip(text: &str, span: Span) -> Span {
    let offset = floor_boundary(text, span.offset);
    let end = floor_boundary(text, span.offset.saturating_add(span.len)).max(offset);
    let stretch = &text[offset..end];
    let first_line = stretch.split(['\n', '\r']).next().unwrap_or_default();
    Span {
        offset,
        len: first_line.trim_end().len(),
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Lines longer than this are shown as a window around the offending stretch.
const LONGEST_LINE: usize = 120;

impl fmt::Display for Diagnostic {
    /// The plain rendering: message, place, the line with the stretch underlined, hints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.severity, self.message)?;
        writeln!(
            f,
            "  --> {}:{}:{}",
            self.source_name, self.line, self.column
        )?;
        let line = self
            .source_text
            .lines()
            .nth(self.line - 1)
            .unwrap_or_default();
        let width = self.source_text[self.span.offset..self.span.offset + self.span.len]
            .chars()
            .count();
        let (shown, column) = window(line, self.column - 1);
        let gutter = self.line.to_string().len();
        let shown_width = shown.chars().count();
        let underline = width.max(1).min(shown_width.saturating_sub(column).max(1));
        writeln!(f, "{:gutter$} |", "")?;
        writeln!(f, "{:gutter$} | {}", self.line, shown)?;
        write!(
            f,
            "{:gutter$} | {:column$}{}",
            "",
            "",
            "^".repeat(underline)
        )?;
        if !self.label.is_empty() {
            write!(f, " {}", self.label)?;
        }
        if !self.needs.is_empty() {
            write!(f, "\n  needs: {}", self.needs)?;
        }
        for hint in &self.hints {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// The part of a line around `column` that is worth showing, without control characters, and the
/// column inside it.
fn window(line: &str, column: usize) -> (String, usize) {
    let clean = line
        .trim_end()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c });
    let length = clean.clone().count();
    if length <= LONGEST_LINE {
        return (clean.collect(), column);
    }
    let first = column.saturating_sub(LONGEST_LINE / 2);
    let shown: String = clean.skip(first).take(LONGEST_LINE).collect();
    let more = if first + LONGEST_LINE < length {
        "..."
    } else {
        ""
    };
    if first == 0 {
        (format!("{shown}{more}"), column)
    } else {
        (format!("...{shown}{more}"), column - first + 3)
    }
}
