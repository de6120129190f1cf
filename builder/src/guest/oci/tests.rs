//! Layouts made here: a folder and a tar file, packed in every way, and what is wrong with others.
use std::fs;
use std::io::Write as _;

use guest_catalog::Guest;
use serde_json::json;

use super::*;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

pub(super) fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(101);
        header.set_gid(102);
        header.set_size(content.len() as u64);
        builder
            .append_data(&mut header, path, content.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn sha(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Puts a blob into the layout; its descriptor.
fn blob(folder: &Path, kind: &str, bytes: &[u8]) -> serde_json::Value {
    let digest = sha(bytes);
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(&digest[7..]), bytes).unwrap();
    json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
}

/// A layout of one image with these layers, behind a list for two machines, as registries have it; the manifest's digest.
fn layout(folder: &Path, layers: &[(&str, Vec<u8>)]) -> String {
    let packed = layers.iter().map(|(kind, bytes)| match *kind {
        GZIP => blob(folder, kind, &gzip(bytes)),
        ZSTD => blob(folder, kind, &zstd::encode_all(&bytes[..], 1).unwrap()),
        kind => blob(folder, kind, bytes),
    });
    let packed: Vec<_> = packed.collect();
    let diffs: Vec<String> = layers.iter().map(|(_, bytes)| sha(bytes)).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": diffs },
        "config": { "User": "web:www", "Env": ["A=b"], "Entrypoint": ["/bin/serve"], "Cmd": ["--port", "80"], "WorkingDir": "/srv" },
    });
    let config = blob(
        folder,
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": packed });
    let mut ours = blob(folder, kind, manifest.to_string().as_bytes());
    let digest = ours["digest"].as_str().unwrap().to_owned();
    ours["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let mut other = blob(folder, kind, b"{}");
    other["platform"] = json!({ "os": "linux", "architecture": "arm64" });
    let list = json!({ "schemaVersion": 2, "manifests": [other, ours] });
    let list = blob(
        folder,
        "application/vnd.oci.image.index.v1+json",
        list.to_string().as_bytes(),
    );
    fs::write(
        folder.join("index.json"),
        json!({ "manifests": [list] }).to_string(),
    )
    .unwrap();
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    digest
}

fn source(image: &Path, digest: Option<&str>) -> OciSource {
    OciSource {
        image: image.display().to_string(),
        digest: digest.map(str::to_owned),
        command: Vec::new(),
    }
}

fn guest(memory_mib: u32) -> Guest {
    let text = format!(
        "name = \"web\"\ndescription = \"x\"\nlicence = \"x\"\nmemory-mib = {memory_mib}\n\
         source.oci.image = \"web\"\nboot = {{ initrd = \"initrd.zst\", cmdline = \"{COMMAND_LINE}\" }}\nhealth.http = {{}}\n"
    );
    Guest::parse("web", &text).unwrap()
}

fn web(folder: &Path) -> String {
    let below = [
        ("etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:101:101::/:\n"),
        ("etc/group", "www:x:33:\n"),
        ("bin/serve", "old"),
    ];
    let layers = [
        (GZIP, tar_of(&below)),
        (ZSTD, tar_of(&[("bin/serve", "new")])),
        (PLAIN, tar_of(&[("srv/page", "hello")])),
    ];
    layout(folder, &layers)
}

#[test]
fn an_image_becomes_an_initramfs_with_our_init() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("web");
    let digest = web(&folder);
    let packed = dir.path().join("web.tar");
    let mut builder = tar::Builder::new(fs::File::create(&packed).unwrap());
    builder.append_dir_all(".", &folder).unwrap();
    builder.finish().unwrap();
    for image in [&folder, &packed] {
        for wanted in [None, Some(digest.as_str())] {
            let source = source(image, wanted);
            let found = find(&source, &[]).unwrap();
            assert_eq!(found.digest(), digest);
            let module = ("lib/modules/1/x.ko".to_owned(), 0o644, b"module".to_vec());
            let list = entries(&guest(128), &source, &found, b"init", [module]).unwrap();
            let of = |path: &str| list.iter().find(|entry| entry.path == path).unwrap();
            let serve = of("/bin/serve");
            assert_eq!((serve.mode, serve.uid, serve.gid), (0o755, 101, 102));
            assert_eq!(serve.kind, InitramfsKind::File(b"new".to_vec().into()));
            assert_eq!(of("/.gasthaus/init").mode, 0o755);
            let InitramfsKind::File(told) = &of("/.gasthaus/program.json").kind else {
                panic!("no file");
            };
            let mut text = String::new();
            told.open().unwrap().read_to_string(&mut text).unwrap();
            let told: serde_json::Value = serde_json::from_str(&text).unwrap();
            let expected = json!({
                "args": ["/bin/serve", "--port", "80"], "env": ["A=b"], "folder": "/srv", "uid": 101, "gid": 33,
            });
            assert_eq!(told, expected);
        }
    }
}

