//! Lists of digests that publishers sign: believed with a good signature by the key that was given, else told why not.

mod support;

use gasthaus_debian::Sha256Digest;
use gasthaus_debian::fetch::{FetchError, FetchOptions, Fetcher, NoProgress};
use gasthaus_debian::release::{ListError, verify_list};
use pgp::ser::Serialize as _;
use sha2::{Digest as _, Sha512};
use support::keys::{self, Manner};
use support::now_epoch_secs;
use support::server::{Answer, Server};

const LIST: &str = "SHA256 (x.img) = 00\n";

fn armor(key: &pgp::composed::SignedSecretKey) -> String {
    keys::public(key)
        .to_armored_string(Default::default())
        .unwrap()
}

fn check(list: &str, signature: Option<&[u8]>, key: &str) -> Result<String, ListError> {
    let text = verify_list(list.as_bytes(), signature, key, now_epoch_secs());
    text.map(|text| String::from_utf8(text).unwrap())
}

#[test]
fn a_list_is_believed_with_a_signature_by_its_key() {
    let (key, other) = (keys::generate(1), keys::generate(2));
    let armored = armor(&key);
    let clear = keys::sign(LIST, &[&other, &key]);
    assert_eq!(check(&clear, None, &armored).unwrap().trim(), LIST.trim());
    let detached = keys::detached(LIST, &key, &Manner::default());
    let in_armor = detached.to_armored_bytes(Default::default()).unwrap();
    for signature in [&detached.to_bytes().unwrap(), &in_armor] {
        assert_eq!(check(LIST, Some(signature), &armored).unwrap(), LIST);
    }
}

#[test]
fn each_reason_for_disbelief_is_told() {
    let (key, other) = (keys::generate(1), keys::generate(2));
    let armored = armor(&key);
    let fingerprint =
        gasthaus_debian::release::Keyring::from_certificates(vec![keys::public(&key)])
            .fingerprints()
            .remove(0);
    let signed = |manner: &Manner| keys::detached(LIST, &key, manner).to_bytes().unwrap();
    let good = signed(&Manner::default());

    let error = check("SHA256 (x.img) = 01\n", Some(&good), &armored).unwrap_err();
    assert_eq!(
        error,
        ListError::Tampered {
            key: fingerprint.clone()
        }
    );
    let by_other = keys::detached(LIST, &other, &Manner::default())
        .to_bytes()
        .unwrap();
    let error = check(LIST, Some(&by_other), &armored).unwrap_err();
    assert!(
        matches!(&error, ListError::OtherKey { expected, found } if *expected == fingerprint && found.len() == 40),
        "{error}"
    );
    let old = Manner {
        created_epoch_secs: now_epoch_secs() - 200_000,
        lifetime_secs: Some(3600),
        ..Manner::default()
    };
    let error = check(LIST, Some(&signed(&old)), &armored).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("made a signature that has expired"),
        "{error}"
    );
    let revoked = keys::revoked(&key)
        .to_armored_string(Default::default())
        .unwrap();
    let error = check(LIST, Some(&good), &revoked).unwrap_err();
    assert!(error.to_string().ends_with("has been revoked"), "{error}");

    for (signature, words) in [
        (&b""[..], "it is not signed as it should be"),
        (b"<html>404</html>", "it is not signed as it should be"),
        (&good[..good.len() - 7], "it is not signed as it should be"),
        (
            b"-----BEGIN PGP SIGNATURE-----\n",
            "it is not signed as it should be",
        ),
    ] {
        let error = check(LIST, Some(signature), &armored).unwrap_err();
        assert!(error.to_string().starts_with(words), "{error}");
    }
    let error = check(LIST, None, &armored).unwrap_err();
    assert!(
        error.to_string().contains("there is no signature"),
        "{error}"
    );
    let around = format!("SHA256 (x.img) = 02\n{}", keys::sign(LIST, &[&key]));
    let error = check(&around, None, &armored).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("something before the signed text"),
        "{error}"
    );
    for bad in [
        "",
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n-----END PGP PUBLIC KEY BLOCK-----\n",
    ] {
        let error = check(LIST, Some(&good), bad).unwrap_err();
        assert!(matches!(error, ListError::Key { .. }), "{error}");
    }
}

#[test]
fn a_file_is_had_by_its_sha512() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let options = |offline| FetchOptions {
        offline,
        attempts: 2,
        first_wait: std::time::Duration::from_millis(1),
        ..FetchOptions::default()
    };
    let fetcher = Fetcher::new(dir.path(), options(false)).unwrap();
    let body = vec![7; 100_000];
    let sha512: [u8; 64] = Sha512::digest(&body).into();
    let url = format!("{}/x.img", server.base);
    let fetch = |fetcher: &Fetcher, limit| {
        fetcher.fetch_by_sha512(&url, &sha512, limit, "x.img", &NoProgress)
    };
    server.put("x.img", Answer::Body(vec![8; 100_000]));
    let error = fetch(&fetcher, 1 << 20).unwrap_err();
    assert!(matches!(error, FetchError::WrongSha512 { .. }), "{error}");
    server.put("x.img", Answer::Body(body.clone()));
    let error = fetch(&fetcher, 1000).unwrap_err();
    assert!(matches!(error, FetchError::TooLong { .. }), "{error}");
    assert!(!dir.path().join("inputs").exists());
    server.put("x.img", Answer::StatusFirst(503, 3, body.clone()));
    let expected = (Sha256Digest::of(&body), 100_000);
    assert_eq!(fetch(&fetcher, 1 << 20).unwrap(), expected);
    let offline = Fetcher::new(dir.path(), options(true)).unwrap();
    assert_eq!(fetch(&offline, 1 << 20).unwrap(), expected);
    // A note beside a file that is damaged says nothing.
    std::fs::write(dir.path().join("inputs").join(expected.0.to_string()), "x").unwrap();
    let error = fetch(&offline, 1 << 20).unwrap_err();
    assert!(matches!(error, FetchError::Offline { .. }), "{error}");
}
