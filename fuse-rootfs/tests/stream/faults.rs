//! Faults of the network and of mirrors: the bytes come in the end, in time, or the reader is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fuse_rootfs::stream::error::ErrorKind;

use crate::server::{Fault, Server};
use crate::store::{Image, Store, content, usual_images, usual_profile};
use crate::{compare, config, open, patient};

struct Lab {
    store: Store,
    images: Vec<Image>,
    server: Server,
}

fn lab() -> Lab {
    let mut store = Store::new();
    let images = vec![
        Image {
            name: "base",
            bytes: content(11, 6 << 20),
            stacked: true,
        },
        Image {
            name: "site",
            bytes: content(12, 100 * 1024),
            stacked: true,
        },
    ];
    let hot: Vec<_> = (0..60).map(|at| (0, 8 + at * 20, 6)).collect();
    store.publish("demo", "v1", &images, &hot);
    let server = Server::new(store.path());
    Lab {
        store,
        images,
        server,
    }
}

/// Reads everything while `fault` is met by every `skip`-th answer and more; the bytes must be right.
fn survives(what: &str, limit_secs: u64, make: impl Fn() -> Fault) -> Lab {
    let lab = lab();
    for of in ["/c/", "/p/", "/b/", "/m/"] {
        for skip in [0, 1, 3, 7, 12] {
            lab.server.fault_later(of, skip, 1, make());
        }
    }
    let began = Instant::now();
    let image = open(&config(&lab.store, &[lab.server.url()])).unwrap();
    for (layer, expected) in lab.images.iter().enumerate() {
        compare(&image, layer, &expected.bytes);
    }
    assert!(
        began.elapsed() < Duration::from_secs(limit_secs),
        "{what}: {:?}",
        began.elapsed()
    );
    lab
}

#[test]
fn resets() {
    survives("reset at once", 20, || Fault::Reset(0));
    survives("reset inside", 20, || Fault::Reset(700));
}

#[test]
fn bursts_of_5xx() {
    survives("503", 20, || Fault::Status(503));
    survives("500", 20, || Fault::Status(500));
    survives("429", 20, || Fault::Status(429));
}

#[test]
fn stalls() {
    let lab = survives("silent from the start", 30, || Fault::Stall(0));
    drop(lab);
    survives("silent inside", 30, || Fault::Stall(900));
}

#[test]
fn late_answers() {
    survives("late", 30, || Fault::Late(Duration::from_millis(900)));
}

#[test]
fn corrupted_bytes() {
    survives("first bytes", 30, || Fault::Corrupt(3));
    survives("inside", 30, || Fault::Corrupt(1000));
}

#[test]
fn wrong_lengths() {
    survives("announces more", 30, || Fault::WrongLength(5));
    survives("announces less", 30, || Fault::WrongLength(-5));
    survives("cut chunked", 30, || Fault::CutChunked);
    survives("no length", 30, || Fault::NoLength);
}

#[test]
fn odd_servers() {
    survives("packs", 30, || Fault::Packed);
    survives("no ranges", 30, || Fault::NoRanges);
    survives("wrong range", 30, || Fault::WrongRange);
    survives("somewhere else for ever", 30, || {
        Fault::Redirect("/m/loop".into())
    });
    survives("redirect to nothing", 30, || {
        Fault::Redirect("/nothing".into())
    });
}

#[test]
fn who_gives_wrong_ranges_is_asked_for_the_whole() {
    let lab = lab();
    lab.server.fault("/c/", 1, Fault::Reset(64));
    lab.server.fault("/c/", u32::MAX, Fault::WrongRange);
    let image = open(&config(&lab.store, &[lab.server.url()])).unwrap();
    compare(&image, 1, &lab.images[1].bytes);
    compare(&image, 0, &lab.images[0].bytes);
}

#[test]
fn an_answer_may_follow_another() {
    let lab = lab();
    lab.server.fault("/", u32::MAX, Fault::EarlyHints);
    let image = open(&patient(&lab.store, &[lab.server.url()])).unwrap();
    compare(&image, 0, &lab.images[0].bytes);
    let errors = &image.fetcher.mirrors.get(0).counters.errors;
    assert_eq!(
        errors[ErrorKind::Broken as usize].load(Ordering::Relaxed),
        0
    );
}