#[test]
fn what_is_wrong_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("web");
    let digest = web(&folder);
    let found = find(&source(&folder, None), &[]).unwrap();
    let error = entries(&guest(64), &source(&folder, None), &found, b"i", []).unwrap_err();
    assert_eq!(
        error.to_string(),
        "guest `web` has 64 MiB of memory, its image needs 65"
    );
    assert_eq!(error.hint().unwrap(), "give it `memory-mib = 65`");

    let other = format!("sha256:{}", "0".repeat(64));
    let error = find(&source(&folder, Some(&other)), &[]).unwrap_err();
    assert!(
        error.to_string().contains("without an image of digest"),
        "{error}"
    );

    // A layer that is another one than its digest says, of the same length.
    let manifest = fs::read(folder.join("blobs/sha256").join(&digest[7..])).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layer = manifest["layers"][2]["digest"].as_str().unwrap();
    let path = folder.join("blobs/sha256").join(&layer[7..]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[600] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = needed_mib(&found).unwrap_err();
    assert!(
        error.to_string().contains(&format!("the blob {layer}")),
        "{error}"
    );

    for (name, text, said) in [
        ("oci-layout", "{", "`oci-layout`: EOF"),
        ("oci-layout", r#"{"imageLayoutVersion":"9"}"#, "version `9`"),
        (
            "index.json",
            r#"{"manifests":[]}"#,
            "without an image for linux/amd64",
        ),
        (
            "index.json",
            r#"{"manifests":[{"digest":"sha256:../../x","size":1}]}"#,
            "for a SHA-256 digest",
        ),
    ] {
        web(&folder);
        fs::write(folder.join(name), text).unwrap();
        let error = find(&source(&folder, None), &[]).unwrap_err();
        assert!(error.to_string().contains(said), "{said}: {error}");
    }
    fs::write(dir.path().join("x"), "no image").unwrap();
    assert!(find(&source(&dir.path().join("x"), None), &[]).is_err());
    assert!(find(&source(&dir.path().join("nowhere"), None), &[]).is_err());
}

#[test]
fn hostile_layers_and_users_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let evil = |name: &str, kind: tar::EntryType| {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o666);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, &b""[..]).unwrap();
        builder.into_inner().unwrap()
    };
    for (index, (layer, said)) in [
        (
            evil("../../etc/passwd", tar::EntryType::Regular),
            "`../../etc/passwd`: its path has a `..` in it",
        ),
        (
            evil("dev/sda", tar::EntryType::Block),
            "`dev/sda`: it is a device node",
        ),
        (vec![1; 700], "it is no whole tar stream"),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = dir.path().join(index.to_string());
        layout(&folder, &[(GZIP, tar_of(&[("a", "b")])), (GZIP, layer)]);
        let found = find(&source(&folder, None), &[]).unwrap();
        let line = needed_mib(&found).unwrap_err().to_string();
        assert!(
            line.starts_with("layer 2 of the image") && line.contains(said),
            "{line}"
        );
    }
    // The image names a user whom its files do not know.
    let folder = dir.path().join("user");
    layout(&folder, &[(PLAIN, tar_of(&[("bin/serve", "x")]))]);
    let found = find(&source(&folder, None), &[]).unwrap();
    let error = entries(&guest(128), &source(&folder, None), &found, b"i", []).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("it runs as the user `web`, which it has not"),
        "{error}"
    );
}
