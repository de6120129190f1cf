//! A container image, made of Debian's busybox and pushed to a real registry over TLS, for the tests that make a guest of it.
//! For tests alone: what goes wrong is a panic.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::artifacts::{Artifacts, env_path, sha256};
use crate::{HarnessError, require_tool, run};

/// crypt(3) of `secret`, by bcrypt, which is what the registry reads.
const LOG_IN: &str = "anna:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
/// `anna:secret` in base64, as a log-in file has it.
pub const BASIC: &str = "YW5uYTpzZWNyZXQ=";
/// This host by an address that is not taken for this host: whoever asks there is told by TLS alone.
const ADDRESS: &str = "127.0.0.2";
const START_LIMIT: Duration = Duration::from_secs(60);
/// What the container runs. Its page is that of its own server, not ours.
const SCRIPT: &str =
    "echo \"the container speaks as $(id -u), $GREETING, in $(pwd)\"; exec httpd -f -p 80 -h /srv";

/// A registry that answers by TLS, with a certificate of an authority made for it. It ends when dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    /// Address and port.
    pub host: String,
    /// The certificate of its authority, as PEM.
    pub authority: PathBuf,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An authority, and the registry's key and certificate, in `dir`.
fn certify(dir: &Path) {
    let openssl = require_tool("openssl", "openssl", "make a certificate").unwrap();
    let make = |name: &str, more: &[&str]| {
        let mut command = Command::new(&openssl);
        let key = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
        command.current_dir(dir).args(key.split(' ')).args(more);
        command.args(["-subj", &format!("/CN={name} of the test")]);
        command.args([
            "-keyout",
            &format!("{name}.key"),
            "-out",
            &format!("{name}.pem"),
        ]);
        run(&mut command).unwrap();
    };
    make("authority", &["-addext", "keyUsage=critical,keyCertSign"]);
    let names = format!("subjectAltName=IP:{ADDRESS}");
    let by = ["-CA", "authority.pem", "-CAkey", "authority.key"];
    let own = [
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-addext",
        &names,
    ];
    make("registry", &[by, own].concat());
}

impl Registry {
    /// Starts Debian's `docker-registry` with its files in `dir`, for `anna` alone.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(dir: &Path) -> Self {
        let program = require_tool("docker-registry", "docker-registry", "serve an image").unwrap();
        certify(dir);
        let listener = TcpListener::bind((ADDRESS, 0)).unwrap();
        let host = listener.local_addr().unwrap().to_string();
        drop(listener);
        fs::write(dir.join("htpasswd"), LOG_IN).unwrap();
        let config = json!({
            "version": "0.1",
            "storage": { "filesystem": { "rootdirectory": dir.join("store") } },
            "http": {
                "addr": host,
                "tls": { "certificate": dir.join("registry.pem"), "key": dir.join("registry.key") },
            },
            "auth": { "htpasswd": { "realm": "house", "path": dir.join("htpasswd") } },
        });
        // JSON is YAML.
        let file = dir.join("registry.yml");
        fs::write(&file, config.to_string()).unwrap();
        let process = Command::new(program)
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self {
            process,
            host,
            authority: dir.join("authority.pem"),
        };
        let begun = Instant::now();
        while curl(&registry, &["/v2/"]).is_err() {
            assert!(
                begun.elapsed() < START_LIMIT,
                "the registry does not answer"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        registry
    }

    /// Lets `gasthaus` log in, by a log-in file in `home`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn log_in(&self, home: &Path, basic: &str) {
        let text = json!({ "auths": { self.host.as_str(): { "auth": basic } } });
        fs::write(home.join("config.json"), text.to_string()).unwrap();
    }

    /// Runs `gasthaus` with the log-ins of `home`, in the folder where the demo was built: its lock file says which kernel and tools are ours.
    /// The authority is believed.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn gasthaus(&self, home: &Path, arguments: &[&str]) -> Output {
        let mut command = gasthaus(home, arguments);
        command.env("SSL_CERT_FILE", &self.authority);
        command.output().unwrap()
    }
}

/// `gasthaus` as [`Registry::gasthaus`] runs it, believing no authority but the usual ones.
///
/// # Panics
/// When the environment does not say where it is.
#[must_use]
pub fn gasthaus(home: &Path, arguments: &[&str]) -> Command {
    let artifacts = Artifacts::from_env().unwrap_or_else(|error| panic!("{error}"));
    let mut command = Command::new("timeout");
    command
        .arg("900")
        .arg(env_path("GASTHAUS").unwrap_or_else(|error| panic!("{error}")))
        .args(arguments)
        .current_dir(artifacts.lock_folder())
        .env_remove("SSL_CERT_FILE")
        .env("DOCKER_CONFIG", home);
    command
}

