//! From a signed archive on a local server to a lock and its files, and every forgery on the way.

mod support;

use gasthaus_debian::fetch::{FetchError, FetchOptions, Fetcher, NoProgress, Wanted};
use gasthaus_debian::lock::{Lock, LockedRecipe};
use gasthaus_debian::mirror::{Mirrors, Place};
use gasthaus_debian::release::{Keyring, ReleaseError};
use gasthaus_debian::resolve::{PackageSet, Request, ResolveError, SuiteRequest, resolve};
use support::archive::{self, stanza};
use support::server::{Answer, Server};
use support::{keys, now_epoch_secs};

struct Lab {
    server: Server,
    cache: tempfile::TempDir,
    key: pgp::composed::SignedSecretKey,
}

impl Lab {
    fn new() -> Self {
        let lab = Self {
            server: Server::start(),
            cache: tempfile::tempdir().unwrap(),
            key: keys::generate(1),
        };
        let main = stanza("aa", "1", "Essential: yes\nPre-Depends: bb")
            + &stanza("bb", "1", "")
            + &stanza("cc", "1", "Depends: bb");
        archive::publish(&lab.server, "debian", "trixie", &main, &lab.key);
        archive::publish(
            &lab.server,
            "debian-security",
            "trixie-security",
            &stanza("bb", "1+deb13u1", ""),
            &lab.key,
        );
        for (base, name, version) in [
            ("debian", "aa", "1"),
            ("debian", "cc", "1"),
            ("debian-security", "bb", "1+deb13u1"),
        ] {
            let path = format!("{base}/{}", archive::deb_path(name, version));
            lab.server
                .put(&path, Answer::Body(archive::deb_body(name, version)));
        }
        lab
    }

    fn mirrors(&self) -> Mirrors {
        Mirrors {
            archive: format!("{}/debian", self.server.base),
            security: format!("{}/debian-security", self.server.base),
            archive_named_by: "the test".into(),
            security_named_by: "the test".into(),
        }
    }

    fn fetcher(&self) -> Fetcher {
        Fetcher::new(
            self.cache.path(),
            FetchOptions {
                attempts: 1,
                ..FetchOptions::default()
            },
        )
        .unwrap()
    }

    fn resolve(&self, request: &Request) -> Result<LockedRecipe, ResolveError> {
        let keyring = Keyring::from_certificates(vec![keys::public(&self.key)]);
        resolve(
            request,
            &self.mirrors(),
            &self.fetcher(),
            &keyring,
            now_epoch_secs(),
            &NoProgress,
        )
    }

    /// The address, without the server's, of the package list of trixie.
    fn list_path(&self) -> String {
        self.resolve(&request("cc")).unwrap();
        self.server
            .requests()
            .into_iter()
            .find(|path| path.starts_with("debian/") && path.contains("by-hash"))
            .unwrap()
    }
}

fn request(package: &str) -> Request {
    let suite = |suite: &str, place| SuiteRequest {
        suite: suite.into(),
        place,
        components: vec!["main".into()],
    };
    let set = |name: &str, essential| PackageSet {
        name: name.into(),
        install: vec![package.into()],
        essential,
        ..PackageSet::default()
    };
    Request {
        architecture: "amd64".into(),
        suites: vec![
            suite("trixie", Place::Archive),
            suite("trixie-security", Place::Security),
        ],
        sets: vec![set("dom0", true), set("tools", false)],
        inputs: Vec::new(),
    }
}

#[test]
fn a_request_becomes_a_lock_and_files() {
    let lab = Lab::new();
    let request = request("cc");
    let recipe = lab.resolve(&request).unwrap();
    let names = |set: &str| {
        recipe
            .set(set)
            .iter()
            .map(|p| format!("{} {}", p.name, p.version))
            .collect::<Vec<_>>()
    };
    assert_eq!(names("dom0"), ["aa 1", "bb 1+deb13u1", "cc 1"]);
    assert_eq!(names("tools"), ["bb 1+deb13u1", "cc 1"]);
    // A file of a package needs nothing that the package depends on; and that is another wish.
    let mut alone = request.clone();
    alone.sets[1].alone = true;
    let taken = lab.resolve(&alone).unwrap();
    assert_eq!(taken.set("tools").len(), 1);
    assert_eq!(taken.set("tools")[0].name, "cc");
    assert!(!recipe.matches(&alone.digest()));
    alone.sets[1].install = vec!["no-such".into()];
    let error = lab.resolve(&alone).unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    assert!(
        cause.is_some_and(|cause| cause.contains("`no-such` is in none of the suites")),
        "{error}"
    );
    assert!(recipe.set("dom0")[0].essential && recipe.set("dom0")[1].pre_depended);
    assert!(recipe.matches(&request.digest()));
    assert_eq!(
        recipe.epoch_secs,
        recipe
            .archives
            .iter()
            .map(|a| a.release_epoch_secs)
            .max()
            .unwrap()
    );
    let lock = Lock {
        recipes: [("demo".to_owned(), recipe.clone())].into(),
    };
    let text = lock.to_text();
    assert_eq!(Lock::parse(&text, "x".as_ref()).unwrap(), lock);
    assert!(!text.contains("127.0.0.1"), "no mirror in the lock");
    let wanted: Vec<Wanted> = recipe
        .distinct_packages(&[])
        .into_iter()
        .map(|p| Wanted::deb(&lab.mirrors(), &recipe, p))
        .collect();
    let paths = lab.fetcher().fetch_all(&wanted, &NoProgress).unwrap();
    assert_eq!(
        std::fs::read(&paths[1]).unwrap(),
        archive::deb_body("bb", "1+deb13u1")
    );
    assert_eq!(
        lab.resolve(&request).unwrap(),
        recipe,
        "again gives the same"
    );
}

