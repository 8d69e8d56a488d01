//! From a tree with places to Rust types, through serde.
//!
//! Numbers, words and quantities are read as their type asks. An error carries the place of the
//! innermost value (or key) that is wrong, whatever derive it came from, and a key that no type
//! knows is always an error.

use crate::catalogue::{self, Catalogue, Section};
use crate::diagnostic::{Diagnostic, Source, Span};
use crate::suggest;
use crate::yaml::{Key, Node, Value};
use serde::de::{
    self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use std::fmt;

/// What is wrong with a value, before the source is known.
#[derive(Debug, Clone)]
pub(crate) struct DecodeError {
    message: String,
    label: String,
    hints: Vec<String>,
    span: Option<Span>,
    /// A message that still lacks the name of the mapping or value it speaks of.
    fault: Option<Fault>,
}

/// What serde's derives report without saying where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    UnknownKey,
    UnknownValue,
    Missing,
}

impl DecodeError {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            label: String::new(),
            hints: Vec::new(),
            span: None,
            fault: None,
        }
    }

    /// Completes the message with the name of what is wrong. The first name is the innermost.
    fn of(mut self, name: &str) -> Self {
        if let Some(fault) = self.fault.take() {
            self.message += &match fault {
                Fault::UnknownKey => format!(" in {}", quoted(name)),
                Fault::UnknownValue => format!(" for {}", quoted(name)),
                Fault::Missing => format!(" from {}", quoted(name)),
            };
        }
        self
    }

    /// An error of the caller's own.
    pub fn placed(message: impl Into<String>, span: Span) -> Self {
        Self::new(message).at(span)
    }

    fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// What would be right.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The first place that is set is the innermost one, and it stays.
    fn at(mut self, span: Span) -> Self {
        self.span.get_or_insert(span);
        self
    }

    /// With the text it points into.
    pub fn in_source(self, source: &Source) -> Diagnostic {
        Diagnostic::error(source, self.span.unwrap_or_default(), self.message)
            .label(self.label)
            .hints(self.hints)
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("expected {expected}, found {}", spoken(unexpected)))
    }

    fn invalid_value(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("expected {expected}, found {}", spoken(unexpected)))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        unknown(Fault::UnknownKey, field, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        unknown(Fault::UnknownValue, variant, expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            fault: Some(Fault::Missing),
            ..Self::new(format!("`{field}` is missing"))
        }
    }
}

/// What was found, in the words of someone who writes YAML.
fn spoken(unexpected: de::Unexpected<'_>) -> String {
    match unexpected {
        de::Unexpected::Map => "a mapping".to_owned(),
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Unit => "nothing".to_owned(),
        de::Unexpected::Str(text) => format!("\"{}\"", shorten(text)),
        de::Unexpected::Unsigned(n) => n.to_string(),
        other => other.to_string(),
    }
}

/// What the whole document is called.
pub(crate) const ROOT: &str = "the scenario";

/// The name of a key as it is typed; the whole document has none.
fn quoted(name: &str) -> String {
    if name == ROOT {
        name.to_owned()
    } else {
        format!("`{name}`")
    }
}

fn unknown(fault: Fault, word: &str, expected: &[&str]) -> DecodeError {
    let what = if fault == Fault::UnknownKey {
        "key"
    } else {
        "value"
    };
    let mut found = DecodeError::new(format!("unknown {what} `{}`", shorten(word)));
    found.fault = Some(fault);
    let quoted: Vec<String> = expected.iter().map(|word| format!("`{word}`")).collect();
    let found = match suggest::closest(word, expected.iter().copied()) {
        Some(meant) => found.label(format!("did you mean `{meant}`?")),
        None => found,
    };
    match quoted.len() {
        0 => found.hint("no key is known here"),
        1 => found.hint(format!("only {} is known here", quoted[0])),
        _ => found.hint(format!("known here: {}", quoted.join(", "))),
    }
}

/// Where a key belongs that is known, but not in this mapping.
fn elsewhere(owner: &str, key: &str) -> Option<&'static str> {
    match (owner, key) {
        ("serving", "images") => Some(
            "requests of a service are text: leave `images` out and count their tokens in `input`; a training takes `images`",
        ),
        _ => None,
    }
}

