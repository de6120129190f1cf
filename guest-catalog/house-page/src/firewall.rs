//! Opens and closes the page's port in dom0's packet filter: an element of the set `open-tcp` (`guest-catalog/src/firewall.rs`).
use crate::error::PageError;
use std::process::Command;

/// By its full path, so that nobody's PATH decides what runs as root.
const NFT: &str = "/usr/sbin/nft";

/// Lets everybody reach `port`.
///
/// # Errors
/// When there is no packet filter of ours.
pub fn open(port: u16) -> Result<(), PageError> {
    change("add", "open", port)
}

/// Lets nobody reach `port` any more.
///
/// # Errors
/// When it was not open.
pub fn close(port: u16) -> Result<(), PageError> {
    change("delete", "close", port)
}

fn change(word: &str, attempt: &'static str, port: u16) -> Result<(), PageError> {
    let failed = |found: String| PageError::Firewall {
        attempt,
        port,
        found,
    };
    let element = format!("{{ {port} }}");
    let output = Command::new(NFT)
        .args([word, "element", "inet", "gasthaus", "open-tcp", &element])
        .output()
        .map_err(|error| failed(format!("`{NFT}`: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(
        said.lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(200)
            .collect(),
    ))
}
