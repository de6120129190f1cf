//! The root of a guest domain, and its address.
//!
//! A guest of the house is told its address on the command line (`gasthaus.ip=`): its services can be reached as soon as they
//! run, whatever in the real system asks for an address later. The same address comes by DHCP then: the lease is fixed.

use super::cmdline::BootParams;
use super::error::BootError;
use super::marks::{Marks, json_string};
use super::modules::loader::Loader;
use super::net::cards::{self, CLASS};
use super::net::params::{NicChoice, StaticAddress};
use super::net::rtnl::{self, Route};
use super::search::Search;
use super::{handover, log};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the guest's card may take to appear once its disk is there: its driver was loaded along with the disk's.
const CARD_LIMIT: Duration = Duration::from_secs(2);
/// Drivers of guests' cards, below Xen and below KVM. While the disk is looked for, no network card's driver is loaded by itself.
const CARD_DRIVERS: [&str; 2] = ["xen_netfront", "virtio_net"];
const CARD_PAUSE: Duration = Duration::from_millis(20);
/// networkd's default for routes by DHCP is 1024: when the real system has one of its own, that one does not compete.
const METRIC: u32 = 2048;

/// Mounts the root disk; then the network card, whose driver was loaded meanwhile, gets the address that the house has chosen.
pub fn make_root(
    device: &str,
    params: &BootParams,
    loader: &Arc<Loader>,
    search: &mut Search,
    marks: &mut Marks,
) -> Result<(), BootError> {
    if params.net.address.is_some() {
        for driver in CARD_DRIVERS {
            loader.queue(driver); // the one of the other hypervisor finds nothing to drive
        }
    }
    let superblock = search.wait_for_node(device, params.wait)?;
    marks.mark("medium");
    if let Err(problem) = loader
        .load(&format!("fs-{}", params.root_fstype))
        .or_else(|_| loader.load(&params.root_fstype))
    {
        log::debug(|| problem);
    }
    handover::mount_guest_root(
        device,
        &params.root_fstype,
        superblock.is_some_and(|found| found.has_errors),
    )?;
    marks.mark("layers");
    if let Some(address) = &params.net.address {
        // The real system asks for an address anyway.
        if let Err(problem) = take_address(address, params.net.nic.as_ref()) {
            log::info(format!(
                "`gasthaus.ip` is left to the real system: {problem}"
            ));
        }
        marks.mark("network");
    }
    handover::check_init(&params.init)?;
    let json = format!(
        "{{\"format\":1,\"device\":{},\"fs\":{},\"milliseconds\":{}}}\n",
        json_string(device),
        json_string(&params.root_fstype),
        marks.json()
    );
    handover::note("boot.json", &json)
}

/// Brings the chosen card, else the first, up with `wanted`.
fn take_address(wanted: &StaticAddress, choice: Option<&NicChoice>) -> std::io::Result<()> {
    let started = Instant::now();
    let index = loop {
        let cards = cards::list(Path::new(CLASS));
        if let Some(card) = cards.iter().find(|card| card.is_chosen(choice)) {
            break card.index;
        }
        if started.elapsed() >= CARD_LIMIT {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        std::thread::sleep(CARD_PAUSE);
    };
    rtnl::bring_up(index)?;
    rtnl::add_address(index, wanted.address, wanted.prefix_len)?;
    wanted.gateway.map_or(Ok(()), |via| {
        rtnl::add_route(Route {
            index,
            to: None,
            via,
            metric: METRIC,
            by_dhcp: false,
        })
    })
}
