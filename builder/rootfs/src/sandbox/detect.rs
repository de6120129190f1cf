//! Which mode works here: facts of the host, a verdict on them (pure), and a trial.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Pid;

use super::{Mode, RunOptions, Sandbox, SandboxError};

/// A Debian tree uses ids up to 65535 (`nogroup` is 65534).
const NEEDED_IDS: u32 = 65_535;

/// Bits of `CapEff` in `/proc/self/status` (linux/capability.h) that `RootPlain` needs.
const NEEDED_CAPABILITIES: [(u32, &str); 7] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (18, "CAP_SYS_CHROOT"),
    (27, "CAP_MKNOD"),
];
const CAP_SYS_ADMIN: u32 = 21;

/// How a user namespace names the ids of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdMap {
    /// As they are: root gains a mount namespace of its own where only CAP_SYS_ADMIN is missing.
    Identity,
    /// 0 is the user, the others come from a subordinate range.
    Sub(SubIds),
}

impl IdMap {
    /// Writes the maps of a process that has just entered its namespace.
    pub(super) fn map_into(&self, process: Pid) -> Result<(), String> {
        match self {
            Self::Identity => {
                let map = format!("0 0 {}", NEEDED_IDS + 1);
                for file in ["uid_map", "gid_map"] {
                    let path = format!("/proc/{}/{file}", process.as_raw_nonzero());
                    std::fs::write(&path, &map)
                        .map_err(|error| format!("write `{path}`: {error}"))?;
                }
                Ok(())
            }
            Self::Sub(ids) => ids.map_into(process),
        }
    }
}

/// A user's range of subordinate ids; equally long for users and groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubIds {
    uid: u32,
    gid: u32,
    first_uid: u32,
    first_gid: u32,
    newuidmap: PathBuf,
    newgidmap: PathBuf,
}

impl SubIds {
    /// Maps 0 to the user and 1..=65535 to the subordinate range.
    fn map_into(&self, process: Pid) -> Result<(), String> {
        let pid = process.as_raw_nonzero().to_string();
        for (program, own, first) in [
            (&self.newuidmap, self.uid, self.first_uid),
            (&self.newgidmap, self.gid, self.first_gid),
        ] {
            let (own, first, count) = (own.to_string(), first.to_string(), NEEDED_IDS.to_string());
            let args = [&pid, "0", &own, "1", "1", &first, &count];
            let output = Command::new(program).args(args).output();
            let output =
                output.map_err(|error| format!("start `{}`: {error}", program.display()))?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(format!("`{}` refused: {}", program.display(), said.trim()));
            }
        }
        Ok(())
    }
}

