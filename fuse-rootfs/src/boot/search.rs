//! The search for the medium: devices come and go, each is looked at once, the likely ones first.
//!
//! Three kinds of threads send to one channel: the uevent listener, one reader per device (a disk that hangs hangs alone),
//! and nobody else; mounting happens here, one device at a time.
//!
//! Order: what looks like a medium (ISO 9660, FAT …) at once, the volume id of this build first, partitions before their
//! disk (a mounted disk would block its other partitions). Other people's file systems (ext4, NTFS …) only when a path
//! was given, or when nothing new has shown up for a while.

use super::devices::{self, BlockDevice};
use super::error::{BootError, LayerError};
use super::log;
use super::medium::{self, Medium, Outcome, Wanted};
use super::modules::{coldplug, loader::Loader};
use super::superblock::{self, HEAD_BYTES, Superblock};
use super::uevent::{Uevent, UeventSocket};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How long nothing may happen before other people's file systems are opened: a USB stick needs 1–2 s after its host.
const QUIET: Duration = Duration::from_millis(2500);
/// How often /sys is looked at beside the messages, and empty drives are asked again.
const TICK: Duration = Duration::from_millis(250);
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// After this long somebody may want to type: load the keyboard drivers.
const KEYBOARD_AFTER: Duration = Duration::from_secs(5);
/// When the time is up but drivers or disks are still at work (slow machines), they get this much more.
const STILL_BUSY: Duration = Duration::from_secs(30);
/// The right medium was there but damaged: wait only this much longer for another copy.
const DAMAGED_GRACE: Duration = Duration::from_secs(5);

/// What the threads tell.
#[derive(Debug)]
pub enum Event {
    /// From the kernel.
    Uevent(Uevent),
    /// Messages were lost: look at /sys.
    Lost,
    /// A reader is done: the first bytes, or the error.
    Read(String, u64, std::io::Result<Option<Superblock>>),
}

#[derive(Debug)]
enum State {
    Reading,
    /// Not readable, or no medium in the drive.
    Unreadable(String, Instant),
    Ready(Superblock),
    Tried(Option<Superblock>, String),
}

#[derive(Debug)]
struct Seen {
    device: BlockDevice,
    state: State,
}

/// One line of the report: a device and what came of it.
#[derive(Debug, Clone)]
pub struct Row {
    /// The device.
    pub device: BlockDevice,
    /// File system name, may be empty.
    pub fs: String,
    /// Label, may be empty.
    pub label: String,
    /// What was tried and why it did not match.
    pub outcome: String,
}

/// The search, alive from the first driver to the handover.
#[derive(Debug)]
pub struct Search {
    loader: Arc<Loader>,
    sender: Sender<Event>,
    events: Receiver<Event>,
    seen: BTreeMap<String, Seen>,
    active: Instant,
    scanned: Instant,
}

impl Search {
    /// Starts listening to the kernel, then asks for the drivers of the devices that are there already.
    pub fn start(loader: &Arc<Loader>) -> Self {
        let (sender, events) = channel();
        match UeventSocket::open() {
            Ok(socket) => listen(socket, Arc::clone(loader), sender.clone()),
            Err(error) => log::warn(format!(
                "no messages about new devices from the kernel: {error}"
            )),
        }
        for modalias in coldplug::modaliases(Path::new("/sys")) {
            loader.request(&modalias);
        }
        let now = Instant::now();
        Self {
            loader: Arc::clone(loader),
            sender,
            events,
            seen: BTreeMap::new(),
            active: now,
            scanned: now,
        }
    }

    /// Looks for the medium until it is found or `wait` is over.
    ///
    /// # Errors
    /// Not found in time, or found damaged.
    pub fn find(&mut self, wanted: Wanted<'_>, wait: Duration) -> Result<Medium, BootError> {
        let start = Instant::now();
        let mut deadline = start + wait;
        let mut damaged: Option<(String, LayerError)> = None;
        let mut keyboards = false;
        self.forget_tries();
        self.scan();
        loop {
            let late = Instant::now() >= deadline;
            while let Some(name) = self.pick(wanted, late) {
                match self.attempt(&name, wanted) {
                    Outcome::Found(medium) => return Ok(medium),
                    Outcome::No(_) => {}
                    Outcome::Damaged(error) => {
                        deadline = deadline.min(Instant::now() + DAMAGED_GRACE);
                        damaged = Some((name, error));
                    }
                }
                self.drain();
            }
            let busy = !self.loader.is_idle() || self.any_reading();
            if late && (!busy || deadline.elapsed() > STILL_BUSY) {
                return Err(match damaged {
                    Some((name, error)) => Medium::damage(&format!("/dev/{name}"), error),
                    None => BootError::MediumMissing {
                        build_id: wanted.build_id.into(),
                        waited_secs: wait.as_secs(),
                    },
                });
            }
            if !keyboards && start.elapsed() > KEYBOARD_AFTER {
                keyboards = true;
                self.loader.release_later();
                log::info(format!(
                    "still waiting for the medium with build {}",
                    wanted.build_id
                ));
            }
            self.wait(deadline);
        }
    }

