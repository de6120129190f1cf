//! Tests of `version`.
