//! Writes one picture of each kind with made-up figures: `cargo run -p rackflow-report --example gallery -- DIR`.

use rackflow_report::plot::{
    Axis, Bar, Bars, Gantt, Heat, Kind, Lines, Part, Picture, Series, Span, Ticks, style,
};
use std::path::Path;

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    for (name, picture) in [
        ("lines", lines()),
        ("bars", bars()),
        ("gantt", gantt()),
        ("heat", heat()),
    ] {
        std::fs::write(
            Path::new(&folder).join(format!("{name}.svg")),
            picture.svg(),
        )?;
        std::fs::write(
            Path::new(&folder).join(format!("{name}.png")),
            picture.png(),
        )?;
    }
    Ok(())
}

fn lines() -> Picture {
    let gpus = [
        2048.0, 4096.0, 8192.0, 16_384.0, 32_768.0, 65_536.0, 131_072.0,
    ];
    let scaled = |per: f64, power: f64| -> Vec<(f64, f64)> {
        gpus.iter()
            .map(|n: &f64| (*n, per * n.powf(power)))
            .collect()
    };
    let mut measured = Series::line("GB200 NVL72", scaled(900.0, 0.96));
    measured.band = measured
        .points
        .iter()
        .map(|(_, y)| (y * 0.9, y * 1.1))
        .collect();
    Lines {
        title: "Sixty-four times the GPUs bring fifty times the tokens".to_owned(),
        subtitle: "Made-up figures: weak scaling of one model".to_owned(),
        x: Axis::log("GPUs").written(Ticks::Count),
        y: Axis::log("tokens/s").written(Ticks::Count),
        series: vec![
            measured,
            Series::line("H100", scaled(700.0, 0.93)),
            Series::line("H800", scaled(690.0, 0.93)),
            Series::line("ideal", scaled(900.0, 1.0)).drawn(Kind::Ideal),
        ],
        note: "An example of the style, no result.".to_owned(),
    }
    .picture()
}

fn bars() -> Picture {
    let stage = |name: &str, parts: [f64; 4]| Bar {
        name: name.to_owned(),
        parts: parts
            .iter()
            .enumerate()
            .map(|(i, value)| Part {
                value: *value,
                ink: style::series(i),
            })
            .collect(),
        figure: format!("{:.1} GB", parts.iter().sum::<f64>()),
    };
    Bars {
        title: "The first stage is the fullest".to_owned(),
        subtitle: "Made-up figures".to_owned(),
        axis: Axis::linear("GB on one GPU"),
        bars: vec![
            stage("stage 1", [6.5, 13.0, 5.8, 45.0]),
            stage("stage 2", [6.5, 13.0, 5.8, 38.0]),
        ],
        limit: Some((80.0, "80 GB".to_owned())),
        legend: ["weights", "gradients", "optimizer", "activations"]
            .iter()
            .enumerate()
            .map(|(i, name)| (style::series(i), (*name).to_owned()))
            .collect(),
        note: String::new(),
    }
    .picture()
}

fn gantt() -> Picture {
    let mut spans = Vec::new();
    for stage in 0..4_usize {
        for micro in 0..6_usize {
            let start = (stage + micro) as f64;
            let piece = |start: f64, ink, length| Span {
                row: stage,
                start,
                end: start + length,
                ink,
                label: format!("{micro}"),
            };
            spans.push(piece(start, style::ORDER, 1.0));
            spans.push(piece(
                12.0 + 2.0 * (3 - stage + micro) as f64,
                style::USEFUL,
                2.0,
            ));
        }
    }
    Gantt {
        title: "Stages wait at both ends".to_owned(),
        subtitle: "Made-up figures: GPipe".to_owned(),
        axis: Axis::linear("ms"),
        rows: (1..=4).map(|stage| format!("stage {stage}")).collect(),
        spans,
        legend: vec![
            (style::ORDER, "forward".to_owned()),
            (style::USEFUL, "backward".to_owned()),
        ],
    }
    .picture()
}

fn heat() -> Picture {
    Heat {
        title: "Rail 3 carries twice what the others do".to_owned(),
        subtitle: "Made-up figures".to_owned(),
        rows: (0..4).map(|node| format!("node {node}")).collect(),
        columns: (0..8).map(|rail| format!("rail {rail}")).collect(),
        values: (0..4)
            .map(|node| {
                (0..8)
                    .map(|rail| {
                        Some(if rail == 3 {
                            0.9
                        } else {
                            0.1 * f64::from(node)
                        })
                    })
                    .collect()
            })
            .collect(),
        ends: ("idle".to_owned(), "full".to_owned()),
        note: String::new(),
    }
    .picture()
}
