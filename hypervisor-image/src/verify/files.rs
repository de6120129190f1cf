//! Checks of the tree: build id, layers, and the digest of every file against the medium's manifest.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use super::VerifyReport;
use crate::inspect::{Gasthaus, chain, gasthaus};
use crate::iso::{IsoExtent, IsoKind, IsoReader};
use crate::manifest::{MANIFEST_MAX_BYTES, ManifestFile, MediumManifest};
use crate::medium::{BLOCK_BYTES, CATALOG_PATH, ELTORITO_PATH};
use crate::sha256_of;

pub(super) fn check<R: Read + Seek>(report: &mut VerifyReport, iso: &mut IsoReader<R>) {
    inside(report, iso);
    if iso.entry("/gasthaus").is_none() {
        return; // not ours: there is nothing to compare with
    }
    let found = match gasthaus(iso) {
        Ok(found) => found,
        Err(e) => {
            report.problem(
                "build id and layers",
                "/gasthaus",
                chain(&e),
                "a build id and its layers",
            );
            return;
        }
    };
    report.build_id = Some(found.build_id.clone());
    report.good(format!(
        "build id and {} layers (/gasthaus/build-id)",
        found.layers.len()
    ));
    volume_id(report, iso, &found);
    let path = format!("/gasthaus/{}/manifest.json", found.build_id);
    let text = iso
        .read_small(&path, MANIFEST_MAX_BYTES)
        .map_err(|e| chain(&e));
    match text.and_then(|t| MediumManifest::from_json(&t).map_err(|e| chain(&e))) {
        Ok(manifest) => {
            report.same(
                "build id of the manifest",
                &path,
                &manifest.build_id,
                &found.build_id,
            );
            digests(report, iso, &manifest, &path);
        }
        Err(e) => report.problem("manifest", path, e, "a list of digests"),
    }
}

/// Files listed by name when their content lies outside the image; the rest is counted.
const NAMED_OUTSIDE: usize = 3;

/// Every extent of every file lies inside the image.
fn inside<R: Read + Seek>(report: &mut VerifyReport, iso: &IsoReader<R>) {
    let image_bytes = iso.image_bytes();
    let end = |extents: &[IsoExtent]| {
        extents
            .iter()
            .map(|e| u64::from(e.lba) * BLOCK_BYTES + u64::from(e.bytes))
            .max()
    };
    let mut outside: Vec<(u64, &str)> = iso
        .entries()
        .filter_map(|entry| Some((end(&entry.extents)?, entry.path.as_str())))
        .filter(|(end, _)| *end > image_bytes)
        .collect();
    // In the order of the medium: what a cut image lacks begins with the first.
    outside.sort_unstable();
    let expected = format!("an end inside the {image_bytes} bytes of the image");
    for (end, path) in outside.iter().take(NAMED_OUTSIDE) {
        let found = format!("an end at byte {end}");
        report.problem("place of the file", path, found, &expected);
    }
    match outside.get(NAMED_OUTSIDE..).unwrap_or_default() {
        [] if outside.is_empty() => report.good(format!(
            "all {} entries lie inside the image",
            iso.entries().count()
        )),
        [] => {}
        more => {
            let last = more.last().map_or(0, |(end, _)| *end);
            let found = format!("{} more, the last ends at byte {last}", more.len());
            report.problem("place of the files", "the tree", found, expected);
        }
    }
}

fn volume_id<R: Read + Seek>(report: &mut VerifyReport, iso: &IsoReader<R>, found: &Gasthaus) {
    let expected = format!("GASTHAUS_{}", &found.build_id[..8]); // 16 digits, checked when read
    let volume_id = iso.volume().volume_id.clone();
    if volume_id.eq_ignore_ascii_case(&expected) {
        report.good(format!("volume id ({volume_id})"));
    } else {
        report.problem("volume id", "volume descriptor", volume_id, expected);
    }
}

fn digests<R: Read + Seek>(
    report: &mut VerifyReport,
    iso: &mut IsoReader<R>,
    manifest: &MediumManifest,
    own_path: &str,
) {
    let mut listed: BTreeMap<&str, &ManifestFile> = BTreeMap::new();
    for file in &manifest.files {
        if listed.insert(&file.path, file).is_some() {
            report.problem("entry of the manifest", &file.path, "two", "one");
        }
    }
    let made_here = [own_path, CATALOG_PATH, ELTORITO_PATH];
    let mut order: Vec<(u32, &ManifestFile)> = Vec::new();
    for file in listed.values() {
        match iso.entry(&file.path) {
            Some(e) if e.kind == IsoKind::File => {
                order.push((e.extents.first().map_or(0, |x| x.lba), file))
            }
            Some(_) => report.problem(
                "file of the manifest",
                &file.path,
                "a folder or link",
                "a file",
            ),
            None => report.problem(
                "file of the manifest",
                &file.path,
                "none",
                format!("{} bytes", file.bytes),
            ),
        }
    }
    let unlisted: Vec<String> = iso
        .entries()
        .filter(|e| e.kind == IsoKind::File && !listed.contains_key(e.path.as_str()))
        .filter(|e| !made_here.contains(&e.path.as_str()))
        .map(|e| e.path.clone())
        .collect();
    for path in unlisted {
        report.problem(
            "file on the medium",
            path,
            "a file the manifest does not list",
            "no such file",
        );
    }
    // In the order of the medium: a CD drive seeks slowly.
    order.sort_by_key(|(lba, _)| *lba);
    for (_, file) in order {
        one(report, iso, file);
    }
    report.good(format!(
        "digests of {} files, {} bytes",
        report.files, report.file_bytes
    ));
}

fn one<R: Read + Seek>(report: &mut VerifyReport, iso: &mut IsoReader<R>, file: &ManifestFile) {
    let read = iso.read_file(&file.path).map_err(|e| chain(&e));
    match read.and_then(|f| sha256_of(f).map_err(|e| e.to_string())) {
        Ok((bytes, sha256)) => {
            report.files += 1;
            report.file_bytes += bytes;
            if bytes != file.bytes {
                report.problem("length of the file", &file.path, bytes, file.bytes);
            }
            if sha256 != file.sha256 {
                report.problem("SHA-256 of the file", &file.path, sha256, &file.sha256);
            }
        }
        Err(e) => report.problem(
            "content of the file",
            &file.path,
            e,
            format!("{} bytes", file.bytes),
        ),
    }
}
