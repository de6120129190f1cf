//! A container image, made here of Debian's busybox, pushed to a real registry, pulled from it and booted with our kernel.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use boot_tests::artifacts::{env_path, sha256};
use boot_tests::{require_tool, run, steps::tell};
use serde_json::json;

use super::said;

/// crypt(3) of `secret`, by bcrypt, which is what the registry reads.
const LOG_IN: &str = "anna:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
/// `anna:secret` in base64.
const BASIC: &str = "YW5uYTpzZWNyZXQ=";
/// What the container runs. Its page is that of its own server, not ours.
const SCRIPT: &str =
    "echo \"the container speaks as $(id -u), $GREETING, in $(pwd)\"; exec httpd -f -p 80 -h /srv";

/// The registry, which ends with the test.
struct Registry {
    process: Child,
    host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn registry(dir: &Path) -> Registry {
    let program = require_tool("docker-registry", "docker-registry", "serve an image").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    fs::write(dir.join("htpasswd"), LOG_IN).unwrap();
    let config = dir.join("registry.yml");
    let store = dir.join("store");
    let text = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\nauth:\n  htpasswd:\n    \
         realm: house\n    path: {}\n",
        store.display(),
        dir.join("htpasswd").display()
    );
    fs::write(&config, text).unwrap();
    let process = Command::new(program)
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let registry = Registry { process, host };
    let begun = Instant::now();
    while curl(&registry, &["/v2/"]).is_err() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the registry does not answer"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    registry
}

/// The last argument is a path on the registry or a whole address; what came, head and body.
fn curl(registry: &Registry, arguments: &[&str]) -> Result<String, boot_tests::HarnessError> {
    let (last, more) = arguments.split_last().unwrap();
    let url = match last.starts_with('/') {
        true => format!("http://{}{last}", registry.host),
        false => (*last).to_owned(),
    };
    let mut command = Command::new(require_tool("curl", "curl", "push an image")?);
    command
        .args(["-sS", "-f", "-i", "-u", "anna:secret"])
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

fn push_manifest(
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
fn push(registry: &Registry, dir: &Path) -> serde_json::Value {
    let root = dir.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("srv")).unwrap();
    let busybox = root.join("bin/busybox");
    // The build's own, from its locked package: it is asked to copy itself.
    let output = gasthaus(
        dir,
        &[
            "tools",
            "busybox",
            "cp",
            "/proc/self/exe",
            busybox.to_str().unwrap(),
        ],
    );
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

/// What a tag stands for is held by the lock file, wherever the tag goes then.
fn the_lock_holds_it(registry: &Registry, dir: &Path, definition: &str, list: &serde_json::Value) {
    let tagged: Vec<&str> = definition
        .lines()
        .filter(|line| !line.starts_with("digest = "))
        .collect();
    fs::create_dir(dir.join("web")).unwrap();
    fs::write(dir.join("web/guest.toml"), tagged.join("\n")).unwrap();
    let recipe = dir.join("house.toml");
    fs::write(
        &recipe,
        "name = \"house\"\ntitle = \"House\"\nguests = [\"./web/guest.toml\"]\n",
    )
    .unwrap();
    let out = dir.join("out");
    let fetch = || {
        let (recipe, out) = (recipe.to_str().unwrap(), out.to_str().unwrap());
        let output = gasthaus(dir, &["build", recipe, "--until", "fetch", "--out", out]);
        assert!(output.status.success(), "{}", said(&output));
        fs::read_to_string(dir.join("gasthaus.lock")).unwrap()
    };
    let locked = fetch();
    let held = format!("url = \"docker://{}/house/web@sha256:", registry.host);
    assert!(locked.contains(&held), "{locked}");
    let mut moved = list.clone();
    moved["annotations"] = json!({ "moved": "yes" });
    let kind = "application/vnd.oci.image.index.v1+json";
    let (digest, _) = push_manifest(registry, dir, "1", kind, &moved);
    assert!(fetch() == locked && !locked.contains(&digest));
}

/// In the folder where the demo was built, whose lock file says which kernel and tools are ours.
fn gasthaus(home: &Path, arguments: &[&str]) -> Output {
    let iso = env_path("GASTHAUS_ISO").unwrap_or_else(|error| panic!("{error}"));
    let built_in = iso.parent().and_then(Path::parent).unwrap();
    Command::new("timeout")
        .arg("900")
        .arg(env_path("GASTHAUS").unwrap_or_else(|error| panic!("{error}")))
        .args(arguments)
        .current_dir(built_in)
        .env("DOCKER_CONFIG", home)
        .output()
        .unwrap()
}

#[test]
#[ignore = "boots a guest: run ci/test guests"]
fn an_image_in_a_registry_is_a_guest() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let registry = registry(dir);
    let list = push(&registry, dir);
    let image = format!("docker://{}/house/web:1", registry.host);
    let folder = dir.join("guest");
    let folder_text = folder.to_str().unwrap();
    let add = |image: &str| {
        gasthaus(
            dir,
            &[
                "guest",
                "add",
                image,
                "--name",
                "web",
                "--port",
                "80",
                "--to",
                folder_text,
            ],
        )
    };
    // Nobody has logged in.
    let refused = said(&add(&image));
    assert!(
        refused.contains("does not let us read")
            && refused.contains("it asks for a name and a password"),
        "{refused}"
    );
    let config = |basic: &str| {
        let text = json!({ "auths": { registry.host.as_str(): { "auth": basic } } });
        fs::write(dir.join("config.json"), text.to_string()).unwrap();
    };
    config("YW5uYTp3cm9uZw==");
    let refused = said(&add(&image));
    assert!(refused.contains("answered with status 401"), "{refused}");
    config(BASIC);
    let refused = said(&add(&format!("docker://{}/house/web:none", registry.host)));
    assert!(
        refused.contains("house/web:none` is not there"),
        "{refused}"
    );

    let output = add(&image);
    assert!(output.status.success(), "{}", said(&output));
    let definition = folder.join("guest.toml");
    let text = fs::read_to_string(&definition).unwrap();
    assert!(
        text.contains(&image) && text.contains("digest = \"sha256:"),
        "{text}"
    );
    let health = "http = { port = 80, expect = \"<\" }";
    let both = "console = \"the container speaks as 0, hello, in /srv\"\nhttp = { port = 80, expect = \"a page of the container web\" }";
    assert!(text.contains(health), "{text}");
    fs::write(&definition, text.replace(health, both)).unwrap();
    the_lock_holds_it(&registry, dir, &text, &list);
    // What was pulled is enough: the registry is gone.
    drop(registry);
    let definition = definition.to_str().unwrap();
    let output = gasthaus(
        dir,
        &[
            "guest",
            "try",
            definition,
            "--check",
            "--accel",
            "tcg",
            "--offline",
            "--wait",
            "600",
        ],
    );
    tell(said(&output).trim_end());
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("guest `web` is up after "));
}
