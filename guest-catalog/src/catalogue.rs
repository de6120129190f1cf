//! The catalogue: all guests together, in start order, each with its place on the network.
use crate::address::{self, MAX_GUESTS, Mac};
use crate::error::ProblemKind;
use crate::{Guest, GuestError, Problem, Resources};
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::path::Path;

/// File name of a definition in its guest's folder.
const DEFINITION: &str = "guest.toml";
/// Most bytes read of one definition; the parser refuses anything near it.
const READ_MAX_BYTES: u64 = 128 * 1024;

/// A guest with what follows from its place in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The definition.
    pub guest: Guest,
    /// Hardware address of its network card.
    pub mac: Mac,
    /// Hardware address of its second card, for a guest that joins the LAN.
    pub lan_mac: Option<Mac>,
    /// Address in the house, or `None` for a guest without network.
    pub address: Option<Ipv4Addr>,
}

/// All guests, sorted by `order`, then name. A guest's index decides its static address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    entries: Vec<Entry>,
}

impl Catalogue {
    /// Sorts `guests` and gives them their addresses. Each comes with the name of its file, for messages.
    ///
    /// # Errors
    /// [`GuestError::Invalid`] for two guests with one name or one hardware address, and for too many guests.
    pub fn new(guests: Vec<(String, Guest)>) -> Result<Self, GuestError> {
        let mut guests = guests;
        guests.sort_by(|(_, a), (_, b)| (a.order, &a.name).cmp(&(b.order, &b.name)));
        let mut problems = Vec::new();
        let mut entries: Vec<Entry> = Vec::with_capacity(guests.len());
        for (index, (file, guest)) in guests.into_iter().enumerate() {
            let mac = address::mac(&guest);
            let mut conflict = |key: &str, message: String| {
                let kind = ProblemKind::Conflict(message);
                problems.push(Problem {
                    file: file.clone(),
                    line: 1,
                    key: key.to_owned(),
                    kind,
                });
            };
            let (lan_mac, address) = (address::lan_mac(&guest), address::address(&guest, index));
            for other in &entries {
                if other.guest.name == guest.name {
                    conflict(
                        "name",
                        format!("is `{}`, as is another guest's", guest.name),
                    );
                } else if other.mac == mac || other.lan_mac == Some(mac) {
                    conflict(
                        "network.mac",
                        format!(
                            "is {mac}, as is that of `{}`; set another one",
                            other.guest.name
                        ),
                    );
                }
                let taken = [Some(other.mac), other.lan_mac];
                if let Some(lan_mac) = lan_mac
                    && taken.contains(&Some(lan_mac))
                    && other.guest.name != guest.name
                {
                    conflict(
                        "network.lan-mac",
                        format!(
                            "is {lan_mac}, as is that of `{}`; set another one",
                            other.guest.name
                        ),
                    );
                }
                if let Some(address) = address
                    && other.address == Some(address)
                {
                    conflict(
                        "network.address",
                        format!(
                            "is {address}, which `{}` has; set another one for one of them",
                            other.guest.name
                        ),
                    );
                }
                for forward in &guest.network.forwards {
                    let same = |theirs: &&crate::Forward| {
                        (theirs.protocol, theirs.port) == (forward.protocol, forward.port)
                    };
                    if other.guest.network.forwards.iter().find(same).is_some() {
                        conflict(
                            "network.forwards",
                            format!(
                                "has {} port {} of dom0, which leads to `{}`",
                                forward.protocol.as_str(),
                                forward.port,
                                other.guest.name
                            ),
                        );
                    }
                }
            }
            if index == MAX_GUESTS {
                conflict(
                    "",
                    format!("is one guest too many: the bridge has addresses for {MAX_GUESTS}"),
                );
            }
            entries.push(Entry {
                guest,
                mac,
                lan_mac,
                address,
            });
        }
        if problems.is_empty() {
            Ok(Self { entries })
        } else {
            Err(GuestError::Invalid { problems })
        }
    }

    /// Reads `<dir>/*/guest.toml`. Folders without a definition are passed over; a missing `dir` is an empty catalogue.
    ///
    /// # Errors
    /// [`GuestError::Read`] for the first file that cannot be read, [`GuestError::Invalid`] with the problems of all.
    pub fn read_dir(dir: &Path) -> Result<Self, GuestError> {
        let read = |path: &Path, source| GuestError::Read {
            path: path.to_owned(),
            source,
        };
        let listing = match std::fs::read_dir(dir) {
            Ok(listing) => listing,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(read(dir, error)),
        };
        let mut folders = Vec::new();
        for item in listing {
            folders.push(item.map_err(|error| read(dir, error))?.file_name());
        }
        folders.sort();

        let (mut guests, mut problems) = (Vec::new(), Vec::new());
        for folder in folders {
            let path = dir.join(&folder).join(DEFINITION);
            let mut text = String::new();
            match std::fs::File::open(&path)
                .and_then(|file| file.take(READ_MAX_BYTES).read_to_string(&mut text))
            {
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(read(&path, error)),
            }
            let file = path.display().to_string();
            match Guest::parse(&file, &text) {
                Ok(guest) if folder.to_str() != Some(guest.name.as_str()) => {
                    let expected = format!(
                        "the folder's name, `{}`",
                        crate::format::shorten(&folder.to_string_lossy())
                    );
                    let kind = ProblemKind::BadValue {
                        found: format!("`\"{}\"`", guest.name),
                        expected,
                    };
                    problems.push(Problem {
                        file,
                        line: line_of_name(&text),
                        key: "name".into(),
                        kind,
                    });
                }
                Ok(guest) => guests.push((file, guest)),
                Err(GuestError::Invalid { problems: more }) => problems.extend(more),
                Err(other) => return Err(other),
            }
        }
        if problems.is_empty() {
            Self::new(guests)
        } else {
            Err(GuestError::Invalid { problems })
        }
    }

    /// The guests in start order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The guest called `name`.
    ///
    /// # Errors
    /// [`GuestError::Unknown`] with the names there are, and the most similar one.
    pub fn find(&self, name: &str) -> Result<&Entry, GuestError> {
        self.entries
            .iter()
            .find(|entry| entry.guest.name.as_str() == name)
            .ok_or_else(|| {
                let known: Vec<String> = self
                    .entries
                    .iter()
                    .map(|entry| entry.guest.name.to_string())
                    .collect();
                let nearest = nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
                GuestError::Unknown {
                    name: crate::format::shorten(name),
                    known,
                    nearest,
                }
            })
    }

    /// What all guests need together; with `autostart_only`, those which start by themselves.
    pub fn resources(&self, autostart_only: bool) -> Resources {
        self.entries
            .iter()
            .filter(|entry| entry.guest.autostart || !autostart_only)
            .map(|e| Resources::of(&e.guest))
            .sum()
    }
}

fn line_of_name(text: &str) -> usize {
    text.lines()
        .position(|line| line.trim_start().starts_with("name"))
        .map_or(1, |index| index + 1)
}

/// The one of `known` most like `word`, if any is near enough to be a slip of the finger.
pub fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let word: String = word.chars().take(64).collect::<String>().to_lowercase();
    known
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= 1 + candidate.chars().count().max(word.chars().count()) / 4
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
