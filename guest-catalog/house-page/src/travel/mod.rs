//! A guest moves from one house to another: the line between `xl migrate` here and `xl migrate-receive` there, or between the `guests`
//! of two houses without Xen.
//!
//! Both speak by their standard input and output with their like; this carries the bytes over TLS 1.3. Nobody vouches for a house's
//! certificate, so both ends prove that they know the one-time code that the receiving house shows: each sends
//! HMAC-SHA256(code, its role ‖ exported keying material of this very connection; RFC 5705, RFC 9266). Somebody between them has
//! two connections with other material, and the code, of 80 bits, lives for minutes.
//!
//! | step | who | bytes |
//! |---|---|---|
//! | 1 | source | 32: proof of the role `source` |
//! | 2 | target | 32: proof of the role `target` |
//! | 3 | source | length (u32, big endian, at most 4096), [`Request`] as JSON |
//! | 4 | target | length, [`Answer`] as JSON |
//! | 5 | both | what the two programs say, until the target's has ended |
mod receive;
mod send;

pub use receive::{Receive, receive};
pub use send::{Send, send};

use crate::identity::{DIGITS, plain, random};
use ring::hmac;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Where a receiving house listens if nobody says.
pub const PORT: u16 = 8444;
/// The version of all this.
const VERSION: u32 = 1;
/// 16 digits of 5 bits.
const CODE_DIGITS: usize = 16;
const CODE_GROUP: usize = 4;
/// Longest request or answer.
const MESSAGE_MAX_BYTES: u32 = 4096;
const PROOF_BYTES: usize = 32;
/// From the connection to the answer; an emulated processor takes a second or two for a handshake.
const GREETING_LIMIT: Duration = Duration::from_secs(30);
/// A peer that acknowledges nothing for so long is gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// RFC 5705, section 4: the label of what both ends derive.
const LABEL: &[u8] = b"EXPORTER-gasthaus-travel";

/// What the source asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Request {
    version: u32,
    guest: String,
    /// The mode it runs in.
    mode: String,
    /// SHA-256 of the configuration that it was started with, in hex digits.
    config_sha256: String,
}

/// What the target says to it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Answer {
    /// Why not, if not.
    refused: Option<String>,
}

/// Why a guest does not travel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TravelError {
    #[error(transparent)]
    House(#[from] crate::error::PageError),
    #[error("nobody came with the right code within {} s", .0.as_secs())]
    Nobody(Duration),
    #[error("cannot reach `{house}`")]
    Unreachable { house: String, source: io::Error },
    #[error("`{house}` did not answer within {} s", GREETING_LIMIT.as_secs())]
    Silent { house: String },
    #[error("no connection by TLS with `{house}`")]
    Handshake { house: String, source: io::Error },
    #[error("`{house}` does not know this code")]
    Code { house: String },
    #[error("`{house}` refuses: {why}")]
    Refused { house: String, why: String },
    #[error("the line to `{house}` broke")]
    Line { house: String, source: io::Error },
    #[error("the other house asked for what is not to be had here: {0}")]
    Unfit(String),
    #[error("cannot start `{program}`")]
    Program { program: String, source: io::Error },
    #[error("`{program}` did not take the guest in ({status})")]
    NotTaken {
        program: String,
        status: std::process::ExitStatus,
    },
    #[error("cannot {attempt}")]
    Own {
        attempt: &'static str,
        source: io::Error,
    },
    #[error("no code in the environment variable `{0}`")]
    NoCode(&'static str),
}

impl TravelError {
    /// What the user can do next.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::House(error) => error.hint(),
            Self::Unreachable { .. } | Self::Silent { .. } => Some(
                "`guests receive NAME` has to run on the other house, which says its address and its code",
            ),
            Self::Code { .. } => {
                Some("each `guests receive` has a code of its own, good for one journey")
            }
            Self::Unfit(_) => {
                Some("a guest moves between houses whose definitions of it are the same")
            }
            _ => None,
        }
    }
}

/// The two ends.
#[derive(Clone, Copy)]
enum Role {
    Source,
    Target,
}

