//! Stages `medium` and `manifest`: write the hybrid ISO, read it back, say what is in it, move it into place.
//!
//! In: kernel, layers, initramfs, boot menu. Out: `<name>.iso`, `<name>.iso.sha256` and `<name>.manifest.json` in the
//! output folder. The image is written under a hidden name and renamed only after every digest on it was read back.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use gasthaus_debian::lock::LockedRecipe;
use hypervisor_image::{
    BiosBoot, MediumFile, MediumManifest, MediumSpec, UefiBoot, verify, write_medium,
};
use sha2::{Digest as _, Sha256};

use super::StageCx;
use super::boot_menu::BootMenu;
use super::initramfs::Initramfs;
use super::kernel::Kernel;
use super::layers::Layers;
use crate::cache::{Key, hex};
use crate::error::BuildError;
use crate::manifest::{BuildManifest, FORMAT, GuestSummary, ImageFile, Input, Part, Run};

/// What goes on the medium.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// Linux and the hypervisor.
    pub kernel: &'a Kernel,
    /// The root's layers.
    pub layers: &'a Layers,
    /// What Linux unpacks first.
    pub initramfs: &'a Initramfs,
    /// GRUB.
    pub menu: &'a BootMenu,
}

/// A medium that is ready to be written.
#[derive(Debug)]
pub struct MediumPlan {
    spec: MediumSpec,
    build_id: String,
    name: String,
}

/// 16 hexadecimal digits over the keys of everything that goes on the medium.
#[must_use]
pub fn build_id(
    cx: &StageCx<'_>,
    kernel: &Kernel,
    layers: &Layers,
    initramfs: &Initramfs,
    menu_key: &Key,
) -> String {
    let mut keys: Vec<&str> = layers.0.iter().map(|layer| layer.key.as_str()).collect();
    keys.extend([
        kernel.key.as_str(),
        initramfs.key.as_str(),
        menu_key.as_str(),
        &cx.recipe.name,
        REVISION,
    ]);
    Key::of(keys).as_str()[..16].to_owned()
}

/// What names of unfinished images end in.
const PARTIAL: &str = ".iso.partial";
/// Raise when the layout of the medium changes.
const REVISION: &str = "medium-1";

/// Volume identifier of a build.
#[must_use]
pub fn volume_id(build_id: &str) -> String {
    format!("GASTHAUS_{}", build_id[..8].to_uppercase())
}

/// Refuses an output folder that cannot be written, before any work is done.
///
/// # Errors
/// If it cannot be made or written to.
pub fn check_out_dir(out_dir: &Path) -> Result<(), BuildError> {
    fs::create_dir_all(out_dir).map_err(BuildError::io("create the output folder", out_dir))?;
    let probe = out_dir.join(format!(".gasthaus-{}.probe", std::process::id()));
    File::create(&probe).map_err(BuildError::io("write to the output folder", out_dir))?;
    fs::remove_file(&probe).map_err(BuildError::io("write to the output folder", out_dir))?;
    sweep(out_dir)
}

/// Removes unfinished images that killed builds left: those nobody holds a lock on.
fn sweep(out_dir: &Path) -> Result<(), BuildError> {
    for entry in fs::read_dir(out_dir).map_err(BuildError::io("read the output folder", out_dir))? {
        let path = entry
            .map_err(BuildError::io("read the output folder", out_dir))?
            .path();
        let unfinished = path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with('.') && name.ends_with(PARTIAL)
        });
        if unfinished && File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            fs::remove_file(&path).map_err(BuildError::io("remove the unfinished image", &path))?;
        }
    }
    Ok(())
}

/// Puts every file in its place on the medium and takes its digest.
///
/// # Errors
/// If a part cannot be read.
pub fn plan_medium(cx: &StageCx<'_>, parts: &Parts<'_>) -> Result<MediumPlan, BuildError> {
    let build_id = parts.menu.build_id.clone();
    let home = format!("/gasthaus/{build_id}");
    let mut files = vec![
        MediumFile::new("/boot/vmlinuz", parts.kernel.vmlinuz()),
        MediumFile::new("/boot/initrd.zst", parts.initramfs.path.clone()),
        MediumFile::new("/gasthaus/build-id", format!("{build_id}\n").into_bytes()),
    ];
    if parts.kernel.has_xen {
        files.push(MediumFile::new("/boot/xen.gz", parts.kernel.xen()));
        files.push(MediumFile::new(
            "/boot/vmlinux.lz4",
            parts.kernel.vmlinux_lz4(),
        ));
    }
    let mut order = String::new();
    for layer in &parts.layers.0 {
        files.push(MediumFile::new(
            format!("{home}/{}.erofs", layer.name),
            layer.path.clone(),
        ));
        order.push_str(&format!("{}.erofs\n", layer.name));
    }
    files.push(MediumFile::new(
        format!("{home}/layers"),
        order.into_bytes(),
    ));
    finish_plan(cx, &cx.recipe.name, parts.menu, files)
}

