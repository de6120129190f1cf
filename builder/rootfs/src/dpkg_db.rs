//! dpkg's database (`/var/lib/dpkg`) for packages that are unpacked and not yet configured.
//!
//! In: packages and what they left in the tree. Out: `status` with `install ok unpacked`, `info/*` with file lists and
//! control members, the trigger interests, and the empty files dpkg expects; the same as `dpkg --unpack` leaves
//! (deb-triggers(5), dpkg's `lib/dpkg/{dbmodify,dump,infodb}.c`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::RootfsError;
use crate::root_dir::RootDir;
use crate::unpack::{Package, Unpacked};

const ADMIN: &str = "var/lib/dpkg";

/// Writes the database. `packages[i]` left `unpacked[i]`.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write(
    tree: &Path,
    packages: &[Package],
    unpacked: &[Unpacked],
) -> Result<(), RootfsError> {
    let mut db = Db::open(tree)?;
    let mut status = String::new();
    let mut triggers = Triggers::default();
    for (package, unpacked) in packages.iter().zip(unpacked) {
        let control = &package.control;
        let stem = control.info_stem();
        db.put(
            &format!("info/{stem}.list"),
            0o644,
            &file_list(&unpacked.paths),
        )?;
        for (name, (mode, bytes)) in &control.files {
            if name != "control" {
                let mode = if mode & 0o111 == 0 { 0o644 } else { 0o755 };
                db.put(&format!("info/{stem}.{name}"), mode, bytes)?;
            }
        }
        if let Some((_, bytes)) = control.files.get("triggers") {
            triggers.add(&stem, &String::from_utf8_lossy(bytes));
        }
        status_paragraph(&mut status, package, unpacked);
    }
    db.put("info/format", 0o644, b"1\n")?;
    db.put("status", 0o644, status.as_bytes())?;
    for name in [
        "available",
        "diversions",
        "statoverride",
        "lock",
        "triggers/Lock",
    ] {
        let mode = if name.ends_with("ock") { 0o640 } else { 0o644 };
        db.put_if_missing(name, mode)?;
    }
    db.put("triggers/File", 0o644, triggers.file.as_bytes())?;
    db.put("triggers/Unincorp", 0o644, b"")?;
    for (name, packages) in &triggers.explicit {
        db.put(&format!("triggers/{name}"), 0o644, packages.as_bytes())?;
    }
    for folder in ["alternatives", "parts", "updates"] {
        db.folder(folder)?;
    }
    Ok(())
}

/// Every package must be `install ok installed`.
///
/// # Errors
/// [`RootfsError::NotInstalled`] for the first that is not.
pub(crate) fn check_installed(tree: &Path) -> Result<usize, RootfsError> {
    let path = tree.join(ADMIN).join("status");
    let text = std::fs::read_to_string(&path).map_err(|source| RootfsError::Tree {
        action: "read",
        path,
        source,
    })?;
    let mut count = 0;
    let mut package = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("Package: ") {
            package = name;
            count += 1;
        } else if let Some(status) = line.strip_prefix("Status: ")
            && status != "install ok installed"
        {
            return Err(RootfsError::NotInstalled {
                package: package.to_owned(),
                status: status.to_owned(),
            });
        }
    }
    Ok(count)
}

/// dpkg's format: absolute, the root as `/.`, one a line.
fn file_list(paths: &[PathBuf]) -> Vec<u8> {
    let mut list = b"/.\n".to_vec();
    for path in paths {
        list.push(b'/');
        list.extend(path.as_os_str().as_bytes());
        list.push(b'\n');
    }
    list
}

