//! The layers: from the list on the medium to one writable root.
//!
//! `/gasthaus/<id>/layers` names one EROFS file per line, lowest first. Each is mounted straight from the file
//! (kernel 6.12, EROFS_FS_BACKED_BY_FILE) or over a loop device; overlayfs stacks them, with a tmpfs on top to write to.

use super::error::{BootError, LayerError};
use super::modules::loader::Loader;
use super::mounts::{self, SYSROOT, run_dir};
use super::{handover, isofile, log, read_ahead};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags};
use rustix::mount::{fsconfig_create, fsconfig_set_string, fsmount, fsopen, move_mount};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Longest list we read; three names are usual.
const MAX_LIST_BYTES: u64 = 4096;
const MAX_LAYERS: usize = 32;
const MAX_NAME_BYTES: usize = 64;
/// The layer with the guests' kernel and disks: these are read from front to back, or by guests that read ahead themselves.
const GUESTS: &str = "guests";
/// The layer that is not stacked: QEMU, which `guests` mounts when the first guest needs it. The note of that name says where it is.
const MACHINES: &str = "machines";
/// `struct erofs_super_block` (linux fs/erofs/erofs_fs.h): at byte 1024; magic at 0, log2 of the block size at 12 (u8), blocks at 36 (u32).
const SUPERBLOCK_OFFSET: u64 = 1024;
const MAGIC: [u8; 4] = [0xe2, 0xe1, 0xf5, 0xe0];

/// A checked layer file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// File name without `.erofs`; its place below `/run/gasthaus/layers`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

/// Reads the list: bounded, plain file names only.
///
/// # Errors
/// Line number and problem.
pub fn parse_list(text: &str) -> Result<Vec<String>, (usize, String)> {
    let mut names: Vec<String> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let name = line.trim();
        if name.is_empty() {
            continue;
        }
        let plain = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        let problem = if name.len() > MAX_NAME_BYTES {
            format!(
                "a name of {} bytes; at most {MAX_NAME_BYTES} are allowed",
                name.len()
            )
        } else if !plain || name.starts_with('.') {
            format!(
                "`{}` is not a plain file name (letters, digits, `.`, `_`, `-`)",
                name.escape_default()
            )
        } else if names.iter().any(|known| known == name) {
            format!("`{name}` is listed twice")
        } else if names.len() == MAX_LAYERS {
            format!("more than {MAX_LAYERS} layers")
        } else {
            names.push(name.to_owned());
            continue;
        };
        return Err((number, problem));
    }
    if names.is_empty() {
        Err((1, "no layer is listed".into()))
    } else {
        Ok(names)
    }
}

/// Checks an EROFS superblock against the length of its file: `Ok`, or found and expected bytes.
#[derive(Debug, PartialEq, Eq)]
enum Check {
    Good,
    Magic(String),
    Truncated(u64),
}

fn check_superblock(head: &[u8], file_bytes: u64) -> Check {
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    if head.get(..4) != Some(&MAGIC[..]) {
        return Check::Magic(hex(&head[..head.len().min(4)]));
    }
    let (Some(&bits), Some(blocks)) = (head.get(12), head.get(36..40)) else {
        return Check::Truncated(SUPERBLOCK_OFFSET + 128);
    };
    let blocks = blocks
        .iter()
        .rev()
        .fold(0u64, |sum, b| sum << 8 | u64::from(*b)); // little endian
    let expected = blocks
        .checked_shl(u32::from(bits))
        .filter(|_| bits < 32)
        .unwrap_or(u64::MAX);
    if expected > file_bytes {
        Check::Truncated(expected)
    } else {
        Check::Good
    }
}

fn check_file(path: PathBuf, name: &str) -> Result<Layer, LayerError> {
    let read = |source| LayerError::Read {
        path: path.clone(),
        source,
    };
    let info = fs::symlink_metadata(&path).map_err(read)?;
    if !info.is_file() {
        return Err(read(std::io::Error::other("not a regular file")));
    }
    let mut head = [0u8; 128];
    let got = File::open(&path)
        .and_then(|file| file.read_at(&mut head, SUPERBLOCK_OFFSET))
        .map_err(read)?;
    match check_superblock(&head[..got], info.len()) {
        Check::Good => Ok(Layer {
            name: name.trim_end_matches(".erofs").to_owned(),
            bytes: info.len(),
            path,
        }),
        Check::Magic(found) => Err(LayerError::Magic {
            path,
            found: if found.is_empty() {
                "(end of file)".into()
            } else {
                found
            },
        }),
        Check::Truncated(expected_bytes) => Err(LayerError::Truncated {
            path,
            found_bytes: info.len(),
            expected_bytes,
        }),
    }
}

