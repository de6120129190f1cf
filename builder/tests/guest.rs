//! `gasthaus guest` as a user runs it, up to the command that would boot the guest: images from folders and from a
//! server, in the formats of virtual machines; what is refused, and in which words.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use gasthaus_debian::Sha256Digest;
use tempfile::TempDir;

#[allow(dead_code, reason = "other tests need the rest of it")]
#[path = "../debian/tests/support/server.rs"]
mod server;
use server::{Answer, Server};

#[allow(dead_code, reason = "other tests need the rest of it")]
#[path = "../debian/tests/support/keys.rs"]
mod keys;

use base64::Engine as _;
use ed25519_dalek::Signer as _;
use sha2::Digest as _;

/// What the keys are asked with.
fn now_epoch_secs() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

const DISK_BYTES: usize = 2 << 20;

fn gasthaus(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gasthaus"))
        .args(["--quiet", "guest"])
        .args(arguments)
        .current_dir(dir)
        .env("GASTHAUS_CACHE", dir.join("cache"))
        .env("TMPDIR", dir) // what --print leaves
        .env_remove("GASTHAUS_IMAGES")
        .output()
        .unwrap()
}

fn signify_key(seed: u8) -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&[seed; 32])
}

/// What a file of signify(1) holds: a comment, and in base64 the algorithm, the key's number and the key or signature.
fn signify(comment: &str, what: &[u8]) -> String {
    let bytes = [b"Ed", &[1, 2, 3, 4, 5, 6, 7, 8][..], what].concat();
    let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!("untrusted comment: {comment}\n{encoded}\n")
}

fn stdout(output: &Output) -> String {
    let (out, err) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{err}");
    String::from_utf8(out.clone()).unwrap()
}

