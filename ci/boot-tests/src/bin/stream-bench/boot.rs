//! Real boots: QEMU starts the demo over a line, once for each scheme, and what it waited is printed beside what the model (the
//! replay of a recorded boot) predicts for the same line.
//!
//! In FOLDER: `net/out` as `gasthaus build --output iso --output net-iso --output store` leaves it; `www/net`, that store, and
//! `www/store2005` with its key in `store.pub`, offered by the web server at `--origin`; what `run` needs, for the model.
//!
//! Hypervisor and kernel are given to QEMU directly, with the words of the medium's own menu, so that no firmware and no
//! loader is measured. The 2005 design is played by our client: fixed blocks of 256 KiB, gzip -6, on demand, at most four
//! requests at a time, nothing along with them, no profile and no metadata ahead. That is kinder than it was: blocks are asked for
//! as the kernel reads (16 to 128 KiB at a time), and late ones are hedged.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use boot_tests::{
    BootEnd, Firmware, Medium, Qemu,
    artifacts::Artifacts,
    line::{Line, Shape, Stats},
    require_tool,
};

use super::{Options, Outcome, scheme};

/// From power-on to the ready line.
const READY_LIMIT: Duration = Duration::from_secs(900);
/// The boot's numbers follow the ready line.
const FIGURES_LIMIT: Duration = Duration::from_secs(60);
/// The host's loopback as QEMU's network shows it.
const HOST: &str = "10.0.2.2";
/// What makes our client the old one, on a store that is cut as it was then.
const SETTINGS_2005: &str = "connections=4\nahead=0\n";
/// Schemes with a boot of their own.
const NAMES: [&str; 4] = ["ours", "ours-cold", "fixed", "whole"];

/// What one boot took.
struct Measured {
    requests: u64,
    bytes: u64,
    /// What readers waited, all of them added up, as the daemon counted it; for the whole image its download.
    stall_secs: f64,
    ready: Duration,
}

/// A medium's parts and the words of its menu.
struct Parts {
    dir: tempfile::TempDir,
    kernel: PathBuf,
    initrd: PathBuf,
    xen: Option<PathBuf>,
    xen_words: String,
    words: String,
}

impl Parts {
    fn of(artifacts: &Artifacts, is_xen: bool) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        let take = |paths: &[&str]| -> Outcome<PathBuf> {
            let found = paths.iter().find_map(|path| {
                artifacts
                    .extract(path, dir.path())
                    .ok()
                    .filter(|p| p.exists())
            });
            found.ok_or_else(|| {
                format!("`{}` has none of {paths:?}", artifacts.iso.display()).into()
            })
        };
        let menu = fs::read_to_string(take(&["/boot/grub/grub.cfg"])?)?;
        let entry = if is_xen {
            "--id xen-serial "
        } else {
            "--id plain-serial "
        };
        let words = quoted(&menu, entry).ok_or_else(|| format!("the menu has no `{entry}`"))?;
        let (xen, xen_words, words) = match (is_xen, &words[..]) {
            (true, [xen_words, words]) => {
                let packed = take(&["/boot/xen.xz", "/boot/xen.gz"])?;
                (Some(unpacked(&packed)?), xen_words.clone(), words.clone())
            }
            (false, [words]) => (None, String::new(), words.clone()),
            _ => return Err(format!("the menu's `{entry}` was not understood").into()),
        };
        let kernels: &[&str] = match is_xen {
            true => &["/boot/vmlinux.lz4", "/boot/vmlinuz"],
            false => &["/boot/vmlinuz"],
        };
        Ok(Self {
            kernel: take(kernels)?,
            initrd: take(&["/boot/initrd.xz", "/boot/initrd.zst"])?,
            xen,
            xen_words,
            words,
            dir,
        })
    }

    /// A machine that starts them with further words.
    fn qemu(&self, name: &str, more: &str) -> Qemu {
        let words = format!("{} {more}", self.words);
        let qemu = Qemu::new(name, Firmware::Bios);
        match &self.xen {
            None => qemu.kernel(&self.kernel, &self.initrd, &words),
            // Multiboot: modules with their words, a comma between; a doubled comma is one.
            Some(xen) => {
                let (kernel, initrd) = (self.kernel.display(), self.initrd.display());
                let modules = format!("{kernel} {},{initrd}", words.replace(',', ",,"));
                qemu.kernel(xen, Path::new(&modules), &self.xen_words)
            }
        }
    }

    /// Replaces the settings in the initramfs: of two files of one name in it the later counts.
    fn settings(&mut self, text: &str) -> Outcome {
        let mut bytes = fs::read(&self.initrd)?;
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        for (name, data) in [("etc/gasthaus/stream.conf", text), ("TRAILER!!!", "")] {
            bytes.extend(newc(name, data.as_bytes()));
        }
        self.initrd = self.dir.path().join("initrd.2005");
        fs::write(&self.initrd, bytes)?;
        Ok(())
    }
}

