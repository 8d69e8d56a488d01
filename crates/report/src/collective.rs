//! Collectives as nccl-tests users know them: size, time, algorithm and bus bandwidth.

use crate::format::significant;
use crate::plot::{Axis, Kind, Lines, Picture, Series, Ticks};
use rackflow_simulator::collective::Measurement;
use rackflow_units::counted;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// One operation over several sizes, on one or more clusters.
#[derive(Debug, Clone, PartialEq)]
pub struct CollectiveReport {
    /// Name of the operation, such as `all-reduce`.
    pub operation: String,
    /// One table per cluster.
    pub tables: Vec<CollectiveTable>,
}

/// The sizes on one cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct CollectiveTable {
    /// What the user called the cluster.
    pub cluster: String,
    /// Ranks that took part.
    pub gpus: u32,
    /// One row per size, in the order asked for.
    pub rows: Vec<Measurement>,
}

const GB: f64 = 1e9;
const US: f64 = 1e6;

fn us(duration: rackflow_units::SimDuration) -> f64 {
    duration.as_secs_f64() * US
}

impl CollectiveReport {
    /// For a terminal: the columns of nccl-tests, the bound beside them.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for table in &self.tables {
            if !out.is_empty() {
                out.push('\n');
            }
            let _ = writeln!(
                out,
                "# {}, {} of {}",
                self.operation,
                counted(table.gpus, "GPU"),
                table.cluster
            );
            out.push_str(
                "#        size          time     algbw     busbw  algorithm       proto         bound   of it\n\
                 #         (B)          (us)    (GB/s)    (GB/s)                                (us)     (%)\n",
            );
            for row in &table.rows {
                let share = if us(row.time) > 0.0 {
                    100.0 * us(row.bound) / us(row.time)
                } else {
                    0.0
                };
                let _ = writeln!(
                    out,
                    "{:>14}  {:>12.2}  {:>8.2}  {:>8.2}  {:<14}  {:<6}  {:>12.2}  {:>6.1}",
                    row.bytes.get(),
                    us(row.time),
                    row.algorithm_bandwidth / GB,
                    row.bus_bandwidth / GB,
                    row.algorithm,
                    row.protocol,
                    us(row.bound),
                    share,
                );
            }
        }
        out.push_str(
            "# bound: what the busiest link carried, at its line rate; nothing is ever faster.\n",
        );
        out
    }

    /// One document: `rows[]{cluster, gpus, bytes, time_us, algbw_gb_per_s, busbw_gb_per_s,
    /// algorithm, protocol, bound_us}`.
    pub fn to_json(&self) -> String {
        let rows: Vec<Value> = self
            .tables
            .iter()
            .flat_map(|table| {
                table.rows.iter().map(|row| {
                    json!({
                        "cluster": table.cluster,
                        "gpus": table.gpus,
                        "bytes": row.bytes.get(),
                        "time_us": us(row.time),
                        "algbw_gb_per_s": row.algorithm_bandwidth / GB,
                        "busbw_gb_per_s": row.bus_bandwidth / GB,
                        "algorithm": row.algorithm.to_string(),
                        "protocol": row.protocol.to_string(),
                        "bound_us": us(row.bound),
                    })
                })
            })
            .collect();
        let document = json!({
            "schema_version": 1,
            "command": "collective",
            "operation": self.operation,
            "rows": rows,
        });
        format!("{document:#}\n")
    }

    /// Bus bandwidth over size, one curve per cluster.
    pub fn picture(&self) -> Picture {
        let curve = |table: &CollectiveTable| {
            let points = table
                .rows
                .iter()
                .filter(|row| row.bytes.get() > 0)
                .map(|row| (row.bytes.as_f64(), row.bus_bandwidth / GB))
                .collect();
            let name = format!("{} x {}", table.gpus, table.cluster);
            Series::line(&name, points).drawn(Kind::Line)
        };
        let best = self
            .tables
            .iter()
            .flat_map(|table| table.rows.iter().map(move |row| (table, row)))
            .max_by(|a, b| a.1.bus_bandwidth.total_cmp(&b.1.bus_bandwidth));
        let title = best.map_or_else(
            || self.operation.clone(),
            |(table, row)| {
                format!(
                    "{}: up to {} GB/s of bus bandwidth, on {}",
                    capitalized(&self.operation),
                    significant(row.bus_bandwidth / GB),
                    table.cluster
                )
            },
        );
        Lines {
            title,
            subtitle: "Bus bandwidth as nccl-tests defines it, one operation on an idle cluster"
                .into(),
            x: Axis::log("size of the buffer").written(Ticks::Bytes),
            y: Axis::linear("bus bandwidth, GB/s"),
            series: self.tables.iter().map(curve).collect(),
            note: String::new(),
        }
        .picture()
    }
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}
