//! Device nodes of drivers that are not loaded yet: who opens one makes the kernel load its driver (`/dev/net/tun`).
//!
//! systemd does this with three units that everything else waits for. The list is a dozen lines (`modules.devname`,
//! written by depmod(8)), so it is done on the way to the real root, and the image leaves those units out.

use super::log;
use super::mounts::SYSROOT;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use std::fs;
use std::path::{Component, Path};

/// The list is some hundred bytes long.
const MAX_LIST_BYTES: u64 = 64 << 10;

/// Makes the nodes that the real root's modules ask for, in `/dev`. One that is there already stays as it is.
pub fn make() {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let list = Path::new(SYSROOT)
        .join("usr/lib/modules")
        .join(release)
        .join("modules.devname");
    if fs::metadata(&list).is_ok_and(|about| about.len() > MAX_LIST_BYTES) {
        return log::warn(format!("`{}` is too long to be true", list.display()));
    }
    let Ok(text) = fs::read_to_string(&list) else {
        return; // no modules, no nodes
    };
    for line in text.lines() {
        let Some((name, kind, major, minor)) = parse(line) else {
            continue;
        };
        let node = Path::new("/dev").join(name);
        let made = node
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            .and_then(|()| {
                // udev opens some of them to more people when it hears of the device.
                let mode = Mode::RUSR | Mode::WUSR;
                mknodat(CWD, &node, kind, mode, makedev(major, minor))
            });
        match made {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => log::info(format!("device node `{}`: {error}", node.display())),
        }
    }
}

/// `module name c10:200` or `… b7:0`: name below `/dev`, kind, major, minor.
fn parse(line: &str) -> Option<(&str, FileType, u32, u32)> {
    let mut words = line.split_ascii_whitespace();
    let (module, name, device) = (words.next()?, words.next()?, words.next()?);
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if module.starts_with('#') || !Path::new(name).components().all(plain) {
        return None;
    }
    let kind = match device.get(..1)? {
        "c" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        _ => return None,
    };
    let (major, minor) = device.get(1..)?.split_once(':')?;
    Some((name, kind, major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse;
    use rustix::fs::FileType;

    #[test]
    fn lines_of_depmod_are_understood_and_others_skipped() {
        let node = |name, major, minor| Some((name, FileType::CharacterDevice, major, minor));
        assert_eq!(parse("tun net/tun c10:200"), node("net/tun", 10, 200));
        assert_eq!(
            parse("floppy fd0 b2:0"),
            Some(("fd0", FileType::BlockDevice, 2, 0))
        );
        for strange in [
            "# Device nodes to trigger on-demand module loading.",
            "tun ../../etc/x c10:200",
            "tun /etc/x c10:200",
            "tun net/tun c10",
            "tun net/tun é10:200",
            "tun net/tun",
            "",
        ] {
            assert_eq!(parse(strange), None, "{strange}");
        }
    }
}