    /// Waits for a block device by its node, e.g. `/dev/xvda`.
    ///
    /// # Errors
    /// Not there in time.
    pub fn wait_for_node(
        &mut self,
        node: &str,
        wait: Duration,
    ) -> Result<Option<Superblock>, BootError> {
        let deadline = Instant::now() + wait;
        self.forget_tries();
        self.scan();
        loop {
            let found = self
                .seen
                .values()
                .find(|seen| seen.device.node() == Path::new(node));
            match found.map(|seen| &seen.state) {
                Some(State::Ready(superblock)) => return Ok(Some(superblock.clone())),
                Some(State::Tried(superblock, _)) => return Ok(superblock.clone()),
                _ if Instant::now() >= deadline => {
                    return Err(BootError::RootMissing {
                        device: node.into(),
                        waited_secs: wait.as_secs(),
                    });
                }
                _ => self.wait(deadline),
            }
        }
    }

    /// Every device with what came of it, for the failure screen.
    pub fn rows(&self) -> Vec<Row> {
        self.seen
            .values()
            .map(|seen| {
                let (superblock, outcome) = match &seen.state {
                    State::Reading => (None, "does not answer yet".to_owned()),
                    State::Unreadable(why, _) => (None, why.clone()),
                    State::Ready(superblock) => (Some(superblock), "not tried".into()),
                    State::Tried(superblock, why) => (superblock.as_ref(), why.clone()),
                };
                Row {
                    device: seen.device.clone(),
                    fs: superblock.map_or("", |s| s.kind.name()).into(),
                    label: superblock.map_or_else(String::new, |s| s.label.clone()),
                    outcome,
                }
            })
            .collect()
    }

    fn any_reading(&self) -> bool {
        let fresh = |seen: &Seen| matches!(seen.state, State::Reading);
        self.seen.values().any(fresh)
    }

    /// A second search looks at everything anew.
    fn forget_tries(&mut self) {
        self.seen
            .retain(|_, seen| matches!(seen.state, State::Reading));
    }

    fn attempt(&mut self, name: &str, wanted: Wanted<'_>) -> Outcome {
        let Some(seen) = self.seen.get_mut(name) else {
            return Outcome::No("gone".into());
        };
        let State::Ready(superblock) = &seen.state else {
            return Outcome::No("not ready".into());
        };
        let superblock = superblock.clone();
        let outcome = medium::try_device(&self.loader, &seen.device, &superblock, wanted);
        let words = match &outcome {
            Outcome::Found(_) => "is the medium".into(),
            Outcome::No(why) => why.clone(),
            Outcome::Damaged(error) => format!("damaged: {error}"),
        };
        log::debug(|| {
            format!(
                "`/dev/{name}` ({}, `{}`): {words}",
                superblock.kind.name(),
                superblock.label
            )
        });
        seen.state = State::Tried(Some(superblock), words);
        self.active = Instant::now();
        outcome
    }

    /// The most promising device that is ready, if any may be tried now.
    /// `late`: the time is up, everything may.
    fn pick(&self, wanted: Wanted<'_>, late: bool) -> Option<String> {
        let volume_id = wanted.volume_id();
        let quiet = late || (self.active.elapsed() > QUIET && self.loader.is_idle());
        self.seen
            .values()
            .filter_map(|seen| match &seen.state {
                State::Ready(superblock) => Some((seen, superblock)),
                _ => None,
            })
            .filter(|(seen, superblock)| {
                let waits_for_partition = seen.device.parent.is_none()
                    && self.seen.values().any(|other| {
                        other.device.parent.as_ref() == Some(&seen.device.name)
                            && matches!(other.state, State::Reading)
                    });
                !waits_for_partition
                    && (superblock.kind.is_medium_like() || wanted.iso_path.is_some() || quiet)
            })
            .min_by_key(|(seen, superblock)| {
                (
                    superblock.label != volume_id,
                    !superblock.kind.is_medium_like(),
                    seen.device.parent.is_none(),
                    seen.device.name.clone(),
                )
            })
            .map(|(seen, _)| seen.device.name.clone())
    }