/// Reads `<dir>/layers` and checks every layer it names; lowest first.
///
/// # Errors
/// The first problem, with file name and what was found.
pub fn read_layers(dir: &Path) -> Result<Vec<Layer>, LayerError> {
    let path = dir.join("layers");
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_LIST_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|source| LayerError::Read {
            path: path.clone(),
            source,
        })?;
    let list = |line, problem| LayerError::List {
        path: path.clone(),
        line,
        problem,
    };
    if bytes.len() as u64 > MAX_LIST_BYTES {
        return Err(list(1, format!("longer than {MAX_LIST_BYTES} bytes")));
    }
    let names = parse_list(&String::from_utf8_lossy(&bytes))
        .map_err(|(line, problem)| list(line, problem))?;
    names
        .iter()
        .map(|name| check_file(dir.join(name), name))
        .collect()
}

/// How the kernel reads the layers' files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Through the page cache of their file system.
    Cached,
    /// Past it: of a file that streams nothing is read but what is asked of the layer, where the page cache's own read-ahead
    /// would run on into whatever lies behind a file; and nothing is in memory twice.
    Direct,
}

/// Mounts one layer; from the file, else over a loop device.
fn mount_layer(loader: &Loader, layer: &Layer, reading: Reading) -> Result<PathBuf, BootError> {
    let target = run_dir("layers").join(&layer.name);
    mounts::make_dir(&target)?;
    let mount =
        |options| mounts::mount_plain(&layer.path, &target, "erofs", MountFlags::RDONLY, options);
    // `directio`: Linux 6.13, and 6.12 from its fourth update on.
    if reading == Reading::Direct && mount("directio").is_ok() {
        if layer.name != GUESTS {
            read_ahead::lessen_newest();
        }
        return Ok(target);
    }
    let Err(first) = mount("") else {
        return Ok(target);
    };
    log::debug(|| {
        format!(
            "`{}` not mountable from the file ({first}); using a loop device",
            layer.path.display()
        )
    });
    isofile::mount_over_loop(loader, &layer.path, &target, "erofs").map_err(|source| {
        LayerError::Refused {
            path: layer.path.clone(),
            source,
        }
    })?;
    Ok(target)
}

/// Mounts all layers (`layers[0]` is the lowest) and stacks them on [`SYSROOT`], writable up to `writable_mib` in RAM.
///
/// # Errors
/// Which mount failed, and why.
pub fn stack(
    loader: &Loader,
    layers: &[Layer],
    reading: Reading,
    writable_mib: Option<u64>,
) -> Result<(), BootError> {
    for module in ["erofs", "overlay"] {
        if let Err(problem) = loader.load(module) {
            log::warn(problem); // the mount below says whether it matters
        }
    }
    let is_aside = |layer: &&Layer| layer.name == MACHINES;
    if let Some(layer) = layers.iter().find(is_aside) {
        handover::note(MACHINES, &format!("{}\n", layer.path.display()))?;
    }
    let lower: Vec<PathBuf> = layers
        .iter()
        .filter(|layer| !is_aside(layer))
        .map(|layer| mount_layer(loader, layer, reading))
        .collect::<Result<_, _>>()?;
    let rw = run_dir("rw");
    let size = writable_mib.map_or_else(|| "50%".to_owned(), |mib| format!("{mib}m"));
    mounts::mount_at(
        "gasthaus-rw",
        &rw,
        "tmpfs",
        MountFlags::empty(),
        &format!("mode=0755,size={size}"),
    )?;
    let (upper, work) = (rw.join("upper"), rw.join("work"));
    mounts::make_dir(&upper)?;
    mounts::make_dir(&work)?;
    mounts::make_dir(Path::new(SYSROOT))?;
    overlay(&lower, &upper, &work).map_err(|source| BootError::Mount {
        what: format!("{} layers and `{}`", lower.len(), upper.display()),
        target: SYSROOT.into(),
        fs_type: "overlay".into(),
        source,
    })
}

