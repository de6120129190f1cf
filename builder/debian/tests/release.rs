//! A Release file is believed only with a good signature: every other case has an error of its own.

mod support;

use gasthaus_debian::calendar::format_epoch_secs;
use gasthaus_debian::release::{Keyring, ReleaseError, verify};
use pgp::crypto::hash::HashAlgorithm;
use support::keys::{self, Manner};
use support::{archive, now_epoch_secs};

fn text() -> String {
    archive::release_text("trixie", &[("main/binary-amd64/Packages.xz", b"data")], "")
}

fn ring(certificates: Vec<pgp::composed::SignedPublicKey>) -> Keyring {
    Keyring::from_certificates(certificates)
}

fn check(
    inrelease: &str,
    keyring: &Keyring,
) -> Result<gasthaus_debian::release::Release, ReleaseError> {
    verify(inrelease.as_bytes(), keyring, "trixie", now_epoch_secs())
}

#[test]
fn good_signatures_are_believed() {
    let (key, stranger) = (keys::generate(1), keys::generate(2));
    let keyring = ring(vec![keys::public(&key)]);
    let release = check(&keys::sign(&text(), &[&key]), &keyring).unwrap();
    assert_eq!((release.suite.as_str(), release.files.len()), ("trixie", 1));
    assert_eq!(release.files["main/binary-amd64/Packages.xz"].bytes, 4);
    check(&keys::sign(&text(), &[&stranger, &key]), &keyring).expect("one known key is enough");
    check(&keys::sign_by_subkey(&text(), &key), &keyring).expect("a bound subkey may sign");
    let dashed = text().replace("Origin: Test", "Origin: Test\nLabel: x\n-Dashed: - y");
    check(&keys::sign(&dashed, &[&key]), &keyring).expect("escaped dashes come back");
    let crlf = keys::sign(&text(), &[&key]).replace('\n', "\r\n");
    check(&crlf, &keyring).expect("line ends do not matter");
}

#[test]
fn tampering_is_named() {
    let (key, other) = (keys::generate(1), keys::generate(2));
    let good = keys::sign(&text(), &[&key]);
    let bent = good.replace("Origin: Test", "Origin: Tost");
    let error = check(&bent, &ring(vec![keys::public(&key)])).unwrap_err();
    let ReleaseError::Tampered { key: named, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*named, keys::public(&key).primary_key_fingerprint());
    // A bad signature by a known key is an alarm even beside a good one: that of another text, here.
    let spliced = splice(
        &good,
        &keys::sign(&text().replace("Test", "Tast"), &[&other]),
    );
    let error = check(
        &spliced,
        &ring(vec![keys::public(&key), keys::public(&other)]),
    )
    .unwrap_err();
    assert!(matches!(error, ReleaseError::Tampered { .. }), "{error}");
}

/// The text of `first` under the signature of `second`.
fn splice(first: &str, second: &str) -> String {
    let head = "-----BEGIN PGP SIGNATURE-----";
    format!(
        "{}{}",
        &first[..first.find(head).unwrap()],
        &second[second.find(head).unwrap()..]
    )
}

#[test]
fn unknown_keys_are_named() {
    let (key, stranger) = (keys::generate(1), keys::generate(2));
    let error = check(
        &keys::sign(&text(), &[&stranger]),
        &ring(vec![keys::public(&key)]),
    )
    .unwrap_err();
    let fingerprint = keys::public(&stranger).primary_key_fingerprint();
    assert!(
        matches!(error, ReleaseError::UnknownKey { .. })
            && error.to_string().contains(&fingerprint),
        "{error}"
    );
    assert!(error.hint().is_some());
}

trait Fingerprint {
    fn primary_key_fingerprint(&self) -> String;
}

impl Fingerprint for pgp::composed::SignedPublicKey {
    fn primary_key_fingerprint(&self) -> String {
        pgp::types::KeyDetails::fingerprint(self).to_string()
    }
}

#[test]
fn keys_that_may_not_sign_are_refused() {
    let (key, other, rsa) = (keys::generate(1), keys::generate(2), keys::generate_rsa(3));
    let signed = keys::sign(&text(), &[&key]);
    let signed_rsa = keys::sign(&text(), &[&rsa]);
    let long = u32::MAX;
    let mut adopted = keys::public(&other);
    adopted.public_subkeys = keys::public(&key).public_subkeys;
    let by_subkey = keys::sign_by_subkey(&text(), &key);
    for (certificate, signed, needle) in [
        (keys::revoked(&key), &signed, "has been revoked"),
        (
            keys::self_signed(&key, HashAlgorithm::Sha512, 1000, true),
            &signed,
            "expired on",
        ),
        (
            keys::self_signed(&key, HashAlgorithm::Sha512, long, false),
            &signed,
            "not meant for signing",
        ),
        (
            keys::self_signed(&rsa, HashAlgorithm::Sha1, long, true),
            &signed_rsa,
            "no valid self-signature",
        ),
        (adopted, &by_subkey, "not bound to its certificate"),
    ] {
        let error = check(signed, &ring(vec![certificate])).unwrap_err();
        let unusable = matches!(error, ReleaseError::UnusableKey { .. });
        assert!(
            unusable && error.to_string().contains(needle),
            "{needle}: {error}"
        );
    }
    let fine = keys::self_signed(&key, HashAlgorithm::Sha512, long, true);
    check(&signed, &ring(vec![fine])).expect("the same without the fault is believed");
}

