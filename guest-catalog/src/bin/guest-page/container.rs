//! The program of a container image: what `gasthaus` found in the image, run as process 1 would have it.
//!
//! `/.gasthaus/program.json` says what; where it is not, this guest is `tiny`. The program gets the console, the file systems that
//! programs expect, a host name and a name server; when it ends, so does the guest.
use rustix::mount::{MountFlags, mount};
use serde::Deserialize;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

const PROGRAM: &str = "/.gasthaus/program.json";
/// Where programs are looked for, if the image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is run.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Program {
    /// The program and its words.
    args: Vec<String>,
    /// `NAME=value`.
    env: Vec<String>,
    folder: String,
    uid: u32,
    gid: u32,
}

impl Program {
    /// The program of this guest, if it is made of a container image.
    pub fn read() -> Option<Self> {
        let text = fs::read(PROGRAM).ok()?;
        match serde_json::from_slice(&text) {
            Ok(program) => Some(program),
            Err(error) => {
                eprintln!("`{PROGRAM}` is damaged: {error}");
                None
            }
        }
    }

    /// Starts it.
    pub fn start(&self, name: &str) -> io::Result<Child> {
        let Some((program, words)) = self.args.split_first() else {
            return Err(io::Error::other("there is no program"));
        };
        let mut command = Command::new(program);
        command.args(words).env_clear().envs(self.variables(name));
        fs::create_dir_all(&self.folder)?;
        command.current_dir(&self.folder);
        if (self.uid, self.gid) != (0, 0) {
            command.uid(self.uid).gid(self.gid);
        }
        command.process_group(0).spawn()
    }

    fn variables(&self, name: &str) -> Vec<(String, String)> {
        let host = format!("HOSTNAME={name}");
        let ours = [PATH, &host, "HOME=/", "TERM=linux"];
        let all = ours.into_iter().chain(self.env.iter().map(String::as_str));
        // The later of two wins.
        let pairs = all.filter_map(|line| line.split_once('='));
        let pairs = pairs.filter(|(name, _)| !name.is_empty());
        pairs
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }
}

/// What programs expect besides `/proc`, `/sys` and `/dev`, and files that a container's engine writes.
pub fn furnish(name: &str, name_server: Option<Ipv4Addr>) {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (kind, target, data) in [
        ("devpts", "/dev/pts", c"mode=0620,gid=5,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", c"mode=1777"),
    ] {
        let made =
            fs::create_dir_all(target).and_then(|()| Ok(mount(kind, target, kind, flags, data)?));
        if let Err(error) = made {
            eprintln!("{name}: cannot mount {kind} on {target}: {error}");
        }
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        if let Err(error) = std::os::unix::fs::symlink(target, link)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            eprintln!("{name}: cannot make the link {link}: {error}");
        }
    }
    let mut files = vec![
        ("/etc/hostname", format!("{name}\n")),
        (
            "/etc/hosts",
            format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n"),
        ),
    ];
    if let Some(server) = name_server {
        files.push(("/etc/resolv.conf", format!("nameserver {server}\n")));
    }
    for (path, text) in files {
        // A link would lead elsewhere in the image.
        let _ = fs::remove_file(path);
        let written = fs::create_dir_all("/etc").and_then(|()| fs::write(path, text));
        if let Err(error) = written {
            eprintln!("{name}: cannot write {path}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_variables_win() {
        let text = br#"{"args":["/bin/true"],"env":["PATH=/x","A=b=c","=","none"],"folder":"/","uid":7,"gid":8}"#;
        let program: Program = serde_json::from_slice(text).unwrap();
        let mut variables = std::collections::BTreeMap::new();
        variables.extend(program.variables("web"));
        let of = |name: &str| variables.get(name).map(String::as_str);
        assert_eq!((of("PATH"), of("A")), (Some("/x"), Some("b=c")));
        assert_eq!((of("HOSTNAME"), of("none")), (Some("web"), None));
    }

    #[test]
    fn it_runs_and_its_end_is_seen() {
        let program = |args: &[&str]| Program {
            args: args.iter().map(|word| (*word).to_owned()).collect(),
            env: Vec::new(),
            folder: "/".to_owned(),
            uid: 0,
            gid: 0,
        };
        let mut child = program(&["sh", "-c", "exit 3"]).start("web").unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3));
        assert!(program(&[]).start("web").is_err());
        assert!(program(&["/no/such/program"]).start("web").is_err());
    }
}
