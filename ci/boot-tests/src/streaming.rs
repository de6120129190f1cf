//! Stores for machines that stream: a web server on one, a copy with a second version in it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};

use crate::{
    HarnessError,
    artifacts::{Artifacts, env_path},
    host::{require_tool, run},
    vm::end_group,
};

/// How long a web server or a mount may take to be there.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The net ISO of `GASTHAUS_NET_ISO`, with what the store's manifest (`GASTHAUS_STORE_MANIFEST`) says about the version
/// that streams.
///
/// # Errors
/// When a variable is missing, or the manifest holds no build id.
pub fn artifacts() -> Result<Artifacts, HarnessError> {
    Artifacts::load(
        &env_path("GASTHAUS_NET_ISO")?,
        &env_path("GASTHAUS_STORE_MANIFEST")?,
    )
}

/// The store that was built beside the net ISO.
#[must_use]
pub fn store_of(artifacts: &Artifacts) -> PathBuf {
    artifacts.iso.with_file_name("store")
}

/// A web server on a folder of the loopback; ended when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    log: tempfile::NamedTempFile,
    /// What nginx wants besides.
    _dir: Option<tempfile::TempDir>,
}

impl Server {
    /// Serves `folder` on `port`, 0 for any, by Python's server: HTTP/1.0, a connection for each object, no ranges.
    ///
    /// # Errors
    /// When python3 is missing or does not answer.
    pub fn python(folder: &Path, port: u16) -> Result<Self, HarnessError> {
        let python = require_tool("python3", "python3", "serve a store")?;
        let address = free_address(port)?;
        let log = new_log()?;
        let said = log.reopen().map_err(HarnessError::io("open", log.path()))?;
        let child = Command::new(python)
            .args(["-m", "http.server", &address.port().to_string()])
            .args(["--bind", "127.0.0.1", "--directory"])
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .map_err(HarnessError::io("start", "python3"))?;
        Self::there(child, address, log, None)
    }

    /// Serves `folder` on `port`, 0 for any, by nginx as `builder/docs/serving.md` sets it up.
    ///
    /// # Errors
    /// When nginx is missing or does not answer.
    pub fn nginx(folder: &Path, port: u16) -> Result<Self, HarnessError> {
        let nginx = require_tool("nginx", "nginx-light", "serve a store")?;
        let folder =
            fs::canonicalize(folder).map_err(HarnessError::io("look for the store", folder))?;
        let address = free_address(port)?;
        let log = new_log()?;
        let dir = tempfile::tempdir().map_err(HarnessError::io(
            "create a folder in",
            "the temporary folder",
        ))?;
        let server = documented_nginx()
            .replace("127.0.0.1:8080", &address.to_string())
            .replace("/srv/gasthaus", &folder.display().to_string());
        let at = dir.path().display();
        // Lines as Python's server writes them.
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log stderr;\n\
             events {{ }}\n\
             http {{ log_format asked '\"$request\" $status'; access_log {} asked;\n\
             client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
             uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n{server} }}\n",
            log.path().display()
        );
        let file = dir.path().join("nginx.conf");
        fs::write(&file, config).map_err(HarnessError::io("write", &file))?;
        let child = Command::new(nginx)
            .arg("-p")
            .arg(dir.path())
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .map_err(HarnessError::io("start", "nginx"))?;
        Self::there(child, address, log, Some(dir))
    }

    fn there(
        child: Child,
        address: SocketAddr,
        log: tempfile::NamedTempFile,
        dir: Option<tempfile::TempDir>,
    ) -> Result<Self, HarnessError> {
        let server = Self {
            child,
            address,
            log,
            _dir: dir,
        };
        until("the web server", || TcpStream::connect(address).is_ok())?;
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Paths of the requests answered so far, in the order of their lines in the server's log.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        let log = fs::read_to_string(self.log.path()).unwrap_or_default();
        let asked = log.lines().filter_map(|line| line.split_once("\"GET "));
        asked
            .filter_map(|(_, path)| Some(path.split_whitespace().next()?.to_owned()))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // gone already is as good
        let _ = self.child.wait();
    }
}

