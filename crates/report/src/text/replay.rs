//! The report of a replayed trace, for people.

use super::{Ink, Page, SMALLEST_ROW, Style, racks, waterfall};
use crate::format::{percent, seconds};
use crate::replay::ReplayReport;
use rackflow_topology::Level;
use rackflow_units::counted;

/// The report as text for a terminal.
pub(crate) fn replay(report: &ReplayReport, style: &Style) -> String {
    let mut page = Page {
        style,
        width: style.width.clamp(80, 100),
        out: String::new(),
    };
    let name = page.ink(Ink::Strong, &report.scenario);
    page.line(&name);
    for (name, text) in report.header() {
        page.entry(name, &text);
    }
    page.title("Results", "");
    page.figures(&report.results(), "     ");
    racks(&mut page, &report.racks);
    waterfall(&mut page, &report.replayed(), &report.waterfall);
    exposed(&mut page, report);
    let engine = &report.engine;
    let text = format!(
        "{} in {} · {} simulated",
        counted(engine.events, "event"),
        seconds(engine.wall_s),
        counted(report.replay.ranks, "rank")
    );
    let text = page.ink(Ink::Faint, &text);
    page.line("");
    page.line(&text);
    page.out
}

fn exposed(page: &mut Page<'_>, report: &ReplayReport) {
    let shown = |share: &f64| *share >= SMALLEST_ROW;
    let rows = report.exposed.iter();
    let rows: Vec<_> = rows.filter(|row| row.by_level.iter().any(shown)).collect();
    if rows.is_empty() {
        return;
    }
    page.title(
        "Waiting for communication",
        "% of GPU time, by slowest link",
    );
    let levels = [Level::NvLink, Level::Leaf, Level::Spine, Level::Core];
    let head: String = levels
        .iter()
        .map(|level| format!("{:>9}", level.to_string()))
        .collect();
    let line = format!("  {:<42}{}", "", page.ink(Ink::Faint, &head));
    page.line(&line);
    for row in rows {
        let cells: String = row
            .by_level
            .iter()
            .map(|share| match share {
                none if !shown(none) => format!("{:>9}", "·"),
                some => format!("{:>9}", percent(*some)),
            })
            .collect();
        page.line(&format!("  {:<42}{cells}", row.kind));
    }
}
