//! What is tested: an ISO and its manifest, named by `GASTHAUS_ISO` and `GASTHAUS_MANIFEST` (`ci/test` sets them), and
//! the variations of it some tests need: files taken out of it, a damaged copy, a disk with the ISO as a file on it.

use std::{
    env,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    HarnessError,
    host::{require_tool, run},
};

/// The bytes of one ISO 9660 logical block.
const BLOCK_BYTES: u64 = 2048;

/// An ISO and what its manifest says about it.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// The ISO.
    pub iso: PathBuf,
    /// The manifest, as it is.
    pub manifest: Value,
    /// The build id: 16 hexadecimal digits.
    pub build_id: String,
}

impl Artifacts {
    /// Reads what the environment names.
    ///
    /// # Errors
    /// When a variable is missing, or the manifest holds no build id.
    pub fn from_env() -> Result<Self, HarnessError> {
        Self::load(&env_path("GASTHAUS_ISO")?, &env_path("GASTHAUS_MANIFEST")?)
    }

    /// Reads an ISO's manifest.
    ///
    /// # Errors
    /// When it cannot be read or holds no build id of 16 hexadecimal digits.
    pub fn load(iso: &Path, manifest: &Path) -> Result<Self, HarnessError> {
        let text = fs::read_to_string(manifest).map_err(HarnessError::io("read", manifest))?;
        let wrong = |found: String| HarnessError::Artifact {
            what: format!("`{}`: {found}", manifest.display()),
        };
        let parsed: Value =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let build_id = ["build-id", "build_id"]
            .iter()
            .find_map(|key| parsed.get(key)?.as_str())
            .unwrap_or_default();
        if build_id.len() != 16 || !build_id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong(format!(
                "its build id is `{build_id}`, expected 16 hexadecimal digits"
            )));
        }
        Ok(Self {
            iso: iso.to_owned(),
            build_id: build_id.to_owned(),
            manifest: parsed,
        })
    }

    /// The folder the image was built in, with the lock file: the one above `out/`.
    #[must_use]
    pub fn lock_folder(&self) -> &Path {
        self.iso
            .parent()
            .and_then(Path::parent)
            .unwrap_or(Path::new("/"))
    }

    /// How many guests start by themselves.
    #[must_use]
    pub fn autostarted(&self) -> u32 {
        let guests = self.manifest["guests"].as_array().into_iter().flatten();
        guests.filter(|guest| guest["autostart"] == true).count() as u32
    }

    /// The line the booted system prints when all is up. It holds the build id, so a stale image cannot pass.
    #[must_use]
    pub fn ready_mark(&self, hypervisor: &str, up: u32, all: u32) -> String {
        format!(
            "gasthaus: ready build={} hypervisor={hypervisor} guests={up}/{all}",
            self.build_id
        )
    }

    /// Copies `path` out of the ISO into `dir` and gives the copy.
    ///
    /// # Errors
    /// When `xorriso` is missing or finds no such file.
    pub fn extract(&self, path: &str, dir: &Path) -> Result<PathBuf, HarnessError> {
        let xorriso = require_tool("xorriso", "xorriso", "take files out of an ISO")?;
        let name = path.rsplit('/').next().unwrap_or(path);
        let copy = dir.join(name);
        run(Command::new(xorriso)
            .args(["-report_about", "FAILURE", "-osirrox", "on", "-indev"])
            .arg(&self.iso)
            .args(["-extract", path])
            .arg(&copy))?;
        Ok(copy)
    }

    /// Copies the ISO to `copy` with the first 64 KiB of `path` zeroed: a layer without its superblock.
    ///
    /// # Errors
    /// When the file is not on the ISO or the copy cannot be written.
    pub fn damaged_copy(&self, path: &str, copy: &Path) -> Result<(), HarnessError> {
        let (start_byte, length) = extents(&self.iso, path)?[0];
        fs::copy(&self.iso, copy).map_err(HarnessError::io("copy the ISO to", copy))?;
        let mut file = File::options()
            .write(true)
            .open(copy)
            .map_err(HarnessError::io("open", copy))?;
        file.seek(SeekFrom::Start(start_byte))
            .map_err(HarnessError::io("damage", copy))?;
        let zeroes = vec![0; length.min(64 << 10) as usize];
        file.write_all(&zeroes)
            .map_err(HarnessError::io("damage", copy))
    }

    /// Writes a FAT32 disk to `disk` that has the ISO as the file `/isos/<name>`, the way people keep ISOs on sticks.
    ///
    /// # Errors
    /// When `mkfs.vfat` or `mtools` are missing or fail.
    pub fn disk_with_iso(&self, disk: &Path, name: &str) -> Result<(), HarnessError> {
        let mkfs = require_tool("mkfs.vfat", "dosfstools", "format a disk that holds an ISO")?;
        let mmd = require_tool("mmd", "mtools", "make folders on a FAT disk")?;
        let mcopy = require_tool("mcopy", "mtools", "copy an ISO to a FAT disk")?;
        let iso_bytes = fs::metadata(&self.iso)
            .map_err(HarnessError::io("look at", &self.iso))?
            .len();
        let file = File::create(disk).map_err(HarnessError::io("create", disk))?;
        file.set_len(iso_bytes + (64 << 20))
            .map_err(HarnessError::io("size", disk))?;
        run(Command::new(mkfs)
            .args(["-F", "32", "-n", "STICK"])
            .arg(disk))?;
        run(Command::new(mmd).arg("-i").arg(disk).arg("::isos"))?;
        run(Command::new(mcopy)
            .arg("-i")
            .arg(disk)
            .arg(&self.iso)
            .arg(format!("::isos/{name}")))?;
        Ok(())
    }
}