/// What it says when it fails.
fn stderr(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A definition of the guest `x` with this source, in the file it returns.
fn definition(dir: &Path, source: &str) -> String {
    let text = format!(
        "name = \"x\"\ndescription = \"x\"\nlicence = \"MIT\"\nmodes = [\"kvm\"]\nmemory-mib = 32\n{source}\n\
         boot.from = \"bios\"\nhealth.screen = \"x\"\ndisks = [{{ device = \"hda\", image = \"disk.img\" }}]\n"
    );
    fs::write(dir.join("guest.toml"), text).unwrap();
    "./guest.toml".to_owned()
}

fn disk() -> Vec<u8> {
    let mut disk = vec![0; DISK_BYTES];
    for (index, byte) in disk[100_000..900_000].iter_mut().enumerate() {
        *byte = (index * index / 1000) as u8;
    }
    disk
}

fn qemu_img(arguments: &[&str], dir: &Path) {
    let output = Command::new("qemu-img")
        .args(arguments)
        .current_dir(dir)
        .output()
        .expect("qemu-img (Debian package qemu-utils; `ci/lib/install.sh` installs it)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// The guest's disk, as `guest try` would boot it.
fn prints(dir: &Path, more: &[&str]) -> String {
    let arguments = [&["try", "./guest.toml", "--print"], more].concat();
    stdout(&gasthaus(dir, &arguments))
}

#[test]
fn a_guest_comes_from_an_address_once() {
    let (server, dir) = (Server::start(), TempDir::new().unwrap());
    let dir = dir.path();
    fs::write(dir.join("raw"), disk()).unwrap();
    qemu_img(&["convert", "-O", "qcow2", "-c", "raw", "x.qcow2"], dir);
    let image = fs::read(dir.join("x.qcow2")).unwrap();
    fs::remove_file(dir.join("x.qcow2")).unwrap();
    let digest = Sha256Digest::of(&image).to_string();
    // Broken off once: resumed.
    server.put("a/x.qcow2", Answer::CutOnce(20_000, image.clone()));
    let source = format!(
        "source.url = {{ url = \"{}/a/x.qcow2\", sha256 = \"{digest}\" }}",
        server.base
    );
    definition(dir, &source);
    let line = prints(dir, &[]);
    // The command can be run: its disk is still there.
    let (_, named) = line.split_once("file=").unwrap();
    let disk_file = &named[..named.find("disk.img").unwrap() + "disk.img".len()];
    assert_eq!(fs::read(disk_file).unwrap(), disk(), "{line}");
    assert!(
        line.contains("format=raw,if=ide") && line.contains("disk.img"),
        "{line}"
    );
    let cached = dir.join("cache/inputs").join(&digest);
    assert!(fs::read(&cached).unwrap() == image);
    let asked = server.requests().len();
    assert!(asked >= 2, "{:?}", server.requests());
    prints(dir, &["--offline"]);
    assert_eq!(server.requests().len(), asked);
    let shown = stdout(&gasthaus(dir, &["show", "./guest.toml"]));
    assert!(shown.contains(&format!("{}/a/x.qcow2", server.base)) && shown.contains(&digest));

    // Without the cache, a folder that has the file will do.
    fs::remove_dir_all(dir.join("cache")).unwrap();
    let error = stderr(&gasthaus(
        dir,
        &["try", "./guest.toml", "--print", "--offline"],
    ));
    assert_eq!(
        error,
        format!(
            "error: `x.qcow2` is not in the download cache, and `{}/a/x.qcow2` may not be asked offline\n\
             hint: run once without `--offline`, or name the folder of the file with `--images DIR`\n",
            server.base
        )
    );
    fs::create_dir(dir.join("images")).unwrap();
    fs::write(dir.join("images/x.qcow2"), &image).unwrap();
    prints(dir, &["--offline", "--images", "images"]);
}

#[test]
fn the_publishers_list_says_which_bytes() {
    let (server, dir) = (Server::start(), TempDir::new().unwrap());
    let (dir, image) = (dir.path(), disk());
    let digest = Sha256Digest::of(&image).to_string();
    server.put("x.img", Answer::Body(image.clone()));
    let list = format!("{}  other.img\n{digest} *x.img\n", "0".repeat(64));
    server.put("SHA256SUMS", Answer::Body(list.into_bytes()));
    let source = format!(
        "source.url = {{ url = \"{0}/x.img\", sums = \"{0}/SHA256SUMS\" }}",
        server.base
    );
    definition(dir, &source);
    prints(dir, &[]);
    assert!(dir.join("cache/inputs").join(&digest).exists());

    server.put("SHA256SUMS", Answer::Body(b"<html>".to_vec()));
    let error = stderr(&gasthaus(dir, &["try", "./guest.toml", "--print"]));
    assert_eq!(
        error,
        format!(
            "error: the list `{}/SHA256SUMS` has no digest of it in 1 lines; expected the SHA-256 or SHA-512 of `x.img`\n\
             hint: look at the publisher's page; the file may be called otherwise\n",
            server.base
        )
    );
    server.put("SHA256SUMS", Answer::Body(vec![b'\n'; 5 << 20]));
    let error = stderr(&gasthaus(dir, &["try", "./guest.toml", "--print"]));
    assert!(
        error.contains("is too long: at least 4194305 bytes"),
        "{error}"
    );

    // SHA-512, as a publisher signs it: what the list says is believed for the signature alone.
    let long: [u8; 64] = sha2::Sha512::digest(disk()).into();
    let long: String = long.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("SHA512 (x.img) = {long}\n");
    server.put("SHA512SUMS", Answer::Body(list.clone().into_bytes()));
    let source = format!(
        "source.url = {{ url = \"{0}/x.img\", sums = \"{0}/SHA512SUMS\" }}",
        server.base
    );
    definition(dir, &source);
    fs::remove_dir_all(dir.join("cache")).unwrap();
    prints(dir, &[]);
    assert!(dir.join("cache/inputs").join(&digest).exists());
    let (key, other) = (keys::generate(1), keys::generate(2));
    let public = keys::public(&key).to_armored_string(Default::default());
    let signed = |by| keys::detached(&list, by, &keys::Manner::default());
    let source = format!(
        "source.url = {{ url = \"{0}/x.img\", sums = \"{0}/SHA512SUMS\", signature = \"{0}/SHA512SUMS.asc\", key = \"\"\"\n{1}\"\"\" }}",
        server.base,
        public.unwrap()
    );
    definition(dir, &source);
    let put = |by| {
        let signature = signed(by).to_armored_bytes(Default::default()).unwrap();
        server.put("SHA512SUMS.asc", Answer::Body(signature));
    };
    put(&key);
    prints(dir, &[]);
    put(&other);
    let error = stderr(&gasthaus(dir, &["try", "./guest.toml", "--print"]));
    assert!(
        error.contains("/SHA512SUMS` is not believed\n  it is signed by ")
            && error.contains("not by the key given for it")
            && error.contains("hint: compare `key`"),
        "{error}"
    );

    // As OpenBSD's are: signed by signify, and the signature before the list.
    let (key, wrong) = (signify_key(1), signify_key(2));
    let source = format!(
        "source.url = {{ url = \"{0}/x.img\", sums = \"{0}/SHA512.sig\", key = \"\"\"\n{1}\"\"\" }}",
        server.base,
        signify("public key", &key.verifying_key().to_bytes())
    );
    definition(dir, &source);
    let put = |by: &ed25519_dalek::SigningKey| {
        let signature = signify("verify it", &by.sign(list.as_bytes()).to_bytes());
        let text = format!("{signature}{list}");
        server.put("SHA512.sig", Answer::Body(text.into_bytes()));
    };
    put(&key);
    prints(dir, &[]);
    put(&wrong);
    let error = stderr(&gasthaus(dir, &["try", "./guest.toml", "--print"]));
    assert!(
        error.contains(
            "/SHA512.sig` is not believed\n  it is not what key `0102030405060708` signed"
        ),
        "{error}"
    );

    // A list that nobody vouches for.
    definition(
        dir,
        "source.url = { url = \"https://example.org/x.img\", sums = \"http://example.org/SUMS\" }",
    );
    let error = stderr(&gasthaus(dir, &["check", "guest.toml"]));
    assert!(
        error.contains("`source.url.sums`") && error.contains("use `https://`"),
        "{error}"
    );
}

#[test]
fn what_a_server_does_wrong_is_said() {
    let (server, dir) = (Server::start(), TempDir::new().unwrap());
    let (dir, image) = (dir.path(), disk());
    let digest = Sha256Digest::of(&image).to_string();
    let source = format!(
        "source.url = {{ url = \"{}/x.img\", sha256 = \"{digest}\" }}",
        server.base
    );
    definition(dir, &source);
    let mut other = image.clone();
    other[7] = 7;
    for (answer, words) in [
        (
            Answer::Status(404),
            "does not exist (status 404)\nhint: publishers move old versions",
        ),
        (Answer::Status(403), "answered with status 403"),
        (Answer::Body(other), "has SHA-256 `"),
        (
            Answer::UntilClose(image.clone()),
            "does not say how long the file is",
        ),
    ] {
        server.put("x.img", answer);
        let error = stderr(&gasthaus(dir, &["try", "./guest.toml", "--print"]));
        assert!(error.contains(words), "{words}: {error}");
        assert!(!dir.join("cache/inputs").join(&digest).exists());
    }
    server.put("x.img", Answer::Body(image));
    prints(dir, &[]);
}

#[test]
fn images_that_are_not_what_they_should_be_are_refused() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    definition(dir, "source.image = { file = \"x.img\" }");
    let tried = || stderr(&gasthaus(dir, &["try", "./guest.toml", "--print"]));
    fs::write(dir.join("secret"), disk()).unwrap();
    let secret = dir.join("secret");
    let secret = secret.to_str().unwrap();
    qemu_img(
        &[
            "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", "x.img",
        ],
        dir,
    );
    assert_eq!(
        tried(),
        format!(
            "error: the image `./x.img` is a qcow2 disk image that cannot be used\n  \
             it is not all of the disk: its backing file is `{secret}`, which is not followed\n\
             hint: if you trust it, make one file of it where it was made: `qemu-img convert -O raw ./x.img disk.img`\n"
        )
    );
    fs::write(dir.join("x.img"), "<!DOCTYPE html><title>Log in</title>").unwrap();
    assert_eq!(
        tried(),
        "error: the image `./x.img` is a web page; expected a disk (raw, qcow2, VMDK, VHD), floppy or disc, alone or inside gzip, \
         xz, zstd, bzip2 or zip\nhint: a server sent a page in place of the file: get it again\n"
    );
    qemu_img(&["convert", "-O", "vdi", "secret", "x.img"], dir);
    assert!(tried().contains("is a VDI disk image; expected"));
    qemu_img(&["convert", "-O", "vmdk", "secret", "x.img"], dir);
    let image = fs::read(dir.join("x.img")).unwrap();
    fs::write(dir.join("x.img"), &image[..image.len() / 2]).unwrap();
    let error = tried();
    assert!(
        error.contains("is a VMDK disk image that cannot be used\n  it is damaged or cut off: "),
        "{error}"
    );
}

#[test]
fn programs_for_firmware_and_kernels_alone_are_booted() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let head = "name = \"x\"\ndescription = \"x\"\nlicence = \"MIT\"\nmodes = [\"kvm\"]\nmemory-mib = 64\nhealth.console = \"x\"\n";
    // `MZ`, then PE's header at 128: amd64, an EFI application.
    let mut program = vec![0; 1024];
    for (at, bytes) in [
        (0, &b"MZ"[..]),
        (0x3c, &[128]),
        (128, b"PE\0\0\x64\x86"),
        (128 + 92, &[10]),
    ] {
        program[at..at + bytes.len()].copy_from_slice(bytes);
    }
    fs::write(dir.join("x.efi"), &program).unwrap();
    let uefi = "source.image = { file = \"x.efi\" }\nboot.from = \"uefi\"\ndisks = [{ device = \"hda\", image = \"disk.img\" }]\n";
    fs::write(dir.join("guest.toml"), format!("{head}{uefi}")).unwrap();
    let line = prints(dir, &[]);
    assert!(
        line.contains("if=pflash,unit=0")
            && line.contains("snapshot=on")
            && !line.contains("-bios"),
        "{line}"
    );
    stdout(&gasthaus(dir, &["prepare", "./guest.toml", "--to", "made"]));
    let disk = fs::read(dir.join("made/disk.img")).unwrap();
    assert_eq!(disk[510..512], [0x55, 0xaa]);
    assert!(disk.windows(program.len()).any(|part| part == program));

    fs::write(dir.join("x.elf"), vec![7; 1024]).unwrap();
    let kernel = "source.image = { file = \"x.elf\" }\nboot = { kernel = \"disk.img\", cmdline = \"one two\" }\n";
    fs::write(dir.join("guest.toml"), format!("{head}{kernel}")).unwrap();
    let line = prints(dir, &[]);
    assert!(
        line.contains("/disk.img -append 'one two gasthaus.guest=x'"),
        "{line}"
    );
}

/// Like `gasthaus`, but ended if it waits for what never comes.
fn within_a_minute(dir: &Path, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .arg("60")
        .arg(env!("CARGO_BIN_EXE_gasthaus"))
        .args(["--quiet", "guest"])
        .args(arguments)
        .current_dir(dir)
        .env("GASTHAUS_CACHE", dir.join("cache"))
        .output()
        .unwrap()
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("pipe.toml"), 0o600.into()).unwrap();
    for path in ["./pipe.toml", "/dev/zero"] {
        for arguments in [&["check", path][..], &["show", path]] {
            let error = stderr(&within_a_minute(dir, arguments));
            assert_eq!(
                error,
                format!(
                    "error: cannot read the guest definition `{path}`\n  it is no regular file\n"
                )
            );
        }
        let error = stderr(&within_a_minute(dir, &["add", path, "--name", "x"]));
        assert!(
            error.contains("it is neither a file nor a folder"),
            "{error}"
        );
    }
    let error = stderr(&gasthaus(dir, &["check", "."]));
    assert!(error.contains("`.`\n  is a directory"), "{error}");
}

