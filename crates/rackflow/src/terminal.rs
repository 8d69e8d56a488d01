//! What the terminal can show.

use anstream::stream::IsTerminal as _;
use clap::ColorChoice;
use rackflow_report::Style;
use std::io;

/// Widest text that is comfortable to read, and what a file or a pipe gets.
const WIDTH: usize = 92;

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
