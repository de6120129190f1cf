//! A small signed archive on the test server.

use std::io::Write as _;

use gasthaus_debian::Sha256Digest;
use gasthaus_debian::calendar::format_epoch_secs;
use pgp::composed::SignedSecretKey;

use super::server::{Answer, Server};
use super::{keys, now_epoch_secs};

/// A stanza of `Packages` whose `.deb` holds its own name and version.
pub fn stanza(name: &str, version: &str, more: &str) -> String {
    let body = deb_body(name, version);
    format!(
        "Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: {}\nSize: {}\nSHA256: {}\n{more}\n\n",
        deb_path(name, version),
        body.len(),
        Sha256Digest::of(&body)
    )
}

pub fn deb_path(name: &str, version: &str) -> String {
    format!("pool/{name}_{version}.deb")
}

pub fn deb_body(name: &str, version: &str) -> Vec<u8> {
    format!("{name} {version}\n").repeat(100).into_bytes()
}

pub fn xz(data: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// The text of a Release file over these files, with `more` lines.
pub fn release_text(suite: &str, files: &[(&str, &[u8])], more: &str) -> String {
    let date = format_epoch_secs(now_epoch_secs() - 3600);
    let mut text = format!(
        "Origin: Test\nSuite: {suite}\nCodename: {suite}\nDate: {date}\nArchitectures: amd64\nComponents: main\n{more}SHA256:\n"
    );
    for (path, data) in files {
        text += &format!(" {} {} {path}\n", Sha256Digest::of(data), data.len());
    }
    text
}

/// Puts a suite with this `Packages` text on `server`, signed by `key`.
pub fn publish(server: &Server, base: &str, suite: &str, packages: &str, key: &SignedSecretKey) {
    let packed = xz(packages.as_bytes());
    let (plain_name, packed_name) = (
        "main/binary-amd64/Packages",
        "main/binary-amd64/Packages.xz",
    );
    let files = [
        (plain_name, packages.as_bytes()),
        (packed_name, packed.as_slice()),
    ];
    let text = release_text(suite, &files, "Acquire-By-Hash: yes\n");
    let by_hash = format!(
        "{base}/dists/{suite}/main/binary-amd64/by-hash/SHA256/{}",
        Sha256Digest::of(&packed)
    );
    server.put(&by_hash, Answer::Body(packed));
    server.put(
        &format!("{base}/dists/{suite}/InRelease"),
        Answer::Body(keys::sign(&text, &[key]).into_bytes()),
    );
}