/// A file in an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).
fn newc(name: &str, data: &[u8]) -> Vec<u8> {
    let fields = [
        1,
        0o100_644,
        0,
        0,
        1,
        0,
        data.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ];
    let mut bytes = b"070701".to_vec();
    for field in fields {
        bytes.extend(format!("{field:08x}").bytes());
    }
    bytes.extend(name.bytes().chain([0]));
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// What stands between quotation marks in the call below a menu entry.
fn quoted(menu: &str, entry: &str) -> Option<Vec<String>> {
    let (_, below) = menu.split_once(entry)?;
    let call = below
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("boot_"))?;
    Some(
        call.split('"')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect(),
    )
}

fn unpacked(packed: &Path) -> Outcome<PathBuf> {
    let name = if packed.extension().is_some_and(|e| e == "xz") {
        "xz"
    } else {
        "gzip"
    };
    let program = require_tool(name, name, "unpack the hypervisor")?;
    let plain = packed.with_extension("elf");
    let ended = Command::new(program)
        .arg("-dc")
        .arg(packed)
        .stdin(Stdio::null())
        .stdout(File::create(&plain)?)
        .status()?;
    match ended.success() {
        true => Ok(plain),
        false => Err(format!("`{name} -dc {}` ended with {ended}", packed.display()).into()),
    }
}

/// The seconds in the daemon's line `… 1.5 s waited, 0.35 s at most`.
fn waited(console: &str) -> Option<f64> {
    let (_, line) = console.split_once("gasthaus: streamed ")?;
    let (before, _) = line.lines().next()?.split_once(" s waited")?;
    before.rsplit(' ').next()?.parse().ok()
}

/// Boots to the ready line; how long it took, and what readers waited if the root streams.
fn boot(
    name: &str,
    qemu: Qemu,
    mark: &str,
    streams: bool,
    line: &Line,
) -> Outcome<(Duration, f64, Stats)> {
    let booted = qemu.run_until(mark, READY_LIMIT)?;
    let stats = line.stats();
    if booted.end != BootEnd::MarkSeen {
        return Err(format!("{name}: {:?}:\n{}", booted.end, booted.tail(40)).into());
    }
    let mut stall = 0.0;
    if streams {
        let _ = booted.vm.wait_for(" s waited", 0, FIGURES_LIMIT); // the text below says more
        stall = waited(&booted.vm.console.text())
            .ok_or_else(|| format!("{name}: no boot report:\n{}", booted.tail(40)))?;
    }
    Ok((booted.took, stall, stats))
}

/// A boot that streams: what is started, and its ready line.
pub struct Streamed {
    parts: Parts,
    words: String,
    pub ready: String,
}

impl Streamed {
    /// From `folder` of the web server, which the machine meets at `port` of its host, with `profile`.
    pub fn of(options: &Options, folder: &str, profile: &str, port: u16) -> Outcome<Self> {
        let out = options.folder.join("net/out");
        let store = Artifacts::load(
            &out.join("demo-net.iso"),
            &out.join("demo-store.manifest.json"),
        )?;
        let mut parts = Parts::of(&store, options.flavour == "xen")?;
        let mut words =
            format!("gasthaus.url=http://{HOST}:{port}/{folder} gasthaus.profile={profile}");
        let mut ready = ready_mark(options, &store)?;
        if folder == "store2005" {
            let key = fs::read_to_string(options.folder.join("store.pub"))?;
            let key = key.lines().last().unwrap_or_default();
            parts.settings(&format!("key={key}\n{SETTINGS_2005}"))?;
            words += " gasthaus.system=bench gasthaus.version=2005";
            ready = ready.replace(&store.build_id, "2005");
        }
        Ok(Self {
            parts,
            words,
            ready,
        })
    }

    /// The machine. What it starts is gone with `self`.
    pub fn qemu(&self, name: &str) -> Qemu {
        self.parts.qemu(name, &self.words).nic("virtio-net-pci")
    }
}

/// The ready line of `artifacts` with all guests of the image.
fn ready_mark(options: &Options, artifacts: &Artifacts) -> Outcome<String> {
    let out = options.folder.join("net/out");
    let full = Artifacts::load(&out.join("demo.iso"), &out.join("demo.manifest.json"))?;
    let all = full.autostarted();
    Ok(match options.flavour == "xen" {
        true => artifacts.ready_mark("xen", all, all),
        false => artifacts.ready_mark("none", 0, all),
    })
}

