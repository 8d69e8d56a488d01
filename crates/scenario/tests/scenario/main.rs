//! What users see of a scenario: the shipped ones, the refusals, the schema.

mod bad;
mod mutations;
mod schema;
mod shipped;
