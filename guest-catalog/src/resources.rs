//! What guests need of the machine, and sums of it.
use crate::{Guest, Source};
use serde::Serialize;
use std::iter::Sum;
use std::ops::Add;

/// What one guest, or several, need of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Resources {
    /// Number of guests counted.
    pub guests: u32,
    /// Memory the guests see, in MiB.
    pub memory_mib: u64,
    /// Memory the hypervisor gives away for them, bookkeeping included, in MiB.
    pub hypervisor_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Disk images built with the image, in MiB.
    pub disk_mib: u64,
    /// Disks with a copy-on-write layer in dom0's RAM.
    pub writable_disks: u32,
}

impl Resources {
    /// What `guest` needs.
    ///
    /// Xen's bookkeeping is estimated as libxl does: 1 MiB per processor and 8 KiB per MiB of memory for the shadow
    /// or HAP pool, and 4 MiB for page tables and the domain itself.
    pub fn of(guest: &Guest) -> Self {
        let memory_mib = u64::from(guest.memory_mib);
        let disk_mib = match &guest.source {
            Source::Debian(debian) => u64::from(debian.disk_mib),
            Source::Builtin(_)
            | Source::Image(_)
            | Source::Package(_)
            | Source::Url(_)
            | Source::Oci(_) => 0,
        };
        let writable = guest
            .disks
            .iter()
            .filter(|disk| disk.access.is_writable())
            .count();
        Self {
            guests: 1,
            memory_mib,
            hypervisor_mib: memory_mib + u64::from(guest.vcpus) + memory_mib.div_ceil(128) + 4,
            vcpus: guest.vcpus,
            disk_mib,
            writable_disks: u32::try_from(writable).unwrap_or(u32::MAX),
        }
    }
}

impl Add for Resources {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            guests: self.guests.saturating_add(other.guests),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            hypervisor_mib: self.hypervisor_mib.saturating_add(other.hypervisor_mib),
            vcpus: self.vcpus.saturating_add(other.vcpus),
            disk_mib: self.disk_mib.saturating_add(other.disk_mib),
            writable_disks: self.writable_disks.saturating_add(other.writable_disks),
        }
    }
}

impl Sum for Resources {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), Add::add)
    }
}
