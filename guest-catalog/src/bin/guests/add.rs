//! `guests add`: a guest that was not on the medium, from a definition with its files beside it, on a disk or on a web server.
//!
//! It is copied to the others, in dom0's memory, and is gone at power-off like all that changes. It comes last in the order: the
//! addresses and screens of those that are there stay as they are.
use crate::error::Failure;
use crate::house::House;
use crate::program::{self, CURL, NETWORKCTL};
use crate::screens;
use guest_catalog::address::{
    DEFAULT_BRIDGE, QUIET_BRIDGE, render_quiet_network, render_static_leases,
};
use guest_catalog::{Catalogue, Entry, Guest, NetworkMode, Source};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

const DEFINITION: &str = "guest.toml";
/// Name of the disk image that `source` describes.
const SOURCE_IMAGE: &str = "disk.img";
const MAX_DEFINITION_BYTES: u64 = 128 << 10;
/// Highest `order` that a definition may have.
const MAX_ORDER: u32 = 999;
const FETCH_LIMIT: Duration = Duration::from_secs(3600);
const RELOAD_LIMIT: Duration = Duration::from_secs(60);
/// Left free where guests lie: dom0 works in the same memory.
const MARGIN_BYTES: u64 = 32 << 20;

/// Where a definition and its files come from.
enum Origin {
    Folder(PathBuf),
    /// Base address, with its `/`.
    Web(String),
}

/// Adds the guest whose definition is at `place`: a file, its folder, or an address.
pub fn add(house: &House, place: &str) -> Result<Entry, Failure> {
    let staging = house.root().join("var/lib/gasthaus/adding");
    let _held = crate::state::lock_file(&house.run("add.lock"), Duration::ZERO)?;
    let _ = fs::remove_dir_all(&staging); // of one that was broken off
    fs::create_dir_all(&staging).map_err(Failure::file("prepare", &staging))?;
    let added = add_in(house, place, &staging);
    let _ = fs::remove_dir_all(&staging);
    let entry = added?;
    serve_leases(house);
    if let Ok(catalogue) = house.catalogue() {
        screens::make(house, &catalogue);
    }
    Ok(entry)
}

fn add_in(house: &House, place: &str, staging: &Path) -> Result<Entry, Failure> {
    let (origin, definition) = origin_of(place);
    let copy = staging.join(DEFINITION);
    bring(&origin, &definition, &copy, MAX_DEFINITION_BYTES)?;
    let text = fs::read_to_string(&copy).map_err(Failure::file("read", &copy))?;
    let shown = place.chars().filter(|c| !c.is_control()).take(200);
    let mut guest = Guest::parse(&shown.collect::<String>(), &text)?;

    let catalogue = house.catalogue()?;
    let entries = catalogue.entries();
    if entries.iter().any(|entry| entry.guest.name == guest.name) {
        return Err(Failure::Present {
            guest: guest.name.to_string(),
        });
    }
    let last = entries.last().map_or(0, |entry| entry.guest.order);
    guest.order = guest.order.max(last + 1).min(MAX_ORDER);
    // All together as if it were there: names, hardware addresses, numbers of guests.
    let all = entries.iter().map(|entry| &entry.guest).chain([&guest]);
    let all = all.map(|guest| (format!("{}/{DEFINITION}", guest.name), guest.clone()));
    let together = Catalogue::new(all.collect())?;
    let entry = together.find(guest.name.as_str())?.clone();

    let free = free_bytes(staging)?.saturating_sub(MARGIN_BYTES);
    bring_files(&origin, &guest, staging, free)?;
    let text = toml::to_string(&guest).map_err(|error| Failure::Definition {
        guest: guest.name.to_string(),
        detail: error.to_string(),
    })?;
    fs::write(&copy, text).map_err(Failure::file("write", &copy))?;
    let home = house.folder(&entry);
    fs::rename(staging, &home).map_err(Failure::file("make", &home))?;
    Ok(entry)
}

/// Brings all files that the definition names and that are not dom0's: `free` bytes at most.
fn bring_files(origin: &Origin, guest: &Guest, folder: &Path, free: u64) -> Result<(), Failure> {
    let (image, digest) = match &guest.source {
        Source::Image(source) => (Some(source.file.clone()), source.sha256.clone()),
        Source::Url(source) => (Some(source.url.clone()), source.sha256.clone()),
        Source::Package(source) => (Some(source.file.clone()), None),
        _ => (None, None),
    };
    if image.is_some() && digest.is_none() {
        return Err(Failure::NoDigest {
            guest: guest.name.to_string(),
        });
    }
    let mut files: Vec<&str> = guest.disks.iter().map(|disk| disk.image.as_str()).collect();
    files.extend([guest.boot.kernel.as_str()]);
    files.extend(guest.boot.initrd.as_deref());
    files.sort_unstable();
    files.dedup();
    let mut left = free;
    for file in files {
        if Path::new(file).is_absolute() {
            if !Path::new(file).exists() {
                let error = io::ErrorKind::NotFound.into();
                return Err(Failure::file("find", Path::new(file))(error));
            }
            continue;
        }
        let to = folder.join(plain(guest, file)?);
        if file == SOURCE_IMAGE
            && let Some(image) = &image
        {
            bring(origin, image, &to, left)?;
            hold_to(guest, &to, digest.as_deref().unwrap_or_default())?;
        } else {
            bring(origin, file, &to, left)?;
        }
        left = left.saturating_sub(
            fs::metadata(&to)
                .map_err(Failure::file("examine", &to))?
                .len(),
        );
    }
    Ok(())
}

