//! A Debian guest: its disk, made of its packages and what is laid over them, and its initramfs.

use std::fs;
use std::path::Path;

use guest_catalog::DebianSource;

use super::INITRD_LEVEL;
use crate::accounts::Accounts;
use crate::assets;
use crate::cache::Key;
use crate::error::BuildError;
use crate::overlay::{Entries, Entry, Target};
use crate::stages::fetch::Debs;
use crate::stages::initramfs::{self, list};
use crate::stages::kernel::{Kernel, LIBKMOD_INDEXES, TEXT_INDEXES};
use crate::stages::modules::parse_list;
use crate::stages::tree::{self, Tree};
use crate::stages::{StageCx, site};
use crate::tool::Tools;

/// Modules of a guest's disk besides those its initramfs has: what programs in a guest commonly ask for.
const GUEST_DISK_MODULES: [&str; 14] = [
    "xen-netfront",
    "xen-blkfront",
    "virtio_net",
    "virtio_blk",
    "virtio_balloon",
    "virtio_rng",
    "ext4",
    "overlay",
    "fuse",
    "tun",
    "veth",
    "nf_tables",
    "nft_masq",
    "nft_ct",
];

/// What a Debian guest has besides its packages.
pub(super) struct DebianGuest<'a> {
    source: &'a DebianSource,
    pub(super) entries: Entries,
}

impl<'a> DebianGuest<'a> {
    pub(super) fn new(
        cx: &StageCx<'_>,
        source: &'a DebianSource,
        page: &[u8],
    ) -> Result<Self, BuildError> {
        let mut entries = Entries::new();
        if let Some(overlay) = &source.overlay {
            site::lay(&mut entries, overlay, cx, Target::Guest)?;
        }
        entries.insert(
            "usr/lib/gasthaus/guest-page".into(),
            Entry::file(page, 0o755),
        );
        Ok(Self { source, entries })
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "each is one artefact the guest is made of"
    )]
    pub(super) fn make(
        &self,
        cx: &StageCx<'_>,
        debs: &Debs,
        tools: &Tools,
        kernel: &Kernel,
        set: &str,
        key: &Key,
        scratch: &Path,
    ) -> Result<(), BuildError> {
        let tree = tree::make_tree(
            cx,
            debs.set(set),
            tree::guest_filter(),
            &scratch.join("tree"),
        )?;
        let mut entries = self.entries.clone();
        for (path, entry) in
            kernel.module_entries(cx, tools, &GUEST_DISK_MODULES, LIBKMOD_INDEXES)?
        {
            entries.insert(format!("usr/{path}"), entry);
        }
        self.add_user(cx, &tree, &mut entries)?;
        tree.lay(cx, &entries)?;
        self.make_disk(cx, tools, &tree, key, &scratch.join("disk.img"))?;
        tree.remove(cx)?;

        let wishes = list("initramfs-modules-guest.txt")?;
        let mut initrd = kernel.module_entries(cx, tools, &parse_list(&wishes), TEXT_INDEXES)?;
        initrd.insert(
            "init".into(),
            Entry::file(assets::program("gasthaus-live")?.as_ref(), 0o755),
        );
        initramfs::pack(
            &initrd,
            cx.epoch_secs,
            INITRD_LEVEL,
            &scratch.join("initrd.zst"),
        )
    }

    /// The person who uses the image uses its guests: same name, password and keys.
    fn add_user(
        &self,
        cx: &StageCx<'_>,
        tree: &Tree,
        entries: &mut Entries,
    ) -> Result<(), BuildError> {
        let mut accounts: Accounts = tree.accounts()?;
        site::add_accounts(entries, &mut accounts, cx);
        Ok(())
    }

    /// An ext4 file system made from the tree without mounting it (mke2fs(8), `-d`).
    fn make_disk(
        &self,
        cx: &StageCx<'_>,
        tools: &Tools,
        tree: &Tree,
        key: &Key,
        out: &Path,
    ) -> Result<(), BuildError> {
        let uuid = key.as_uuid();
        let epoch = cx.epoch_secs.to_string();
        let file = fs::File::create(out).map_err(BuildError::io("create the disk", out))?;
        file.set_len(u64::from(self.source.disk_mib) << 20)
            .map_err(BuildError::io("size the disk", out))?;
        drop(file);
        tools
            .run("mke2fs")?
            .args([
                "-q", "-F", "-t", "ext4", "-L", "root", "-m", "1", "-b", "4096", "-U", &uuid,
            ])
            // A journal would be written through copy-on-write memory; the disk lives as long as the power.
            .args(["-O", "^has_journal,^resize_inode,^orphan_file"])
            .args([
                "-E",
                &format!("hash_seed={uuid},lazy_itable_init=0,nodiscard,root_owner=0:0"),
            ])
            .arg("-d")
            .arg(tree.path())
            .arg(out)
            .env("E2FSPROGS_FAKE_TIME", &epoch)
            .env("SOURCE_DATE_EPOCH", &epoch)
            .env("MKE2FS_CONFIG", "/nonexistent")
            .output_on_tree(cx.sandbox)?;
        Ok(())
    }
}
