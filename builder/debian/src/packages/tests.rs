//! Tests of `packages`: fields, folded lines, damaged and hostile texts, compression.

use std::io::Write as _;

use super::*;

const SUM: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn stanza(extra: &str) -> String {
    format!(
        "Package: aa\nVersion: 1\nArchitecture: all\nFilename: pool/a/aa_1_all.deb\nSize: 7\nSHA256: {SUM}\n{extra}"
    )
}

#[test]
fn fields_are_taken() {
    let text = stanza(
        "Essential: yes\nPriority: required\nMULTI-ARCH: foreign\nPre-Depends: bb\nDepends: cc,\n dd (>= 1)\n\
         Installed-Size: 12\nDescription: text\n Filename: /not/this\nTag: a::b\n\n\n",
    ) + &stanza("");
    let packages = parse(&text).unwrap();
    assert_eq!(packages.len(), 2);
    let first = &packages[0];
    assert!(first.essential && first.multi_arch == MultiArch::Foreign && first.installed_kib == 12);
    assert_eq!(
        (first.pre_depends, first.depends),
        ("bb", "cc,\n dd (>= 1)")
    );
    assert_eq!((first.filename, first.bytes), ("pool/a/aa_1_all.deb", 7));
    assert_eq!(first.sha256.unwrap().to_string(), SUM);
    assert!(
        !packages[1].essential && packages[1].depends.is_empty(),
        "nothing carries over"
    );
}

#[test]
fn damaged_stanzas_are_refused_with_their_line() {
    let good = stanza("");
    for (from, to, needle) in [
        ("Package: aa", "Package: A a", "no package name"),
        ("Package: aa\n", "", "no package name"),
        ("Version: 1", "Version: 1 2", "not a version"),
        ("Size: 7", "Size: -7", "not a number"),
        ("Size: 7", "Size: 99999999999999999999999", "not a number"),
        ("Size: 7\n", "", "missing"),
        (SUM, "00", "SHA-256"),
        ("Filename: pool/a", "Filename: ../a", "leads out"),
        ("Filename: pool/a", "Filename: /a", "absolute"),
        ("Filename: pool/a", "Filename: pool//a", "absolute"),
        ("Filename: pool/a", "Filename: http://x/a", "absolute"),
        ("Filename: pool/a", "Filename: http:a", "address"),
        ("Filename: pool/a", "Filename: pool/a b", "character"),
        ("Filename: pool/a", "Filename: pool/./a", "leads out"),
        ("Filename: pool/a", "Filename: pool/a?b", "character"),
        ("Architecture: all", "Multi-Arch: perhaps", "Multi-Arch"),
        ("Architecture: all", "no field", "no `Field: value`"),
    ] {
        let text = format!("{good}\n{}", good.replace(from, to));
        let error = parse(&text).unwrap_err().to_string();
        assert!(
            error.contains(needle) && error.starts_with("line "),
            "{to:?}: {error}"
        );
    }
}

#[test]
fn hostile_texts_never_panic() {
    for text in [
        "",
        "\n\n\n",
        " continued",
        ":",
        "é",
        "Package",
        "Size:\n\n",
        "\0:\0\n",
        "A:\n é\n\n",
        "\r\n\r\n",
    ] {
        let _ = parse(text);
    }
    assert_eq!(parse("").unwrap().len(), 0);
}

#[test]
fn compression_is_bounded() {
    let plain = stanza("").repeat(100);
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
    xz.write_all(plain.as_bytes()).unwrap();
    let xz = xz.finish().unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(plain.as_bytes()).unwrap();
    let gz = gz.finish().unwrap();
    let exact = plain.len() as u64;
    for (path, data) in [
        ("m/Packages.xz", &xz),
        ("m/Packages.gz", &gz),
        ("m/Packages", &plain.clone().into_bytes()),
    ] {
        assert_eq!(
            decompress(path, data, exact).unwrap(),
            plain.as_bytes(),
            "{path}"
        );
        assert!(
            matches!(
                decompress(path, data, exact - 1),
                Err(IndexError::TooLarge { .. })
            ),
            "{path}"
        );
    }
    for (path, data) in [("m/Packages.xz", &xz), ("m/Packages.gz", &gz)] {
        let cut = decompress(path, &data[..data.len() / 2], exact);
        assert!(
            matches!(cut, Err(IndexError::Decompress { .. })),
            "{path}: {cut:?}"
        );
        let mut bent = data.to_vec();
        bent[data.len() / 2] ^= 0xff;
        assert!(decompress(path, &bent, exact).is_err(), "{path}");
    }
    assert!(matches!(
        decompress("Packages.zip", b"", 9),
        Err(IndexError::UnknownCompression { .. })
    ));
}