/// Adds the menu's files and the medium's own manifest to `files`: a medium called `name`.
///
/// # Errors
/// If a part cannot be read.
pub fn finish_plan(
    cx: &StageCx<'_>,
    name: &str,
    menu: &BootMenu,
    mut files: Vec<MediumFile>,
) -> Result<MediumPlan, BuildError> {
    let build_id = menu.build_id.clone();
    let home = format!("/gasthaus/{build_id}");
    for (path, bytes) in &menu.files {
        files.push(MediumFile::new(format!("/{path}"), bytes.clone()));
    }
    let manifest = MediumManifest::of_files(&build_id, &files)?;
    files.push(MediumFile::new(
        format!("{home}/manifest.json"),
        manifest.to_json()?,
    ));
    files.sort_by(|a, b| a.path_on_medium.cmp(&b.path_on_medium));

    let spec = MediumSpec {
        volume_id: volume_id(&build_id),
        files,
        bios: Some(BiosBoot {
            eltorito_image: menu.bios_image.clone(),
            hybrid_mbr: menu.hybrid_mbr.clone(),
        }),
        uefi: Some(UefiBoot {
            esp_image: menu.esp_image.clone().into(),
        }),
        epoch_secs: cx.epoch_secs,
        seed: Key::of([build_id.as_bytes(), b"medium"]).seed(),
    };
    Ok(MediumPlan {
        spec,
        build_id,
        name: name.to_owned(),
    })
}

/// The image and manifest of an earlier build, if they are this very build's and whole.
#[must_use]
pub fn already_there(plan: &MediumPlan, out_dir: &Path) -> Option<(PathBuf, BuildManifest)> {
    let (name, build_id) = (&plan.name, &plan.build_id);
    let image = out_dir.join(format!("{name}.iso"));
    let text = fs::read(out_dir.join(format!("{name}.manifest.json"))).ok()?;
    let manifest: BuildManifest = serde_json::from_slice(&text).ok()?;
    if manifest.format != FORMAT || manifest.build_id != *build_id {
        return None;
    }
    let sums = fs::read_to_string(sums_path(&image)).ok()?;
    if fs::metadata(&image).ok()?.len() != manifest.image.bytes
        || !sums.starts_with(&manifest.image.sha256)
    {
        return None;
    }
    (sha256_of_file(&image).ok()? == manifest.image.sha256).then_some((image, manifest))
}

fn sums_path(image: &Path) -> PathBuf {
    image.with_extension("iso.sha256")
}

fn sha256_of_file(path: &Path) -> std::io::Result<String> {
    let mut file = Hashing {
        out: std::io::sink(),
        hash: Sha256::new(),
        bytes: 0,
    };
    std::io::copy(
        &mut BufReader::with_capacity(1 << 20, File::open(path)?),
        &mut file,
    )?;
    Ok(hex(&file.hash.finalize()))
}

/// An image that was written and verified but is not in place yet; removed when dropped.
#[derive(Debug)]
pub struct Written {
    partial: tempfile::NamedTempFile,
    plan_name: String,
    build_id: String,
    volume_id: String,
    bytes: u64,
    sha256: String,
    files: Vec<Part>,
}

/// Writes the image under a hidden name and verifies it by reading it back.
///
/// # Errors
/// If it cannot be written, or what is read back is not what was meant.
pub fn write_and_verify(
    cx: &StageCx<'_>,
    plan: &MediumPlan,
    out_dir: &Path,
) -> Result<Written, BuildError> {
    let (partial, bytes, sha256) = cx.stage("medium", "write", || {
        let file = tempfile::Builder::new()
            .prefix(&format!(".{}-", plan.name))
            .suffix(PARTIAL)
            .tempfile_in(out_dir)
            .map_err(BuildError::io("create the image in", out_dir))?;
        // Held until the file is in place or gone: another build sweeps what nobody holds.
        file.as_file()
            .lock()
            .map_err(BuildError::io("lock the image in", out_dir))?;
        let (bytes, sha256) = write_digested(&plan.spec, file.as_file(), out_dir)?;
        Ok(((file, bytes, sha256), false))
    })?;
    let report = cx.stage("medium", "verify", || {
        let mut file =
            File::open(partial.path()).map_err(BuildError::io("read back", partial.path()))?;
        Ok((verify(&mut file), false))
    })?;
    if !report.problems.is_empty() {
        return Err(BuildError::BadMedium {
            problems: report.problems.iter().map(ToString::to_string).collect(),
        });
    }
    let manifest = plan
        .spec
        .files
        .iter()
        .find(|file| file.path_on_medium.ends_with("/manifest.json"));
    let files = match manifest.map(|file| &file.source) {
        Some(hypervisor_image::Source::Bytes(json)) => MediumManifest::from_json(json)?.files,
        _ => Vec::new(),
    };
    let mut files: Vec<Part> = files
        .into_iter()
        .map(|file| Part {
            name: file.path,
            bytes: file.bytes,
            sha256: file.sha256,
        })
        .collect();
    files.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    Ok(Written {
        partial,
        plan_name: plan.name.clone(),
        build_id: plan.build_id.clone(),
        volume_id: plan.spec.volume_id.clone(),
        bytes,
        sha256,
        files,
    })
}

