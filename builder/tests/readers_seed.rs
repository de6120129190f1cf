//! A guest's seed on a disc, as somebody else's reader of ISO 9660 sees it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

fn isoinfo(dir: &Path, arguments: &[&str]) -> String {
    let output: Output = Command::new("isoinfo")
        .args(["-i", "guest/seed.img"])
        .args(arguments)
        .current_dir(dir)
        .output()
        .expect("isoinfo (Debian package genisoimage; `ci/lib/install.sh` installs it)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn isoinfo_reads_a_seed() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    fs::write(dir.join("x.img"), vec![0; 1_474_560]).unwrap();
    fs::write(
        dir.join("guest.toml"),
        "name = \"cloud\"\ndescription = \"x\"\nlicence = \"MIT\"\nmodes = [\"kvm\"]\nmemory-mib = 64\n\
         source.image = { file = \"x.img\" }\nboot.from = \"bios\"\nhealth.console = \"login:\"\n\
         seed = { format = \"iso\", hostname = \"cloud9\", user = \"anna\", network-config = \"version: 2\\n\" }\n\
         [[disks]]\ndevice = \"hda\"\nimage = \"disk.img\"\n\
         [[disks]]\ndevice = \"hdc\"\nimage = \"seed.img\"\ncdrom = true\naccess = \"read-only\"\n",
    )
    .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_gasthaus"))
        .args([
            "--quiet",
            "guest",
            "prepare",
            "./guest.toml",
            "--to",
            "guest",
        ])
        .current_dir(dir)
        .env("GASTHAUS_CACHE", dir.join("cache"))
        .env_remove("GASTHAUS_IMAGES")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let about = isoinfo(dir, &["-d"]);
    assert!(about.contains("Volume id: cidata\n"), "{about}");
    let names = isoinfo(dir, &["-R", "-f"]);
    assert_eq!(names, "/meta-data\n/network-config\n/user-data\n");
    let read = |path: &str| isoinfo(dir, &["-R", "-x", path]);
    assert!(read("/meta-data").contains("\"local-hostname\":\"cloud9\""));
    assert!(read("/user-data").starts_with("#cloud-config\n"));
    assert_eq!(read("/network-config"), "version: 2\n");
}
