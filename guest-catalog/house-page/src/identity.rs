//! Who the page is, and whom it lets in: a certificate and a token, made at first start and kept until power-off.
//!
//! They lie in a folder that root alone reads, `/run/gasthaus/page`: `certificate.der` and `key.der` (PKCS #8), `token`, and
//! `notice.json` with what `guests` says on the consoles. The certificate is signed by itself: nobody could have signed it for
//! a machine that has just come into being. Its fingerprint stands beside the token, to be compared once.
use crate::config::Config;
use crate::error::PageError;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Serialize;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use subtle::ConstantTimeEq as _;

/// Crockford's digits: none looks like another, all can be typed on any keyboard.
pub const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 26 digits of 5 bits: 130 bits.
const TOKEN_DIGITS: usize = 26;
/// Digits between two dashes, for the eye.
const GROUP: usize = 6;
/// File with what `guests` says of the page.
pub const NOTICE: &str = "notice.json";
/// Longest token that anybody may try.
pub const TOKEN_MAX_BYTES: usize = 256;

/// The certificate's key and the token's digest.
pub struct Identity {
    pub tls: Arc<ServerConfig>,
    secret: Secret,
}

enum Secret {
    /// Of a token that was made here, without its dashes.
    Made([u8; 32]),
    /// Of one that the recipe's author knows.
    Given([u8; 32]),
}

/// What people have to know to come in.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Notice<'a> {
    port: u16,
    /// `None` where the recipe gives one.
    token: Option<&'a str>,
    certificate_sha256: String,
}

impl Identity {
    /// Takes what is in `dir`, or makes it.
    ///
    /// # Errors
    /// When the folder cannot be written, or what is there is damaged.
    pub fn in_folder(dir: &Path, config: &Config) -> Result<Self, PageError> {
        make_folder(dir)?;
        let (certificate, key) = certificate(dir)?;
        let fingerprint = fingerprint(&certificate);
        let token = match config.token_sha256 {
            Some(_) => None,
            None => Some(token(dir)?),
        };
        let notice = Notice {
            port: config.port,
            token: token.as_deref(),
            certificate_sha256: fingerprint,
        };
        // Numbers and strings always serialise.
        let notice = serde_json::to_vec(&notice).unwrap_or_default();
        write_secret(&dir.join(NOTICE), &notice)?;
        let secret = match (config.token_sha256, token) {
            (Some(digest), _) => Secret::Given(digest),
            (None, token) => Secret::Made(sha256(plain(&token.unwrap_or_default()).as_bytes())),
        };
        let tls = tls(certificate, key).map_err(|source| PageError::Tls {
            path: dir.to_owned(),
            source,
        })?;
        Ok(Self {
            tls: Arc::new(tls),
            secret,
        })
    }

    /// Whether `token` opens the page. Takes the same time for every token of one length.
    pub fn admits(&self, token: &str) -> bool {
        if token.len() > TOKEN_MAX_BYTES {
            return false;
        }
        let (wanted, found) = match &self.secret {
            Secret::Made(wanted) => (wanted, sha256(plain(token).as_bytes())),
            Secret::Given(wanted) => (wanted, sha256(token.trim().as_bytes())),
        };
        wanted.ct_eq(&found).into()
    }
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// Random bytes of the kernel's.
///
/// # Errors
/// When it has none.
pub fn random<const N: usize>() -> Result<[u8; N], PageError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| PageError::Random)?;
    Ok(bytes)
}

/// A token as it was made: dashes and capital letters are for people.
pub fn plain(token: &str) -> String {
    let signs = token.chars().filter(|c| !c.is_whitespace() && *c != '-');
    signs.map(|c| c.to_ascii_lowercase()).collect()
}

