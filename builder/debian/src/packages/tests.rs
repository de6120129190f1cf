//! Tests of `packages`.
