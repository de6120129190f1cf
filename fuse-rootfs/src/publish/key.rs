//! Signing keys: minisign's files, read and made (<https://jedisct1.github.io/minisign/>).

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ct_codecs::{Base64, Decoder};
use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox};

use super::PublishError;
use crate::format::VerifyKey;

/// `Ed`, how it is protected (2), `B2`, salt (32), scrypt's limits (8 + 8), key id (8), seed and public key (64), checksum (32).
const SECRET_BYTES: usize = 158;
/// Longest key file that is read; they have some 300 bytes.
const MAX_FILE_BYTES: u64 = 4096;

/// A secret key, ready to sign, with its public key.
pub struct SigningKey {
    secret: SecretKey,
    public: VerifyKey,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

/// What is wrong with a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// It is no secret key.
    #[error("`{path}` is not a minisign secret key")]
    NotSecret {
        /// The file.
        path: PathBuf,
    },
    /// It is no public key.
    #[error("`{path}` is not a minisign public key")]
    NotPublic {
        /// The file.
        path: PathBuf,
    },
    /// It is encrypted and there is no password.
    #[error("the key `{path}` is protected by a password")]
    PasswordNeeded {
        /// The file.
        path: PathBuf,
    },
    /// The password is wrong.
    #[error("the password does not open the key `{path}`")]
    WrongPassword {
        /// The file.
        path: PathBuf,
    },
    /// There is a key already.
    #[error("`{path}` exists already and is left as it is")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The secret file would have the public one's name.
    #[error("the secret key cannot be `{path}`: the public one is called so")]
    PublicName {
        /// The file.
        path: PathBuf,
    },
    /// The random number generator or the key derivation failed.
    #[error("cannot make a key")]
    Make(#[source] minisign::PError),
}

impl KeyError {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotSecret { .. } => Some("`gasthaus key new` makes one; it has two lines".into()),
            Self::NotPublic { .. } => {
                Some("it is the file that ends in `.pub`; its last line begins with `RW`".into())
            }
            Self::PasswordNeeded { .. } => {
                Some("set GASTHAUS_KEY_PASSWORD, or run this on a terminal to be asked".into())
            }
            Self::Exists { .. } => {
                Some("whoever has the old public key would trust nothing signed with a new one; name another file".into())
            }
            Self::PublicName { path } => Some(format!(
                "name the secret file, e.g. `{}`; the public one is written beside it",
                path.with_extension("key").display()
            )),
            _ => None,
        }
    }
}

/// Reads a public key file, or takes a public key itself.
///
/// # Errors
/// If the file cannot be read or is no public key.
pub fn read_public(file_or_key: &str) -> Result<VerifyKey, KeyError> {
    if let Ok(key) = file_or_key.parse() {
        return Ok(key);
    }
    let path = PathBuf::from(file_or_key);
    let text = read(&path)?;
    text.parse().map_err(|_| KeyError::NotPublic { path })
}

impl SigningKey {
    /// Reads a secret key file. `password` is asked, at most once, if the key is protected; `None` means there is none.
    ///
    /// # Errors
    /// If the file cannot be read, is no secret key, or the password is missing or wrong.
    pub fn read(path: &Path, password: impl FnOnce() -> Option<String>) -> Result<Self, KeyError> {
        let not_secret = || KeyError::NotSecret {
            path: path.to_owned(),
        };
        let text = read(path)?;
        let line = text.lines().nth(1).unwrap_or_default().trim();
        let raw = Base64::decode_to_vec(line, None).map_err(|_| not_secret())?;
        if raw.len() != SECRET_BYTES || !raw.starts_with(b"Ed") {
            return Err(not_secret());
        }
        let secret = match &raw[2..4] {
            // `minisign -W` leaves the checksum empty, so it is not looked at; a damaged key cannot verify its own signatures.
            [0, 0] => SecretKey::from_bytes(&raw).map_err(|_| not_secret())?,
            b"Sc" => {
                let password = password().ok_or_else(|| KeyError::PasswordNeeded {
                    path: path.to_owned(),
                })?;
                let boxed = SecretKeyBox::from_string(&text).map_err(|_| not_secret())?;
                boxed
                    .into_secret_key(Some(password))
                    .map_err(|_| KeyError::WrongPassword {
                        path: path.to_owned(),
                    })?
            }
            _ => return Err(not_secret()),
        };
        Self::of(secret).ok_or_else(not_secret)
    }

    fn of(secret: SecretKey) -> Option<Self> {
        let public = PublicKey::from_secret_key(&secret).ok()?;
        let public = public.to_base64().parse().ok()?;
        Some(Self { secret, public })
    }

    /// Makes a key and writes its two files: `path`, which only its owner may read, and the public one, `path` with `.pub`
    /// instead of its extension. Existing files are left alone.
    ///
    /// # Errors
    /// If one of them exists or cannot be written; then neither is left.
    pub fn create(path: &Path, password: Option<String>) -> Result<(Self, PathBuf), KeyError> {
        let public_path = path.with_extension("pub");
        if path == public_path {
            return Err(KeyError::PublicName { path: public_path });
        }
        for path in [path, &public_path] {
            if path.symlink_metadata().is_ok() {
                return Err(KeyError::Exists {
                    path: path.to_owned(),
                });
            }
        }
        let pair = match password {
            Some(password) => KeyPair::generate_encrypted_keypair(Some(password.clone()))
                .and_then(|pair| Ok((pair.sk.to_box(None)?, Some(password)))),
            None => KeyPair::generate_unencrypted_keypair()
                .and_then(|pair| Ok((pair.sk.to_box(None)?, None))),
        };
        let (boxed, password) = pair.map_err(KeyError::Make)?;
        write(path, 0o600, boxed.into_string().as_bytes())?;
        let key = Self::read(path, || password)?;
        let text = format!("untrusted comment: gasthaus public key\n{}\n", key.public);
        write(&public_path, 0o644, text.as_bytes()).inspect_err(|_| drop(fs::remove_file(path)))?;
        Ok((key, public_path))
    }

    /// The public key.
    #[must_use]
    pub const fn public(&self) -> &VerifyKey {
        &self.public
    }

    /// The text of a signature file over `bytes`.
    pub(super) fn sign(&self, bytes: &[u8], comment: &str) -> Result<String, PublishError> {
        minisign::sign(
            None,
            &self.secret,
            bytes,
            Some(comment),
            Some("signature by a gasthaus key"),
        )
        .map(minisign::SignatureBox::into_string)
        .map_err(|error| {
            PublishError::io("sign", "index")(std::io::Error::other(error.to_string()))
        })
    }
}

fn read(path: &Path) -> Result<String, KeyError> {
    use std::io::Read as _;
    let io = |source| KeyError::Io {
        action: "read the key",
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes))
        .map_err(io)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), KeyError> {
    let io = |source| KeyError::Io {
        action: "write the key",
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(io)?;
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(io)?;
    // Half a key would keep the next try from making a whole one. `sync_all`: some disks say only then that they are full.
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .inspect_err(|_| drop(fs::remove_file(path)))
        .map_err(io)
}
