//! The messages of a Chakra file, with their field numbers (mlcommons/chakra,
//! `schema/protobuf/et_def.proto`). Fields that Rackflow does not read are passed over.

#![allow(missing_docs, reason = "the fields are those of the schema")]

use prost::Message as _;

/// Version of the schema that written files carry.
pub const VERSION: &str = "0.0.4";

#[derive(Clone, PartialEq, prost::Message)]
pub struct GlobalMetadata {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(message, repeated, tag = "2")]
    pub attr: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Attribute {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(
        oneof = "Value",
        tags = "3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29"
    )]
    pub value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Value {
    #[prost(double, tag = "3")]
    Double(f64),
    #[prost(float, tag = "5")]
    Float(f32),
    #[prost(int32, tag = "7")]
    Int32(i32),
    #[prost(int64, tag = "9")]
    Int64(i64),
    #[prost(uint32, tag = "11")]
    Uint32(u32),
    #[prost(uint64, tag = "13")]
    Uint64(u64),
    #[prost(sint32, tag = "15")]
    Sint32(i32),
    #[prost(sint64, tag = "17")]
    Sint64(i64),
    #[prost(fixed32, tag = "19")]
    Fixed32(u32),
    #[prost(fixed64, tag = "21")]
    Fixed64(u64),
    #[prost(sfixed32, tag = "23")]
    Sfixed32(i32),
    #[prost(sfixed64, tag = "25")]
    Sfixed64(i64),
    #[prost(bool, tag = "27")]
    Bool(bool),
    #[prost(string, tag = "29")]
    Text(String),
}

impl Value {
    /// A whole number that is not negative, whatever type it was written in: tools differ.
    pub fn whole(&self) -> Option<u64> {
        match *self {
            Self::Int32(n) | Self::Sint32(n) | Self::Sfixed32(n) => u64::try_from(n).ok(),
            Self::Int64(n) | Self::Sint64(n) | Self::Sfixed64(n) => u64::try_from(n).ok(),
            Self::Uint32(n) | Self::Fixed32(n) => Some(n.into()),
            Self::Uint64(n) | Self::Fixed64(n) => Some(n),
            Self::Double(x) if x >= 0.0 && x.fract() == 0.0 && x < 1.8e19 => Some(x as u64),
            Self::Float(x) if x >= 0.0 && x.fract() == 0.0 && x < 1.8e19 => Some(x as u64),
            Self::Bool(yes) => Some(yes.into()),
            Self::Text(ref text) => text.trim().parse().ok(),
            _ => None,
        }
    }
}

/// `NodeType`.
pub mod node_type {
    pub const METADATA: i32 = 1;
    pub const MEM_LOAD: i32 = 2;
    pub const MEM_STORE: i32 = 3;
    pub const COMP: i32 = 4;
    pub const COMM_SEND: i32 = 5;
    pub const COMM_RECV: i32 = 6;
    pub const COMM_COLL: i32 = 7;
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(int32, tag = "3")]
    pub r#type: i32,
    #[prost(uint64, repeated, tag = "4")]
    pub ctrl_deps: Vec<u64>,
    #[prost(uint64, repeated, tag = "5")]
    pub data_deps: Vec<u64>,
    #[prost(uint64, tag = "6")]
    pub start_time_micros: u64,
    #[prost(uint64, tag = "7")]
    pub duration_micros: u64,
    #[prost(message, optional, tag = "8")]
    pub inputs: Option<IoInfo>,
    #[prost(message, repeated, tag = "10")]
    pub attr: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct IoInfo {
    #[prost(string, tag = "1")]
    pub values: String,
}

/// Names of attributes.
pub mod attribute {
    /// Work of the host, not of the accelerator.
    pub const IS_CPU_OP: &str = "is_cpu_op";
    /// Arithmetic operations of a kernel.
    pub const NUM_OPS: &str = "num_ops";
    /// Bytes that a kernel or a memory node moves.
    pub const TENSOR_SIZE: &str = "tensor_size";
    /// Which collective.
    pub const COMM_TYPE: &str = "comm_type";
    /// Bytes of one rank's input.
    pub const COMM_SIZE: &str = "comm_size";
    /// Sending rank.
    pub const COMM_SRC: &str = "comm_src";
    /// Receiving rank.
    pub const COMM_DST: &str = "comm_dst";
    /// Tells messages apart.
    pub const COMM_TAG: &str = "comm_tag";
    /// Name of the communicator.
    pub const PG_NAME: &str = "pg_name";
    /// The accelerator's stream.
    pub const STREAM: &str = "stream";
    /// Ours: a duration in picoseconds, where `duration_micros` is too coarse.
    pub const DURATION_PS: &str = "rackflow_duration_ps";
    /// Ours, of the file: the accelerator on which kernels took their times.
    pub const ACCELERATOR: &str = "rackflow_accelerator";
    /// Ours: what a collective carries, exactly; see [`Payload`](super::super::Payload).
    pub const PAYLOAD: &str = "rackflow_payload";
}

impl GlobalMetadata {
    /// The accelerator on which kernels took their times, where the file says so.
    pub fn accelerator(&self) -> Option<&str> {
        let named = |attribute: &&Attribute| attribute.name == attribute::ACCELERATOR;
        match self.attr.iter().find(named)?.value.as_ref()? {
            Value::Text(name) => Some(name),
            _ => None,
        }
    }
}

impl Node {
    /// The value of an attribute.
    pub fn value(&self, name: &str) -> Option<&Value> {
        let found = self.attr.iter().find(|attribute| attribute.name == name);
        found.and_then(|attribute| attribute.value.as_ref())
    }

    /// Adds an attribute.
    pub fn set(&mut self, name: &str, value: Value) {
        self.attr.push(Attribute {
            name: name.to_owned(),
            value: Some(value),
        });
    }
}

/// Appends a message with its length in front.
pub fn append(message: &impl prost::Message, bytes: &mut Vec<u8>) {
    message
        .encode_length_delimited(bytes)
        .expect("a vector grows as far as it must");
}

/// Reads a [`Node`]; what the error says is in the words of the protobuf library.
pub fn node(bytes: &[u8]) -> Result<Node, String> {
    Node::decode(bytes).map_err(|error| error.to_string())
}

/// Reads the first message of a file.
pub fn metadata(bytes: &[u8]) -> Result<GlobalMetadata, String> {
    GlobalMetadata::decode(bytes).map_err(|error| error.to_string())
}

/// The number at the start of `bytes` and how many bytes it takes: seven bits in each, the low ones
/// first. `None` where it does not end.
pub fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        if i == 9 && part > 1 {
            return None;
        }
        value |= part << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, i + 1));
        }
    }
    None
}
