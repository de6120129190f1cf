//! `gasthaus publish`: images into a store that machines stream from.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use fuse_rootfs::format::{Codec, Label, MAX_LAYERS, Name};
use fuse_rootfs::publish::{self as store, Packing, Progress, PublishRequest, Summary};
use gasthaus_rootfs::Sandbox;

use super::build::Common;
use super::ui::human_bytes;
use super::{CliResult, Context, Failure, StageBar, Ui, key, output};
use crate::cache::Cache;
use crate::error::BuildError;
use crate::pipeline;
use crate::profile::Taken;
use crate::publish::{Given, Prepared, Repacker, look_at, needs_tools, prepare};

/// Publish images as a store that any web server can offer
///
/// Each image becomes a layer called like its file without the extension, in the order given, lowest first. A folder is
/// packed; of an ISO of ours every layer is taken. Only what the store does not have is added, and the last file
/// written is the signed `head`: readers see the old store or the new one.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images (EROFS, ext4, anything), folders, or an ISO of ours
    #[arg(required = true, num_args = 1..=MAX_LAYERS, value_name = "IMAGE|FOLDER|ISO")]
    sources: Vec<PathBuf>,

    /// The store: a folder, made if missing
    #[arg(long, value_name = "DIR")]
    to: PathBuf,

    /// The secret key to sign with; `gasthaus key new` makes one
    #[arg(long, value_name = "FILE")]
    key: PathBuf,

    /// The system this is a version of [default: the first source's name]
    #[arg(long, value_name = "NAME", value_parser = name)]
    system: Option<Name>,

    /// What menus call the system
    #[arg(long, value_name = "TEXT", value_parser = label)]
    system_label: Option<Label>,

    /// The version's id [default: the build id of the ISO, else one made from the images]
    #[arg(long, value_name = "ID", value_parser = id)]
    id: Option<Name>,

    /// What menus call the version
    #[arg(long, value_name = "TEXT", value_parser = label, default_value = "")]
    label: Label,

    /// How chunks are compressed
    #[arg(long, value_enum, default_value_t = CodecName::Zstd)]
    codec: CodecName,

    /// How much effort: zstd 1 to 22, gzip 1 to 9 [default: 19, or 9 for gzip]
    #[arg(long, value_name = "N")]
    level: Option<i32>,

    /// A recorded run to make a profile of: a boot report, a trace or a profile by files; may be given several times
    #[arg(long, value_name = "NAME=FILE", value_parser = profile)]
    profile_trace: Vec<(Name, PathBuf)>,

    /// Do not take over the profiles of the version before
    #[arg(long)]
    no_carry: bool,

    /// Drop all but the last N versions of this system; `gasthaus store gc` frees their objects
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    keep: Option<u16>,

    /// A public key, or its file, that signed the store so far; for a change of keys
    #[arg(long, value_name = "KEY")]
    old_key: Vec<String>,

    /// Publish files as they are: neither unpacked, nor packed again, nor cut at files
    #[arg(long)]
    raw: bool,

    /// Write nothing, only say what would be new
    #[arg(long)]
    dry_run: bool,

    /// Name of an embedded recipe, or a file, whose locked tools pack [default: demo]
    #[arg(long)]
    recipe: Option<String>,

    #[command(flatten)]
    common: Common,
}

/// Codecs to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum CodecName {
    /// Small and fast
    Zstd,
    /// For readers that know nothing else
    Gzip,
}

fn name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(str::to_owned)
}

fn id(text: &str) -> Result<Name, String> {
    match text {
        "latest" => Err("`latest` stands for the default version".into()),
        _ => name(text),
    }
}

fn label(text: &str) -> Result<Label, String> {
    Label::new(text).map_err(str::to_owned)
}

fn profile(text: &str) -> Result<(Name, PathBuf), String> {
    let (profile, file) = text.split_once('=').ok_or("expected NAME=FILE")?;
    if profile == "meta" {
        return Err("`meta` is the bundle of metadata".into());
    }
    Ok((name(profile)?, file.into()))
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    let mut profiles = Vec::new();
    for (name, path) in &args.profile_trace {
        profiles.push((name.clone(), Taken::read(path)?.into_profile()));
    }
    let packing = match (args.codec, args.level) {
        (CodecName::Zstd, level) => Packing {
            codec: Codec::Zstd,
            level: level.unwrap_or(Packing::SMALL.level),
        },
        (CodecName::Gzip, level) => Packing {
            codec: Codec::Gzip,
            level: level.unwrap_or(9),
        },
    };
    packing.check()?;
    let signing = key::read(&args.key)?;
    let old_keys = args
        .old_key
        .iter()
        .map(|key| store::read_public(key))
        .collect::<Result<_, _>>()?;
    let given: Vec<Given> = args
        .sources
        .iter()
        .map(|path| look_at(path, args.raw))
        .collect::<Result<_, _>>()?;
    let prepared = make_images(args, cx, &given)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let system = match &args.system {
        Some(system) => system.clone(),
        None => first_name(&args.sources[0])?,
    };
    let request = PublishRequest {
        store: args.to.clone(),
        system,
        system_label: args.system_label.clone(),
        version: args.id.clone().or(prepared.build_id.clone()),
        label: args.label.clone(),
        created_secs: prepared
            .epoch_secs
            .or_else(source_date_epoch)
            .unwrap_or(now),
        signed_secs: now,
        packing,
        profiles,
        carry_profiles: !args.no_carry,
        keep: args.keep.map(usize::from),
        dry_run: args.dry_run,
        threads: args.common.threads(),
        old_keys,
        images: prepared.images.clone(),
    };
    let bars = Bars {
        ui: &cx.ui,
        current: Mutex::new(None),
    };
    let summary = store::publish(&request, &signing, &bars)?;
    bars.finish();
    output::print(&describe(&summary, &args.to, args.dry_run))
}

