//! Programs that are not ours agree with us: `minisign` about signatures, `mkfs.erofs` about where files lie, `zstd` and `gzip` about
//! chunks. They are Debian's packages `minisign`, `erofs-utils`, `zstd` and `gzip`.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{name, noise};
use fuse_rootfs::format::{Codec, Head, Label, ObjectKind, VerifyKey};
use fuse_rootfs::publish::erofs::file_extents;
use fuse_rootfs::publish::{self, Image, Packing, PublishRequest, SigningKey, Store, publish};
use tempfile::TempDir;

#[track_caller]
fn run(program: &str, args: &[&str], dir: &Path) -> Vec<u8> {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    output.stdout
}

fn request(dir: &Path, codec: Codec) -> PublishRequest {
    PublishRequest {
        store: dir.join("store"),
        images: vec![Image {
            name: name("text"),
            path: dir.join("text.img"),
            stacked: None,
            fixed_bytes: None,
        }],
        system: name("demo"),
        system_label: None,
        version: Some(name("v1")),
        label: Label::default(),
        created_secs: 1,
        signed_secs: 2,
        packing: Packing { codec, level: 3 },
        profiles: vec![],
        carry_profiles: false,
        keep: None,
        dry_run: false,
        threads: 1,
        old_keys: vec![],
    }
}

#[test]
fn minisign_verifies_ours_and_we_verify_minisigns() {
    let dir = TempDir::new().unwrap();
    let here = dir.path();
    fs::write(here.join("text.img"), "text").unwrap();
    for password in [None, Some("secret")] {
        let (key, public) = SigningKey::create(
            &here.join(format!("{}.key", password.is_some())),
            password.map(str::to_owned),
        )
        .unwrap();
        let mut request = request(here, Codec::Zstd);
        request.store = here.join(format!("store-{}", password.is_some()));
        publish(&request, &key, &()).unwrap();
        let index = request.store.join("index");
        let said = run(
            "minisign",
            &[
                "-V",
                "-H",
                "-m",
                index.to_str().unwrap(),
                "-p",
                public.to_str().unwrap(),
            ],
            here,
        );
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(
            said.contains("Trusted comment: gasthaus index, serial 2"),
            "{said}"
        );
        fs::write(&index, "altered").unwrap();
        let status = Command::new("minisign")
            .args(["-V", "-q", "-m"])
            .arg(&index)
            .arg("-p")
            .arg(&public)
            .status();
        assert!(!status.unwrap().success());
    }
    // Keys and signatures of minisign's own.
    run(
        "minisign",
        &["-G", "-W", "-p", "theirs.pub", "-s", "theirs.key"],
        here,
    );
    let key = SigningKey::read(&here.join("theirs.key"), || None).unwrap();
    let public: VerifyKey = fs::read_to_string(here.join("theirs.pub"))
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(key.public(), &public);
    publish(&request(here, Codec::Zstd), &key, &()).unwrap();
    run(
        "minisign",
        &["-V", "-m", "store/index", "-p", "theirs.pub"],
        here,
    );
    run(
        "minisign",
        &[
            "-S",
            "-W",
            "-s",
            "theirs.key",
            "-m",
            "store/index",
            "-x",
            "again.minisig",
        ],
        here,
    );
    let (signature, index) = (
        fs::read_to_string(here.join("again.minisig")).unwrap(),
        fs::read(here.join("store/index")).unwrap(),
    );
    let head = Head {
        signature: &signature,
        index: &index,
    };
    assert_eq!(head.verify(std::slice::from_ref(&public)), Ok(&public));
    // And of ours, used by minisign.
    SigningKey::create(&here.join("ours.key"), None).unwrap();
    run(
        "minisign",
        &["-S", "-W", "-s", "ours.key", "-m", "text.img"],
        here,
    );
    run(
        "minisign",
        &["-V", "-m", "text.img", "-p", "ours.pub"],
        here,
    );
}

