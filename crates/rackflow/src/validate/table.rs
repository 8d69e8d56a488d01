//! Tables of published rows beside simulated ones, for a page of any width.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Spaces between columns.
const GAP: usize = 2;
/// A column of text is not made narrower than so many characters for lack of room.
const NARROWEST: usize = 9;

/// Columns as wide as their widest cell, or as the page allows.
pub struct Columns {
    rows: Vec<Vec<String>>,
    /// Heads of columns that a narrow page goes without, the first to go first.
    spared: Vec<&'static str>,
}

impl Columns {
    /// Columns with these heads.
    pub fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()],
            spared: Vec::new(),
        }
    }

    /// Goes without these columns where the page is too narrow for all, the first first. Documents for
    /// programs have them.
    #[must_use]
    pub fn sparing(mut self, heads: &[&'static str]) -> Self {
        self.spared = heads.to_vec();
        self
    }

    /// One more row, of as many cells as there are heads.
    pub fn push(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// For a page of so many characters: the first `left` columns are text, the others end on the right.
    /// What is too wide goes on under itself; columns that are left out are named at the end.
    pub fn aligned(&self, left: usize, page: usize) -> String {
        let mut shown: Vec<usize> = (0..self.rows[0].len()).collect();
        let mut gone = Vec::new();
        for head in &self.spared {
            if self.narrowest(&shown, left, true) <= page {
                break;
            }
            shown.retain(|column| self.rows[0][*column] != *head);
            gone.push(*head);
        }
        let widths = self.widths(&shown, left, page);
        let mut out = String::new();
        for row in &self.rows {
            let cells = shown.iter().zip(&widths);
            let cells: Vec<Vec<&str>> = cells
                .map(|(column, width)| pieces(&row[*column], *width))
                .collect();
            let lines = cells.iter().map(Vec::len).max().unwrap_or(0);
            for at in 0..lines {
                let mut line = String::new();
                for ((column, width), cell) in shown.iter().zip(&widths).zip(&cells) {
                    let piece = cell.get(at).copied().unwrap_or_default();
                    let _ = match *column < left {
                        true => write!(line, "{piece:<width$}  "),
                        false => write!(line, "{piece:>width$}  "),
                    };
                }
                out.push_str(line.trim_end());
                out.push('\n');
            }
        }
        if !gone.is_empty() {
            let gone = gone.join(", ");
            let _ = writeln!(out, "No room for: {gone}. `--format json` has all.");
        }
        out
    }

    /// The same as a table of Markdown.
    pub fn markdown(&self, left: usize) -> String {
        let mut out = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            let _ = writeln!(out, "| {} |", cells.join(" | "));
            if index == 0 {
                let rule = (0..row.len()).map(|column| if column < left { "---" } else { "---:" });
                let _ = writeln!(out, "| {} |", rule.collect::<Vec<_>>().join(" | "));
            }
        }
        out
    }

    /// Characters of the widest cell of a column, with its head or without.
    fn widest(&self, column: usize, with_head: bool) -> usize {
        let rows = self.rows.iter().skip(usize::from(!with_head));
        let lengths = rows.map(|row| row[column].chars().count());
        lengths.max().unwrap_or(0)
    }

    /// The least width of a column: that of its figures, and of the longest word of its head and its text. Where
    /// words may be broken, of as much text as is readable.
    fn least(&self, column: usize, left: usize, whole_words: bool) -> usize {
        let head = longest_word(&self.rows[0][column]);
        if column >= left {
            return head.max(self.widest(column, false));
        }
        let rows = self.rows.iter().skip(1);
        let word = rows.map(|row| longest_word(&row[column])).max();
        let word = word.unwrap_or(0);
        head.max(if whole_words {
            word
        } else {
            word.min(NARROWEST)
        })
    }

    fn narrowest(&self, shown: &[usize], left: usize, whole_words: bool) -> usize {
        let widths = shown.iter().map(|at| self.least(*at, left, whole_words));
        with_gaps(widths)
    }

    /// As wide as the widest cells where the page has room for them. Else columns take what they need at least,
    /// and share the rest so that the fewest lines are added.
    fn widths(&self, shown: &[usize], left: usize, page: usize) -> Vec<usize> {
        let natural: Vec<usize> = shown.iter().map(|at| self.widest(*at, true)).collect();
        if with_gaps(natural.iter().copied()) <= page {
            return natural;
        }
        let whole_words = self.narrowest(shown, left, true) <= page;
        let least = |at: &usize| self.least(*at, left, whole_words);
        let mut widths: Vec<usize> = shown.iter().map(least).collect();
        let room = page.saturating_sub(with_gaps(widths.iter().copied()));
        // The fewest lines that the columns so far can add with so much of the room, and what each then takes.
        let mut best: Vec<(u64, Vec<usize>)> = vec![(0, Vec::new()); room + 1];
        for (place, column) in shown.iter().enumerate() {
            let most = natural[place].saturating_sub(widths[place]).min(room);
            let lines: Vec<u64> = (0..=most)
                .map(|more| self.lines_added(*column, widths[place] + more))
                .collect();
            best = (0..=room)
                .map(|room| {
                    let ways = (0..=most.min(room)).map(|more| {
                        let (before, taken) = &best[room - more];
                        (before + lines[more], more, taken)
                    });
                    // Of ways that add as many lines the narrowest, which leaves room to others.
                    let way = ways.min_by_key(|(lines, more, _)| (*lines, *more));
                    let (lines, more, taken) = way.expect("nothing more is a way");
                    (lines, taken.iter().copied().chain([more]).collect())
                })
                .collect();
        }
        for (width, more) in widths.iter_mut().zip(&best[room].1) {
            *width += more;
        }
        widths
    }

    /// Lines that the cells of a column take beyond one each at this width.
    fn lines_added(&self, column: usize, width: usize) -> u64 {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for row in &self.rows {
            *counts.entry(&row[column]).or_default() += 1;
        }
        let added = |(cell, count): (&str, u64)| count * (pieces(cell, width).len() as u64 - 1);
        counts.into_iter().map(added).sum()
    }
}