/// A name that a section of the catalogue does not have.
pub(crate) fn unknown_name(section: Section, name: &str, span: Span) -> DecodeError {
    let catalogue = Catalogue::builtin();
    let found = DecodeError::new(format!(
        "unknown {} `{}`",
        section.singular(),
        shorten(name)
    ))
    .at(span);
    if let Some(other) = catalogue.sections_of(name).next() {
        let found = found.label(format!("this is the name of one of the {other}"));
        if (section, other) == (Section::Nodes, Section::Accelerators) {
            let with: Vec<&str> = catalogue
                .names(section)
                .filter(|node| {
                    catalogue
                        .node(node)
                        .is_some_and(|node| node.accelerator.name == name)
                })
                .collect();
            return found.hint(format!("nodes with this accelerator: {}", with.join(", ")));
        }
        return found;
    }
    let near = catalogue::nearest(section, name);
    let spelled = suggest::closest(name, catalogue.names(section));
    let found = match spelled {
        Some(meant) => found.label(format!("did you mean `{meant}`?")),
        None => found,
    };
    let others: Vec<&str> = near
        .iter()
        .copied()
        .filter(|name| Some(*name) != spelled)
        .collect();
    let found = match spelled {
        _ if !others.is_empty() => {
            found.hint(format!("{section} with a like name: {}", others.join(", ")))
        }
        Some(_) => found,
        None => {
            let names: Vec<&str> = catalogue.names(section).collect();
            found.hint(format!("known {section}: {}", names.join(", ")))
        }
    };
    if section == Section::Models && spelled.is_none() {
        return found.hint("or give the path of a Hugging Face config.json");
    }
    found
}

/// Keeps a message readable whatever was typed.
pub(crate) fn shorten(text: &str) -> String {
    const LIMIT: usize = 60;
    if text.chars().count() <= LIMIT {
        return text.to_owned();
    }
    text.chars().take(LIMIT).chain("...".chars()).collect()
}

/// Reads a value of type `T`. `at` is where to point when something is missing from it.
pub(crate) fn decode<T: de::DeserializeOwned>(
    node: &Node,
    name: &str,
    at: Span,
) -> Result<T, DecodeError> {
    T::deserialize(Decoder { node, name, at })
}

/// Name under which [`Subtree`] asks to be left alone.
const SUBTREE: &str = "$subtree";

/// A part of the document that is decoded later, from the tree, when names can be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subtree;

impl<'de> de::Deserialize<'de> for Subtree {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Present;
        impl Visitor<'_> for Present {
            type Value = Subtree;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Subtree, E> {
                Ok(Subtree)
            }
        }
        deserializer.deserialize_newtype_struct(SUBTREE, Present)
    }
}

#[derive(Clone, Copy)]
struct Decoder<'t> {
    node: &'t Node,
    /// The key that leads here, for messages.
    name: &'t str,
    /// Where to point when something is missing.
    at: Span,
}

impl<'t> Decoder<'t> {
    /// Where to point when this value is wrong.
    fn span(&self) -> Span {
        match &self.node.value {
            Value::Scalar { .. } if self.node.span.len > 0 => self.node.span,
            _ => self.at,
        }
    }

    fn wrong(&self, wanted: &str) -> DecodeError {
        let found = match &self.node.value {
            _ if self.node.is_null() => {
                return DecodeError::new(format!("{} has no value", quoted(self.name)))
                    .label(format!("expected {wanted}"))
                    .at(self.span());
            }
            Value::Scalar { text, .. } => format!("\"{}\"", shorten(text)),
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(entries) if entries.is_empty() => "an empty mapping".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
        };
        let place = self.span();
        let error = DecodeError::new(format!(
            "{} must be {wanted}, not {found}",
            quoted(self.name)
        ))
        .at(place);
        match &self.node.value {
            Value::Sequence(items)
                if !wanted.contains("mapping")
                    && items.iter().all(|item| item.text().is_some()) =>
            {
                error.hint("`rackflow sweep` runs one case for each entry of a list")
            }
            _ => error,
        }
    }

