//! Columns of text, two spaces apart, as wide as their widest cell.

/// Lays out `rows` under `head`. Columns whose head begins with `>` stand to the right; a last column
/// that does not takes as many lines as it needs.
pub fn lay_out(head: &[&str], rows: &[Vec<String>], width_of_page: usize) -> String {
    let columns = head.len();
    let titles: Vec<String> = head
        .iter()
        .map(|title| title.trim_start_matches('>').to_owned())
        .collect();
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .chain([&titles[column]])
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(widest).collect();
    let indent = 2 + widths
        .iter()
        .rev()
        .skip(1)
        .map(|width| width + 2)
        .sum::<usize>();
    let line = |row: &Vec<String>| {
        let mut text = String::new();
        for (column, width) in widths.iter().enumerate() {
            let cell = row.get(column).map_or("", String::as_str);
            let gap = " ".repeat(width - cell.chars().count());
            let right = head[column].starts_with('>');
            text.push_str("  ");
            if column + 1 == columns && !right {
                text.push_str(&wrapped(cell, width_left(width_of_page, indent), indent));
            } else {
                text.push_str(&if right {
                    format!("{gap}{cell}")
                } else {
                    format!("{cell}{gap}")
                });
            }
        }
        text.trim_end().to_owned() + "\n"
    };
    let body: String = rows.iter().map(line).collect();
    if titles.iter().all(String::is_empty) {
        body
    } else {
        line(&titles) + &body
    }
}

/// Columns left for the last cell; a few even where the page is too narrow for the others.
fn width_left(page: usize, indent: usize) -> usize {
    page.saturating_sub(indent).max(24)
}

/// `text` over as many lines as it needs, the later ones indented.
fn wrapped(text: &str, width: usize, indent: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            used = 0;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += length;
    }
    out
}

/// `text` with its sentences wrapped; lines of columns, whose cells stand two spaces apart, stay as they are.
pub fn sentences_wrapped(text: &str, width: usize) -> String {
    let of_line = |line: &str| match line.trim_start().contains("  ") {
        true => line.to_owned(),
        false => {
            let indent = line.len() - line.trim_start().len();
            let words = wrapped(line, width.saturating_sub(indent), indent);
            format!("{}{words}", " ".repeat(indent))
        }
    };
    text.lines().map(|line| of_line(line) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_numbers_stand_right() {
        let rows = [
            vec!["a100".to_owned(), "80 GB".to_owned()],
            vec!["b200-sxm".to_owned(), "180 GB".to_owned()],
        ];
        let text = lay_out(&["name", ">memory"], &rows, 80);
        assert_eq!(
            text,
            "  name      memory\n  a100       80 GB\n  b200-sxm  180 GB\n"
        );
    }

    #[test]
    fn sentences_are_wrapped_and_columns_are_not() {
        let text = "one row    of columns that is long\n\none sentence that is long\n  and one that is set in\n";
        assert_eq!(
            sentences_wrapped(text, 16),
            "one row    of columns that is long\n\none sentence\nthat is long\n  and one that\n  is set in\n"
        );
    }

    #[test]
    fn a_long_last_cell_goes_on_under_itself() {
        let rows = [vec![
            "a".to_owned(),
            "one two three four five six seven".to_owned(),
        ]];
        let text = lay_out(&["", ""], &rows, 30);
        assert_eq!(text, "  a  one two three four five\n     six seven\n");
    }
}
