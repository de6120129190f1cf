//! Publishers that are killed, and images that change meanwhile.

use super::*;

/// Publishers killed at any moment: the store is always the one before or the one after.
#[test]
fn killed_publishers_leave_a_good_store() {
    let house = House::new();
    house.publish("v0", &[house.image("base.erofs", &base(None))]);
    let mut finished = 0;
    for round in 0..12u64 {
        house.image("base.erofs", &noise(round, 6 << 20));
        publish_and_kill(&house, &format!("v{}", round + 1), 8 * round);
        house.is_good_for_readers();
        finished = house.index().systems[0].versions.len();
    }
    house.publish("last", &[house.image("base.erofs", &base(Some(1)))]);
    house.is_good();
    let left = fs::read_dir(house.path("store")).unwrap();
    let left = left.filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with(".tmp")
    });
    assert_eq!(left.count(), 0, "the next publisher sweeps");
    assert!(finished >= 1);
}

/// The same where there was no store before: nobody takes what is left for one, and the next publisher makes it good.
#[test]
fn a_killed_first_publisher_leaves_no_store_and_nothing_bad_in_the_next() {
    let mut unfinished = 0;
    for round in 0..12u64 {
        let house = House::new();
        let image = house.image("base.erofs", &noise(round, 6 << 20));
        publish_and_kill(&house, "v0", 4 * round);
        let chunks = files_below(&house.path("store/c"));
        if house.path("store/head").exists() {
            house.is_good_for_readers();
        } else if let Some(last) = chunks.last() {
            unfinished += 1;
            // As it is left by who was killed while writing it, or by a loss of power.
            let bytes = fs::read(last).unwrap();
            fs::write(last, &bytes[..bytes.len() / 2]).unwrap();
        }
        house.publish("v0", &[image]);
        house.is_good();
    }
    assert!(unfinished >= 1, "none was killed in the middle");
}

/// All files two folders below `folder`, if it is there.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let listed = |folder: &Path| fs::read_dir(folder).into_iter().flatten();
    listed(folder)
        .flat_map(|entry| listed(&entry.unwrap().path()))
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// Starts a publisher and kills it after `millis`.
fn publish_and_kill(house: &House, version: &str, millis: u64) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "interrupted::publishes_for_the_tests_above",
            "--ignored",
            "--nocapture",
        ])
        .env("GASTHAUS_TEST_HOUSE", house.dir.path())
        .env("GASTHAUS_TEST_VERSION", version)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(millis));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
#[ignore = "is started and killed by the tests above"]
fn publishes_for_the_tests_above() {
    let Some(dir) = std::env::var_os("GASTHAUS_TEST_HOUSE").map(PathBuf::from) else {
        return;
    };
    let key = SigningKey::read(&dir.join("a.key"), || None).unwrap();
    let image = Image {
        name: name("base"),
        path: dir.join("base.erofs"),
        stacked: None,
        fixed_bytes: None,
    };
    let version = std::env::var("GASTHAUS_TEST_VERSION").unwrap();
    let request = request_in(&dir, &version, &[image]);
    publish(&request, &key, &()).unwrap();
}

/// Writes to the image when its layer begins.
struct Meddler<'a>(&'a (dyn Fn() + Sync));

impl publish::Progress for Meddler<'_> {
    fn layer(&self, _: &Name, _: u64) {
        (self.0)();
    }
}

#[test]
fn images_that_change_meanwhile_are_told_and_publish_nothing() {
    let house = House::new();
    let image = house.image("base.img", &[7; 300_000]);
    let open = || fs::File::options().write(true).open(&image.path).unwrap();
    let shorter = || open().set_len(100_000).unwrap();
    let longer = || open().set_len(400_000).unwrap();
    let meddlers: [&(dyn Fn() + Sync); 2] = [&longer, &shorter];
    for meddle in meddlers {
        let request = house.request("one", std::slice::from_ref(&image));
        let error = publish(&request, &house.key, &Meddler(meddle)).unwrap_err();
        let expected = format!(
            "the image `{}` changed while it was read",
            image.path.display()
        );
        assert_eq!(error.to_string(), expected);
        assert!(!house.path("store/head").exists());
    }
}