#[test]
fn zstd_and_gzip_unpack_chunks() {
    let dir = TempDir::new().unwrap();
    let here = dir.path();
    let text = b"the same words again and again ".repeat(4000);
    fs::write(here.join("text.img"), &text).unwrap();
    let (key, _) = SigningKey::create(&here.join("k.key"), None).unwrap();
    for (codec, program) in [(Codec::Zstd, "zstd"), (Codec::Gzip, "gzip")] {
        let mut request = request(here, codec);
        request.store = here.join(program);
        publish(&request, &key, &()).unwrap();
        let store = Store::at(request.store);
        let index = store.index(&[]).unwrap();
        let manifest = store
            .manifest(&index.systems[0], &index.systems[0].versions[0])
            .unwrap();
        let layer = &manifest.layers[0];
        let page = store
            .object(ObjectKind::Page, &layer.pages[0].sha256, 10_000)
            .unwrap();
        let chunk = layer.open_page(0, &page).unwrap().chunks()[0];
        let object = store
            .object(ObjectKind::Chunk, &chunk.sha256, 1 << 20)
            .unwrap();
        fs::write(here.join("payload"), &object[8..]).unwrap();
        let found = run("sh", &["-c", &format!("{program} -dc <payload")], here);
        assert!(found == text[..chunk.decoded_bytes as usize]);
    }
}

/// Files of `mkfs.erofs` begin where the walk says; what is published is the image.
#[test]
fn images_of_mkfs_erofs_are_cut_at_their_files() {
    let dir = TempDir::new().unwrap();
    let here = dir.path();
    let tree = here.join("tree");
    let mut contents = Vec::new();
    for folder in 0..12u64 {
        let path = tree.join(format!("folder-{folder}"));
        fs::create_dir_all(&path).unwrap();
        for file in 0..40u64 {
            let content = noise(folder * 100 + file, (file * file * 271) as usize % 90_000);
            fs::write(path.join(format!("file-{file}")), &content).unwrap();
            contents.push(content);
        }
        std::os::unix::fs::symlink("file-1", path.join("link")).unwrap();
        fs::hard_link(path.join("file-2"), path.join("hard")).unwrap();
    }
    for (options, keep_tails) in [
        (&["-E", "noinline_data"][..], false),
        (&[][..], true),
        (&["--chunksize=4096"][..], false),
        (&["-E", "force-inode-extended"][..], true),
    ] {
        let image = here.join("x.erofs");
        let _ = fs::remove_file(&image);
        let mut args = options.to_vec();
        args.extend(["-T0", "x.erofs", "tree"]);
        run("mkfs.erofs", &args, here);
        let bytes = fs::read(&image).unwrap();
        let extents = file_extents(&bytes).unwrap_or_else(|e| panic!("{options:?}: {e}"));
        let mut starts: HashMap<&[u8], Vec<(u64, u64)>> = HashMap::new();
        for extent in &extents {
            let start = extent.start as usize;
            let known = starts.entry(&bytes[start..start + 64]).or_default();
            known.push((extent.start, extent.end));
        }
        // Every file of a block or more is found whole, at the start of an extent.
        let mut missed = 0;
        for content in contents.iter().filter(|c| c.len() >= 4096) {
            let whole = if keep_tails {
                content.len() / 4096 * 4096
            } else {
                content.len()
            };
            let found = starts.get(&content[..64]).is_some_and(|starts| {
                starts.iter().any(|&(start, end)| {
                    bytes[start as usize..].starts_with(&content[..whole])
                        && end - start >= whole as u64
                })
            });
            missed += u64::from(!found);
        }
        assert_eq!(missed, 0, "{options:?}");

        let (key, _) = SigningKey::create(
            &here.join(format!(
                "{}.key",
                options.len() + usize::from(keep_tails) * 10
            )),
            None,
        )
        .unwrap();
        let mut request = request(here, Codec::Zstd);
        request.store = TempDir::new_in(here).unwrap().keep();
        request.images[0].path = image;
        publish(&request, &key, &()).unwrap();
        let report =
            publish::verify(&Store::at(request.store), &[key.public().clone()], 2).unwrap();
        assert!(report.problems.is_empty());
    }
}
