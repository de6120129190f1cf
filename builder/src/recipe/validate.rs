//! What a well-typed recipe must hold beyond its types. Changes nothing, reports everything.

use std::collections::BTreeSet;

use super::decode::Names;
use super::problem::{excerpt, list, nearest};
use super::shape::{
    is_crypt_hash, is_label, is_locale, is_name, is_option, is_package, is_profile_file,
    is_public_key, is_reference_name, is_sha256, is_stream_url, is_title, is_url,
};
use super::types::{Recipe, User};
use super::words::{Output, Reference};

/// Most elements of an ordinary list, and of a list of packages.
const MAX_ITEMS: usize = 64;
const MAX_PACKAGES: usize = 4096;

/// Most mirrors and keys, as many as `gasthaus-live` takes.
const MAX_STREAM_ITEMS: usize = 16;

/// Accounts that Debian's `base-passwd` owns.
const SYSTEM_USERS: [&str; 20] = [
    "root",
    "daemon",
    "bin",
    "sys",
    "sync",
    "games",
    "man",
    "lp",
    "mail",
    "news",
    "uucp",
    "proxy",
    "www-data",
    "backup",
    "list",
    "irc",
    "nobody",
    "sudo",
    "messagebus",
    "sshd",
];

/// Kernel options the builder itself sets: a second value would make the medium unfindable.
const OWN_KERNEL_OPTIONS: [&str; 2] = ["gasthaus.build=", "root="];

/// One thing that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the key, e.g. `dom0.packages[2]`.
    pub key: String,
    /// What is there.
    pub found: String,
    /// What may be there.
    pub allowed: String,
    /// The allowed word most like it.
    pub nearest: Option<String>,
}

impl Recipe {
    /// Everything that does not hold, in no particular order.
    pub fn validate(&self) -> Vec<Violation> {
        let mut check = Check {
            violations: Vec::new(),
        };
        check.that(
            "name",
            &self.name,
            is_name,
            "`a`-`z`, `0`-`9` and `-`, a letter first, at most 40 characters",
        );
        check.that(
            "title",
            &self.title,
            is_title,
            "one line of 1 to 60 printable characters",
        );
        check.at_least_one("flavours", self.flavours.len());
        check.unique(
            "flavours",
            self.flavours.iter().map(|flavour| flavour.as_str()),
        );
        check.at_least_one("outputs", self.outputs.len());
        check.unique("outputs", self.outputs.iter().map(|output| output.as_str()));
        check.references("guests", &self.guests);
        check.options("xen.options", &self.xen.options);
        self.validate_dom0(&mut check);
        self.validate_debian(&mut check);
        self.validate_stream(&mut check);
        self.validate_page(&mut check);
        let layers = &self.layers;
        for (key, level) in [
            ("layers.compression-level", layers.compression_level),
            ("layers.release-level", layers.release_level),
            ("stream.compression-level", self.stream.compression_level),
        ] {
            if !(1..=22).contains(&level) {
                check.note(key, format!("`{level}`"), "an integer from 1 to 22");
            }
        }
        check.violations
    }

    /// The embedded names the recipe uses and `names` lacks.
    pub fn unknown_names(&self, names: &Names) -> Vec<Violation> {
        let mut violations = Vec::new();
        for (key, used, known) in [
            ("guests", &self.guests, &names.guests),
            ("dom0.overlays", &self.dom0.overlays, &names.overlays),
        ] {
            for (index, reference) in used.iter().enumerate() {
                let Reference::Embedded(name) = reference else {
                    continue;
                };
                if is_reference_name(name) && !known.contains(name) {
                    violations.push(Violation {
                        key: format!("{key}[{index}]"),
                        found: excerpt(name),
                        allowed: format!("{}, or a path (with a `/`)", list(known)),
                        nearest: nearest(name, known.iter().map(String::as_str)),
                    });
                }
            }
        }
        let known = &names.keymaps;
        if let Some(keymap) = &self.dom0.keymap
            && is_reference_name(keymap)
            && !known.contains(keymap)
        {
            violations.push(Violation {
                key: "dom0.keymap".into(),
                found: excerpt(keymap),
                allowed: list(known),
                nearest: nearest(keymap, known.iter().map(String::as_str)),
            });
        }
        violations
    }

