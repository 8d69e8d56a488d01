//! One row for each answered request, as CSV or as Parquet, written while the run goes on.

use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use rackflow_simulator::serving::{Phase, RequestRecord, RequestSink};
use std::io::{self, Write};
use std::sync::Arc;

/// Rows that are kept before they are written as one row group.
const ROWS: usize = 65_536;

const INTEGERS: [&str; 9] = [
    "request",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "loaded_tokens",
    "priority",
    "prefill_replica",
    "decode_replica",
    "preemptions",
];
const TIMES: [&str; 4] = ["arrival_s", "ttft_s", "tpot_s", "e2e_s"];

/// Integer columns, then times, then time by phase, then whether it was measured.
fn row(request: &RequestRecord) -> ([i64; 9], [f64; 4 + Phase::COUNT]) {
    let integers = [
        request.number as i64,
        request.input_tokens.into(),
        request.output_tokens.into(),
        request.cached_tokens.into(),
        request.loaded_tokens.into(),
        request.priority.into(),
        request.prefill_replica.into(),
        request.decode_replica.into(),
        request.preemptions.into(),
    ];
    let mut times = [0.0; 4 + Phase::COUNT];
    times[0] = request.arrival.as_secs_f64();
    times[1] = request.ttft.as_secs_f64();
    times[2] = request.tpot().as_secs_f64();
    times[3] = request.e2e.as_secs_f64();
    for (time, spent) in times[4..].iter_mut().zip(request.phases) {
        *time = spent.as_secs_f64();
    }
    (integers, times)
}

fn time_names() -> impl Iterator<Item = String> {
    TIMES
        .iter()
        .map(|name| (*name).to_owned())
        .chain(Phase::ALL.iter().map(|phase| format!("{}_s", phase.key())))
}

/// Writes rows of comma-separated values under a header.
pub struct RequestsCsv<W> {
    out: W,
    failed: Option<io::Error>,
}

impl<W: Write> RequestsCsv<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// When `out` does.
    pub fn new(mut out: W) -> io::Result<Self> {
        let names: Vec<String> = INTEGERS
            .iter()
            .map(|name| (*name).to_owned())
            .chain(time_names())
            .collect();
        writeln!(out, "{},measured", names.join(","))?;
        Ok(Self { out, failed: None })
    }

    /// Everything is written.
    ///
    /// # Errors
    /// The first that occurred.
    pub fn finish(mut self) -> io::Result<W> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => {
                self.out.flush()?;
                Ok(self.out)
            }
        }
    }
}

impl<W: Write> RequestSink for RequestsCsv<W> {
    fn answered(&mut self, request: &RequestRecord) {
        if self.failed.is_some() {
            return;
        }
        let (integers, times) = row(request);
        let mut line = String::with_capacity(256);
        for value in integers {
            line.push_str(&value.to_string());
            line.push(',');
        }
        for value in times {
            line.push_str(&value.to_string());
            line.push(',');
        }
        line.push_str(if request.measured {
            "true\n"
        } else {
            "false\n"
        });
        self.failed = self.out.write_all(line.as_bytes()).err();
    }
}

/// Writes row groups of Parquet.
pub struct RequestsParquet<W: Write + Send> {
    writer: SerializedFileWriter<W>,
    integers: [Vec<i64>; 9],
    times: [Vec<f64>; 4 + Phase::COUNT],
    measured: Vec<bool>,
    failed: Option<ParquetError>,
}

impl<W: Write + Send> RequestsParquet<W> {
    /// A file with this schema and no row.
    ///
    /// # Errors
    /// When `out` does.
    pub fn new(out: W) -> Result<Self, ParquetError> {
        let mut schema = String::from("message requests {\n");
        for name in INTEGERS {
            schema.push_str(&format!("required int64 {name};\n"));
        }
        for name in time_names() {
            schema.push_str(&format!("required double {name};\n"));
        }
        schema.push_str("required boolean measured;\n}");
        let schema = Arc::new(parse_message_type(&schema)?);
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by("rackflow".to_owned())
            .build();
        Ok(Self {
            writer: SerializedFileWriter::new(out, schema, Arc::new(properties))?,
            integers: Default::default(),
            times: Default::default(),
            measured: Vec::new(),
            failed: None,
        })
    }

