//! Starting one guest: memory first, then disks, then each mode in turn until its health check is content.
use crate::disks;
use crate::error::Failure;
use crate::health::{self, Since};
use crate::house::{House, Hypervisor};
use crate::machines;
use crate::state::{Lock, Record, State, lock};
use crate::xl::Toolstack;
use guest_catalog::{Entry, Mode, Resources};
use std::fs;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a command waits for another one on the same guest.
pub const LOCK_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks at a starting guest.
pub const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// Pause between two questions whether its domain still lives: each runs `xl`, which takes a second of the processor
/// that the guest needs when the machine is emulated.
const ALIVE_PAUSE: Duration = Duration::from_secs(5);
/// How long a domain may be shut down or missing: one that resets itself is built again by `xl`.
const RESET_LIMIT: Duration = Duration::from_secs(20);
/// How long a start waits for others to take the memory they announced.
const MEMORY_LIMIT: Duration = Duration::from_secs(120);

/// One look at a guest.
pub type Look<'h> = dyn Fn(&Entry, &Since) -> Result<(), String> + Sync + 'h;

/// The hypervisor's memory, as far as it is known here.
#[derive(Debug, Default)]
struct Memory {
    /// MiB announced by starts whose domain is not built yet.
    announced_mib: u64,
    /// What the toolstack said last, if nothing was built since: asking costs what starting a program costs.
    free_mib: Option<u64>,
}

/// What starting needs; shared by guests that start together.
pub struct Starter<'h> {
    pub house: &'h House,
    pub tools: &'h dyn Toolstack,
    pub look: Box<Look<'h>>,
    memory: Mutex<Memory>,
    settled: Condvar,
    /// Whether domains may exist that no record tells of.
    strangers: bool,
    /// The one mode that may be tried, if somebody said so.
    only: Option<Mode>,
}

impl<'h> Starter<'h> {
    /// Starts with the real health check.
    pub fn new(house: &'h House, tools: &'h dyn Toolstack) -> Self {
        Self::with_look(
            house,
            tools,
            Box::new(move |entry, since| health::look(house, tools, entry, since)),
        )
    }

    /// Starts with another health check.
    pub fn with_look(house: &'h House, tools: &'h dyn Toolstack, look: Box<Look<'h>>) -> Self {
        Self {
            house,
            tools,
            look,
            memory: Mutex::default(),
            settled: Condvar::new(),
            strangers: true,
            only: None,
        }
    }

    /// In this mode and no other, if there is one.
    pub fn only(mut self, mode: Option<Mode>) -> Self {
        self.only = mode;
        self
    }

