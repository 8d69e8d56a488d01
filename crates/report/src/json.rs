//! JSON for people and programs: indented, with lists of numbers on one line.

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

/// One document, with a newline at the end.
pub(crate) fn pretty(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, Lists::default());
    value
        .serialize(&mut serializer)
        .expect("a report has only string keys and is written to memory");
    out.push(b'\n');
    String::from_utf8(out).expect("JSON is UTF-8")
}

/// Indents like [`PrettyFormatter`], but goes on in the line from one number of a list to the next.
#[derive(Default)]
struct Lists {
    pretty: PrettyFormatter<'static>,
    /// For each open list, whether its last element stands on a line of its own.
    open: Vec<bool>,
    /// An element begins, and what it is has not been told: the first of its list?
    begins: Option<bool>,
}

impl Lists {
    /// What begins is a number.
    fn number<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match self.begins.take() {
            Some(false) => writer.write_all(b", "),
            _ => Ok(()),
        }
    }

    /// What begins takes lines of its own.
    fn line<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match self.begins.take() {
            Some(first) => {
                if let Some(own) = self.open.last_mut() {
                    *own = true;
                }
                self.pretty.begin_array_value(writer, first)
            }
            None => Ok(()),
        }
    }
}

macro_rules! numbers {
    ($($name:ident: $type:ty),*) => {$(
        fn $name<W: ?Sized + Write>(&mut self, writer: &mut W, value: $type) -> io::Result<()> {
            self.number(writer)?;
            self.pretty.$name(writer, value)
        }
    )*};
}

impl Formatter for Lists {
    numbers! {
        write_i64: i64, write_u64: u64, write_i32: i32, write_u32: u32, write_u8: u8,
        write_f64: f64, write_f32: f32
    }

    fn write_null<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.line(writer)?;
        self.pretty.write_null(writer)
    }

    fn write_bool<W: ?Sized + Write>(&mut self, writer: &mut W, value: bool) -> io::Result<()> {
        self.line(writer)?;
        self.pretty.write_bool(writer, value)
    }

    fn begin_string<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.line(writer)?;
        self.pretty.begin_string(writer)
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.line(writer)?;
        self.open.push(false);
        self.pretty.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        if self.open.pop() == Some(true) {
            return self.pretty.end_array(writer);
        }
        // The indentation of the list is given up without a line.
        self.pretty.end_array(&mut io::sink())?;
        writer.write_all(b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, _: &mut W, first: bool) -> io::Result<()> {
        self.begins = Some(first);
        Ok(())
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.line(writer)?;
        self.pretty.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        // The key is a string and no element of a list.
        self.pretty.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::pretty;
    use serde_json::{Value, json};

    #[test]
    fn numbers_share_a_line_and_all_else_is_as_before() {
        let value = json!({
            "empty": [], "lists": [[1, 2.5], []], "mixed": [1, "a", {"b": [true, null]}, 2],
            "numbers": [1, -2, 0.5], "text": "a"
        });
        let text = pretty(&value);
        assert!(text.contains("\"numbers\": [1, -2, 0.5],\n"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), value);
        let plain = json!({ "objects": [{ "a": 1 }, { "a": 2 }], "texts": ["a", "b"] });
        let usual = serde_json::to_string_pretty(&plain).expect("plain") + "\n";
        assert_eq!(pretty(&plain), usual);
    }
}