#[test]
fn weak_and_untimely_signatures_are_refused() {
    let key = keys::generate_rsa(1);
    let now = now_epoch_secs();
    let usual = Manner::default;
    for (manner, needle) in [
        (
            Manner {
                hash: HashAlgorithm::Sha1,
                ..usual()
            },
            "no longer safe",
        ),
        (
            Manner {
                created_epoch_secs: now - 1000,
                lifetime_secs: Some(10),
                ..usual()
            },
            "has expired",
        ),
        (
            Manner {
                created_epoch_secs: now + 3 * 86_400,
                ..usual()
            },
            "in the future",
        ),
    ] {
        let signed = keys::sign_like(&text(), &key, &manner);
        let error = check(&signed, &ring(vec![keys::public(&key)])).unwrap_err();
        assert!(error.to_string().contains(needle), "{needle}: {error}");
    }
}

#[test]
fn dates_and_suites_are_checked() {
    let key = keys::generate(1);
    let keyring = ring(vec![keys::public(&key)]);
    let now = now_epoch_secs();
    let with = |line: String| keys::sign(&archive::release_text("trixie", &[], &line), &[&key]);
    check(
        &with(format!("Valid-Until: {}\n", format_epoch_secs(now + 60))),
        &keyring,
    )
    .unwrap();
    let error = check(
        &with(format!("Valid-Until: {}\n", format_epoch_secs(now - 60))),
        &keyring,
    )
    .unwrap_err();
    assert!(matches!(error, ReleaseError::Expired { .. }), "{error}");
    let error = check(&with("Valid-Until: soon\n".into()), &keyring).unwrap_err();
    assert!(matches!(error, ReleaseError::Malformed { .. }), "{error}");
    let error = check(&with("Suite: sid\n".into()), &keyring).unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
    let signed = keys::sign(&text(), &[&key]);
    let error = verify(signed.as_bytes(), &keyring, "sid", now).unwrap_err();
    assert!(matches!(error, ReleaseError::WrongSuite { .. }), "{error}");
    let future = text().replace(
        &format_epoch_secs(now - 3600),
        &format_epoch_secs(now + 5 * 86_400),
    );
    let error = check(&keys::sign(&future, &[&key]), &keyring);
    assert!(
        matches!(error, Err(ReleaseError::FromTheFuture { .. })),
        "{error:?}"
    );
}

#[test]
fn only_the_signed_text_is_used() {
    let key = keys::generate(1);
    let keyring = ring(vec![keys::public(&key)]);
    let good = keys::sign(&text(), &[&key]);
    let evil = "Suite: evil\nDate: Sat, 09 Aug 2025 09:30:00 UTC\n";
    let head = "-----BEGIN PGP SIGNED MESSAGE-----";
    for (case, bytes) in [
        ("before", format!("{evil}\n{good}")),
        ("after", format!("{good}\n{evil}")),
        ("two texts", format!("{good}{good}")),
        (
            "between",
            good.replace(
                "-----BEGIN PGP SIGNATURE",
                "-----BEGIN PGP X-----\n-----BEGIN PGP SIGNATURE",
            ),
        ),
        (
            "headers",
            good.replace("Hash: SHA256", &format!("Hash: SHA256\n{evil}")),
        ),
        ("no end", good.replace("-----END PGP SIGNATURE-----", "")),
        ("head only", format!("{head}\n")),
        (
            "empty signature",
            format!(
                "{head}\n\n{}\n-----BEGIN PGP SIGNATURE-----\n\n-----END PGP SIGNATURE-----\n",
                text()
            ),
        ),
        ("bent armor", good.replacen("\n\n", "\n\n\u{1}", 2)),
    ] {
        assert!(check(&bytes, &keyring).is_err(), "{case}");
    }
    for bytes in [
        text().into_bytes(),
        b"".to_vec(),
        b"<html>sign in here</html>".to_vec(),
    ] {
        let error = verify(&bytes, &keyring, "trixie", now_epoch_secs()).unwrap_err();
        assert!(matches!(error, ReleaseError::Unsigned { .. }), "{error}");
    }
    assert!(verify(&[0xff; 64], &keyring, "trixie", 0).is_err());
    assert!(verify(&vec![b'x'; 9 << 20], &keyring, "trixie", 0).is_err());
}

#[test]
fn debians_own_keys_are_there_and_usable() {
    let fingerprints = gasthaus_debian::release::debian_keyring().fingerprints();
    assert_eq!(fingerprints.len(), 3, "{fingerprints:?}");
}