#[test]
fn a_log_in_is_decoded_sent_with_each_request_and_shown_to_nobody() {
    let lab = lab();
    let url = |login: &str| {
        lab.server
            .url()
            .replace("http://", &format!("http://{login}"))
    };
    let image = open(&config(&lab.store, &[url("me:p%40s%3As@")])).unwrap();
    compare(&image, 1, &lab.images[1].bytes);
    // `me:p@s:s`
    assert!(
        lab.server
            .logins()
            .iter()
            .all(|login| login == "Basic bWU6cEBzOnM=")
    );
    assert_eq!(image.fetcher.mirrors.get(0).url, lab.server.url());
    // A redirect on the same host takes it along, to another host not.
    let elsewhere = Server::new(lab.store.path());
    lab.server
        .fault("/head", 1, Fault::Redirect("/index.manifest".into()));
    let mut named = config(&lab.store, &[url("me:p%40s%3As@")]);
    named.policy.insist = false;
    assert!(open(&named).is_err(), "a manifest is no head");
    assert!(
        lab.server
            .logins()
            .iter()
            .all(|login| login == "Basic bWU6cEBzOnM=")
    );
    let away = elsewhere.url().replace("127.0.0.1", "localhost");
    lab.server
        .fault("/head", 1, Fault::Redirect(format!("{away}head")));
    open(&named).unwrap();
    assert!(elsewhere.logins().iter().all(String::is_empty));
}

