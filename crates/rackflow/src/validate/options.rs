//! What every `validate` command is asked, reads and writes in the same way.

use super::ValidateError;
use crate::columns::sentences_wrapped;
use crate::terminal;
use clap::{Args, ValueEnum};
use rackflow_scenario::published::ReadError;
use serde_json::Value;
use std::path::PathBuf;

/// Most characters of a line of sentences.
const WIDTH: usize = 100;

/// Sentences for a page of so many characters.
pub fn prose(text: &str, page: usize) -> String {
    sentences_wrapped(text, page.min(WIDTH))
}

/// How a validation is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Columns for a terminal.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// The generated part of the documentation.
    Markdown,
}

/// Options of every `validate` command.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// What was published, as JSON Lines [default: the rows that ship with Rackflow]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub data: Option<PathBuf>,
    /// How the result is written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Only rows with this text in their name or source, or in what they were measured on
    #[arg(long, value_name = "SUBSTRING")]
    pub filter: Option<String>,
}

impl Options {
    /// The rows of the file that was asked for, or of `shipped`.
    ///
    /// # Errors
    /// When the file cannot be read, or when a line of it is not a row.
    pub fn published<R>(
        &self,
        shipped: &str,
        read: impl FnOnce(&str) -> Result<R, ReadError>,
    ) -> Result<R, ValidateError> {
        let Some(path) = &self.data else {
            let shown = PathBuf::from("shipped rows");
            return read(shipped).map_err(|error| ValidateError::Line(shown, error));
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| ValidateError::File(path.clone(), error))?;
        read(&text).map_err(|error| ValidateError::Line(path.clone(), error))
    }

    /// The rows that are asked for: all, or those of whose `fields` one contains the filter,
    /// whatever its case.
    ///
    /// # Errors
    /// When none remains.
    pub fn keep<R>(
        &self,
        rows: Vec<R>,
        fields: impl for<'a> Fn(&'a R) -> Vec<&'a str>,
    ) -> Result<Vec<R>, ValidateError> {
        let Some(filter) = &self.filter else {
            return if rows.is_empty() {
                Err(ValidateError::NoRows("the file has no rows".to_owned()))
            } else {
                Ok(rows)
            };
        };
        let text = filter.to_ascii_lowercase();
        let contains = |row: &R| {
            let mut fields = fields(row).into_iter();
            fields.any(|field| field.to_ascii_lowercase().contains(&text))
        };
        let kept: Vec<R> = rows.into_iter().filter(contains).collect();
        if kept.is_empty() {
            return Err(ValidateError::NoRows(format!(
                "no row contains \"{filter}\""
            )));
        }
        Ok(kept)
    }

    /// The text to print.
    pub fn write(&self, validation: &impl Validation) -> String {
        match self.format {
            Format::Json => format!("{:#}\n", validation.to_json()),
            Format::Markdown => validation.to_markdown(),
            Format::Table => validation.to_table(terminal::page()),
        }
    }
}

/// How many rows are simulated at once.
#[derive(Debug, Clone, Default, Args)]
pub struct Jobs {
    /// Rows simulated at the same time [default: one per core]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
}

impl Jobs {
    /// Does `work` on so many threads.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, ValidateError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.jobs.unwrap_or(0))
            .build()
            .map_err(|error| ValidateError::Threads(error.to_string()))?;
        Ok(pool.install(work))
    }
}

/// Published rows beside simulated ones, in the three ways they are written.
pub trait Validation {
    /// One document with a `summary`, the rows, and the rows left out.
    fn to_json(&self) -> Value;
    /// For a terminal of so many columns.
    fn to_table(&self, page: usize) -> String;
    /// The generated part of a page of `docs/`.
    fn to_markdown(&self) -> String;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(filter: Option<&str>) -> Options {
        Options {
            filter: filter.map(str::to_owned),
            ..Options::default()
        }
    }

    #[test]
    fn a_filter_looks_into_every_field_whatever_its_case() {
        let rows = vec![("a", "H100"), ("b", "A100"), ("h100-too", "TPU")];
        fn fields<'a>(row: &'a (&'static str, &'static str)) -> Vec<&'a str> {
            vec![row.0, row.1]
        }
        let kept = filtered(Some("h100")).keep(rows.clone(), fields).unwrap();
        assert_eq!(kept, [("a", "H100"), ("h100-too", "TPU")]);
        assert_eq!(filtered(None).keep(rows.clone(), fields).unwrap(), rows);
        let refused = filtered(Some("B300")).keep(rows, fields).unwrap_err();
        assert!(refused.to_string().contains("no row contains \"B300\""));
        let empty: Vec<(&str, &str)> = Vec::new();
        assert!(filtered(None).keep(empty, fields).is_err());
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let options = Options {
            data: Some(PathBuf::from("no-such-file.jsonl")),
            ..Options::default()
        };
        let refused = options.published("", |_| Ok(())).unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("cannot read no-such-file.jsonl")
        );
    }
}