/// A name in the guest's own folder, and nothing else.
fn plain<'p>(guest: &Guest, file: &'p str) -> Result<&'p Path, Failure> {
    let path = Path::new(file);
    let mut parts = path.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(path),
        _ => Err(Failure::Definition {
            guest: guest.name.to_string(),
            detail: format!("`{file}` is no plain file name"),
        }),
    }
}

fn origin_of(place: &str) -> (Origin, String) {
    if place.starts_with("http://") || place.starts_with("https://") {
        let (base, name) = place.rsplit_once('/').unwrap_or((place, ""));
        let name = if name.is_empty() { DEFINITION } else { name };
        return (Origin::Web(format!("{base}/")), name.to_owned());
    }
    let path = Path::new(place);
    if path.is_dir() {
        return (Origin::Folder(path.to_owned()), DEFINITION.to_owned());
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().unwrap_or_default();
    (
        Origin::Folder(folder.to_owned()),
        name.to_string_lossy().into_owned(),
    )
}

/// Copies or fetches one file of at most `limit` bytes.
fn bring(origin: &Origin, name: &str, to: &Path, limit: u64) -> Result<(), Failure> {
    let is_address = name.starts_with("http://") || name.starts_with("https://");
    let address = match origin {
        _ if is_address => name.to_owned(),
        Origin::Web(base) => format!("{base}{name}"),
        Origin::Folder(folder) => {
            let from = folder.join(name);
            return copy(&from, to, limit);
        }
    };
    let (most, to_text) = (limit.to_string(), to.to_string_lossy());
    let arguments = [
        "--fail",
        "--silent",
        "--show-error",
        "--location",
        "--proto",
        "=http,https",
        "--max-redirs",
        "5",
        "--connect-timeout",
        "30",
        "--max-filesize",
        &most,
        "--output",
        &to_text,
        "--",
        &address,
    ];
    let purpose = format!("fetch `{address}`");
    program::run(CURL, &arguments, &purpose, FETCH_LIMIT)?;
    let bytes = fs::metadata(to)
        .map_err(Failure::file("examine", to))?
        .len();
    within(bytes, limit, to)
}

fn copy(from: &Path, to: &Path, limit: u64) -> Result<(), Failure> {
    let file = File::open(from).map_err(Failure::file("open", from))?;
    let about = file.metadata().map_err(Failure::file("examine", from))?;
    if !about.is_file() {
        let error = io::Error::other("it is no file");
        return Err(Failure::file("copy", from)(error));
    }
    within(about.len(), limit, from)?;
    let mut out = File::create(to).map_err(Failure::file("create", to))?;
    let copied = io::copy(&mut file.take(limit), &mut out).and_then(|_| out.flush());
    copied.map_err(Failure::file("write", to))
}

fn within(bytes: u64, limit: u64, path: &Path) -> Result<(), Failure> {
    if bytes <= limit {
        return Ok(());
    }
    let error = io::Error::other(format!(
        "it has {} MiB, {} MiB are free for it",
        bytes.div_ceil(1 << 20),
        limit >> 20
    ));
    Err(Failure::file("keep", path)(error))
}

fn hold_to(guest: &Guest, image: &Path, expected: &str) -> Result<(), Failure> {
    let mut file = File::open(image).map_err(Failure::file("open", image))?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file
            .read(&mut block)
            .map_err(Failure::file("read", image))?
        {
            0 => break,
            count => hash.update(&block[..count]),
        }
    }
    let found: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if found == expected {
        return Ok(());
    }
    Err(Failure::WrongDigest {
        guest: guest.name.to_string(),
        found,
        expected: expected.to_owned(),
    })
}

fn free_bytes(folder: &Path) -> Result<u64, Failure> {
    let space = rustix::fs::statvfs(folder);
    let space = space.map_err(|error| Failure::file("examine", folder)(error.into()))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// The bridge's DHCP server keeps the new guest's address for it. A guest that is told its address by the house does without.
fn serve_leases(house: &House) {
    let Ok(catalogue) = house.catalogue() else {
        return; // told by whatever needs it next
    };
    for (path, text) in network_settings(&catalogue) {
        let path = house.root().join("etc/systemd/network").join(path);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all);
        if let Err(error) = written.and_then(|()| fs::write(&path, text)) {
            return println!("guests: no lease for the new guest: {error}");
        }
    }
    if Path::new(NETWORKCTL).exists()
        && let Err(failure) =
            program::run(NETWORKCTL, &["reload"], "serve the new lease", RELOAD_LIMIT)
    {
        println!("guests: {}", failure.in_one_line());
    }
}