#[test]
fn without_insisting_an_answer_that_is_no_head_ends_the_start() {
    for (fault, says) in [
        (Fault::Status(404), "HTTP 404"),
        (Fault::Status(401), "HTTP 401"),
        (Fault::Packed, "packed the body as `gzip`"),
        (Fault::Redirect("/head".into()), "redirects"),
    ] {
        let lab = lab();
        lab.server.fault("/head", u32::MAX, fault);
        let mut config = patient(&lab.store, &[lab.server.url()]);
        config.policy.insist = false;
        let error = open(&config).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let lab = lab();
    lab.server.fault("/head", 2, Fault::Status(503));
    let mut config = config(&lab.store, &[lab.server.url()]);
    config.policy.insist = false;
    open(&config).unwrap();
    config.urls = vec!["/nowhere/at-all".into()];
    let error = open(&config).unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");
}

#[test]
fn a_loop_of_redirects_is_told() {
    let lab = lab();
    lab.server
        .fault("/head", u32::MAX, Fault::Redirect("/head".into()));
    let mut config = config(&lab.store, &[lab.server.url()]);
    config.policy.give_up = Duration::from_secs(1);
    let error = open(&config).unwrap_err().to_string();
    assert!(error.contains("redirects"), "{error}");
    assert!(lab.server.requests("/head") < 60, "bounded");
}

#[test]
fn plain_http_goes_through_a_proxy_as_proxies_want_it() {
    let lab = lab();
    let proxy = Server::new(lab.store.path());
    let mut config = config(&lab.store, &["http://store.invalid/x/".into()]);
    config.proxy = Some(format!("http://user:secret@{}", proxy.address));
    std::os::unix::fs::symlink(".", lab.store.path().join("x")).unwrap();
    let image = open(&config).unwrap();
    compare(&image, 0, &lab.images[0].bytes);
    let log = proxy.log();
    assert!(
        log.iter()
            .all(|line| line.starts_with("http://store.invalid/x/")),
        "{log:?}"
    );
    assert!(lab.server.log().is_empty());
}

#[test]
fn a_dead_proxy_is_named_not_the_mirror_alone() {
    let lab = lab();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    for scheme in ["http", "https"] {
        let mut config = config(&lab.store, &[format!("{scheme}://127.0.0.1:9/x/")]);
        config.proxy = Some(format!("http://user:secret@{address}"));
        config.policy.give_up = Duration::from_millis(300);
        let error = open(&config).unwrap_err().to_string();
        let named = format!("no connection: by the proxy `http://{address}`: ");
        assert!(error.contains(&named), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn redirects_are_followed_and_remembered() {
    let lab = lab();
    let front = Server::new(lab.store.path());
    // A redirect needs the full path; so the front sends only the head away, as a CDN's front door does.
    front.fault(
        "/head",
        1,
        Fault::Redirect(format!("{}head", lab.server.url())),
    );
    let image = open(&config(&lab.store, &[front.url()])).unwrap();
    compare(&image, 0, &lab.images[0].bytes);
    assert_eq!(
        front.log().len(),
        2,
        "head and manifest were asked for at once, all else went straight to the aim: {:?}",
        front.log()
    );
}

#[test]
fn partial_bodies_are_continued_not_begun_again() {
    let lab = lab();
    let bundle = lab.server.root_bundle();
    lab.server.fault(&bundle, 1, Fault::Reset(200_000));
    let image = open(&config(&lab.store, &[lab.server.url()])).unwrap();
    crate::wait_until("the bundles", 20, || image.play.ended());
    let asked: Vec<_> = lab
        .server
        .log()
        .into_iter()
        .filter(|line| line.contains(&bundle))
        .collect();
    assert!(asked.len() >= 2 && asked[1].contains("bytes="), "{asked:?}");
    let from: u64 = asked[1]
        .split("bytes=")
        .nth(1)
        .unwrap()
        .split('-')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(from > 100_000, "{asked:?}");
    compare(&image, 0, &lab.images[0].bytes);
}

#[test]
fn a_server_that_dies_and_comes_back() {
    let Lab {
        store,
        images,
        mut server,
    } = lab();
    let image = open(&config(&store, &[server.url()])).unwrap();
    let got = image.read(0, 0, 65_536).unwrap();
    assert!(got == images[0].bytes[..65_536]);
    server.kill();
    let reader = {
        let image = image.clone();
        std::thread::spawn(move || image.read(0, 5 << 20, 100_000).unwrap())
    };
    std::thread::sleep(Duration::from_secs(3));
    assert!(
        !reader.is_finished(),
        "a dead network stalls reads, it does not fail them"
    );
    server.revive();
    let back = Instant::now();
    let got = reader.join().unwrap();
    assert!(
        back.elapsed() < Duration::from_secs(3),
        "{:?}",
        back.elapsed()
    );
    assert!(got == images[0].bytes[5 << 20..(5 << 20) + 100_000]);
    compare(&image, 0, &images[0].bytes);
}

#[test]
fn eio_comes_after_the_written_time_and_names_the_cause() {
    let Lab {
        store,
        images: _,
        mut server,
    } = lab();
    let mut config = config(&store, &[server.url()]);
    config.policy.give_up = Duration::from_secs(2);
    config.profile = None;
    let image = open(&config).unwrap();
    server.kill();
    let began = Instant::now();
    let error = image.read(0, 5 << 20, 4096).unwrap_err().to_string();
    let took = began.elapsed();
    assert!(
        (Duration::from_millis(1800)..Duration::from_secs(6)).contains(&took),
        "{took:?}"
    );
    assert!(
        error.contains("no connection") || error.contains("broke"),
        "{error}"
    );
    assert!(error.contains(&server.url()), "{error}");
    // And it is no verdict for ever.
    server.revive();
    assert!(image.read(0, 5 << 20, 4096).is_ok());
}

fn two() -> (Lab, Server) {
    let lab = lab();
    let second = Server::new(lab.store.path());
    (lab, second)
}

#[test]
fn one_of_two_mirrors_is_dead() {
    let (lab, mut dead) = two();
    dead.kill();
    let began = Instant::now();
    let image = open(&config(&lab.store, &[dead.url(), lab.server.url()])).unwrap();
    compare(&image, 0, &lab.images[0].bytes);
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn one_of_two_mirrors_dies_silently_and_the_other_takes_over_within_a_second() {
    let (lab, second) = two();
    let mut config = config(&lab.store, &[second.url(), lab.server.url()]);
    config.policy.stall = Duration::from_secs(2);
    config.policy.hedge_after = Duration::from_millis(400);
    config.profile = None;
    let image = open(&config).unwrap();
    for server in [&second, &lab.server] {
        server.fault("/c/", 0, Fault::Stall(0));
    }
    let mut worst = Duration::ZERO;
    // Whichever is preferred goes silent.
    let slow = &second;
    slow.fault("/c/", u32::MAX, Fault::Stall(0));
    slow.fault("/p/", u32::MAX, Fault::Stall(0));
    for at in (0..6 << 20).step_by(256 * 1024) {
        let began = Instant::now();
        let got = image.read(0, at as u64, 4096).unwrap();
        assert!(got == lab.images[0].bytes[at..at + 4096]);
        worst = worst.max(began.elapsed());
    }
    assert!(
        worst < Duration::from_millis(1900),
        "page and chunk, each hedged after 0.4 s: {worst:?}"
    );
}

#[test]
fn one_of_two_mirrors_crawls() {
    let (lab, slow) = two();
    slow.fault("/c/", u32::MAX, Fault::Drip(Duration::from_millis(100)));
    slow.fault("/p/", u32::MAX, Fault::Drip(Duration::from_millis(100)));
    slow.fault("/b/", u32::MAX, Fault::Drip(Duration::from_millis(100)));
    let began = Instant::now();
    let image = open(&config(&lab.store, &[slow.url(), lab.server.url()])).unwrap();
    compare(&image, 0, &lab.images[0].bytes);
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn one_of_two_mirrors_lies_and_is_put_in_quarantine() {
    let (lab, liar) = two();
    for kind in ["/c/", "/p/", "/b/", "/m/"] {
        liar.fault(kind, u32::MAX, Fault::Corrupt(1001));
    }
    let image = open(&config(&lab.store, &[liar.url(), lab.server.url()])).unwrap();
    for (layer, expected) in lab.images.iter().enumerate() {
        compare(&image, layer, &expected.bytes);
    }
    let lies = image.fetcher.mirrors.get(0).counters.errors[ErrorKind::Bad as usize]
        .load(Ordering::Relaxed);
    let right = image
        .fetcher
        .mirrors
        .get(1)
        .counters
        .requests
        .load(Ordering::Relaxed);
    // What is under way when the first lie is seen are lies, too: up to a dozen where the machine has other things to do.
    assert!(
        lies * 4 < right && right > 20,
        "{lies} lies, {right} requests to the honest one"
    );
}

#[test]
fn a_mirror_that_lacks_objects_is_no_liar() {
    let (lab, behind) = two();
    behind.fault("/c/", u32::MAX, Fault::Status(404));
    let image = open(&config(&lab.store, &[behind.url(), lab.server.url()])).unwrap();
    compare(&image, 0, &lab.images[0].bytes);
    assert!(image.fetcher.mirrors.snapshot()[0].state != "quarantined");
}

#[test]
fn an_old_mirror_does_not_roll_the_system_back() {
    let mut lab = lab();
    let old = tempfile::tempdir().unwrap();
    std::fs::copy(lab.store.path().join("head"), old.path().join("head")).unwrap();
    let behind = Server::new(old.path());
    lab.store.publish("demo", "v2", &lab.images, &[]);
    // The newest head wins though it comes a little later.
    lab.server
        .fault("/head", 1, Fault::Late(Duration::from_millis(100)));
    let image = open(&patient(&lab.store, &[behind.url(), lab.server.url()])).unwrap();
    assert_eq!(image.manifest.version.as_str(), "v2");
    compare(&image, 0, &lab.images[0].bytes);
}

#[test]
fn a_missing_bundle_is_done_without() {
    let lab = lab();
    lab.server.fault("/b/", u32::MAX, Fault::Status(404));
    let image = open(&config(&lab.store, &[lab.server.url()])).unwrap();
    compare(&image, 0, &lab.images[0].bytes);
    crate::wait_until("giving up", 10, || image.play.ended());
}

#[test]
fn readers_of_what_is_there_never_wait_for_a_dead_network() {
    let mut store = Store::new();
    let images = usual_images();
    store.publish("demo", "v1", &images, &usual_profile());
    let mut server = Server::new(store.path());
    let image = open(&config(&store, &[server.url()])).unwrap();
    crate::wait_until("the bundles", 20, || image.play.ended());
    server.kill();
    let stuck: Vec<_> = (0..40)
        .map(|at| {
            let image: Arc<_> = image.clone();
            std::thread::spawn(move || image.read(0, (10 << 20) + at * 300_000, 4096))
        })
        .collect();
    let began = Instant::now();
    assert!(image.read(0, 16 * 4096, 4096).unwrap() == images[0].bytes[16 * 4096..17 * 4096]);
    assert!(began.elapsed() < Duration::from_millis(200));
    server.revive();
    stuck
        .into_iter()
        .for_each(|thread| drop(thread.join().unwrap().unwrap()));
}
