//! Builds a tree from all packages of a folder and prints what each phase took and the tree's digest.
//!
//! `cargo run --release -p gasthaus-rootfs --example tree -- DEBS-FOLDER DEST EPOCH-SECS [plain] [listing]`

use std::error::Error;
use std::path::PathBuf;

use gasthaus_rootfs::{
    PathFilter, RootfsError, Sandbox, SandboxError, TreeOptions, build_tree, tree_digest,
};

fn main() {
    if let Err(error) = run() {
        let mut text = format!("error: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(&format!("\n  {cause}"));
            source = cause.source();
        }
        if let Some(hint) = hint(&*error) {
            text.push_str(&format!("\nhint: {hint}"));
        }
        eprintln!("{text}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [debs, dest, epoch_secs, flags @ ..] = &args[..] else {
        return Err(
            "usage: tree DEBS-FOLDER DEST EPOCH-SECS [plain] [slim] [log] [listing]".into(),
        );
    };
    let flag = |name: &str| flags.iter().any(|flag| flag == name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(debs)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "deb"));
    let mut sandbox = Sandbox::detect(epoch_secs.parse()?)?;
    if flag("plain") {
        sandbox = sandbox.plain().ok_or("`plain` needs root")?;
    }
    let dest = PathBuf::from(dest);
    sandbox.remove_tree(&dest)?;
    let mut options = TreeOptions::default();
    if flag("slim") {
        options.unpack.filter = PathFilter::slim();
    }
    if flag("log") {
        options.configure.log = Some(dest.with_extension("log"));
    }
    let report = build_tree(&sandbox, &files, &dest, &options, &|_| {})?;
    println!("{:?}: {report:?}", sandbox.mode());
    let digest = tree_digest(&sandbox, &dest)?;
    println!("digest {}", digest.hex);
    if flag("listing") {
        std::fs::write(dest.with_extension("listing"), digest.listing)?;
    }
    Ok(())
}

fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    let sandbox = error.downcast_ref::<SandboxError>();
    let rootfs = error.downcast_ref::<RootfsError>();
    sandbox
        .and_then(SandboxError::hint)
        .or_else(|| rootfs.and_then(RootfsError::hint))
}