/// One option per layer with the new mount API (Linux 6.8: `lowerdir+`): no page-size limit on the option text.
fn overlay(lower: &[PathBuf], upper: &Path, work: &Path) -> std::io::Result<()> {
    let attempt = || -> rustix::io::Result<()> {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "source", "gasthaus")?;
        for dir in lower.iter().rev() {
            fsconfig_set_string(&fs, "lowerdir+", dir)?; // topmost first
        }
        fsconfig_set_string(&fs, "upperdir", upper)?;
        fsconfig_set_string(&fs, "workdir", work)?;
        fsconfig_create(&fs)?;
        let tree = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        move_mount(
            &tree,
            "",
            rustix::fs::CWD,
            SYSROOT,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    let Err(first) = attempt() else { return Ok(()) };
    log::debug(|| format!("overlay by fsopen: {first}; trying mount(2)"));
    let dirs: Vec<String> = lower
        .iter()
        .rev()
        .map(|dir| dir.display().to_string())
        .collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        dirs.join(":"),
        upper.display(),
        work.display()
    );
    mounts::mount_plain(
        Path::new("gasthaus"),
        Path::new(SYSROOT),
        "overlay",
        MountFlags::empty(),
        &options,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        assert_eq!(
            parse_list("base.erofs\nsite.erofs\r\n\n").unwrap(),
            ["base.erofs", "site.erofs"]
        );
    }

    #[test]
    fn hostile_lists_are_refused() {
        let many: String = (0..33).map(|n| format!("l{n}\n")).collect();
        let long = "a".repeat(65);
        for (text, line, part) in [
            ("", 1, "no layer"),
            ("\n \n", 1, "no layer"),
            ("base.erofs\n../../etc/shadow\n", 2, "plain file name"),
            ("/dev/sda", 1, "plain file name"),
            ("..", 1, "plain file name"),
            (".hidden", 1, "plain file name"),
            ("a,upperdir=x", 1, "plain file name"),
            ("a:b", 1, "plain file name"),
            ("a\0b", 1, "plain file name"),
            ("\u{1b}[2J", 1, "u{1b}"),
            ("a\na", 2, "twice"),
            (&long, 1, "65 bytes"),
            (&many, 33, "more than 32"),
        ] {
            let (found, problem) = parse_list(text).unwrap_err();
            assert!(
                found == line && problem.contains(part),
                "{text:?}: {found}: {problem}"
            );
        }
    }

    fn superblock(bits: u8, blocks: u32) -> Vec<u8> {
        let mut head = vec![0u8; 128];
        head[..4].copy_from_slice(&MAGIC);
        head[12] = bits;
        head[36..40].copy_from_slice(&blocks.to_le_bytes());
        head
    }

    #[test]
    fn superblocks_are_checked() {
        assert_eq!(check_superblock(&superblock(12, 10), 40960), Check::Good);
        assert_eq!(
            check_superblock(&superblock(12, 10), 40959),
            Check::Truncated(40960)
        );
        assert_eq!(
            check_superblock(&superblock(255, 1), 40960),
            Check::Truncated(u64::MAX)
        );
        assert_eq!(
            check_superblock(b"hsqs", 40960),
            Check::Magic("68 73 71 73".into())
        );
        assert_eq!(check_superblock(&[], 0), Check::Magic(String::new()));
        assert!(matches!(
            check_superblock(&MAGIC, 5000),
            Check::Truncated(_)
        ));
    }

    #[test]
    fn a_damaged_layer_is_named() {
        let dir = std::env::temp_dir().join(format!("gasthaus-layers-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("layers"), "base.erofs\n").unwrap();
        assert!(
            read_layers(&dir)
                .unwrap_err()
                .to_string()
                .starts_with("cannot read")
        );
        fs::write(dir.join("base.erofs"), vec![0u8; 4096]).unwrap();
        let text = read_layers(&dir).unwrap_err().to_string();
        assert!(
            text.contains("base.erofs` is not an EROFS image: bytes 00 00 00 00"),
            "{text}"
        );
        std::os::unix::fs::symlink("/dev/zero", dir.join("site.erofs")).unwrap();
        fs::write(dir.join("layers"), "site.erofs\n").unwrap();
        assert!(matches!(read_layers(&dir), Err(LayerError::Read { .. })));
        fs::remove_dir_all(&dir).unwrap();
    }
}
