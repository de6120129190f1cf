//! A store's index as a publish finds it and as it leaves it.

use super::{PublishError, PublishRequest, SigningKey, StoreWriter};
use crate::format::{Head, HeadError, Index, Label, Name, System, VerifyKey, Version};

/// The index so far, if there is a store, and whether `key` signed it; else one of `old_keys` must have.
pub(super) fn index_before(
    writer: &StoreWriter,
    old_keys: &[VerifyKey],
    key: &SigningKey,
) -> Result<Option<(Index, bool)>, PublishError> {
    let Some(head) = writer.store().head()? else {
        return Ok(None);
    };
    let with = |keys: &[VerifyKey]| Head::open(&head, keys, 0);
    let opened = match with(std::slice::from_ref(key.public())) {
        Err(HeadError::UnknownKey { .. }) if !old_keys.is_empty() => {
            with(old_keys).map(|index| (index, false))
        }
        opened => opened.map(|index| (index, true)),
    };
    opened.map(Some).map_err(|source| PublishError::Head {
        path: writer.store().dir().to_owned(),
        source,
    })
}

/// The index with `version` as the latest of its system, where the system is in it, and what fell out.
pub(super) fn index_after(
    before: Option<&Index>,
    request: &PublishRequest,
    version: Version,
) -> (Index, usize, Vec<Name>) {
    let mut index = before.cloned().unwrap_or(Index {
        serial: 0,
        signed_secs: 0,
        default_system: 0,
        systems: Vec::new(),
    });
    let default = index.system(None).map(|system| system.name.clone());
    let found = index
        .systems
        .binary_search_by(|system| system.name.cmp(&request.system));
    let at = match found {
        Ok(at) => at,
        Err(at) => {
            let system = System {
                name: request.system.clone(),
                label: Label::default(),
                default_version: 0,
                versions: Vec::new(),
            };
            index.systems.insert(at, system);
            at
        }
    };
    let system = &mut index.systems[at];
    if let Some(label) = &request.system_label {
        system.label = label.clone();
    }
    system.versions.retain(|other| other.id != version.id);
    system.versions.insert(0, version);
    system.default_version = 0;
    let kept = request
        .keep
        .unwrap_or(usize::MAX)
        .max(1)
        .min(system.versions.len());
    let dropped = system
        .versions
        .split_off(kept)
        .into_iter()
        .map(|v| v.id)
        .collect();
    // The default system stays the one it was, wherever it lies now.
    let default = index
        .systems
        .iter()
        .position(|system| Some(&system.name) == default.as_ref());
    index.default_system = default.unwrap_or(0) as u16; // at most 256 systems, which `encode` checks
    next_serial(&mut index, request.signed_secs);
    (index, at, dropped)
}

/// Gives `index` the next serial (FORMAT.md §12).
pub(super) fn next_serial(index: &mut Index, now_secs: u64) {
    index.serial = index.serial.saturating_add(1).max(now_secs);
    index.signed_secs = now_secs;
}
