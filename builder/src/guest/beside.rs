//! Files that lie beside a definition and come along as they are: a kernel, an initial RAM disk, further disks.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use guest_catalog::{BootFrom, Guest, Source};

use super::TryError;
use super::image::{RAW_NAME, SEED_NAME};

/// What initial RAM disks are called that are made here.
const INITRD_NAME: &str = "initrd.zst";
/// The definition itself, which is no file of the guest's.
const DEFINITION_NAME: &str = "guest.toml";

/// The files that the definition of `guest` names and that nothing here makes, by name, each where it is found first in
/// `places`. Absolute paths are dom0's.
///
/// # Errors
/// If one is in none of them.
pub fn files(guest: &Guest, places: &[PathBuf]) -> Result<Vec<(String, PathBuf)>, TryError> {
    let mut names: Vec<&str> = guest.disks.iter().map(|disk| disk.image.as_str()).collect();
    if guest.boot.from == BootFrom::Kernel {
        names.push(&guest.boot.kernel);
        names.extend(guest.boot.initrd.as_deref());
    }
    names.sort_unstable();
    names.dedup();
    names.retain(|name| !Path::new(name).is_absolute() && !is_made(guest, name));
    let found = names.into_iter().map(|name| {
        match find(name, places).filter(|_| name != DEFINITION_NAME) {
            Some(path) => Ok((name.to_owned(), path)),
            None => Err(TryError::NoImage {
                guest: guest.name.to_string(),
                file: name.to_owned(),
                places: places.to_vec(),
                homepage: guest.homepage.clone(),
            }),
        }
    });
    found.collect()
}

/// The first of `places` with a file `name`, and that file.
#[must_use]
pub fn find(name: &str, places: &[PathBuf]) -> Option<PathBuf> {
    let mut candidates = places.iter().map(|place| place.join(name));
    candidates.find(|candidate| candidate.is_file())
}

fn is_made(guest: &Guest, name: &str) -> bool {
    let makes: &[&str] = match guest.source {
        Source::Image(_) | Source::Package(_) | Source::Url(_) => &[RAW_NAME],
        Source::Debian(_) => &[RAW_NAME, INITRD_NAME],
        Source::Builtin(_) | Source::Oci(_) => &[INITRD_NAME],
    };
    let is_taken = guest.extract.iter().any(|taken| taken.to == name);
    is_taken || makes.contains(&name) || guest.seed.is_some() && name == SEED_NAME
}

/// Copies `files` into `folder`, where none of them is.
///
/// # Errors
/// If one cannot be read or written.
pub fn bring(files: &[(String, PathBuf)], folder: &Path) -> Result<(), TryError> {
    for (name, from) in files {
        let to = folder.join(name);
        let mut source = File::open(from).map_err(TryError::file("open", from))?;
        let target = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&to);
        let mut target = target.map_err(TryError::file("create", &to))?;
        io::copy(&mut source, &mut target).map_err(TryError::file("copy", from))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(text: &str) -> Guest {
        let head = "name = \"x\"\ndescription = \"x\"\nlicence = \"MIT\"\nmemory-mib = 128\nhealth.console = \"x\"\n";
        Guest::parse("x/guest.toml", &format!("{head}{text}")).unwrap()
    }

    #[test]
    fn what_is_not_made_here_is_brought() {
        let dir = tempfile::tempdir().unwrap();
        let (far, near) = (dir.path().join("far"), dir.path().join("near"));
        for folder in [&far, &near] {
            fs::create_dir(folder).unwrap();
        }
        let places = [near.clone(), far.clone()];
        for name in ["linux", "initrd.gz", "data.img", "guest.toml"] {
            fs::write(far.join(name), name).unwrap();
        }
        fs::write(near.join("linux"), "near").unwrap();
        let kernel = "source.image = { file = \"x.img\" }\nboot = { kernel = \"linux\", initrd = \"initrd.gz\" }\n";
        let disks = "disks = [{ device = \"xvda\", image = \"disk.img\" }, { device = \"xvdb\", image = \"IMAGE\" }]\n";
        let of = |image: &str| guest(&format!("{kernel}{}", disks.replace("IMAGE", image)));
        let found = files(&of("data.img"), &places).unwrap();
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["data.img", "initrd.gz", "linux"]);
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        bring(&found, &to).unwrap();
        assert_eq!(fs::read(to.join("linux")).unwrap(), b"near");
        assert_eq!(fs::read(to.join("data.img")).unwrap(), b"data.img");
        for missing in ["none.img", "guest.toml"] {
            let error = files(&of(missing), &places).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{missing}` of guest `x` is in none")),
                "{error}"
            );
        }
        assert!(files(&of("/srv/dom0.img"), &places).unwrap().len() == 2);
        let made = "source.builtin = \"tiny\"\nboot.initrd = \"initrd.zst\"\n";
        assert_eq!(files(&guest(made), &[]).unwrap(), []);
    }
}
