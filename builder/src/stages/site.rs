//! Part of stage `layers`: what makes dom0 this image's dom0.
//!
//! In: overlays, the recipe's settings, the programs, the accounts the packages made, the guests' places on the network.
//! Out: [`Entries`], the content of the layer `site`. It changes with every setting, so it is kept small.

use crate::accounts::{Accounts, User};
use crate::assets;
use crate::error::BuildError;
use crate::overlay::{Entries, Entry, Node, Overlay, Target};
use crate::recipe::Page;

use guest_catalog::firewall::{self, RULES_PATH};

use super::StageCx;
use super::dom0_tree::BaseLayer;
use super::fetch::{Debs, FILES_SET};
use super::guests::Guests;
use crate::definition::{Dom0Definition, SiteFiles, keymaps};
use gasthaus_rootfs::deb::{DebError, EntryKind, Next};

/// Groups the image's user joins: administration and the devices of a person who sits at the machine.
const USER_GROUPS: [&str; 8] = [
    "sudo", "adm", "audio", "video", "render", "input", "plugdev", "netdev",
];
const SECONDS_PER_DAY: u64 = 86_400;
/// What a key in the recipe opens.
const SSH_PORT: u16 = 22;

/// Everything that goes into the layer `site`.
///
/// # Errors
/// If an overlay is unknown or wrong, or a program is missing.
pub fn site_entries(
    cx: &StageCx<'_>,
    debs: &Debs,
    base: &BaseLayer,
    guests: &Guests,
) -> Result<Entries, BuildError> {
    let mut site = Entries::new();
    let recipe = &cx.recipe.dom0;
    let definition = Dom0Definition::load()?;
    for files in &definition.site_files {
        take_files(&mut site, debs, files)?;
    }
    for name in definition
        .overlays
        .iter()
        .map(String::as_str)
        .chain(recipe.overlays.iter().map(|o| o.as_str()))
    {
        lay(&mut site, name, cx, Target::Dom0)?;
    }
    for program in ["guests", "guest-page", "gasthaus-live", "house-page"] {
        let bytes = assets::program(program)?.into_owned();
        site.insert(
            format!("usr/lib/gasthaus/{program}"),
            Entry::file(bytes, 0o755),
        );
    }
    for program in ["guests", "gasthaus-live"] {
        site.insert(
            format!("usr/bin/{program}"),
            Entry::symlink(format!("../lib/gasthaus/{program}")),
        );
    }

    site.insert(
        "etc/hostname".into(),
        Entry::file(format!("{}\n", recipe.hostname), 0o644),
    );
    let hosts = format!(
        "127.0.0.1 localhost\n127.0.1.1 {0}\n::1 localhost ip6-localhost ip6-loopback\n",
        recipe.hostname
    );
    site.insert("etc/hosts".into(), Entry::file(hosts, 0o644));
    if let Some(locale) = &recipe.locale {
        site.insert(
            "etc/locale.conf".into(),
            Entry::file(format!("LANG={locale}\n"), 0o644),
        );
    }
    add_keymaps(&mut site, recipe.keymap.as_deref())?;
    site.insert(
        guests.leases_path(),
        Entry::file(guests.static_leases(), 0o644),
    );

    if let Some(settings) = guests.quiet_network() {
        site.insert(
            "etc/systemd/network/10-quiet0.network".into(),
            Entry::file(settings, 0o644),
        );
    }
    let has_key = recipe
        .user
        .as_ref()
        .is_some_and(|user| !user.ssh_keys.is_empty());
    let open: &[u16] = if has_key { &[SSH_PORT] } else { &[] };
    site.insert(
        RULES_PATH.into(),
        Entry::file(firewall::render(&guests.catalogue, open), 0o644),
    );

    site.insert(
        "etc/gasthaus/page.conf".into(),
        Entry::file(page_settings(&cx.recipe.page), 0o600),
    );

    add_accounts(&mut site, &mut base.accounts.clone(), cx);
    Ok(site)
}

/// What `guests` and `house-page` read (`guest-catalog/house-page/src/config.rs`).
fn page_settings(page: &Page) -> String {
    let enabled = if page.enabled { "yes" } else { "no" };
    let mut text = format!("enabled={enabled}\nport={}\n", page.port);
    if let Some(digest) = &page.token_sha256 {
        text.push_str(&format!("token-sha256={digest}\n"));
    }
    text
}

