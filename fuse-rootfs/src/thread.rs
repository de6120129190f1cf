//! Threads, all started here: the standard library's way is compiled anew for every closure, some 3 KB each, and `gasthaus-live`
//! must be small.

use std::io;
use std::thread::{Builder, JoinHandle};

/// For threads that do not say how much they need; the standard library's default.
pub const STACK_BYTES: usize = 2 << 20;

/// Starts a thread.
///
/// # Errors
/// If the system has no more.
pub fn spawn(
    name: &str,
    stack_bytes: usize,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    start(name, stack_bytes, Box::new(work))
}

#[inline(never)]
fn start(
    name: &str,
    stack_bytes: usize,
    work: Box<dyn FnOnce() + Send>,
) -> io::Result<JoinHandle<()>> {
    Builder::new()
        .name(name.into())
        .stack_size(stack_bytes)
        .spawn(work)
}