/// All that the verdict depends on.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Login name, from /etc/passwd.
    pub user: Option<String>,
    /// `CapEff`.
    pub capabilities: u64,
    /// `kernel.unprivileged_userns_clone`, where that setting exists.
    pub userns_clone: Option<u64>,
    /// `user.max_user_namespaces`.
    pub max_user_namespaces: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns`, where that setting exists.
    pub apparmor_restricts: Option<u64>,
    /// Where newuidmap is.
    pub newuidmap: Option<PathBuf>,
    /// Where newgidmap is.
    pub newgidmap: Option<PathBuf>,
    /// /etc/subuid.
    pub subuid: String,
    /// /etc/subgid.
    pub subgid: String,
}

impl HostFacts {
    /// Reads them from the running system; what cannot be read counts as absent.
    pub fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let number = |path: &str| text(path).trim().parse().ok();
        let uid = rustix::process::geteuid().as_raw();
        let capabilities = text("/proc/self/status");
        let capabilities = capabilities
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"));
        Self {
            uid,
            gid: rustix::process::getegid().as_raw(),
            user: user_name(&text("/etc/passwd"), uid),
            capabilities: capabilities
                .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
                .unwrap_or(0),
            userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            newuidmap: find_program("newuidmap"),
            newgidmap: find_program("newgidmap"),
            subuid: text("/etc/subuid"),
            subgid: text("/etc/subgid"),
        }
    }

    fn has(&self, capability: u32) -> bool {
        self.capabilities & (1 << capability) != 0
    }

    /// The modes worth trying, best first, or all that is missing.
    ///
    /// # Errors
    /// [`SandboxError::RootLacks`], [`SandboxError::NotPossible`].
    pub fn verdict(&self) -> Result<Vec<(Mode, Option<IdMap>)>, SandboxError> {
        if self.uid != 0 {
            return Ok(vec![(Mode::UserNs, Some(IdMap::Sub(self.sub_ids()?)))]);
        }
        let missing: Vec<_> = NEEDED_CAPABILITIES
            .iter()
            .filter(|(bit, _)| !self.has(*bit))
            .map(|(_, name)| *name)
            .collect();
        let mut modes = Vec::new();
        if self.has(CAP_SYS_ADMIN) {
            modes.push((Mode::Root, None));
        }
        if missing.is_empty() {
            if !self.has(CAP_SYS_ADMIN) {
                modes.push((Mode::Root, Some(IdMap::Identity)));
            }
            modes.push((Mode::RootPlain, None));
        }
        if modes.is_empty() {
            let missing = missing.join(", ");
            return Err(SandboxError::RootLacks { missing });
        }
        Ok(modes)
    }

    fn sub_ids(&self) -> Result<SubIds, SandboxError> {
        let user = self.user.clone().unwrap_or_else(|| self.uid.to_string());
        let range = |text: &str| sub_range(text, &user, self.uid);
        let mut problems = Vec::new();
        let mut remedies = BTreeSet::new();
        let mut missing = |problem: String, remedy: String| {
            problems.push(problem);
            remedies.insert(remedy);
        };
        if self.userns_clone == Some(0) {
            missing(
                "`kernel.unprivileged_userns_clone` is 0, expected 1".to_owned(),
                "as root: `sysctl -w kernel.unprivileged_userns_clone=1`".to_owned(),
            );
        }
        if self.max_user_namespaces == Some(0) {
            missing(
                "`user.max_user_namespaces` is 0".to_owned(),
                "as root: `sysctl -w user.max_user_namespaces=10000`".to_owned(),
            );
        }
        if self.newuidmap.is_none() || self.newgidmap.is_none() {
            missing(
                "the programs `newuidmap` and `newgidmap` are not on PATH".to_owned(),
                "as root: `apt install uidmap`".to_owned(),
            );
        }
        let ranges = (range(&self.subuid), range(&self.subgid));
        for (file, found) in [("/etc/subuid", ranges.0), ("/etc/subgid", ranges.1)] {
            if found.is_none() {
                missing(
                    format!("`{file}` gives `{user}` no range of {NEEDED_IDS} ids or more"),
                    format!(
                        "as root: `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` (a range \
                         nobody else has)"
                    ),
                );
            }
        }
        match (ranges, &self.newuidmap, &self.newgidmap) {
            ((Some(first_uid), Some(first_gid)), Some(newuidmap), Some(newgidmap))
                if problems.is_empty() =>
            {
                Ok(SubIds {
                    uid: self.uid,
                    gid: self.gid,
                    first_uid,
                    first_gid,
                    newuidmap: newuidmap.clone(),
                    newgidmap: newgidmap.clone(),
                })
            }
            _ => Err(SandboxError::NotPossible {
                problem: problems.join("; "),
                remedy: remedies.into_iter().collect::<Vec<_>>().join("; "),
            }),
        }
    }
}

/// Tries the modes of the verdict with a real run in an empty tree.
pub(super) fn detect(epoch_secs: u64) -> Result<Sandbox, SandboxError> {
    let facts = HostFacts::read();
    let mut first_error = None;
    for (mode, id_map) in facts.verdict()? {
        let sandbox = Sandbox {
            mode,
            id_map,
            epoch_secs,
        };
        match trial(&sandbox) {
            Ok(()) => return Ok(sandbox),
            Err(text) => first_error = first_error.or(Some(text)),
        }
    }
    let remedy = match facts.apparmor_restricts {
        Some(1) => {
            "AppArmor restricts user namespaces; as root: `sysctl -w \
                    kernel.apparmor_restrict_unprivileged_userns=0`, or give this program a profile with `userns,`"
        }
        _ => {
            "allow user namespaces and mounts inside them for this user or container, or run as root"
        }
    };
    Err(SandboxError::NotPossible {
        problem: first_error.unwrap_or_default(),
        remedy: remedy.to_owned(),
    })
}

/// Enters an empty folder. There is nothing to run in it, and exactly that must be the complaint.
fn trial(sandbox: &Sandbox) -> Result<(), String> {
    let tree = TrialDir::make().map_err(|error| format!("make a folder for a trial: {error}"))?;
    match sandbox.run(&tree.0, &["/trial"], &RunOptions::default()) {
        Err(SandboxError::Setup { step, .. }) if step.starts_with("start it:") => Ok(()),
        Err(SandboxError::Setup { step, .. }) => Err(step),
        Err(error) => Err(match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }),
        Ok(_) => Err("an empty folder ran a program".to_owned()),
    }
}

struct TrialDir(PathBuf);

impl TrialDir {
    fn make() -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let base = std::env::temp_dir();
        let mut number = 0_u32;
        loop {
            let path = base.join(format!("gasthaus-trial-{}-{number}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for TrialDir {
    fn drop(&mut self) {
        // Only empty folders of our own are in it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}

/// The first id of a range that is long enough (subuid(5): `name-or-uid:first:count`).
fn sub_range(text: &str, user: &str, uid: u32) -> Option<u32> {
    let uid = uid.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let first: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        let ours = owner == user || owner == uid;
        (ours && count >= NEEDED_IDS && first.checked_add(NEEDED_IDS).is_some()).then_some(first)
    })
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/bin")]);
    folders
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|program| is_file(program))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> HostFacts {
        HostFacts {
            uid: 1000,
            gid: 1000,
            user: Some("ann".to_owned()),
            max_user_namespaces: Some(9000),
            newuidmap: Some("/usr/bin/newuidmap".into()),
            newgidmap: Some("/usr/bin/newgidmap".into()),
            subuid: "bob:1:65536\nann:100000:65536\n".to_owned(),
            subgid: "1000:200000:65535\n".to_owned(),
            ..HostFacts::default()
        }
    }

    #[test]
    fn a_user_with_everything() {
        let modes = user().verdict().unwrap();
        let [(Mode::UserNs, Some(IdMap::Sub(ids)))] = &modes[..] else {
            panic!("{modes:?}");
        };
        assert_eq!((ids.first_uid, ids.first_gid), (100_000, 200_000));
    }

    #[test]
    fn says_all_that_is_missing() {
        let mut facts = user();
        facts.userns_clone = Some(0);
        facts.newgidmap = None;
        facts.subuid = "ann:100000:1000\n".to_owned();
        let error = facts.verdict().unwrap_err();
        let (text, hint) = (error.to_string(), error.hint().unwrap());
        for part in [
            "kernel.unprivileged_userns_clone",
            "newgidmap",
            "/etc/subuid",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("/etc/subgid"), "{text}");
        for part in ["sysctl -w", "apt install uidmap", "usermod --add-subuids"] {
            assert!(hint.contains(part), "{hint}");
        }
        facts.max_user_namespaces = Some(0);
        assert!(
            facts
                .verdict()
                .unwrap_err()
                .to_string()
                .contains("user.max_user_namespaces")
        );
    }

    #[test]
    fn root_by_capabilities() {
        let root = |capabilities| HostFacts {
            capabilities,
            ..HostFacts::default()
        };
        let plain = (Mode::RootPlain, None);
        let all = [(Mode::Root, None), plain.clone()];
        assert_eq!(root(u64::MAX).verdict().unwrap(), all);
        // The default set of Docker.
        let docker = [(Mode::Root, Some(IdMap::Identity)), plain];
        assert_eq!(root(0xa804_25fb).verdict().unwrap(), docker);
        let error = root(0xa804_25fb & !(1 << 27) & !1).verdict().unwrap_err();
        assert!(
            error.to_string().contains("CAP_CHOWN, CAP_MKNOD"),
            "{error}"
        );
    }

    #[test]
    fn ranges_that_do_not_fit() {
        assert_eq!(sub_range("ann:4294967000:65536", "ann", 7), None);
        assert_eq!(sub_range("ann:x:65536\n#\nann:5:70000", "ann", 7), Some(5));
        assert_eq!(sub_range("7:9:65536", "ann", 7), Some(9));
    }
}