fn free_address(port: u16) -> Result<SocketAddr, HarnessError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .and_then(|probe| probe.local_addr())
        .map_err(HarnessError::io("listen on", format!("port {port}")))
}

fn new_log() -> Result<tempfile::NamedTempFile, HarnessError> {
    tempfile::NamedTempFile::new()
        .map_err(HarnessError::io("create a file in", "the temporary folder"))
}

/// The configuration that users are told.
fn documented_nginx() -> &'static str {
    let page = include_str!("../../../builder/docs/serving.md");
    let block = page.split("```nginx\n").nth(1);
    block
        .and_then(|block| block.split("```").next())
        .unwrap_or_default()
}

/// A copy of a store with one more version, the new default: the same layers under another id, so nothing is packed anew.
#[derive(Debug)]
pub struct TwoVersions {
    dir: tempfile::TempDir,
    secret_key: PathBuf,
    /// The id of the added version.
    pub added: String,
    /// SHA-256 of the image `site.erofs`, read on this host.
    pub site_sha256: String,
}

impl TwoVersions {
    /// Copies the store of `artifacts` and publishes into the copy.
    ///
    /// # Errors
    /// When the builder (`GASTHAUS`) cannot mount or publish.
    pub fn make(artifacts: &Artifacts) -> Result<Self, HarnessError> {
        let dir =
            tempfile::tempdir().map_err(HarnessError::io("create a folder in", "the temporary"))?;
        let (copy, mounted) = (dir.path().join("store"), dir.path().join("mounted"));
        run(Command::new("cp")
            .arg("-a")
            .arg(store_of(artifacts))
            .arg(&copy))?;
        fs::create_dir(&mounted).map_err(HarnessError::io("create", &mounted))?;
        let public_key = artifacts.lock_folder().join("gasthaus.pub");
        let secret_key = artifacts.lock_folder().join("gasthaus.key");
        let mut mount = Command::new(env_path("GASTHAUS")?)
            .args(["--quiet", "mount", "--key"])
            .arg(&public_key)
            .arg(&copy)
            .arg(&mounted)
            .spawn()
            .map_err(HarnessError::io("start", "gasthaus mount"))?;
        let added = "00000000feedbeef".to_owned();
        let published = until("the mount", || mounted.join("layers").is_file()).and_then(|()| {
            let layers = fs::read_to_string(mounted.join("layers"))
                .map_err(HarnessError::io("read", &mounted))?;
            run(Command::new(env_path("GASTHAUS")?)
                .args(["--quiet", "publish"])
                .args(layers.lines().map(|name| mounted.join(name)))
                .args([
                    "--system",
                    "demo",
                    "--id",
                    &added,
                    "--label",
                    "the newer one",
                ])
                .arg("--key")
                .arg(&secret_key)
                .arg("--to")
                .arg(&copy))?;
            let site = mounted.join("site.erofs");
            let bytes = fs::read(&site).map_err(HarnessError::io("read", &site))?;
            Ok(Sha256::digest(bytes)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect())
        });
        // SIGTERM, so that it unmounts.
        let ended = run(Command::new("kill").arg(mount.id().to_string())).and_then(|_| {
            until("the end of the mount", || {
                matches!(mount.try_wait(), Ok(Some(_)))
            })
        });
        if ended.is_err() {
            end_group(&mut mount);
        }
        let site_sha256 = published?;
        ended?;
        Ok(Self {
            dir,
            secret_key,
            added,
            site_sha256,
        })
    }

    /// The copy.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Makes `version` the default again, as a publisher would.
    ///
    /// # Errors
    /// When `gasthaus store rollback` fails.
    pub fn roll_back(&self, version: &str) -> Result<String, HarnessError> {
        run(Command::new(env_path("GASTHAUS")?)
            .args(["store", "rollback", "--system", "demo", "--key"])
            .arg(&self.secret_key)
            .arg(self.store())
            .arg(version))
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<(), HarnessError> {
    let deadline = Instant::now() + START_LIMIT;
    while !condition() {
        if Instant::now() >= deadline {
            return Err(HarnessError::TimedOut {
                awaited: what.to_owned(),
                waited: START_LIMIT,
                tail: String::new(),
            });
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