    fn validate_dom0(&self, check: &mut Check) {
        let dom0 = &self.dom0;
        let label = "one DNS label: `a`-`z`, `0`-`9` and `-` inside, at most 63 characters";
        check.that("dom0.hostname", &dom0.hostname, is_label, label);
        if let Some(locale) = &dom0.locale {
            check.that(
                "dom0.locale",
                locale,
                is_locale,
                "a UTF-8 locale such as `C.UTF-8` or `de_DE.UTF-8`",
            );
        }
        if let Some(keymap) = &dom0.keymap {
            let allowed = "the name of a keyboard layout, such as `de`";
            check.that("dom0.keymap", keymap, is_reference_name, allowed);
        }
        let package =
            "a Debian package name: `a`-`z`, `0`-`9`, `+`, `-` and `.`, at least 2 characters";
        for (key, packages) in [
            ("dom0.packages", &dom0.packages),
            ("dom0.exclude-packages", &dom0.exclude_packages),
        ] {
            check.at_most(key, packages.len(), MAX_PACKAGES);
            check.unique(key, packages.iter().map(String::as_str));
            check.each(key, packages, is_package, package);
        }
        let wanted: BTreeSet<&String> = dom0.packages.iter().collect();
        for (index, name) in dom0.exclude_packages.iter().enumerate() {
            if wanted.contains(name) && is_package(name) {
                let key = format!("dom0.exclude-packages[{index}]");
                check.note(
                    &key,
                    excerpt(name),
                    "a package that `dom0.packages` does not ask for",
                );
            }
        }
        check.references("dom0.overlays", &dom0.overlays);
        check.options("dom0.kernel-options", &dom0.kernel_options);
        for (index, option) in dom0.kernel_options.iter().enumerate() {
            if OWN_KERNEL_OPTIONS.iter().any(|own| option.starts_with(own)) {
                let key = format!("dom0.kernel-options[{index}]");
                check.note(
                    &key,
                    excerpt(option),
                    "anything but `gasthaus.build=` and `root=`, which the builder sets",
                );
            }
        }
        if let Some(user) = &dom0.user {
            validate_user(user, check);
        }
    }

    fn validate_stream(&self, check: &mut Check) {
        let stream = &self.stream;
        let url =
            "`http://…` or `https://…` of at most 256 letters, digits and `._~:/?#[]@!&()*+,;=%-`";
        check.at_most("stream.urls", stream.urls.len(), MAX_STREAM_ITEMS);
        check.unique("stream.urls", stream.urls.iter().map(String::as_str));
        check.each("stream.urls", &stream.urls, is_stream_url, url);
        let key = "a minisign public key, 56 characters that begin with `RW`";
        check.at_most(
            "stream.public-keys",
            stream.public_keys.len(),
            MAX_STREAM_ITEMS,
        );
        check.unique(
            "stream.public-keys",
            stream.public_keys.iter().map(String::as_str),
        );
        check.each(
            "stream.public-keys",
            &stream.public_keys,
            is_public_key,
            key,
        );
        check.that(
            "stream.secret-key",
            &stream.secret_key,
            |path| (1..=4096).contains(&path.len()) && !path.chars().any(char::is_control),
            "the path of a file",
        );
        check.that(
            "stream.profile",
            &stream.profile,
            is_reference_name,
            "a name (`a`-`z`, `0`-`9` and `-`, at most 40 characters), or `none`",
        );
        check.at_most("stream.profiles", stream.profiles.len(), MAX_STREAM_ITEMS);
        check.unique(
            "stream.profiles",
            stream.profile_files().map(|(name, _)| name),
        );
        check.each(
            "stream.profiles",
            &stream.profiles,
            is_profile_file,
            "`NAME=FILE`: a name (`a`-`z`, `0`-`9` and `-`, at most 40 characters) and the path of a file",
        );
        for output in [Output::NetIso, Output::NetIsoMini] {
            if self.outputs.contains(&output) && stream.urls.is_empty() {
                check.note(
                    "outputs",
                    format!("`{output}` without a store"),
                    "with a URL in `stream.urls`",
                );
            }
        }
    }

    fn validate_page(&self, check: &mut Check) {
        const SSH: u32 = 22;
        if let Some(digest) = &self.page.token_sha256
            && !is_sha256(digest)
        {
            // The value stays out of the message: it may be the token itself.
            let allowed = "64 hexadecimal digits in lower case, as `sha256sum` prints them";
            check.note("page.token-sha256", "no SHA-256".into(), allowed);
        }
        let port = self.page.port;
        if !(1..=65535).contains(&port) || port == SSH {
            let allowed = "a port from 1 to 65535, and not 22, which is for SSH";
            check.note("page.port", format!("`{port}`"), allowed);
        }
    }

    fn validate_debian(&self, check: &mut Check) {
        let debian = &self.debian;
        check.at_least_one("debian.components", debian.components.len());
        check.unique(
            "debian.components",
            debian.components.iter().map(|component| component.as_str()),
        );
        let url = "`http://…` or `https://…` without blanks and without credentials";
        for (key, mirror) in [
            ("debian.mirror", &debian.mirror),
            ("debian.security-mirror", &debian.security_mirror),
        ] {
            if let Some(mirror) = mirror {
                check.that(key, mirror, is_url, url);
            }
        }
    }
}

