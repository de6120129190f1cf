//! Booting over the network: from the first card to the folder in which the layers are.
//!
//! `network` gets an address for every card, `daemon` starts what streams, `menu` lets people choose; `notes` tells the
//! real system what it must keep. In: [`params::NetParams`] from the command line. Out: a folder that looks like
//! `/gasthaus/<id>` on a medium.

pub mod cards;
pub mod daemon;
pub mod dhcp;
pub mod menu;
pub mod network;
mod nic;
pub mod notes;
pub mod params;
pub mod progress;
pub mod root;
pub mod rtnl;
pub mod v6;
