//! Packages for tests: honest ones by dpkg-deb, hostile ones by hand.
#![allow(dead_code)] // each test program uses a part

use std::path::{Path, PathBuf};
use std::process::Command;

/// One entry of a hand-made archive; the path is written as given, however bad.
pub struct Entry<'a> {
    path: &'a str,
    kind: u8,
    link: &'a str,
    body: &'a [u8],
}

impl<'a> Entry<'a> {
    pub fn file(path: &'a str, body: &'a [u8]) -> Self {
        Self {
            path,
            kind: b'0',
            link: "",
            body,
        }
    }
    pub fn dir(path: &'a str) -> Self {
        Self {
            path,
            kind: b'5',
            link: "",
            body: b"",
        }
    }
    pub fn symlink(path: &'a str, link: &'a str) -> Self {
        Self {
            path,
            kind: b'2',
            link,
            body: b"",
        }
    }
    pub fn hard_link(path: &'a str, link: &'a str) -> Self {
        Self {
            path,
            kind: b'1',
            link,
            body: b"",
        }
    }
    pub fn device(path: &'a str) -> Self {
        Self {
            path,
            kind: b'3',
            link: "",
            body: b"",
        }
    }
}

pub fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        if entry.path.len() > 99 {
            header(
                &mut out,
                "././@LongLink",
                b'L',
                "",
                entry.path.len() as u64 + 1,
            );
            body(&mut out, format!("{}\0", entry.path).as_bytes());
        }
        let path = &entry.path[..entry.path.len().min(99)];
        header(
            &mut out,
            path,
            entry.kind,
            entry.link,
            entry.body.len() as u64,
        );
        body(&mut out, entry.body);
    }
    out.extend([0; 1024]);
    out
}

fn header(out: &mut Vec<u8>, path: &str, kind: u8, link: &str, size: u64) {
    let mut block = [0_u8; 512];
    let mut put =
        |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, path);
    put(100, "0000755\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000001\0");
    put(148, "        ");
    put(157, link);
    put(257, "ustar  \0");
    block[156] = kind;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend(block);
}

fn body(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(bytes);
    out.resize(out.len().div_ceil(512) * 512, 0);
}

pub fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, body) in members {
        out.extend(
            format!(
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                0,
                0,
                0,
                100644,
                body.len()
            )
            .bytes(),
        );
        out.extend(*body);
        if body.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

pub fn control_tar(package: &str) -> Vec<u8> {
    let control =
        format!("Package: {package}\nVersion: 1.0\nArchitecture: all\nDescription: test\n");
    tar(&[Entry::file("./control", control.as_bytes())])
}

pub fn deb_with(data: &[u8]) -> Vec<u8> {
    ar(&[
        ("debian-binary", b"2.0\n"),
        ("control.tar", &control_tar("hostile")),
        ("data.tar", data),
    ])
}

/// A package by dpkg-deb. `fields` are further control fields; `control` and `files` are name, text, mode.
pub fn dpkg_deb(
    dir: &Path,
    package: &str,
    fields: &str,
    control: &[(&str, &str, u32)],
    files: &[(&str, &str, u32)],
    compression: &str,
) -> PathBuf {
    let root = dir.join(format!("{package}.root"));
    let text = format!(
        "Package: {package}\nVersion: 1.0\nArchitecture: all\nMaintainer: T <t@example.org>\n{fields}Description: test\n"
    );
    put(&root, "DEBIAN/control", &text, 0o644);
    for (name, text, mode) in control {
        put(&root, &format!("DEBIAN/{name}"), text, *mode);
    }
    for (name, text, mode) in files {
        put(&root, name, text, *mode);
    }
    let deb = dir.join(format!("{package}.deb"));
    let status = Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build", &format!("-Z{compression}")])
        .args([&root, &deb])
        .stdout(std::process::Stdio::null())
        .status()
        .expect("dpkg-deb is needed: apt install dpkg");
    assert!(status.success());
    deb
}

fn put(root: &Path, name: &str, text: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    for folder in path
        .ancestors()
        .skip(1)
        .take_while(|folder| folder.starts_with(root))
    {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}