#[test]
fn every_definition_is_checked_and_hints_are_for_this_host() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let good = "name = \"a\"\ndescription = \"x\"\nlicence = \"MIT\"\nmemory-mib = 32\nsource.builtin = \"tiny\"\n\
                boot.initrd = \"initrd.zst\"\nhealth.http = { port = 80 }\n";
    fs::write(dir.join("a.toml"), good).unwrap();
    fs::write(dir.join("b.toml"), good.replace("memory-mib", "memory-mb")).unwrap();
    let error = stderr(&gasthaus(
        dir,
        &["check", "none.toml", "a.toml", "b.toml", "."],
    ));
    for words in [
        "cannot read the guest definition `none.toml`: No such file",
        "did you mean `memory-mib`?",
        "cannot read the guest definition `.`: is a directory",
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
    // Both have one name: said although another cannot be read.
    fs::write(dir.join("b.toml"), good).unwrap();
    let error = stderr(&gasthaus(dir, &["check", "none.toml", "a.toml", "b.toml"]));
    assert!(
        error.contains("`none.toml`: No such") && error.contains("b.toml` "),
        "{error}"
    );
    let error = stderr(&gasthaus(dir, &["show", "quite-another"]));
    assert!(
        error.contains("hint: `gasthaus guest list` shows all guests"),
        "{error}"
    );
    // What can be written nowhere: this command has no `--out`.
    fs::write(dir.join("floppy.img"), vec![7; 1440 << 10]).unwrap();
    let error = stderr(&gasthaus(
        dir,
        &["add", "floppy.img", "--name", "x", "--to", "/proc/x"],
    ));
    assert!(!error.contains("--out"), "{error}");
}

