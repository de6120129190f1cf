//! Downloads against a server that fails in every way a mirror can.

mod support;

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use gasthaus_debian::Sha256Digest;
use gasthaus_debian::fetch::{
    FetchError, FetchOptions, Fetcher, Kind, NoProgress, Progress, Wanted,
};
use support::server::{Answer, Server};

fn body() -> Vec<u8> {
    (0..300_000_u32).flat_map(|n| n.to_le_bytes()).collect()
}

fn wanted(base: &str, path: &str, body: &[u8]) -> Wanted {
    Wanted {
        kind: Kind::Deb,
        base: base.to_owned(),
        path: path.to_owned(),
        bytes: body.len() as u64,
        sha256: Sha256Digest::of(body),
        label: path.to_owned(),
    }
}

fn options() -> FetchOptions {
    FetchOptions {
        jobs: 3,
        attempts: 3,
        first_wait: Duration::from_millis(5),
        connect_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_millis(400),
        ..FetchOptions::default()
    }
}

fn fetcher(cache: &Path) -> Fetcher {
    Fetcher::new(cache, options()).unwrap()
}

/// What one file answered in this way comes to, in an empty cache.
fn outcome(answer: Answer) -> (Result<(), FetchError>, Vec<String>) {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    server.put("f", answer);
    let one = wanted(&server.base, "f", &body());
    let result = fetcher(cache.path()).fetch_all(std::slice::from_ref(&one), &NoProgress);
    let finished = fs::read_dir(cache.path().join("debs")).map_or(0, |entries| entries.count());
    assert_eq!(
        finished,
        usize::from(result.is_ok()),
        "only verified files are in their place"
    );
    if let Ok(paths) = &result {
        assert_eq!(fs::read(&paths[0]).unwrap(), body());
        assert_eq!(
            fs::read_dir(cache.path().join("tmp")).unwrap().count(),
            0,
            "no part file stays"
        );
    }
    (result.map(drop), server.requests())
}

#[test]
fn good_answers_arrive() {
    for answer in [
        Answer::Body(body()),
        Answer::UntilClose(body()),
        Answer::StatusFirst(503, 2, body()),
        Answer::CutAfter(500_000, body()),
        Answer::CutOnce(500_000, body()),
    ] {
        let (result, requests) = outcome(answer);
        result.unwrap_or_else(|e| panic!("{e}: {requests:?}"));
    }
}

#[test]
fn a_cut_download_is_resumed() {
    let (result, requests) = outcome(Answer::CutOnce(500_000, body()));
    result.unwrap();
    assert_eq!(requests, ["f", "f 500000-"]);
}

#[test]
fn each_fault_has_its_name() {
    let mut wrong = body();
    wrong[77] ^= 1;
    let mut long = body();
    long.push(0);
    let short = body()[..1000].to_vec();
    let check = |answer, test: fn(&FetchError) -> bool, tries: usize| {
        let (result, requests) = outcome(answer);
        let error = result.unwrap_err();
        assert!(test(&error), "{error:?}");
        assert_eq!(requests.len(), tries, "{error}: {requests:?}");
        let needs_no_advice = matches!(error, FetchError::Status { .. });
        assert!(needs_no_advice || error.hint().is_some(), "{error}");
    };
    check(
        Answer::Status(404),
        |e| matches!(e, FetchError::NotFound { status: 404, .. }),
        1,
    );
    check(
        Answer::Status(403),
        |e| matches!(e, FetchError::Status { status: 403, .. }),
        1,
    );
    check(
        Answer::Status(500),
        |e| matches!(e, FetchError::Status { status: 500, .. }),
        3,
    );
    check(
        Answer::Body(wrong),
        |e| matches!(e, FetchError::WrongDigest { .. }),
        1,
    );
    check(
        Answer::Body(short.clone()),
        |e| {
            matches!(
                e,
                FetchError::TooShort {
                    found_bytes: 1000,
                    ..
                }
            )
        },
        1,
    );
    check(
        Answer::UntilClose(short),
        |e| {
            matches!(
                e,
                FetchError::TooShort {
                    found_bytes: 1000,
                    ..
                }
            )
        },
        1,
    );
    check(
        Answer::Body(long.clone()),
        |e| matches!(e, FetchError::TooLong { .. }),
        1,
    );
    check(
        Answer::UntilClose(long),
        |e| matches!(e, FetchError::TooLong { .. }),
        1,
    );
    check(
        Answer::CutAfter(1000, body()),
        |e| {
            matches!(
                e,
                FetchError::Broken {
                    received_bytes: 3000,
                    ..
                }
            )
        },
        3,
    );
    check(
        Answer::StallAfter(1000, body()),
        |e| {
            matches!(
                e,
                FetchError::Stalled {
                    received_bytes: 3000,
                    ..
                }
            )
        },
        3,
    );
    check(
        Answer::Garbage,
        |e| matches!(e, FetchError::Broken { .. }),
        3,
    );
}

#[test]
fn missing_and_dead_hosts_are_told_apart() {
    let cache = tempfile::tempdir().unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for (base, refused) in [
        (format!("http://{closed}"), true),
        ("http://no-such-host.invalid".into(), false),
    ] {
        let error = fetcher(cache.path())
            .fetch_all(&[wanted(&base, "f", b"x")], &NoProgress)
            .unwrap_err();
        let fits = match error {
            FetchError::Refused { .. } => refused,
            FetchError::UnknownHost { .. } => !refused,
            _ => false,
        };
        assert!(fits, "{error:?}");
    }
    let error = fetcher(cache.path())
        .fetch_all(&[wanted("htp:/x", "f", b"x")], &NoProgress)
        .unwrap_err();
    assert!(matches!(error, FetchError::Connect { .. }), "{error:?}");
}

