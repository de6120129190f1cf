//! The types of a guest definition: what `guests/<name>/guest.toml` says, with its defaults.
//!
//! Ranges and formats stand in the schema attributes; they are checked by [`crate::Guest::parse`].
use crate::GuestName;
use crate::network::Network;
use crate::source::Source;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One guest of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Guest {
    /// The guest's name; equals the name of its folder.
    pub name: GuestName,
    /// One line for menus and lists.
    #[schemars(extend("format" = "one-line"))]
    pub description: String,
    /// Licence of what the guest consists of, as SPDX expression where there is one.
    #[schemars(extend("format" = "one-line"))]
    pub licence: String,
    /// Where the guest's software comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "homepage"))]
    pub homepage: Option<String>,
    /// Where the guest's bytes come from.
    pub source: Source,
    /// What the domain boots.
    #[serde(default)]
    pub boot: Boot,
    /// Virtualisation modes in order of preference; the next is tried when one fails. Xen has `pvh`, `pv` and `hvm`; without Xen,
    /// QEMU has `kvm`.
    #[serde(default = "default_modes")]
    #[schemars(length(min = 1))]
    pub modes: Vec<Mode>,
    /// Memory of the domain in MiB.
    #[schemars(range(min = 32, max = 1_048_576))]
    pub memory_mib: u32,
    /// Number of virtual processors.
    #[serde(default = "default_vcpus")]
    #[schemars(range(min = 1, max = 64))]
    pub vcpus: u32,
    /// Block devices, in the order the guest sees them.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub disks: Vec<Disk>,
    /// The guest's network card.
    #[serde(default)]
    pub network: Network,
    /// Whether the guest is started when dom0 boots.
    #[serde(default)]
    pub autostart: bool,
    /// Start order, lowest first; guests of equal order start together. Also decides the static address.
    #[serde(default = "default_order")]
    #[schemars(range(min = 0, max = 999))]
    pub order: u32,
    /// How to find out that the guest is up.
    pub health: Health,
    /// Where the guest shows itself.
    #[serde(default)]
    pub display: Display,
    /// Files put into the guest's disks before it sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub inject: Vec<Injection>,
    /// Files taken out of the guest's disk for `boot.kernel` and `boot.initrd`: its own kernel, without a boot loader.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub extract: Vec<Extraction>,
    /// What a cloud image is told at its first boot; becomes the disk whose `image` is `seed.img`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
    /// What the user should know: how to get the image, how to log in, what to press.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "text"))]
    pub notes: Option<String>,
}

/// What the domain boots: kernel, initial RAM disk and command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Boot {
    /// Who starts the guest: a kernel given here, or the firmware of an emulated PC from the first disk.
    pub from: BootFrom,
    /// Kernel; absolute in dom0, or a file in the guest's folder.
    #[schemars(extend("format" = "image-path"))]
    pub kernel: String,
    /// Initial RAM disk; absolute in dom0, or a file in the guest's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "image-path"))]
    pub initrd: Option<String>,
    /// Kernel command line; `gasthaus.guest=<name>` is added.
    #[schemars(extend("format" = "command-line"))]
    pub cmdline: String,
}

/// Who starts the guest's system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BootFrom {
    /// The kernel, initial RAM disk and command line of `boot`.
    #[default]
    Kernel,
    /// The PC BIOS, from the first disk.
    Bios,
    /// UEFI, from the first disk.
    Uefi,
}

/// A file put into a FAT, ext2, ext3 or ext4 file system on one of the guest's disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Injection {
    /// The disk, by its `device`.
    #[schemars(extend("format" = "block-device"))]
    pub disk: String,
    /// Partition that holds the file system, by its number in the MBR or GPT; without it, the file system fills the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 128))]
    pub partition: Option<u32>,
    /// Path in the file system. In FAT its folders must be there; elsewhere they are made.
    #[schemars(extend("format" = "disk-path"))]
    pub path: String,
    /// Permissions in octal, e.g. `0600`; not in FAT. Without it those of the file that is replaced, else 0644.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "octal-mode"))]
    pub mode: Option<String>,
    /// The file's whole content, or with `append` what comes behind it.
    #[schemars(extend("format" = "text"))]
    pub text: String,
    /// Whether what the file has stays in front: for another line in `/etc/passwd` or `/etc/fstab`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub append: bool,
}

/// A file taken out of a FAT, ext2, ext3 or ext4 file system on the guest's disk when it is prepared, after files were put there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Extraction {
    /// The disk, by its `device`: one whose image is `disk.img`.
    #[schemars(extend("format" = "block-device"))]
    pub disk: String,
    /// Partition that holds the file system, by its number in the MBR or GPT; without it, the file system fills the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 128))]
    pub partition: Option<u32>,
    /// Path in the file system. Links are followed as the guest would follow them: `/vmlinuz` is Debian's kernel.
    #[schemars(extend("format" = "package-path"))]
    pub path: String,
    /// What it is called beside the disk.
    #[schemars(extend("format" = "file-name"))]
    pub to: String,
}

