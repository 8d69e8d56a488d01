//! What the terminal can show.

use anstream::stream::IsTerminal as _;
use clap::ColorChoice;
use rackflow_report::Style;
use std::io;

/// Widest text that is comfortable to read, and what a file or a pipe gets.
const WIDTH: usize = 92;

/// Width of wide tables in a file or a pipe.
const PAGE: usize = 120;

/// Columns of the terminal that standard output is, for tables that may be as wide.
pub fn page() -> usize {
    let is_terminal = io::stdout().is_terminal();
    let size = is_terminal.then(terminal_size::terminal_size).flatten();
    size.map_or(PAGE, |(width, _)| usize::from(width.0))
}

/// How results are drawn on standard output.
pub fn style(color: ColorChoice) -> Style {
    let width = if io::stdout().is_terminal() {
        terminal_size::terminal_size().map_or(WIDTH, |(width, _)| usize::from(width.0))
    } else {
        WIDTH
    };
    Style {
        color: colored(color, &io::stdout()),
        width: width.min(100),
    }
}

/// Whether messages on standard error have colours.
pub fn colored_messages(color: ColorChoice) -> bool {
    colored(color, &io::stderr())
}

/// `auto` follows the terminal, NO_COLOR, CLICOLOR_FORCE and TERM.
fn colored(color: ColorChoice, stream: &impl anstream::stream::RawStream) -> bool {
    match color {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => anstream::AutoStream::choice(stream) != anstream::ColorChoice::Never,
    }
}