/// Writes the image to `file`; its length and digest.
fn write_digested(
    spec: &MediumSpec,
    file: &File,
    out_dir: &Path,
) -> Result<(u64, String), BuildError> {
    let mut out = Hashing {
        out: BufWriter::with_capacity(1 << 20, file),
        hash: Sha256::new(),
        bytes: 0,
    };
    write_medium(spec, &mut out).map_err(|source| BuildError::WriteMedium {
        out_dir: out_dir.to_owned(),
        source,
    })?;
    out.out
        .flush()
        .map_err(BuildError::io("write the image in", out_dir))?;
    Ok((out.bytes, hex(&out.hash.finalize())))
}

/// Counts and digests what goes through.
struct Hashing<W> {
    out: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: std::io::Write> std::io::Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Writes the manifest and moves everything into place: the old image's manifest goes first and the new image's comes
/// last, so that a manifest never stands beside an image that is not its own.
///
/// # Errors
/// If a file cannot be written or moved.
pub fn publish(
    cx: &StageCx<'_>,
    written: Written,
    locked: &LockedRecipe,
    guests: &[GuestSummary],
    start: Instant,
    out_dir: &Path,
) -> Result<(PathBuf, BuildManifest), BuildError> {
    let name = &written.plan_name;
    let file = format!("{name}.iso");
    let image = out_dir.join(&file);
    let layers = written
        .files
        .iter()
        .filter(|part| part.name.ends_with(".erofs"));
    let mut layers: Vec<Part> = layers
        .map(|part| Part {
            name: layer_name(&part.name),
            ..part.clone()
        })
        .collect();
    layers.sort_by_key(|layer| {
        ["base", "site", "guests", "machines"]
            .iter()
            .position(|n| *n == layer.name)
    });
    let manifest = BuildManifest {
        format: FORMAT,
        name: name.clone(),
        build_id: written.build_id,
        epoch_secs: cx.epoch_secs,
        recipe_sha256: cx.recipe.digest_hex(),
        image: ImageFile {
            file: file.clone(),
            bytes: written.bytes,
            sha256: written.sha256.clone(),
            volume_id: written.volume_id,
        },
        layers,
        medium: written.files,
        guests: guests.to_vec(),
        inputs: inputs_of(locked),
        run: Run {
            builder: env!("CARGO_PKG_VERSION").to_owned(),
            seconds: (start.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
            downloaded_bytes: cx
                .ui
                .counters()
                .downloaded_bytes
                .load(std::sync::atomic::Ordering::Relaxed),
            stages: cx.log(),
        },
    };
    let manifest_path = out_dir.join(format!("{name}.manifest.json"));
    let sums = sums_path(&image);
    for old in [&manifest_path, &sums] {
        match fs::remove_file(old) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(BuildError::io("replace", old)(e));
            }
            _ => {}
        }
    }
    set_usual_mode(written.partial.path())?;
    written
        .partial
        .persist(&image)
        .map(drop)
        .map_err(|e| BuildError::io("move the image to", &image)(e.error))?;
    write_whole(&sums, format!("{}  {file}\n", written.sha256).as_bytes())?;
    let mut text = serde_json::to_vec_pretty(&manifest)
        .map_err(|e| BuildError::io("write", &manifest_path)(e.into()))?;
    text.push(b'\n');
    write_whole(&manifest_path, &text)?;
    Ok((image, manifest))
}

/// Temporary files are for their owner alone; an image is for everyone the umask allows, as any other file.
fn set_usual_mode(path: &Path) -> Result<(), BuildError> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
        .map_err(BuildError::io("set the mode of", path))
}

/// Writes a file under a hidden name and moves it into place.
///
/// # Errors
/// If it cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(BuildError::io("write", path))?;
    file.write_all(bytes)
        .map_err(BuildError::io("write", path))?;
    set_usual_mode(file.path())?;
    file.persist(path)
        .map(|_| ())
        .map_err(|e| BuildError::io("write", path)(e.error))
}

fn layer_name(path: &str) -> String {
    path.rsplit('/')
        .next()
        .unwrap_or(path)
        .trim_end_matches(".erofs")
        .to_owned()
}

/// Every package and file that was locked; a file has its address for a version.
#[must_use]
pub fn inputs_of(locked: &LockedRecipe) -> Vec<Input> {
    let sets = locked.sets.iter();
    let packages = sets.flat_map(|(set, packages)| {
        packages.iter().map(|package| Input {
            set: set.clone(),
            name: package.name.clone(),
            version: package.version.clone(),
            architecture: package.architecture.clone(),
            bytes: package.bytes,
            sha256: package.sha256.to_string(),
        })
    });
    let files = locked.inputs.iter().map(|input| Input {
        set: input.name.clone(),
        name: input.url.rsplit('/').next().unwrap_or_default().to_owned(),
        version: input.url.clone(),
        architecture: "all".to_owned(),
        bytes: input.bytes,
        sha256: input.sha256.to_string(),
    });
    packages.chain(files).collect()
}
