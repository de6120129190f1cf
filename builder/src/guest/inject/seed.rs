//! NoCloud seeds: a small FAT disk called `CIDATA`, or an ISO 9660 disc called `cidata`, with `meta-data`, `user-data` and `network-config`, which cloud images
//! read when they first boot (cloud-init, "NoCloud" data source; FreeBSD's nuageinit reads the same).

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use guest_catalog::{Guest, Seed, SeedFormat};
use hypervisor_image::{MediumFile, MediumSpec, write_medium};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::super::TryError;
use crate::cache::hex;

/// Length of a seed. A floppy's, so that every kind of drive takes it.
const SEED_BYTES: u64 = 1_474_560;

/// Writes the seed of `guest` to `out`. Equal definitions give equal bytes.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn make_seed(guest: &Guest, seed: &Seed, out: &Path) -> Result<(), TryError> {
    let files = files(guest, seed);
    let written = match seed.format {
        SeedFormat::Fat => write(&files, out),
        SeedFormat::Iso => write_iso(&files, out),
    };
    written.map_err(TryError::file("write the seed", out))
}

/// Name and content of each file. JSON is YAML, and needs no care about quotes.
fn files(guest: &Guest, seed: &Seed) -> Vec<(&'static str, String)> {
    let host = seed.hostname.as_deref().unwrap_or(guest.name.as_str());
    let user_data = seed
        .user_data
        .clone()
        .unwrap_or_else(|| user_data(host, seed));
    let network = seed.network_config.clone();
    // A seed that says something else is another machine: it is obeyed again.
    let mut hash = Sha256::new();
    for text in [&user_data, network.as_ref().unwrap_or(&String::new())] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    let id = format!("{host}-{}", &hex(&hash.finalize())[..16]);
    let meta = json!({ "instance-id": id, "local-hostname": host });
    let mut files = vec![("meta-data", format!("{meta}\n")), ("user-data", user_data)];
    files.extend(network.map(|network| ("network-config", network)));
    files
}

fn user_data(host: &str, seed: &Seed) -> String {
    let mut data = json!({ "hostname": host, "preserve_hostname": false });
    if let Some(name) = &seed.user {
        let mut user = json!({
            "name": name,
            "groups": "sudo",
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "shell": "/bin/sh",
            "lock_passwd": seed.password_hash.is_none(),
            "ssh_authorized_keys": seed.ssh_keys,
        });
        if let Some(hash) = &seed.password_hash {
            user["passwd"] = json!(hash);
        }
        data["users"] = json!([user]);
        data["ssh_pwauth"] = json!(false);
    } else if !seed.ssh_keys.is_empty() {
        data["ssh_authorized_keys"] = json!(seed.ssh_keys);
    }
    format!("#cloud-config\n{data}\n")
}

fn write(files: &[(&str, String)], out: &Path) -> io::Result<()> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(out)?;
    file.set_len(SEED_BYTES)?;
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat12)
        .volume_label(*b"CIDATA     ")
        .volume_id(0x6369_6461);
    format_volume(&mut file, options)?;
    let system = FileSystem::new(&mut file, FsOptions::new())?;
    for (name, text) in files {
        let mut file = system.root_dir().create_file(name)?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
    }
    system.unmount()
}

