//! The program as a user runs it: what each subcommand says, word by word, and how it ends.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs the program in `dir`, without a desktop.
fn gasthaus(dir: &Path, args: &[&str]) -> Ran {
    run(Command::new(env!("CARGO_BIN_EXE_gasthaus"))
        .args(args)
        .current_dir(dir))
}

fn run(command: &mut Command) -> Ran {
    let output = command
        .env_remove("DISPLAY")
        .env_remove("WAYLAND_DISPLAY")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A run that fails with exactly this on stderr and nothing on stdout.
fn fails(dir: &Path, args: &[&str], code: i32, stderr: &str) {
    let ran = gasthaus(dir, args);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(code), "", stderr),
        "{args:?}"
    );
}

#[test]
fn init_writes_a_recipe_that_holds_and_overwrites_none() {
    let dir = TempDir::new().unwrap();
    let ran = gasthaus(dir.path(), &["init", "web"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""));
    assert_eq!(
        ran.stderr,
        "wrote web.toml; build it with `gasthaus build web.toml`\n"
    );
    let checked = gasthaus(dir.path(), &["check", "web.toml"]);
    assert!(
        checked
            .stdout
            .starts_with("web.toml: ok, image `web`, digest "),
        "{}",
        checked.stderr
    );
    fs::write(dir.path().join("web.toml"), "mine").unwrap();
    let exists = "error: `web.toml` exists already and is left as it is\nhint: name another, or remove it first\n";
    fails(dir.path(), &["init", "web"], 1, exists);
    assert_eq!(
        fs::read_to_string(dir.path().join("web.toml")).unwrap(),
        "mine"
    );
    let quiet = gasthaus(dir.path(), &["--quiet", "init"]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (Some(0), ""));
    assert!(dir.path().join("demo.toml").exists());
    let bad = "error: `../x` cannot name an image; allowed: `a`-`z`, `0`-`9` and `-`, a letter first, at most 40 characters\n";
    fails(dir.path(), &["init", "../x"], 2, bad);
}