    fn write_group(&mut self) -> Result<(), ParquetError> {
        if self.measured.is_empty() {
            return Ok(());
        }
        let mut group = self.writer.next_row_group()?;
        let mut index = 0;
        while let Some(mut column) = group.next_column()? {
            match column.untyped() {
                ColumnWriter::Int64ColumnWriter(writer) => {
                    writer.write_batch(&self.integers[index], None, None)?;
                }
                ColumnWriter::DoubleColumnWriter(writer) => {
                    writer.write_batch(&self.times[index - INTEGERS.len()], None, None)?;
                }
                ColumnWriter::BoolColumnWriter(writer) => {
                    writer.write_batch(&self.measured, None, None)?;
                }
                _ => {}
            }
            column.close()?;
            index += 1;
        }
        group.close()?;
        self.integers.iter_mut().for_each(Vec::clear);
        self.times.iter_mut().for_each(Vec::clear);
        self.measured.clear();
        Ok(())
    }

    /// Everything is written.
    ///
    /// # Errors
    /// The first that occurred.
    pub fn finish(mut self) -> Result<W, ParquetError> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => {
                self.write_group()?;
                self.writer.into_inner()
            }
        }
    }
}

impl<W: Write + Send> RequestSink for RequestsParquet<W> {
    fn answered(&mut self, request: &RequestRecord) {
        if self.failed.is_some() {
            return;
        }
        let (integers, times) = row(request);
        for (column, value) in self.integers.iter_mut().zip(integers) {
            column.push(value);
        }
        for (column, value) in self.times.iter_mut().zip(times) {
            column.push(value);
        }
        self.measured.push(request.measured);
        if self.measured.len() >= ROWS {
            self.failed = self.write_group().err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use rackflow_units::{SimDuration, SimTime};

    fn request(number: u64) -> RequestRecord {
        RequestRecord {
            number,
            arrival: SimTime::from_picos(number * 1_000_000_000_000),
            ttft: SimDuration::from_micros(250_000),
            e2e: SimDuration::from_micros(1_250_000),
            first_tokens: 1,
            input_tokens: 100,
            output_tokens: 11,
            cached_tokens: 16,
            loaded_tokens: 0,
            priority: 0,
            prefill_replica: 1,
            decode_replica: 2,
            preemptions: 0,
            phases: [SimDuration::ZERO; Phase::COUNT],
            measured: number > 0,
        }
    }

    #[test]
    fn csv_has_one_line_a_request() {
        let mut csv = RequestsCsv::new(Vec::new()).unwrap();
        csv.answered(&request(3));
        let text = String::from_utf8(csv.finish().unwrap()).unwrap();
        let mut lines = text.lines();
        let head: Vec<&str> = lines.next().unwrap().split(',').collect();
        let values: Vec<&str> = lines.next().unwrap().split(',').collect();
        assert_eq!(head.len(), values.len());
        let value = |name: &str| values[head.iter().position(|head| *head == name).unwrap()];
        assert_eq!(value("arrival_s"), "3");
        let tpot: f64 = value("tpot_s").parse().unwrap();
        assert!((tpot - 0.1).abs() < 1e-12, "{tpot}");
        assert_eq!(value("measured"), "true");
    }

    #[test]
    fn parquet_is_read_back() {
        let mut file = RequestsParquet::new(Vec::new()).unwrap();
        for number in 0..70_000 {
            file.answered(&request(number));
        }
        let bytes = file.finish().unwrap();
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
        assert_eq!(reader.metadata().num_row_groups(), 2);
        assert_eq!(reader.metadata().file_metadata().num_rows(), 70_000);
        let last = reader.get_row_iter(None).unwrap().last().unwrap().unwrap();
        assert!(last.to_string().contains("request: 69999"), "{last}");
    }
}
