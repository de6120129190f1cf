//! Kernel uevents: the netlink messages that say "a device is there". Parser (pure) and the socket.

use rustix::fd::OwnedFd;
use rustix::io;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// One message from the kernel; only the fields we use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `change`, `remove` …
    pub action: String,
    /// `block`, `pci` …
    pub subsystem: String,
    /// What the device wants as a driver.
    pub modalias: Option<String>,
    /// Node below `/dev`, e.g. `sda1`.
    pub devname: Option<String>,
}

/// Parses `add@/devices/…\0KEY=value\0…`. `None` for anything else (udev's own messages start with `libudev`).
pub fn parse(message: &[u8]) -> Option<Uevent> {
    let mut fields = message.split(|b| *b == 0);
    let head = fields.next()?;
    if !head.contains(&b'@') {
        return None;
    }
    let mut event = Uevent::default();
    for field in fields {
        let Ok(text) = std::str::from_utf8(field) else {
            continue;
        };
        match text.split_once('=') {
            Some(("ACTION", value)) => event.action = value.into(),
            Some(("SUBSYSTEM", value)) => event.subsystem = value.into(),
            Some(("MODALIAS", value)) => event.modalias = Some(value.into()),
            Some(("DEVNAME", value)) => event.devname = Some(value.into()),
            _ => {}
        }
    }
    (!event.action.is_empty()).then_some(event)
}

/// The kernel's multicast group of uevents (2 would be udev's).
const KERNEL_GROUP: u32 = 1;
/// Messages are at most 2 KiB plus the path (`lib/kobject_uevent.c`, UEVENT_BUFFER_SIZE).
const MESSAGE_BYTES: usize = 8192;

/// A socket that hears the kernel's uevents.
#[derive(Debug)]
pub struct UeventSocket(OwnedFd);

impl UeventSocket {
    /// Opens and subscribes. A generous receive buffer: the coldplug of a large machine is thousands of messages.
    ///
    /// # Errors
    /// What the kernel says; without `CONFIG_NET` there is no netlink.
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(KOBJECT_UEVENT),
        )?;
        // Not fatal: the periodic look into /sys finds what an overflow lost.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20);
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self(socket))
    }

    /// Waits for the next message we understand.
    ///
    /// # Errors
    /// `ENOBUFS` when messages were lost; the caller looks at /sys again.
    pub fn next(&self) -> io::Result<Uevent> {
        let mut buffer = vec![0u8; MESSAGE_BYTES];
        loop {
            let (len, _) = match recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Err(io::Errno::INTR) => continue,
                other => other?,
            };
            if let Some(event) = parse(&buffer[..len.min(MESSAGE_BYTES)]) {
                return Ok(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_kernel_message() {
        let bytes = b"add@/devices/x\0ACTION=add\0SUBSYSTEM=block\0DEVNAME=sda1\0SEQNUM=7\0";
        let event = parse(bytes).unwrap();
        assert_eq!(event.devname.as_deref(), Some("sda1"));
        assert_eq!(
            (event.action.as_str(), event.subsystem.as_str()),
            ("add", "block")
        );
        let event = parse(b"add@/d\0ACTION=add\0MODALIAS=pci:v00008086d\0").unwrap();
        assert_eq!(event.modalias.as_deref(), Some("pci:v00008086d"));
    }

    #[test]
    fn hostile_messages_are_ignored() {
        for bytes in [
            &b""[..],
            b"libudev\0\xfe\xed",
            b"add@",
            b"@\0=\0==\0",
            b"\0\0\0",
            b"add@x\0ACTION\0",
            b"\xff@\xff\0\xff=\xff",
        ] {
            assert_eq!(parse(bytes), None, "{bytes:?}");
        }
    }
}
