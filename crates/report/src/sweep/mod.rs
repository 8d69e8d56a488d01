//! Many cases side by side: a table with one row per case, and a page that shows it.

mod columns;
mod figures;
mod html;
mod table;

pub use columns::{CaseFacts, Outcome, columns, describe, row, serving_columns, table};
pub use figures::{NamedPicture, figures};
pub use html::page;
pub use table::{Cell, Column, ColumnKind, Table};