fn with_gaps(widths: impl Iterator<Item = usize>) -> usize {
    widths
        .map(|width| width + GAP)
        .sum::<usize>()
        .saturating_sub(GAP)
}

/// Whether a cell may be broken behind it.
fn breaks(letter: char) -> bool {
    letter.is_whitespace() || "-_/,+".contains(letter)
}

/// Characters of the longest piece of a cell that is not to be broken.
fn longest_word(cell: &str) -> usize {
    let words = cell.split_inclusive(breaks);
    let lengths = words.map(|word| word.trim_end().chars().count());
    lengths.max().unwrap_or(0)
}

/// A cell in pieces of at most so many characters, broken behind spaces and hyphens where it can be; at least
/// one, which may be empty.
fn pieces(cell: &str, width: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = cell;
    while rest.chars().count() > width {
        let mut ends = rest
            .char_indices()
            .map(|(at, letter)| at + letter.len_utf8());
        let end = ends.nth(width.max(1) - 1).unwrap_or(rest.len());
        // A space behind a full line is as good.
        let is_space = rest[end..].starts_with(char::is_whitespace);
        let behind = rest[..end].rfind(breaks).map(|at| at + 1);
        let end = if is_space { end } else { behind.unwrap_or(end) };
        pieces.push(rest[..end].trim_end());
        rest = rest[end..].trim_start();
    }
    if !rest.is_empty() || pieces.is_empty() {
        pieces.push(rest);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let mut table = Columns::new(&["a", "b"]);
        table.push(vec!["long".to_owned(), "1".to_owned()]);
        assert_eq!(table.aligned(1, 120), "a     b\nlong  1\n");
        assert_eq!(
            table.markdown(1),
            "| a | b |\n| --- | ---: |\n| long | 1 |\n"
        );
    }

    fn of(rows: &[[&str; 4]]) -> Columns {
        let mut table = Columns::new(&["row", "what", "source", "error"]);
        for row in rows {
            table.push(row.map(str::to_owned).to_vec());
        }
        table.sparing(&["source", "row"])
    }

    const ROWS: [[&str; 4]; 2] = [
        [
            "mb-26.08-pretrain-8",
            "one two three four",
            "somebody",
            "-1.0 %",
        ],
        ["mb-26.08-pretrain-9", "five", "somebody else", "+12.0 %"],
    ];

    #[test]
    fn what_is_too_wide_goes_on_under_itself() {
        assert_eq!(
            of(&ROWS).aligned(3, 50),
            "row                  what        source      error\n\
             mb-26.08-pretrain-8  one two     somebody   -1.0 %\n                     three four\n\
             mb-26.08-pretrain-9  five        somebody  +12.0 %\n                                 else\n"
        );
    }

    #[test]
    fn a_narrow_page_goes_without_what_it_can_spare() {
        let text = of(&ROWS).aligned(3, 30);
        assert!(
            text.ends_with("No room for: source. `--format json` has all.\n"),
            "{text}"
        );
    }

    /// No line is wider than the page where that has room for the narrowest columns, and no letter is lost.
    #[test]
    fn a_table_fits_its_page() {
        let mut table = Columns::new(&["first", "second", "third", "figure or two"]);
        for row in 0..40_usize {
            let word = |column: usize| {
                let breaks = ["-", "_", " ", "/", ""];
                let lengths =
                    (0..(row + column) % 5).map(|part| (row * 7 + column * 5 + part * 3) % 13);
                let words = lengths.map(|length| "é".repeat(length) + "x");
                words.collect::<Vec<_>>().join(breaks[(row + column) % 5])
            };
            table.push(vec![word(0), word(1), word(2), format!("{row} %")]);
        }
        let letters = |text: &str| {
            let mut letters: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
            letters.sort_unstable();
            letters
        };
        for page in 40..200 {
            let text = table.aligned(3, page);
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(page), "{widest:?} of {page}\n{text}");
            assert_eq!(letters(&text), letters(&table.rows.concat().concat()));
        }
    }
}
