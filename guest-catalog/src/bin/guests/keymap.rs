//! `guests keymap`: the keyboard layout of the consoles, which are all virtual terminals at once: dom0's log-ins and the guests' text
//! screens. A guest that is a whole PC gets keys by their places instead (`picture/`), and has its own layout.
//!
//! | says so | how |
//! |---|---|
//! | the recipe | `KEYMAP=<name>` in `/etc/vconsole.conf` (vconsole.conf(5)) |
//! | the boot, which counts more | `gasthaus.keymap=<name>` on the kernel's command line |
//! | somebody at a console | `guests keymap <name>` |
//!
//! Names are those of the files in `usr/share/gasthaus/keymaps`, which the builder makes; `loadkeys` reads them. The kernel's own layout,
//! `us`, stays where nobody says anything, and then nothing of this runs: the unit has conditions.
use crate::commands::print;
use crate::consoles::say;
use crate::error::Failure;
use crate::house::House;
use crate::program::{self, LOADKEYS};
use guest_catalog::nearest;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const FOLDER: &str = "usr/share/gasthaus/keymaps";
const END: &str = ".kmap.gz";
/// It takes some tenths of a second, and an emulated processor that boots is busy.
const LOAD_LIMIT: Duration = Duration::from_secs(60);
/// Most of a name that nobody knows in a message.
const SHOWN_CHARS: usize = 40;

/// `guests keymap`, `guests keymap <name>`.
pub fn run(house: &House, name: Option<&str>) -> Result<(), Failure> {
    let Some(name) = name else {
        return print(&format!("{}\n", names(house).join("\n")));
    };
    load(house, name)?;
    print(&format!("the consoles' keyboard layout is `{name}`\n"))
}

/// What the unit does: the boot's layout or the recipe's. One that is unknown is told at the machine and is no failure of the boot.
pub fn at_boot(house: &House) -> Result<(), Failure> {
    let Some(name) = wanted(house) else {
        return Ok(());
    };
    if let Err(failure) = load(house, &name) {
        let mut line = format!(
            "gasthaus: the keyboard's layout stays: {}",
            failure.in_one_line()
        );
        if let Some(hint) = failure.hint() {
            line = format!("{line} ({hint})");
        }
        say(house, &line);
    }
    Ok(())
}

fn wanted(house: &House) -> Option<String> {
    house.word("gasthaus.keymap").or_else(|| {
        let settings = house.read("etc/vconsole.conf");
        let mut values = settings
            .lines()
            .filter_map(|line| line.trim().strip_prefix("KEYMAP="));
        let value = values.next_back()?.trim_matches(['"', '\'', ' ']);
        (!value.is_empty()).then(|| value.to_owned())
    })
}

/// What there is, sorted.
fn names(house: &House) -> Vec<String> {
    let files = fs::read_dir(house.root().join(FOLDER))
        .into_iter()
        .flatten();
    let mut names: Vec<String> = files
        .flatten()
        .filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(END)?.to_owned()))
        .collect();
    names.sort();
    names
}

/// The file of a layout. A name is looked up among those that are there, so that none leads elsewhere.
fn file(house: &House, name: &str) -> Result<PathBuf, Failure> {
    let names = names(house);
    if !names.iter().any(|known| known == name) {
        return Err(Failure::NoKeymap {
            found: name
                .chars()
                .filter(|c| !c.is_control())
                .take(SHOWN_CHARS)
                .collect(),
            nearest: nearest(name, names.iter().map(String::as_str)).map(str::to_owned),
        });
    }
    let path = house.root().join(FOLDER).join(format!("{name}{END}"));
    // The file itself: maps name others that lie beside them.
    fs::canonicalize(&path).map_err(Failure::file("find the keyboard layout", &path))
}

fn load(house: &House, name: &str) -> Result<(), Failure> {
    let path = file(house, name)?;
    let purpose = format!("load the keyboard layout `{name}`");
    // `--console`: not that of whoever calls, which may be a serial line. `--unicode`: the kernel's consoles are, and `loadkeys`
    // would ask the one it is given, which may show a picture.
    let path = path.to_string_lossy();
    let args = ["--quiet", "--unicode", "--console=/dev/tty1", &path];
    program::run(LOADKEYS, &args, &purpose, LOAD_LIMIT).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn house_with(files: &[(&str, &str)]) -> (tempfile::TempDir, House) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let house = House::at(dir.path());
        (dir, house)
    }

    #[test]
    fn the_boot_counts_more_than_the_recipe() {
        for (line, settings, expected) in [
            ("quiet", "", None),
            ("quiet", "KEYMAP=de\n", Some("de")),
            ("quiet", "# KEYMAP=fr\nFONT=x\nKEYMAP=\"de\"\n", Some("de")),
            ("quiet", "KEYMAP=\n", None),
            ("gasthaus.keymap=fr", "KEYMAP=de\n", Some("fr")),
            ("gasthaus.keymap=fr gasthaus.keymap=us", "", Some("us")),
        ] {
            let (_dir, house) =
                house_with(&[("proc/cmdline", line), ("etc/vconsole.conf", settings)]);
            assert_eq!(wanted(&house).as_deref(), expected, "{line} {settings}");
        }
    }

    #[test]
    fn a_layout_is_one_of_those_that_are_there() {
        let map = "usr/share/keymaps/i386/qwertz/de-latin1.kmap.gz";
        let (dir, house) = house_with(&[(map, ""), ("etc/secret.kmap.gz", "")]);
        let folder = dir.path().join(FOLDER);
        fs::create_dir_all(&folder).unwrap();
        let link = |name: &str| {
            let target = Path::new("../../keymaps/i386/qwertz/de-latin1.kmap.gz");
            std::os::unix::fs::symlink(target, folder.join(name)).unwrap();
        };
        link("de.kmap.gz");
        link("de-deadkeys.kmap.gz");
        assert_eq!(names(&house), ["de", "de-deadkeys"]);
        let found = file(&house, "de").unwrap();
        assert_eq!(found, fs::canonicalize(dir.path().join(map)).unwrap());
        for (name, message, hint) in [
            (
                "dee",
                "there is no keyboard layout `dee`",
                "did you mean `de`?",
            ),
            (
                "../../../../etc/secret",
                "there is no keyboard layout `../../../../etc/secret`",
                "`guests keymap` lists them",
            ),
            (
                "x\u{1b}[2J",
                "there is no keyboard layout `x[2J`",
                "`guests keymap` lists them",
            ),
        ] {
            let failure = file(&house, name).unwrap_err();
            assert_eq!(failure.to_string(), message);
            assert!(failure.hint().unwrap().starts_with(hint), "{failure:?}");
        }
    }
}