#[test]
fn what_add_writes_is_what_try_boots() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    fs::write(dir.join("floppy.img"), vec![7; 1440 << 10]).unwrap();
    let said = stdout(&gasthaus(
        dir,
        &["add", "floppy.img", "--name", "floppy", "--screen", "A:\\>"],
    ));
    assert!(
        said.contains("guests = [\"./floppy/guest.toml\"]"),
        "{said}"
    );
    let line = stdout(&gasthaus(dir, &["try", "./floppy/guest.toml", "--print"]));
    assert!(
        line.contains("if=floppy,index=0") && line.contains("order=a"),
        "{line}"
    );
    let text = fs::read_to_string(dir.join("floppy/guest.toml")).unwrap();
    assert!(
        text.contains("display = \"both\"") && text.contains("screen = 'A:\\>'"),
        "{text}"
    );
    // `CD001` where a disc has it, and El Torito's word for one that BIOS boots.
    let mut disc = vec![0; 40 << 11];
    for (at, bytes) in [
        (16 << 11, &b"\x01CD001\x01"[..]),
        ((16 << 11) + 80, &[40, 0, 0, 0, 0, 0, 0, 40]),
        ((16 << 11) + 128, &[0, 8, 8, 0]),
        (17 << 11, b"\0CD001\x01EL TORITO SPECIFICATION"),
        ((17 << 11) + 71, &[20]),
        (18 << 11, b"\xFFCD001\x01"),
        (20 << 11, b"\x01"),
        ((20 << 11) + 28, &[0xAA, 0x55, 0x55, 0xAA]),
        ((20 << 11) + 32, &[0x88, 0, 0, 0, 0, 0, 4, 0, 21]),
    ] {
        disc[at..at + bytes.len()].copy_from_slice(bytes);
    }
    fs::write(dir.join("disc.iso"), disc).unwrap();
    let to = dir.join("made");
    let to = to.to_str().unwrap();
    let said = stdout(&gasthaus(
        dir,
        &["add", "disc.iso", "--name", "disc", "--to", to],
    ));
    assert!(
        said.contains(&format!("guests = [\"{to}/guest.toml\"]")),
        "{said}"
    );
    let line = stdout(&gasthaus(
        dir,
        &["try", &format!("{to}/guest.toml"), "--print"],
    ));
    assert!(
        line.contains("media=cdrom,readonly=on") && line.contains("order=d"),
        "{line}"
    );
    // A container image says nothing of its own when it is up; our init does.
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(1);
    header.set_uid(0);
    header.set_gid(0);
    layer.append_data(&mut header, "serve", &b"x"[..]).unwrap();
    let layer = layer.into_inner().unwrap();
    let config = format!(
        "{{\"config\":{{\"Cmd\":[\"/serve\"]}},\"rootfs\":{{\"diff_ids\":[\"sha256:{}\"]}}}}",
        Sha256Digest::of(&layer)
    );
    fs::create_dir(dir.join("saved")).unwrap();
    let list = r#"[{"Config":"config.json","Layers":["layer.tar"]}]"#;
    for (name, bytes) in [
        ("layer.tar", &layer[..]),
        ("config.json", config.as_bytes()),
        ("manifest.json", list.as_bytes()),
    ] {
        fs::write(dir.join("saved").join(name), bytes).unwrap();
    }
    stdout(&gasthaus(dir, &["add", "saved", "--name", "web"]));
    let text = fs::read_to_string(dir.join("web/guest.toml")).unwrap();
    assert!(text.contains("console = \"web: ready\""), "{text}");
    // What could not be tried is not written down.
    fs::write(dir.join("disk"), disk()).unwrap();
    qemu_img(
        &[
            "create", "-q", "-f", "qcow2", "-b", "disk", "-F", "raw", "over",
        ],
        dir,
    );
    let error = stderr(&gasthaus(dir, &["add", "over", "--name", "over-it"]));
    assert!(error.contains("its backing file is `disk`"), "{error}");
    assert!(!dir.join("over-it").exists());
}
