//! What the network leaves behind: name servers for us, the lease for people, and settings that make the real system's
//! networkd keep what the root streams over.
//!
//! Formats: resolv.conf(5); systemd.network(5), `KeepConfiguration=yes`: "networkd will never drop" what it finds on the
//! interface; resolved.conf(5), `FallbackDNS=`.

use super::cards::mac_text;
use super::network::{Config, Method, Nic};
use super::params::MAX_DNS;
use crate::boot::error::BootError;
use crate::boot::handover;
use crate::boot::marks::json_string;
use crate::boot::mounts;
use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

/// Ours, and after the handover the daemon's: it stays in the initramfs.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const NETWORKD_DIR: &str = "/run/systemd/network";
const RESOLVED_DIR: &str = "/run/systemd/resolved.conf.d";
const UNITS_DIR: &str = "/run/systemd/system";
/// Where resolved writes the servers that networkd has learnt.
const LEARNT: &str = "/run/systemd/resolve/resolv.conf";

fn write(path: &Path, text: &str) -> Result<(), BootError> {
    if let Some(dir) = path.parent() {
        mounts::make_dir(dir)?;
    }
    fs::write(path, text).map_err(|source| BootError::File {
        action: "write",
        path: path.into(),
        source,
    })
}

/// Configured cards, the preferred one first.
fn by_rank(nics: &[Nic]) -> Vec<(&Nic, &Config)> {
    let mut found: Vec<_> = nics
        .iter()
        .filter_map(|nic| Some((nic, nic.config.as_ref()?)))
        .collect();
    found.sort_by_key(|(nic, _)| nic.rank);
    found
}

/// Name servers of all cards, each once.
fn name_servers(nics: &[Nic]) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for (_, config) in by_rank(nics) {
        for server in &config.dns {
            if !servers.contains(server) {
                servers.push(*server);
            }
        }
    }
    servers.truncate(MAX_DNS);
    servers
}

fn resolv_conf(nics: &[Nic]) -> String {
    let mut text = String::from("options timeout:2 attempts:3\n");
    for server in name_servers(nics) {
        let _ = writeln!(text, "nameserver {server}"); // a String takes every write, here and below
    }
    let domain = by_rank(nics)
        .into_iter()
        .find_map(|(_, config)| config.domain.as_deref());
    if let Some(domain) = domain {
        let _ = writeln!(text, "search {domain}");
    }
    text
}

/// Writes the initramfs's resolv.conf.
///
/// # Errors
/// With the path.
pub fn write_resolv_conf(nics: &[Nic]) -> Result<(), BootError> {
    write(Path::new(RESOLV_CONF), &resolv_conf(nics))
}

/// The `.network` file for one interface. Matched by hardware address: udev renames cards.
fn network_unit(nic: &Nic, config: &Config, is_vlan: bool) -> String {
    let mut text = format!(
        "# The root streams over this card: what it was given at boot stays.\n\
         [Match]\nMACAddress={}\n{}\n\n[Link]\nRequiredForOnline=no\n\n\
         [Network]\nKeepConfiguration=yes\nLLDP=no\nEmitLLDP=no\n",
        mac_text(nic.card.mac),
        if is_vlan {
            "Kind=vlan"
        } else {
            "Type=ether\nKind=!*"
        },
    );
    if config.method == Method::Static {
        text.push_str("DHCP=no\n");
        for (address, len) in &config.addresses {
            let _ = writeln!(text, "Address={address}/{len}");
        }
        for server in &config.dns {
            let _ = writeln!(text, "DNS={server}");
        }
        for route in config.routes.iter().filter(|route| route.to.is_none()) {
            let _ = write!(
                text,
                "\n[Route]\nGateway={}\nMetric={}\n",
                route.via, route.metric
            );
        }
        return text;
    }
    text.push_str("DHCP=yes\n\n[DHCPv4]\nClientIdentifier=mac\nUseDomains=yes\n");
    if let (Method::Dhcp, Some((IpAddr::V4(address), _))) =
        (config.method, config.addresses.first())
    {
        let _ = writeln!(text, "RequestAddress={address}");
    }
    text.push_str("\n[DHCPv6]\nUseDomains=yes\n");
    text
}