#[test]
fn the_digest_of_a_request_knows_what_matters() {
    let plain = request("cc");
    let mut turned = plain.clone();
    turned.sets.reverse();
    assert_eq!(plain.digest(), turned.digest());
    let changes: [fn(&mut Request); 6] = [
        |r| r.architecture = "arm64".into(),
        |r| r.suites.truncate(1),
        |r| r.suites[0].components.push("contrib".into()),
        |r| r.sets[0].install.push("dd".into()),
        |r| r.sets[0].exclude.push("cc".into()),
        |r| r.sets[1].recommends = true,
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let mut changed = plain.clone();
        change(&mut changed);
        assert_ne!(plain.digest(), changed.digest(), "change {n}");
    }
}

#[test]
fn a_tampered_release_is_refused() {
    let lab = Lab::new();
    let text = archive::release_text("trixie", &[], "");
    let signed = keys::sign(&text, &[&lab.key]).replace("Test", "Best");
    lab.server.put(
        "debian/dists/trixie/InRelease",
        Answer::Body(signed.into_bytes()),
    );
    let error = lab.resolve(&request("cc")).unwrap_err();
    assert!(
        matches!(error, ResolveError::Release(ReleaseError::Tampered { .. })),
        "{error}"
    );
}

#[test]
fn a_tampered_list_is_refused() {
    let lab = Lab::new();
    let path = lab.list_path();
    let fresh = Lab::new();
    let mut forged = archive::xz(stanza("aa", "9", "").as_bytes());
    forged.resize(4000, 0);
    fresh.server.put(&path, Answer::Body(forged));
    let error = fresh.resolve(&request("cc")).unwrap_err();
    assert!(
        matches!(&error, ResolveError::TamperedIndex { suite, .. } if suite == "trixie"),
        "{error:?}"
    );
    assert!(error.to_string().contains("tampered") && error.hint().is_some());
}

#[test]
fn a_tampered_package_is_refused() {
    let lab = Lab::new();
    let recipe = lab.resolve(&request("cc")).unwrap();
    let wanted = Wanted::deb(&lab.mirrors(), &recipe, &recipe.set("dom0")[0]);
    let mut body = archive::deb_body("aa", "1");
    body[0] ^= 1;
    lab.server.put(
        &format!("debian/{}", archive::deb_path("aa", "1")),
        Answer::Body(body),
    );
    let error = lab.fetcher().fetch_all(&[wanted], &NoProgress).unwrap_err();
    assert!(
        matches!(&error, FetchError::WrongDigest { label, .. } if label == "aa"),
        "{error}"
    );
}

#[test]
fn what_is_not_there_is_named() {
    let lab = Lab::new();
    let mut odd = request("cc");
    odd.suites[0].components = vec!["nonfree".into()];
    let error = lab.resolve(&odd).unwrap_err();
    assert!(
        error.to_string().contains("`nonfree`") && error.to_string().contains("it has: main"),
        "{error}"
    );
    let error = lab.resolve(&request("zz")).unwrap_err();
    let ResolveError::Solve { set, source } = &error else {
        panic!("{error}")
    };
    assert!(
        set == "dom0" && source.to_string().contains("`zz`"),
        "{source}"
    );
    lab.server
        .put("debian/dists/trixie/InRelease", Answer::Status(404));
    let error = lab.resolve(&request("cc")).unwrap_err();
    let ResolveError::Fetch { source, .. } = &error else {
        panic!("{error}")
    };
    assert!(matches!(**source, FetchError::NotFound { .. }), "{source}");
}
