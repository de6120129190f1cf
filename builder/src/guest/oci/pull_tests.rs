//! A registry on the loopback that does as it is told: tokens, log-ins, redirections, and everything that can be wrong.
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use gasthaus_debian::Sha256Digest;
use gasthaus_debian::fetch::{FetchOptions, Fetcher, NoProgress};
use guest_catalog::{OciReference, OciSource};
use serde_json::json;

use super::registry::{pin, pull};
use super::{OciError, RegistryError, find_pulled};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[derive(Clone, Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// What `Authorization` must be; anything else is answered with 401 and the registry's challenge.
    wants: Option<String>,
}

#[derive(Clone, Default)]
struct Registry {
    host: String,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    /// `path authorization` of every request.
    log: Arc<Mutex<Vec<String>>>,
    challenge: Arc<Mutex<String>>,
}

impl Registry {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Self {
            host: listener.local_addr().unwrap().to_string(),
            ..Self::default()
        };
        let served = registry.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                std::thread::spawn(move || served.serve(stream));
            }
        });
        registry
    }

    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        loop {
            let (mut first, mut authorization) = (String::new(), String::new());
            if reader.read_line(&mut first).ok()? == 0 {
                return None;
            }
            let mut line = String::new();
            while reader.read_line(&mut line).ok()? > 2 {
                if let Some(value) = line.strip_prefix("authorization: ") {
                    authorization = value.trim().to_owned();
                }
                line.clear();
            }
            let path = first.split(' ').nth(1)?.to_owned();
            self.log
                .lock()
                .unwrap()
                .push(format!("{path} {authorization}"));
            let found = self.replies.lock().unwrap().get(&path).cloned();
            let mut reply = found.unwrap_or(Reply {
                status: 404,
                ..Reply::default()
            });
            if reply
                .wants
                .as_ref()
                .is_some_and(|wanted| *wanted != authorization)
            {
                let challenge = self.challenge.lock().unwrap().clone();
                reply = Reply {
                    status: 401,
                    headers: vec![("WWW-Authenticate", challenge)],
                    ..Reply::default()
                };
            }
            let mut head = format!(
                "HTTP/1.1 {} X\r\nContent-Length: {}\r\n",
                reply.status,
                reply.body.len()
            );
            for (name, value) in &reply.headers {
                head += &format!("{name}: {value}\r\n");
            }
            stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
            stream.write_all(&reply.body).ok()?;
        }
    }

    fn put(&self, path: &str, kind: &str, body: &[u8]) {
        let reply = Reply {
            status: 200,
            headers: vec![("Content-Type", kind.to_owned())],
            body: body.to_vec(),
            wants: None,
        };
        self.replies.lock().unwrap().insert(path.to_owned(), reply);
    }

    fn change(&self, path: &str, how: impl Fn(&mut Reply)) {
        how(self.replies.lock().unwrap().get_mut(path).unwrap());
    }

    /// Puts a blob there; its descriptor.
    fn blob(&self, kind: &str, bytes: &[u8]) -> serde_json::Value {
        let digest = digest(bytes);
        self.put(
            &format!("/v2/a/web/blobs/{digest}"),
            "application/octet-stream",
            bytes,
        );
        json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
    }

    fn manifest(&self, kind: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        self.put(&format!("/v2/a/web/manifests/{digest}"), kind, bytes);
        digest
    }

    /// An image of one layer in a list for two machines, under the tag `1`: digests of the list, the manifest and the layer.
    fn image(&self) -> [String; 3] {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(2);
        builder
            .append_data(&mut header, "bin/serve", &b"hi"[..])
            .unwrap();
        let layer = builder.into_inner().unwrap();
        let config = json!({
            "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
            "config": { "Entrypoint": ["/bin/serve"] },
        });
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let layer = self.blob(LAYER, &layer);
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        let manifest = self.manifest(MANIFEST, manifest.to_string().as_bytes());
        let of = |digest: &str, machine: &str| json!({ "mediaType": MANIFEST, "digest": digest, "size": 1, "platform": { "os": "linux", "architecture": machine } });
        let list = json!({ "schemaVersion": 2, "manifests": [of(&digest(b"x"), "arm64"), of(&manifest, "amd64")] }).to_string();
        let list = list.replace(
            r#""size":1"#,
            &format!(r#""size":{}"#, self.bytes_of(&manifest)),
        );
        self.put("/v2/a/web/manifests/1", INDEX, list.as_bytes());
        let list = self.manifest(INDEX, list.as_bytes());
        [list, manifest, layer["digest"].as_str().unwrap().to_owned()]
    }

    fn bytes_of(&self, manifest: &str) -> usize {
        self.replies.lock().unwrap()[&format!("/v2/a/web/manifests/{manifest}")]
            .body
            .len()
    }

    fn reference(&self, end: &str) -> OciReference {
        OciReference::parse(&format!("docker://{}/a/web{end}", self.host)).unwrap()
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256Digest::of(bytes))
}