    /// For the start of the house: whether there may be domains besides dom0, and the memory that `xl` just said is free, if
    /// it was asked.
    pub fn at_start(mut self, strangers: bool, free_mib: Option<u64>) -> Self {
        self.strangers = strangers;
        self.memory = Mutex::new(Memory {
            free_mib,
            ..Memory::default()
        });
        self
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // A panicking holder leaves nothing half-done that matters here.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `entry` and waits until it is up. `built` is called when its domain exists, or never will.
    pub fn start(&self, entry: &Entry, built: &dyn Fn()) -> Result<Mode, Failure> {
        let lock = lock(self.house, &entry.guest.name, LOCK_LIMIT)?;
        let outcome = self.start_locked(entry, built, &lock);
        built();
        outcome
    }

    fn start_locked(&self, entry: &Entry, built: &dyn Fn(), _: &Lock) -> Result<Mode, Failure> {
        let (house, name) = (self.house, &entry.guest.name);
        let mut record = Record::load(house, name);
        let built_early = std::mem::take(&mut record.built_early);
        record.enter(house, name, State::Starting, None)?;
        let outcome = match record.mode.filter(|_| built_early) {
            Some(mode) => self.take_over(entry, mode, built),
            None => self
                .adopt(entry, &record)
                .and_then(|adopted| match adopted {
                    Some(mode) => Ok(mode),
                    None => self.try_modes(entry, built, Vec::new()),
                }),
        };
        match &outcome {
            Ok(mode) => {
                record.mode = Some(*mode);
                record.enter(house, name, State::Up, None)?;
            }
            Err(failure) => {
                record.mode = None;
                record.enter(house, name, State::Failed, Some(failure.in_one_line()))?;
            }
        }
        outcome
    }

    /// A domain that is there already: a living one only needs waiting for, a dead one is cleared away.
    fn adopt(&self, entry: &Entry, record: &Record) -> Result<Option<Mode>, Failure> {
        let name = entry.guest.name.as_str();
        if !self.strangers && record.mode.is_none() {
            return Ok(None);
        }
        match self.tools.domain(name)? {
            Some(domain) if domain.dead => self.tools.destroy(name).map(|()| None),
            Some(_) => match self.wait_up(entry, &Since::default()) {
                Ok(()) => Ok(Some(record.mode.unwrap_or(entry.guest.modes[0]))),
                Err(reason) => Err(Failure::NotUp {
                    guest: name.to_owned(),
                    reasons: vec![format!("it was running, but {reason}")],
                }),
            },
            None => Ok(None),
        }
    }

    /// A domain that was built before the start of the house: it only needs waiting for. If it does not come up, it is as if
    /// it had been built here.
    fn take_over(&self, entry: &Entry, mode: Mode, built: &dyn Fn()) -> Result<Mode, Failure> {
        built();
        match self.wait_up(entry, &Since::default()) {
            Ok(()) => Ok(mode),
            Err(reason) => {
                self.clear_away(entry, mode, &reason)?;
                self.try_modes(entry, built, vec![(mode, reason)])
            }
        }
    }

    /// Makes the disks and builds the domain in the first mode that Xen takes, without looking whether it comes up.
    pub fn build(&self, entry: &Entry) -> Result<(), Failure> {
        let (house, name) = (self.house, &entry.guest.name);
        let _held = lock(house, name, LOCK_LIMIT)?;
        let mut record = Record::load(house, name);
        if record != Record::default() || self.strangers {
            return Ok(()); // this is no first start
        }
        record.enter(house, name, State::Starting, None)?;
        let ready = self.tools.prepare();
        let outcome = ready
            .and_then(|()| disks::attach(house, entry))
            .and_then(|()| {
                let mut failed = Vec::new();
                while let Some(mode) = self.next_mode(entry, &mut failed) {
                    match self.create(entry, mode) {
                        Ok(()) => return Ok(mode),
                        Err(failure @ Failure::Memory { .. }) => return Err(failure),
                        Err(failure) => failed.push((mode, failure.in_one_line())),
                    }
                }
                Err(not_up(entry, failed))
            });
        match outcome {
            Ok(mode) => {
                record.mode = Some(mode);
                record.built_early = true;
                record.enter(house, name, State::Starting, None)
            }
            Err(failure) => {
                record.enter(house, name, State::Stopped, Some(failure.in_one_line()))?;
                Err(failure)
            }
        }
    }

    /// The next mode to try, besides those that `failed` has. Modes that this machine does not have are added to it.
    fn next_mode(&self, entry: &Entry, failed: &mut Vec<(Mode, String)>) -> Option<Mode> {
        let hardware = self.house.has_hardware_domains();
        let kvm = self.house.hypervisor() == Hypervisor::Kvm;
        for mode in self.modes(entry) {
            if failed.iter().any(|(tried, _)| *tried == mode) {
                continue;
            }
            if kvm != (mode == Mode::Kvm) {
                let (here, there) = if kvm { ("KVM", "Xen") } else { ("Xen", "KVM") };
                failed.push((mode, format!("{here} runs this machine, not {there}")));
            } else if kvm {
                return Some(mode);
            } else if mode != Mode::Pv && !hardware {
                let reason = "this processor has no hardware virtualisation";
                failed.push((mode, reason.to_owned()));
            } else {
                return Some(mode);
            }
        }
        None
    }

    /// Says that a mode is given up, and makes room for the next.
    fn clear_away(&self, entry: &Entry, mode: Mode, reason: &str) -> Result<(), Failure> {
        let name = entry.guest.name.as_str();
        println!("guests: guest `{name}` does not come up in mode {mode}: {reason}");
        match self.tools.domain(name)? {
            Some(_) => self.tools.destroy(name),
            None => Ok(()),
        }
    }

    /// Tries the modes in turn, besides those that `failed` has.
    fn try_modes(
        &self,
        entry: &Entry,
        built: &dyn Fn(),
        mut failed: Vec<(Mode, String)>,
    ) -> Result<Mode, Failure> {
        self.tools.prepare()?;
        disks::attach(self.house, entry)?;
        while let Some(mode) = self.next_mode(entry, &mut failed) {
            let since = Since::now(self.house, entry);
            let reason = match self.create(entry, mode) {
                // The same for every mode: there is nothing to fall back to.
                Err(failure @ Failure::Memory { .. }) => return Err(failure),
                Err(failure) => failure.in_one_line(),
                Ok(()) => {
                    built();
                    match self.wait_up(entry, &since) {
                        Ok(()) => return Ok(mode),
                        Err(reason) => reason,
                    }
                }
            };
            self.clear_away(entry, mode, &reason)?;
            failed.push((mode, reason));
        }
        Err(not_up(entry, failed))
    }

    /// The modes in the order they are tried: the guest's own, but on an emulated processor PV first. Virtualisation
    /// extensions that are emulated themselves work badly: measured below QEMU's TCG, `tiny` is up after 15 s as PV; as
    /// PVH after 32 s, and every second start ends in a triple fault.
    fn modes(&self, entry: &Entry) -> Vec<Mode> {
        if let Some(mode) = self.only {
            return vec![mode];
        }
        let mut modes = entry.guest.modes.clone();
        if self.house.is_emulated() {
            modes.sort_by_key(|mode| *mode != Mode::Pv);
        }
        modes
    }

    fn create(&self, entry: &Entry, mode: Mode) -> Result<(), Failure> {
        let name = entry.guest.name.as_str();
        let path = write_config(self.house, entry, mode)?;
        if mode.is_pc() {
            machines::mount_layer(self.house)?;
        }
        if mode == Mode::Hvm {
            machines::read_device_model();
        }
        let needed_mib = self.announce(entry)?;
        let outcome = self
            .wait_for_bridge(entry)
            .and_then(|()| self.tools.create(name, &path))
            .and_then(|()| self.tools.connect(entry));
        {
            let mut memory = self.memory();
            memory.announced_mib -= needed_mib;
            memory.free_mib = None;
        }
        self.settled.notify_all();
        outcome
    }

    /// Makes sure that there is memory for `entry` besides what others, starting now, will take.
    fn announce(&self, entry: &Entry) -> Result<u64, Failure> {
        let needed_mib = Resources::of(&entry.guest).hypervisor_mib;
        let deadline = Instant::now() + MEMORY_LIMIT;
        let mut memory = self.memory();
        loop {
            let free_mib = match memory.free_mib {
                Some(known) => known,
                None => self.tools.free_mib()?,
            };
            if free_mib >= memory.announced_mib + needed_mib {
                memory.free_mib = Some(free_mib);
                memory.announced_mib += needed_mib;
                return Ok(needed_mib);
            }
            memory.free_mib = None;
            let left = deadline.saturating_duration_since(Instant::now());
            if memory.announced_mib == 0 || left.is_zero() {
                return Err(Failure::Memory {
                    guest: entry.guest.name.to_string(),
                    needed_mib,
                    free_mib,
                });
            }
            // Part of what was announced may be taken by now: look again when a start is through.
            memory = self
                .settled
                .wait_timeout(memory, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Looks at the guest until it is up; `Err` says why it is not.
    fn wait_up(&self, entry: &Entry, since: &Since) -> Result<(), String> {
        let name = entry.guest.name.as_str();
        let patience = self.house.patience(&entry.guest);
        let limit = patience * Duration::from_secs(entry.guest.health.timeout_secs.into());
        let mut pause = LOOK_PAUSE;
        if entry.guest.health.screen.is_some() && self.house.hypervisor() == Hypervisor::Xen {
            pause = ALIVE_PAUSE;
        }
        let started = Instant::now();
        let mut next_alive = ALIVE_PAUSE;
        let mut down_since = None;
        loop {
            let trouble = match (self.look)(entry, since) {
                Ok(()) => return Ok(()),
                Err(trouble) => trouble,
            };
            if started.elapsed() >= limit {
                let why = match patience {
                    1 => String::new(),
                    times => format!(", {times} times its limit on this emulated processor"),
                };
                return Err(format!(
                    "not up after {} s{why}: {trouble}",
                    limit.as_secs()
                ));
            }
            if started.elapsed() >= next_alive {
                match self.tools.domain(name) {
                    Ok(Some(domain)) if !domain.dead => down_since = None,
                    Ok(Some(domain)) if domain.crashed => {
                        return Err("its domain crashed".to_owned());
                    }
                    Ok(_) => {
                        if down_since.get_or_insert_with(Instant::now).elapsed() >= RESET_LIMIT {
                            return Err("its domain ended by itself".to_owned());
                        }
                    }
                    // The question failed, not the guest.
                    Err(failure) => println!("guests: {failure}"),
                }
                next_alive = started.elapsed() + ALIVE_PAUSE;
            }
            std::thread::sleep(pause);
        }
    }
}

/// Writes what a guest is started with, and makes the folders that it names; where it is.
pub fn write_config(house: &House, entry: &Entry, mode: Mode) -> Result<PathBuf, Failure> {
    let text = house.config(entry, mode)?;
    let path = house.config_file(entry.guest.name.as_str());
    let mut folders = vec![house.run("xl")];
    if mode.is_pc() {
        folders.push(house.machines());
    }
    if mode == Mode::Kvm {
        folders.extend(house.console_log(entry).parent().map(Into::into));
    }
    folders
        .iter()
        .try_for_each(fs::create_dir_all)
        .and_then(|()| fs::write(&path, text))
        .map_err(Failure::file("write", &path))?;
    Ok(path)
}

fn not_up(entry: &Entry, failed: Vec<(Mode, String)>) -> Failure {
    let reasons = failed.into_iter();
    Failure::NotUp {
        guest: entry.guest.name.to_string(),
        reasons: reasons
            .map(|(mode, reason)| format!("{mode}: {reason}"))
            .collect(),
    }
}

#[cfg(test)]
#[path = "start_tests.rs"]
mod tests;
