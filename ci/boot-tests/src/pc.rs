//! Guests whose images are not part of the demo, brought into a booted house on a disk.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::steps::{done, tell};
use crate::{Screenshot, Vm};

/// A PC on an emulated processor: its firmware alone takes minutes as a guest of Xen there.
const START_LIMIT: Duration = Duration::from_secs(600);

/// A disk with guests of the catalogue in a tar archive, and the names of those whose images were found in GASTHAUS_IMAGES.
/// Others are told, and missed in CI.
///
/// # Panics
/// When the archive cannot be made; in CI, when an image is missing.
#[must_use]
pub fn guests_disk<'n>(wanted: &[(&'n str, &str)], dir: &Path) -> (PathBuf, Vec<&'n str>) {
    let place = env::var_os("GASTHAUS_IMAGES").map(PathBuf::from);
    let catalogue = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-catalog/guests");
    let root = dir.join("guests");
    let mut names = Vec::new();
    for (guest, file) in wanted {
        let path = place.as_ref().map(|place| place.join(file));
        let Some(image) = path.filter(|path| path.is_file()) else {
            assert!(
                env::var_os("CI").is_none(),
                "{guest}: no {file} in {place:?}"
            );
            tell(&format!("{guest}: no {file} in {place:?}; not booted"));
            continue;
        };
        let folder = root.join(guest);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(
            catalogue.join(guest).join("guest.toml"),
            folder.join("guest.toml"),
        )
        .unwrap();
        fs::copy(image, folder.join("disk.img")).unwrap();
        names.push(*guest);
    }
    fs::create_dir_all(&root).unwrap();
    let disk = dir.join("guests.tar");
    // Records of 64 KiB: a disk has whole sectors.
    let packed = Command::new("tar")
        .args(["--blocking-factor=128", "-cf"])
        .arg(&disk)
        .arg("-C")
        .arg(&root)
        .arg(".")
        .status()
        .unwrap();
    assert!(packed.success(), "tar");
    (disk, names)
}

/// Takes the guests from the disk, which is the first one besides the medium.
///
/// # Panics
/// When that fails.
pub fn take_guests(vm: &mut Vm) {
    let folder = "/var/lib/gasthaus/guests";
    done(
        vm,
        &format!("sudo -n tar -xf /dev/sda -C {folder} --no-same-owner"),
    );
}

/// Starts a guest that is up when its screen or its console says so.
///
/// # Panics
/// When it does not come up, or in another mode.
pub fn start(vm: &mut Vm, guest: &str, mode: &str) {
    let began = Instant::now();
    let command = format!("sudo -n guests start {guest}");
    let started = vm.run(&command, START_LIMIT).unwrap();
    let expected = format!("guest `{guest}` is up in mode {mode}");
    assert!(started.text.contains(&expected), "{}", started.text);
    let secs = began.elapsed().as_secs();
    tell(&format!("{guest} in mode {mode}: up after {secs} s"));
}

/// How long a screen may take to show what it should.
const SCREEN_LIMIT: Duration = Duration::from_secs(90);

/// Brings the screen of a PC to the front, types `keys` there, and goes back to the house: each is to be seen.
///
/// # Panics
/// When one of them is not.
pub fn use_screen(vm: &mut Vm, guest: &str, keys: &[&str]) {
    let house = vm.screenshot(&format!("{guest}-before")).unwrap();
    let view = done(vm, &format!("sudo -n guests view {guest}"));
    let (name, typed) = (format!("{guest}-screen"), format!("{guest}-typed"));
    // A prompt alone is a hundred pixels.
    let idle = wait_for_picture(
        vm,
        &name,
        &format!("the screen of {guest} ({view})"),
        |shot| shot.painted_share() > 0.000_05 && house.differing_share(shot) > 0.003,
    );
    for key in keys {
        vm.qmp.send_key(&[*key]).unwrap();
        thread::sleep(Duration::from_millis(300));
    }
    // An answer is some lines; the keys alone are a ten-thousandth of the screen.
    wait_for_picture(vm, &typed, "an answer", |shot| {
        idle.differing_share(shot) > 0.003
    });
    vm.qmp.send_key(&["ctrl", "alt", "f1"]).unwrap();
    wait_for_picture(vm, &format!("{guest}-after"), "the house", |shot| {
        house.differing_share(shot) < 0.01
    });
}

fn wait_for_picture(
    vm: &mut Vm,
    name: &str,
    what: &str,
    is_it: impl Fn(&Screenshot) -> bool,
) -> Screenshot {
    let deadline = Instant::now() + SCREEN_LIMIT;
    loop {
        let shot = vm.screenshot(name).unwrap();
        if is_it(&shot) {
            return shot;
        }
        assert!(
            Instant::now() < deadline,
            "{what} is not to be seen: {name}.png"
        );
        thread::sleep(Duration::from_secs(1));
    }
}