fn fetcher(cache: &Path, offline: bool) -> Fetcher {
    let options = FetchOptions {
        offline,
        attempts: 1,
        ..FetchOptions::default()
    };
    Fetcher::new(cache, options).unwrap()
}

/// What `end` of the image's name stands for, pulled and examined: the digest of its manifest.
fn pulled(registry: &Registry, end: &str, cache: &Path, offline: bool) -> Result<String, OciError> {
    let fetcher = fetcher(cache, offline);
    let locked = pin("guest-web", &registry.reference(end), &fetcher)?;
    let top = pull(
        &OciReference::parse(&locked.url).unwrap(),
        &fetcher,
        &NoProgress,
    )?;
    let source = OciSource {
        image: locked.url,
        digest: None,
        command: Vec::new(),
    };
    let found = find_pulled(&source, &top)?;
    super::needed_mib(&found)?;
    Ok(found.digest().to_owned())
}

fn refused(registry: &Registry, end: &str) -> String {
    let cache = tempfile::tempdir().unwrap();
    let error = pulled(registry, end, cache.path(), false).unwrap_err();
    let hint = error.hint().unwrap_or_default();
    format!("{error}\nhint: {hint}")
}

#[test]
fn an_image_is_pinned_and_pulled_once() {
    let (registry, cache) = (Registry::start(), tempfile::tempdir().unwrap());
    let [list, manifest, layer] = registry.image();
    // Registries send layers from elsewhere.
    let elsewhere = Registry::start();
    let blob = format!("/v2/a/web/blobs/{layer}");
    let body = registry.replies.lock().unwrap()[&blob].body.clone();
    elsewhere.put("/store/1", "application/octet-stream", &body);
    registry.change(&blob, |reply| {
        reply.status = 307;
        reply.body.clear();
        reply
            .headers
            .push(("Location", format!("http://{}/store/1", elsewhere.host)));
    });
    let locked = pin(
        "guest-web",
        &registry.reference(":1"),
        &fetcher(cache.path(), false),
    )
    .unwrap();
    assert_eq!(
        locked.url,
        format!("docker://{}/a/web@{list}", registry.host)
    );
    assert_eq!(format!("sha256:{}", locked.sha256), list);
    assert_eq!(
        pulled(&registry, ":1", cache.path(), false).unwrap(),
        manifest
    );
    assert_eq!(elsewhere.requests().len(), 1);
    // All of it is there now.
    registry.requests();
    let held = format!("@{list}");
    assert_eq!(
        pulled(&registry, &held, cache.path(), true).unwrap(),
        manifest
    );
    assert_eq!(
        pulled(&registry, &format!("@{manifest}"), cache.path(), false).unwrap(),
        manifest
    );
    assert_eq!(registry.requests(), Vec::<String>::new());
    // The tag can only be asked.
    let error = pulled(&registry, ":1", cache.path(), true).unwrap_err();
    assert!(
        error.to_string().contains("may not be asked offline"),
        "{error}"
    );
}

