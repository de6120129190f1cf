//! What the tests share: keys made on the spot, signed archives, and a small HTTP server that can misbehave.
#![allow(dead_code)]

pub mod archive;
pub mod keys;
pub mod server;

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub fn now_epoch_secs() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}
