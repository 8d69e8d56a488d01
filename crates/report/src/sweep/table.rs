//! A table with named, typed columns, as CSV and as Parquet.

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One value of a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    /// A count.
    Count(i64),
    /// A measurement.
    Real(f64),
    /// A word.
    Text(String),
    /// Nothing is known.
    Missing,
}

/// What the values of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// Whole numbers.
    Count,
    /// Measurements.
    Real,
    /// Words.
    Text,
}

/// One column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name, which does not change between versions.
    pub name: String,
    /// What its values are.
    pub kind: ColumnKind,
    /// Their unit; empty for words and plain numbers.
    pub unit: &'static str,
    /// What it means, in one sentence.
    pub meaning: &'static str,
}

/// Rows under named columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows, each as long as `columns`.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// The value of a row under the column of this name.
    pub fn cell(&self, row: usize, column: &str) -> &Cell {
        let index = self.columns.iter().position(|c| c.name == column);
        index
            .and_then(|index| self.rows.get(row)?.get(index))
            .unwrap_or(&Cell::Missing)
    }

    /// The number under the column of this name, where there is one.
    pub fn real(&self, row: usize, column: &str) -> Option<f64> {
        match self.cell(row, column) {
            Cell::Count(value) => Some(*value as f64),
            Cell::Real(value) => Some(*value),
            Cell::Text(_) | Cell::Missing => None,
        }
    }

    /// The text under the column of this name; empty where there is none.
    pub fn text(&self, row: usize, column: &str) -> String {
        self.cell(row, column).to_string()
    }

    /// The table as CSV (RFC 4180): a line of names, then a line for each row.
    pub fn csv(&self) -> String {
        let line = |cells: Vec<String>| cells.join(",") + "\n";
        let names = self.columns.iter().map(|column| quoted(&column.name));
        let mut out = line(names.collect());
        for row in &self.rows {
            out.push_str(&line(
                row.iter().map(|cell| quoted(&cell.to_string())).collect(),
            ));
        }
        out
    }

    /// The table as a Parquet file: one row group, every column optional.
    ///
    /// # Errors
    /// When the Parquet library refuses, which a table of equal rows gives it no reason for.
    pub fn parquet(&self) -> Result<Vec<u8>, ParquetError> {
        let fields = self.columns.iter().map(field).collect::<Result<_, _>>()?;
        let schema = Type::group_type_builder("sweep")
            .with_fields(fields)
            .build()?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(concat!("rackflow ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let mut writer =
            SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties))?;
        let mut group = writer.next_row_group()?;
        let mut index = 0;
        while let Some(mut column) = group.next_column()? {
            let cells = self.rows.iter().map(|row| &row[index]);
            let kind = self.columns[index].kind;
            let present = |cell: &Cell| match (kind, cell) {
                (_, Cell::Missing) => 0_i16,
                (ColumnKind::Count, Cell::Count(_)) => 1,
                (ColumnKind::Real, Cell::Count(_) | Cell::Real(_)) => 1,
                (ColumnKind::Text, _) => 1,
                _ => 0,
            };
            let levels: Vec<i16> = cells.clone().map(present).collect();
            let cells = cells.filter(|cell| present(cell) == 1);
            match kind {
                ColumnKind::Count => {
                    let values: Vec<i64> = cells
                        .filter_map(|cell| match cell {
                            Cell::Count(value) => Some(*value),
                            _ => None,
                        })
                        .collect();
                    column
                        .typed::<Int64Type>()
                        .write_batch(&values, Some(&levels), None)?;
                }
                ColumnKind::Real => {
                    let values: Vec<f64> = cells
                        .filter_map(|cell| match cell {
                            Cell::Count(value) => Some(*value as f64),
                            Cell::Real(value) => Some(*value),
                            _ => None,
                        })
                        .collect();
                    column
                        .typed::<DoubleType>()
                        .write_batch(&values, Some(&levels), None)?;
                }
                ColumnKind::Text => {
                    let values: Vec<ByteArray> = cells
                        .map(|cell| ByteArray::from(cell.to_string().into_bytes()))
                        .collect();
                    column
                        .typed::<ByteArrayType>()
                        .write_batch(&values, Some(&levels), None)?;
                }
            }
            column.close()?;
            index += 1;
        }
        group.close()?;
        writer.into_inner()
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Count(value) => write!(f, "{value}"),
            Self::Real(value) => write!(f, "{value}"),
            Self::Text(text) => f.write_str(text),
            Self::Missing => Ok(()),
        }
    }
}

fn field(column: &Column) -> Result<Arc<Type>, ParquetError> {
    let physical = match column.kind {
        ColumnKind::Count => Physical::INT64,
        ColumnKind::Real => Physical::DOUBLE,
        ColumnKind::Text => Physical::BYTE_ARRAY,
    };
    let logical = (column.kind == ColumnKind::Text).then_some(LogicalType::String);
    let field = Type::primitive_type_builder(&column.name, physical)
        .with_repetition(Repetition::OPTIONAL)
        .with_logical_type(logical)
        .build()?;
    Ok(Arc::new(field))
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    fn table() -> Table {
        let column = |name: &str, kind| Column {
            name: name.to_owned(),
            kind,
            unit: "",
            meaning: "",
        };
        let text = |text: &str| Cell::Text(text.to_owned());
        Table {
            columns: vec![
                column("case", ColumnKind::Text),
                column("gpus", ColumnKind::Count),
                column("step_time_s", ColumnKind::Real),
            ],
            rows: vec![
                vec![text("a,\"b\""), Cell::Count(8), Cell::Real(0.1)],
                vec![text("c"), Cell::Missing, Cell::Count(2)],
                vec![Cell::Missing, Cell::Count(-1), Cell::Missing],
            ],
        }
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        assert_eq!(
            table().csv(),
            "case,gpus,step_time_s\n\"a,\"\"b\"\"\",8,0.1\nc,,2\n,-1,\n"
        );
    }

    #[test]
    fn parquet_reads_back_with_its_types() {
        let bytes = table().parquet().expect("a file");
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).expect("a Parquet file");
        let rows: Vec<Vec<(String, Field)>> = reader
            .get_row_iter(None)
            .expect("rows")
            .map(|row| {
                let row = row.expect("a row");
                row.get_column_iter()
                    .map(|(name, field)| (name.clone(), field.clone()))
                    .collect()
            })
            .collect();
        let fields = |row: usize| -> Vec<&Field> { rows[row].iter().map(|(_, f)| f).collect() };
        assert_eq!(rows[0][0].0, "case");
        assert_eq!(
            fields(0),
            [
                &Field::Str("a,\"b\"".into()),
                &Field::Long(8),
                &Field::Double(0.1)
            ]
        );
        assert_eq!(
            fields(1),
            [&Field::Str("c".into()), &Field::Null, &Field::Double(2.0)]
        );
        assert_eq!(fields(2), [&Field::Null, &Field::Long(-1), &Field::Null]);
    }

    #[test]
    fn the_same_table_gives_the_same_bytes() {
        assert_eq!(
            table().parquet().expect("a file"),
            table().parquet().expect("a file")
        );
    }
}