/// The extents of `path` on an ISO: first byte and length of each, in order.
///
/// # Errors
/// When `xorriso` is missing or finds no such file.
pub fn extents(iso: &Path, path: &str) -> Result<Vec<(u64, u64)>, HarnessError> {
    let xorriso = require_tool("xorriso", "xorriso", "find files on an ISO")?;
    let report = run(Command::new(xorriso)
        .args(["-report_about", "FAILURE", "-indev"])
        .arg(iso)
        .args(["-find", path, "-exec", "report_lba"]))?;
    let extents: Vec<(u64, u64)> = report.lines().filter_map(extent).collect();
    if extents.is_empty() {
        return Err(HarnessError::Artifact {
            what: format!("xorriso shows no extent of `{path}`:\n{report}"),
        });
    }
    Ok(extents)
}

/// Replaces what the file `path` on an ISO holds, in place: the rest of its room is filled with line feeds.
///
/// # Errors
/// When the file is not on the ISO or is shorter than `text`.
pub fn overwrite(iso: &Path, path: &str, text: &[u8]) -> Result<(), HarnessError> {
    let (start_byte, length) = extents(iso, path)?[0];
    let room = usize::try_from(length).unwrap_or(usize::MAX);
    if text.len() > room {
        return Err(HarnessError::Artifact {
            what: format!(
                "`{path}` has room for {room} bytes, the text has {}",
                text.len()
            ),
        });
    }
    let mut padded = text.to_vec();
    padded.resize(room, b'\n');
    let mut file = File::options()
        .write(true)
        .open(iso)
        .map_err(HarnessError::io("open", iso))?;
    file.seek(SeekFrom::Start(start_byte))
        .map_err(HarnessError::io("overwrite", iso))?;
    file.write_all(&padded)
        .map_err(HarnessError::io("overwrite", iso))
}

/// One line of `xorriso -exec report_lba`: `File data lba: <extent> , <block> , <blocks> , <bytes> , '<path>'`.
fn extent(line: &str) -> Option<(u64, u64)> {
    let mut fields = line
        .strip_prefix("File data lba:")?
        .split(',')
        .map(str::trim)
        .skip(1);
    let block: u64 = fields.next()?.parse().ok()?;
    let length: u64 = fields.nth(1)?.parse().ok()?;
    Some((block * BLOCK_BYTES, length))
}

/// The path an environment variable names.
///
/// # Errors
/// When it is not set, or what it names is not there.
pub fn env_path(variable: &str) -> Result<PathBuf, HarnessError> {
    let path = env::var_os(variable)
        .map(PathBuf::from)
        .ok_or_else(|| HarnessError::Artifact {
            what: format!(
                "`{variable}` is not set: these tests run by `ci/test`, which builds what they need"
            ),
        })?;
    // Tests run in their crate's folder, so a relative path would not mean what the caller meant.
    if path.is_absolute() && path.exists() {
        Ok(path)
    } else {
        Err(HarnessError::Artifact {
            what: format!(
                "`{variable}` is `{}`: no absolute path of a file",
                path.display()
            ),
        })
    }
}

/// The SHA-256 of a file in hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> Result<String, HarnessError> {
    let mut file = File::open(path).map_err(HarnessError::io("open", path))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file
            .read(&mut buffer)
            .map_err(HarnessError::io("read", path))?;
        if count == 0 {
            return Ok(digest
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect());
        }
        digest.update(&buffer[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_xorrisos_report() {
        let line = "File data lba:  0 ,     1234 ,       12 ,    24001 , '/gasthaus/x/base.erofs'";
        assert_eq!(extent(line), Some((1234 * 2048, 24001)));
        assert_eq!(
            extent("Report layout: xt , Startlba , Blocks , Filesize , ISO image path"),
            None
        );
        assert_eq!(extent("File data lba:  0 , x"), None);
    }

    #[test]
    fn a_manifest_without_a_build_id_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.json");
        for (text, good) in [
            (r#"{"build-id": "0123456789abcdef"}"#, true),
            (r#"{"build-id": "0123"}"#, false),
            (r#"{"build-id": "0123456789abcdeg"}"#, false),
            ("{}", false),
            ("[", false),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(Artifacts::load(&file, &file).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn the_ready_mark_holds_the_build() {
        let artifacts = Artifacts {
            iso: "a".into(),
            manifest: Value::Null,
            build_id: "00".into(),
        };
        assert_eq!(
            artifacts.ready_mark("xen", 2, 2),
            "gasthaus: ready build=00 hypervisor=xen guests=2/2"
        );
    }
}