/// networkd's files that name guests, below its folder, as the builder writes them: the house's leases, and where a guest is isolated
/// the settings of that bridge with its own, which the image has only if such a guest was on board.
fn network_settings(catalogue: &Catalogue) -> Vec<(String, String)> {
    let mut files = vec![(
        format!("10-{DEFAULT_BRIDGE}.network.d/guests.conf"),
        render_static_leases(catalogue, DEFAULT_BRIDGE),
    )];
    let is_quiet = |entry: &Entry| entry.guest.network.mode == NetworkMode::Isolated;
    if catalogue.entries().iter().any(is_quiet) {
        files.push((
            format!("10-{QUIET_BRIDGE}.network"),
            render_quiet_network(catalogue),
        ));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::house;

    fn definition(name: &str, more: &str) -> String {
        format!(
            "name = \"{name}\"\ndescription = \"x\"\nlicence = \"x\"\nmemory-mib = 128\norder = 1\n{more}\n\
             [boot]\nkernel = \"vmlinuz\"\ninitrd = \"vmlinuz\"\n[health]\nhttp = {{}}\n"
        )
    }

    #[test]
    fn a_guest_is_added_behind_the_others_with_its_files() {
        let (dir, house, _) = house(&[("tiny", 10)]);
        let from = dir.path().join("usb/web");
        fs::create_dir_all(&from).unwrap();
        fs::write(from.join("vmlinuz"), "kernel").unwrap();
        let text = definition("web", "source.builtin = \"tiny\"");
        fs::write(from.join(DEFINITION), text).unwrap();
        let entry = add_in(&house, from.to_str().unwrap(), &staging(&house)).unwrap();
        assert_eq!(entry.guest.order, 11);
        assert_eq!(entry.address.unwrap().to_string(), "192.168.77.11");
        let catalogue = house.catalogue().unwrap();
        assert_eq!(catalogue.entries()[1], entry);
        let kernel = house.folder(&entry).join("vmlinuz");
        assert_eq!(fs::read_to_string(kernel).unwrap(), "kernel");
        let again = add_in(&house, from.to_str().unwrap(), &staging(&house)).unwrap_err();
        assert_eq!(again.to_string(), "there is a guest `web` already");
        assert_eq!(network_settings(&catalogue).len(), 1);
    }

    #[test]
    fn an_isolated_guest_gets_its_network_where_there_was_none() {
        let (dir, house, _) = house(&[("tiny", 10)]);
        let from = dir.path().join("cell");
        fs::create_dir_all(&from).unwrap();
        fs::write(from.join("vmlinuz"), "kernel").unwrap();
        let more = "source.builtin = \"tiny\"\nnetwork.mode = \"isolated\"";
        fs::write(from.join(DEFINITION), definition("cell", more)).unwrap();
        let entry = add_in(&house, from.to_str().unwrap(), &staging(&house)).unwrap();
        assert_eq!(entry.address.unwrap().to_string(), "192.168.78.11");
        let files = network_settings(&house.catalogue().unwrap());
        let (path, text) = &files[1];
        assert_eq!(path, "10-quiet0.network");
        assert!(text.contains(&entry.mac.to_string()) && !files[0].1.contains("192.168.78"));
    }

    fn staging(house: &House) -> PathBuf {
        let staging = house.root().join("var/lib/gasthaus/adding");
        fs::create_dir_all(&staging).unwrap();
        staging
    }

    #[test]
    fn what_is_not_as_it_says_is_not_added() {
        let (dir, house, _) = house(&[("tiny", 10)]);
        let from = dir.path().join("usb");
        fs::create_dir_all(&from).unwrap();
        fs::write(from.join("vmlinuz"), "kernel").unwrap();
        fs::write(from.join("a.img"), "image").unwrap();
        let file = from.join(DEFINITION);
        let refused = |text: String| {
            fs::write(&file, text).unwrap();
            let failure = add_in(&house, file.to_str().unwrap(), &staging(&house)).unwrap_err();
            assert_eq!(house.catalogue().unwrap().entries().len(), 1);
            failure.in_one_line()
        };
        let disk = "disks = [{ device = \"xvda\", image = \"disk.img\" }]";
        let line = refused(definition(
            "web",
            &format!("source.image.file = \"a.img\"\n{disk}"),
        ));
        assert!(line.contains("gives no SHA-256"), "{line}");
        let digest = "0".repeat(64);
        let source =
            format!("source.image = {{ file = \"a.img\", sha256 = \"{digest}\" }}\n{disk}");
        let line = refused(definition("web", &source));
        assert!(line.contains("has SHA-256 6105d6cc76af40"), "{line}");
        let line = refused(
            definition("web", "source.builtin = \"tiny\"").replace("vmlinuz", "../vmlinuz"),
        );
        assert!(
            line.contains("boot.kernel") || line.contains("no plain file name"),
            "{line}"
        );
        let line =
            refused(definition("web", "source.builtin = \"tiny\"").replace("vmlinuz", "missing"));
        assert!(line.contains("cannot open"), "{line}");
        let line = refused("name = 5".to_owned());
        assert!(line.contains("guest.toml"), "{line}");
        let missing = add_in(&house, "/nowhere/x.toml", &staging(&house)).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/x.toml"));
    }
}
