//! A UEFI program without its debugging sections.
//!
//! In: a PE32+ file (Microsoft's PE format, "COFF File Header", "Section Table"). Out: the same up to the last section that
//! is loaded. Debian's `xen.efi` has 29 MB, 26 of them for debuggers.

/// `IMAGE_SCN_MEM_DISCARDABLE`: debugging sections have it, and so do relocations, which stay.
const DISCARDABLE: u32 = 0x0200_0000;
/// Bytes of one entry of the section table.
const SECTION_BYTES: usize = 40;
/// Offsets in the optional header of PE32+: the alignment of sections, the image's length, the relocations' directory.
const SECTION_ALIGNMENT: usize = 32;
const IMAGE_BYTES: usize = 56;
const RELOCATIONS: usize = 112 + 5 * 8;

/// Why a program cannot be cut.
#[derive(Debug, thiserror::Error)]
#[error("it is no PE32+ program: {0}")]
pub struct PeError(&'static str);

/// `program` without the discardable sections at its end.
///
/// # Errors
/// If it is not a PE32+ file.
pub fn without_debugging(program: &[u8]) -> Result<Vec<u8>, PeError> {
    let cut = PeError("it ends within its headers");
    let pe = word(program, 0x3c).ok_or(cut)? as usize;
    if program.get(pe..).and_then(|rest| rest.get(..4)) != Some(b"PE\0\0") {
        return Err(PeError("there is no `PE` where its header says"));
    }
    let header = program.get(pe + 4..).and_then(|rest| rest.get(..20));
    let header = header.ok_or(PeError("it ends within its headers"))?;
    let count = usize::from(u16::from_le_bytes([header[2], header[3]]));
    let optional = pe + 24;
    let table = optional + usize::from(u16::from_le_bytes([header[16], header[17]]));
    if program.get(optional..optional + 2) != Some(&[0x0b, 0x02]) || table < optional + 160 {
        return Err(PeError("its optional header is another"));
    }
    let outside = || PeError("a table or section lies outside of the file");
    let relocations = word(program, optional + RELOCATIONS).ok_or_else(outside)?;
    let alignment = word(program, optional + SECTION_ALIGNMENT).ok_or_else(outside)?;
    if !alignment.is_power_of_two() {
        return Err(PeError("the alignment of its sections is no power of two"));
    }
    let (mut kept, mut end, mut image_end) = (0, table + count * SECTION_BYTES, 0u32);
    for index in 0..count {
        let at = table + index * SECTION_BYTES;
        let field = |offset: usize| word(program, at + offset).ok_or_else(outside);
        let (in_memory, address) = (field(8)?, field(12)?);
        let (in_file, offset) = (field(16)? as usize, field(20)? as usize);
        if field(36)? & DISCARDABLE != 0 && address != relocations {
            continue;
        }
        kept = index + 1;
        end = end.max(offset.checked_add(in_file).ok_or_else(outside)?);
        let last = address.checked_add(in_memory).ok_or_else(outside)?;
        image_end = image_end.max(last);
    }
    // Those in between are kept: the table has no holes.
    for index in 0..kept {
        let at = table + index * SECTION_BYTES;
        let field = |offset: usize| word(program, at + offset).ok_or_else(outside);
        end = end.max((field(20)? as usize).saturating_add(field(16)? as usize));
    }
    let image_bytes = image_end
        .checked_next_multiple_of(alignment)
        .ok_or_else(outside)?;
    let mut out = program.get(..end).ok_or_else(outside)?.to_vec();
    out[pe + 6..pe + 8].copy_from_slice(&(kept as u16).to_le_bytes());
    out[pe + 12..pe + 20].fill(0); // no table of symbols: it lies behind the sections
    out[optional + IMAGE_BYTES..optional + IMAGE_BYTES + 4]
        .copy_from_slice(&image_bytes.to_le_bytes());
    out[table + kept * SECTION_BYTES..table + count * SECTION_BYTES].fill(0);
    Ok(out)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.get(..4)?;
    Some(u32::from_le_bytes(four.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with `.text`, `.reloc` and `.debug`, each of 16 bytes.
    fn program() -> Vec<u8> {
        let (pe, table) = (0x40, 0x40 + 24 + 240);
        let mut file = vec![0; table + 3 * SECTION_BYTES];
        file[0x3c] = pe as u8;
        file[pe..pe + 4].copy_from_slice(b"PE\0\0");
        file[pe + 6] = 3;
        file[pe + 12] = 9; // symbols
        file[pe + 20] = 240;
        let optional = pe + 24;
        file[optional..optional + 2].copy_from_slice(&[0x0b, 0x02]);
        file[optional + SECTION_ALIGNMENT + 1] = 0x10;
        file[optional + RELOCATIONS + 1] = 0x20;
        for (index, flags) in [0x6000_0020, 0x4200_0040, 0x4200_0040u32]
            .into_iter()
            .enumerate()
        {
            let at = table + index * SECTION_BYTES;
            let start = (table + 3 * SECTION_BYTES + index * 16) as u32;
            for (offset, value) in [(8, 16), (12, 0x1000 * (index as u32 + 1)), (16, 16)] {
                file[at + offset..at + offset + 4].copy_from_slice(&u32::to_le_bytes(value));
            }
            file[at + 20..at + 24].copy_from_slice(&start.to_le_bytes());
            file[at + 36..at + 40].copy_from_slice(&flags.to_le_bytes());
        }
        file.extend([1; 16]);
        file.extend([2; 16]);
        file.extend([3; 16]);
        file
    }

    #[test]
    fn debugging_goes_and_relocations_stay() {
        let before = program();
        let after = without_debugging(&before).unwrap();
        assert_eq!(after.len(), before.len() - 16);
        assert!(after.ends_with(&[2; 16]));
        assert_eq!((after[0x46], after[0x4c]), (2, 0));
        assert_eq!(word(&after, 0x40 + 24 + IMAGE_BYTES), Some(0x3000));
        assert_eq!(without_debugging(&after).unwrap(), after);
    }

    #[test]
    fn damaged_programs_are_refused() {
        let good = program();
        for length in 0..good.len() - 16 {
            assert!(without_debugging(&good[..length]).is_err(), "{length}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = 0xff;
            let _ = without_debugging(&bad);
        }
        assert!(without_debugging(b"MZ").is_err());
    }
}