fn token(dir: &Path) -> Result<String, PageError> {
    let path = dir.join("token");
    match fs::read_to_string(&path) {
        Ok(token) if plain(&token).len() == TOKEN_DIGITS => return Ok(token.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(source) => return Err(PageError::file("read", &path)(source)),
    }
    // 256 is a multiple of 32: every digit is equally likely.
    let digits = random::<TOKEN_DIGITS>()?.map(|byte| DIGITS[usize::from(byte % 32)]);
    let groups = digits.chunks(GROUP).map(String::from_utf8_lossy);
    let token = groups.collect::<Vec<_>>().join("-");
    write_secret(&path, token.as_bytes())?;
    Ok(token)
}

fn certificate(dir: &Path) -> Result<(Vec<u8>, Vec<u8>), PageError> {
    let (certificate, key) = (dir.join("certificate.der"), dir.join("key.der"));
    match (fs::read(&certificate), fs::read(&key)) {
        (Ok(certificate), Ok(key)) => return Ok((certificate, key)),
        (Err(error), _) | (_, Err(error)) if error.kind() != ErrorKind::NotFound => {
            return Err(PageError::file("read", &certificate)(error));
        }
        _ => {}
    }
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let usual = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut names = vec!["localhost".to_owned()];
    if !name.trim().is_empty() && name.trim().chars().all(usual) {
        names.insert(0, name.trim().to_owned());
    }
    // ECDSA on P-256: small, and every browser has it.
    let made = rcgen::generate_simple_self_signed(names).map_err(PageError::Certificate)?;
    let (der, key_der) = (made.cert.der().to_vec(), made.signing_key.serialize_der());
    write_secret(&key, &key_der)?;
    write_secret(&certificate, &der)?;
    Ok((der, key_der))
}

/// TLS 1.3 with this certificate.
///
/// # Errors
/// When certificate and key do not go together.
pub fn tls(certificate: Vec<u8>, key: Vec<u8>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(certificate)],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)),
        )?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// As browsers show it: `AB:CD:…`.
fn fingerprint(certificate: &[u8]) -> String {
    let bytes = sha256(certificate).map(|byte| format!("{byte:02X}"));
    bytes.join(":")
}

fn make_folder(dir: &Path) -> Result<(), PageError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o700)))
        .map_err(PageError::file("make the folder", dir))
}

/// Whole or not at all, and for root alone.
fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), PageError> {
    let fresh = path.with_extension("new");
    let write = || {
        let _ = fs::remove_file(&fresh); // of a start that was cut short, perhaps
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(bytes)?;
        fs::rename(&fresh, path)
    };
    write().map_err(PageError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    const USUAL: Config = Config {
        port: 8443,
        token_sha256: None,
    };

    #[test]
    fn a_token_is_made_once_and_admits_as_people_type_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("page");
        let identity = Identity::in_folder(&dir, &USUAL).unwrap();
        let token = fs::read_to_string(dir.join("token")).unwrap();
        assert_eq!(token.len(), 30);
        for typed in [
            &token,
            &token.to_uppercase(),
            &token.replace('-', " "),
            &format!(" {token}\r\n"),
        ] {
            assert!(identity.admits(typed), "{typed}");
        }
        let other = token.replacen(
            &token[..1],
            if token.starts_with('0') { "1" } else { "0" },
            1,
        );
        for typed in [
            "",
            "-",
            &token[..29],
            &other,
            &"x".repeat(TOKEN_MAX_BYTES + 1),
        ] {
            assert!(!identity.admits(typed), "{typed}");
        }
        let certificate = fs::read(dir.join("certificate.der")).unwrap();
        let again = Identity::in_folder(&dir, &USUAL).unwrap();
        assert!(again.admits(&token), "another token after a second start");
        assert_eq!(fs::read(dir.join("certificate.der")).unwrap(), certificate);
        for name in ["token", "key.der", "notice.json"] {
            let mode = fs::metadata(dir.join(name)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        let notice = fs::read_to_string(dir.join("notice.json")).unwrap();
        assert!(
            notice.contains(&token) && notice.contains(&fingerprint(&certificate)),
            "{notice}"
        );
    }

    #[test]
    fn a_token_of_the_recipes_is_never_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let given = Config {
            token_sha256: Some(sha256(b"Correct-Horse")),
            ..USUAL
        };
        let identity = Identity::in_folder(dir.path(), &given).unwrap();
        assert!(identity.admits("Correct-Horse\n") && !identity.admits("correcthorse"));
        let notice = fs::read_to_string(dir.path().join("notice.json")).unwrap();
        assert!(notice.contains("\"token\":null"), "{notice}");
        assert!(!dir.path().join("token").exists());
    }

    #[test]
    fn a_damaged_key_is_an_error_with_a_way_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("certificate.der"), "x").unwrap();
        fs::write(dir.path().join("key.der"), "x").unwrap();
        let error = Identity::in_folder(dir.path(), &USUAL).err().unwrap();
        assert!(error.hint().is_some(), "{error}");
    }
}
