//! Good inputs with bytes changed, doubled and cut, thousands of them from a fixed seed: errors are fine, panics are not,
//! and a changed Release file is never believed with another text.

mod support;

use std::path::Path;

use gasthaus_debian::lock::Lock;
use gasthaus_debian::packages::{decompress, parse};
use gasthaus_debian::release::{Keyring, verify};
use gasthaus_debian::solve::{Universe, Wish, solve};
use support::{archive, keys, now_epoch_secs};

/// Numerical Recipes' linear congruential generator: any will do, if it is always the same.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }

    fn mutate(&mut self, good: &[u8]) -> Vec<u8> {
        const WORDS: [&[u8]; 8] = [
            b"\n\n", b":", b" ", b"-----", b"(>= ", b"|,", b"\xff", b"[[",
        ];
        let mut bytes = good.to_vec();
        for _ in 0..=self.below(4) {
            let (from, to) = (self.below(bytes.len()), self.below(bytes.len()));
            let (from, to) = (from.min(to), from.max(to));
            match self.below(5) {
                0 if !bytes.is_empty() => bytes[from] ^= 1 << self.below(8),
                1 => bytes.truncate(to),
                2 => drop(bytes.drain(from..to.min(from + 40))),
                3 => {
                    let word = WORDS[self.below(WORDS.len())];
                    bytes.splice(from..from, word.iter().copied());
                }
                _ => {
                    let piece = bytes[from..to.min(from + 200)].to_vec();
                    bytes.splice(to..to, piece);
                }
            }
        }
        bytes
    }
}

#[test]
fn changed_release_files_are_never_believed_with_another_text() {
    let key = keys::generate(1);
    let keyring = Keyring::from_certificates(vec![keys::public(&key)]);
    let text = archive::release_text("trixie", &[("main/binary-amd64/Packages", b"x")], "");
    let good = keys::sign(&text, &[&key]);
    let believed = verify(good.as_bytes(), &keyring, "trixie", now_epoch_secs()).unwrap();
    let mut dice = Dice(1);
    for _ in 0..3000 {
        let bytes = dice.mutate(good.as_bytes());
        if let Ok(release) = verify(&bytes, &keyring, "trixie", now_epoch_secs()) {
            assert_eq!(release, believed, "{}", String::from_utf8_lossy(&bytes));
        }
    }
}

#[test]
fn changed_package_lists_never_panic() {
    let more = [
        "Depends: bb (>= 1) | vv, cc",
        "Provides: vv (= 2)\nConflicts: vv",
        "Breaks: aa (<< 1)\nRecommends: aa",
    ];
    let names = ["aa", "bb", "cc"];
    let good: String = names
        .iter()
        .zip(more)
        .map(|(name, more)| archive::stanza(name, "1", more))
        .collect();
    let packed = archive::xz(good.as_bytes());
    let mut dice = Dice(2);
    for _ in 0..3000 {
        let _ = decompress("Packages.xz", &dice.mutate(&packed), 1 << 20);
        let bytes = dice.mutate(good.as_bytes());
        let Ok(text) = std::str::from_utf8(&bytes) else {
            continue;
        };
        let Ok(packages) = parse(text) else { continue };
        let universe = Universe::new("amd64", vec![("trixie", packages)]);
        let install = names.iter().map(|n| (*n).to_owned()).collect();
        let wish = Wish {
            install,
            recommends: true,
            ..Wish::default()
        };
        if let Ok(chosen) = solve(&universe, &wish) {
            assert_eq!(universe.faults_of(&chosen), Vec::<String>::new(), "{text}");
        }
    }
}

#[test]
fn changed_locks_never_panic() {
    let sum = "0".repeat(64);
    let good = format!(
        "version = 1\n[recipes.demo]\nrequest-digest = \"{sum}\"\nepoch-secs = 7\n[[recipes.demo.archives]]\n\
         suite = \"trixie\"\nplace = \"archive\"\ncomponents = [\"main\"]\nrelease-epoch-secs = 7\n\
         inrelease-sha256 = \"{sum}\"\n[recipes.demo.sets]\ndom0 = [\n  {{ name = \"bash\", version = \"1\", \
         architecture = \"all\", archive = \"trixie\", filename = \"pool/b\", bytes = 3, sha256 = \"{sum}\" }},\n]\n"
    );
    let path = Path::new("gasthaus.lock");
    Lock::parse(&good, path).unwrap();
    let mut dice = Dice(3);
    for _ in 0..5000 {
        let bytes = dice.mutate(good.as_bytes());
        let Ok(text) = std::str::from_utf8(&bytes) else {
            continue;
        };
        if let Ok(lock) = Lock::parse(text, path) {
            assert_eq!(Lock::parse(&lock.to_text(), path).unwrap(), lock, "{text}");
        }
    }
}
