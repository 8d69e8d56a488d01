//! Columns of text, two spaces apart, as wide as their widest cell.

/// Lays out `rows` under `head`. Columns whose head begins with `>` stand to the right.
pub fn lay_out(head: &[&str], rows: &[Vec<String>], width: usize) -> String {
    let columns = head.len();
    let titles: Vec<String> = head.iter().map(|title| title.trim_start_matches('>').to_owned()).collect();
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.chain([&titles[column]]).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(widest).collect();
    let line = |row: &Vec<String>| {
        let mut text = String::from(" ");
        for (column, width) in widths.iter().enumerate() {
            let cell = row.get(column).map_or("", String::as_str);
            let gap = " ".repeat(width - cell.chars().count());
            let right = head[column].starts_with('>');
            text.push(' ');
            text.push_str(&if right { format!("{gap}{cell}") } else { format!("{cell}{gap}") });
            text.push(' ');
        }
        shorten(text.trim_end(), width) + "\n"
    };
    let body: String = rows.iter().map(line).collect();
    if titles.iter().all(String::is_empty) { body } else { line(&titles) + &body }
}

/// The part of a line that fits, with an ellipsis where something is left out.
fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_numbers_stand_right() {
        let rows = [vec!["a100".to_owned(), "80 GB".to_owned()], vec!["b200-sxm".to_owned(), "180 GB".to_owned()]];
        let text = lay_out(&["name", ">memory"], &rows, 80);
        assert_eq!(text, "  name      memory\n  a100       80 GB\n  b200-sxm  180 GB\n");
    }

    #[test]
    fn long_lines_are_cut_and_say_so() {
        let text = lay_out(&["name"], &[vec!["x".repeat(50)]], 20);
        assert!(text.lines().all(|line| line.chars().count() <= 20), "{text}");
        assert!(text.contains('…'));
    }
}