/// Packs what must be packed, with the locked tools; images need none.
fn make_images(args: &Args, cx: &Context, given: &[Given]) -> Result<Prepared, Failure> {
    let epoch = source_date_epoch();
    if !needs_tools(given) {
        return Ok(prepare(given, args.raw, epoch, None)?);
    }
    let request = args.common.request(args.recipe.as_deref())?;
    let sandbox = Sandbox::detect(0).map_err(BuildError::from)?;
    let cache = Cache::of_user().map_err(BuildError::from)?;
    let tools = pipeline::tools_only(&request, &sandbox, &cx.ui)?;
    let repacker = Repacker {
        tools: &tools,
        cache: &cache,
        sandbox: &sandbox,
    };
    let bar = cx.ui.stage("pack");
    let prepared = prepare(given, args.raw, epoch, Some(repacker))?;
    bar.finish("uncompressed, for streaming");
    Ok(prepared)
}

fn source_date_epoch() -> Option<u64> {
    std::env::var("SOURCE_DATE_EPOCH").ok()?.parse().ok()
}

/// The system's name, from that of a file.
fn first_name(path: &Path) -> Result<Name, BuildError> {
    let full = path.canonicalize().map_err(BuildError::io("read", path))?;
    let stem = full.file_stem().unwrap_or_default().to_string_lossy();
    Name::new(&stem).map_err(|problem| {
        crate::publish::SourceError::Name {
            path: path.to_owned(),
            name: stem.escape_default().to_string(),
            problem,
        }
        .into()
    })
}

/// A bar for each layer.
struct Bars<'a> {
    ui: &'a Ui,
    current: Mutex<Option<StageBar>>,
}

impl Bars<'_> {
    fn set(&self, bar: Option<StageBar>) {
        if let Ok(mut current) = self.current.lock()
            && let Some(done) = std::mem::replace(&mut *current, bar)
        {
            done.finish("");
        }
    }

    fn finish(&self) {
        self.set(None);
    }
}

impl Progress for Bars<'_> {
    fn waiting(&self) {
        self.ui
            .line("another publisher is at work in this store: waiting for it");
    }

    fn layer(&self, name: &Name, bytes: u64) {
        let bar = self.ui.stage(&format!("publish {name}"));
        bar.set_total_bytes(bytes);
        self.set(Some(bar));
    }

    fn done(&self, bytes: u64) {
        if let Ok(current) = self.current.lock()
            && let Some(bar) = &*current
        {
            bar.add_bytes(bytes);
        }
    }
}

fn describe(summary: &Summary, to: &Path, dry_run: bool) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for layer in &summary.layers {
        let counts = &layer.counts;
        let mut parts = vec![format!(
            "{} new ({})",
            counts.new,
            human_bytes(counts.new_stored_bytes)
        )];
        if counts.reused > 0 {
            let bytes = human_bytes(counts.reused_stored_bytes);
            parts.push(format!("{} there before ({bytes})", counts.reused));
        }
        if counts.zeros > 0 {
            parts.push(format!("{} of zeros", counts.zeros));
        }
        let _ = writeln!(
            text,
            "layer  {:<10} {:>10}, {} chunks: {}",
            layer.name,
            human_bytes(layer.image_bytes),
            counts.chunks,
            parts.join(", ")
        );
    }
    for bundle in &summary.bundles {
        let _ = writeln!(
            text,
            "bundle {:<10} {:>10} in {}",
            bundle.name,
            human_bytes(bundle.decoded_bytes),
            human_bytes(bundle.stored_bytes)
        );
    }
    for version in &summary.dropped {
        let _ = writeln!(text, "dropped {}/{version}", summary.system);
    }
    let what = format!("{}/{}", summary.system, summary.version);
    let new = human_bytes(summary.new_bytes());
    let images = human_bytes(summary.image_bytes());
    let _ = match (summary.unchanged, dry_run) {
        (true, _) => writeln!(
            text,
            "unchanged: {what} is in {} already, serial {}",
            to.display(),
            summary.serial
        ),
        (false, true) => writeln!(
            text,
            "would publish {what} to {}: {new} new for {images} of images; nothing was written",
            to.display()
        ),
        (false, false) => writeln!(
            text,
            "published {what} to {}: {new} new for {images} of images, serial {}",
            to.display(),
            summary.serial
        ),
    };
    text
}