    fn scalar(&self, wanted: &str) -> Result<&'t str, DecodeError> {
        self.node.text().ok_or_else(|| self.wrong(wanted))
    }

    fn whole_number(&self, limit: u64) -> Result<u64, DecodeError> {
        let wanted = "a whole number";
        let text = self.scalar(wanted)?;
        if matches!(&self.node.value, Value::Scalar { quoted: true, .. })
            && text.parse::<u64>().is_ok()
        {
            return Err(self.wrong(wanted).hint("take the quotes off"));
        }
        let digits = text.replace('_', "");
        let digits = digits.strip_prefix('+').unwrap_or(&digits);
        let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if all_digits && !text.starts_with('_') {
            return match digits.parse::<u64>() {
                Ok(n) if n <= limit => Ok(n),
                _ => Err(DecodeError::new(format!(
                    "`{}` is {}, which is absurdly large",
                    self.name,
                    shorten(text)
                ))
                .at(self.span())),
            };
        }
        if let Some(positive) = digits.strip_prefix('-')
            && !positive.is_empty()
            && positive.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(DecodeError::new(format!(
                "`{}` is {}; it cannot be negative",
                self.name,
                shorten(text)
            ))
            .at(self.span()));
        }
        let error = self.wrong(wanted);
        match digits.parse::<f64>() {
            Ok(value) if value.fract() == 0.0 && value.abs() < 1e15 => {
                Err(error.hint(format!("write it out: {value:.0}")))
            }
            _ => Err(error),
        }
    }

    fn real_number(&self) -> Result<f64, DecodeError> {
        let text = self.scalar("a number")?;
        match text.replace('_', "").parse::<f64>() {
            Ok(value)
                if value.is_finite()
                    && text.starts_with(|c: char| {
                        c.is_ascii_digit() || matches!(c, '-' | '+' | '.')
                    }) =>
            {
                Ok(value)
            }
            _ => Err(self.wrong("a number")),
        }
    }

    fn mapping(&self, fields: &'static [&'static str]) -> Result<Mapping<'t>, DecodeError> {
        match &self.node.value {
            Value::Mapping(entries) => Ok(Mapping {
                entries: entries.iter(),
                value: None,
                fields,
                owner: self.name,
            }),
            _ => {
                let error = self.wrong("a mapping");
                Err(match fields {
                    [] => error,
                    fields => error.hint(format!("its keys: {}", fields.join(", "))),
                })
            }
        }
    }

    fn visit_mapping<V: Visitor<'t>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let mapping = self.mapping(fields)?;
        visitor
            .visit_map(mapping)
            .map_err(|error| error.of(self.name).at(self.at))
    }
}

macro_rules! whole_numbers {
    ($($method:ident $visit:ident $type:ty),* $(,)?) => {$(
        fn $method<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            let value = self.whole_number(<$type>::MAX as u64)?;
            visitor.$visit(value as $type).map_err(|error: DecodeError| error.at(self.span()))
        }
    )*};
}

impl<'t> de::Deserializer<'t> for Decoder<'t> {
    type Error = DecodeError;

    /// Only types that take several shapes ask for this; words and numbers reach them as text.
    fn deserialize_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let span = self.span();
        match &self.node.value {
            _ if self.node.is_null() => visitor.visit_unit(),
            Value::Scalar { text, .. } => visitor.visit_str(text),
            Value::Sequence(items) => visitor.visit_seq(Items {
                items: items.iter(),
                name: self.name,
            }),
            Value::Mapping(_) => return self.visit_mapping(&[], visitor),
        }
        .map_err(|error| error.of(self.name).at(span))
    }

    whole_numbers! {
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
    }

    fn deserialize_f32<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor
            .visit_f64(self.real_number()?)
            .map_err(|error: DecodeError| error.at(self.span()))
    }

    fn deserialize_bool<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.scalar("true or false")? {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn deserialize_str<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let text = self.scalar("text")?;
        visitor
            .visit_str(text)
            .map_err(|error: DecodeError| error.at(self.span()))
    }

    fn deserialize_string<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.node.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_unit<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.node.is_null() {
            visitor.visit_unit()
        } else {
            Err(self.wrong("left empty"))
        }
    }

    fn deserialize_unit_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'t>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        if name != SUBTREE {
            return visitor.visit_newtype_struct(self);
        }
        if self.node.is_null() {
            return Err(self.wrong("a name or a definition"));
        }
        visitor.visit_unit()
    }

    fn deserialize_seq<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Sequence(items) => visitor
                .visit_seq(Items {
                    items: items.iter(),
                    name: self.name,
                })
                .map_err(|error| error.at(self.at)),
            _ => Err(self.wrong("a list")),
        }
    }

    fn deserialize_tuple<V: Visitor<'t>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Sequence(items) if items.len() != length => Err(DecodeError::new(format!(
                "{} is a list of {length} values, and this one has {}",
                quoted(self.name),
                items.len()
            ))
            .at(self.node.span)),
            _ => self.deserialize_seq(visitor),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.visit_mapping(&[], visitor)
    }

    fn deserialize_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.visit_mapping(fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'t>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let choices = || match variants {
            [only] => format!("a mapping with the key `{only}`"),
            _ => suggest::either(variants),
        };
        let (variant, span, content) = match &self.node.value {
            Value::Scalar { text, .. } if !self.node.is_null() => {
                (text.as_str(), self.node.span, None)
            }
            Value::Mapping(entries) => match entries.as_slice() {
                [(key, node)] => (key.text.as_str(), key.span, Some((key, node))),
                [] => return Err(self.wrong(&choices())),
                [_, (second, _), ..] => {
                    let all = suggest::either(variants);
                    return Err(DecodeError::new(format!(
                        "`{}` takes one key, {all}, and no second",
                        self.name
                    ))
                    .label("one too many")
                    .at(second.span));
                }
            },
            _ => return Err(self.wrong(&choices())),
        };
        visitor
            .visit_enum(Variant {
                variant,
                span,
                content,
                owner: self.name,
            })
            .map_err(|error| error.at(span))
    }

    fn deserialize_bytes<V: Visitor<'t>>(self, _: V) -> Result<V::Value, DecodeError> {
        Err(self.wrong("text"))
    }

    fn deserialize_byte_buf<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_identifier<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    /// Asked for by types that let unknown keys pass; here nobody does.
    fn deserialize_ignored_any<V: Visitor<'t>>(self, _: V) -> Result<V::Value, DecodeError> {
        Err(DecodeError::new(format!("unknown key `{}`", shorten(self.name))).at(self.at))
    }
}

