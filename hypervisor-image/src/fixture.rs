//! A small medium for tests: everything a real one has, with made-up contents.

use std::io::Cursor;

use hypervisor_image::{
    BiosBoot, EspFile, EspSpec, MediumFile, MediumLayout, MediumManifest, MediumSpec, Source,
    UefiBoot, build_esp, write_medium,
};

/// Its build id.
pub const BUILD_ID: &str = "0123456789abcdef";

/// `n` bytes that look random and are always the same.
pub fn noise(n: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_769) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 11) as u8
        })
        .collect()
}

/// The tree, without its manifest.
pub fn files() -> Vec<MediumFile> {
    let file = |path: &str, bytes: Vec<u8>| MediumFile::new(path, bytes);
    vec![
        file("/boot/vmlinuz", noise(5000, 1)),
        file("/boot/empty", Vec::new()),
        file("/boot/grub/grub.cfg", b"set timeout=5\n".to_vec()),
        file(
            "/boot/grub/a file with a rather long name, so that Rock Ridge is needed.conf",
            noise(2048, 2),
        ),
        MediumFile {
            mode: 0o755,
            ..file("/EFI/BOOT/BOOTX64.EFI", noise(9000, 3))
        },
        file("/gasthaus/build-id", format!("{BUILD_ID}\n").into_bytes()),
        file(
            &format!("/gasthaus/{BUILD_ID}/layers"),
            b"base.erofs\nsite.erofs\n".to_vec(),
        ),
        file(
            &format!("/gasthaus/{BUILD_ID}/base.erofs"),
            noise(70_000, 4),
        ),
        file(&format!("/gasthaus/{BUILD_ID}/site.erofs"), noise(4096, 5)),
    ]
}

/// A medium that boots "everywhere", from `files` and a manifest of them.
pub fn spec(mut files: Vec<MediumFile>) -> MediumSpec {
    let manifest = MediumManifest::of_files(BUILD_ID, &files).unwrap();
    files.push(MediumFile::new(
        format!("/gasthaus/{BUILD_ID}/manifest.json"),
        manifest.to_json().unwrap(),
    ));
    let loader = EspFile {
        path: "/EFI/BOOT/BOOTX64.EFI".into(),
        bytes: noise(9000, 3),
    };
    let esp = EspSpec {
        smallest: false,
        files: vec![loader],
        volume_id: 0x1234_5678,
        label: "GASTHAUS".into(),
    };
    MediumSpec {
        volume_id: "GASTHAUS_01234567".into(),
        files,
        bios: Some(BiosBoot {
            eltorito_image: noise(30_001, 6),
            hybrid_mbr: noise(512, 7),
        }),
        uefi: Some(UefiBoot {
            esp_image: Source::Bytes(build_esp(&esp).unwrap()),
        }),
        epoch_secs: 1_700_000_000,
        seed: [42; 32],
    }
}

/// The image of [`spec`] over [`files`].
pub fn image() -> (Vec<u8>, MediumLayout) {
    let mut out = Cursor::new(Vec::new());
    let layout = write_medium(&spec(files()), &mut out).unwrap();
    (out.into_inner(), layout)
}
