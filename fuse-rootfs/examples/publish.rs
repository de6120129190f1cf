//! Publishes the images of `ci/bench stream`: `publish FOLDER LEVEL`, or `publish FOLDER 2005`.
//!
//! In: `raw/base.erofs`, `raw/site.erofs`, `raw/guests.erofs`; `profile.trace`, another boot than the one that is replayed, with
//! lines `<µs> <layer> <offset> <length>` and marks `# mark <name> <µs>`. Out: `www/store` and its public key `store.pub`. Each
//! mark becomes a profile of what was read until then and in a twentieth of the time more: another boot reads a little sooner.
//! With `2005`, the same as in that design as far as our format goes: blocks of 256 KiB, gzip -6, no profile, no metadata ahead;
//! into `www/store2005`.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Instant;

use fuse_rootfs::format::{BLOCK_BYTES, Codec, Label, Name, Trace, TraceRun};
use fuse_rootfs::publish::{Image, Packing, PublishRequest, SigningKey, publish};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, level] = &args[..] else {
        return Err("usage: publish FOLDER LEVEL".into());
    };
    let folder = Path::new(folder);
    let is_old = level == "2005";
    let text = fs::read_to_string(folder.join("profile.trace"))?;
    let mut profiles = Vec::new();
    for line in text.lines() {
        if let Some(mark) = line.strip_prefix("# mark ") {
            let (name, until) = mark.split_once(' ').ok_or("a mark without a time")?;
            let until: u64 = until.parse()?;
            profiles.push((
                Name::new(name)?,
                read_until(&text, until + until / 20)?.into(),
            ));
        }
    }
    let images = ["base", "site", "guests"].map(|name| {
        Ok::<_, Box<dyn Error>>(Image {
            name: Name::new(name)?,
            path: folder.join(format!("raw/{name}.erofs")),
            stacked: Some(true),
            fixed_bytes: is_old.then_some(256 << 10),
        })
    });
    let secret = folder.join("store.key");
    let key = if secret.exists() {
        SigningKey::read(&secret, || None)?
    } else {
        SigningKey::create(&secret, None)?.0
    };
    let began = Instant::now();
    let request = PublishRequest {
        store: folder.join(if is_old { "www/store2005" } else { "www/store" }),
        images: images.into_iter().collect::<Result<_, _>>()?,
        system: Name::new("bench")?,
        system_label: None,
        version: Some(Name::new(if is_old { "2005" } else { "1" })?),
        label: Label::default(),
        created_secs: 1,
        signed_secs: 1,
        packing: match is_old {
            true => Packing {
                codec: Codec::Gzip,
                level: 6,
            },
            false => Packing {
                codec: Codec::Zstd,
                level: level.parse()?,
            },
        },
        profiles: if is_old { Vec::new() } else { profiles },
        carry_profiles: false,
        keep: None,
        dry_run: false,
        threads: std::thread::available_parallelism()?.get(),
        old_keys: Vec::new(),
    };
    let summary = publish(&request, &key, &())?;
    for bundle in &summary.bundles {
        eprintln!(
            "bundle {}: {:.2} MB of {:.2} MB",
            bundle.name.as_str(),
            bundle.stored_bytes as f64 / 1e6,
            bundle.decoded_bytes as f64 / 1e6
        );
    }
    eprintln!(
        "{:.1} MB new for {:.1} MB of images in {:.0} s",
        summary.new_bytes() as f64 / 1e6,
        summary.image_bytes() as f64 / 1e6,
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The reads of a trace up to a time.
fn read_until(text: &str, until_us: u64) -> Result<Trace, Box<dyn Error>> {
    let block = u64::from(BLOCK_BYTES);
    let mut trace = Trace::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [at, layer, offset, length] = fields[..] else {
            return Err(format!("`{line}` is no read").into());
        };
        if at.parse::<u64>()? > until_us {
            break;
        }
        let (offset, length): (u64, u64) = (offset.parse()?, length.parse()?);
        let first_block = offset / block;
        trace.runs.push(TraceRun {
            layer: Name::new(layer)?,
            first_block,
            blocks: u32::try_from((offset + length).div_ceil(block) - first_block)?,
        });
    }
    Ok(trace)
}