/// The card below a VLAN carries no address of its own.
fn parent_unit(nic: &Nic) -> String {
    format!(
        "# Below the VLAN that the root streams over.\n[Match]\nMACAddress={}\nType=ether\nKind=!*\n\n\
         [Link]\nRequiredForOnline=no\n\n[Network]\nKeepConfiguration=yes\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
        mac_text(nic.card.mac)
    )
}

fn net_json(nics: &[Nic]) -> String {
    let list = |items: Vec<String>| format!("[{}]", items.join(","));
    let text = |text: &dyn ToString| json_string(&text.to_string());
    let cards = nics.iter().map(|nic| {
        let mut fields = vec![
            format!("\"name\":{}", text(&nic.card.name)),
            format!("\"mac\":{}", text(&mac_text(nic.card.mac))),
            format!("\"driver\":{}", text(&nic.card.driver)),
            format!("\"carrier\":{}", nic.carrier),
            format!("\"state\":{}", text(&nic.text)),
        ];
        if let Some(config) = &nic.config {
            let addresses = config.addresses.iter();
            let addresses = addresses.map(|(a, len)| text(&format!("{a}/{len}")));
            let routes = config.routes.iter().map(|route| {
                let to = route
                    .to
                    .map_or_else(|| "default".into(), |(to, len)| format!("{to}/{len}"));
                format!(
                    "{{\"to\":{},\"via\":{},\"metric\":{}}}",
                    text(&to),
                    text(&route.via),
                    route.metric
                )
            });
            fields.extend([
                format!("\"interface\":{}", text(&config.interface)),
                format!("\"method\":{}", text(&config.method.as_str())),
                format!("\"addresses\":{}", list(addresses.collect())),
                format!("\"routes\":{}", list(routes.collect())),
                format!(
                    "\"dns\":{}",
                    list(config.dns.iter().map(|server| text(server)).collect())
                ),
            ]);
            let optional = [
                ("domain", config.domain.as_deref().map(json_string)),
                ("server", config.server.map(|server| text(&server))),
                ("lease-secs", config.lease_secs.map(|secs| secs.to_string())),
            ];
            for (key, value) in optional {
                fields.extend(value.map(|value| format!("\"{key}\":{value}")));
            }
        }
        format!("{{{}}}", fields.join(","))
    });
    format!("{{\"format\":1,\"cards\":{}}}\n", list(cards.collect()))
}