#[test]
fn schema_is_printed() {
    let ran = gasthaus(Path::new("."), &["schema"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(ran.stdout, include_str!("../recipe.schema.json"));
}

#[test]
fn completions_are_scripts_their_shells_can_read() {
    let dir = TempDir::new().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let ran = gasthaus(dir.path(), &["completions", shell]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        assert!(ran.stdout.contains("memory-mib"), "{shell}");
        let script = dir.path().join(shell);
        fs::write(&script, &ran.stdout).unwrap();
        match Command::new(shell).arg("-n").arg(&script).output() {
            Ok(output) => assert!(
                output.status.success(),
                "{shell}: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(_) => eprintln!("{shell} is not installed: its script was not read"),
        }
    }
}

#[test]
fn man_pages_cover_the_subcommands() {
    let dir = TempDir::new().unwrap();
    let ran = gasthaus(dir.path(), &["man", "pages/man1"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (Some(0), "wrote the manual pages to pages/man1\n")
    );
    for page in [
        "gasthaus",
        "gasthaus-check",
        "gasthaus-run",
        "gasthaus-inspect",
        "gasthaus-verify",
    ] {
        let text = fs::read_to_string(dir.path().join(format!("pages/man1/{page}.1"))).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    fs::write(dir.path().join("file"), "").unwrap();
    fails(
        dir.path(),
        &["man", "file"],
        1,
        "error: cannot write `file`\n  File exists (os error 17)\n",
    );
}

#[test]
fn every_subcommand_has_help_and_wrong_usage_ends_with_2() {
    let dir = TempDir::new().unwrap();
    let here = dir.path();
    let help = gasthaus(here, &["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    let commands = help
        .stdout
        .split("Commands:\n")
        .nth(1)
        .unwrap()
        .split("\n\n")
        .next()
        .unwrap();
    let names: Vec<&str> = commands
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for expected in [
        "check",
        "init",
        "run",
        "inspect",
        "verify",
        "schema",
        "serve",
        "completions",
        "man",
    ] {
        assert!(names.contains(&expected), "{expected} is not in {names:?}");
    }
    for name in names.into_iter().filter(|name| *name != "help") {
        let ran = gasthaus(here, &[name, "--help"]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{name}");
        assert!(
            ran.stdout.contains(&format!("Usage: gasthaus {name}")),
            "{}",
            ran.stdout
        );
        let wrong = gasthaus(here, &[name, "--no-such-option"]);
        assert_eq!((wrong.code, wrong.stdout.as_str()), (Some(2), ""), "{name}");
        assert!(
            wrong
                .stderr
                .starts_with("error: unexpected argument '--no-such-option' found\n"),
            "{}",
            wrong.stderr
        );
    }
    let wrong: [&[&str]; 6] = [
        &["run"],
        &["frobnicate"],
        &["-q", "-v", "schema"],
        &["completions", "tcsh"],
        &["run", "--memory-mib", "1", "x"],
        &["run", "--nic", "e1000,mac=1", "x"],
    ];
    for args in wrong {
        assert_eq!(gasthaus(here, args).code, Some(2), "{args:?}");
    }
}

#[test]
fn color_is_as_asked() {
    let here = Path::new(".");
    let ran = gasthaus(here, &["--color", "always", "check", "nope"]);
    assert!(
        ran.stderr
            .starts_with("\u{1b}[1;31merror\u{1b}[0m: there is no recipe"),
        "{}",
        ran.stderr
    );
    assert!(!gasthaus(here, &["check", "nope"]).stderr.contains('\u{1b}'));
}

#[test]
fn run_prints_its_command_quoted() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("my image.iso"), [0; 4096]).unwrap();
    let args = [
        "run",
        "my image.iso",
        "--accel",
        "tcg",
        "--print",
        "--serial",
        "--nic",
        "virtio",
        "--cpus",
        "4",
    ];
    let ran = gasthaus(dir.path(), &args);
    if ran
        .stderr
        .starts_with("error: `qemu-system-x86_64` is needed")
    {
        assert!(
            std::env::var_os("CI").is_none(),
            "in CI a missing tool is a failure"
        );
        eprintln!("skipped: qemu-system-x86_64 is not installed: `apt install qemu-system-x86`");
        return;
    }
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let (_, arguments) = ran.stdout.split_once("qemu-system-x86_64 ").unwrap();
    assert_eq!(
        arguments,
        "-name gasthaus -machine q35 -accel 'tcg,thread=multi' -cpu 'max,-rdtscp' -smp 4 -m 2048 \
         -drive 'id=medium,if=none,format=raw,media=cdrom,readonly=on,file=my image.iso' \
         -device 'ide-cd,drive=medium,bus=ide.0,bootindex=0' -netdev 'user,id=net0' \
         -device 'virtio-net-pci,netdev=net0' -device virtio-rng-pci -display none -serial stdio -monitor none\n"
    );
}

#[test]
fn run_refuses_what_is_no_image() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("short"), "x").unwrap();
    let nothing =
        "error: cannot read the image `nope.iso`\n  No such file or directory (os error 2)\n";
    fails(dir.path(), &["run", "nope.iso"], 1, nothing);
    for (image, found) in [
        (".", "a folder"),
        ("short", "shorter than a sector"),
        ("/dev/null", "neither a file nor a block device"),
    ] {
        let expected = "expected a file or a block device with at least one sector";
        fails(
            dir.path(),
            &["run", image],
            1,
            &format!("error: the image `{image}` is {found}; {expected}\n"),
        );
    }
}

/// Stand-ins for QEMU: what the real one does is tried by `ci/boot-tests`.
#[test]
fn run_tells_what_became_of_qemu() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.iso"), [0; 4096]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gasthaus"));
    command
        .args(["run", "a.iso", "--accel", "tcg", "--serial"])
        .current_dir(dir.path())
        .env("PATH", dir.path());
    let ran = run(&mut command);
    let missing = "error: `qemu-system-x86_64` is needed to boot an image, but is not on PATH\n\
                   hint: install it: `apt install qemu-system-x86` (Debian, Ubuntu), ";
    assert!(
        ran.code == Some(1) && ran.stderr.starts_with(missing),
        "{}",
        ran.stderr
    );
    let qemu = dir.path().join("qemu-system-x86_64");
    fs::write(&qemu, "#!/bin/sh\necho \"booted $9\"\nexit 3\n").unwrap();
    fs::set_permissions(&qemu, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let ran = run(&mut command);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), "booted -smp\n"));
    assert_eq!(
        ran.stderr,
        format!(
            "error: `{}` ended with exit status: 3\nhint: `gasthaus run --print …` shows the command, to try it with other options\n",
            qemu.display()
        )
    );
}

#[test]
fn inspect_and_verify_tell_what_is_no_medium() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("zeros"), [0; 65536]).unwrap();
    let ran = gasthaus(dir.path(), &["inspect", "zeros"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert!(
        ran.stderr
            .starts_with("error: cannot inspect the image `zeros`\n  not a boot medium: "),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.ends_with(
        "hint: give an unpacked `.iso` or raw disk image, or the device it was written to\n"
    ));
    let ran = gasthaus(dir.path(), &["verify", "zeros"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert!(
        ran.stderr
            .starts_with("error: the image `zeros` has a problem\n  image (byte 0): "),
        "{}",
        ran.stderr
    );
    for command in ["inspect", "verify"] {
        let missing =
            "error: cannot open the image `nope`\n  No such file or directory (os error 2)\n";
        fails(dir.path(), &[command, "nope"], 1, missing);
        let folder = "error: the image `.` is a folder; expected a file or a block device\n";
        fails(dir.path(), &[command, "."], 1, folder);
    }
}