fn status_paragraph(status: &mut String, package: &Package, unpacked: &Unpacked) {
    let control = &package.control;
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: &str| {
        let blank = if value.starts_with('\n') { "" } else { " " };
        let _ = writeln!(status, "{name}:{blank}{value}");
    };
    line("Package", &control.package);
    line("Status", "install ok unpacked");
    for (name, value) in control.fields.iter() {
        // `Description` last, as dpkg itself writes it; the others are set here.
        let ours = [
            "Package",
            "Status",
            "Conffiles",
            "Config-Version",
            "Description",
        ];
        if !ours.iter().any(|known| known.eq_ignore_ascii_case(name)) && !value.is_empty() {
            line(name, value);
        }
    }
    let conffiles: String = control
        .conffiles
        .iter()
        .map(|conffile| {
            let known = unpacked.conffile_md5.get(&conffile.path);
            let md5 = known.map_or("newconffile", String::as_str);
            let flag = if conffile.remove_on_upgrade {
                " remove-on-upgrade"
            } else {
                ""
            };
            format!("\n {} {md5}{flag}", conffile.path)
        })
        .collect();
    if !conffiles.is_empty() {
        line("Conffiles", &conffiles);
    }
    if let Some(description) = control.fields.get("Description") {
        line("Description", description);
    }
    status.push('\n');
}

/// Interests, as dpkg notes them when it unpacks.
#[derive(Default)]
struct Triggers {
    /// `triggers/File`: path, package, per line.
    file: String,
    /// `triggers/<name>`: one package per line.
    explicit: BTreeMap<String, String>,
}

impl Triggers {
    fn add(&mut self, package: &str, text: &str) {
        let mut seen = BTreeSet::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let (Some(verb), Some(name)) = (words.next(), words.next()) else {
                continue;
            };
            let noawait = match verb {
                "interest" | "interest-await" => "",
                "interest-noawait" => "/noawait",
                _ => continue,
            };
            if !seen.insert(name.to_owned()) {
                continue;
            }
            if name.starts_with('/') {
                let _ = writeln!(self.file, "{name} {package}{noawait}");
            } else if !name.contains('/') && !name.starts_with('.') {
                let list = self.explicit.entry(name.to_owned()).or_default();
                let _ = writeln!(list, "{package}{noawait}");
            }
        }
    }
}

struct Db {
    root: RootDir,
    tree: PathBuf,
}

impl Db {
    fn open(tree: &Path) -> Result<Self, RootfsError> {
        let root = RootDir::open(tree).map_err(|source| RootfsError::Tree {
            action: "open the tree",
            path: tree.to_owned(),
            source,
        })?;
        Ok(Self {
            root,
            tree: tree.to_owned(),
        })
    }

    fn put(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<(), RootfsError> {
        let path = Path::new(ADMIN).join(name);
        let written = self.root.write(&path, mode, bytes);
        written.map_err(|source| RootfsError::Tree {
            action: "write",
            path: self.tree.join(path),
            source,
        })
    }

    fn put_if_missing(&mut self, name: &str, mode: u32) -> Result<(), RootfsError> {
        if self.tree.join(ADMIN).join(name).symlink_metadata().is_ok() {
            return Ok(());
        }
        self.put(name, mode, b"")
    }

    fn folder(&mut self, name: &str) -> Result<(), RootfsError> {
        // The parent of a file in it is created; the file itself is not.
        let inside = Path::new(ADMIN).join(name).join("x");
        let made = self.root.parent(&inside).map(drop);
        made.map_err(|source| RootfsError::Tree {
            action: "create",
            path: self.tree.join(inside),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interests() {
        let mut triggers = Triggers::default();
        let text = "# c\ninterest /usr/lib\ninterest-noawait ldconfig\nactivate-noawait x\ninterest ../evil\ninterest /usr/lib\n";
        triggers.add("a", text);
        triggers.add("b:amd64", "interest ldconfig # why\n");
        assert_eq!(triggers.file, "/usr/lib a\n");
        let expected = BTreeMap::from([("ldconfig".to_owned(), "a/noawait\nb:amd64\n".to_owned())]);
        assert_eq!(triggers.explicit, expected);
    }

    #[test]
    fn lists() {
        let list = file_list(&["usr".into(), "usr/bin".into()]);
        assert_eq!(list, b"/.\n/usr\n/usr/bin\n");
    }
}
