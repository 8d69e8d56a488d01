//! One page that shows a sweep: pictures and tables, with nothing to fetch.

use super::figures::NamedPicture;
use super::table::{Cell, ColumnKind, Table};
use crate::format::significant;

/// The page. `title` is the name of the sweep.
pub fn page(title: &str, table: &Table, figures: &[NamedPicture]) -> String {
    let style = include_str!("page.css");
    let script = include_str!("page.js");
    let (done, infeasible) = outcomes(table);
    let counted = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let mut body = format!(
        "<h1>{}</h1>\n<p>{}",
        escaped(title),
        counted(done.len(), "case")
    );
    if !infeasible.is_empty() {
        body.push_str(&format!(", and {} that cannot be run", infeasible.len()));
    }
    body.push_str(". Click on the head of a column to sort by it.</p>\n");
    body.push_str(&pictures(figures));
    body.push_str("<h2>Cases</h2>\n");
    body.push_str(&main_table(table, &done));
    if !infeasible.is_empty() {
        body.push_str("<h2>Cases that cannot be run</h2>\n");
        body.push_str(&html_table(
            table,
            "infeasible",
            &["case", "reason"],
            &infeasible,
        ));
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{}</title>\n\
         <style>\n{style}</style>\n</head>\n<body>\n{body}<script>\n{script}</script>\n</body>\n</html>\n",
        escaped(title)
    )
}

/// Rows that ran and rows that did not.
fn outcomes(table: &Table) -> (Vec<usize>, Vec<usize>) {
    (0..table.rows.len()).partition(|row| table.text(*row, "status") == "done")
}

fn pictures(figures: &[NamedPicture]) -> String {
    let mut out = String::new();
    let mut facets: Vec<&str> = Vec::new();
    for figure in figures {
        if !facets.contains(&figure.facet.as_str()) {
            facets.push(&figure.facet);
        }
    }
    if facets.len() > 1 {
        let options = facets.iter().map(|facet| {
            let facet = escaped(facet);
            format!("<option value=\"{facet}\">{facet}</option>")
        });
        out.push_str(&format!(
            "<p><label>Shown: <select id=\"facet\">{}</select></label></p>\n",
            options.collect::<String>()
        ));
    }
    let mut subject = "";
    for figure in figures {
        if figure.subject != subject {
            subject = figure.subject;
            out.push_str(&format!("<h2>{}</h2>\n", escaped(subject)));
        }
        let facet = if facets.len() > 1 {
            format!(" data-facet=\"{}\"", escaped(&figure.facet))
        } else {
            String::new()
        };
        out.push_str(&format!(
            "<figure{facet}>\n{}</figure>\n",
            figure.picture.svg()
        ));
    }
    out
}

/// Columns that a person looks at first; the others are in the files beside the page.
const SHOWN: &[&str] = &[
    "gpus",
    "racks",
    "step_time_s",
    "tokens_per_day",
    "effective_flops",
    "effective_flops_per_rack",
    "mfu_bf16_noncausal",
    "mfu_native_causal",
    "goodput",
    "kw_per_rack",
    "days_to_train",
    "mwh_to_train",
    "usd_to_train",
    "loss",
    "share_math",
    "share_exposed_ep",
    "share_exposed_dp",
    "share_bubble",
    "requests_per_s",
    "output_tokens_per_s",
    "output_tokens_per_s_per_gpu",
    "tokens_per_s_per_user",
    "ttft_mean_s",
    "tpot_mean_s",
    "slo_attainment",
    "usd_per_million_output_tokens",
    "share_idle",
    "largest_loss",
];

fn main_table(table: &Table, rows: &[usize]) -> String {
    let any = |name: &&str| {
        rows.iter()
            .any(|row| *table.cell(*row, name) != Cell::Missing)
    };
    let swept = table.columns.iter().map(|column| column.name.as_str());
    let swept = swept.filter(|name| name.starts_with("sweep.") && !name.ends_with("cluster.gpus"));
    let shown: Vec<&str> = swept.chain(SHOWN.iter().copied()).filter(any).collect();
    html_table(table, "cases", &shown, rows)
}

fn html_table(table: &Table, id: &str, names: &[&str], rows: &[usize]) -> String {
    let mut out = format!("<div class=\"scroll\"><table id=\"{id}\"><thead><tr>");
    for name in names {
        let Some(column) = table.columns.iter().find(|c| c.name == *name) else {
            continue;
        };
        let class = if column.kind == ColumnKind::Text {
            ""
        } else {
            " class=\"n\""
        };
        let unit = if column.unit.is_empty() {
            String::new()
        } else {
            format!(", {}", column.unit)
        };
        let words = name
            .trim_start_matches("sweep.")
            .rsplit('.')
            .next()
            .unwrap_or(name);
        out.push_str(&format!(
            "<th{class} title=\"{}\">{}{unit}</th>",
            escaped(column.meaning),
            escaped(&words.replace('_', " "))
        ));
    }
    out.push_str("</tr></thead><tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        for name in names {
            out.push_str(&match table.cell(*row, name) {
                Cell::Text(text) => {
                    let class = if *name == "reason" {
                        " class=\"reason\""
                    } else {
                        ""
                    };
                    format!("<td{class}>{}</td>", escaped(text))
                }
                Cell::Missing => "<td data-v=\"\"></td>".to_owned(),
                Cell::Count(value) => {
                    format!(
                        "<td class=\"n\" data-v=\"{value}\">{}</td>",
                        crate::format::number(*value as f64, 0)
                    )
                }
                Cell::Real(value) => {
                    format!(
                        "<td class=\"n\" data-v=\"{value}\">{}</td>",
                        readable(*value)
                    )
                }
            });
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

/// A measurement in few digits.
fn readable(value: f64) -> String {
    match value.abs() {
        v if v >= 1e7 => format!("{value:.3e}"),
        v if v > 0.0 && v < 0.01 => format!("{value:.2e}"),
        _ => significant(value),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_scenario_stays_text() {
        assert_eq!(
            escaped("<a href=\"x\">&"),
            "&lt;a href=&quot;x&quot;&gt;&amp;"
        );
    }
}