/// Names of files are longer than ISO 9660's own: Rock Ridge has them.
fn write_iso(files: &[(&str, String)], out: &Path) -> io::Result<()> {
    let of_root = |(name, text): &(&str, String)| {
        MediumFile::new(format!("/{name}"), text.clone().into_bytes())
    };
    let spec = MediumSpec {
        volume_id: "cidata".to_owned(),
        files: files.iter().map(of_root).collect(),
        bios: None,
        uefi: None,
        epoch_secs: 0,
        seed: [0; 32],
    };
    let mut file = File::create(out)?;
    write_medium(&spec, &mut file).map_err(io::Error::other)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(seed: &str) -> Guest {
        let text = format!(
            "name = \"web\"\ndescription = \"x\"\nlicence = \"MIT\"\nmodes = [\"kvm\"]\nmemory-mib = 32\n\
             source.image = {{ file = \"x.img\" }}\nboot.from = \"bios\"\nhealth.screen = \"x\"\n\
             disks = [{{ device = \"hda\", image = \"disk.img\" }}, {{ device = \"hdb\", image = \"seed.img\" }}]\n{seed}\n"
        );
        Guest::parse("web/guest.toml", &text).unwrap()
    }

    fn made(seed: &str) -> (Vec<u8>, Vec<(String, String)>) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("seed.img");
        let guest = guest(seed);
        make_seed(&guest, guest.seed.as_ref().unwrap(), &out).unwrap();
        let bytes = std::fs::read(&out).unwrap();
        let mut image = io::Cursor::new(bytes.clone());
        let listing = hypervisor_image::fat::list_fat(&mut image, 0, SEED_BYTES).unwrap();
        assert_eq!(listing.label, "CIDATA");
        image.set_position(0);
        let system = FileSystem::new(&mut image, FsOptions::new()).unwrap();
        let read = |path: &str| {
            let mut text = String::new();
            let mut file = system.root_dir().open_file(path).unwrap();
            io::Read::read_to_string(&mut file, &mut text).unwrap();
            text
        };
        let files = listing.entries.iter();
        let files = files.map(|entry| (entry.path.clone(), read(&entry.path[1..])));
        (bytes, files.collect())
    }

    #[test]
    fn a_disc_says_the_same() {
        let seed = |format: &str| {
            format!("seed = {{ {format}user = \"anna\", network-config = \"version: 2\\n\" }}")
        };
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("seed.img");
        let guest = guest(&seed("format = \"iso\", "));
        let make = || {
            make_seed(&guest, guest.seed.as_ref().unwrap(), &out).unwrap();
            std::fs::read(&out).unwrap()
        };
        let bytes = make();
        assert!(bytes == make(), "equal definitions, equal bytes");
        let mut reader = hypervisor_image::iso::IsoReader::open(io::Cursor::new(bytes)).unwrap();
        assert_eq!(reader.volume().volume_id, "cidata");
        let (_, expected) = made(&seed(""));
        assert_eq!(reader.entries().count(), expected.len());
        for (path, text) in expected {
            let found = reader.read_small(&path, 10_000).unwrap();
            assert_eq!(String::from_utf8(found).unwrap(), text, "{path}");
        }
    }

    #[test]
    fn a_seed_says_who_the_machine_is() {
        let key = "ssh-ed25519 AAAA \\\"quoted\\\": me";
        let seed = format!("seed = {{ user = \"anna\", ssh-keys = [\"{key}\"] }}");
        let (bytes, files) = made(&seed);
        assert_eq!(bytes, made(&seed).0, "equal definitions, equal bytes");
        let (names, texts): (Vec<&str>, Vec<&str>) =
            files.iter().map(|(n, t)| (n.as_str(), t.as_str())).unzip();
        assert_eq!(names, ["/meta-data", "/user-data"]);
        let meta: serde_json::Value = serde_json::from_str(texts[0]).unwrap();
        assert_eq!(meta["local-hostname"], "web");
        let body = texts[1].strip_prefix("#cloud-config\n").unwrap();
        let user: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(user["users"][0]["name"], "anna");
        assert_eq!(
            user["users"][0]["ssh_authorized_keys"][0],
            "ssh-ed25519 AAAA \"quoted\": me"
        );
        assert_eq!(user["users"][0]["lock_passwd"], true);

        let own = "seed = { hostname = \"h\", user-data = \"#!/bin/sh\\n\", network-config = \"version: 2\\n\" }";
        let (_, files) = made(own);
        assert_eq!(files[1].1, "#!/bin/sh\n");
        assert_eq!(files[2], ("/network-config".into(), "version: 2\n".into()));
        let other: serde_json::Value = serde_json::from_str(&files[0].1).unwrap();
        assert_eq!(other["local-hostname"], "h");
        assert_ne!(other["instance-id"], meta["instance-id"]);
    }
}
