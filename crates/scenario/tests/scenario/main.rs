//! What users see of a scenario: the shipped ones, the refusals, the schema.

mod bad;
mod import;
mod meaning;
mod mutations;
mod schema;
mod shipped;
