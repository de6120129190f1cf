//! Where distributions keep OVMF, the UEFI firmware for QEMU.

use std::path::{Path, PathBuf};

/// UEFI firmware as two flash images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ovmf {
    /// The program.
    pub code: PathBuf,
    /// An empty store for its variables.
    pub vars: PathBuf,
    /// Their format in QEMU's words.
    pub format: &'static str,
}

/// Program, variables and format, the better first. Those with enforced Secure Boot are left out.
pub const PLACES: [(&str, &str, &str); 11] = [
    // Debian, Ubuntu
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
        "raw",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
        "raw",
    ),
    // Fedora
    (
        "/usr/share/edk2/ovmf/OVMF_CODE_4M.qcow2",
        "/usr/share/edk2/ovmf/OVMF_VARS_4M.qcow2",
        "qcow2",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
        "raw",
    ),
    // Arch
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
        "raw",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.fd",
        "/usr/share/edk2/x64/OVMF_VARS.fd",
        "raw",
    ),
    (
        "/usr/share/edk2-ovmf/x64/OVMF_CODE.fd",
        "/usr/share/edk2-ovmf/x64/OVMF_VARS.fd",
        "raw",
    ),
    // openSUSE
    (
        "/usr/share/qemu/ovmf-x86_64-4m-code.bin",
        "/usr/share/qemu/ovmf-x86_64-4m-vars.bin",
        "raw",
    ),
    (
        "/usr/share/qemu/ovmf-x86_64-code.bin",
        "/usr/share/qemu/ovmf-x86_64-vars.bin",
        "raw",
    ),
    // QEMU's own build
    (
        "/usr/share/qemu/edk2-x86_64-code.fd",
        "/usr/share/qemu/edk2-i386-vars.fd",
        "raw",
    ),
    (
        "/usr/local/share/qemu/edk2-x86_64-code.fd",
        "/usr/local/share/qemu/edk2-i386-vars.fd",
        "raw",
    ),
];

/// Finds OVMF below `root` (`/` but in tests). Half a pair does not count.
#[must_use]
pub fn find(root: &Path) -> Option<Ovmf> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    PLACES
        .iter()
        .map(|(code, vars, format)| Ovmf {
            code: below(code),
            vars: below(vars),
            format,
        })
        .find(|ovmf| ovmf.code.is_file() && ovmf.vars.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn each_place_is_found_and_half_a_pair_is_not() {
        for (code, vars, format) in PLACES {
            let root = tempfile::tempdir().unwrap();
            let place = |path: &str| root.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(place(code).parent().unwrap()).unwrap();
            fs::write(place(code), "").unwrap();
            assert_eq!(find(root.path()), None, "{code} alone");
            fs::write(place(vars), "").unwrap();
            assert_eq!(
                find(root.path()),
                Some(Ovmf {
                    code: place(code),
                    vars: place(vars),
                    format
                })
            );
        }
    }
}