/// A new code, with dashes for people.
fn make_code() -> Result<String, crate::error::PageError> {
    let digits = random::<CODE_DIGITS>()?.map(|byte| DIGITS[usize::from(byte % 32)]);
    let groups = digits.chunks(CODE_GROUP).map(String::from_utf8_lossy);
    Ok(groups.collect::<Vec<_>>().join("-"))
}

fn key_of(code: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, plain(code).as_bytes())
}

fn words_of(role: Role, material: &[u8; PROOF_BYTES]) -> Vec<u8> {
    let role: &[u8] = match role {
        Role::Source => b"source",
        Role::Target => b"target",
    };
    [role, material].concat()
}

async fn write_proof(
    line: &mut (impl AsyncWrite + Unpin),
    key: &hmac::Key,
    role: Role,
    material: &[u8; PROOF_BYTES],
) -> io::Result<()> {
    let proof = hmac::sign(key, &words_of(role, material));
    line.write_all(proof.as_ref()).await?;
    line.flush().await
}

/// Whether what the other end sends proves that it knows the code.
async fn read_proof(
    line: &mut (impl AsyncRead + Unpin),
    key: &hmac::Key,
    role: Role,
    material: &[u8; PROOF_BYTES],
) -> io::Result<bool> {
    let mut proof = [0; PROOF_BYTES];
    line.read_exact(&mut proof).await?;
    Ok(hmac::verify(key, &words_of(role, material), &proof).is_ok())
}

async fn write_message(
    line: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    line.write_u32(length).await?;
    line.write_all(&text).await?;
    line.flush().await
}

async fn read_message<T: DeserializeOwned>(line: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = line.read_u32().await?;
    if length > MESSAGE_MAX_BYTES {
        let told = format!("a message of {length} bytes; at most {MESSAGE_MAX_BYTES} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, told));
    }
    let mut text = vec![0; length as usize];
    line.read_exact(&mut text).await?;
    Ok(serde_json::from_slice(&text)?)
}

/// A peer that is gone is noticed, and small words are sent at once.
fn watch_over(stream: &TcpStream) {
    // Where the kernel cannot do one of these the line works all the same, only slower or longer.
    let _ = stream.set_nodelay(true);
    let socket = socket2::SockRef::from(stream);
    let _ = socket.set_tcp_user_timeout(Some(SILENCE_LIMIT));
    let _ = socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(SILENCE_LIMIT));
}

/// What another house says, as it may be shown: short, and without control characters.
fn tame(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_typed_as_people_type_and_prove_a_role_on_one_connection() {
        let code = make_code().unwrap();
        assert_eq!(code.len(), 19);
        assert_ne!(code, make_code().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut sent = Vec::new();
            write_proof(&mut sent, &key_of(&code), Role::Source, &[7; 32])
                .await
                .unwrap();
            let typed = key_of(&code.to_uppercase().replace('-', " "));
            for (key, role, material, fits) in [
                (&typed, Role::Source, [7; 32], true),
                (&typed, Role::Target, [7; 32], false),
                (&typed, Role::Source, [8; 32], false),
                (&key_of("0000-0000-0000-0000"), Role::Source, [7; 32], false),
            ] {
                let read = read_proof(&mut sent.as_slice(), key, role, &material).await;
                assert_eq!(read.unwrap(), fits);
            }
        });
    }

    #[test]
    fn messages_are_bounded() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut sent = Vec::new();
            let refused = Some("no".to_owned());
            write_message(&mut sent, &Answer { refused }).await.unwrap();
            let answer: Answer = read_message(&mut sent.as_slice()).await.unwrap();
            assert_eq!(answer.refused.as_deref(), Some("no"));
            for (bytes, told) in [
                (&b"\0\x01\0\0"[..], "a message of 65536 bytes"),
                (b"\0\0\0\x02[]", "invalid"),
                (b"\0\0\0\x09{}", "eof"),
            ] {
                let error = read_message::<Answer>(&mut &bytes[..]).await.unwrap_err();
                assert!(error.to_string().contains(told), "{error}");
            }
        });
    }
}