/// What a cloud image is told at its first boot (cloud-init's NoCloud): the files of a small disk called `CIDATA`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Seed {
    /// The file system of the disk.
    #[serde(skip_serializing_if = "SeedFormat::is_fat")]
    pub format: SeedFormat,
    /// Host name; without it the guest's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "host-name"))]
    pub hostname: Option<String>,
    /// A user who may become root; without it the image's own one gets the keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "user-name"))]
    pub user: Option<String>,
    /// The user's password as crypt(3) hash; without it there is none to log in with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "one-line"))]
    pub password_hash: Option<String>,
    /// SSH keys, as in `authorized_keys`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "ssh_keys")]
    pub ssh_keys: Vec<String>,
    /// The whole `user-data`, in place of what the keys above make.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "text"))]
    pub user_data: Option<String>,
    /// `network-config`; without it the image asks by DHCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "text"))]
    pub network_config: Option<String>,
}

/// The file system of a seed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SeedFormat {
    /// FAT, called `CIDATA`.
    #[default]
    Fat,
    /// ISO 9660, called `cidata`: for systems that look for a disc.
    Iso,
}

impl SeedFormat {
    fn is_fat(&self) -> bool {
        *self == Self::Fat
    }
}

/// A virtualisation mode.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Xen PVH: hardware virtualisation without emulated devices.
    Pvh,
    /// Xen paravirtualisation: needs no help from the processor.
    Pv,
    /// Xen with a whole PC emulated around the guest.
    Hvm,
    /// QEMU with a whole PC around the guest: by KVM where the processor and kernel give it, else by emulation.
    Kvm,
}

impl Mode {
    /// Whether the guest sees a PC with firmware, so that it can boot from its disks.
    pub fn is_pc(self) -> bool {
        matches!(self, Self::Hvm | Self::Kvm)
    }

    /// The word used in TOML, in `xl.cfg` and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pvh => "pvh",
            Self::Pv => "pv",
            Self::Hvm => "hvm",
            Self::Kvm => "kvm",
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One block device of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Disk {
    /// Name of the device in the guest.
    #[schemars(extend("format" = "block-device"))]
    pub device: String,
    /// Raw image; absolute in dom0, or a file in the guest's folder.
    #[schemars(extend("format" = "image-path"))]
    pub image: String,
    /// Who may write.
    #[serde(default)]
    pub access: Access,
    /// Whether it is a disc in a drive. `fda` and `fdb` are floppies, the others are disks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cdrom: bool,
}

/// Who may write to a disk. The image file itself is never written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// The guest writes to a layer in dom0's RAM, which is lost at power-off.
    #[default]
    CopyOnWrite,
    /// The guest writes to a layer on the file system labelled `gasthaus-data`, which stays; where there is none, to dom0's RAM.
    Persistent,
    /// Nobody writes; the guest sees a read-only disk, which others may see, too.
    ReadOnly,
}

impl Access {
    /// Whether the guest may write.
    pub fn is_writable(self) -> bool {
        self != Self::ReadOnly
    }
}

/// How to find out that a guest is up: an HTTP fetch, a TCP connection, a text on its console or screen, or several of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Health {
    /// A page of the guest that dom0 fetches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpHealth>,
    /// A TCP port of the guest that dom0 connects to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpHealth>,
    /// Text that appears on the guest's console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "one-line"))]
    pub console: Option<String>,
    /// Text that appears on the guest's screen, while that is in VGA text mode (80 x 25 characters).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "one-line"))]
    pub screen: Option<String>,
    /// Keys typed when a text appears, each once, in this order: for guests that ask before they boot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub answers: Vec<Answer>,
    /// How long a start may take, for each mode tried, in seconds.
    #[serde(default = "default_timeout_secs")]
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_secs: u32,
}

/// What is typed when a guest asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Answer {
    /// Text on the console or screen that is waited for.
    #[schemars(extend("format" = "one-line"))]
    pub when: String,
    /// What is typed then, followed by Enter; may be empty.
    #[schemars(extend("format" = "typed"))]
    pub r#type: String,
}

/// A page of the guest that dom0 fetches; the answer must be 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct HttpHealth {
    /// TCP port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Path on the server.
    #[schemars(extend("format" = "url-path"))]
    pub path: String,
    /// Text the body must contain; without it the guest's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "one-line"))]
    pub expect: Option<String>,
}

/// A TCP port of the guest that dom0 connects to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TcpHealth {
    /// TCP port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Text that the server says first, e.g. `SSH-2.0`; without it, that it takes the connection is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "one-line"))]
    pub expect: Option<String>,
}

/// Where the guest shows itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Display {
    /// Its text console.
    #[default]
    Text,
    /// Its screen.
    Vnc,
    /// Both.
    Both,
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            from: BootFrom::Kernel,
            kernel: "/boot/vmlinuz".to_owned(),
            initrd: None,
            cmdline: "console=hvc0".to_owned(),
        }
    }
}

impl Default for HttpHealth {
    fn default() -> Self {
        Self {
            port: 80,
            path: "/".to_owned(),
            expect: None,
        }
    }
}

impl Guest {
    /// Text that the health page must contain.
    pub fn expected_text(&self) -> Option<&str> {
        self.health
            .http
            .as_ref()
            .map(|http| http.expect.as_deref().unwrap_or(self.name.as_str()))
    }
}

fn ssh_keys(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "string", "format": "one-line" },
        "maxItems": 32,
    })
}

fn default_modes() -> Vec<Mode> {
    vec![Mode::Pvh, Mode::Pv]
}

fn default_vcpus() -> u32 {
    1
}

// Serde hands on references.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

fn default_order() -> u32 {
    100
}

fn default_timeout_secs() -> u32 {
    90
}