fn measure(options: &Options, scheme: &str, shape: Shape) -> Outcome<Measured> {
    let out = options.folder.join("net/out");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let line = Line::on(any, options.origin, shape, true)?;
    let name = format!("bench-{scheme}");
    if scheme == "whole" {
        let full = Artifacts::load(&out.join("demo.iso"), &out.join("demo.manifest.json"))?;
        let began = Instant::now();
        let url = format!("http://{}/demo.iso", line.address());
        let answer = scheme::agent().get(url).call()?;
        io::copy(&mut answer.into_body().into_reader(), &mut io::sink())?;
        let download = began.elapsed();
        let words = format!("gasthaus.build={}", full.build_id);
        let parts = Parts::of(&full, options.flavour == "xen")?; // its folder must outlive the machine's start
        let qemu = parts.qemu(&name, &words).medium(Medium::Cd, &full.iso);
        let (took, _, stats) = boot(&name, qemu, &ready_mark(options, &full)?, false, &line)?;
        return Ok(Measured {
            requests: stats.requests,
            bytes: stats.down_bytes,
            stall_secs: download.as_secs_f64(),
            ready: download + took,
        });
    }
    let (folder, profile) = match scheme {
        "ours" => ("net", "ready"),
        "ours-cold" => ("net", "none"),
        "fixed" => ("store2005", "none"),
        other => return Err(format!("no boot plays `{other}`; there are {NAMES:?}").into()),
    };
    let streamed = Streamed::of(options, folder, profile, line.address().port())?;
    let (qemu, ready) = (streamed.qemu(&name), streamed.ready.clone());
    let (took, stall_secs, stats) = boot(&name, qemu, &ready, true, &line)?;
    Ok(Measured {
        requests: stats.requests,
        bytes: stats.down_bytes,
        stall_secs,
        ready: took,
    })
}

/// Boots every scheme on every line and prints the table; `predict` gives the model's stall.
pub fn run(
    options: &Options,
    predict: &mut dyn FnMut(&str, Shape) -> Outcome<Duration>,
) -> Outcome {
    let mut table = format!(
        "Boots of the demo ({}) in QEMU, to the ready line:\n\n\
         | scheme | RTT ms | Mbit/s | requests | MB | s waited by readers | s to ready | the model's stall, s |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|\n",
        options.flavour
    );
    let known = |name: &&String| NAMES.contains(&name.as_str());
    for &mbit in &options.mbit {
        for &rtt_ms in &options.rtt_ms {
            for name in options.schemes.iter().filter(known) {
                let shape = Shape::new(rtt_ms, mbit);
                let measured = measure(options, name, shape)?;
                let predicted = predict(name, shape)?;
                let row = format!(
                    "| {} | {rtt_ms} | {mbit} | {} | {:.1} | {:.1} | {:.1} | {:.2} |\n",
                    scheme::title(name),
                    measured.requests,
                    measured.bytes as f64 / 1e6,
                    measured.stall_secs,
                    measured.ready.as_secs_f64(),
                    predicted.as_secs_f64()
                );
                io::stderr().write_all(row.as_bytes())?;
                table += &row;
            }
        }
    }
    println!("{table}");
    println!(
        "2005 is played by our client on a store of fixed 256 KiB blocks, gzip -6: on demand, four requests at a time. The whole \
         image is downloaded first and then booted as a CD. The seconds to ready are an emulated processor's."
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_tells_what_was_waited() {
        let text = "x\r\ngasthaus: streamed 46.8 MB in 51 requests; of 3 reads 2 were there, 1 waited for a bundle, 0 fetched; 1.5 s waited, 0.35 s at most\r\n";
        assert_eq!(waited(text), Some(1.5));
        assert_eq!(waited("gasthaus: ready"), None);
    }

    #[test]
    fn the_menus_words_are_found() {
        let menu = "menuentry \"A\" --id xen-serial {\n  boot_xen \"a b\" \"c d\"\n}\n";
        assert_eq!(quoted(menu, "--id xen-serial ").unwrap(), ["a b", "c d"]);
        assert_eq!(quoted(menu, "--id plain "), None);
    }

    #[test]
    fn archives_are_aligned() {
        let entry = newc("etc/x", b"abcde");
        assert_eq!(entry.len() % 4, 0);
        assert!(entry.starts_with(b"070701"));
    }
}
