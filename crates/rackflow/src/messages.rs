//! Messages on standard error, in colour where there is a terminal.

/// Draws messages as [`rackflow_scenario::Diagnostic`] writes them: a heading, a place, the line
/// with the faulty stretch underlined, hints. The words are not changed.
pub fn draw(text: &str, colored: bool) -> String {
    if !colored {
        return text.to_owned();
    }
    text.lines().map(|line| paint(line) + "\n").collect()
}

const RED: &str = "1;31";
const YELLOW: &str = "1;33";
const BLUE: &str = "34";
const GREEN: &str = "32";

fn paint(line: &str) -> String {
    let ink = |code: &str, text: &str| format!("\u{1b}[{code}m{text}\u{1b}[0m");
    for (word, code) in [("error:", RED), ("warning:", YELLOW)] {
        if let Some(rest) = line.strip_prefix(word) {
            return ink(code, word) + &ink("1", rest);
        }
    }
    if let Some(rest) = line.strip_prefix("  --> ") {
        return format!("  {} {rest}", ink(BLUE, "-->"));
    }
    for (word, code) in [("hint:", GREEN), ("needs:", BLUE)] {
        if let Some(rest) = line
            .strip_prefix("  ")
            .and_then(|line| line.strip_prefix(word))
        {
            return format!("  {}{rest}", ink(code, word));
        }
    }
    // The gutter of a quoted line, and whether it is the one that underlines.
    match line.split_once(" |") {
        Some((number, rest)) if number.chars().all(|c| c == ' ' || c.is_ascii_digit()) => {
            let underline = number.trim().is_empty() && rest.trim_start().starts_with('^');
            let rest = if underline {
                ink(RED, rest)
            } else {
                rest.to_owned()
            };
            ink(BLUE, &format!("{number} |")) + &rest
        }
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = "\
error: unknown key \"gpu\"
  --> a.yaml:3:5
  |
3 |   gpu: 8
  |   ^^^ not a field of cluster
  hint: did you mean \"gpus\"?";

    #[test]
    fn colour_leaves_the_words_alone() {
        let colored = draw(MESSAGE, true);
        let plain: String = colored
            .split('\u{1b}')
            .enumerate()
            .map(|(i, part)| {
                if i == 0 {
                    part
                } else {
                    part.split_once('m').expect("a colour ends").1
                }
            })
            .collect();
        assert_eq!(plain.trim_end(), MESSAGE);
        assert!(colored.contains("\u{1b}[1;31m   ^^^ not a field of cluster"));
    }

    #[test]
    fn without_colour_nothing_changes() {
        assert_eq!(draw(MESSAGE, false), MESSAGE);
    }
}
