//! Files as `podman save`, `crane pull` and old versions of `docker save` write them.
use std::fs;

use serde_json::json;

use super::tests::{gzip, sha, tar_of};
use super::*;

/// A tar file of these files; content `->x` is a link.
fn saved(path: &Path, files: &[(&str, &[u8])]) {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        match content.strip_prefix(b"->") {
            Some(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                let target = std::str::from_utf8(target).unwrap();
                builder.append_link(&mut header, name, target).unwrap();
            }
            None => {
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, name, *content).unwrap();
            }
        }
    }
    fs::write(path, builder.into_inner().unwrap()).unwrap();
}

fn source(image: &Path, digest: Option<&str>) -> OciSource {
    OciSource {
        image: image.display().to_string(),
        digest: digest.map(str::to_owned),
        command: Vec::new(),
    }
}

fn config(diffs: &[&[u8]], machine: &str) -> Vec<u8> {
    let diffs: Vec<String> = diffs.iter().map(|layer| sha(layer)).collect();
    let config = json!({
        "architecture": machine, "os": "linux", "rootfs": { "type": "layers", "diff_ids": diffs },
        "config": { "Cmd": ["/bin/serve"] },
    });
    config.to_string().into_bytes()
}

#[test]
fn a_saved_image_becomes_a_guest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.tar");
    let below = tar_of(&[
        ("bin/serve", "old"),
        ("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
    ]);
    let above = tar_of(&[("bin/serve", "new")]);
    let config = config(&[&below, &above, &below], "amd64");
    let packed = gzip(&above);
    // The first and the last layer are the same: one is a link to the other.
    let list = json!([{ "Config": "c.json", "RepoTags": ["web:1"], "Layers": ["1/layer.tar", "2.tar.gz", "3/layer.tar"] }]);
    let list = list.to_string().into_bytes();
    saved(
        &path,
        &[
            ("3/layer.tar", b"->../1/layer.tar"),
            ("1/layer.tar", &below),
            ("2.tar.gz", &packed),
            ("c.json", &config),
            ("manifest.json", &list),
        ],
    );
    assert!(is_tar(&path).unwrap());
    for digest in [None, Some(sha(&config))] {
        let found = find(&source(&path, digest.as_deref()), &[]).unwrap();
        assert_eq!(found.digest(), sha(&config));
        assert_eq!(found.image.run.cmd.as_deref().unwrap(), ["/bin/serve"]);
        assert_eq!(merge(&found).unwrap().text("bin/serve").unwrap(), "old");
    }
    let other = sha(b"other");
    let error = find(&source(&path, Some(&other)), &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!("without an image of digest {other}")),
        "{error}"
    );
}

#[test]
fn what_is_wrong_with_a_saved_image_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.tar");
    let layer = tar_of(&[("bin/serve", "x")]);
    let (good, other) = (config(&[&layer], "amd64"), config(&[&layer], "arm64"));
    let lying = config(&[b"another"], "amd64");
    for (list, words) in [
        (json!([]), "a file of 0 images"),
        (json!({}), "`manifest.json`: "),
        (
            json!([{ "Config": "../good", "Layers": [] }]),
            "a part called `../good`",
        ),
        (
            json!([{ "Config": "/etc/passwd", "Layers": [] }]),
            "a part called `/etc/passwd`",
        ),
        (json!([{ "Config": "none", "Layers": [] }]), "cannot find"),
        (
            json!([{ "Config": "good", "Layers": [] }]),
            "an image of 0 layers that lists 1 of them",
        ),
        (
            json!([{ "Config": "good", "Layers": ["gone"] }]),
            "cannot find",
        ),
        (
            json!([{ "Config": "other", "Layers": ["layer"] }]),
            "an image for linux/arm64",
        ),
        (
            json!([{ "Config": "lying", "Layers": ["layer"] }]),
            "contents of digest",
        ),
        (
            json!([{ "Config": "good", "Layers": ["layer"] }, { "Config": "lying", "Layers": ["layer"] }]),
            "a file of several images",
        ),
    ] {
        let list = list.to_string().into_bytes();
        let files: [(&str, &[u8]); 5] = [
            ("good", &good),
            ("other", &other),
            ("lying", &lying),
            ("layer", &layer),
            ("manifest.json", &list),
        ];
        saved(&path, &files);
        let error = find(&source(&path, None), &[]).and_then(|found| merge(&found).map(|_| ()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    saved(&path, &[("disk.vmdk", b"x")]);
    let error = find(&source(&path, None), &[]).unwrap_err().to_string();
    assert!(
        error.contains("holds no container image; expected"),
        "{error}"
    );
    let error = find(&source(dir.path(), None), &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("holds no container image; expected"),
        "{error}"
    );
}
