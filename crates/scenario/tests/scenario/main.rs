//! What users see of a scenario: the shipped ones, the refusals, the schema.

mod shipped;