/// Adds a link for each keyboard layout by the name it has for people, and the recipe's choice (vconsole.conf(5)). `guests` reads both
/// (`guest-catalog/src/bin/guests/keymap.rs`).
fn add_keymaps(site: &mut Entries, chosen: Option<&str>) -> Result<(), BuildError> {
    const END: &str = ".kmap.gz";
    const KEYMAPS_PACKAGE: &str = "console-data";
    for (name, file) in keymaps() {
        let end = format!("/{file}{END}");
        let path = site.keys().find_map(|path| {
            let below = path.strip_prefix("usr/share/keymaps/")?;
            path.ends_with(&end).then(|| below.to_owned())
        });
        let path = path.ok_or_else(|| BuildError::NoFile {
            package: KEYMAPS_PACKAGE.to_owned(),
            file: format!("{file}{END}"),
        })?;
        site.insert(
            format!("usr/share/gasthaus/keymaps/{name}{END}"),
            Entry::symlink(format!("../../keymaps/{path}")),
        );
    }
    if let Some(name) = chosen {
        site.insert(
            "etc/vconsole.conf".into(),
            Entry::file(format!("KEYMAP={name}\n"), 0o644),
        );
    }
    Ok(())
}

/// A file of a package that is larger is none that anybody wants here.
const FILE_MAX_BYTES: u64 = 16 << 20;

/// Adds the files that dom0 has of a package without having it installed.
fn take_files(site: &mut Entries, debs: &Debs, wanted: &SiteFiles) -> Result<(), BuildError> {
    let missing = || BuildError::NoPackage {
        wanted: "the packages of `site-files` in the definition",
        set: FILES_SET.to_owned(),
    };
    let mut set = debs.set(FILES_SET).iter();
    let deb = set.find(|deb| deb.name == wanted.package);
    let deb = deb.ok_or_else(missing)?;
    let filter = wanted.path_filter();
    let mut taken = 0_usize;
    let visit = deb.open()?.for_each_data_entry(|entry| {
        let meta = &entry.meta;
        let is_wanted = meta.kind == EntryKind::File && !filter.excludes(&meta.path, false);
        if let (true, Some(path)) = (is_wanted, meta.path.to_str().map(str::to_owned)) {
            let mode = if meta.mode & 0o111 == 0 { 0o644 } else { 0o755 };
            site.insert(path, Entry::file(entry.read_to_vec(FILE_MAX_BYTES)?, mode));
            taken += 1;
        }
        Ok::<_, DebError>(Next::Continue)
    });
    visit.map_err(deb.failed())?;
    if taken == 0 {
        return Err(BuildError::no_file(deb, "any file that `site-files` keeps"));
    }
    Ok(())
}

/// Debian's group `shadow` (base-passwd(8)), fixed for ever.
const SHADOW_GID: u32 = 42;

/// Lays the overlay `name` over `entries`.
///
/// # Errors
/// If it is unknown, wrong, or meant for something else.
pub fn lay(
    entries: &mut Entries,
    name: &str,
    cx: &StageCx<'_>,
    target: Target,
) -> Result<(), BuildError> {
    let overlay = Overlay::load(name, cx.recipe_dir)?;
    if overlay.target != target {
        return Err(BuildError::OverlayTarget {
            name: name.to_owned(),
            found: overlay.target,
            wanted: target,
        });
    }
    entries.extend(overlay.entries);
    Ok(())
}

/// Adds the image's user and its home to `entries`, and the account files that know it. root is locked.
pub fn add_accounts(entries: &mut Entries, accounts: &mut Accounts, cx: &StageCx<'_>) {
    accounts.lock("root");
    if let Some(user) = &cx.recipe.dom0.user {
        add_user(entries, accounts, cx, user);
    }
    for (path, text, mode, gid) in [
        ("etc/passwd", &accounts.passwd, 0o644, 0),
        ("etc/group", &accounts.group, 0o644, 0),
        ("etc/shadow", &accounts.shadow, 0o640, SHADOW_GID),
        ("etc/gshadow", &accounts.gshadow, 0o640, SHADOW_GID),
    ] {
        entries.insert(
            path.into(),
            Entry {
                gid,
                ..Entry::file(text.clone(), mode)
            },
        );
    }
}

fn add_user(
    site: &mut Entries,
    accounts: &mut Accounts,
    cx: &StageCx<'_>,
    user: &crate::recipe::User,
) {
    let hash = cx.recipe.user_password_hash();
    let uid = accounts.add_user(&User {
        name: &user.name,
        full_name: "",
        password_hash: hash.as_deref().unwrap_or("!*"),
        password_day: cx.epoch_secs / SECONDS_PER_DAY,
        groups: &USER_GROUPS,
    });
    let home = format!("home/{}", user.name);
    let mut own = |path: String, node: Node, mode: u32| {
        site.insert(
            path,
            Entry {
                node,
                mode,
                uid,
                gid: uid,
            },
        );
    };
    own(home.clone(), Node::Dir, 0o700);
    if user.ssh_keys.is_empty() {
        return;
    }
    own(format!("{home}/.ssh"), Node::Dir, 0o700);
    own(
        format!("{home}/.ssh/authorized_keys"),
        Node::File((user.ssh_keys.join("\n") + "\n").into_bytes()),
        0o600,
    );
    // The server is off in the overlay; a key in the recipe is what switches it on.
    site.insert(
        "etc/systemd/system/multi-user.target.wants/ssh.service".into(),
        Entry::symlink("/usr/lib/systemd/system/ssh.service"),
    );
}