fn validate_user(user: &User, check: &mut Check) {
    let name = "`a`-`z`, `0`-`9` and `-`, a letter first, at most 32 characters";
    check.that(
        "dom0.user.name",
        &user.name,
        |name| is_name(name) && name.len() <= 32,
        name,
    );
    if SYSTEM_USERS.contains(&user.name.as_str()) {
        check.note(
            "dom0.user.name",
            excerpt(&user.name),
            "a name that Debian does not use itself",
        );
    }
    if let Some(password) = &user.password
        && (password.is_empty() || password.len() > 128 || password.chars().any(char::is_control))
    {
        // The value stays out of the message: it may be a real password.
        let found = if password.is_empty() {
            "empty"
        } else {
            "too long or not printable"
        };
        check.note(
            "dom0.user.password",
            found.into(),
            "1 to 128 bytes on one line",
        );
    }
    if let Some(hash) = &user.password_hash {
        if !is_crypt_hash(hash) {
            let allowed =
                "a crypt(5) hash as in `/etc/shadow`, e.g. `$6$…` or `$y$…` (`mkpasswd` makes one)";
            check.note("dom0.user.password-hash", "not a hash".into(), allowed);
        }
        if user.password.is_some() {
            check.note(
                "dom0.user.password-hash",
                "given beside `password`".into(),
                "one of the two",
            );
        }
    }
    check.at_most("dom0.user.ssh-keys", user.ssh_keys.len(), MAX_ITEMS);
    check.unique(
        "dom0.user.ssh-keys",
        user.ssh_keys.iter().map(String::as_str),
    );
    for (index, key) in user.ssh_keys.iter().enumerate() {
        if let Err(why) = super::ssh_key::check(key) {
            let allowed = "a public key line as in `~/.ssh/id_ed25519.pub`";
            check.note(
                &format!("dom0.user.ssh-keys[{index}]"),
                format!("{} ({why})", excerpt(key)),
                allowed,
            );
        }
    }
    if user.password.is_none() && user.password_hash.is_none() && user.ssh_keys.is_empty() {
        let found = "without a way to log in".to_owned();
        check.note(
            "dom0.user",
            found,
            "a user with `password`, `password-hash` or `ssh-keys`",
        );
    }
}

struct Check {
    violations: Vec<Violation>,
}

impl Check {
    fn note(&mut self, key: &str, found: String, allowed: &str) {
        self.violations.push(Violation {
            key: key.to_owned(),
            found,
            allowed: allowed.to_owned(),
            nearest: None,
        });
    }

    fn that(&mut self, key: &str, value: &str, holds: impl Fn(&str) -> bool, allowed: &str) {
        if !holds(value) {
            self.note(key, excerpt(value), allowed);
        }
    }

    fn each(&mut self, key: &str, values: &[String], holds: impl Fn(&str) -> bool, allowed: &str) {
        for (index, value) in values.iter().enumerate() {
            self.that(&format!("{key}[{index}]"), value, &holds, allowed);
        }
    }

    fn at_least_one(&mut self, key: &str, count: usize) {
        if count == 0 {
            self.note(key, "an empty list".into(), "at least one");
        }
    }

    fn at_most(&mut self, key: &str, count: usize, most: usize) {
        if count > most {
            self.note(
                key,
                format!("a list of {count}"),
                &format!("at most {most}"),
            );
        }
    }

    fn unique<'a>(&mut self, key: &str, values: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeSet::new();
        for (index, value) in values.enumerate() {
            // Empty strings stand in for values of a wrong type, or are refused by the check of their shape.
            if !value.is_empty() && !seen.insert(value) {
                self.note(
                    &format!("{key}[{index}]"),
                    format!("{} once more", excerpt(value)),
                    "each only once",
                );
            }
        }
    }

    fn references(&mut self, key: &str, references: &[Reference]) {
        self.at_most(key, references.len(), MAX_ITEMS);
        self.unique(key, references.iter().map(Reference::as_str));
        for (index, reference) in references.iter().enumerate() {
            let holds = match reference {
                Reference::Embedded(name) => is_reference_name(name),
                Reference::Path(path) => path.len() <= 4096 && !path.chars().any(char::is_control),
            };
            if !holds {
                let allowed = "a name (`a`-`z`, `0`-`9` and `-`, at most 40 characters), or a path (with a `/`)";
                self.note(
                    &format!("{key}[{index}]"),
                    excerpt(reference.as_str()),
                    allowed,
                );
            }
        }
    }

    /// Words for a kernel command line, which pass through GRUB's script language: nothing that it would interpret.
    fn options(&mut self, key: &str, options: &[String]) {
        self.at_most(key, options.len(), MAX_ITEMS);
        let allowed = "one word of letters, digits and `_.,:=/@%+-`, at most 256 characters";
        self.each(key, options, is_option, allowed);
    }
}