/// Both streams of a program.
#[must_use]
pub fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The last argument is a path on the registry or a whole address; what came, head and body.
fn curl(registry: &Registry, arguments: &[&str]) -> Result<String, HarnessError> {
    let (last, more) = arguments.split_last().unwrap();
    let url = match last.starts_with('/') {
        true => format!("https://{}{last}", registry.host),
        false => (*last).to_owned(),
    };
    let mut command = Command::new(require_tool("curl", "curl", "push an image")?);
    command
        .args(["-sS", "-f", "-i", "-u", "anna:secret", "--cacert"])
        .arg(&registry.authority)
        .args(more)
        .arg(url);
    run(&mut command)
}

/// Pushes a blob (Distribution Specification, "Pushing a blob monolithically"): a place is asked for, then filled.
fn push_blob(registry: &Registry, file: &Path) -> (String, u64) {
    let digest = format!("sha256:{}", sha256(file).unwrap());
    let said = curl(registry, &["-X", "POST", "/v2/house/web/blobs/uploads/"]).unwrap();
    let place = said.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("location")
            .then(|| value.trim().to_owned())
    });
    let place = place.unwrap_or_else(|| panic!("no place in {said}"));
    let joint = if place.contains('?') { '&' } else { '?' };
    let data = format!("@{}", file.display());
    let kind = "Content-Type: application/octet-stream";
    let url = format!("{place}{joint}digest={digest}");
    curl(
        registry,
        &["-X", "PUT", "-H", kind, "--data-binary", &data, &url],
    )
    .unwrap();
    (digest, fs::metadata(file).unwrap().len())
}

/// Pushes a manifest or list under `name`, in which `DIGEST` is its own; digest and bytes.
///
/// # Panics
/// When the registry does not take it.
pub fn push_manifest(
    registry: &Registry,
    dir: &Path,
    name: &str,
    kind: &str,
    text: &serde_json::Value,
) -> (String, u64) {
    let file = dir.join("manifest.json");
    fs::write(&file, text.to_string()).unwrap();
    let data = format!("@{}", file.display());
    let kind = format!("Content-Type: {kind}");
    let digest = format!("sha256:{}", sha256(&file).unwrap());
    let path = format!(
        "/v2/house/web/manifests/{}",
        name.replace("DIGEST", &digest)
    );
    curl(
        registry,
        &["-X", "PUT", "-H", &kind, "--data-binary", &data, &path],
    )
    .unwrap();
    (digest, fs::metadata(&file).unwrap().len())
}

/// Pushes an image of two layers for our machines, in a list with one for others, as `house/web:1`; the list.
///
/// # Panics
/// When that fails.
#[must_use]
pub fn push(registry: &Registry, dir: &Path) -> serde_json::Value {
    let root = dir.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("srv")).unwrap();
    let busybox = root.join("bin/busybox");
    // The build's own, from its locked package: it is asked to copy itself.
    let copy = busybox.to_str().unwrap();
    let output = registry.gasthaus(dir, &["tools", "busybox", "cp", "/proc/self/exe", copy]);
    assert!(output.status.success(), "{}", said(&output));
    for name in ["sh", "id", "httpd", "echo"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(
        root.join("srv/index.html"),
        "<p>a page of the container web</p>\n",
    )
    .unwrap();
    let tar = |name: &str, what: &str| {
        let file = dir.join(name);
        let mut command = Command::new("tar");
        command
            .arg("-C")
            .arg(&root)
            .args(["--owner=0", "--group=0", "-cf"])
            .arg(&file)
            .arg(what);
        run(&mut command).unwrap();
        file
    };
    let layers = [tar("1.tar", "bin"), tar("2.tar", "srv")];
    let diffs: Vec<String> = layers
        .iter()
        .map(|file| format!("sha256:{}", sha256(file).unwrap()))
        .collect();
    let packed = layers.iter().map(|file| {
        run(Command::new("gzip").arg("-nk").arg(file)).unwrap();
        let (digest, bytes) = push_blob(registry, &file.with_extension("tar.gz"));
        json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": bytes })
    });
    let packed: Vec<_> = packed.collect();
    let config = |machine: &str| {
        let text = json!({
            "architecture": machine, "os": "linux", "rootfs": { "type": "layers", "diff_ids": diffs },
            "config": { "Entrypoint": ["/bin/sh", "-c"], "Cmd": [SCRIPT], "Env": ["GREETING=hello"], "WorkingDir": "/srv" },
        });
        let file = dir.join("config.json");
        fs::write(&file, text.to_string()).unwrap();
        let (digest, bytes) = push_blob(registry, &file);
        json!({ "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": bytes })
    };
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let below: Vec<_> = ["arm64", "amd64"]
        .iter()
        .map(|machine| {
            let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config(machine), "layers": packed });
            let (digest, bytes) = push_manifest(registry, dir, "DIGEST", kind, &manifest);
            let platform = json!({ "os": "linux", "architecture": machine });
            json!({ "mediaType": kind, "digest": digest, "size": bytes, "platform": platform })
        })
        .collect();
    let kind = "application/vnd.oci.image.index.v1+json";
    let list = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": below });
    push_manifest(registry, dir, "1", kind, &list);
    list
}