#[test]
fn a_token_is_asked_for_and_not_carried_elsewhere() {
    let (registry, elsewhere, cache) = (
        Registry::start(),
        Registry::start(),
        tempfile::tempdir().unwrap(),
    );
    let [list, manifest, layer] = registry.image();
    let realm = format!("http://{}/token", registry.host);
    *registry.challenge.lock().unwrap() =
        format!("Bearer realm=\"{realm}\",service=\"the, registry\",scope=\"x\"");
    for reply in registry.replies.lock().unwrap().values_mut() {
        reply.wants = Some("Bearer t0ken".to_owned());
    }
    let query = "/token?scope=repository%3Aa%2Fweb%3Apull&service=the%2C%20registry";
    registry.put(query, "application/json", br#"{"access_token":"t0ken"}"#);
    let blob = format!("/v2/a/web/blobs/{layer}");
    let body = registry.replies.lock().unwrap()[&blob].body.clone();
    elsewhere.put("/store/1", "application/octet-stream", &body);
    registry.change(&blob, |reply| {
        reply.status = 302;
        reply
            .headers
            .push(("Location", format!("http://{}/store/1", elsewhere.host)));
    });
    assert_eq!(
        pulled(&registry, ":1", cache.path(), false).unwrap(),
        manifest
    );
    assert_eq!(elsewhere.requests(), ["/store/1 "]);
    let asked = registry.requests();
    assert_eq!(
        asked[..3],
        [
            "/v2/a/web/manifests/1 ".to_owned(),
            format!("{query} "),
            "/v2/a/web/manifests/1 Bearer t0ken".to_owned()
        ]
    );
    // The manifests are there, a layer is not: somebody has to ask for the token still.
    std::fs::remove_file(cache.path().join("inputs").join(&layer[7..])).unwrap();
    assert_eq!(
        pulled(&registry, &format!("@{list}"), cache.path(), false).unwrap(),
        manifest
    );

    for (challenge, said) in [
        (
            "Basic realm=\"x\"",
            "it asks for a name and a password\nhint: check name and tag",
        ),
        ("Negotiate", "a kind of log-in that is not known"),
        ("", "a kind of log-in that is not known"),
        (
            "Bearer realm=\"http://example.org/token\"",
            "expected an `https://` address",
        ),
        (
            "Bearer realm=\"http://127.0.0.1@example.org/token\"",
            "expected an `https://` address",
        ),
        (
            "Bearer realm=\"file:///etc/passwd\"",
            "expected an `https://` address",
        ),
    ] {
        *registry.challenge.lock().unwrap() = challenge.to_owned();
        let error = refused(&registry, ":1");
        assert!(error.contains(said), "{challenge}: {error}");
    }
    *registry.challenge.lock().unwrap() = format!("Bearer realm=\"{realm}\"");
    let query = "/token?scope=repository%3Aa%2Fweb%3Apull";
    assert!(refused(&registry, ":1").contains("it gives no token (status 404)"));
    for (answer, said) in [
        (
            &b"<html>"[..],
            "an answer without a token; expected JSON with `token`",
        ),
        (br#"{"token":"a\r\nb"}"#, "an answer without a token"),
        (br#"{"token":"wrong"}"#, "does not let us read"),
        (&[b' '; 70_000], "is too long"),
    ] {
        registry.put(query, "application/json", answer);
        let error = refused(&registry, ":1");
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn what_a_registry_does_wrong_is_said() {
    let registry = Registry::start();
    let [list, manifest, layer] = registry.image();
    let error = refused(&registry, ":2");
    assert!(
        error.contains("/a/web:2` is not there")
            && error.contains("hint: check the image's name and tag"),
        "{error}"
    );
    let at = |digest: &str| format!("/v2/a/web/manifests/{digest}");
    let blob = format!("/v2/a/web/blobs/{layer}");
    let good = registry.replies.lock().unwrap().clone();
    let config = json!({ "mediaType": "x", "digest": digest(b"{}"), "size": 2 });
    let of_layers =
        |layers: serde_json::Value| json!({ "config": config, "layers": layers }).to_string();
    let of_layer = |kind: &str, size: u64| {
        of_layers(json!([{ "mediaType": kind, "digest": layer, "size": size }]))
    };
    let many =
        of_layers(vec![json!({ "mediaType": LAYER, "digest": layer, "size": 1 }); 501].into());
    for (body, said) in [
        (json!({ "manifests": [{ "digest": manifest, "size": 1, "platform": { "os": "linux", "architecture": "arm64" } }] }).to_string(),
            "a list without an image for linux/amd64; it has [linux/arm64]"),
        (json!({ "manifests": [], "config": config, "layers": [] }).to_string(), "neither a list of manifests nor a manifest"),
        ("{".to_owned(), "no manifest: EOF"),
        (of_layer("application/vnd.example", 1), "a layer of the media type `application/vnd.example`, which is not known"),
        (of_layer(LAYER, 3 << 30), "larger than 2048 MiB"),
        (of_layers(json!([{ "mediaType": LAYER, "digest": layer, "size": u64::MAX }, { "mediaType": LAYER, "digest": layer, "size": 9 }])), "larger than 2048 MiB"),
        (many, "one of more than 500 layers"),
        (of_layers(json!([{ "mediaType": LAYER, "digest": "sha256:../../x", "size": 1 }])), "`sha256:../../x` for a SHA-256 digest"),
        (of_layer(LAYER, 7), "is too long: at least 2048 bytes, expected at most 7"),
        ("x".repeat(5 << 20), "is too long: at least 4194305 bytes"),
    ] {
        registry.blob("x", b"{}");
        registry.put(&at("1"), INDEX, body.as_bytes());
        let error = refused(&registry, ":1");
        assert!(error.contains(said), "{said}: {error}");
    }
    for (path, how, said) in [
        (
            at("1"),
            &(|reply: &mut Reply| reply.headers[0].1 = "text/html".to_owned())
                as &dyn Fn(&mut Reply),
            "of the media type `text/html`; expected a manifest",
        ),
        (
            at("1"),
            &|reply| {
                reply.headers[0].1 =
                    "application/vnd.docker.distribution.manifest.v1+prettyjws".to_owned()
            },
            "v1+prettyjws`; expected",
        ),
        (
            at("1"),
            &|reply| reply.status = 403,
            "answered with status 403\nhint: check name and tag",
        ),
        (
            at("1"),
            &|reply| reply.status = 500,
            "answered with status 500",
        ),
        (
            at(&manifest),
            &|reply| reply.body[20] ^= 1,
            "expected the one in its address",
        ),
        (blob.clone(), &|reply| reply.body[600] ^= 1, "has SHA-256 `"),
        (
            blob.clone(),
            &|reply| reply.body.truncate(700),
            "is too short: 700 bytes",
        ),
        (
            blob.clone(),
            &|reply| reply.status = 404,
            "does not exist (status 404)",
        ),
    ] {
        *registry.replies.lock().unwrap() = good.clone();
        registry.change(&path, how);
        let error = refused(&registry, ":1");
        assert!(error.contains(said), "{said}: {error}");
    }
    *registry.replies.lock().unwrap() = good;
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(
        pulled(&registry, ":1", cache.path(), false).unwrap(),
        manifest
    );
    // One that is for another machine and says so only in its configuration.
    let arm = json!({ "architecture": "arm64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] } });
    let arm = registry.blob("x", arm.to_string().as_bytes());
    registry.put(
        &at("1"),
        MANIFEST,
        json!({ "config": arm, "layers": [] })
            .to_string()
            .as_bytes(),
    );
    registry.manifest(
        MANIFEST,
        json!({ "config": arm, "layers": [] })
            .to_string()
            .as_bytes(),
    );
    assert!(refused(&registry, ":1").contains("an image for linux/arm64; linux/amd64 is needed"));
    // Nobody listens, and nobody is called so.
    let nobody = Registry {
        host: "127.0.0.1:9".to_owned(),
        ..Registry::default()
    };
    let error = pin("x", &nobody.reference(":1"), &fetcher(cache.path(), false)).unwrap_err();
    assert!(
        matches!(error, RegistryError::Fetch(_))
            && error.hint().unwrap().contains("docker+http://"),
        "{error}"
    );
    assert!(!list.is_empty());
}