/// A path unit and its service: what name servers a renewed lease brings reaches the daemon, process `daemon`, which has the initramfs for
/// its root. (libc and the daemon look at the file again when it has changed.)
fn name_units(daemon: u32) -> [(&'static str, String); 2] {
    let to = format!("/proc/{daemon}/root{RESOLV_CONF}");
    [
        (
            "gasthaus-names.path",
            format!(
                "[Unit]\nDescription=New name servers, for what streams the root\nDefaultDependencies=no\n\
                 Conflicts=shutdown.target\nBefore=shutdown.target\n\n[Path]\nPathChanged={LEARNT}\n"
            ),
        ),
        (
            "gasthaus-names.service",
            format!(
                "[Unit]\nDescription=Tell what streams the root its name servers\nDefaultDependencies=no\n\n\
                 [Service]\nType=oneshot\nExecCondition=/usr/bin/grep -q ^nameserver {LEARNT}\n\
                 ExecStart=/usr/bin/cp {LEARNT} {to}.new\nExecStart=/usr/bin/mv {to}.new {to}\n"
            ),
        ),
    ]
}

/// Leaves the notes for the real system, in which the streaming daemon is process `daemon`.
///
/// # Errors
/// With the path that cannot be written.
pub fn leave(nics: &[Nic], daemon: Option<u32>) -> Result<(), BootError> {
    for (name, text) in daemon.map(name_units).into_iter().flatten() {
        write(&Path::new(UNITS_DIR).join(name), &text)?;
    }
    if daemon.is_some() {
        let wants = Path::new(UNITS_DIR).join("multi-user.target.wants");
        mounts::make_dir(&wants)?;
        // A second try at booting finds it there.
        let _ =
            std::os::unix::fs::symlink("../gasthaus-names.path", wants.join("gasthaus-names.path"));
    }
    handover::note("net.json", &net_json(nics))?;
    for (nic, config) in by_rank(nics) {
        let is_vlan = config.index != nic.card.index;
        let name = |what: &str| {
            format!(
                "{NETWORKD_DIR}/05-gasthaus-{what}-{}.network",
                nic.card.index
            )
        };
        if is_vlan {
            write(Path::new(&name("parent")), &parent_unit(nic))?;
        }
        let unit = network_unit(nic, config, is_vlan);
        write(Path::new(&name("boot")), &unit)?;
    }
    let servers: Vec<String> = name_servers(nics).iter().map(IpAddr::to_string).collect();
    if servers.is_empty() {
        return Ok(());
    }
    // Until networkd tells its own: then these are not asked.
    let text = format!("[Resolve]\nFallbackDNS={}\n", servers.join(" "));
    write(&Path::new(RESOLVED_DIR).join("gasthaus-boot.conf"), &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::net::cards::Card;
    use crate::boot::net::rtnl::Route;

    fn nic(index: u32, rank: usize, method: Method) -> Nic {
        let address = format!("192.0.2.{index}").parse().unwrap();
        Nic {
            card: Card {
                name: format!("eth{index}"),
                index,
                mac: [0x52, 0x54, 0, 0, 0, index as u8],
                driver: "e1000e".into(),
            },
            carrier: true,
            text: "\u{1b}up\"".into(),
            rank,
            config: Some(Config {
                interface: format!("eth{index}"),
                index,
                method,
                addresses: vec![(address, 24)],
                routes: vec![Route {
                    index,
                    to: None,
                    via: "192.0.2.1".parse().unwrap(),
                    metric: 100,
                    by_dhcp: true,
                }],
                dns: vec!["192.0.2.1".parse().unwrap(), address],
                domain: (rank == 1).then(|| "example.org".into()),
                server: None,
                lease_secs: None,
            }),
        }
    }

    #[test]
    fn the_preferred_card_is_asked_first() {
        let nics = [nic(3, 1, Method::Dhcp), nic(2, 0, Method::Dhcp)];
        assert_eq!(
            resolv_conf(&nics),
            "options timeout:2 attempts:3\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nsearch example.org\n"
        );
    }

    #[test]
    fn networkd_keeps_what_was_given() {
        let dhcp = nic(2, 0, Method::Dhcp);
        let text = network_unit(&dhcp, dhcp.config.as_ref().unwrap(), false);
        for line in [
            "MACAddress=52:54:00:00:00:02",
            "Kind=!*",
            "KeepConfiguration=yes",
            "DHCP=yes",
            "ClientIdentifier=mac",
            "RequestAddress=192.0.2.2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        let fixed = nic(2, 0, Method::Static);
        let text = network_unit(&fixed, fixed.config.as_ref().unwrap(), true);
        for line in [
            "Kind=vlan",
            "DHCP=no",
            "Address=192.0.2.2/24",
            "Gateway=192.0.2.1",
            "DNS=192.0.2.1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
    }

    #[test]
    fn new_name_servers_reach_the_daemon() {
        let [(_, path), (_, service)] = name_units(77);
        assert!(
            path.contains("PathChanged=/run/systemd/resolve/resolv.conf\n"),
            "{path}"
        );
        assert!(
            service
                .contains("mv /proc/77/root/etc/resolv.conf.new /proc/77/root/etc/resolv.conf\n"),
            "{service}"
        );
    }

    #[test]
    fn the_note_is_json() {
        let text = net_json(&[nic(2, 0, Method::Dhcp)]);
        assert_eq!(
            text,
            "{\"format\":1,\"cards\":[{\"name\":\"eth2\",\"mac\":\"52:54:00:00:00:02\",\"driver\":\"e1000e\",\"carrier\":true,\
             \"state\":\"\\u001bup\\\"\",\"interface\":\"eth2\",\"method\":\"dhcp\",\"addresses\":[\"192.0.2.2/24\"],\
             \"routes\":[{\"to\":\"default\",\"via\":\"192.0.2.1\",\"metric\":100}],\"dns\":[\"192.0.2.1\",\"192.0.2.2\"]}]}\n"
        );
    }
}