/// Fetches with `there` as what an earlier run left behind.
fn resume(answer: Answer, there: &[u8]) -> Vec<String> {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    server.put("f", answer);
    let one = wanted(&server.base, "f", &body());
    fs::create_dir(cache.path().join("tmp")).unwrap();
    fs::write(cache.path().join(format!("tmp/{}.part", one.sha256)), there).unwrap();
    let sums = Sums::default();
    let paths = fetcher(cache.path())
        .fetch_all(std::slice::from_ref(&one), &sums)
        .unwrap();
    assert_eq!(fs::read(&paths[0]).unwrap(), body());
    let (advanced, withdrawn) = *sums.0.lock().unwrap();
    assert_eq!(advanced - withdrawn, one.bytes, "progress adds up");
    server.requests()
}

#[derive(Default)]
struct Sums(Mutex<(u64, u64)>);

impl Progress for Sums {
    fn advanced(&self, _label: &str, bytes: u64) {
        self.0.lock().unwrap().0 += bytes;
    }
    fn withdrawn(&self, _label: &str, bytes: u64) {
        self.0.lock().unwrap().1 += bytes;
    }
}

#[test]
fn downloads_go_on_where_they_ended() {
    let half = &body()[..600_000];
    let mut bent = half.to_vec();
    bent[5] ^= 1;
    let mut long = body();
    long.extend_from_slice(b"more");
    assert_eq!(resume(Answer::Body(body()), half), ["f 600000-"]);
    assert_eq!(
        resume(Answer::BodyWithoutRanges(body()), half),
        ["f 600000-"],
        "the server begins anew"
    );
    assert_eq!(
        resume(Answer::WrongRange(body()), half),
        ["f 600000-", "f"],
        "another range than asked for"
    );
    assert_eq!(
        resume(Answer::Body(body()), &bent),
        ["f 600000-", "f"],
        "what was there was bad"
    );
    assert_eq!(
        resume(Answer::Body(body()), &long),
        ["f"],
        "too much was there"
    );
    assert!(
        resume(Answer::Body(body()), &body()).is_empty(),
        "all was there"
    );
    let mut bent_all = body();
    bent_all[5] ^= 1;
    assert_eq!(
        resume(Answer::Body(body()), &bent_all),
        ["f"],
        "all was there, and bad"
    );
}

#[test]
fn the_cache_is_used_and_checked() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let bodies: Vec<Vec<u8>> = (0..20_u8).map(|n| vec![n; 10_000 + n as usize]).collect();
    let mut all: Vec<Wanted> = Vec::new();
    for (n, body) in bodies.iter().enumerate() {
        server.put(&format!("p{n}"), Answer::Body(body.clone()));
        all.push(wanted(&server.base, &format!("p{n}"), body));
    }
    all.push(all[3].clone());
    let offline = Fetcher::new(
        cache.path(),
        FetchOptions {
            offline: true,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(offline.missing(&all).len(), 21);
    let error = offline.fetch_all(&all, &NoProgress).unwrap_err();
    assert!(matches!(error, FetchError::Offline { .. }), "{error}");
    let paths = fetcher(cache.path()).fetch_all(&all, &NoProgress).unwrap();
    assert_eq!(
        (server.requests().len(), paths.len()),
        (20, 21),
        "the same file is fetched once"
    );
    paths
        .iter()
        .zip(bodies.iter())
        .for_each(|(path, body)| assert_eq!(&fs::read(path).unwrap(), body));
    assert!(offline.fetch_all(&all, &NoProgress).is_ok() && offline.missing(&all).is_empty());
    fs::write(&paths[7], vec![9; 10_007]).unwrap();
    fetcher(cache.path()).fetch_all(&all, &NoProgress).unwrap();
    assert_eq!(
        fs::read(&paths[7]).unwrap(),
        bodies[7],
        "a damaged file is fetched again"
    );
    assert_eq!(server.requests().len(), 21);
}

#[test]
fn two_share_one_cache() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    server.put("f", Answer::Body(body()));
    let one = [wanted(&server.base, "f", &body())];
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let paths = fetcher(cache.path()).fetch_all(&one, &NoProgress).unwrap();
                assert_eq!(fs::read(&paths[0]).unwrap(), body());
            });
        }
    });
    assert_eq!(
        server.requests().len(),
        1,
        "whoever waits takes what the other fetched"
    );
    assert_eq!(fs::read_dir(cache.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn full_disks_and_bad_caches_are_told_apart() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    server.put("f", Answer::Body(body()));
    let one = wanted(&server.base, "f", &body());
    fs::create_dir(cache.path().join("tmp")).unwrap();
    std::os::unix::fs::symlink(
        "/dev/full",
        cache.path().join(format!("tmp/{}.part", one.sha256)),
    )
    .unwrap();
    let error = fetcher(cache.path())
        .fetch_all(std::slice::from_ref(&one), &NoProgress)
        .unwrap_err();
    assert!(matches!(error, FetchError::DiskFull { .. }), "{error:?}");
    let no_folder = cache.path().join("file");
    fs::write(&no_folder, "").unwrap();
    let error = fetcher(&no_folder)
        .fetch_all(&[one], &NoProgress)
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Cache { .. }) && error.to_string().contains("file"),
        "{error:?}"
    );
}