struct Mapping<'t> {
    entries: std::slice::Iter<'t, (Key, Node)>,
    value: Option<&'t (Key, Node)>,
    /// The keys that the type knows; empty where it takes any.
    fields: &'static [&'static str],
    owner: &'t str,
}

impl<'t> MapAccess<'t> for Mapping<'t> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'t>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        let Some(entry) = self.entries.next() else {
            return Ok(None);
        };
        let (key, _) = entry;
        if !self.fields.is_empty() && !self.fields.contains(&key.text.as_str()) {
            let found = unknown(Fault::UnknownKey, &key.text, self.fields);
            let found = match elsewhere(self.owner, &key.text) {
                Some(hint) => found.hint(hint),
                None => found,
            };
            return Err(found.of(self.owner).at(key.span));
        }
        self.value = Some(entry);
        let key_text: de::value::StrDeserializer<'_, DecodeError> =
            key.text.as_str().into_deserializer();
        seed.deserialize(key_text)
            .map(Some)
            .map_err(|error| error.of(self.owner).at(key.span))
    }

    fn next_value_seed<V: DeserializeSeed<'t>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        let (key, node) = self
            .value
            .take()
            .ok_or_else(|| DecodeError::new("a value without a key"))?;
        let decoder = Decoder {
            node,
            name: &key.text,
            at: key.span,
        };
        seed.deserialize(decoder)
            .map_err(|error| error.at(decoder.span()))
    }
}

struct Items<'t> {
    items: std::slice::Iter<'t, Node>,
    name: &'t str,
}

impl<'t> SeqAccess<'t> for Items<'t> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'t>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let Some(node) = self.items.next() else {
            return Ok(None);
        };
        let decoder = Decoder {
            node,
            name: self.name,
            at: node.span,
        };
        seed.deserialize(decoder)
            .map(Some)
            .map_err(|error| error.at(decoder.span()))
    }
}

struct Variant<'t> {
    variant: &'t str,
    span: Span,
    content: Option<(&'t Key, &'t Node)>,
    owner: &'t str,
}

impl<'t> Variant<'t> {
    fn content(&self) -> Result<Decoder<'t>, DecodeError> {
        let Some((key, node)) = self.content else {
            return Err(
                DecodeError::new(format!("`{}` needs a value", self.variant))
                    .hint(format!("write {{ {}: ... }}", self.variant))
                    .at(self.span),
            );
        };
        Ok(Decoder {
            node,
            name: &key.text,
            at: key.span,
        })
    }
}

impl<'t> EnumAccess<'t> for Variant<'t> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'t>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self), DecodeError> {
        let name: de::value::StrDeserializer<'_, DecodeError> = self.variant.into_deserializer();
        let value = seed
            .deserialize(name)
            .map_err(|error| error.of(self.owner).at(self.span))?;
        Ok((value, self))
    }
}

impl<'t> VariantAccess<'t> for Variant<'t> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        match self.content {
            Some((key, node)) if !node.is_null() => {
                Err(DecodeError::new(format!("`{}` takes no value", key.text))
                    .hint(format!("write {} alone", key.text))
                    .at(key.span))
            }
            _ => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'t>>(
        self,
        seed: T,
    ) -> Result<T::Value, DecodeError> {
        seed.deserialize(self.content()?)
    }

    fn tuple_variant<V: Visitor<'t>>(self, _: usize, visitor: V) -> Result<V::Value, DecodeError> {
        de::Deserializer::deserialize_seq(self.content()?, visitor)
    }

    fn struct_variant<V: Visitor<'t>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.content()?.visit_mapping(fields, visitor)
    }
}