    /// Waits for one event or a tick, then takes all that are there.
    fn wait(&mut self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        // Past the deadline we only wait for what is still at work.
        let left = if left.is_zero() { TICK } else { left.min(TICK) };
        match self.events.recv_timeout(left) {
            Ok(event) => self.take(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(left), // cannot be: we hold a sender
        }
        self.drain();
        if self.scanned.elapsed() >= TICK {
            self.scan();
        }
    }

    fn drain(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Lost => self.scan(),
            Event::Uevent(uevent) if uevent.subsystem == "block" => {
                if let (Some(name), true) = (&uevent.devname, uevent.action != "remove") {
                    self.notice(&name.replace('/', "!"));
                } else {
                    self.scan();
                }
            }
            Event::Uevent(_) => self.active = Instant::now(),
            Event::Read(name, sequence, result) => self.note_read(&name, sequence, result),
        }
    }

    fn note_read(
        &mut self,
        name: &str,
        sequence: u64,
        result: std::io::Result<Option<Superblock>>,
    ) {
        let Some(seen) = self.seen.get_mut(name) else {
            return;
        };
        if seen.device.sequence != sequence {
            return; // the medium was changed meanwhile; its own reader is under way
        }
        seen.device = devices::describe(name); // the size of a CD is known after the first read
        seen.device.sequence = sequence;
        match result {
            Ok(Some(superblock)) if superblock.kind.mount().is_some() => {
                seen.state = State::Ready(superblock);
                self.active = Instant::now();
            }
            Ok(Some(superblock)) => {
                let why = format!("{} is not searched", superblock.kind.name());
                seen.state = State::Tried(Some(superblock), why);
            }
            Ok(None) => seen.state = State::Tried(None, "no file system known to us".into()),
            Err(error) if error.raw_os_error() == Some(Errno::NOMEDIUM.raw_os_error()) => {
                seen.device.size_bytes = 0; // the kernel keeps the size of the last one, or makes one up
                seen.state = State::Unreadable("no medium in the drive".into(), Instant::now());
            }
            Err(error) => {
                seen.state = State::Unreadable(format!("cannot be read: {error}"), Instant::now());
            }
        }
        // The read has made the kernel look for partitions, if it had not yet.
        self.scan();
    }

    /// Compares /sys with what we know.
    fn scan(&mut self) {
        self.scanned = Instant::now();
        let listed = devices::list();
        self.seen
            .retain(|name, _| listed.iter().any(|device| device.name == *name));
        for device in listed {
            self.look_at(device);
        }
    }

    fn notice(&mut self, name: &str) {
        if devices::list().iter().any(|device| device.name == name) {
            self.look_at(devices::describe(name));
        }
    }

    fn look_at(&mut self, device: BlockDevice) {
        if let Some(seen) = self.seen.get(&device.name) {
            let again = match &seen.state {
                State::Unreadable(_, since) => since.elapsed() > ASK_AGAIN,
                _ => false,
            };
            if seen.device.sequence == device.sequence && !again {
                return;
            }
        } else {
            self.active = Instant::now();
        }
        let (name, sequence, node, sender) = (
            device.name.clone(),
            device.sequence,
            device.node(),
            self.sender.clone(),
        );
        self.seen.insert(
            name.clone(),
            Seen {
                device,
                state: State::Reading,
            },
        );
        let reader = move || {
            let result = read_head(&node).map(|head| superblock::probe(&head));
            let _ = sender.send(Event::Read(name, sequence, result)); // nobody listens after the handover
        };
        if let Err(error) = crate::thread::spawn("read-device", crate::thread::STACK_BYTES, reader)
        {
            log::warn(format!("cannot start a thread: {error}"));
        }
    }
}

fn read_head(node: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    File::open(node)?
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut head)?;
    Ok(head)
}

fn listen(socket: UeventSocket, loader: Arc<Loader>, sender: Sender<Event>) {
    let work = move || {
        loop {
            let event = match socket.next() {
                Ok(event) => {
                    if let Some(modalias) =
                        event.modalias.as_deref().filter(|_| event.action == "add")
                    {
                        loader.request(modalias);
                    }
                    Event::Uevent(event)
                }
                Err(error) => {
                    log::debug(|| format!("uevents: {error}"));
                    for modalias in coldplug::modaliases(Path::new("/sys")) {
                        loader.request(&modalias);
                    }
                    std::thread::sleep(Duration::from_millis(10)); // a socket that only fails must not spin
                    Event::Lost
                }
            };
            if sender.send(event).is_err() {
                return;
            }
        }
    };
    if let Err(error) = crate::thread::spawn("uevents", crate::thread::STACK_BYTES, work) {
        log::warn(format!("cannot start a thread: {error}"));
    }
}
