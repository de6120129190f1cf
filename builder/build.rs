//! Prepares what the program carries inside itself:
//!
//! - `overlays.tar`: the overlays, as a tar so that symlinks and executable bits survive embedding;
//! - `programs/`: the static programs that travel inside images (`gasthaus-live`, `guests`, `guest-page`,
//!   `house-page`), built by a nested cargo in a target folder of its own, so that `cargo run`, `cargo install` and a lone copied binary all
//!   have them.
//!
//! Only release builds carry the programs: `cargo check`, clippy and debug test runs must not pay for a second build.
//! Packagers who build the programs themselves name their folder in `GASTHAUS_PROGRAMS_DIR`.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Program name and the package it lives in.
const PROGRAMS: [(&str, &str); 4] = [
    ("gasthaus-live", "fuse-rootfs"),
    ("guests", "guest-catalog"),
    ("guest-page", "guest-catalog"),
    ("house-page", "guest-catalog/house-page"),
];
/// The packages that are built together. What the web server switches on in crates that others use, too, must not reach those:
/// it is built by itself.
const BUILDS: [&[&str]; 2] = [&["fuse-rootfs", "guest-catalog"], &["house-page"]];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?).join("embedded");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..");
    fs::create_dir_all(out.join("programs"))?;

    println!("cargo::rerun-if-changed=build.rs");
    println!(
        "cargo::rerun-if-changed={}",
        root.join("overlays").display()
    );
    pack_overlays(&root.join("overlays"), &out.join("overlays.tar"))?;

    println!("cargo::rerun-if-env-changed=GASTHAUS_PROGRAMS_DIR");
    for (program, package) in PROGRAMS {
        println!(
            "cargo::rerun-if-changed={}",
            root.join(package).join("src").display()
        );
        println!(
            "cargo::rerun-if-changed={}",
            root.join(package).join("Cargo.toml").display()
        );
        let _ = program;
    }
    println!(
        "cargo::rerun-if-changed={}",
        root.join("Cargo.lock").display()
    );
    if let Some(dir) = env::var_os("GASTHAUS_PROGRAMS_DIR") {
        return copy_programs(Path::new(&dir), &out.join("programs"));
    }
    if env::var("PROFILE")? == "release" {
        let built = build_programs(&root)?;
        copy_programs(&built, &out.join("programs"))?;
    }
    Ok(())
}

/// Walks `dir` sorted, so that equal overlays give equal bytes.
fn pack_overlays(dir: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let mut tar = tar::Builder::new(fs::File::create(out)?);
    tar.follow_symlinks(false);
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        let mut entries: Vec<_> = fs::read_dir(dir.join(&relative))?.collect::<Result<_, _>>()?;
        entries.sort_by_key(|e| e.file_name());
        for entry in entries {
            let path = relative.join(entry.file_name());
            let meta = fs::symlink_metadata(dir.join(&path))?;
            let mut header = tar::Header::new_gnu();
            header.set_metadata_in_mode(&meta, tar::HeaderMode::Deterministic);
            if meta.is_symlink() {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, &path, fs::read_link(dir.join(&path))?)?;
            } else if meta.is_dir() {
                tar.append_data(&mut header, &path, std::io::empty())?;
                todo.push(path);
            } else {
                tar.append_data(&mut header, &path, fs::File::open(dir.join(&path))?)?;
            }
        }
    }
    tar.into_inner()?;
    Ok(())
}

fn build_programs(root: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let triple = env::var("TARGET")?;
    // OUT_DIR is <target>/<triple>/<profile>/build/<package>/out.
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let target = out_dir
        .ancestors()
        .nth(5)
        .ok_or("OUT_DIR is not inside a target folder")?
        .join("image-programs");
    let workspace = root.canonicalize()?;
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| OsString::from("/"))).join(".cargo"),
        PathBuf::from,
    );
    // Small: no unwinding tables (the linker script says why), no relocations. The same bytes wherever the checkout and
    // cargo's home lie.
    let script = workspace.join("fuse-rootfs/image-programs.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Crelocation-model=static".to_owned(),
        "-Clink-arg=-Wl,--no-eh-frame-hdr".to_owned(),
        // Equal functions once: nothing here compares their addresses.
        "-Clink-arg=-Wl,--icf=all".to_owned(),
        "-Clink-arg=-Wl,-O2".to_owned(), // and equal ends of strings
        format!("-Clink-arg=-Wl,-T,{}", script.display()),
        format!("--remap-path-prefix={}=/gasthaus", workspace.display()),
        format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
    ];
    for packages in BUILDS {
        build_together(packages, &workspace, &triple, &target, &flags)?;
    }
    Ok(target.join(triple).join("image"))
}

fn build_together(
    packages: &[&str],
    workspace: &Path,
    triple: &str,
    target: &Path,
    flags: &[String],
) -> Result<(), Box<dyn Error>> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--profile", "image", "--bins", "--target", triple]);
    cargo
        .arg("--manifest-path")
        .arg(workspace.join("Cargo.toml"));
    cargo.arg("--target-dir").arg(target);
    for package in packages {
        cargo.args(["--package", package]);
    }
    // What the outer cargo told this script must not steer the inner one.
    for (key, _) in env::vars_os() {
        let Some(key) = key.to_str() else { continue };
        let steers = key.starts_with("CARGO_FEATURE_")
            || key.starts_with("CARGO_CFG_")
            || key.starts_with("CARGO_PROFILE_")
            || [
                "RUSTFLAGS",
                "RUSTC_WRAPPER",
                "RUSTC_WORKSPACE_WRAPPER",
                "RUSTC",
                "RUSTDOC",
                "TARGET",
                "HOST",
                "PROFILE",
            ]
            .contains(&key)
            || [
                "OPT_LEVEL",
                "DEBUG",
                "NUM_JOBS",
                "OUT_DIR",
                "CARGO_BUILD_TARGET",
                "CLIPPY_ARGS",
            ]
            .contains(&key);
        if steers {
            cargo.env_remove(key);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    let status = cargo
        .status()
        .map_err(|e| format!("cannot start cargo for the programs inside images: {e}"))?;
    if !status.success() {
        return Err(format!("building the programs inside images ended with {status}").into());
    }
    Ok(())
}

fn copy_programs(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    for (program, _) in PROGRAMS {
        let source = from.join(program);
        fs::copy(&source, to.join(program)).map_err(|e| {
            format!(
                "cannot take the program `{program}` from `{}`: {e}",
                source.display()
            )
        })?;
    }
    Ok(())
}
